"""All tasks in one tensor program: `torch.vmap` over the stacked models.

The forward pass is lifted and ordinary autograd runs back through the lifted program, which measures half as
long again as fast as lifting the gradient (`vmap(grad(…))`).
"""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.lift import Lift, detached, stacked
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.methods.base import Batch, Params, State
from kinfold.tasks.state import TaskStack


@final
class Vectorised(LocalEngine):
    """All tasks take a step together."""

    name = "vectorised"
    fuse = True

    @property
    def lift(self) -> Lift:
        return stacked

    def _lanes(self) -> list[list[int]]:
        return [list(range(self.job.tasks))]

    def _value_and_grads(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"]
    ) -> tuple[Float[Tensor, " k"], Params, Params]:
        if self._stages["gradients"]:
            return super()._value_and_grads(stack, batch, states, keys)
        leaves = {name: value.detach().requires_grad_() for name, value in stack.params.items()}
        losses, buffers = stacked(self._loss_of_one)(leaves, stack.frozen, stack.buffers, batch, states, keys)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        return losses.detach(), grads, detached(buffers)

    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        grads, (value, buffers) = torch.func.grad_and_value(loss, has_aux=True)(at)
        return value, grads, buffers
