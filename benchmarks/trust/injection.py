"""Stops a run at a chosen call to the disk, or lets that call fail; looks at what is left, and goes on with the run.

The seam is `kinfold.disk`, through which all that a run writes goes. A fault strikes at one call of it, known by what
is called, on which file, for the how manyeth time. It is of one of these kinds:

- `dies`: the process ends there, nothing after it reaches the disk (an exception that nothing catches stands for that);
- `killed`: likewise, in a process of its own, by SIGKILL;
- `short write`: half of what was to be written is, then the process ends;
- `power cut`: the process ends, and of what was not flushed, each write, name and removal is lost or not, as drawn;
- `disk full`, `no permission`, `read-only`: from there on calls fail so, until the run has ended;
- `input/output error`: this one call does.
"""

import errno
import os
import random
import shutil
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from kill_and_resume import differences, untimed

import kinfold
from kinfold import disk
from kinfold.checkpoint import Checkpoints
from kinfold.comparing import compare
from kinfold.errors import InputError, RunError
from kinfold.files import SUMS, check_sums, read_json, read_json_lines, read_tensors, read_yaml
from kinfold.locking import LOCK

CALLS = ("make_folder", "open_new", "open_end", "write", "sync", "rename", "remove")
"""Those of `kinfold.disk` that a fault may strike."""

_OPENING = ("open_new", "open_end", "open_folder")
_CHANGING = ("make_folder", "open_new", "open_end", "rename", "remove")

ENDS: Mapping[str, tuple[str, ...]] = {
    "dies": CALLS,
    "killed": CALLS,
    "short write": ("write",),
    "power cut": CALLS,
}
"""Kinds of fault that end the process, and the calls that they strike."""

FAILS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "disk full": (errno.ENOSPC, ("make_folder", "open_new", "write", "rename")),
    "no permission": (errno.EACCES, _CHANGING),
    "read-only": (errno.EROFS, (*_CHANGING, "write")),
    "input/output error": (errno.EIO, ("write", "sync", "rename")),
}
"""Kinds of fault that a call fails by, with the error number, and the calls that they strike."""

KINDS: Mapping[str, tuple[str, ...]] = {**ENDS, **{kind: calls for kind, (_, calls) in FAILS.items()}}
"""Every kind of fault, and the calls that it strikes."""


class DiedError(BaseException):
    """Stands for the end of the process: nothing catches it."""


@dataclass(frozen=True)
class Call:
    """One call to the disk.

    Attributes:
        name: of the function of `kinfold.disk`.
        path: what it is about, from the run directory, without numbers of processes.
        nth: for the how manyeth time.
    """

    name: str
    path: str
    nth: int


@dataclass(frozen=True)
class Fault:
    """What happens at a call."""

    kind: str
    call: Call


class Disk:
    """Stands between a run and the disk: notes every call, and lets a fault strike.

    Args:
        folder: the run directory.
        fault: what is to happen, or None.
        seed: of what a power cut takes.

    Attributes:
        calls: all so far, within the folder.
        struck: whether the fault has.
    """

    def __init__(self, folder: Path, fault: Fault | None = None, seed: int = 0):
        self._folder, self._fault, self._seed = folder, fault, seed
        self.calls: list[Call] = []
        self.struck = False
        self._dead = False
        self._counts: Counter[tuple[str, str]] = Counter()
        self._opened: dict[int, Path] = {}
        self._flushed: dict[Path, int] = {}  # how much of each file would survive a power cut
        self._unsettled: list[tuple[Path, Callable[[], None]]] = []  # folders not flushed since, and how to undo
        self._one_at_a_time = threading.RLock()  # the checkpoint's thread calls, too

    @contextmanager
    def between(self) -> Iterator["Disk"]:
        """Puts it in between."""
        names = (*CALLS, "open_folder")
        real = {name: getattr(disk, name) for name in names}
        hook = threading.excepthook
        threading.excepthook = lambda said: None if said.exc_type is DiedError else hook(said)
        for name in names:
            setattr(disk, name, partial(self._call, name, real[name]))
        try:
            yield self
        finally:
            for name in names:
                setattr(disk, name, real[name])
            threading.excepthook = hook

    def _call(self, name: str, real: Callable[..., Any], *given: Any) -> Any:
        with self._one_at_a_time:
            if self._dead:
                raise DiedError
            path = self._opened[given[0]] if isinstance(given[0], int) else given[-1]
            if name != "open_folder" and (path == self._folder or self._folder in path.parents):
                self._strike(self._noted(name, path), real, *given)
            undo = self._undo(name, path, *given)
            # What flushing is good for is told by `_lose`; here it would only take its time.
            result = None if name == "sync" else real(*given)
            self._after(name, path, result, undo, *given)
            return result

    def _noted(self, name: str, path: Path) -> Call:
        about = str(path.relative_to(self._folder)).replace(f".{os.getpid()}.", ".PID.")
        self._counts[name, about] += 1
        self.calls.append(Call(name, about, self._counts[name, about]))
        return self.calls[-1]

    def _strike(self, call: Call, real: Callable[..., Any], *given: Any) -> None:
        fault = self._fault
        if fault is None or not (self.struck or call == fault.call):
            return
        first, self.struck = not self.struck, True
        if fault.kind in ENDS:
            if fault.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "short write":
                real(given[0], given[1][: len(given[1]) // 2])
            if fault.kind == "power cut":
                self._lose(random.Random(f"{call} {self._seed}"))
            self._dead = True
            raise DiedError
        number, calls = FAILS[fault.kind]
        if call.name in calls and (first or fault.kind != "input/output error"):
            if call.name == "write":
                real(given[0], given[1][: len(given[1]) // 2])
            raise OSError(number, os.strerror(number), str(self._folder / call.path))

    def _undo(self, name: str, path: Path, *given: Any) -> Callable[[], None]:
        """How the disk is as before a call that is about to be made."""
        if name == "make_folder":
            return partial(shutil.rmtree, path, ignore_errors=True)
        if name in ("open_new", "open_end", "rename", "remove"):
            before = path.read_bytes() if path.exists() else None
            half = given[0].read_bytes() if name == "rename" else None

            def undo() -> None:
                path.unlink(missing_ok=True)
                if before is not None and path.parent.is_dir():
                    path.write_bytes(before)
                if half is not None and path.parent.is_dir():
                    given[0].write_bytes(half)

            return undo
        return lambda: None

    def _after(self, name: str, path: Path, result: Any, undo: Callable[[], None], *given: Any) -> None:
        if name in _OPENING:
            self._opened[result] = path
        if name == "sync":
            if path.is_dir():
                self._unsettled = [(folder, how) for folder, how in self._unsettled if folder != path]
            else:
                self._flushed[path] = path.stat().st_size
        elif name == "open_new":
            self._flushed[path] = 0
            self._unsettled.append((path.parent, undo))
        elif name == "open_end":
            self._flushed.setdefault(path, path.stat().st_size)
        elif name == "rename":
            self._flushed[path] = self._flushed.pop(given[0], 0)
            self._unsettled.append((path.parent, undo))
        elif name in ("make_folder", "remove"):
            self._unsettled.append((path.parent, undo))

    def _lose(self, draws: random.Random) -> None:
        """What a power cut takes: of the calls since their folder was flushed each or none, and ends of files."""
        share = draws.choice((0.5, 1.0))
        for _, undo in reversed(self._unsettled):
            if draws.random() < share:
                undo()
        for path, flushed in self._flushed.items():
            if path.exists() and path.stat().st_size > flushed:
                os.truncate(path, draws.randint(flushed, path.stat().st_size))


@dataclass(frozen=True)
class Subject:
    """Something that writes a directory, and can be resumed.

    Attributes:
        work: does it, with `out` and `resume`.
        differences: what of two directories that it has finished is not the same, bit for bit, but for times.
    """

    work: Callable[..., Any]
    differences: Callable[[Path, Path], list[str]]


def _fit(**options: Any) -> Callable[..., Any]:
    network, small = {"name": "mlp", "hidden": [4]}, {"tasks": 3, "batch_size": 64, "engine": "vectorised"}
    return partial(kinfold.fit, network, "iris", **small, **options, listen=lambda event: None)


def _compare(**options: Any) -> Callable[..., Any]:
    network, small = {"name": "mlp", "hidden": [4]}, {"tasks": 2, "epochs": 2, "batch_size": 64}
    return partial(compare, network, "iris", **small, engine="vectorised", arms=["conventional", "all-rows"], **options)


def _compared(one: Path, other: Path) -> list[str]:
    """As `differences`, for comparisons."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    if names[0] != names[1]:
        return [f"files: {set(names[0]) ^ set(names[1])}"]
    same = [name for name in names[0] if name.endswith((".yaml", ".svg"))]
    found = [name for name in same if (one / name).read_bytes() != (other / name).read_bytes()]
    records = [name for name in names[0] if name.endswith(".json")]
    return found + [name for name in records if untimed(read_json(one / name)) != untimed(read_json(other / name))]


SUBJECTS: Mapping[str, Subject] = {
    "stages and a student": Subject(_fit(transfer="distil", epochs=8), differences),
    "transfers": Subject(_fit(transfer={"name": "teach"}, candidates=["ema", "soup"], epochs=4), differences),
    "comparison": Subject(_compare(seeds=2), _compared),
}
"""What is disturbed."""


_COMPILED: dict[str, Any] = {}


@contextmanager
def hastened() -> Iterator[None]:
    """Has a checkpoint written after every period, however short, and the report's template compiled once.

    Else it would be chance which periods have a checkpoint, and the template would take half the time of such a run.
    """

    def due(checkpoints: Checkpoints) -> bool:
        checkpoints.wait()
        return True

    def compiled(environment: jinja2.Environment, source: str, *given: Any) -> Any:
        if source not in _COMPILED:
            _COMPILED[source] = compile_template(environment, source, *given)
        return _COMPILED[source]

    real, compile_template = Checkpoints.due, jinja2.Environment.compile
    Checkpoints.due, jinja2.Environment.compile = due, compiled  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checkpoints.due, jinja2.Environment.compile = real, compile_template  # type: ignore[method-assign]


def undisturbed(subject: Subject, out: Path) -> list[Call]:
    """Lets it be done in peace, in `out`; returns the calls that it takes."""
    with hastened(), Disk(out).between() as between:
        subject.work(out=out)
    return between.calls


def faults(calls: list[Call], kind: str) -> list[Fault]:
    """Every fault of a kind that may strike these calls."""
    return [Fault(kind, call) for call in calls if call.name in KINDS[kind]]


def problems_after(subject: Subject, whole: Path, out: Path, *struck: Fault) -> list[str]:
    """Lets faults strike one after the other, each but the first on resuming; then goes on in peace.

    Args:
        subject: what is done.
        whole: where it was done undisturbed.
        out: a new directory.
        struck: the faults.

    Returns:
        What is wrong: something is not whole after a fault, an error is not Kinfold's own, or it ends otherwise than
        undisturbed; an empty list where nothing is.
    """
    found: list[str] = []
    with hastened():
        for number, fault in enumerate(struck):
            found += _disturbed(subject, out, fault, resume=number > 0)
            found += [f"after {fault}: {problem}" for problem in unread(out)]
        try:
            with Disk(out).between():
                subject.work(out=out, resume=True)
        except Exception as error:
            return [*found, f"cannot be resumed: {error!r}"]
    return found + [f"ends otherwise: {each}" for each in subject.differences(whole, out)]


def _disturbed(subject: Subject, out: Path, fault: Fault, resume: bool) -> list[str]:
    """Lets one fault strike; returns what is wrong with how the run has ended."""
    if fault.kind == "killed":
        return _killed(subject, out, fault, resume)
    with Disk(out, fault).between() as between:
        try:
            subject.work(out=out, resume=resume)
        except DiedError:
            return [] if fault.kind in ENDS else [f"{fault} has ended the process"]
        except (InputError, RunError) as error:
            return [] if "\n" not in str(error) else [f"{fault} is told of in several lines"]
        except Exception as error:
            return [f"{fault} ends in {error!r}"]
    # On resuming, a call of the first attempt may not come again; and a lock that cannot be removed does no harm.
    return [] if between.struck or resume else [f"{fault} has not come to pass"]


def _killed(subject: Subject, out: Path, fault: Fault, resume: bool) -> list[str]:
    with warnings.catch_warnings():  # the child needs no other thread: it does its work in one of its own, and ends
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with suppress(BaseException), Disk(out, fault).between():
            subject.work(out=out, resume=resume)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return [] if killed or resume else [f"{fault} has not come to pass"]


def unread(folder: Path) -> list[str]:
    """What in a run directory is not whole: neither the old state nor the new one."""
    found = []
    for path in folder.rglob("*") if folder.exists() else ():
        if path.is_dir() or path.name in (LOCK, SUMS) or path.match(".*.part"):
            continue
        try:
            if path.suffix == ".html":
                assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
            elif path.suffix in _READERS:
                _READERS[path.suffix](path)
        except (AssertionError, InputError) as error:
            found.append(f"{path.name} is not whole: {error}")
    if (folder / "result.json").exists():
        try:
            check_sums(folder)
            kinfold.load(folder)
        except InputError as error:
            found.append(f"the finished run is not whole: {error}")
    return found


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".safetensors": read_tensors,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".yaml": read_yaml,
}
