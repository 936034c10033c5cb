"""Processes beside each other, each with a thread and a share of the tasks: for what one process cannot keep busy.

On a CPU a step of a small convolution does not go faster by a second thread, but two tasks' steps do in two processes.
The process that asks holds all T tasks in an engine that never trains: it carries out plans, keeps snapshots and
exports. Each worker trains and scores an engine over some rows of them. Parameters, buffers, best snapshots and the
methods' states lie in memory that all of them share; data, model and methods are inherited by forking, since a job
holds functions that cannot be sent. What the optimizers remember is the workers' own, and is fetched where a plan moves
it or a checkpoint is made. Rows that are not in memory are read by each worker itself, for its share of the tasks and
not ahead of need, since it may have no processes of its own: a row is decoded by every worker whose tasks need it.

Legend: T tasks, k those of one worker, N rows, m rows asked for, C classes or outputs.
"""

import dataclasses
import gc
import mmap
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kinfold.engines.base import Job
from kinfold.engines.local import LocalEngine, start_stack
from kinfold.engines.seen import Seen
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import Sharing, joined, named, optimizers_of, share_of, take_optimizers
from kinfold.errors import InputError, RunError
from kinfold.importing import one_line
from kinfold.methods.base import Params
from kinfold.processes import signals_held, usable_cpus
from kinfold.tasks.order import Segment
from kinfold.tasks.state import TaskStack
from kinfold.tasks.update import MakeScheduler


@final
class Workers(Sharing):
    """Every worker process trains a share of the tasks. They start when first needed, and end with `close`.

    Args:
        job: what to train, on the CPU.
        processes: how many workers; default as many as this process may use CPUs. Never more than T.
        kind: the engine that each worker runs on its share.

    Raises:
        InputError: the job's device is another, or this process cannot be forked.
    """

    name = "workers"

    def __init__(self, job: Job, processes: int | None = None, kind: type[LocalEngine] = Sequential):
        _check(job, processes)
        whole = kind(job, _shared_stack(start_stack(job)))
        whole.best = _shared_stack(whole.best)
        whole.states = [_shared(state) for state in whole.states]
        whole.seen = _shared_seen(whole.seen)
        whole.updater.unfuse()  # the shares may be at different points
        super().__init__(job, kind, whole, usable_cpus() if processes is None else processes)
        self._workers: list[_Worker] = []
        self._together = [kind.fuse] * job.tasks  # whose optimizers are, or are to be, those of a worker's whole lane
        # At exit it is left to `multiprocessing`, which knows whose processes they are: this process may be forked.
        weakref.finalize(self, _end, self._workers).atexit = False

    # -- what the workers must hear of ------------------------------------------------------------------------------

    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        self._whole.end_period(scores)  # schedules are stepped on both sides, so that rates can be read here
        self._tell(_end_period, [(scores[tasks, 1].tolist(),) for tasks in self._shares])

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        self._fetch()
        _end(self._workers)  # a function cannot be sent, but those that come after them inherit it
        self._job = dataclasses.replace(self._job, scheduler=scheduler)
        self._whole.reschedule(scheduler)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self._fetch()
        tensors, values = self._whole.state()
        if self._workers:
            self._whole.updater.restore({}, values["optimizers"])  # the workers have them; twice is once too often
        self._mark(values["optimizers"])
        for verdicts in self._tell(LocalEngine.verdicts, [()] * len(self._shares)):
            self._whole.judge(verdicts)
        return tensors, {**values, **self._whole.verdicts(), "visits": self._visits}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        _end(self._workers)  # those that come after them are told
        self._whole.restore(tensors, values)
        self._together = [own["fused"] for own in values["optimizers"]]
        self._visits = self._whole.visits()

    def close(self) -> None:
        self._closed = True
        _end(self._workers)

    # -- what can be read or written in the shared memory --------------------------------------------------------------

    def steps(self, period: int) -> Int64[Tensor, " T"]:
        return self._whole.steps(period)

    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        self._whole.snapshot(tasks)

    def export(self, task: int) -> nn.Module:
        return self._whole.export(task)

    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        return self._whole.norms(best)

    def method_states(self) -> list[dict[str, Tensor]]:
        return self._whole.method_states()

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        return self._whole.options()

    # -- the processes ---------------------------------------------------------------------------------------------

    def _trained(self, segment: Segment) -> list[tuple[Float[Tensor, " k"], int]]:
        return self._on_shares(_train, segment)

    def _scored(self) -> list[Float[Tensor, "k 2"]]:
        return self._on_shares(LocalEngine.score)

    def _models_here(self, best: bool) -> AbstractContextManager[None]:
        del best
        return nullcontext()  # they lie in shared memory

    def _on_shares(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if self._closed:
            return [function(self._whole, *arguments)]
        if not self._workers:
            self._start()
        return self._tell(function, [arguments] * len(self._shares))

    def _tell(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        # By its name: a function cannot be sent.
        answers: dict[_Worker, Any] = {}
        with self._all_or_none():
            for worker, given in zip(self._workers, arguments, strict=False):
                worker.ask(function, given)
            while waiting := [worker for worker in self._workers if worker not in answers]:
                ready = wait([worker.connection for worker in waiting])
                answers |= {worker: worker.answer() for worker in waiting if worker.connection in ready}
        return [answers[worker] for worker in self._workers]

    def _start(self) -> None:
        fork = multiprocessing.get_context("fork")
        with self._all_or_none():
            for tasks in self._shares:
                ours, theirs = fork.Pipe()
                process = fork.Process(target=_serve, args=(self._engine(tasks), theirs, tasks), daemon=True)
                with signals_held(), warnings.catch_warnings():
                    # Python warns of other threads: a worker waits for none, and sees to torch's.
                    warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
                    try:
                        process.start()
                    except OSError as error:
                        raise RunError(
                            f"engine: a worker process cannot be started ({one_line(error)}); use engine sequential."
                        ) from error
                    self._workers.append(_Worker(process, ours, tasks))
                theirs.close()
        self._hand_over()
        if self._whole.lesson is not None:
            self._teach()

    def _engine(self, tasks: slice) -> LocalEngine:
        """An engine for some of the tasks, over the memory that holds them all."""
        whole = self._whole
        states = [{name: value[tasks] for name, value in state.items()} for state in whole.states]
        engine = self._kind(self._job_of(tasks), whole.stack.rows(tasks), tasks.start, states=states)
        engine.best = whole.best.rows(tasks)
        engine.seen = whole.seen.tasks(tasks)
        engine.judge(whole.verdicts())
        return engine

    def _fetch(self) -> None:
        if self._workers:
            tensors, values = joined(self._tell(optimizers_of, [()] * len(self._shares)), self._shares)
            self._together = [own["fused"] for own in values]
            self._whole.updater.restore(tensors, values)

    def _hand_over(self) -> None:
        if self._workers:
            tensors, values = self._whole.updater.state()
            self._mark(values)
            self._tell(take_optimizers, [share_of(tensors, values, tasks) for tasks in self._shares])
            self._whole.updater.restore({}, values)

    def _mark(self, values: list[dict[str, Any]]) -> None:
        """Notes whose optimizers go on together, if a plan has not parted them: sums are then those of before."""
        for own, together in zip(values, self._together, strict=True):
            own["fused"] = together


# -- in a worker -----------------------------------------------------------------------------------------------------


def _serve(engine: LocalEngine, driver: Connection, tasks: slice) -> NoReturn:
    """Answers for ever; an interrupt, which reaches all processes of a terminal, stays blocked."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)  # before anything else: the threads that torch had have not come along
    gc.freeze()  # a collection would write to what was inherited, and so copy it: 90 MB
    threading.Thread(target=_end_with_driver, daemon=True).start()
    while True:
        function, arguments = _received(driver)
        try:
            _send(driver, (True, function(engine, *arguments)))
        except (InputError, RunError) as error:
            _send(driver, (False, (error, traceback.format_exc())))
        except Exception as error:  # the user's model, loss or methods, which may raise anything
            failed = RunError(f"engine: training or scoring {named(tasks)} failed ({one_line(error)}).")
            _send(driver, (False, (failed, traceback.format_exc())))


def _end_with_driver() -> None:
    """However it ended: it may have been killed in the middle of a period."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _train(engine: LocalEngine, segment: Segment) -> tuple[Float[Tensor, " k"], int]:
    before = engine.visits()
    return engine.train(segment), engine.visits() - before


def _end_period(engine: LocalEngine, losses: list[float]) -> None:
    engine.updater.end_period(losses)


# -- between processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process as its driver knows it."""

    process: BaseProcess
    connection: Connection
    tasks: slice

    def ask(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            _send(self.connection, (function, arguments))
        except OSError:
            raise self._lost() from None

    def answer(self) -> Any:
        try:
            done, answer = _received(self.connection)
        except (EOFError, OSError):
            raise self._lost() from None
        if done:
            return answer
        error, trace = answer
        raise error from RuntimeError(f"in a worker process:\n{trace}")

    def _lost(self) -> RunError:
        self.process.join(timeout=1.0)
        return RunError(
            f"engine: the worker process of {named(self.tasks)} ended (exit code {self.process.exitcode}); "
            "if it was for want of memory, use fewer tasks or engine sequential."
        )


@dataclass(frozen=True)
class _Values:
    """A tensor on its way: torch itself would send a file descriptor for each, of which there are few."""

    data: UInt8[np.ndarray, " bytes"]
    dtype: torch.dtype
    shape: tuple[int, ...]


def _send(connection: Connection, message: Any) -> None:
    def packed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        flat = leaf.detach().contiguous().reshape(-1)
        return _Values(flat.view(torch.uint8).numpy(), leaf.dtype, tuple(leaf.shape))

    connection.send(tree_map(packed, message))


def _received(connection: Connection) -> Any:
    def unpacked(leaf: Any) -> Any:
        return torch.from_numpy(leaf.data).view(leaf.dtype).reshape(leaf.shape) if isinstance(leaf, _Values) else leaf

    return tree_map(unpacked, connection.recv())


def _end(workers: "list[_Worker]") -> None:
    """Kills them: they have nothing to put in order, and may be in the middle of a long period."""
    for worker in workers:
        worker.process.kill()
    while workers:
        worker = workers.pop()
        worker.process.join()
        worker.process.close()
        worker.connection.close()


def _shared_stack(stack: TaskStack) -> TaskStack:
    return dataclasses.replace(stack, params=_shared(stack.params), buffers=_shared(stack.buffers))


def _shared_seen(seen: Seen) -> Seen:
    kept = _shared({"outputs": seen.outputs, "fresh": seen.fresh, "snapshots": seen.snapshots})
    return dataclasses.replace(seen, **kept)


def _shared(tensors: Params) -> Params:
    """Copies in memory that forked processes share; it has no name or file, so it is gone when they are."""

    def moved(value: Tensor) -> Tensor:
        if not value.numel():
            return value
        memory = mmap.mmap(-1, value.numel() * value.element_size())
        # In the layout it has, which may be one with channels last.
        return torch.frombuffer(memory, dtype=value.dtype).as_strided(value.shape, value.stride()).copy_(value.detach())

    return {name: moved(value) for name, value in tensors.items()}


def _check(job: Job, processes: int | None) -> None:
    if job.device.type != "cpu":
        raise InputError(
            f"engine: workers train on the CPU, and device is {job.device}; give device cpu, or engine auto."
        )
    if processes is not None and processes < 1:
        raise InputError(f"engine: {processes} worker processes cannot train; give 1 or more.")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError("engine: workers are forked, which this system cannot do; give engine auto.")
    if torch.accelerator.is_available():  # autograd then has threads, and a forked process may not go without them
        raise InputError(
            "engine: workers cannot be forked beside a GPU; hide it (CUDA_VISIBLE_DEVICES=), or give engine auto."
        )
    if multiprocessing.current_process().daemon:
        raise InputError("engine: workers cannot start in a daemonic process, such as one of a Pool; give engine auto.")
