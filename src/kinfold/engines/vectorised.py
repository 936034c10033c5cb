"""All tasks in one tensor program: `torch.vmap` over the stacked models; where memory is short, some at a time.

The forward pass is lifted and ordinary autograd runs back through the lifted program, which measures half as
long again as fast as lifting the gradient (`vmap(grad(…))`).
"""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from kinfold.engines.lift import Lift, in_parts, stacked
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.engines.recording import Gradients
from kinfold.methods.base import Batch, Params, State
from kinfold.tasks.state import TaskStack


@final
class Vectorised(LocalEngine):
    """All tasks take a step together, or as many of them as `together` says."""

    name = "vectorised"
    fuse = True
    shrinks = True

    @property
    def lift(self) -> Lift:
        return stacked if self.together >= self.job.tasks else in_parts(stacked, self.together)

    def _lanes(self) -> list[list[int]]:
        tasks = list(range(self.job.tasks))
        return [tasks[first : first + self.together] for first in range(0, len(tasks), self.together)]

    def _recorded(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"], record: bool
    ) -> Gradients:
        return self._recorder(
            stack.params, stack.frozen, stack.buffers, batch, states, keys, self._temperature(), record
        )

    def _eager(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        keys: Int64[Tensor, " k"],
    ) -> Gradients:
        if self.chain.has("gradients"):
            return self._lifted(params, frozen, buffers, batch, states, keys)
        differentiated = {**params, **self.chain.trained(states)}
        leaves = {name: value.detach().requires_grad_() for name, value in differentiated.items()}
        losses, after = stacked(self._loss_of_one)(leaves, frozen, buffers, batch, states, keys)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        after = {name: value.detach() for name, value in after.items()}
        return losses.detach(), self.chain.settled(grads, after, states), after

    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        grads, (value, passed) = torch.func.grad_and_value(loss, has_aux=True)(at)
        return value, grads, passed
