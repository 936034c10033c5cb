"""Validation rows at random, each class by its share."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kinfold.errors import InputError
from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair, apart, task_rng
from kinfold.splits.pick import check_share, rows_by_class, validation_count


@dataclass(frozen=True)
class Stratified(Drawn):
    """Draws each task's validation rows so that classes have their share of them; the default for classes.

    Every class keeps a training row in every task, so one with a single unsealed row is always trained on and
    never validated on. Where a class's share is less than a row, tasks take turns at random.

    Attributes:
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1).
        even: whether tasks take turns, so that within a class all rows are validated on equally often, to one; each
            task's rows are as random as without.

    Example:
        >>> import numpy as np
        >>> y = np.array([0] * 8 + [1] * 4 + [2])
        >>> splits = Stratified(0.25).draw(RowInfo(y, classes=3), tasks=2, holdout=0, seed=0)
        >>> RowInfo(y, classes=3).class_counts(splits.validation)
        array([[2, 1, 0],
               [2, 1, 0]])
    """

    val_fraction: float | int = 0.2
    even: bool = True

    def __post_init__(self) -> None:
        check_share("val_fraction", self.val_fraction)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        if info.classes is None:
            raise InputError("splits: 'stratified' needs classes and the target has none; use 'shuffle'.")
        count = validation_count(self.val_fraction, len(info))
        held_out = np.zeros(len(info), dtype=np.int64) if self.even else None
        for task in range(tasks):
            validation = rows_by_class(info.y, count, task_rng(seed, task), held_out)
            if not len(validation):
                raise InputError(
                    "splits: every class has one unsealed row, so none can be validated on; "
                    "give more rows of each class or a lower holdout."
                )
            if held_out is not None:
                held_out[validation] += 1
            yield apart(len(info), validation)
