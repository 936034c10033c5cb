"""A step of training captured once as a graph of a GPU's kernels, and replayed by one call.

On a GPU a small step waits for the host, which launches some hundred kernels one by one. A captured graph launches
them all at once. It reads and writes the memory that it was captured with: parameters, buffers and the methods' states
lie still for a whole run, and what is new at every step (which rows, which keys) is copied into tensors of the graph's
own. The gathering of the rows is captured with the passes forward and back; the optimizer's step is not, so that
schedules may go on setting rates that are numbers.

What a model draws at random comes from the device's global generator, with which torch lets a graph go on from
wherever it stands. See `torch.cuda.CUDAGraph`, and *Accelerating PyTorch with CUDA Graphs*
(https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).
"""

import abc
import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from kinfold.methods.base import Params

Pass: TypeAlias = tuple[Float[Tensor, " k"], Params]
"""(losses, gradients) of k tasks."""

_MOST = 256
"""Graphs of one engine; each holds some memory of the driver's."""

_REHEARSALS = 2
"""Passes on the stream of the capture before it: libraries set themselves up in them, which a graph may not hold."""

_LOG = logging.getLogger("kinfold")


class Graph(abc.ABC):
    """What a device was told to do, and can be told again."""

    @abc.abstractmethod
    def capture(self, function: Callable[[], Pass]) -> Pass:
        """Returns what the function returns, in memory that every replay writes anew; it may be called several times.

        The values are there after a replay only.
        """

    @abc.abstractmethod
    def replay(self) -> None:
        """Does again what was captured, on the stream that is current."""


MakeGraph: TypeAlias = Callable[[Graph | None], Graph]
"""Makes an empty graph, which shares the memory of another that is never replayed at the same time, if there is one."""


@final
class Captures:
    """Calls a function that works on tensors in place, or replays its graph.

    It stays with calling where a graph could go wrong or cannot be had: where steps cannot be recorded, either (see
    `kinfold.engines.recording`), or where a capture fails, for a model that looks at its numbers, say.

    Args:
        make: makes an empty graph; all of them share memory, so that the results of one last until the next replay.
        device: where the tensors are, whose global generator the function may draw from.
        allowed: asked after a first call, whether the function is one that always does the same.
        beside: whether graphs of others run at the same time. Then none is made of a function that draws: older
            versions of torch have one place for the seed of all graphs.
        smaller: asked where memory runs out, whether whoever calls can make do with less: then that is raised, and else
            taken for a capture that failed, since a graph's memory is its own.
    """

    def __init__(
        self,
        make: MakeGraph,
        device: torch.device,
        allowed: Callable[[], bool],
        beside: bool = False,
        smaller: Callable[[], bool] = lambda: True,
    ):
        self._smaller = smaller
        self._make, self._device, self._allowed, self._beside = make, device, allowed, beside
        self._kept: dict[Hashable, _Captured] = {}
        self._possible = True

    def __call__(
        self, kind: Hashable, function: Callable[..., Pass], given: Sequence[Tensor], written: Sequence[Tensor]
    ) -> Pass:
        """Returns what `function(*given)` returns; of a graph, in memory that lasts until the next call.

        Args:
            kind: whatever else the function depends on, the shapes of what is given included.
            function: must read nothing but what is given, what it holds, and tensors that stay where they are.
            given: what is new with every call.
            written: what the function changes in place.
        """
        captured = self._kept.get(kind)
        if captured is None:
            if not self._possible or len(self._kept) == _MOST:
                return function(*given)
            captured = self._capture(function, given, written)
            if captured is None:
                return function(*given)
            self._kept[kind] = captured
        for own, new in zip(captured.given, given, strict=True):
            own.copy_(new)
        captured.graph.replay()
        return captured.results

    def drop(self) -> None:
        """Forgets all graphs: what they read is no longer where it was, or does not do what it did."""
        self._kept = {}

    def _capture(
        self, function: Callable[..., Pass], given: Sequence[Tensor], written: Sequence[Tensor]
    ) -> "_Captured | None":
        """Returns a graph of the function, or None and gives up for good; everything else is as it was before."""
        own, before = ([value.clone() for value in values] for values in (given, written))
        self._possible = False
        try:
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                undrawn, host = self._generator(), torch.get_rng_state()
                function(*own)
                if self._device.type != "cpu" and not torch.equal(host, torch.get_rng_state()):
                    return None  # what is drawn on the host would be the same number for ever
                if not self._allowed() or (self._beside and not torch.equal(undrawn, self._generator())):
                    return None
                graph = self._make(next((kept.graph for kept in self._kept.values()), None))
                results = graph.capture(partial(function, *own))
        except Exception as error:  # whatever a model or a method does that a graph cannot hold
            if isinstance(error, torch.OutOfMemoryError) and self._smaller():
                raise
            _LOG.debug("steps of training are not captured: %s", error)
            self._kept = {}
            return None
        finally:
            for value, old in zip(written, before, strict=True):
                value.copy_(old)
        self._possible = True
        return _Captured(graph, function, own, results)

    def _generator(self) -> Tensor:
        """Where the device's global generator stands; on the host."""
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()


@dataclass(frozen=True)
class _Captured:
    """A graph, what it is of, the tensors it reads what is new from, and those it leaves its results in.

    The function is kept since the graph goes on reading the memory of what it holds.
    """

    graph: Graph
    function: Callable[..., Pass]
    given: Sequence[Tensor]
    results: Pass


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns a stream of a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def cuda_graphs(device: torch.device, stream: torch.cuda.Stream | None = None) -> MakeGraph:
    """Returns what makes graphs of a GPU, captured on one stream (default one of their own)."""
    return partial(_CUDAGraph, device, new_stream(device) if stream is None else stream)


@final
class _CUDAGraph(Graph):
    """A graph of CUDA kernels."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream, like: Graph | None):
        self._device, self._stream = device, stream
        self._graph = torch.cuda.CUDAGraph()
        # A pool is taken from a graph that is there: once its last one is gone, it may not be captured in again.
        self._pool = like._graph.pool() if isinstance(like, _CUDAGraph) else None

    def capture(self, function: Callable[[], Pass]) -> Pass:
        here, there = torch.cuda.current_stream(self._device), self._stream
        there.wait_stream(here)
        try:
            # Entered around the capture, too: one that fails does not find its way back to the stream it came from.
            with torch.cuda.device(self._device), torch.cuda.stream(there):
                for rehearsal in range(_REHEARSALS):
                    with _no_waits() if rehearsal else nullcontext():  # the first may set up what is waited for
                        function()
                # What other threads do meanwhile (reading, pinning) is not for this graph to forbid.
                graph = torch.cuda.graph(self._graph, pool=self._pool, stream=there, capture_error_mode="thread_local")
                with _no_collection(), graph:
                    return function()
        finally:
            here.wait_stream(there)

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def _no_waits() -> Iterator[None]:
    """Within, what waits for the device raises: so it is found where failing leaves nothing behind."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within, no garbage is collected: a graph that is destroyed during a capture spoils it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
