"""A step whose parts are looked up once for many: which tensors it reads, its recording, the optimizers' kernels.

Of a step of small models that is replayed from a recording, a third was the looking up. From one step to the next of
the same tasks in a segment of training, nothing of it changes but the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.recording import Replay, tensors_of
from kinfold.methods.base import Batch, Params, State


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """A step of k tasks: the same numbers as those of the step that it was prepared by, bit for bit.

    Attributes:
        replay: the recording, of k tasks, or with `alone` of one.
        alone: whether the recording knows no axis of tasks.
        lies: parameters, frozen parameters and buffers, where they lie.
        states: the methods' states, likewise.
        read: from [k, B] row numbers to the batch.
        kernels: take an optimizer's step each: of all these tasks, or one of them.
        together: whether there is one optimizer for all of them.
        write: is given what has come of the pass besides gradients: buffers, and the methods' new state.
    """

    replay: Replay
    alone: bool
    lies: tuple[Params, Params, Params]
    states: list[State]
    read: Callable[[Int64[Tensor, "k B"]], Batch]
    kernels: Sequence[Callable[[Params], None]]
    together: bool
    write: Callable[[Params], None]

    def __call__(self, index: Int64[Tensor, "k B"], keys: Int64[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Takes a step on some rows; returns the losses."""
        batch = self.read(index)
        if self.alone:
            batch, keys = batch.first(), keys[0]
        losses, grads, passed = self.replay(*tensors_of(*self.lies, batch, self.states, keys))
        if passed:
            self.write(passed)
        if self.alone or self.together:
            self.kernels[0](grads)
        else:
            for i, kernel in enumerate(self.kernels):
                kernel({name: grad[i] for name, grad in grads.items()})
        return losses[None] if self.alone else losses
