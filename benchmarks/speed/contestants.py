"""Who takes part: Kinfold's engines, plain PyTorch in one process and in one for each CPU, and JAX.

Each trains the same T models and says, when it returns from `run`, that all steps are done. Legend: T tasks.
"""

import abc
import contextlib
import itertools
import multiprocessing
import os
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NoReturn, final

import torch
from torch import Tensor, nn
from work import Work, make_optimizer

from kinfold.engines import choose_engine
from kinfold.errors import InputError
from kinfold.tasks.order import Segment

LONG = 10**6
"""Steps of a run that is long enough for `auto` to time its engines."""


class Contestant(abc.ABC):
    """One way of training all T models."""

    note: str = ""
    """What is to be said of it beside its figures."""

    @abc.abstractmethod
    def run(self, steps: int) -> None:
        """Takes so many steps of every model, and returns when they are done on the device, too."""

    @abc.abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Returns {name: [T, …]}, on the CPU."""

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        """Ends what runs beside this process."""


class CannotRunError(Exception):
    """A contestant cannot do this work; the message says why."""


@final
class KinfoldEngine(Contestant):
    """An engine, driven through its public interface.

    Args:
        name: of an engine, or `auto`.
        work: what to train.

    Raises:
        CannotRunError: the engine cannot do it.
    """

    def __init__(self, name: str, work: Work):
        self._work = work
        try:
            self._engine, said = choose_engine(name, work.job, steps=LONG)
        except InputError as error:
            raise CannotRunError(str(error)) from error
        if name not in ("auto", self._engine.name):
            self._engine.close()
            raise CannotRunError(said or f"runs as {self._engine.name}")
        self.note = self._engine.name if name == "auto" else ""
        self._done = 0

    def run(self, steps: int) -> None:
        period = len(self._work.batches)
        end = self._done + steps
        while self._done < end:
            first = self._done % period
            last = min(period, first + end - self._done)
            self._engine.train(Segment(1 + self._done // period, first, last))  # waits for the losses
            self._done += last - first
        _wait(self._work)

    def parameters(self) -> dict[str, Tensor]:
        self._engine.snapshot(torch.ones(self._work.tasks, dtype=torch.bool))
        return _stacked([self._engine.export(t) for t in range(self._work.tasks)])

    def close(self) -> None:
        self._engine.close()


@final
class Loop(Contestant):
    """Plain PyTorch: ordinary modules, each with an optimizer of its own, one after another.

    Args:
        work: what to train.
        share: which of the tasks; default all.
    """

    def __init__(self, work: Work, share: slice = slice(None)):
        self._work = work
        self._batches = work.batches[:, share]
        self.models = work.starts()[share]
        self._optimizers = [make_optimizer(model.parameters()) for model in self.models]
        self._loss = nn.CrossEntropyLoss()
        self._total = torch.zeros(len(self.models), device=work.job.device)
        self._done = 0

    def run(self, steps: int) -> None:
        X, y = self._work.inputs, self._work.targets
        for t, (model, optimizer) in enumerate(zip(self.models, self._optimizers, strict=True)):
            model.train()
            for step in range(self._done, self._done + steps):
                index = self._batches[step % len(self._batches), t]
                optimizer.zero_grad()
                with self._autocast():
                    output = model(X[index])
                loss = self._loss(output.float(), y[index])
                loss.backward()
                optimizer.step()
                self._total[t] += loss.detach()
        self._done += steps
        _wait(self._work)

    def parameters(self) -> dict[str, Tensor]:
        return _stacked(self.models)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        job = self._work.job
        if job.precision == "bf16":
            return torch.autocast(job.device.type, torch.bfloat16)
        return contextlib.nullcontext()


@final
class Processes(Contestant):
    """The plain loop in one process for each CPU, with a thread each; the tasks are shared out between them.

    Args:
        work: what to train.

    Raises:
        CannotRunError: the device is not the CPU, of which processes have one each.
    """

    def __init__(self, work: Work):
        if work.job.device.type != "cpu":
            raise CannotRunError("processes share out CPUs")
        fork = multiprocessing.get_context("fork")
        count = min(work.tasks, len(os.sched_getaffinity(0)))
        ends = [round(i * work.tasks / count) for i in range(count + 1)]
        work.batches.numpy()  # drawn before the processes part, and so once
        self._processes, self._connections = [], []
        with warnings.catch_warnings():
            # JAX and Python warn of threads, for which the children never wait.
            warnings.filterwarnings("ignore", ".*(multithreaded|multi-threaded).*")
            for first, end in itertools.pairwise(ends):
                ours, theirs = fork.Pipe()
                process = fork.Process(target=_serve, args=(work, slice(first, end), theirs), daemon=True)
                process.start()
                self._processes.append(process)
                self._connections.append(ours)

    def run(self, steps: int) -> None:
        for connection in self._connections:
            connection.send(steps)
        for connection in self._connections:
            connection.recv()

    def parameters(self) -> dict[str, Tensor]:
        for connection in self._connections:
            connection.send(None)
        parts = [connection.recv() for connection in self._connections]
        return {name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in parts[0]}

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(work: Work, share: slice, driver: Connection) -> NoReturn:
    torch.set_num_threads(1)
    loop = Loop(work, share)
    while True:
        steps = driver.recv()
        if steps is None:
            driver.send({name: value.numpy() for name, value in loop.parameters().items()})
        else:
            loop.run(steps)
            driver.send(steps)


def _stacked(models: list[nn.Module]) -> dict[str, Tensor]:
    rows = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([row[name].detach() for row in rows]).cpu() for name in rows[0]}


def _wait(work: Work) -> None:
    if work.job.device.type == "cuda":
        torch.cuda.synchronize(work.job.device)


def _jax(work: Work, together: bool) -> Contestant:
    from jax_steps import Jax  # brings threads of its own, so not before others have forked

    return Jax(work, together)


CONTESTANTS: dict[str, Callable[[Work], Contestant]] = {
    "sequential": lambda work: KinfoldEngine("sequential", work),
    "vectorised": lambda work: KinfoldEngine("vectorised", work),
    "workers": lambda work: KinfoldEngine("workers", work),
    "auto": lambda work: KinfoldEngine("auto", work),
    "loop": Loop,
    "processes": Processes,
    "jax": lambda work: _jax(work, together=True),
    "jax-loop": lambda work: _jax(work, together=False),
}
"""Everyone who can take part; the limit, which trains nothing, is measured beside them."""

PEERS = ("loop", "processes", "jax", "jax-loop")
ENGINES = ("sequential", "vectorised", "workers")
