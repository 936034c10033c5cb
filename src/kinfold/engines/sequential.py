"""One task after another, with ordinary autograd: runs whatever a plain training loop runs."""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.lift import Lift, looped
from kinfold.engines.local import LocalEngine, around
from kinfold.methods.base import Batch, Params, State, ValueAndGrad, overrides
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
        result: tuple[Tensor, Params, Params]
        result = looped(self._of_one)(stack.params, stack.frozen, stack.buffers, batch, states, keys)
        return result

    def _of_one(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        key: Int64[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Params, Params]:
        after = buffers

        def value_and_grad(at: Params) -> tuple[Tensor, Params]:
            nonlocal after
            leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
            loss, after = self._loss_of_one(leaves, frozen, buffers, batch, states, key)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            return loss.detach(), {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}

        step: ValueAndGrad = value_and_grad
        for i, method in enumerate(self.job.methods):
            if overrides(method, "gradients"):
                step = around(method, step, states[i], key)
        loss, grads = step(params)
        return loss, grads, {name: value.detach() for name, value in after.items()}
