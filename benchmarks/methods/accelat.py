"""AccelAT: adversarial training of an MLP on digits by its schedule, by a constant rate, and by a cosine.

    python benchmarks/methods/accelat.py [--seeds 5]

PGD-5 in training and PGD-20 in the test, ε = 0.15 in units of 0 to 1. A seed has its own split of 1,297 rows (a fifth
is for validation) and its own initial parameters; the 500 test rows serve for the table alone. The learning rate at the
start of each schedule is tuned on the same grid, by the sum of clean and robust accuracy on validation rows of other
seeds; the other settings of AccelAT are its authors'.
"""

from functools import partial

import torch
from common import Records, Trained, accuracy, arguments, arrays, difference, interval, trained, write
from torch import nn

from kinfold.methods import AccelAT, AdversarialTraining
from kinfold.methods.pgd import accuracy_under_attack

EPSILON, LENGTHS, TUNING = 0.15, (12, 30), 1000
RATES = (0.05, 0.2, 0.5)
ARMS = ("constant", "cosine", "AccelAT")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    record, (rows, test) = Records(given.records), arrays("digits")

    def run(arm: str, lr: float, epochs: int, seeds: int, seed: int) -> Trained:
        methods = [AdversarialTraining(EPSILON, steps=5), *([AccelAT()] if arm == "AccelAT" else [])]
        scheduler = "cosine" if arm == "cosine" else "constant"
        optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9)
        common = {"epochs": epochs, "optimizer": optimizer, "scheduler": scheduler, "batch_size": 64}
        return trained(mlp, rows, seeds=seeds, seed=seed, methods=methods, **common)

    def measured(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
        """[clean, robust] accuracy in %."""
        bounds = {"low": torch.tensor(0.0), "high": torch.tensor(1.0)}
        robust = accuracy_under_attack(model, x, y, epsilon=EPSILON, step=EPSILON / 10, steps=20, **bounds)
        return [accuracy(model, (x, y)), 100 * robust]

    def tuned(arm: str, epochs: int) -> float:
        def value(lr: float) -> float:
            done = run(arm, lr, epochs, 2, TUNING)
            pairs = zip(done.models, done.validation, strict=True)
            return sum(sum(measured(model, rows[0][mine], rows[1][mine])) for model, mine in pairs) / 2

        found = {lr: record(f"tune {arm} {epochs} {lr}", lambda lr=lr: value(lr)) for lr in RATES}
        return max(found, key=lambda lr: found[lr])

    def test_scores(arm: str, lr: float, epochs: int) -> list[list[float]]:
        return [measured(model, *test) for model in run(arm, lr, epochs, given.seeds, 0).models]

    lines = [
        f"MLP 64-64-10, SGD with momentum 0.9, batch 64; {given.seeds} seeds, 95 % intervals.\n",
        "| epochs | schedule | rate | clean, % | PGD-20, % | clean, over cosine | PGD-20, over cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    said = []
    for epochs in LENGTHS:
        rates = {arm: tuned(arm, epochs) for arm in ARMS}
        scores = {
            arm: record(f"{arm} {epochs} {rates[arm]}", lambda a=arm, e=epochs, r=rates: test_scores(a, r[a], e))
            for arm in ARMS
        }
        for arm in ARMS:
            parts = [[score[i] for score in scores[arm]] for i in (0, 1)]
            others = [[score[i] for score in scores["cosine"]] for i in (0, 1)]
            gains = ["" if arm == "cosine" else difference(p, o) for p, o in zip(parts, others, strict=True)]
            cells = [str(epochs), arm, str(rates[arm]), *map(interval, parts), *gains]
            lines.append(f"| {' | '.join(cells)} |")
        robust = {arm: [score[1] for score in scores[arm]] for arm in ARMS}
        said.append(
            f"after {epochs} epochs AccelAT gives {difference(robust['AccelAT'], robust['constant'])} points of "
            f"robust accuracy over a tuned constant rate, and {difference(robust['AccelAT'], robust['cosine'])} over a "
            "tuned cosine"
        )
    sentence = f"No gain over a tuned cosine on digits trained by PGD: {'; '.join(said)}."
    write(given.out, "AccelAT's schedule", sentence, "\n".join(lines))


if __name__ == "__main__":
    main()
