"""Does the 95 % interval on the sealed rows cover? And how optimistic is the score matrix beside it?

    python benchmarks/trust/coverage.py [--runs 240] [--out benchmarks/trust/coverage.md]

Every run draws a new labelled set and trains four tasks with transfer. What is asked for is the selected model's
accuracy on rows that nothing has seen: 20,000 fresh ones on synthetic data, all that were left out on digits.
The interval is to contain it in 95 % of the runs (a one-sided binomial test, at 1 %, of having fewer).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.model_selection import train_test_split
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
from kinfold import random
from kinfold.data import read
from kinfold.transfer import RULES as TRANSFER

ROWS, SEALED, T, EPOCHS = 600, 0.2, 4, 8
Draw = Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """One run: what was claimed, and what was so."""

    data: str
    rule: str
    truth: float
    estimate: float
    low: float
    high: float
    selection: float
    exact_width: float

    @property
    def covered(self) -> bool:
        return self.low <= self.truth <= self.high


def synthetic(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Five classes, each a cloud around two of ten random centres in eight dimensions, with 5 % of labels wrong."""
    rng = np.random.default_rng(random.seed_of(seed, "coverage"))
    centres = rng.normal(size=(10, 8)) * 1.2

    def rows(n: int) -> tuple[Tensor, Tensor]:
        centre = rng.integers(10, size=n)
        X = centres[centre] + rng.normal(size=(n, 8))
        y = np.where(rng.random(n) < 0.05, rng.integers(5, size=n), centre % 5)
        return torch.tensor(X, dtype=torch.float32), torch.tensor(y)

    return (*rows(ROWS), *rows(20_000))


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A part of the digits with every class by its share; the rest is the fresh set.

    By its share, since the pool is finite: a class that is frequent in one part is rare in the other, and drawn
    without regard to it the two parts would not be of one population.
    """
    dataset = read("digits")
    X, y = dataset.features, dataset.target.values
    gross, fresh = train_test_split(np.arange(len(X)), train_size=ROWS, stratify=y, random_state=seed)
    return X[gross], y[gross], X[fresh], y[fresh]


DATA: dict[str, Draw] = {"synthetic": synthetic, "digits": digits}
RULES = tuple(rule for rule in TRANSFER if rule != "none")
CANDIDATES = ("soup", "greedy-soup", "ema", "swa")


def one_run(data: str, rule: str, seed: int) -> Outcome:
    X, y, fresh_X, fresh_y = DATA[data](seed)
    candidates = () if TRANSFER[rule]().student else CANDIDATES
    options = {"tasks": T, "epochs": EPOCHS, "batch_size": 32, "holdout": SEALED, "candidates": candidates}
    result = kinfold.fit("mlp", (X, y), transfer=rule, seed=seed, **options)
    found = result.estimate
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    with torch.no_grad():
        truth = float((result.model(fresh_X).argmax(1) == fresh_y).double().mean())
    hits = round(found.value * found.rows)
    exact = stats.binomtest(hits, found.rows).proportion_ci(0.95, method="exact")
    return Outcome(data, rule, truth, found.value, found.low, found.high, result.selected.score, exact.high - exact.low)


def line(name: str, outcomes: list[Outcome]) -> str:
    hits, n = sum(o.covered for o in outcomes), len(outcomes)
    p = stats.binomtest(hits, n, 0.95, alternative="less").pvalue
    gap = np.array([[o.estimate - o.truth, o.selection - o.truth] for o in outcomes]) * 100
    error = gap.std(0, ddof=1) / np.sqrt(n)
    width, exact = (100 * np.mean(v) for v in ([o.high - o.low for o in outcomes], [o.exact_width for o in outcomes]))
    return (
        f"| {name} | {n} | {100 * hits / n:.1f} % | {p:.3f} | {width:.2f} | {exact:.2f} "
        f"| {gap[:, 0].mean():+.2f} ± {error[0]:.2f} | {gap[:, 1].mean():+.2f} ± {error[1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [(data, rule) for data in DATA for rule in RULES]
    outcomes = []
    for seed in range(given.runs):
        outcomes.append(one_run(*kinds[seed % len(kinds)], seed))
        if seed % 20 == 19:
            print(f"{seed + 1} of {given.runs} runs", file=sys.stderr, flush=True)
    lines = [line("all", outcomes)]
    for data in DATA:
        lines.append(line(data, [o for o in outcomes if o.data == data]))
    for rule in RULES:
        lines.append(line(rule, [o for o in outcomes if o.rule == rule]))
    text = (
        f"# Coverage of the sealed-row interval\n\n{provenance()}\n\n"
        f"{ROWS} labelled rows, {SEALED:.0%} of them sealed, {T} tasks, {EPOCHS} epochs, network `mlp`; soups\n"
        "and weight averages may be handed back too. Covered: share of runs whose 95 % interval contains the accuracy\n"
        "on fresh rows; p: of so few or fewer if it were 95 %\n"
        "(significant under 0.01). Widths and gaps in points; gaps are mean ± standard error of (claim − truth), of\n"
        "the estimate and of the selected model's mean over the score matrix.\n\n"
        "| runs on | runs | covered | p | mean width | exact (Clopper–Pearson) width | estimate − truth "
        "| score-matrix mean − truth |\n|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
