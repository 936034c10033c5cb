"""Splitters that seal rows and then draw every task's training and validation rows from what is left."""

import abc
from collections.abc import Iterator
from typing import ClassVar, TypeAlias, final

import numpy as np
from jaxtyping import Int64

from kinfold.random import seed_of
from kinfold.splits.base import RowInfo, Splits, Splitter
from kinfold.splits.seal import seal

Pair: TypeAlias = tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]
"""(training rows, validation rows) of one task, as row numbers."""


def task_rng(seed: int, task: int) -> np.random.Generator:
    """Returns the generator of one task's split; keyed by the task, so that split t does not depend on T."""
    return np.random.default_rng(seed_of(seed, "splits", task))


def apart(n: int, validation: Int64[np.ndarray, " validation"]) -> Pair:
    """Returns the pair in which every one of n rows that is not a validation row is a training row."""
    training = np.ones(n, dtype=bool)
    training[validation] = False
    return np.flatnonzero(training), validation


class Drawn(Splitter):
    """Draws each task's rows from the unsealed ones. A subclass is one way of drawing them."""

    latest: ClassVar[bool] = False
    """Whether the sealed rows are the latest ones."""

    @abc.abstractmethod
    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        """Yields `tasks` pairs, or as many as the splitter fixes, of row numbers into `info` (unsealed rows only).

        Raises:
            InputError: the rows cannot be split this way.
        """

    @final
    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        sealed = seal(info, holdout, seed, ordered=self.latest)
        unsealed = np.flatnonzero(~sealed)
        pairs = list(self.pairs(info.take(unsealed), tasks, seed))
        train = np.zeros((len(pairs), len(info)), dtype=bool)
        validation = np.zeros_like(train)
        for task, (training_rows, validation_rows) in enumerate(pairs):
            train[task, unsealed[training_rows]] = True
            validation[task, unsealed[validation_rows]] = True
        return Splits(train, validation, sealed)
