"""Checkpoints: one safetensors file a period, whole or absent; the last few are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kinfold.errors import InputError
from kinfold.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: where they lie.
        keep: how many of the latest stay.
    """

    folder: Path
    keep: int = 2

    def save(self, period: int, tensors: dict[str, Tensor], values: Any) -> None:
        """Writes the state after `period`; then removes what is older than the `keep` latest."""
        write_tensors(self._path(period), tensors, values)
        for old in self._all()[: -self.keep]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[dict[str, Tensor], Any] | None:
        """Returns (tensors, values) of the latest checkpoint that can be read, or None where there is none.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        problem: InputError | None = None
        for path in reversed(self._all()):
            try:
                return read_tensors(path)
            except InputError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return None

    def _path(self, period: int) -> Path:
        return self.folder / f"period-{period:06d}.safetensors"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("period-*.safetensors"))
