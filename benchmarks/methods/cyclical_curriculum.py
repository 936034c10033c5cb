"""Cyclical curriculum: MLPs on MNIST-1D and Fashion-MNIST, against all rows and against random rows in the same cycle.

    python benchmarks/methods/cyclical_curriculum.py [--seeds 5]

Every arm visits as many rows as the plain run, but the one whose difficulty is measured by a plain run before it, which
therefore stands beside a plain run of twice the length. A seed has its own split (a fifth is for validation) and
initial parameters; test rows serve for the table alone. Learning rates are tuned for the plain run, on the validation
rows of another seed; the cycle is the authors': shares from 1/4 to 1, by a factor of 2.
"""

from functools import partial

import torch
import torch.nn.functional as F
from common import Records, Trained, accuracy, arguments, arrays, difference, each_seed, interval, trained, write
from torch import nn

from kinfold.methods import CyclicalCurriculum
from kinfold.methods.cyclical_curriculum import periods_worth

TUNING, CYCLE, RATES = 1000, (0.25, 1.0, 0.5), (0.002, 0.005, 0.01)
SETS = {"mnist1d": (4000, 40, 60), "fashion-mnist": (2000, 784, 15)}
"""Name → rows, features, epochs."""


def mlp(features: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10))


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    record = Records(given.records)
    lines = [
        f"MLP with one hidden layer of 100, Adam on a cosine, batch 100; {given.seeds} seeds, 95 % intervals.\n",
        "| data | arm | rows visited, in plain runs | test accuracy, % | over all rows | over random rows |",
        "|---|---|---|---|---|---|",
    ]
    said = []
    for name, (count, features, epochs) in SETS.items():
        (x, y), test = arrays(name)
        rows, periods = (x[:count], y[:count]), periods_worth(epochs, *CYCLE)

        def run(seed: int, lr: float, epochs: int, *methods, rows=rows, features=features) -> Trained:
            adam = partial(torch.optim.Adam, lr=lr)
            model = partial(mlp, features)
            return trained(model, rows, seed=seed, epochs=epochs, optimizer=adam, batch_size=100, methods=methods)

        def tuning(lr: float, run=run, epochs=epochs) -> float:
            return run(TUNING, lr, epochs).scores[0]

        tuned = {lr: record(f"{name} tune {lr}", lambda lr=lr, tuning=tuning: tuning(lr)) for lr in RATES}
        lr = max(tuned, key=lambda lr: tuned[lr])

        def one_seed(
            seed: int, run=run, rows=rows, test=test, epochs=epochs, periods=periods, lr=lr
        ) -> dict[str, float]:
            plain = run(seed, lr, epochs)
            with torch.no_grad():
                losses = F.cross_entropy(plain.models[0](rows[0]), rows[1], reduction="none").clamp_min(1e-6)
            known = torch.where(plain.train[0], losses, torch.ones(()))
            alike = torch.ones(len(known))
            arms = {
                "all rows": plain,
                "random rows, in the cycle": run(seed, lr, periods, CyclicalCurriculum(*CYCLE, alike)),
                "easy rows by its own losses": run(seed, lr, periods, CyclicalCurriculum(*CYCLE)),
                "all rows, twice as long": run(seed, lr, 2 * epochs),
                "easy rows by a plain run's losses": run(seed, lr, periods, CyclicalCurriculum(*CYCLE, known)),
            }
            return {arm: accuracy(done.models[0], test) for arm, done in arms.items()}

        seeds = each_seed(
            given, lambda seed, name=name, one_seed=one_seed: record(f"{name} seed {seed}", lambda: one_seed(seed))
        )
        arms = {arm: [seed[arm] for seed in seeds] for arm in seeds[0]}
        for arm, values in arms.items():
            controls = ("all rows", "random rows, in the cycle")
            gains = [difference(values, arms[c]) if c != arm else "" for c in controls]
            twice = 2 if arm in ("all rows, twice as long", "easy rows by a plain run's losses") else 1
            lines.append(f"| {name}, {count:,} | {arm} | {twice} | {interval(values)} | {' | '.join(gains)} |")
        own, other = (arms[f"easy rows by {what} losses"] for what in ("its own", "a plain run's"))
        said.append(
            f"{difference(own, arms['all rows'])} points by its own losses and "
            f"{difference(other, arms['all rows, twice as long'])} by a plain run's (over twice the length) on {name}"
        )
    sentence = f"At equal numbers of rows visited, the cyclical curriculum gives, over all rows, {'; '.join(said)}."
    write(given.out, "Cyclical curriculum", sentence, "\n".join(lines))


if __name__ == "__main__":
    main()
