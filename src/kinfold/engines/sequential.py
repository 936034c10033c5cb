"""One task after another, with ordinary autograd: runs whatever a plain training loop runs."""

import abc
from typing import final

from jaxtyping import Int64
from torch import Tensor

from kinfold.engines.lift import Lift, looped
from kinfold.engines.local import LocalEngine, LossOfOne
from kinfold.engines.recording import Gradients
from kinfold.methods.base import Batch, Params, State
from kinfold.methods.gradients import by_autograd
from kinfold.tasks.state import TaskStack


class OneByOne(LocalEngine, abc.ABC):
    """Every task takes steps of its own. A subclass says in which order."""

    fuse = False
    shrinks = False
    alone = True

    @property
    def lift(self) -> Lift:
        return looped

    def _lanes(self) -> list[list[int]]:
        return [[t] for t in range(self.job.tasks)]

    def _recorded(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"], record: bool
    ) -> Gradients:
        if stack.tasks > 1:
            return self._lifted(stack.params, stack.frozen, stack.buffers, batch, states, keys)
        # A lane's one task, without the loop's taking apart and putting together, which cost as much as a small step.
        own = [{name: value[0] for name, value in state.items()} for state in states]
        temperature = self._temperature()
        losses, grads, after = self._recorder(*stack.first, batch.first(), own, keys[0], temperature, record)
        return losses[None], {n: g[None] for n, g in grads.items()}, {n: b[None] for n, b in after.items()}

    def _eager(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        keys: Int64[Tensor, ""],
    ) -> Gradients:
        if self.chain.has("gradients"):
            value, grads, after = self._of_one(params, frozen, buffers, batch, states, keys)
            return value.detach(), grads, after
        value, grads, after = self._differentiated(
            lambda at: self._loss_of_one(at, frozen, buffers, batch, states, keys),
            {**params, **self.chain.trained(states)},
        )
        return value, self.chain.settled(grads, after, states), after

    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        return by_autograd(loss, at)


@final
class Sequential(OneByOne):
    """Each task takes all its steps of a segment, then the next one does."""

    name = "sequential"
