"""`history.jsonl`: one line of JSON a period, transfer, finding and note, as it happens; and the same in memory."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final, overload

from kinfold import files

_BLOCK = 256
"""Events packed together: as many as make a block small for its content, and quick to unpack."""


@final
class Events(Sequence[dict[str, Any]]):
    """The events of a run, none left out, packed as they come.

    A long run has some hundred thousand. As objects they would take a few thousand bytes each, packed they take less
    than a hundred. Every one that is asked for is made anew, so changing it changes nothing here.

    Args:
        events: the first ones, of JSON values (see `kinfold.files.jsonable`).

    Example:
        >>> events = Events([{"event": "note", "message": "begun"}])
        >>> events.append({"event": "period", "period": 1})
        >>> len(events), events[-1], [event["event"] for event in events]
        (2, {'event': 'period', 'period': 1}, ['note', 'period'])
    """

    def __init__(self, events: Iterable[dict[str, Any]] = ()):
        self._blocks: list[bytes] = []
        self._latest: list[str] = []
        for event in events:
            self.append(event)

    def append(self, event: dict[str, Any]) -> None:
        """Adds an event as the last."""
        self._latest.append(files.json_line(event))
        if len(self._latest) == _BLOCK:
            self._blocks.append(zlib.compress("\n".join(self._latest).encode()))
            self._latest = []

    def __len__(self) -> int:
        return _BLOCK * len(self._blocks) + len(self._latest)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return list(self)[index]
        block, place = divmod(range(len(self))[index], _BLOCK)
        event: dict[str, Any] = json.loads(self._lines(block)[place])
        return event

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for block in range(len(self._blocks) + 1):
            yield from map(json.loads, self._lines(block))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def __repr__(self) -> str:
        return repr(list(self))

    def _lines(self, block: int) -> Sequence[str]:
        """The lines of a block; of the last one, which is not full, those there are."""
        if block == len(self._blocks):
            return self._latest
        return zlib.decompress(self._blocks[block]).decode().split("\n")


class HistoryFile:
    """A listener that appends each event as one line.

    Args:
        path: the file; made where there is none.
        through: the period that a resumed run goes on from: later lines, of periods that will run again, are
            taken out.

    Attributes:
        kept: the events of the periods before, for the caller to go on with.
    """

    def __init__(self, path: Path, through: int | None = None):
        self._path = path
        kept = [] if through is None or not path.exists() else files.read_events(path)
        self.kept = Events(event for event in kept if event.get("period", 0) <= (through or 0))
        files.write_text(path, "".join(files.json_line(event) + "\n" for event in self.kept))

    def __call__(self, event: dict[str, Any]) -> None:
        """Appends the event."""
        files.append_text(self._path, files.json_line(event) + "\n")
