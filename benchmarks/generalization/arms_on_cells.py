"""Which way of spending a budget gives the best single model? Every arm on every cell, over several seeds.

    python benchmarks/generalization/arms_on_cells.py [--seeds 5] [--only CELL …] [--records DIR] [--threads 1]

Trains what is not on record yet, cell by cell and seed by seed, and keeps a record of each in a file, so that it can
be stopped and started again, and run by several processes on different cells. `tables.py` makes the tables.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from cells import CELLS, Cell, Sample, draw, recipe, select
from jaxtyping import Bool

from kinfold import files
from kinfold.comparing.arms import Arm, Trial, resolve_arm
from kinfold.comparing.comparison import fit_arguments
from kinfold.splits import RowInfo, Splits, Splitter, Stratified

RECORDS = Path(__file__).with_name("records")
TASKS = 8
ARMS: tuple[str | Mapping[str, Any], ...] = (
    *("conventional", "conventional-long", "restarts", "refit", "ensemble"),
    *("all-rows-once", "all-rows", "all-rows-ema", "all-rows-swa"),
    *("amto", "papa", "teach", "distil"),
)


@final
@dataclass(frozen=True, eq=False)
class Held(Splitter):
    """Seals given rows, and draws the tasks' splits from the others, classes by their shares.

    Attributes:
        test: [n] the rows to seal.
    """

    test: Bool[np.ndarray, " n"]

    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        labelled = np.flatnonzero(~self.test)
        drawn = Stratified().draw(info.take(labelled), tasks=tasks, holdout=0, seed=seed)
        train, validation = np.zeros((2, tasks, len(info)), dtype=bool)
        train[:, labelled], validation[:, labelled] = drawn.train, drawn.validation
        return Splits(train, validation, self.test)


def trial(cell: Cell, sample: Sample, seed: int) -> Trial:
    """Returns one seed of a cell, as `kinfold.comparing` runs it."""
    chosen = recipe(cell)
    options = {name: getattr(chosen, name) for name in ("optimizer", "batch_size", "epochs", "scheduler", "methods")}
    given = fit_arguments(
        chosen.model, sample.dataset, tasks=TASKS, splits=Held(sample.test), engine=cell.source.engine, **options
    )
    return Trial({**given, "seed": seed})


def run(cell: Cell, seed: int, arms: list[Arm], records: Path) -> None:
    """Trains the arms of a cell that are not on record for a seed."""
    path = records / cell.name / f"{seed}.json"
    done: dict[str, Any] = files.read_json(path) if path.exists() else {}
    if all(arm.name in done for arm in arms):
        return
    sample = draw(cell, seed)
    experiments = {arm.experiment: arm.run for arm in arms if arm.name not in done}
    for experiment in experiments.values():
        scores = experiment(trial(cell, sample, seed))
        done |= {name: files.jsonable(asdict(score)) for name, score in scores.items()}
        files.write_json(path, done)
    said = {arm.name: round(100 * done[arm.name]["value"], 2) for arm in arms}
    print(cell.name, seed, said, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}")
    parser.add_argument("--arms", nargs="*", default=ARMS, metavar="ARM")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--share", default="1/1", metavar="I/N", help="the I-th of N processes takes every N-th cell")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    arms = [resolve_arm(arm) for arm in given.arms]
    mine, of = map(int, given.share.split("/"))
    for seed in range(given.seeds):  # seed by seed, so that a table of fewer seeds has every cell
        for cell in select(given.only)[mine - 1 :: of]:
            run(cell, seed, arms, given.records)


if __name__ == "__main__":
    main()
