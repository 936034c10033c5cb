"""MTARD: a small MLP on digits, trained plainly, against PGD, and taught by a robust and a clean teacher.

    python benchmarks/methods/mtard.py [--seeds 5]

Pixels are in units of 0 to 1, ε is 0.15 in ℓ∞, training attacks by PGD-10 and the test by PGD-20. A seed has its own
split of 1,297 rows (a fifth is for validation), its own teachers, larger MLPs that see the same training rows, and its
own initial parameters; the 500 test rows serve for the table alone. The learning rate of each arm is tuned by the sum
of clean and robust accuracy on the validation rows of another seed.
"""

from functools import partial

import torch
from common import Records, Trained, accuracy, arguments, arrays, difference, each_seed, interval, trained, write
from torch import nn

from kinfold.methods import MTARD, AdversarialTraining
from kinfold.methods.pgd import accuracy_under_attack

EPSILON, EPOCHS, TUNING = 0.15, 25, 1000
RATES = (0.05, 0.2)


def mlp(*hidden: int) -> nn.Module:
    widths = (64, *hidden)
    layers = [part for i, o in zip(widths, hidden, strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], 10))


STUDENT, TEACHER = partial(mlp, 32), partial(mlp, 128, 128)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    record, (rows, test) = Records(given.records), arrays("digits")
    attacks = AdversarialTraining(EPSILON)

    def run(model, seed: int, lr: float, *methods) -> Trained:
        optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9)
        return trained(model, rows, seed=seed, epochs=EPOCHS, optimizer=optimizer, batch_size=64, methods=methods)

    def measured(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
        """[clean, robust] accuracy in %."""
        bounds = {"low": torch.tensor(0.0), "high": torch.tensor(1.0)}
        robust = accuracy_under_attack(model, x, y, epsilon=EPSILON, step=EPSILON / 10, steps=20, **bounds)
        return [accuracy(model, (x, y)), 100 * robust]

    def methods_of(arm: str, seed: int) -> list:
        if arm in ("plain", "PGD training"):
            return [] if arm == "plain" else [attacks]
        robust, clean = teachers(seed)
        return [MTARD(robust, clean, EPSILON, eta=0.0 if arm == "MTARD, equal weights" else 0.025)]

    kept: dict[int, list[nn.Module]] = {}

    def teachers(seed: int) -> list[nn.Module]:
        if seed not in kept:
            kept[seed] = [run(TEACHER, seed, 0.1, *methods).models[0] for methods in ([attacks], [])]
        return kept[seed]

    def tuned(arm: str) -> float:
        def value(lr: float) -> float:
            done = run(STUDENT, TUNING, lr, *methods_of(arm, TUNING))
            mine = done.validation[0]
            return sum(measured(done.models[0], rows[0][mine], rows[1][mine]))

        found = {lr: record(f"tune {arm} {lr}", lambda lr=lr: value(lr)) for lr in RATES}
        return max(found, key=lambda lr: found[lr])

    rates = {arm: tuned(arm) for arm in ("plain", "PGD training", "MTARD")}

    def one_seed(seed: int) -> dict[str, list[float]]:
        """Arm → clean and robust accuracy, and seconds."""
        arms = ("plain", "PGD training", "MTARD", "MTARD, equal weights")
        found = {}
        for arm in arms:
            done = run(STUDENT, seed, rates[arm.split(",")[0]], *methods_of(arm, seed))
            found[arm] = [*measured(done.models[0], *test), done.seconds]
        for name, teacher in zip(("the robust teacher", "the clean teacher"), teachers(seed), strict=True):
            found[name] = [*measured(teacher, *test), 0.0]
        return found

    seeds = each_seed(given, lambda seed: record(f"seed {seed}", lambda: one_seed(seed)))
    clean, robust = ({name: [seed[name][i] for seed in seeds] for name in seeds[0]} for i in (0, 1))
    control = "PGD training"
    settings = f"SGD with momentum 0.9 on a cosine, {EPOCHS} epochs, batch 64, learning rates {rates}"
    lines = [
        f"Students 64-32-10, teachers 64-128-128-10, {settings}; {given.seeds} seeds, 95 % intervals.\n",
        "| arm | clean, % | PGD-20, % | clean, over PGD training | PGD-20, over PGD training | seconds a run |",
        "|---|---|---|---|---|---|",
    ]
    for name in clean:
        gains = [difference(part[name], part[control]) if name != control else "" for part in (clean, robust)]
        seconds = sum(seed[name][2] for seed in seeds) / len(seeds)
        lines.append(
            f"| {name} | {interval(clean[name])} | {interval(robust[name])} | {' | '.join(gains)} | {seconds:.1f} |"
        )
    sentence = (
        f"Under PGD-20 on digits, MTARD's student keeps {interval(robust['MTARD'])} %, and a plainly trained one "
        f"{interval(robust['plain'])} %; over PGD training alone, MTARD gives "
        f"{difference(robust['MTARD'], robust[control])} points under attack and "
        f"{difference(clean['MTARD'], clean[control])} on clean rows, so no gain is shown here."
    )
    write(given.out, "MTARD and PGD adversarial training", sentence, "\n".join(lines))


if __name__ == "__main__":
    main()
