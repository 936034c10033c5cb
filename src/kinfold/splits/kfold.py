"""Cross-validation folds, dealt anew a number of times."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from kinfold.errors import InputError
from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair, apart, task_rng
from kinfold.splits.pick import check_whole


@dataclass(frozen=True)
class RepeatedStratifiedKFold(Drawn):
    """Deals the rows into folds, `repeats` times over; each fold is the validation rows of one task.

    Rows are dealt class by class, at random within each, so that both the folds and the classes within them
    differ by at most one row. A class with one unsealed row is always trained on. In regression the rows are
    dealt at random (plain k-fold). T is `folds * repeats`, and task t is fold `t % folds` of repeat `t // folds`.

    Attributes:
        folds: folds a repeat, at least 2; a task validates on one in `folds` of the rows.
        repeats: how often the rows are dealt, at least 1.

    Example:
        >>> splits = RepeatedStratifiedKFold(folds=3, repeats=1).draw(
        ...     RowInfo(np.array([0, 0, 0, 1, 1, 1]), classes=2), tasks=8, holdout=0, seed=0
        ... )
        >>> splits.tasks, splits.validation.sum(axis=0)
        (3, array([1, 1, 1, 1, 1, 1]))
    """

    folds: int = 5
    repeats: int = 2

    def __post_init__(self) -> None:
        check_whole("folds", self.folds, 2)
        check_whole("repeats", self.repeats, 1)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        del tasks  # fixed by the folds
        for repeat in range(self.repeats):
            dealt = self._dealt(info, task_rng(seed, repeat))
            if len(dealt) < self.folds:
                raise InputError(
                    f"folds: {self.folds} folds need as many rows, of classes with two or more; "
                    f"{len(dealt)} are unsealed; lower folds or give more rows."
                )
            for fold in range(self.folds):
                yield apart(len(info), dealt[fold :: self.folds])

    def _dealt(self, info: RowInfo, rng: np.random.Generator) -> Int64[np.ndarray, " dealt"]:
        """Returns the rows in the order in which they are dealt."""
        rows = rng.permutation(len(info))
        if info.classes is None:
            return rows
        shared = rows[np.bincount(info.y)[info.y[rows]] > 1]
        dealt: Int64[np.ndarray, " dealt"] = shared[np.argsort(info.y[shared], kind="stable")]
        return dealt
