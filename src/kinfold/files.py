"""Files that are either whole or as they were: written beside, flushed, renamed into place.

No pickle anywhere: tensors as safetensors, the rest as JSON or YAML. Files of tensors have a checksum in their header,
those of a finished run have theirs in `SHA256SUMS`; what was damaged later is recognised by them.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from kinfold import disk
from kinfold.errors import InputError, RunError
from kinfold.locking import LOCK
from kinfold.yaml_files import read_yaml as read_yaml

SUMS = "SHA256SUMS"
"""Name of the file of a folder's checksums, in the form that `sha256sum --check` reads."""


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the parts, one after the other, so that a reader, or a crash, sees the old file or the new one."""
    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = disk.open_new(temporary)
        try:
            for part in parts:
                disk.write(descriptor, part)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
    except BaseException:
        with suppress(OSError):  # as left by a process that was killed
            disk.remove(temporary)
        raise
    disk.sync_folder(path.parent)  # the rename itself must survive a power cut


def append_text(path: Path, content: str) -> None:
    """Writes text as UTF-8 at the end of a file. A crash may cut it off, and a power cut take it: see `sync`."""
    descriptor = disk.open_end(path)
    try:
        disk.write(descriptor, content.encode())
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Has what was appended to a file survive a power cut."""
    descriptor = disk.open_end(path)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def entries(folder: Path) -> list[Path]:
    """Returns what lies in a folder, but for the lock and the halves of files that a killed process left."""
    return [path for path in folder.iterdir() if path.name != LOCK and not path.match(_HALF)]


def check_links(folder: Path) -> None:
    """Refuses a run directory, or a comparison's, with a link in it: what is written there would go elsewhere.

    Folders of trackers that make links of their own are left out.

    Raises:
        InputError: it has one; names it.
    """
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink():
                raise InputError(f"resume: {path} is a link to elsewhere; put what it leads to in its place.")
        folders[:] = [name for name in folders if name not in _WITH_LINKS]


_WITH_LINKS = ("wandb",)


def halves(folder: Path) -> list[Path]:
    """Returns the halves of files that a killed process left in a folder, and in those within it."""
    return list(folder.rglob(_HALF))


def clear_halves(folder: Path) -> None:
    """Removes them; for a process that has locked the folder."""
    for path in halves(folder):
        disk.remove(path)


_HALF = ".*.part"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in one line that a folder could not be written to, and that nothing is lost by it.

    Raises:
        RunError: something within raised `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"out: {folder} cannot be written to ({error.strerror or error}); mend that, such as by making room, and "
            "resume."
        ) from error


def write_text(path: Path, content: str) -> None:
    """Writes text as UTF-8 (see `write_bytes`)."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, NaN and infinities as null (they are not JSON)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Returns what `write_json` writes."""
    return json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


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
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON; resume the run to repair it.") from None
    return values


def read_events(path: Path) -> list[dict[str, Any]]:
    """Reads `history.jsonl`: an event a line (see docs/contracts.md).

    Raises:
        InputError: as for `read_json_lines`, and a line that is no event.
    """
    return events_of(read_json_lines(path), path)


def events_of(values: Any, path: Path) -> list[dict[str, Any]]:
    """Returns values that were read of a history, checked.

    Args:
        values: what is to be a list of events.
        path: the file they are from, for messages.

    Raises:
        InputError: one of them is no event.
    """
    for number, event in enumerate(values, 1):
        if not isinstance(event, dict) or "event" not in event or not isinstance(event.get("period", 0), int):
            raise InputError(f"{path}: line {number} is no event; resume the run to repair it.")
    return list(values)


def jsonable(value: Any) -> Any:
    """Returns `value` with tensors and arrays as lists, and numbers that JSON has no word for as None."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return jsonable(value.tolist())
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value


_PLAIN = frozenset({str, int, bool, type(None)})
"""Kinds of most values of a log, which are looked for first: it takes a quarter of the time."""


def inert(cell: Any) -> Any:
    r"""Returns a cell of a CSV file so that no spreadsheet takes it for a formula; numbers stay as they are.

    Text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return, and is no number, gets an apostrophe before it
    (OWASP, *CSV Injection*).

    Example:
        >>> [inert(cell) for cell in ("=1+1", "-7", "a-b", -7, "@x")]
        ["'=1+1", '-7', 'a-b', -7, "'@x"]
    """
    if not isinstance(cell, str) or cell[:1] not in _FORMULAS:
        return cell
    return cell if _NUMBER.fullmatch(cell) else f"'{cell}"


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (it nests too deeply).") from None


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
    # A dictionary of its own would do for the checksum, if safetensors wrote its entries in one order. The checksum is
    # of the file without it.
    plain = save_bytes(tensors, {"about": json.dumps(about)})
    seal = _SEAL % hashlib.sha256(plain).hexdigest().encode()
    length = int.from_bytes(plain[:8], "little") + len(seal)
    at = len(_HEAD) + 8
    write_bytes(path, length.to_bytes(8, "little"), _HEAD, seal, memoryview(plain)[at:])


_HEAD = b'{"__metadata__":{'
_SEAL = b'"sha256":"%b",    '  # 80 bytes: a header's length stays a multiple of 8
_SEALED = re.compile(re.escape(_SEAL).replace(b"%b", b"([0-9a-f]{64})"))


def _check_seal(content: bytes) -> None:
    """Checks the checksum of a file of tensors, where it has one: those of Kinfold 0.1 have none.

    Raises:
        ValueError: the file is not what was written.
    """
    at = 8 + len(_HEAD)
    found = _SEALED.match(content, at)
    if found is None:
        if content[8:at] == _HEAD and not content.startswith(b'"about":', at):
            raise ValueError("its checksum is damaged")
        return
    length = int.from_bytes(content[:8], "little") - len(found[0])
    digest = hashlib.sha256(max(length, 0).to_bytes(8, "little"))
    digest.update(content[8:at])
    digest.update(memoryview(content)[found.end() :])
    if digest.hexdigest().encode() != found[1]:
        raise ValueError("its content does not have its checksum: it was damaged after it was written")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads what `write_tensors` wrote: (tensors, about).

    Raises:
        InputError: the file is missing, is not safetensors, or does not have its checksum.
    """
    try:
        content = path.read_bytes()
        _check_seal(content)
        tensors = load_bytes(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, json.loads(header.get("__metadata__", {}).get("about", "null"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as error:  # safetensors raises its own error type for a damaged file
        raise InputError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())}).") from None


def sha256(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes the SHA-256 of files in a folder, by name, for `check_sums` and `sha256sum --check`."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def check_sums(folder: Path) -> None:
    """Checks the files of a folder that `write_sums` has noted; does nothing where it has noted none.

    Raises:
        InputError: a file is missing, or not as it was noted; or the note itself is damaged.
    """
    noted = folder / SUMS
    if not noted.exists():
        return
    for line in noted.read_bytes().decode(errors="replace").splitlines():
        found = _SUM.fullmatch(line)
        if found is None:
            raise InputError(f"{noted}: is damaged; delete it to read the run unchecked.")
        path = folder / found["name"]
        try:
            digest = sha256(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, and {SUMS} names it; restore it from a copy.") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
        if digest != found["digest"]:
            raise InputError(
                f"{path}: is damaged, or was changed after the run ended (its SHA-256 is not that in {SUMS}); "
                f"restore it from a copy, or delete {SUMS} to read the run unchecked."
            )


_SUM = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[\w.-]+)")
