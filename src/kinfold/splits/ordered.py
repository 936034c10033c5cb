"""Forward chaining: train on the past, validate on what comes next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kinfold.errors import InputError
from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair
from kinfold.splits.pick import check_share, nearest_places, time_order, validation_count


@dataclass(frozen=True)
class Ordered(Drawn):
    """Cuts time at T places; each task trains on all rows before its cut and validates on those next after it.

    An expanding window. With v the number of validation rows and m = n − v, the cuts lie evenly from row
    `first * m` to row m of the n unsealed rows in time order (one task: at m), each moved to the nearest place
    where a new time begins, so that rows of one time are never divided. Nothing is drawn, so here, and only here,
    a task's rows depend on T. The sealed rows are the latest.

    Attributes:
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1).
        first: what the first task trains on, as a share of what the last one does, in (0, 1).

    Example:
        >>> info = RowInfo(np.zeros(10), times=np.arange(10)[::-1])
        >>> splits = Ordered(0.2).draw(info, tasks=3, holdout=0, seed=0)
        >>> splits.train.sum(axis=1), splits.validation.argmax(axis=1)
        (array([4, 6, 8]), array([4, 2, 0]))
    """

    latest: ClassVar[bool] = True
    val_fraction: float | int = 0.2
    first: float | int = 0.5

    def __post_init__(self) -> None:
        check_share("val_fraction", self.val_fraction)
        check_share("first", self.first)

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        del seed  # nothing is drawn
        order, places = time_order(info.times)
        count = validation_count(self.val_fraction, len(info))
        last = len(info) - count
        cuts = nearest_places(places, np.linspace(last, self.first * last, tasks))
        if len(cuts) < tasks:
            raise InputError(
                f"tasks: {tasks} ordered splits need as many different times to cut at, "
                f"{len(info)} unsealed rows give {len(cuts)}; lower tasks or give more rows."
            )
        for cut in cuts:
            yield order[:cut], order[cut : cut + count]
