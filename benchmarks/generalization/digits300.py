"""Does transfer help on few rows? Digits, 300 labelled rows, the rest as a test set that nothing touches.

    python benchmarks/generalization/digits300.py [--seeds 10] [--out benchmarks/generalization/digits300.md]

Every arm sees the same 300 rows per seed, the same network and the same recipe (T = 8, 20 % validation, SGD with
momentum 0.9, cosine from 0.05, batch 32, 60 epochs, no sealed rows). The arms with T tasks cost eight times the
conventional one; `all rows` at equal compute is the control that costs the same as they do.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
from kinfold import random
from kinfold.data import read

ROWS, T, EPOCHS, BATCH = 300, 8, 60, 32
OPTIMIZER = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
Data = tuple[Tensor, Tensor]
Arm = Callable[[Data, int], nn.Module]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def fitted(data: Data, seed: int, **options: object) -> nn.Module:
    common: dict[str, object] = {
        "tasks": T,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "holdout": 0,
        "optimizer": OPTIMIZER,
        "seed": seed,
    }
    return kinfold.fit(network, data, **{**common, **options}).model


def all_rows(data: Data, seed: int, epochs: int) -> nn.Module:
    """One run on all rows, no validation, last epoch: a plain loop."""
    X, y = data
    with random.seeded(torch.device("cpu"), seed, "start", 0, 0):
        model = network()
    optimizer = OPTIMIZER(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        order = random.permutation(random.key(seed, "order", epoch), len(X))
        for step in range(len(X) // BATCH):
            rows = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


ARMS: dict[str, tuple[str, Arm]] = {
    "conventional": ("1", partial(fitted, tasks=1)),
    "conventional, epoch by loss": ("1", partial(fitted, tasks=1, better="loss")),
    "best of 8": ("8", partial(fitted, transfer="none")),
    "best of 8, by loss": ("8", partial(fitted, transfer="none", better="loss")),
    "all rows, 1/8 compute": ("1.25", partial(all_rows, epochs=EPOCHS)),
    "all rows, equal compute": ("8", partial(all_rows, epochs=round(EPOCHS * T * 0.8))),
    "amto": ("8", partial(fitted, transfer="amto")),
    "teach": ("8", partial(fitted, transfer="teach")),
    "distil": ("8", partial(fitted, transfer="distil")),
}
CONTROLS = ("conventional", "conventional, epoch by loss", "best of 8", "best of 8, by loss")


def one_seed(seed: int, arms: dict[str, tuple[str, Arm]]) -> dict[str, float]:
    dataset = read("digits")
    X, y = dataset.features, dataset.target.values
    gross, test = train_test_split(np.arange(len(X)), train_size=ROWS, stratify=y, random_state=seed)
    scores = {}
    for name, (_, arm) in arms.items():
        model = arm((X[gross], y[gross]), seed)
        with torch.no_grad():
            scores[name] = 100 * float((model(X[test]).argmax(1) == y[test]).double().mean())
    return scores


def table(scores: dict[str, np.ndarray], seeds: int) -> str:
    lines = [
        "| arm | training passes | test accuracy, % | over conventional | over best of 8 |",
        "|---|---|---|---|---|",
    ]
    half = stats.t.ppf(0.975, seeds - 1) / np.sqrt(seeds)

    def interval(values: np.ndarray, sign: str = "") -> str:
        return f"{values.mean():{sign}.2f} ± {half * values.std(ddof=1):.2f}"

    best = {kind: max((scores[c].mean(), c) for c in CONTROLS if c.startswith(kind))[1] for kind in ("conv", "best")}
    for name, values in scores.items():
        gains = [interval(values - scores[c], "+") if c != name else "" for c in best.values()]
        lines.append(f"| {name} | {ARMS[name][0]} | {interval(values)} | {gains[0]} | {gains[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        runs.append(one_seed(seed, ARMS))
        print(seed, {name: round(score, 2) for name, score in runs[-1].items()}, file=sys.stderr, flush=True)
    scores = {name: np.array([run[name] for run in runs]) for name in ARMS}
    text = (
        f"# Digits, {ROWS} labelled rows\n\n{provenance()}\n\n"
        f"{given.seeds} seeds; mean ± half width of the 95 % interval over seeds (Student's t; differences paired).\n"
        "A control's two forms differ in what picks the epoch and the task, metric or loss; differences are to the\n"
        "stronger form. Training passes count the rows visited, in units of the conventional run.\n\n"
        f"{table(scores, given.seeds)}\n"
    )
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
