"""Guidance: an MLP on MNIST-1D, alone and guided by a convolutional network, trained and untrained.

    python benchmarks/methods/guidance.py [--seeds 5]

A seed has its own split of the 4,000 labelled rows (a fifth is for validation), its own guide, trained on the same
training rows, and its own initial parameters. Learning rate and weight decay are tuned for the MLP alone, the weight of
guidance after that, with a guide trained for longer, both on the validation rows of another seed; the 1,000 test rows
serve for the table alone.
"""

from functools import partial

import torch
from common import Records, accuracy, arguments, arrays, difference, each_seed, interval, trained, write
from torch import nn

from kinfold.methods import Guidance

EPOCHS, LONG, TUNING = 60, 3, 1000
RATES, DECAYS, WEIGHTS = (0.002, 0.005, 0.01), (0.0, 0.3, 1.0), {False: (1.0, 3.0, 10.0, 30.0), True: (1.0, 10.0)}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cnn() -> nn.Module:
    """The convolutional network of MNIST-1D's authors."""
    layers = [nn.Conv1d(1, 25, 5, 2, 1), nn.ReLU(), nn.Conv1d(25, 25, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(25, 25, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(125, 10))


def adamw(lr: float, decay: float):
    return partial(torch.optim.AdamW, lr=lr, weight_decay=decay)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    record, (rows, test) = Records(given.records), arrays("mnist1d")

    def run(model, seed: int, epochs: int, optimizer, *methods):
        return trained(model, rows, seed=seed, epochs=epochs, optimizer=optimizer, batch_size=100, methods=methods)

    def guide(seed: int, epochs: int = 40) -> nn.Module:
        return run(cnn, seed, epochs, adamw(0.01, 0.01)).models[0]

    plain = {
        (lr, decay): record(
            f"tune {lr} {decay}", lambda lr=lr, decay=decay: run(mlp, TUNING, EPOCHS, adamw(lr, decay)).scores
        )
        for lr in RATES
        for decay in DECAYS
    }
    best = max(plain, key=lambda pair: plain[pair])
    optimizer = adamw(*best)
    made = []

    def tuned(weight: float, untrained: bool) -> list[float]:
        if not untrained and not made:
            made.append(guide(TUNING, 100))
        method = Guidance(cnn if untrained else made[0], weight=weight)
        return run(mlp, TUNING, EPOCHS, optimizer, method).scores

    def best_weight(untrained: bool) -> float:
        found = {w: record(f"tune weight {w} {untrained}", lambda w=w: tuned(w, untrained)) for w in WEIGHTS[untrained]}
        return max(found, key=lambda weight: found[weight])

    weights = {untrained: best_weight(untrained) for untrained in (False, True)}

    def one_seed(seed: int) -> dict[str, list[float]]:
        """Arm → test accuracy and seconds."""
        trained_guide = guide(seed)
        arms = {
            "alone": run(mlp, seed, EPOCHS, optimizer),
            "alone, three times the epochs": run(mlp, seed, LONG * EPOCHS, optimizer),
            "guided by the untrained CNN": run(
                mlp, seed, EPOCHS, optimizer, Guidance(cnn, weight=weights[True], seed=seed)
            ),
            "guided by the trained CNN": run(
                mlp, seed, EPOCHS, optimizer, Guidance(trained_guide, weight=weights[False])
            ),
        }
        found = {name: [accuracy(done.models[0], test), done.seconds] for name, done in arms.items()}
        return found | {"the trained CNN itself": [accuracy(trained_guide, test), 0.0]}

    seeds = each_seed(given, lambda seed: record(f"seed {seed}", lambda: one_seed(seed)))
    arms = {name: [seed[name][0] for seed in seeds] for name in seeds[0]}
    settings = (
        f"Adam with decoupled weight decay {best[1]}, learning rate {best[0]} on a cosine, {EPOCHS} epochs, batch 100, "
        f"weight of guidance {weights[False]:g} (untrained guide {weights[True]:g})"
    )
    lines = [
        f"{settings}; {given.seeds} seeds, 95 % intervals.\n",
        "| arm | test accuracy, % | over the MLP alone | over three times the epochs | seconds a run |",
        "|---|---|---|---|---|",
    ]
    for name, values in arms.items():
        gains = [difference(values, arms[c]) if c != name else "" for c in ("alone", "alone, three times the epochs")]
        seconds = sum(seed[name][1] for seed in seeds) / len(seeds)
        lines.append(f"| {name} | {interval(values)} | {' | '.join(gains)} | {seconds:.1f} |")
    closed = sum(arms["guided by the trained CNN"]) - sum(arms["alone"])
    closed /= sum(arms["the trained CNN itself"]) - sum(arms["alone"])
    sentence = (
        f"Guided by a trained CNN, the MLP gains {difference(arms['guided by the trained CNN'], arms['alone'])} points "
        f"on MNIST-1D over the same MLP alone: {100 * closed:.0f} % of the way to the CNN. An untrained guide gives "
        f"{difference(arms['guided by the untrained CNN'], arms['alone'])}."
    )
    write(given.out, "Guidance", sentence, "\n".join(lines))


if __name__ == "__main__":
    main()
