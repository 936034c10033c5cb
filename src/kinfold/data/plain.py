"""Files read whole: their bytes, or their text as UTF-8, and that a line at a time."""

from collections.abc import Iterator
from pathlib import Path

from kinfold.errors import InputError
from kinfold.importing import one_line


def read_bytes(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
        InputError: no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}).") from None


def read_text(path: Path) -> str:
    """Returns a file's text, its line ends as they are and a byte order mark left out.

    Raises:
        InputError: no such file, no UTF-8, or binary data.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    if "\0" in text:
        raise InputError(f"{path}: holds binary data where text is needed.")
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yields the number, from 1, and the text of each line that is not blank, without its line end.

    Only line feeds end a line: `str.splitlines` would also cut at characters that a text may hold.

    Example:
        >>> list(numbered_lines("a\r\n\nb"))
        [(1, 'a'), (3, 'b')]
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")
