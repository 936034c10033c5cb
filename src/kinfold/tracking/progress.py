"""Progress of a run on the terminal: a line a task, a bar for the whole, findings and notes above them.

`Board` is what is shown, as data; `after` and `render` are pure, and `LiveProgress` puts them on a terminal.
Legend: T tasks.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeAlias, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kinfold.errors import printable as printable

Event: TypeAlias = Mapping[str, Any]
Number: TypeAlias = float | int | None

_NOTHING = "–"


@dataclass(frozen=True)
class Board:
    """Where a run stands, as far as its events have told.

    Attributes:
        epochs: the cap, once it is known.
        period: the last period that ended, 0 before the first.
        seconds: spent training and scoring.
        train_loss: [T] of the last period; None where it was not finite.
        score: [T] on the validation rows after the last period.
        best: [T] the score at which the best snapshot was taken.
        improved: [T] whether that was in the last period.
        proposed: [T] transfers that the task was offered.
        accepted: [T] those that it took.
        student: (epoch, epochs, training loss) of the model that is trained on all rows in the end, or None.
    """

    epochs: int | None = None
    period: int = 0
    seconds: float = 0.0
    train_loss: tuple[Number, ...] = ()
    score: tuple[Number, ...] = ()
    best: tuple[Number, ...] = ()
    improved: tuple[bool, ...] = ()
    proposed: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    student: tuple[int, int, Number] | None = None


def after(board: Board, event: Event) -> Board:
    """Returns the board as it stands after an event of `history.jsonl` (see docs/contracts.md).

    Example:
        >>> event = {"event": "period", "period": 1, "train_loss": [0.9], "metric": [0.5], "improved": [True],
        ...          "epochs": 10, "seconds": 0.1}
        >>> after(Board(), event).best
        (0.5,)
    """
    if event["event"] == "period":
        T = len(event["metric"])
        best = board.best or (None,) * T
        return replace(
            board,
            epochs=event["epochs"],
            period=event["period"],
            seconds=board.seconds + event["seconds"],
            train_loss=tuple(event["train_loss"]),
            score=tuple(event["metric"]),
            best=tuple(
                new if better else old
                for new, old, better in zip(event["metric"], best, event["improved"], strict=True)
            ),
            improved=tuple(event["improved"]),
            proposed=board.proposed or (0,) * T,
            accepted=board.accepted or (0,) * T,
        )
    if event["event"] == "transfer":
        proposed, accepted = list(board.proposed), list(board.accepted)
        for move in event["transfers"]:
            times = move.get("times", 1)
            proposed[move["recipient"]] += times
            accepted[move["recipient"]] += times * bool(move["accepted"])
        return replace(board, proposed=tuple(proposed), accepted=tuple(accepted))
    if event["event"] == "student":
        return replace(board, student=(event["epoch"], event["epochs"], event["train_loss"]))
    return board


def render(board: Board) -> RenderableType:
    """Returns the board as rich shows it: a table with a line a task, and a bar with the epochs and their rate."""
    if board.period == 0:
        return Text("preparing the data, the splits and the engine")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("task", "training loss", "validation", "best", "transfers taken"):
        table.add_column(column, justify="right")
    for task in range(len(board.score)):
        table.add_row(
            str(task),
            _number(board.train_loss[task]),
            _number(board.score[task]) + (" *" if board.improved[task] else "  "),
            _number(board.best[task]),
            f"{board.accepted[task]} of {board.proposed[task]}",
        )
    line = Table.grid(padding=(0, 2))
    rate = f"{board.period / board.seconds:.3g} epochs/s" if board.seconds > 0 else ""
    bar = ProgressBar(total=board.epochs or 1, completed=board.period, width=30)
    line.add_row(bar, f"{board.period}/{board.epochs or '…'} epochs", rate)
    if board.student is not None:
        epoch, epochs, loss = board.student
        bar = ProgressBar(total=epochs, completed=epoch, width=30)
        line.add_row(bar, f"{epoch}/{epochs} epochs of one model on all rows", f"training loss {_number(loss)}")
    return Group(table, line)


def message_of(event: Event) -> str | None:
    """Returns the line that a finding or a note is told in, safe for a terminal; None for other events.

    Example:
        >>> message_of({"event": "note", "message": "engine: sequential"})
        'note: engine: sequential'
    """
    if event["event"] not in ("finding", "note"):
        return None
    return f"{event.get('severity', 'note')}: {printable(event['message'])}"


def print_message(event: Event) -> None:
    """Writes the line of a finding or a note to standard error: a listener for where no terminal is."""
    message = message_of(event)
    if message is not None:
        print(message, file=sys.stderr, flush=True)


@final
class LiveProgress:
    """A listener that keeps the board on a terminal up to date, within its `with` block.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console):
        self.board = Board()
        self._live = Live(render(self.board), console=console, refresh_per_second=8)

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Shows what the event changed."""
        message = message_of(event)
        if message is not None:
            self._live.console.print(Text(message))
        self.board = after(self.board, event)
        self._live.update(render(self.board))


def _number(value: Number) -> str:
    return _NOTHING if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
