"""TensorBoard: a log directory with the run's own curves, and in it one for each task.

`tensorboard --logdir runs` shows the runs below one another, and a run's tasks as lines of one chart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from kinfold.errors import InputError
from kinfold.tracking.base import Ending, Session, Status, Told, TrackedRun, Tracker, check_installed, task_name
from kinfold.tracking.points import flattened

_SHOWN = ("estimate/value", "estimate/low", "estimate/high", "selected/score")
"""What the table of hyper-parameters has beside them."""


@final
@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Writes event files for TensorBoard.

    Attributes:
        log_dir: where; default `tensorboard` in the run directory.

    Example:
        >>> TensorBoard(log_dir="events")
        TensorBoard(log_dir='events')
    """

    log_dir: str | None = None

    name = "tensorboard"
    elsewhere = False

    def check(self, folder: Path | None) -> None:
        check_installed(self.name, "tensorboard")
        if self.log_dir is None and folder is None:
            raise InputError("tracking: tensorboard has nowhere to write; give out, or its log_dir.")

    def start(self, run: TrackedRun) -> Session:
        self.check(run.folder)
        return _Session(Path(self.log_dir or f"{run.folder}/tensorboard"), run)


@final
class _Session(Session):
    def __init__(self, folder: Path, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        names: dict[int | None, str] = {task: task_name(task, run.tasks) for task in range(run.tasks)}
        names[None] = "."
        self._folder, self._notes = folder, 0
        # What is there already is known from the files themselves: a killed run may have written less, or more, than
        # what it has a checkpoint of.
        resumed = run.kept is not None
        self._last = {task: _last_steps(folder / name) for task, name in names.items()} if resumed else {}
        # Flushed after every call of `tell`; the files' own clock need not do it.
        self._writers = {task: SummaryWriter(str(folder / name), flush_secs=3600) for task, name in names.items()}
        if not self._last.get(None):
            self._describe(run)

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {self._folder}"

    def identity(self) -> dict[str, Any]:
        return {"log_dir": str(self._folder)}

    def tell(self, told: Sequence[Told]) -> None:
        for one in told:
            for point in one.points:
                if point.period > self._last.get(point.task, {}).get(point.name, -1):
                    self._writers[point.task].add_scalar(point.name, point.value, point.period, one.seconds)
            if one.event["event"] in ("note", "finding"):
                self._note(str(one.event["message"]), one.seconds)
        for writer in self._writers.values():
            writer.flush()

    def end(self, ending: Ending) -> None:
        own = self._writers[None]
        for name, value in ending.values.items():
            own.add_scalar(name, value, ending.period)
        for task, values in enumerate(ending.task_values):
            for name, value in values.items():
                self._writers[task].add_scalar(name, value, ending.period)
        if ending.moves:
            lines = ["| recipient | donor | proposed | accepted |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(map(str, move))} |" for move in ending.moves]
            own.add_text("transfers", "\n".join(lines), ending.period)

    def close(self, status: Status) -> None:
        if status == "finished":
            from torch.utils.tensorboard.summary import hparams

            _, _, ended = hparams({}, {})
            self._writers[None].file_writer.add_summary(ended)
        for writer in self._writers.values():
            writer.close()

    def _describe(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard.summary import hparams

        leaves = flattened(run.config)
        own = self._writers[None]
        for summary in hparams(leaves, dict.fromkeys(_SHOWN))[:2]:
            own.file_writer.add_summary(summary)
        lines = ["| key | value |", "|---|---|", *(f"| {name} | {_cell(leaf)} |" for name, leaf in leaves.items())]
        own.add_text("configuration", "\n".join(lines), 0)

    def _note(self, message: str, seconds: float) -> None:
        self._notes += 1
        if self._notes > self._last.get(None, {}).get("notes/text_summary", -1):
            self._writers[None].add_text("notes", message, self._notes, seconds)


def _last_steps(folder: Path) -> dict[str, int]:
    """The last step of every curve that event files hold, and of every text."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    if not folder.is_dir():  # elsewhere than before, or deleted since
        return {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 1, TENSORS: 1})  # of which one, the last
    events.Reload()
    tags = events.Tags()
    found = {tag: events.Scalars(tag) for tag in tags[SCALARS]} | {tag: events.Tensors(tag) for tag in tags[TENSORS]}
    return {tag: each[-1].step for tag, each in found.items() if each}


def _cell(value: object) -> str:
    """A value within a table in Markdown."""
    return str(value).replace("\n", " ").replace("|", "\\|")
