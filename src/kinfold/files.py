"""Files that are either whole or as they were: written beside, flushed, renamed into place.

No pickle anywhere: tensors as safetensors, the rest as JSON or YAML.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from kinfold.errors import InputError
from kinfold.yaml_files import read_yaml as read_yaml


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def write_text(path: Path, content: str) -> None:
    """Writes text as UTF-8 (see `write_bytes`)."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, NaN and infinities as null (they are not JSON)."""
    write_text(path, json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """Returns one line of JSON, without its line end (see `write_json`)."""
    return json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False)


def read_json_lines(path: Path) -> list[Any]:
    """Reads a file of one JSON value a line; a last line that a crash cut off is left out.

    Raises:
        InputError: the file is missing, or a line before the last is not JSON.
    """
    try:
        # Bytes: the cut may go through a character, and `str.splitlines` also cuts at U+2028, which JSON may hold.
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON; resume the run to repair it.") from None
    return values


def jsonable(value: Any) -> Any:
    """Returns `value` with tensors and arrays as lists, and numbers that JSON has no word for as None."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return jsonable(value.tolist())
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """Writes tensors as safetensors, with `about` as JSON in the file's own header."""
    write_own_tensors(path, own_copies(tensors), about)


def own_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies on the CPU, each with memory of its own: safetensors refuses tensors that share theirs."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write_own_tensors(path: Path, tensors: dict[str, Tensor], about: Any = None) -> None:
    """Writes tensors that `own_copies` made (see `write_tensors`)."""
    write_bytes(path, tensor_bytes(tensors, about))


def tensor_bytes(tensors: dict[str, Tensor], about: Any = None) -> bytes:
    """Returns what `write_own_tensors` writes."""
    return save_bytes(tensors, {"about": json.dumps(about)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads what `write_tensors` wrote: (tensors, about).

    Raises:
        InputError: the file is missing or is not safetensors.
    """
    try:
        content = path.read_bytes()
        tensors = load_bytes(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, json.loads(header.get("__metadata__", {}).get("about", "null"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as error:  # safetensors raises its own error type for a damaged file
        raise InputError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())}).") from None
