"""Whole groups of rows at random."""

from collections.abc import Iterator
from dataclasses import dataclass

from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair, apart, task_rng
from kinfold.splits.pick import check_share, validation_count, whole_groups


@dataclass(frozen=True)
class Grouped(Drawn):
    """Draws whole groups as each task's validation rows: no group is both trained on and validated on.

    For rows that belong together (patients, speakers, scenes), where a model would know a validation row by its
    kin. Groups that hold the last training rows of a class are passed over.

    Attributes:
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1), as close as groups allow.

    Example:
        >>> import numpy as np
        >>> info = RowInfo(np.zeros(6), groups=np.array(["a", "a", "b", "b", "c", "c"]))
        >>> splits = Grouped(0.3).draw(info, tasks=1, holdout=0, seed=0)
        >>> len(set(info.groups[splits.validation[0]])), int(splits.validation.sum())
        (1, 2)
    """

    val_fraction: float | int = 0.2

    def __post_init__(self) -> None:
        check_share("val_fraction", self.val_fraction)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        count = validation_count(self.val_fraction, len(info))
        for task in range(tasks):
            yield apart(len(info), whole_groups(info, count, leave=1, rng=task_rng(seed, task)))
