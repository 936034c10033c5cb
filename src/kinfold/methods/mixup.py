"""Mixup (Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, eq. 2)."""

import math
from dataclasses import dataclass
from typing import final

from jaxtyping import Int64
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State
from kinfold.methods.mixing import blend, mixed


@final
@dataclass(frozen=True)
class Mixup(Method):
    """Rows and targets become λ · one + (1 − λ) · another of the same batch, λ ~ Beta(α, α) once a batch.

    Targets of all kinds are mixed alike (see `kinfold.methods.mixing.mixed`).

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
        share = random.beta(random.fold_in(key, 0), self.alpha, self.alpha)
        other = random.permutation(random.fold_in(key, 1), batch.row.shape[0]).to(batch.row.device)
        parts = batch.x if isinstance(batch.x, tuple) else (batch.x,)
        x = tuple(blend(part, share, other) for part in parts)
        return mixed(batch, x if isinstance(batch.x, tuple) else x[0], share, other)
