"""One task after another, with ordinary autograd: runs whatever a plain training loop runs."""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.lift import Lift, looped
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.methods.base import Batch, Params, State
from kinfold.tasks.state import TaskStack


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

    def _value_and_grads(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"]
    ) -> tuple[Float[Tensor, " k"], Params, Params]:
        if stack.tasks > 1 or self._stages["gradients"]:
            return super()._value_and_grads(stack, batch, states, keys)
        # A lane's one task, without the loop's taking apart and putting together, which cost as much as a small step.
        one = [_first(part) for part in (stack.params, stack.frozen, stack.buffers)]
        loss, grads, buffers = self._differentiated(
            lambda params: self._loss_of_one(params, one[1], one[2], batch.first(), list(map(_first, states)), keys[0]),
            one[0],
        )
        return loss[None], {n: g[None] for n, g in grads.items()}, {n: b[None] for n, b in buffers.items()}

    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
        value, buffers = loss(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        return value.detach(), grads, {name: buffer.detach() for name, buffer in buffers.items()}


def _first(tensors: Params) -> Params:
    return {name: value[0] for name, value in tensors.items()}
