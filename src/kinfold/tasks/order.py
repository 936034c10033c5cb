"""Which rows a task visits in a period, and in which order.

One keyed global order of all rows an epoch; each task takes its own rows in that order, so that one reader can
serve all tasks. Legend: T tasks, N rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from kinfold import random


@dataclass(frozen=True)
class Segment:
    """A stretch of one period.

    Attributes:
        period: from 1; one period is one epoch over a task's training rows.
        first: first optimizer step of the stretch, from 0.
        last: step before which it ends; None for the end of the period.
    """

    period: int
    first: int = 0
    last: int | None = None


def row_orders(
    seed: int, period: int, train: Bool[Tensor, "T N"], unlabelled: Bool[Tensor, "T N"] | None = None
) -> list[Int64[Tensor, " n"]]:
    """Returns each task's rows in this period's order.

    With `unlabelled` rows to draw from as well, a task visits as many rows as it has training rows, the first of
    both kinds together: the period costs what it costs without them.
    """
    order = random.permutation(random.key(seed, "order", period), train.shape[1])
    pool = train if unlabelled is None else train | unlabelled
    rows = torch.split(order[pool[:, order].nonzero()[:, 1]], pool.sum(1).tolist())
    return list(rows) if unlabelled is None else [own[:n] for own, n in zip(rows, train.sum(1).tolist(), strict=True)]


def steps_in(rows: int, batch_size: int) -> int:
    """Returns ⌊rows / B⌋, at least one: the last short batch is dropped when there is more than one."""
    return max(1, rows // batch_size)
