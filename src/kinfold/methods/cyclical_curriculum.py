"""Cyclical curriculum: few rows, then more, then few again, and easy ones sooner than hard ones.

Kesgin, Amasyali, *Cyclical Curriculum Learning* (IEEE TNNLS 2023, arXiv:2202.05531), and its code
(CyclicalCurriculum/Cyclical-Curriculum). Drawing without replacement is after Efraimidis, Spirakis, *Weighted random
sampling with a reservoir* (IPL 2006), in Gumbel's form.

Legend: N rows of the data, n the task's training rows, m of them drawn.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State


@final
@dataclass(frozen=True)
class CyclicalCurriculum(Method):
    """Each period trains on a share of the rows, which goes up and down by a factor; drawn by p ∝ 1 / difficulty.

    A run is so much shorter than its epochs say: `periods_worth` tells how many have as many batches. What the method
    knows of rows is the task's own. Where it measures difficulty itself, each period has a pass over its rows more.

    Attributes:
        low: the least share, with which it begins.
        high: the greatest.
        alpha: α, by which the share is multiplied on the way down, and divided by on the way up.
        difficulty: [N] of each row of the data, above 0, such as its loss by a network that is trained already (on
            training rows only, or those it has seen are told from those it has not); default the row's loss by the
            task's own network after each period, and in the first period all alike.

    Raises:
        InputError: one of them is out of range.

    Example:
        >>> CyclicalCurriculum(low=0.5).alpha
        0.5
    """

    low: float | int = 0.25
    high: float | int = 1.0
    alpha: float | int = 0.5
    difficulty: Float[Tensor, " N"] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_shares(self.low, self.high, self.alpha)
        if self.difficulty is not None and not bool((self.difficulty > 0).all() & self.difficulty.isfinite().all()):
            raise InputError("cyclical_curriculum: difficulty holds numbers that are not above 0; give losses.")

    def start(self, params: Params, context: Context) -> State:
        like = next(iter(params.values()))
        difficulty = like.new_ones(context.count)
        if self.difficulty is not None:
            if len(self.difficulty) != context.count:
                raise InputError(
                    f"cyclical_curriculum: difficulty has {len(self.difficulty)} rows, and the data has "
                    f"{context.count}; give one number for each."
                )
            difficulty = self.difficulty.to(like)
        return {"own/difficulty": difficulty, "own/periods": like.new_zeros(())}

    def draw(self, order: Int64[Tensor, " n"], state: State, key: Int64[Tensor, ""]) -> Int64[Tensor, " m"]:
        share = next(itertools.islice(shares(self.low, self.high, self.alpha), int(state["own/periods"]), None))
        # By its number, so that a row has the same luck wherever it stands in the order.
        luck = random.uniform(key, state["own/difficulty"].shape, torch.float64)[order]
        rows = weighted_sample(1.0 / state["own/difficulty"].double()[order], max(1, int(len(order) * share)), luck)
        return order[rows]

    def row_losses(self, rows: Int64[Tensor, " n"], losses: Float[Tensor, " n"], state: State) -> State:
        if self.difficulty is not None:
            return state
        difficulty = state["own/difficulty"].clone()
        least = torch.finfo(difficulty.dtype).eps  # of rows that are beyond doubt, none is to take all of the weight
        losses = losses.to(difficulty).nan_to_num(posinf=1.0 / least, nan=1.0 / least)
        difficulty[rows.to(difficulty.device)] = losses.clamp(least, 1.0 / least)
        return {**state, "own/difficulty": difficulty}

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        del score
        return params, {**state, "own/periods": state["own/periods"] + 1}


def shares(low: float | int, high: float | int, alpha: float | int) -> Iterator[float]:
    """Yields the share of the rows of each period, without end: up by 1/α to `high`, down by α to `low`, up again.

    Args:
        low: the first and least.
        high: the greatest.
        alpha: between 0 and 1.

    Raises:
        InputError: they are no shares.

    Example:
        >>> list(itertools.islice(shares(0.25, 1.0, 0.5), 8))
        [0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0, 0.5]
    """
    check_shares(low, high, alpha)
    share, rising = float(low), True
    while True:
        yield share
        share = min(share / alpha, high) if rising else max(share * alpha, low)
        rising = share < high if rising else share <= low


def periods_worth(epochs: int, low: float | int, high: float | int, alpha: float | int) -> int:
    """Returns how many periods visit as many rows as so many epochs over all of them.

    Example:
        >>> periods_worth(10, 0.25, 1.0, 0.5)
        19
    """
    done = itertools.accumulate(shares(low, high, alpha))
    return 1 + next(i for i, total in enumerate(done) if total >= epochs)


def weighted_sample(weight: Float[Tensor, " n"], m: int, luck: Float[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """Returns m places drawn one after another without replacement, each with p ∝ weight; in ascending order.

    Args:
        weight: of each, above 0.
        m: how many.
        luck: independent draws from U[0, 1).

    Example:
        >>> weighted_sample(torch.tensor([1.0, 1e-9, 1.0]), 2, torch.tensor([0.1, 0.9, 0.4]))
        tensor([0, 2])
    """
    clipped = luck.clamp_min(torch.finfo(luck.dtype).tiny)
    score = weight.log() - (-clipped.log()).log()  # the m greatest of log p + Gumbel noise
    return score.topk(m).indices.sort().values


def check_shares(low: float | int, high: float | int, alpha: float | int) -> None:
    """Checks what shares go by.

    Raises:
        InputError: they are no shares.
    """
    if not 0.0 < low <= high <= 1.0:
        raise InputError(f"cyclical_curriculum: low and high are {low!r} and {high!r}; give shares, low up to high.")
    if not 0.0 < alpha < 1.0:
        raise InputError(f"cyclical_curriculum: alpha is {alpha!r}; give a number between 0 and 1.")
