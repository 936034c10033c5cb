"""Tells trackers of a run, each in a thread of its own, and lets none of them end it."""

import contextlib
import dataclasses
import logging
import math
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, final

from kinfold import files
from kinfold.errors import InputError
from kinfold.importing import one_line, require
from kinfold.result import Result
from kinfold.tracking.base import Ending, Session, Status, Told, TrackedRun, Tracker
from kinfold.tracking.points import Curves, clean_name, ending_of
from kinfold.tracking.system import SystemFigures

Event: TypeAlias = dict[str, Any]

_LOG = logging.getLogger("kinfold")

_PATIENCE = 10.0
"""Seconds that a run which has failed, or was interrupted, waits for a tracker to hear of it."""

_REST, _LONGEST_REST = 20, 30.0
"""How many times as long as telling it took a session rests, and for how many seconds at most: so tracking takes a
twentieth of one processor's time, and what has gathered meanwhile is told at once."""

_SYSTEM_EVERY = 1.0
"""Seconds at least between two looks at the machine."""


@final
class Tracking(contextlib.AbstractContextManager["Tracking"]):
    """The trackers of one run. Leaving its context closes them, with the status that the way out gives.

    Args:
        trackers: what to start, each by a name of its own.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)
        self._lines: list[_Line] = []
        self._curves = Curves(0, "")
        self._system: SystemFigures | None = None
        self._looked = -math.inf

    def start(self, *, name: str, folder: Path | None, config: Mapping[str, Any], tasks: int, metric: str) -> None:
        """Starts every tracker, or has it go on where the run directory says that it was at work on the run.

        Args:
            name: the run's.
            folder: the run directory, or None.
            config: the complete configuration.
            tasks: T.
            metric: the name of the score.

        Raises:
            InputError: one of them cannot be started.
        """
        score = clean_name(f"validation/{metric}")
        self._system = SystemFigures() if self._trackers else None
        self._curves = Curves(tasks, score)
        existed = folder is None or (folder.exists() and bool(files.entries(folder)))
        try:
            for tracker in self._trackers:
                self._lines.append(_started(tracker, TrackedRun(name, folder, config, tasks, score, None)))
        except BaseException:
            self._close("failed")
            if folder is not None and not existed:  # what is in it now is what trackers have begun there
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def notes(self) -> list[Event]:
        """Returns what to tell the user: where a tracker that has just started can be looked at, or that one failed."""
        return [note for line in self._lines for note in line.notes()]

    def __call__(self, event: Event, again: bool = False) -> None:
        """Tells every tracker of an event.

        Args:
            event: as in `history.jsonl`.
            again: whether it is one of those that a resumed run begins with.
        """
        if not self._lines:
            return
        self._tell(event)
        now = time.monotonic()
        if (
            self._system is not None
            and event["event"] == "period"
            and not again
            and now - self._looked >= _SYSTEM_EVERY
        ):
            self._looked = now
            self._tell({"event": "system", "period": event["period"], **self._system()})

    def end(self, result: Result, folder: Path | None) -> list[Event]:
        """Tells every tracker of the result, waits until they have taken it in, and closes them; returns `notes`.

        Args:
            result: of the run.
            folder: the run directory, just completed, whose files trackers may take; or None, for a copy of them.
        """
        if not self._lines:
            return []
        with contextlib.ExitStack() as stack:
            if folder is None:  # trackers take files
                folder = result.save(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run")
            rest = self._rest()
            ending = ending_of(result.to_json(), self._curves, folder)
            for line in self._lines:
                line.put(rest)
                line.put(_End("finished", ending))
            for line in self._lines:
                line.wait(None)
        return self.notes()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close("interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else "failed")
        for note in self.notes():
            if note.get("severity") == "warning":
                _LOG.warning("%s", note["message"])

    def _rest(self) -> Told:
        return Told({"event": "end"}, time.time(), self._curves.rest())

    def _close(self, status: Status) -> None:
        rest = self._rest()
        for line in self._lines:
            if rest.points:
                line.put(rest)
            line.put(_End(status, None))
        until = time.monotonic() + _PATIENCE
        for line in self._lines:
            line.wait(max(0.0, until - time.monotonic()))

    def _tell(self, event: Event) -> None:
        told = Told(event, time.time(), self._curves.points(event))
        for line in self._lines:
            line.put(told)


def _started(tracker: Tracker, run: TrackedRun) -> "_Line":
    """Starts a tracker on a run, or has it go on with what it was at work on."""
    mark = _mark(run.folder, tracker)
    kept = files.read_json(mark) if mark is not None and mark.exists() else None
    if kept is not None and tracker.elsewhere:
        require(False, str(mark), "tracking", f"says which run of {tracker.name} to go on with")
    try:
        session = tracker.start(dataclasses.replace(run, kept=kept))
    except InputError:
        raise
    except Exception as error:  # of whatever kind its package has for a server that does not answer
        raise InputError(
            f"tracking: {tracker.name} cannot be started ({one_line(error)}); mend that, or leave it out."
        ) from error
    return _Line(tracker.name, session, mark, fresh=kept is None)


def unended(trackers: Sequence[Tracker], folder: Path) -> tuple[Tracker, ...]:
    """Returns those trackers that were at work on the run in a folder, and have not heard of its end."""
    marks = [(tracker, mark) for tracker in trackers if (mark := _mark(folder, tracker)) is not None and mark.exists()]
    return tuple(tracker for tracker, mark in marks if not files.read_json(mark).get("ended", False))


def _mark(folder: Path | None, tracker: Tracker) -> Path | None:
    """The file by which a resumed run finds what it has been tracked as."""
    return None if folder is None else folder / "tracking" / f"{tracker.name}.json"


@dataclass(frozen=True)
class _End:
    """The last thing that a session is told."""

    status: Status
    ending: Ending | None


@final
class _Line:
    """One session, and the thread that has it: what has gathered since the last call is told at once.

    Args:
        name: the tracker's.
        session: just started.
        mark: where its identity is kept, or None.
        fresh: whether the session is the run's first.
    """

    def __init__(self, name: str, session: Session, mark: Path | None, fresh: bool):
        self._name, self._session, self._mark = name, session, mark
        self._identity: dict[str, Any] = {}
        self._queue: queue.SimpleQueue[Told | _End] = queue.SimpleQueue()
        self._notes: queue.SimpleQueue[Event] = queue.SimpleQueue()
        if fresh:
            self._notes.put({"event": "note", "message": f"tracking: {name}: {session.where}"})
        self._failed = self._closing = False
        self._rested = -math.inf
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def put(self, told: Told | _End) -> None:
        """Has the session told, if it still hears anything."""
        if not (self._failed or self._closing):
            self._closing = isinstance(told, _End)
            self._queue.put(told)

    def wait(self, seconds: float | None) -> None:
        """Waits until the session is closed, so many seconds at most; None for as long as it takes."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail("does not answer")

    def notes(self) -> list[Event]:
        """Returns what to tell the user since the last call."""
        return [self._notes.get() for _ in range(self._notes.qsize())]

    def _work(self) -> None:
        try:
            while not self._hear():
                pass
        except Exception as error:  # whatever a disk or a server does to a tracker's package
            self._fail(one_line(error))
            with contextlib.suppress(Exception):
                self._session.close("failed")

    def _hear(self) -> bool:
        """Waits for something to tell, and tells it; returns whether it was the last."""
        heard = self._gathered()
        end = heard[-1]
        told = [one for one in heard if isinstance(one, Told)]
        if told:
            began = time.monotonic()
            if not self._identity:  # one that fails now is caught up with later
                self._remember({})
            self._session.tell(told)
            self._remember({})
            now = time.monotonic()
            self._rested = now + min(_REST * (now - began), _LONGEST_REST)
        if not isinstance(end, _End):
            return False
        if end.ending is not None:
            self._session.end(end.ending)
        self._session.close(end.status)
        if self._identity:  # else it has not been told of anything, and there may be no run directory
            self._remember({"ended": end.ending is not None})
        return True

    def _gathered(self) -> list[Told | _End]:
        """What there is to tell when the session has rested: at least one thing, and nothing after an end."""
        heard = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while not isinstance(heard[-1], _End):
                heard.append(self._queue.get(timeout=max(0.0, self._rested - time.monotonic())))
        return heard

    def _remember(self, also: Mapping[str, Any]) -> None:
        identity = {**self._session.identity(), **also}
        if self._mark is not None and identity != self._identity:
            files.write_json(self._mark, identity)
            self._identity = identity

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            message = f"tracking: {self._name} failed ({why}); it is told nothing more, and the run goes on without it."
            self._notes.put({"event": "note", "severity": "warning", "message": message})
