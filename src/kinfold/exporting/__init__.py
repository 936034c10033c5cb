"""A model leaves Kinfold: as weights and JSON, as a program of torch.export, or as ONNX. One file a form of program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold import files
from kinfold.config import is_object
from kinfold.data import read_features, some_rows
from kinfold.errors import InputError, unknown
from kinfold.exporting.archive import torch_program
from kinfold.exporting.base import ABOUT, TOLERANCE, Finished, Json
from kinfold.exporting.card import model_card
from kinfold.exporting.onnx import onnx_program

MODEL_CARD = "MODEL_CARD.md"
"""What the card is called in a folder."""

SAFETENSORS = "safetensors"
"""The format that is no program: weights, and JSON that says what to do with them."""

_CHECKED_ROWS = 1_000


@dataclass(frozen=True)
class ProgramFormat:
    """A form of program.

    Attributes:
        ending: of the file's name.
        write: from a run, where rows are from, and raw rows to check it on, to the file's content and description.
    """

    ending: str
    write: Callable[[Finished, str, Any], tuple[bytes, Json]]


PROGRAMS: Mapping[str, ProgramFormat] = {
    "torch.export": ProgramFormat(".pt2", torch_program),
    "onnx": ProgramFormat(".onnx", onnx_program),
}
"""Every form of program, by name."""

FORMATS = (SAFETENSORS, *PROGRAMS)
"""Every format, by name."""


def export(finished: Finished, format: str, out: Path, *, rows: Any = None, force: bool = False) -> Path:
    """Writes a model with its preprocessing and its labels (see `kinfold.Result.export`); returns the path.

    Raises:
        InputError: as there.
        RunError: as there.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == SAFETENSORS:
        return _to_folder(finished, out, force)
    program = PROGRAMS[format]
    target = out / f"model{program.ending}" if out.is_dir() or not out.suffix else out
    if target.suffix != program.ending:
        raise InputError(f"out: {target} ends {target.suffix!r}; give a folder, or a file ending {program.ending}.")
    beside = {name: target.with_name(target.name + name) for name in (".json", ".md")}
    _require_free((target, *beside.values()), force)
    content, about = program.write(finished, *_rows(finished, rows))
    files.write_text(beside[".md"], model_card(finished, program=target.name, about=about))
    files.write_json(beside[".json"], about)
    files.write_bytes(target, content)
    return target


def _to_folder(finished: Finished, out: Path, force: bool) -> Path:
    if out.suffix == ".safetensors" or (out.exists() and not out.is_dir()):
        raise InputError(f"out: {out} is a file, and the format safetensors has several; give a folder.")
    if (out / "config.yaml").exists():
        raise InputError(f"out: {out} is a run directory, which holds its model already; give another folder.")
    paths = [out / name for name in (MODEL_CARD, "model.safetensors", "model.json")]
    _require_free(paths, force)
    card, weights, about = paths
    told = [event for event in finished.history if event["event"] in ("finding", "note")]
    files.write_text(card, model_card(finished))
    files.write_tensors(weights, finished.tensors())
    files.write_json(about, finished.about | {"result": finished.said, "config": finished.config, "history": told})
    return out


def _require_free(paths: tuple[Path, ...] | list[Path], force: bool) -> None:
    for path in paths:
        if path.is_dir() or (path.exists() and not force):
            raise InputError(f"out: {path} exists already; choose another place, or replace it by force (--force).")


def _rows(finished: Finished, rows: Any) -> tuple[str, Any]:
    """Returns where rows to check a program on are from, and some of them."""
    source = finished.config["data"] if rows is None else rows
    hint = "give rows that the model takes, labelled or not (--rows DATA)"
    if rows is None and is_object(source):
        raise InputError(f"rows: the program is checked on real rows, and the run's data were a Python object; {hint}.")
    try:
        features = read_features(source, finished.encoder.written)
    except InputError as error:
        if rows is not None:
            raise
        raise InputError(f"rows: the run's data cannot be read here ({str(error).rstrip('.')}); {hint}.") from None
    name = Path(source).name if isinstance(source, (str, Path)) else type(source).__name__
    return name, some_rows(features, _CHECKED_ROWS)


__all__ = ["ABOUT", "FORMATS", "MODEL_CARD", "PROGRAMS", "TOLERANCE", "Finished", "export", "model_card"]
