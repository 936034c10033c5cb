"""What engines have in common that share out the tasks: each share trains in an engine of its own.

Beside these there is one that holds all T tasks and never trains: it carries out plans, since what moves between tasks
may move between shares. What the optimizers remember is the shares' own, and is fetched where a plan moves it or a
checkpoint is made.

Legend: T tasks, k those of one share, m rows asked for, C classes or outputs.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.engines.base import Engine, Job
from kinfold.engines.local import LocalEngine
from kinfold.errors import RunError
from kinfold.tasks.order import Segment
from kinfold.transfer.base import Outcome, Plan
from kinfold.transfer.changes import Restart, Teach, Tune

OptimizerState: TypeAlias = tuple[dict[str, Tensor], list[dict[str, Any]]]
"""What `Updater.state` returns: (tensors keyed `task/parameter/slot`, JSON values of each task)."""


class Sharing(Engine, abc.ABC):
    """Shares of neighbouring tasks. A subclass says where their engines are, and how they are reached.

    Args:
        job: what to train.
        kind: the engine of a share.
        whole: an engine for all of the job's tasks.
        most: shares there may be; never more than T.
    """

    def __init__(self, job: Job, kind: type[LocalEngine], whole: LocalEngine, most: int):
        self._job, self._kind, self._whole = job, kind, whole
        count = min(job.tasks, most)
        ends = [round(i * job.tasks / count) for i in range(count + 1)]
        self._shares = [slice(first, end) for first, end in itertools.pairwise(ends)]
        self._visits = 0
        self._closed = False

    # -- what a subclass decides --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _tell(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a function with each share's engine and arguments of its own; of engines there are so far."""

    @abc.abstractmethod
    def _on_shares(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns what a function of an engine gives for each share of the tasks."""

    @abc.abstractmethod
    def _trained(self, segment: Segment) -> list[tuple[Float[Tensor, " k"], int]]:
        """Trains all shares; returns each one's (mean losses, rows visited)."""

    @abc.abstractmethod
    def _scored(self) -> list[Float[Tensor, "k 2"]]:
        """Returns the scores of each share's tasks."""

    @abc.abstractmethod
    def _models_here(self) -> AbstractContextManager[None]:
        """Within, `whole` has the models and the methods' states, and what it does to them, it does to the shares'."""

    @abc.abstractmethod
    def _fetch(self) -> None:
        """Brings the optimizers' state to `whole`."""

    @abc.abstractmethod
    def _hand_over(self) -> None:
        """Brings it back, and leaves none there: twice is once too often."""

    # -- what shares do ------------------------------------------------------------------------------------------------

    def train(self, segment: Segment) -> Float[Tensor, " T"]:
        if self._closed:
            raise RunError("engine: it has been closed, and cannot train any more; start another.")
        losses, visits = zip(*self._trained(segment), strict=True)
        self._visits += sum(visits)
        return torch.cat(losses)

    def score(self) -> Float[Tensor, "T 2"]:
        return torch.cat(self._scored())

    def predict(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m C"]:
        return torch.cat(self._on_shares(LocalEngine.predict, rows, best))

    def losses(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m"]:
        return torch.cat(self._on_shares(LocalEngine.losses, rows, best))

    def visits(self) -> int:
        return self._visits

    # -- what moves between tasks, and what the shares must hear of ----------------------------------------------------

    def apply(self, plan: Plan, period: int) -> Outcome:
        proposes = bool(plan.touched(self._job.tasks).any())
        moves = proposes and (plan.moments != "keep" or any(isinstance(change, Restart) for change in plan.changes))
        tunes = any(isinstance(change, Tune) for change in plan.changes)
        with (
            self._all_or_none(),
            self._models_here() if proposes else nullcontext(),
            self._optimizers_here() if moves or tunes else nullcontext(),
        ):
            outcome = self._whole.apply(plan, period)
        if any(isinstance(change, Teach) for change in plan.changes):
            self._teach()
        return outcome

    def _teach(self) -> None:
        lesson = self._whole.lesson
        assert lesson is not None
        own = [(lesson.targets[t], lesson.weight[t], lesson.unlabelled[t], lesson.temperature) for t in self._shares]
        self._tell(_learn, own)

    @contextmanager
    def _optimizers_here(self) -> Iterator[None]:
        """The optimizers' state is here within."""
        self._fetch()
        yield
        self._hand_over()

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """If one fails, the tasks are no longer all at the same point, and none can go on."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _job_of(self, tasks: slice) -> Job:
        """The job of one share; its rows are those that the whole has brought to the device already."""
        job = self._job
        return dataclasses.replace(
            job,
            inputs=self._whole.inputs,
            train=job.train[tasks],
            validation=job.validation[tasks],
            optimizer=job.optimizer if callable(job.optimizer) else job.optimizer[tasks],
        )


# -- what a share's engine is told, wherever it is ---------------------------------------------------------------------


def _learn(
    engine: LocalEngine,
    targets: Float[Tensor, "k N C"],
    weight: Float[Tensor, "k *N"],
    unlabelled: Bool[Tensor, "k N"],
    temperature: float,
) -> None:
    teachers = torch.zeros(len(targets), len(targets), dtype=torch.bool)  # they matter to the ledger alone
    engine.apply(Plan((Teach(targets, weight, teachers, unlabelled, temperature),)), period=0)


def optimizers_of(engine: LocalEngine) -> OptimizerState:
    """Returns what the optimizers of a share's tasks remember."""
    return engine.updater.state()


def take_optimizers(engine: LocalEngine, tensors: dict[str, Tensor], values: list[dict[str, Any]]) -> None:
    """Puts back what `optimizers_of` returned."""
    engine.updater.restore(tensors, values)


# -- optimizers of some tasks and of all -------------------------------------------------------------------------------


def joined(parts: Sequence[OptimizerState], shares: Sequence[slice]) -> OptimizerState:
    """Returns the optimizers of all shares, under the tasks' numbers among all."""
    tensors = {
        _renumbered(key, tasks.start): value
        for (own, _), tasks in zip(parts, shares, strict=True)
        for key, value in own.items()
    }
    return tensors, [value for _, values in parts for value in values]


def share_of(tensors: dict[str, Tensor], values: list[dict[str, Any]], tasks: slice) -> OptimizerState:
    """Returns those of some tasks, under their numbers among these."""
    mine = {f"{t}" for t in range(tasks.start, tasks.stop)}
    own = {_renumbered(key, -tasks.start): v for key, v in tensors.items() if key.partition("/")[0] in mine}
    return own, values[tasks]


def _renumbered(key: str, by: int) -> str:
    task, _, rest = key.partition("/")
    return f"{int(task) + by}/{rest}"
