"""Splits: which rows each task trains on, which it validates on, and which are sealed away from all of them.

A `Splitter` gives `Splits` from what may be known of the rows (`RowInfo`). Nearly all of them seal rows first and
then draw each task's rows from what is left; they extend `kinfold.splits.drawn.Drawn`, where that is done once.
"""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from kinfold.errors import InputError


@dataclass(frozen=True, eq=False)
class RowInfo:
    """What a splitter may know of the rows: never their features.

    Attributes:
        y: [n] class numbers (int64) or float targets ([n] or [n, K]).
        classes: number of classes, or None for regression.
        groups: [n] group of each row, or None.
        times: [n] sortable time of each row, or None.
        labels: class c as the user wrote it, for messages; None where the class numbers are all there is.
    """

    y: Shaped[np.ndarray, "n *K"]
    classes: int | None = None
    groups: Shaped[np.ndarray, " n"] | None = None
    times: Shaped[np.ndarray, " n"] | None = None
    labels: tuple[object, ...] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Int64[np.ndarray, " m"]) -> "RowInfo":
        """Returns what is known of the given rows only."""
        return RowInfo(
            self.y[rows],
            self.classes,
            None if self.groups is None else self.groups[rows],
            None if self.times is None else self.times[rows],
            self.labels,
        )

    def label(self, number: int) -> str:
        """Returns the name of a class as it stands in messages."""
        return repr(number if self.labels is None else self.labels[number])

    def class_counts(self, rows: Bool[np.ndarray, "T n"]) -> Int64[np.ndarray, "T C"]:
        """Returns how many of the rows that each mask selects belong to each class ([T, 0] for regression)."""
        if self.classes is None:
            return np.zeros((len(rows), 0), dtype=np.int64)
        return np.stack([np.bincount(self.y[mask], minlength=self.classes) for mask in rows])


@dataclass(frozen=True, eq=False)
class Splits:
    """T (training rows, validation rows) pairs over the unsealed rows of n.

    Attributes:
        train: [T, n] whether task t trains on row i.
        validation: [T, n] whether task t validates on row i; never a row it trains on.
        sealed: [n] whether row i is set aside for the one estimate; in no task's training or validation rows.

    Raises:
        InputError: a row stands where it may not, or a task has no training or no validation rows though there are
            rows.
    """

    train: Bool[np.ndarray, "T n"]
    validation: Bool[np.ndarray, "T n"]
    sealed: Bool[np.ndarray, " n"]

    def __post_init__(self) -> None:
        if not len(self.train):
            raise InputError("splits: there is no task; give a splitter that yields at least one split.")
        if (self.train & self.validation).any():
            raise InputError("splits: a row stands in both the training and the validation rows of a task.")
        if ((self.train | self.validation) & self.sealed).any():
            raise InputError("splits: a sealed row stands in a task's training or validation rows.")
        for kind, mask in (("training", self.train), ("validation", self.validation)):
            if mask.shape[1] and not mask.any(axis=1).all():
                task = int(np.argmin(mask.any(axis=1)))
                raise InputError(f"splits: task {task} has no {kind} rows; give more rows or fewer tasks.")

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.train)

    def __len__(self) -> int:
        return len(self.sealed)


class Splitter(abc.ABC):
    """Gives the splits of a data set. A subclass is one way of coming by them."""

    @abc.abstractmethod
    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        """Returns the splits.

        Args:
            info: what may be known of the n rows.
            tasks: T; without effect where the splitter fixes its own number.
            holdout: share of the rows to seal; without effect where the splitter fixes its sealed rows.
            seed: the seed that everything drawn is keyed by.

        Raises:
            InputError: the rows cannot be split this way (too few, groups missing …).
        """
