"""What an experiment tracker is: told of every event of a run, and of its result.

A tracker is a configuration, which `config.yaml` can hold; starting it on a run gives a session. After its start, a
session is used by one thread of its own, so that a slow server does not hold up training, and one that is gone does not
end it (see `kinfold.tracking.telling`).

A run with T tasks is one experiment, with T tasks in it, and not T unrelated runs.
"""

import abc
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from kinfold.errors import InputError

Event: TypeAlias = Mapping[str, Any]
Status: TypeAlias = Literal["finished", "failed", "interrupted"]


class Point(NamedTuple):
    """One point of a curve. Of a task, name and period there is never more than one in a run.

    Attributes:
        task: its number, or None for a figure of the whole run.
        name: the curve's, such as `validation/accuracy`: letters, digits and `_-./` and spaces.
        period: where on the axis.
        value: finite.
    """

    task: int | None
    name: str
    period: int
    value: float


@dataclass(frozen=True)
class Told:
    """What a session is told of.

    Attributes:
        event: as in `history.jsonl` (docs/contracts.md), or one that is not kept there: `system`, with the figures of
            the machine at the end of a period.
        seconds: when, in Unix time.
        points: its numbers as points of curves; they may belong to an earlier period.
    """

    event: Event
    seconds: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class TrackedRun:
    """What a session is started on.

    Attributes:
        name: the run's, for people.
        folder: the run directory, which may not be there yet; None where nothing is written.
        config: the complete configuration, as in `config.yaml`.
        tasks: T.
        score: the name of the run's curves of scores, such as `validation/accuracy`.
        kept: what the session of this run said of itself before it was interrupted (see `Session.identity`), or None.
            It is then told of everything from the start, and leaves out what it has already.
    """

    name: str
    folder: Path | None
    config: Mapping[str, Any]
    tasks: int
    score: str
    kept: Mapping[str, Any] | None


class Move(NamedTuple):
    """How often a task was offered another's knowledge, and how often it took it."""

    recipient: int
    donor: int
    proposed: int
    accepted: int


@dataclass(frozen=True)
class Ending:
    """A run's result.

    Attributes:
        result: what `result.json` holds.
        values: figures of the run by name: the estimate with its interval, the selection score, the cost.
        task_values: [T] figures of each task's best model.
        moves: the transfers by pair.
        period: the last one, a student's included.
        files: of the run directory, the model's among them; none holds a row of the data.
    """

    result: Mapping[str, Any]
    values: Mapping[str, float]
    task_values: tuple[Mapping[str, float], ...]
    moves: tuple[Move, ...]
    period: int
    files: tuple[Path, ...]


class Session(abc.ABC):
    """A tracker at work on one run. It may raise anything: it is then told nothing more."""

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """Where to look, in a few words."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns JSON values by which a resumed run finds what it has been tracked as; asked after every `tell`."""

    @abc.abstractmethod
    def tell(self, told: Sequence[Told]) -> None:
        """Passes on what has happened since the last call, in order; at least one thing."""

    @abc.abstractmethod
    def end(self, ending: Ending) -> None:
        """Passes on the result."""

    @abc.abstractmethod
    def close(self, status: Status) -> None:
        """Ends the session, in whatever state it is."""


class Tracker(abc.ABC):
    """How a run is tracked. A subclass is a frozen dataclass of its options.

    Attributes:
        name: as in `kinfold.tracking.TRACKERS`, or its own; it names a file.
        elsewhere: whether what it is told leaves the run directory, where its options do not say otherwise.
    """

    name: str
    elsewhere: ClassVar[bool] = True

    @abc.abstractmethod
    def check(self, folder: Path | None) -> None:
        """Raises InputError where it cannot be used, at little cost.

        Args:
            folder: the run directory, or None where nothing is written.
        """

    @abc.abstractmethod
    def start(self, run: TrackedRun) -> Session:
        """Begins to track a run, or goes on with it. An error ends the run before it has begun."""


def check_installed(tracker: str, *packages: str) -> None:
    """Raises InputError where a package is not installed that a tracker needs.

    Example:
        >>> check_installed("tensorboard", "no_such_package")
        Traceback (most recent call last):
        kinfold.errors.InputError: tracking: tensorboard needs no_such_package; pip install 'kinfold[tracking]'.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"tracking: {tracker} needs {package}; pip install 'kinfold[tracking]'.")


def task_name(task: int, tasks: int) -> str:
    """Returns a task's name, with zeros before the number so that names sort.

    Example:
        >>> task_name(3, 16)
        'task-03'
    """
    return f"task-{task:0{len(str(tasks - 1))}}"
