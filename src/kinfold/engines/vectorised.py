"""The tasks in one tensor program: `torch.vmap` over the stacked models; in parts where memory or caches are short.

The forward pass is lifted and ordinary autograd runs back through the lifted program, which measures half as
long again as fast as lifting the gradient (`vmap(grad(…))`).
"""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from kinfold.engines.base import Job
from kinfold.engines.lift import Lift, in_parts, stacked
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.engines.recording import Gradients
from kinfold.methods.base import Batch, Params, State
from kinfold.tasks.state import TaskStack
from kinfold.tasks.update import lanes_of

_CACHED = 10 * 2**20
"""Bytes of parameters, gradients and moments of tasks that step together: more falls out of a CPU's caches."""

_FEWEST = 4
"""Tasks that step together however large they are: a product for each is shared out among the threads."""


def most_abreast(job: Job, of_one: int) -> int:
    """Returns how many tasks step together where memory does for all, given the bytes of the parameters of one."""
    return min(job.tasks, max(_FEWEST, _CACHED // (3 * of_one))) if job.device.type == "cpu" else job.tasks


@final
class Vectorised(LocalEngine):
    """All tasks take a step together, or as many of them as memory and a CPU's caches hold.

    Lane after lane then takes all steps of a segment.
    """

    name = "vectorised"
    fuse = True
    shrinks = True
    alone = False

    @property
    def lift(self) -> Lift:
        return stacked if self.together >= self.job.tasks else in_parts(stacked, self.together)

    def _most_abreast(self) -> int:
        of_one = sum(value[0].numel() * value.element_size() for value in self.stack.params.values())
        return most_abreast(self.job, of_one)

    def _lanes(self) -> list[list[int]]:
        tasks = list(range(self.job.tasks))
        most = self._most_abreast()
        if self.together >= most:
            return [list(lane) for lane in lanes_of(self.job.tasks, most)]
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
