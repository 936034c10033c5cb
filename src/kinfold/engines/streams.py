"""The tasks' steps beside each other on one GPU: each task's kernels go to one of several streams.

The kernels of one small model leave most of a GPU idle. Where models cannot be stacked, or convolve (stacked
convolutions of different weights are grouped ones, which libraries are slow at), the kernels of several tasks may run
at the same time instead: a stream runs its kernels in order, and different streams run theirs as there is room. Each
task's step is captured as a graph of its own (see `kinfold.engines.captured`), so that one thread of the host feeds
them all.
"""

import abc
import contextlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import final

import torch

from kinfold.data.streamed import Streamed
from kinfold.engines.base import Job
from kinfold.engines.captured import Captures, Graph, MakeGraph, cuda_graphs, new_stream
from kinfold.engines.local import Group
from kinfold.engines.sequential import OneByOne
from kinfold.errors import InputError
from kinfold.methods.base import State
from kinfold.tasks.order import Segment
from kinfold.tasks.state import TaskStack

STREAMS = 8
"""As many as the queues that CUDA gives a process where nothing else is said (CUDA_DEVICE_MAX_CONNECTIONS)."""


class Lane(abc.ABC):
    """What works through what it is told in order, beside others of its kind."""

    @abc.abstractmethod
    def follow(self) -> None:
        """Begins after all that the caller has told the device so far."""

    @abc.abstractmethod
    def entered(self) -> AbstractContextManager[object]:
        """Within, the device is told through this lane."""

    @abc.abstractmethod
    def joined(self) -> None:
        """Lets what the caller tells the device from now on begin after all of this lane's work."""

    @abc.abstractmethod
    def graph(self, like: Graph | None) -> Graph:
        """Returns an empty graph, in the memory of another of this lane's if there is one."""


@final
class Streams(OneByOne):
    """All tasks take steps in turns, each on a stream that it shares with as few others as there may be.

    Rows that are not in memory are read for all tasks together, and then all keep to one stream.

    Args:
        job: what to train, on a GPU.
        stack: the tasks' models, trained where they lie; default drawn anew.
        first: number of the job's first task, by which its draws are keyed, where it has a share of more tasks.
        streams: how many, never more than T; default `STREAMS`.
        lane: makes one on a device.
        states: as in `LocalEngine`.

    Raises:
        InputError: the job's device is no GPU.
    """

    name = "streams"

    def __init__(
        self,
        job: Job,
        stack: TaskStack | None = None,
        first: int = 0,
        streams: int = STREAMS,
        lane: Callable[[torch.device], Lane] | None = None,
        states: list[State] | None = None,
    ):
        lane = _Stream if lane is None else lane
        lanes = [lane(job.device) for _ in range(min(job.tasks, streams))]
        super().__init__(job, stack, first, states)
        self.in_turns = True
        beside = len(lanes) > 1
        self._beside: list[tuple[Lane, Captures]] = [(lane, self._captures_on(lane.graph, beside)) for lane in lanes]
        self._captures = self._beside[0][1]  # of the lane whose turn it is

    def _walk(self, groups: list[Group], segment: Segment) -> Generator[tuple[Group, int] | None, None, None]:
        with contextlib.closing(super()._walk(groups, segment)) as steps:
            if isinstance(self.inputs, Streamed):
                yield from steps
                return
            for lane, _ in self._beside:
                lane.follow()
            try:
                for taken in steps:
                    if taken is None:
                        yield None
                        continue
                    (task,) = taken[0].tasks
                    lane, self._captures = self._beside[task % len(self._beside)]
                    with lane.entered():
                        yield taken
            finally:
                for lane, _ in self._beside:
                    lane.joined()

    def _drop_captures(self) -> None:
        for _, captures in self._beside:
            captures.drop()


@final
class _Stream(Lane):
    """A stream of a GPU."""

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise InputError(
                f"engine: streams train on a GPU, and device is {device}; give device cuda, or engine auto."
            )
        self._device, self._stream = device, new_stream(device)
        self._make: MakeGraph = cuda_graphs(device, self._stream)

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def entered(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def joined(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def graph(self, like: Graph | None) -> Graph:
        return self._make(like)
