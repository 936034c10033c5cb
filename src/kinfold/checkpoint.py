"""Checkpoints: one safetensors file a period, whole or absent; the last few are kept.

A checkpoint is copied when it is asked for, and serialised, flushed to the disk and renamed into place beside what
goes on meanwhile. One is written at a time. Where periods are short, not every one is worth a checkpoint: see `due`.
It has a checksum, and one that was damaged later is passed over for the one before.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, final

from torch import Tensor

from kinfold import disk
from kinfold.errors import InputError, RunError
from kinfold.files import own_copies, read_tensors, sync, write_own_tensors

_REST = 20
"""How many times as long as writing a checkpoint took no further one is due."""


@final
class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run. Leaving its context waits until what was handed over is written.

    Args:
        folder: where they lie.
        log: a file that is appended to meanwhile, or None. What was in it when a checkpoint was asked for is on the
            disk before that is: a run never goes on from behind the end of its log.
        keep: how many of the latest stay.

    Raises:
        RunError: on leaving the context without another error, and by `due` and `save`: the last checkpoint could
            not be written.
    """

    def __init__(self, folder: Path, log: Path | None = None, keep: int = 2):
        self._folder, self._log, self._keep = folder, log, keep
        self._writer: threading.Thread | None = None
        self._failed: RunError | None = None
        self._began, self._seconds = -math.inf, 0.0

    def due(self) -> bool:
        """Returns whether it is time for another checkpoint.

        It is, unless the last one is still being written, or began less than 20 times as long ago as writing it took.
        So writing takes no more than a twentieth of one processor's time, and a kill costs no more than that many
        times what a checkpoint does.
        """
        if self._writer is not None and self._writer.is_alive():
            return False
        self.wait()
        return time.perf_counter() - self._began >= _REST * self._seconds

    def save(self, period: int, tensors: dict[str, Tensor], values: Any) -> None:
        """Writes the state after `period`, beside what goes on; then removes what is older than the `keep` latest.

        Tensors are copied before it returns; `values` must not be changed afterwards. Where the last checkpoint is
        still being written, it waits for that.
        """
        self.wait()
        self._began = time.perf_counter()
        copies = own_copies(tensors)
        # A thread for each, and none that idles; what is forked beside it writes nothing, and leaves its files alone.
        writer = threading.Thread(target=self._write, args=(period, copies, values), name="checkpoint")
        try:
            writer.start()
        except RuntimeError as error:
            raise RunError(
                f"checkpoint: no thread can be started to write it ({error}); end other programs."
            ) from error
        self._writer = writer

    def latest(self, tell: Callable[[str], None] = lambda message: None) -> tuple[dict[str, Tensor], Any] | None:
        """Returns (tensors, values) of the latest checkpoint that can be read, or None where there is none.

        Args:
            tell: is told of each later one that was damaged, in a line for the user.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        problems: list[InputError] = []
        for path in reversed(self._all()):
            try:
                found = read_tensors(path)
            except InputError as error:
                problems.append(error)
                continue
            for problem in problems:
                tell(f"checkpoint: {problem} The one before it is used, {path.name}.")
            return found
        if problems:
            raise InputError(
                f"checkpoint: {problems[0]} None before it can be read either; start again, in another out."
            )
        return None

    def clear(self) -> None:
        """Removes them all."""
        for path in self._all():
            disk.remove(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except RunError:
            if kind is None:  # else the run has ended by what came first
                raise

    def _write(self, period: int, tensors: dict[str, Tensor], values: Any) -> None:
        path = self._folder / f"period-{period:06d}.safetensors"
        try:
            if self._log is not None:
                sync(self._log)
            write_own_tensors(path, tensors, values)
            before = [other for other in self._all() if other < path]
            later = [other for other in self._all() if other > path]  # damaged ones, which the run went on from behind
            for old in [*before[: max(0, len(before) + 1 - self._keep)], *later]:
                disk.remove(old)
        except Exception as error:  # a thread that raises is heard of by nobody
            why = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())
            self._failed = RunError(f"checkpoint: {path} cannot be written ({why}); make room, and resume the run.")
            self._failed.__cause__ = error
        self._seconds = time.perf_counter() - self._began

    def wait(self) -> None:
        """Waits until what was handed over is written.

        Raises:
            RunError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("period-*.safetensors"))
