"""Which rows to set aside: the pure draws that sealing and the splitters share."""

import math

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped

from kinfold.errors import InputError
from kinfold.splits.base import RowInfo


def check_share(argument: str, value: object, *, zero: bool = False) -> None:
    """Checks that a share of the rows lies in (0, 1), or in [0, 1) if `zero`.

    Raises:
        InputError: it does not.
    """
    known = isinstance(value, (int, float)) and (0 < value < 1 or (zero and value == 0))
    if not known:
        raise InputError(f"{argument}: must be {'at least' if zero else 'above'} 0 and below 1, not {value!r}.")


def check_whole(argument: str, value: object, least: int) -> None:
    """Checks that a count is a whole number of at least `least`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{argument}: must be a whole number of at least {least}, not {value!r}.")


def nearest_count(share: float | int, n: int) -> int:
    """Returns the whole number of rows nearest to a share of n, halves upwards."""
    return math.floor(share * n + 0.5)


def validation_count(val_fraction: float | int, n: int) -> int:
    """Returns how many of n unsealed rows a task validates on.

    Raises:
        InputError: no row would be left to validate on, or none to train on.

    Example:
        >>> validation_count(0.2, 12)
        2
    """
    count = nearest_count(val_fraction, n)
    if 0 < count < n:
        return count
    kind = "training" if count else "validation"
    raise InputError(
        f"val_fraction: {val_fraction} of {n} unsealed rows leaves no {kind} rows; "
        f"{'lower' if count else 'raise'} val_fraction or give more rows."
    )


def allot(
    total: int, sizes: Int64[np.ndarray, " C"], caps: Int64[np.ndarray, " C"], rng: np.random.Generator
) -> Int64[np.ndarray, " C"]:
    """Returns how many of `total` places each class gets: the method of largest remainders, under caps.

    Each class gets its exact share rounded down; places left over go to the largest remainders, equal ones in
    random order, and round again while caps leave any. All sizes and `total` are whole, so nothing is rounded.

    Args:
        total: places to give away, below the sum of `sizes`.
        sizes: [C] rows of each class.
        caps: [C] most places each class may get, at least its exact share rounded down.
        rng: breaks ties.

    Example:
        >>> allot(3, np.array([10, 5, 1]), np.array([9, 4, 0]), np.random.default_rng(0))
        array([2, 1, 0])
    """
    places, remainder = np.divmod(total * sizes, sizes.sum())
    order = np.lexsort((rng.random(len(sizes)), -remainder))
    left = min(total, int(caps.sum())) - int(places.sum())
    while left > 0:
        room = order[places[order] < caps[order]][:left]
        places[room] += 1
        left -= len(room)
    return places


def by_turns(held_out: Int64[np.ndarray, " n"], rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Returns the rows in random order, those that were held out least often first.

    Example:
        >>> by_turns(np.array([1, 0, 1, 0]), np.random.default_rng(0)) % 2
        array([1, 1, 0, 0])
    """
    order: Int64[np.ndarray, " n"] = np.lexsort((rng.random(len(held_out)), held_out))
    return order


def rows_by_class(
    y: Int64[np.ndarray, " n"],
    count: int,
    rng: np.random.Generator,
    held_out: Int64[np.ndarray, " n"] | None = None,
) -> Int64[np.ndarray, " picked"]:
    """Returns `count` random rows, each class by its share, that leave at least one row of every class.

    A class with one row is therefore never picked from. Fewer rows come back where the classes have no more. Within
    a class, rows that were held out least often come first, where that is said.
    """
    sizes = np.bincount(y)
    places = allot(min(count, len(y) - 1), sizes, np.maximum(sizes - 1, 0), rng)
    shuffled = rng.permutation(len(y)) if held_out is None else by_turns(held_out, rng)
    ordered = shuffled[np.argsort(y[shuffled], kind="stable")]  # class by class, at random within each
    position = np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ordered[position < np.repeat(places, sizes)]


def whole_groups(info: RowInfo, count: int, *, leave: int, rng: np.random.Generator) -> Int64[np.ndarray, " picked"]:
    """Returns the rows of random whole groups, close to `count` of them.

    Groups are met in random order; one is taken if that brings the number of rows closer to `count`, if it does
    not hold the last rows of a class, and while more than `leave` groups remain. If none is taken, the smallest
    that may be is.

    Raises:
        InputError: there are no groups, too few, or each of them holds all rows of some class.
    """
    if info.groups is None:
        raise InputError("splits: 'grouped' needs groups; say which column or array holds each row's group.")
    codes, names = pd.factorize(info.groups)
    sizes = np.bincount(codes)
    if len(names) <= leave:
        raise InputError(
            f"groups: {len(names)} among {len(info)} rows are too few, at least {leave + 1} are needed; "
            "give more groups or a lower holdout."
        )
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    classes = np.zeros(len(info), dtype=np.int64) if info.classes is None else info.y  # values are of one class
    remaining = np.bincount(classes)

    def held(group: int) -> Int64[np.ndarray, " C"]:
        """Returns how many rows of each class the group holds."""
        return np.bincount(classes[members[group]], minlength=len(remaining))

    def free(group: int) -> bool:
        """Whether every class would keep a row outside the groups taken and this one."""
        return not ((held(group) > 0) & (held(group) == remaining)).any()

    taken: list[int] = []
    missing = count
    for group in rng.permutation(len(names)).tolist():
        closer = sizes[group] < 2 * missing
        if closer and len(names) - len(taken) > leave and free(group):
            taken.append(group)
            missing -= int(sizes[group])
            remaining -= held(group)
    if not taken:
        taken = [group for group in np.argsort(sizes, kind="stable").tolist() if free(group)][:1]
    if not taken:
        raise InputError(
            "groups: each group holds all rows of some class, so none can be set aside; "
            "give more groups or finer ones, or split by another rule."
        )
    return np.concatenate([members[group] for group in taken])


def time_order(
    times: Shaped[np.ndarray, " n"] | None,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " cuts"]]:
    """Returns the rows from earliest to latest, and the positions in that order at which a new time begins.

    Cut only there, and rows of one time are never divided.

    Raises:
        InputError: there are no times.
    """
    if times is None:
        raise InputError("splits: 'ordered' needs times; say which column or array holds each row's time.")
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    return order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1


def nearest_places(
    places: Int64[np.ndarray, " places"], wanted: Float64[np.ndarray, " wanted"]
) -> Int64[np.ndarray, " found"]:
    """Returns the places nearest to those wanted, ascending, each once; none where there are no places.

    Example:
        >>> nearest_places(np.array([2, 5, 9]), np.array([8.0, 1.0, 3.0]))
        array([2, 9])
    """
    if not len(places):
        return places
    return np.unique(places[np.abs(places[:, None] - wanted).argmin(axis=0)])
