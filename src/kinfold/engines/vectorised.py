"""All tasks in one tensor program: `torch.vmap` over the stacked models.

The forward pass is lifted and ordinary autograd runs back through the lifted program, which measures half as
long again as fast as lifting the gradient (`vmap(grad(…))`).
"""

from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.lift import Lift, stacked
from kinfold.engines.local import LocalEngine, around
from kinfold.methods.base import Batch, Params, State, ValueAndGrad, overrides
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
        if any(overrides(method, "gradients") for method in self.job.methods):
            loss, grads, buffers = stacked(self._of_one)(stack.params, stack.frozen, stack.buffers, batch, states, keys)
            return loss.detach(), grads, buffers
        leaves = {name: value.detach().requires_grad_() for name, value in stack.params.items()}
        losses, buffers = stacked(self._loss_of_one)(leaves, stack.frozen, stack.buffers, batch, states, keys)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        return losses.detach(), grads, {name: value.detach() for name, value in buffers.items()}

    def _of_one(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        key: Int64[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Params, Params]:
        """One task's (loss, gradients, buffers), with the methods' gradient stages, for lifting whole."""
        after = buffers

        def value_and_grad(at: Params) -> tuple[Tensor, Params]:
            nonlocal after

            def loss(params: Params) -> Any:
                return self._loss_of_one(params, frozen, buffers, batch, states, key)

            grads, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(at)
            return value, grads

        step: ValueAndGrad = value_and_grad
        for i, method in enumerate(self.job.methods):
            if overrides(method, "gradients"):
                step = around(method, step, states[i], key)
        value, grads = step(params)
        return value, grads, after
