"""`history.jsonl`: one line of JSON a period, transfer, finding and note, flushed as it happens."""

from pathlib import Path
from typing import Any

from kinfold import files


class HistoryFile:
    """A listener that appends each event as one line.

    Args:
        path: the file; made where there is none.
        through: the period that a resumed run goes on from: later lines, of periods that will run again, are
            taken out.

    Attributes:
        kept: the events of the periods before.
    """

    def __init__(self, path: Path, through: int | None = None):
        self._path = path
        kept = [] if through is None or not path.exists() else files.read_events(path)
        self.kept: list[dict[str, Any]] = [event for event in kept if event.get("period", 0) <= (through or 0)]
        files.write_text(path, "".join(files.json_line(event) + "\n" for event in self.kept))

    def __call__(self, event: dict[str, Any]) -> None:
        """Appends the event."""
        files.append_text(self._path, files.json_line(event) + "\n")
