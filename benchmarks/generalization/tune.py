"""Tunes every cell's recipe for the conventional control, by validation accuracy alone, and writes `recipes.json`.

    python benchmarks/generalization/tune.py [--only CELL ...]

The control is one split with 20 % validation, its best epoch by accuracy. A recipe's figure is the control's validation
accuracy (of noisy labels, where a cell has such), in the mean over three draws of the cell by seeds the benchmark does
not use, each split so often that some 300 rows are validated on. Test rows are left out before anything is trained.

One thing is tuned after another: the learning rate (a rate beyond the grid is tried where the outermost is best),
weight decay, label smoothing, and the epochs: the fewest of half, once and twice the data set's own number whose figure
is at most half a point under the best. An under-trained cell has a fifth of its twin's epochs, the twin's decay
and smoothing, and a learning rate of its own. Cells that were tuned before are left as they are, unless named.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from cells import CELLS, RECIPES, UNDER, Cell, Tuned, draw, select

import kinfold
from kinfold.errors import InputError
from kinfold.files import read_json, write_json

SEEDS = (1000, 1001, 1002)
VALIDATION_ROWS = 300
"""How many a draw is judged by, about, over its splits."""

RATES: Mapping[str, Sequence[float]] = {"sgd": (0.02, 0.05, 0.15), "adamw": (0.003, 0.01, 0.03)}
DECAYS: Mapping[str, Sequence[float]] = {"sgd": (5e-4, 5e-3), "adamw": (0.01, 0.3)}
SMOOTHINGS = (0.0, 0.1)
BEYOND = 3.0
TOLERANCE = 0.005
"""How much lower an accuracy may be for fewer epochs to count as full training."""


@dataclass
class Search:
    """What was tried for a cell, each once.

    Attributes:
        figure: gives the validation accuracy of what is tried.
        tried: by what it was.
    """

    figure: Callable[[Tuned], float]
    tried: dict[Tuned, float] = field(default_factory=dict)

    def accuracy(self, tuned: Tuned) -> float:
        """Returns its validation accuracy, measured where it was not yet."""
        if tuned not in self.tried:
            self.tried[tuned] = self.figure(tuned)
        return self.tried[tuned]

    def best(self, candidates: Sequence[Tuned]) -> Tuned:
        """Returns the best of these, the first of equals."""
        return max(candidates, key=self.accuracy)


def validation_accuracy(cell: Cell, tuned: Tuned) -> float:
    """Returns the control's validation accuracy, in the mean over draws and splits."""
    tasks = int(np.clip(round(VALIDATION_ROWS / (0.2 * cell.rows)), 1, 5))
    own = [
        kinfold.fit(
            data=draw(cell, seed).labelled(),
            tasks=tasks,
            transfer="none",
            holdout=0,
            seed=seed,
            engine=cell.source.engine,
            listen=lambda event: None,  # duplicates among the rows are told once a run, and known by now
            **dataclasses.asdict(tuned.recipe(cell)),
        ).scores.own.mean()
        for seed in SEEDS
    ]
    return float(torch.stack(own).mean())


def best_rate(search: Search, start: Tuned, rates: Sequence[float]) -> Tuned:
    """Returns the best learning rate, of the grid or one step beyond it."""
    best = search.best([replace(start, lr=rate) for rate in rates])
    if best.lr == rates[0]:
        return search.best([best, replace(best, lr=round(best.lr / BEYOND, 6))])
    if best.lr == rates[-1]:
        return search.best([best, replace(best, lr=round(best.lr * BEYOND, 6))])
    return best


def tune_full(search: Search, cell: Cell) -> Tuned:
    """Returns the recipe of a fully trained cell."""
    rates, decays = RATES[cell.source.optimizer], DECAYS[cell.source.optimizer]
    best = best_rate(search, Tuned(rates[0], decays[0], SMOOTHINGS[0], cell.source.epochs), rates)
    best = search.best([replace(best, weight_decay=decay) for decay in decays])
    best = search.best([replace(best, label_smoothing=smoothing) for smoothing in SMOOTHINGS])
    lengths = [replace(best, epochs=round(cell.source.epochs * factor)) for factor in (0.5, 1, 2)]
    enough = max(map(search.accuracy, lengths)) - TOLERANCE
    return next(each for each in lengths if search.accuracy(each) >= enough)


def tune_under(search: Search, cell: Cell, twin: Tuned) -> Tuned:
    """Returns the recipe of an under-trained cell, given its fully trained twin's."""
    epochs = max(1, round(twin.epochs / UNDER))
    return best_rate(search, replace(twin, epochs=epochs), RATES[cell.source.optimizer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="CELL")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipes = read_json(RECIPES) if RECIPES.exists() else {}
    for cell in select(given.only):
        if cell.name in recipes and not given.only:
            continue
        search = Search(partial(validation_accuracy, cell))
        if cell.length == "full":
            chosen = tune_full(search, cell)
        else:
            twin = replace(cell, length="full").name
            if twin not in recipes:
                raise InputError(f"cell: {cell.name} needs the recipe of {twin}; tune that first.")
            chosen = tune_under(search, cell, Tuned(**recipes[twin]["chosen"]))
        tried = [{**dataclasses.asdict(tuned), "accuracy": round(a, 4)} for tuned, a in search.tried.items()]
        recipes[cell.name] = {
            "chosen": dataclasses.asdict(chosen),
            "accuracy": round(search.tried[chosen], 4),
            "tried": tried,
        }
        # In the table's order, without cells that are no longer in it.
        write_json(RECIPES, {name: recipes[name] for name in CELLS if name in recipes})
        print(cell.name, recipes[cell.name]["chosen"], recipes[cell.name]["accuracy"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
