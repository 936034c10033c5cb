"""Picks the one model that does best overall, over the validation sets of all tasks.

Shapes: K candidate models, T validation sets. `S[k, j]` is model k's score on set j, higher being better. What
comes out is a selection score and no estimate of how good the model is: the sets overlap with each other and
with the training rows of all but one task. The sealed rows are for that.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kinfold.errors import unknown
from kinfold.selection.better import better as is_better

Criterion: TypeAlias = Callable[[Float64[Tensor, "K T"]], Float64[Tensor, " K"]]

Z = 1.645
"""Standard errors taken off by `lower`: the one-sided 95 % point of the normal distribution."""


def mean(S: Float64[Tensor, "K T"]) -> Float64[Tensor, " K"]:
    """Returns each model's mean over the sets."""
    return S.mean(dim=1)


def worst(S: Float64[Tensor, "K T"]) -> Float64[Tensor, " K"]:
    """Returns each model's score on the set that it does worst on."""
    return S.amin(dim=1)


def rank(S: Float64[Tensor, "K T"]) -> Float64[Tensor, " K"]:
    """Returns minus each model's mean rank over the sets: 1 is the best of K, ties share their average rank.

    On a set, a NaN ranks behind every number. A model with one has no mean rank, like any other mean.
    """
    ahead = (S[None] > S[:, None]).sum(dim=1)  # a NaN is ahead of none
    even = (S[None] == S[:, None]).sum(dim=1)  # with itself; models with a NaN have no use for theirs
    ranks = ahead + (even + 1).to(S.dtype) / 2
    return torch.where(S.isnan().any(dim=1), torch.nan, -ranks.mean(dim=1))


def lower(S: Float64[Tensor, "K T"]) -> Float64[Tensor, " K"]:
    """Returns each model's mean less `Z` standard errors over the sets: `mean − Z · sd / √T`, sd with T − 1.

    It prefers even scores to uneven ones. The sets overlap, so it is a criterion and not a confidence bound. With
    one set it is the mean.
    """
    T = S.shape[1]
    return S.mean(dim=1) - (Z * S.std(dim=1) / math.sqrt(T) if T > 1 else 0.0)


CRITERIA: dict[str, Criterion] = {"mean": mean, "worst": worst, "rank": rank, "lower": lower}
"""How the scores of a model on all sets become one; higher is better."""


def overall(matrix: Float[Tensor, "K T"], criterion: str = "mean") -> Float64[Tensor, " K"]:
    """Returns one score for each model, higher being better; NaN for a model with a NaN on any set.

    Args:
        matrix: [K, T] scores, higher being better (give minus the loss for losses).
        criterion: a name in `CRITERIA`.

    Raises:
        InputError: the criterion is unknown.

    Example:
        >>> S = torch.tensor([[0.9, 0.5], [0.7, 0.6]])
        >>> [overall(S, name).argmax().item() for name in ("mean", "worst")]
        [0, 1]
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    return CRITERIA[criterion](matrix.to(torch.float64))


def select(
    metric_matrix: Float[Tensor, "K T"],
    loss_matrix: Float[Tensor, "K T"],
    criterion: str = "mean",
    better: str = "metric",
) -> int:
    """Returns the model that is best overall; the first of those between which nothing decides.

    Metrics and losses are each made one number a model by the criterion, and compared as everywhere
    (`kinfold.selection.better`): a model with a NaN comes last. Numbers that agree to twelve digits are equal, for
    equal means may be summed in different order.

    Args:
        metric_matrix: [K, T] metrics, turned so that higher is better.
        loss_matrix: [K, T] losses.
        criterion: a name in `CRITERIA`.
        better: `"metric"` or `"loss"`, what is compared first.

    Raises:
        InputError: the criterion, or `better`, is unknown.

    Example:
        >>> metric, loss = torch.tensor([[0.9, 0.7], [0.7, 0.9]]), torch.tensor([[0.5, 0.5], [0.4, 0.4]])
        >>> select(metric, loss)
        1
    """
    metric, loss = _rounded(overall(metric_matrix, criterion)), -_rounded(overall(-loss_matrix, criterion))
    best = 0
    for k in range(1, len(metric)):
        if is_better(metric[k], loss[k], metric[best], loss[best], by=better):
            best = k
    return best


def _rounded(scores: Float64[Tensor, " K"]) -> Float64[Tensor, " K"]:
    return torch.tensor([float(f"{score:.12g}") for score in scores.tolist()], dtype=torch.float64)
