"""Validation rows at random."""

from collections.abc import Iterator
from dataclasses import dataclass

from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair, apart, task_rng
from kinfold.splits.pick import check_share, validation_count


@dataclass(frozen=True)
class Shuffle(Drawn):
    """Draws each task's validation rows at random from the unsealed rows; the rest are its training rows.

    Attributes:
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1).

    Example:
        >>> import numpy as np
        >>> splits = Shuffle(0.25).draw(RowInfo(np.zeros(8)), tasks=3, holdout=0, seed=0)
        >>> splits.validation.sum(axis=1), splits.train.sum(axis=1)
        (array([2, 2, 2]), array([6, 6, 6]))
    """

    val_fraction: float | int = 0.2

    def __post_init__(self) -> None:
        check_share("val_fraction", self.val_fraction)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        n = len(info)
        count = validation_count(self.val_fraction, n)
        for task in range(tasks):
            yield apart(n, task_rng(seed, task).permutation(n)[:count])
