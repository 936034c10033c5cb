"""Rows that do not fit in memory: one reader decodes each of them once and serves all tasks that need it.

What is to be read is known ahead, as a sequence of batches of row numbers. From it follows when each row is needed
first, again and for the last time, so a row is decoded ahead of its first batch by processes beside this one, lies in
a slot on the device as it was decoded, and gives its slot up when no later batch needs it. In an epoch all tasks
follow one order of the rows (`kinfold.tasks.order`), so that the slots needed are those of the rows between the task
that is farthest ahead and the one farthest behind.

Legend: N rows, V visits (elements of all batches), S slots, m rows decoded together.
"""

import abc
import gc
import math
import multiprocessing
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, final

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from kinfold.data.base import Inputs, Rows
from kinfold.errors import InputError, RunError
from kinfold.importing import one_line
from kinfold.placing import placed
from kinfold.processes import usable_cpus

HELD_BYTES = 2**30
"""The most that slots take up, unless a single batch takes more. Rows that had to make room are decoded again."""

AHEAD_BYTES = 2**25
"""The most that is decoded ahead of need, unless single rows take more. It lies in /dev/shm, which is often small."""

T = TypeVar("T")

_PIECES_AHEAD = 4  # for each process: what is decoded goes from process to process in pieces of several rows
_PIECE_ROWS = 32
_NEVER = np.iinfo(np.int64).max


class Streamed(Inputs):
    """Rows that are decoded when they are needed, by reading processes where several batches are asked for.

    In a process that may have no children (a worker of the engine `workers`) they are decoded in it.

    Attributes:
        num_workers: how many reading processes; None for as many as this process may use CPUs, 0 for none.
        device: where decoded rows are held.
    """

    num_workers: int | None
    device: torch.device

    @property
    @abc.abstractmethod
    def form(self) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape of a decoded row, and the type in which it is held."""

    @abc.abstractmethod
    def decode(self, row: int, key: int) -> Shaped[Tensor, "*shape"]:
        """Returns one row as it is held, on the CPU; it may be asked in another process.

        Args:
            row: its number.
            key: what may be drawn at random follows from it and the row.

        Raises:
            InputError: it cannot be read.
        """

    @abc.abstractmethod
    def finished(self, held: Shaped[Tensor, "*axes"]) -> Rows:
        """Returns rows as a model reads them, from rows as they are held [*axes, *shape]."""

    def rows(self, index: Int64[Tensor, "*axes"]) -> Rows:
        (rows,) = self.batches([index])
        return rows

    def batches(self, indices: Sequence[Int64[Tensor, "..."]]) -> Iterator[Rows]:
        with closing(self.read(indices)) as reading:
            yield from reading

    def read(self, indices: Sequence[Int64[Tensor, "..."]], key: int = 0) -> "Reading":
        """Returns a reading of batches of rows; it is to be closed where it is not gone through to its end."""
        return Reading(self, indices, key)


@dataclass(frozen=True)
class Step:
    """What one batch does to the slots.

    Attributes:
        missing: [m] rows that are not held, and are to be decoded.
        into: [m] slots they take.
        slots: [*axes] where the batch's rows then lie.
    """

    missing: Int64[np.ndarray, " m"]
    into: Int64[np.ndarray, " m"]
    slots: Int64[np.ndarray, "..."]


@final
class Schedule:
    """Which rows are decoded for which batch, and where they lie meanwhile.

    A row that is missing takes the slot whose row is needed last, those first that nobody needs any more. That is
    what decodes least again where there are too few slots (Belady, *A study of replacement algorithms for a
    virtual-storage computer*, IBM Systems Journal 5, 1966).

    Args:
        indices: the batches, in order.
        most: the most slots there may be; never fewer than the largest batch needs.

    Attributes:
        slots: S, how many are needed.
        rows: how many different rows are visited.

    Example:
        >>> tasks = [torch.tensor([4, 2]), torch.tensor([4, 3]), torch.tensor([1, 3])]
        >>> schedule = Schedule(tasks, most=100)
        >>> schedule.slots, [step.missing.tolist() for step in schedule]
        (2, [[2, 4], [3], [1]])
    """

    def __init__(self, indices: Sequence[Int64[Tensor, "..."]], most: int):
        self._shapes = [tuple(index.shape) for index in indices]
        sizes = np.array([index.numel() for index in indices], dtype=np.int64)
        self._ends = np.cumsum(sizes)
        flat = [index.reshape(-1).cpu().numpy() for index in indices]
        self._visits = np.concatenate([np.empty(0, dtype=np.int64), *flat])
        batch = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort(self._visits, kind="stable")
        again = self._visits[order[1:]] == self._visits[order[:-1]]
        self._until = np.full(len(order), _NEVER)  # the batch that needs the row next
        self._until[order[:-1][again]] = batch[order[1:][again]]
        first = np.ones(len(order), dtype=bool)
        first[order[1:][again]] = False
        begun = np.cumsum(np.bincount(batch[first], minlength=len(sizes)))
        ended = np.cumsum(np.bincount(batch[self._until == _NEVER], minlength=len(sizes)))
        needed = int((begun - np.append(0, ended[:-1])[: len(begun)]).max(initial=0))
        self.slots = min(needed, max(most, int(sizes.max(initial=0))))
        self.rows = int(first.sum())

    def __iter__(self) -> Iterator[Step]:
        slot_of = np.full(int(self._visits.max(initial=-1)) + 1, -1)
        row_in = np.full(self.slots, -1)
        needed = np.full(self.slots, _NEVER)  # the batch that needs what lies in a slot
        for number, (end, shape) in enumerate(zip(self._ends, self._shapes, strict=True)):
            here = slice(end - math.prod(shape), end)
            visited = self._visits[here]
            rows, last = np.unique(visited[::-1], return_index=True)  # the last visit knows the next batch
            slots = slot_of[rows]
            needed[slots[slots >= 0]] = number
            missing = rows[slots < 0]
            into = missing  # none
            if len(missing):
                into = np.argpartition(needed, self.slots - len(missing))[self.slots - len(missing) :]
            left = row_in[into]
            slot_of[left[left >= 0]] = -1
            slot_of[missing], row_in[into] = into, missing
            needed[slot_of[rows]] = self._until[here][::-1][last]
            yield Step(missing, into, slot_of[visited].reshape(shape))


@final
class Reading(Iterator[Rows]):
    """Batches of rows, one after another, each row decoded ahead of the first that needs it.

    The reading processes start with the first batch and end with the last, with `close`, or with an error.

    Args:
        inputs: whose rows.
        indices: the batches [*axes] of row numbers, in order.
        key: of what is drawn at random as rows are decoded.

    Attributes:
        left: how many batches are still to come.
        decoded: how many rows have been decoded for the batches so far.

    Raises:
        InputError: a row cannot be read; as the batch that needs it is asked for, or one shortly before.
        RunError: a reading process ended.
    """

    def __init__(self, inputs: Streamed, indices: Sequence[Int64[Tensor, "..."]], key: int = 0):
        shape, dtype = inputs.form
        self._inputs, self._key = inputs, key
        self._row_bytes = max(1, math.prod(shape) * dtype.itemsize)
        self._schedule = Schedule(indices, HELD_BYTES // self._row_bytes)
        self._steps: deque[Step] = deque()
        self._pieces: Pieces[Tensor] | None = None
        self.left = len(indices)
        self._waiting = torch.empty(0, *shape, dtype=dtype)  # decoded, with no slot yet
        self._held = torch.empty(self._schedule.slots, *shape, dtype=dtype, device=inputs.device)
        self.decoded = 0

    def __next__(self) -> Rows:
        if not self.left:
            raise StopIteration
        try:
            with ended_processes_named():
                rows = self._take()
        except BaseException:
            self.close()
            raise
        self.left -= 1
        if not self.left:
            self.close()
        return rows

    def close(self) -> None:
        """Ends the reading processes; there are no more batches then."""
        if self._pieces is not None:
            self._pieces.close()
        self.left = 0
        self._waiting = self._held = self._held.new_empty((0, *self._held.shape[1:]))  # a view would keep the slots

    def _take(self) -> Rows:
        if self._pieces is None:
            self._pieces = self._start()
        device = self._held.device
        if not self._steps:  # a step is there before the last of its missing rows
            self._fetch()
        step = self._steps.popleft()
        into = placed(torch.from_numpy(step.into), device)
        while len(into):
            if not len(self._waiting):
                self._fetch()
            here, into = into[: len(self._waiting)], into[len(self._waiting) :]
            self._held[here] = self._waiting[: len(here)].to(device, non_blocking=True)
            self._waiting = self._waiting[len(here) :]
        self.decoded += len(step.into)
        slots = placed(torch.from_numpy(step.slots), device)
        held = self._held.index_select(0, slots.reshape(-1))  # a copy: the slots are written to again
        return self._inputs.finished(held.view(*slots.shape, *held.shape[1:]))

    def _fetch(self) -> None:
        """Takes the next piece of decoded rows; there is none only where no step to come misses any."""
        assert self._pieces is not None
        piece = next(self._pieces, None)
        if piece is not None:
            self._waiting = piece

    def _start(self) -> "Pieces[Tensor]":
        workers = processes_for(self._inputs.num_workers)
        size = AHEAD_BYTES // (max(1, workers) * _PIECES_AHEAD * self._row_bytes)
        size = min(_PIECE_ROWS, max(1, size))
        workers = min(workers, self._schedule.rows // (size * _PIECES_AHEAD))  # of few rows none is worth its start
        pieces = _missing(self._schedule, size, self._steps)
        return Pieces(partial(_decoded, self._inputs, self._key), pieces, workers, pin_memory=self._held.is_cuda)


@final
class Pieces(Iterator[T]):
    """What a function gives for each of several pieces of work, in order, worked out ahead of need in processes.

    Args:
        function: from the numbers of some rows to what is wanted of them.
        pieces: the rows' numbers, a piece at a time.
        workers: how many processes; 0 for this one, and not ahead.
        pin_memory: whether tensors come in memory from which a GPU can copy by itself.

    Raises:
        InputError: as the function raised it, with its trace.
        RunError: a process ended.
    """

    def __init__(
        self,
        function: Callable[[Int64[np.ndarray, " m"]], T],
        pieces: Iterator[Int64[np.ndarray, " m"]],
        workers: int,
        pin_memory: bool = False,
    ):
        forks = workers > 0 and sys.platform == "linux"  # a user's data set need not be one that can be sent
        with warnings.catch_warnings():
            # Of other threads, which the processes do not wait for; of more processes than CPUs, which were asked for.
            warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
            warnings.filterwarnings("ignore", ".*worker processes in total.*", UserWarning)
            loader: DataLoader[T | _Failed] = DataLoader(
                _Work(function),
                sampler=pieces,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=_PIECES_AHEAD if workers else None,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                multiprocessing_context="fork" if forks else None,
                worker_init_fn=_leave_inherited if forks else None,
                generator=torch.Generator(),  # the global one is not ours to draw from
            )
            self._results: Iterator[T | _Failed] = iter(loader)

    def __next__(self) -> T:
        with ended_processes_named():
            result = next(self._results)
        if isinstance(result, _Failed):
            raise result.error from RuntimeError(f"while reading:\n{result.trace}")
        return result

    def close(self) -> None:
        """Ends the processes."""
        if isinstance(self._results, _MultiProcessingDataLoaderIter):
            # Asked to here, since a traceback may hold the iterator, whose own end would come too late. It may raise
            # that one of them was killed, once it has ended the others.
            with suppress(RuntimeError):
                self._results._shutdown_workers()
        self._results = iter(())


@contextmanager
def ended_processes_named() -> Iterator[None]:
    """Turns torch's word that a reading process ended, which may come at any moment while there are some, into ours.

    Raises:
        RunError: one did.
    """
    try:
        yield
    except RunError:
        raise
    except (RuntimeError, ConnectionError, EOFError) as error:  # by when it ended: torch's own, or of what it had sent
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"data: a reading process ended ({one_line(error)}); if it was for want of memory, use fewer (num_workers)."
        ) from error


def processes_for(num_workers: int | None) -> int:
    """Returns how many reading processes to start: those asked for, or one for each CPU; none where none can be.

    Example:
        >>> processes_for(3)
        3
    """
    if multiprocessing.current_process().daemon:
        return 0
    return usable_cpus() if num_workers is None else num_workers


def check_num_workers(num_workers: int | None) -> int | None:
    """Returns the number of reading processes asked for.

    Raises:
        InputError: it is negative.

    Example:
        >>> check_num_workers(4)
        4
    """
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers: is {num_workers}; give 0 or more reading processes, or None.")
    return num_workers


def _missing(schedule: Schedule, size: int, steps: deque[Step]) -> Iterator[Int64[np.ndarray, " m"]]:
    """Yields the rows to decode, in order and `size` at a time; appends the steps that have been gone through."""
    rows = np.empty(0, dtype=np.int64)
    for step in schedule:
        steps.append(step)
        rows = np.append(rows, step.missing)
        while len(rows) >= size:
            yield rows[:size]
            rows = rows[size:]
    if len(rows):
        yield rows


def _decoded(inputs: Streamed, key: int, rows: Int64[np.ndarray, " m"]) -> Shaped[Tensor, "m *shape"]:
    shape, dtype = inputs.form
    decoded = torch.empty(len(rows), *shape, dtype=dtype)
    for number, row in enumerate(rows.tolist()):
        decoded[number] = inputs.decode(row, key)
    return decoded


@dataclass(frozen=True)
class _Failed:
    """What a reading process sends in place of a result: raised there, it would come out as another error."""

    error: InputError
    trace: str


@final
class _Work(TorchDataset[Any], Generic[T]):
    """Results by pieces of work, as a loader asks for them."""

    def __init__(self, function: Callable[[Int64[np.ndarray, " m"]], T]):
        self._function = function

    def __getitem__(self, piece: Int64[np.ndarray, " m"]) -> "T | _Failed":
        try:
            return self._function(piece)
        except InputError as error:
            return _Failed(error, traceback.format_exc())


def _as_it_is(result: T) -> T:
    return result


def _leave_inherited(process: int) -> None:
    """In a forked process: a collection would write to what was inherited, and so copy it."""
    gc.freeze()
