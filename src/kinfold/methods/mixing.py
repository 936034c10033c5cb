"""What mixtures of two rows have in common: the targets, whoever gave them, by each row's share.

Legend: B batch, C classes or outputs.
"""

import math

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Batch, Rows, probabilities


def blend(
    value: Shaped[Tensor, "B *rest"], share: Float[Tensor, ""], other: Int64[Tensor, " B"]
) -> Shaped[Tensor, "B *rest"]:
    """Returns share · one + (1 − share) · other.

    Raises:
        InputError: these are whole numbers.
    """
    if not value.is_floating_point():
        raise InputError("mixup: the inputs are whole numbers, which cannot be mixed; leave mixup out.")
    return share.to(value.dtype) * value + (1.0 - share).to(value.dtype) * value[other]


def mixed(batch: Batch, x: Rows, share: Float[Tensor, ""], other: Int64[Tensor, " B"]) -> Batch:
    """Returns the batch of mixtures.

    Soft targets from other tasks are mixed alike. A mixture with a row whose label may not be used has the target
    of the other row, and counts as labelled by that row's share. Where rows have weights, each enters by its own.

    Args:
        batch: before.
        x: the mixed inputs.
        share: of each row in its mixture; the rest is the other row's.
        other: [B] the other row of each.
    """

    def mean(value: Shaped[Tensor, "B *rest"], *shares: Float[Tensor, " B"] | None) -> Shaped[Tensor, "B *rest"]:
        """The mixture of a value that rows bring by their shares, where there are any."""
        given = [one for one in shares if one is not None]
        if not given:
            return blend(value, share, other)
        by_row = math.prod(given[1:], start=given[0]).to(value.dtype).view(-1, *[1] * (value.ndim - 1))
        return blend(value * by_row, share, other) / blend(by_row, share, other).clamp_min(
            torch.finfo(value.dtype).tiny
        )

    rows = batch.weight
    y = batch.y if batch.classes is None else probabilities(batch)
    # A label that may not be used must not seep into the mixture.
    y = mean(y, rows, batch.labelled)
    labelled = None if batch.labelled is None else mean(batch.labelled, rows)
    soft, soft_weight = batch.soft, batch.soft_weight
    if soft is not None and soft_weight is not None and soft_weight.ndim > 0:
        soft, soft_weight = mean(soft, rows, soft_weight), mean(soft_weight, rows)
    elif soft is not None:
        soft = mean(soft, rows)
    weight = None if rows is None else blend(rows, share, other)
    return batch._replace(x=x, y=y, labelled=labelled, soft=soft, soft_weight=soft_weight, weight=weight)
