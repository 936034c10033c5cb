"""Validation rows at random."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair, apart, task_rng
from kinfold.splits.pick import by_turns, check_share, validation_count


@dataclass(frozen=True)
class Shuffle(Drawn):
    """Draws each task's validation rows at random from the unsealed rows; the rest are its training rows.

    Attributes:
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1).
        even: whether tasks take turns, so that all rows are validated on equally often, to one; each task's rows
            are as random as without.

    Example:
        >>> import numpy as np
        >>> splits = Shuffle(0.25).draw(RowInfo(np.zeros(8)), tasks=3, holdout=0, seed=0)
        >>> splits.validation.sum(axis=1), splits.train.sum(axis=1)
        (array([2, 2, 2]), array([6, 6, 6]))
    """

    val_fraction: float | int = 0.2
    even: bool = True

    def __post_init__(self) -> None:
        check_share("val_fraction", self.val_fraction)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        n = len(info)
        count = validation_count(self.val_fraction, n)
        held_out = np.zeros(n, dtype=np.int64)
        for task in range(tasks):
            rng = task_rng(seed, task)
            validation = (by_turns(held_out, rng) if self.even else rng.permutation(n))[:count]
            held_out[validation] += 1
            yield apart(n, validation)
