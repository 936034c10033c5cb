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
from torch import Tensor, nn

from kinfold.engines.base import Engine, Job
from kinfold.engines.local import LocalEngine, start_stack
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
        self._shares = divided(job.tasks, most)
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
    def _models_here(self, best: bool) -> AbstractContextManager[None]:
        """Within, `whole` has the models and the methods' states, and what it does to them, it does to the shares'.

        It also has the best snapshots, if `best`.
        """

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

    def notes(self) -> list[str]:
        return self._whole.notes()

    def visits(self) -> int:
        return self._visits

    # -- what moves between tasks, and what the shares must hear of ----------------------------------------------------

    def apply(self, plan: Plan, period: int) -> Outcome:
        proposes = bool(plan.touched(self._job.tasks).any())
        moves = proposes and (plan.moments != "keep" or any(isinstance(change, Restart) for change in plan.changes))
        tunes = any(isinstance(change, Tune) for change in plan.changes)
        returns = any(isinstance(change, Restart) and change.best for change in plan.changes)
        with (
            self._all_or_none(),
            self._models_here(best=returns) if proposes else nullcontext(),
            self._optimizers_here() if moves or tunes else nullcontext(),
        ):
            outcome = self._whole.apply(plan, period)
        if any(isinstance(change, Teach) for change in plan.changes):
            self._teach()
        return outcome

    def _teach(self) -> None:
        lesson = self._whole.lesson
        assert lesson is not None
        lessons = [lesson_of(lesson, tasks) for tasks in self._shares]
        self._tell(
            _learn, [(own.targets, own.weight, own.teachers, own.unlabelled, own.temperature) for own in lessons]
        )

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
        return dataclasses.replace(job_of(self._job, tasks), inputs=self._whole.inputs)


def job_of(job: Job, tasks: slice) -> Job:
    """Returns the job of some of the tasks."""
    return dataclasses.replace(
        job,
        train=job.train[tasks],
        validation=job.validation[tasks],
        optimizer=job.optimizer if callable(job.optimizer) else job.optimizer[tasks],
    )


def start_share(kind: type[LocalEngine], job: Job, tasks: slice) -> LocalEngine:
    """Returns an engine for some of a job's tasks, which start as they do among all of them."""
    own = job_of(job, tasks)
    apart = job.tasks > 1 and not isinstance(job.model, nn.Module) and not job.shared_start
    return kind(own, start_stack(own, first=tasks.start, apart=apart), tasks.start)


def divided(tasks: int, most: int) -> list[slice]:
    """Returns the shares of so many tasks: neighbours, as many in each as in any other, or one more.

    Example:
        >>> divided(5, 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    count = min(tasks, most)
    ends = [round(i * tasks / count) for i in range(count + 1)]
    return [slice(first, end) for first, end in itertools.pairwise(ends)]


def named(tasks: slice) -> str:
    """Returns a share's tasks in words.

    Example:
        >>> named(slice(0, 4))
        'tasks 0 to 3'
    """
    last = tasks.stop - 1
    return f"task {last}" if last == tasks.start else f"tasks {tasks.start} to {last}"


# -- what a share's engine is told, wherever it is ---------------------------------------------------------------------


def _learn(
    engine: LocalEngine,
    targets: Float[Tensor, "k N C"],
    weight: Float[Tensor, "k *N"],
    teachers: Bool[Tensor, "k T"],
    unlabelled: Bool[Tensor, "k N"],
    temperature: float,
) -> None:
    engine.learn(Teach(targets, weight, teachers, unlabelled, temperature))


def lesson_of(lesson: Teach, tasks: slice) -> Teach:
    """Returns what a lesson is for some neighbouring tasks; of those who teach them, it names all."""
    fields = ("targets", "weight", "teachers", "unlabelled")
    return dataclasses.replace(lesson, **{name: getattr(lesson, name)[tasks] for name in fields})


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


def joined_options(parts: Sequence[dict[str, Float[Tensor, " _"]]]) -> dict[str, Float[Tensor, " T"]]:
    """Returns the options that the optimizers of all shares have: those of tasks may be of different kinds."""
    names = [name for name in parts[0] if all(name in own for own in parts)]
    return {name: torch.cat([own[name] for own in parts]) for name in names}


def share_of(tensors: dict[str, Tensor], values: list[dict[str, Any]], tasks: slice) -> OptimizerState:
    """Returns those of some tasks, under their numbers among these."""
    mine = {f"{t}" for t in range(tasks.start, tasks.stop)}
    own = {_renumbered(key, -tasks.start): v for key, v in tensors.items() if key.partition("/")[0] in mine}
    return own, values[tasks]


def _renumbered(key: str, by: int) -> str:
    task, _, rest = key.partition("/")
    return f"{int(task) + by}/{rest}"


# -- whole states of some tasks and of all -----------------------------------------------------------------------------

EngineState: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""What `LocalEngine.state` returns: (tensors keyed `part/name`, JSON values)."""


def state_of_tasks(tensors: dict[str, Tensor], values: dict[str, Any], tasks: slice) -> EngineState:
    """Returns the state of an engine of some neighbouring tasks, from that of an engine of all.

    Rows visited are counted to the first tasks, so that `joined_states` has them once.
    """
    optimizers, others = share_of(_part(tensors, "optimizer"), values["optimizers"], tasks)
    own = {
        key: value if key.startswith("centre/") else value[tasks]
        for key, value in tensors.items()
        if not key.startswith("optimizer/")
    }
    own |= {f"optimizer/{key}": value for key, value in optimizers.items()}
    fewer = values.get("together", [None] * tasks.stop)[tasks]  # older checkpoints do not say
    visits = 0 if tasks.start else values["visits"]
    return own, {**values, "optimizers": others, "visits": visits, "together": fewer}


def joined_states(parts: Sequence[EngineState], shares: Sequence[slice]) -> EngineState:
    """Returns the state of an engine of all tasks, from those of engines of shares of them, in order."""
    optimizers, others = joined(
        [(_part(tensors, "optimizer"), values["optimizers"]) for tensors, values in parts], shares
    )
    first, values = parts[0]
    tensors = {
        key: value if key.startswith("centre/") else torch.cat([own[key] for own, _ in parts])
        for key, value in first.items()
        if not key.startswith("optimizer/")
    }
    tensors |= {f"optimizer/{key}": value for key, value in optimizers.items()}
    values = {**values, "optimizers": others, "visits": sum(own["visits"] for _, own in parts)}
    values["together"] = [count for _, own in parts for count in own["together"]]
    for verdict in ("recordable", "lookable", "jointly_lookable"):
        values[verdict] = all(own[verdict] for _, own in parts)
    return tensors, values


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == part}
