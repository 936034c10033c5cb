"""Mixup (Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, eq. 2)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State, probabilities


@final
@dataclass(frozen=True)
class Mixup(Method):
    """Rows and targets become λ · one + (1 − λ) · another of the same batch, λ ~ Beta(α, α) once a batch.

    Soft targets from other tasks are mixed alike. A mixture with a row whose label may not be used has the target
    of the other row, and counts as labelled by that row's share. Where rows have weights, each enters by its own.

    Attributes:
        alpha: α; towards 0 nothing is mixed, 1 draws λ uniformly.

    Example:
        >>> import torch
        >>> batch = Batch(torch.eye(3), torch.arange(3), torch.arange(3), classes=3)
        >>> mixed = Mixup(alpha=1.0).batch(batch, {}, random.key(0))
        >>> torch.allclose(mixed.x, mixed.y)
        True
    """

    alpha: float | int = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"mixup: alpha is {self.alpha!r}; give a number above 0.")

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        del state
        lam = random.beta(random.fold_in(key, 0), self.alpha, self.alpha)
        other = random.permutation(random.fold_in(key, 1), batch.row.shape[0]).to(batch.row.device)

        def mix(value: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "B *rest"]:
            if not value.is_floating_point():
                raise InputError("mixup: the inputs are whole numbers, which cannot be mixed; leave mixup out.")
            return lam.to(value.dtype) * value + (1.0 - lam).to(value.dtype) * value[other]

        x = tuple(mix(part) for part in batch.x) if isinstance(batch.x, tuple) else mix(batch.x)

        def mean(value: Shaped[Tensor, "B *rest"], *shares: Float[Tensor, " B"] | None) -> Shaped[Tensor, "B *rest"]:
            """The mixture of a value that rows bring by their shares, where there are any."""
            given = [share for share in shares if share is not None]
            if not given:
                return mix(value)
            share = math.prod(given[1:], start=given[0]).to(value.dtype).view(-1, *[1] * (value.ndim - 1))
            return mix(value * share) / mix(share).clamp_min(torch.finfo(value.dtype).tiny)

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
        weight = None if rows is None else mix(rows)
        return batch._replace(x=x, y=y, labelled=labelled, soft=soft, soft_weight=soft_weight, weight=weight)
