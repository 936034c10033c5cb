"""What a notebook shows of a run's progress: the terminal's board, in one output that is brought up to date in place.

Rich's own live display needs ipywidgets there; an IPython display handle needs nothing.
"""

import io
import time
from collections.abc import Mapping
from html import escape
from typing import Any, TypeAlias, final

from rich.console import Console

from kinfold.tracking.progress import Board, after, message_of, render

Event: TypeAlias = Mapping[str, Any]

_EVERY = 0.25
"""Seconds between two updates."""

_WIDTH = 100
_STYLE = "margin: 0; white-space: pre; overflow-x: auto; line-height: 1.25; font-family: monospace; color: inherit"


@final
class NotebookProgress:
    """A listener that keeps the board in a notebook's output up to date, with findings and notes above it.

    Attributes:
        board: where the run stands.
        messages: findings and notes so far.
    """

    def __init__(self) -> None:
        from IPython.display import display

        self.board = Board()
        self.messages: list[str] = []
        self._updated = time.monotonic()
        # Not the listener itself: an output that is shown again must not change with it.
        self._handle = display(self._picture(), display_id=True)

    def __call__(self, event: Event) -> None:
        """Takes in what has happened; shows it unless it has just shown something."""
        message = message_of(event)
        if message is not None:
            self.messages.append(message)
        self.board = after(self.board, event)
        if time.monotonic() - self._updated >= _EVERY:
            self.update()

    def update(self) -> None:
        """Shows where the run stands."""
        self._handle.update(self._picture())
        self._updated = time.monotonic()

    def _picture(self) -> "Picture":
        return Picture(self.board, tuple(self.messages))


@final
class Picture:
    """A board as a notebook shows it, as HTML or as text.

    Args:
        board: where a run stands.
        messages: what is said above it.

    Example:
        >>> print(Picture(Board(), ("note: a < b",))._repr_html_())  # doctest: +ELLIPSIS
        <pre ...>note: a &lt; b
        preparing the data, the splits and the engine
        </pre>
    """

    def __init__(self, board: Board, messages: tuple[str, ...]):
        self._board, self._messages = board, messages

    def _repr_html_(self) -> str:
        # Text has the page's colour, so that it can be read on dark ground, too.
        said = "".join(f"{escape(message)}\n" for message in self._messages)
        shown = self._rendered().export_html(inline_styles=True, code_format="{code}")
        return f'<pre style="{_STYLE}">{said}{shown}</pre>'

    def __repr__(self) -> str:
        return "\n".join([*self._messages, self._rendered().export_text()])

    def _rendered(self) -> Console:
        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False, color_system="truecolor")
        console.print(render(self._board))
        return console
