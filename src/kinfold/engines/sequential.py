"""One task after another, with ordinary autograd: runs whatever a plain training loop runs."""

from typing import final

import torch
from torch import Tensor

from kinfold.engines.lift import Lift, looped
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.methods.base import Params


@final
class Sequential(LocalEngine):
    """Each task takes all its steps of a segment, then the next one does."""

    name = "sequential"
    fuse = False

    @property
    def lift(self) -> Lift:
        return looped

    def _lanes(self) -> list[list[int]]:
        return [[t] for t in range(self.job.tasks)]

    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
        value, buffers = loss(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        return value.detach(), grads, {name: buffer.detach() for name, buffer in buffers.items()}
