"""Any splitter of scikit-learn, or one that looks like them."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kinfold.errors import InputError
from kinfold.random import seed_of
from kinfold.splits.base import RowInfo
from kinfold.splits.drawn import Drawn, Pair


@runtime_checkable
class SklearnSplitter(Protocol):
    """What scikit-learn calls a cross-validation splitter (their names for the arguments)."""

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Returns the number of splits."""
        ...

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Any]:
        """Yields (training row numbers, test row numbers)."""
        ...


@dataclass(frozen=True)
class Wrapped(Drawn):
    """Splits as a scikit-learn splitter does; its test rows are validation rows, and T is its number of splits.

    It is handed the unsealed rows in the order of the data (for `TimeSeriesSplit`: put them in time order first).
    It works on a copy, and where its `random_state` is None the copy's is set from the seed.

    Attributes:
        splitter: the scikit-learn splitter.

    Example:
        >>> from sklearn.model_selection import ShuffleSplit
        >>> wrapped = Wrapped(ShuffleSplit(n_splits=4, test_size=2))
        >>> splits = wrapped.draw(RowInfo(np.zeros(10)), tasks=8, holdout=0.1, seed=0)
        >>> splits.tasks, splits.validation.sum(axis=1)
        (4, array([2, 2, 2, 2]))
    """

    splitter: SklearnSplitter

    def pairs(self, info: RowInfo, tasks: int, seed: int) -> Iterator[Pair]:
        del tasks  # fixed by the splitter
        splitter: Any = copy.deepcopy(self.splitter)  # a RandomState inside it must not move either
        if getattr(splitter, "random_state", 0) is None:
            splitter.random_state = seed_of(seed, "splits") % 2**32
        n, name = len(info), type(splitter).__name__
        try:
            with warnings.catch_warnings():
                # All are handed the groups, for none can be asked whether it uses them; features are not.
                warnings.filterwarnings("ignore", "The groups parameter is ignored")
                drawn = list(splitter.split(np.zeros((n, 1)), info.y, info.groups))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"splits: {name} cannot split {n} unsealed rows ({reason}).") from None
        for training, validation in (map(np.asarray, pair) for pair in drawn):
            largest = max(training.max(initial=0), validation.max(initial=0))
            if largest >= n:
                raise InputError(
                    f"splits: {name} gave row {largest}, but {n} rows are unsealed, counted from 0; "
                    "a splitter that numbers rows of its own needs holdout=0 and the same data."
                )
            yield training, validation
