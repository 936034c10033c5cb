"""Sealed rows: set aside before anything else, for the one number that a user may quote."""

import numpy as np
from jaxtyping import Bool

from kinfold.errors import InputError
from kinfold.random import seed_of
from kinfold.splits.base import RowInfo
from kinfold.splits.pick import check_share, nearest_count, nearest_places, rows_by_class, time_order, whole_groups


def seal(info: RowInfo, holdout: float | int = 0.1, seed: int = 0, *, ordered: bool = False) -> Bool[np.ndarray, " n"]:
    """Returns which rows are sealed: nothing trains on them and nothing is selected by them.

    Classes are sealed by their shares, and every class keeps a row outside. Where there are groups, whole groups
    are sealed, as close to the share as they come. If `ordered`, the latest rows are, cut between two times.

    Args:
        info: what may be known of the n rows.
        holdout: share of the rows to seal, in [0, 1); 0 seals none, any other at least one row.
        seed: the seed that the draw is keyed by.
        ordered: whether to seal the latest rows.

    Raises:
        InputError: `holdout` is out of range, or rows (classes, groups, times) are too few to seal any and
            still leave one to train on and one to validate on.

    Example:
        >>> sealed = seal(RowInfo(np.array([0] * 10 + [1] * 10 + [2]), classes=3), 0.2)
        >>> int(sealed[:10].sum()), int(sealed[10:20].sum()), int(sealed[20:].sum())
        (2, 2, 0)
    """
    check_share("holdout", holdout, zero=True)
    n = len(info)
    sealed = np.zeros(n, dtype=bool)
    if holdout == 0:
        return sealed
    count = max(1, nearest_count(holdout, n))
    rng = np.random.default_rng(seed_of(seed, "seal"))
    if ordered:
        order, cuts = time_order(info.times)
        cut = nearest_places(cuts[cuts >= 2], np.array([float(n - count)]))
        rows = order[cut[0] :] if len(cut) else order[:0]
    elif info.groups is not None:
        rows = whole_groups(info, count, leave=2, rng=rng)
    elif info.classes is not None:
        rows = rows_by_class(info.y, count, rng)
    else:
        rows = rng.permutation(n)[:count]
    if not len(rows) or n - len(rows) < 2:
        raise InputError(
            f"holdout: {holdout} of {n} rows cannot be sealed and leave rows to train on and to validate on; "
            "give more rows, or holdout=0 for no clean estimate."
        )
    sealed[rows] = True
    return sealed
