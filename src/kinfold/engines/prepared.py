"""Steps whose parts are looked up once for many: which tensors they read, their recording, the optimizers' kernels.

Of a step of small models that is replayed from a recording, a third was the looking up. From one step to the next of
the same tasks in a segment of training, nothing of it changes but the batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.engines.recording import Recording, tensors_in
from kinfold.methods.base import Batch, Params
from kinfold.tasks.kernels import Kernel

AT_ONCE = 2**18
"""Bytes of small batches that are read at once: as many as stay in a CPU's cache until their step."""


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """Steps of k tasks, one a call: the same numbers as those of steps that look everything up, bit for bit.

    Attributes:
        recording: of a step of the k tasks, or with `alone` of one.
        alone: whether the recording knows no axis of tasks.
        before: the tensors that it is given before those of the batch: parameters, frozen parameters and buffers.
        behind: those after it: the methods' states.
        batches: those of the steps to come, of one task with `alone`.
        kernels: take an optimizer's step each: of all these tasks, or one of them.
        together: whether there is one optimizer for all of them.
        write: is given what has come of the pass besides gradients: buffers, and the methods' new state.
    """

    recording: Recording
    alone: bool
    before: Sequence[Tensor]
    behind: Sequence[Tensor]
    batches: Iterator[Batch]
    kernels: Sequence[Kernel]
    together: bool
    write: Callable[[Params], None]

    def __call__(self, keys: Int64[Tensor, " k"]) -> Float[Tensor, " *k"]:
        """Takes the next step; returns the losses, with `alone` that of the one task."""
        given = [*self.before, *tensors_in(next(self.batches)), *self.behind, keys[0] if self.alone else keys]
        with torch.no_grad():
            losses, *rest = self.recording.run(given)
            if self.recording.passed:
                self.write(self.recording.of_the_pass(rest))
            if self.alone or self.together:
                self.kernels[0](rest)
            else:
                grads = rest[: len(self.recording.grads)]
                for i, kernel in enumerate(self.kernels):
                    kernel([grad[i] for grad in grads])
        return losses


def steps_of(batch: Batch, alone: bool) -> Iterator[Batch]:
    """Yields the batches of several steps that were read at once.

    Args:
        batch: its tensors are [steps, k, …], those of x likewise where there are several.
        alone: whether to leave out the axis of tasks, of which there is one.

    Example:
        >>> rows = torch.arange(6).view(3, 1, 2)  # of three steps of one task
        >>> [step.y.tolist() for step in steps_of(Batch(rows.double(), rows, rows, 2), alone=True)]
        [[0, 1], [2, 3], [4, 5]]
    """

    def columns(part: Any) -> Iterable[Any]:
        if isinstance(part, tuple):
            return zip(*map(columns, part), strict=True)
        if not isinstance(part, Tensor):
            return repeat(part)
        return (part.flatten(0, 1) if alone else part).unbind(0)

    return map(Batch, *map(columns, batch))
