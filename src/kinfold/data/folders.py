"""Rows that are files: a folder with a sub-folder for each class, or a column of a table that holds paths."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfold.data.base import Label
from kinfold.errors import InputError

if TYPE_CHECKING:  # importing pandas takes long, and folders do without it
    import pandas

SOURCE = "source"
"""Under this name a table that was read from a file says in its `attrs` which: paths in it start from there."""

_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def has_files(folder: Path, endings: Collection[str]) -> bool:
    """Returns whether a file with one of the endings lies anywhere in the folder."""
    return next(_files(folder, endings), None) is not None


def files_in(folder: Path, endings: Collection[str]) -> list[Path]:
    """Returns the files with one of the endings anywhere in the folder, in the order of their paths.

    Files and folders whose name begins with a dot, and files of other endings, are passed over.

    Args:
        folder: where to look.
        endings: such as `.png`, in lower case.

    Raises:
        InputError: there is none, or a folder cannot be read.
    """
    try:
        found = sorted(_files(folder, endings), key=lambda path: path.relative_to(folder).parts)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from None
    if not found:
        raise InputError(f"{folder}: holds no file ending {', '.join(sorted(endings))}; add one or remove the folder.")
    return found


def class_files(
    folder: Path, endings: Collection[str], labels: Sequence[Label] | None = None
) -> tuple[list[Path], list[str]]:
    """Returns the files of a folder that has a sub-folder for each class, and each file's class.

    Args:
        folder: holds the sub-folders, each named after its class.
        endings: such as `.png`, in lower case.
        labels: the classes of an earlier run; the folder then needs not have two.

    Raises:
        InputError: a file outside any sub-folder, a sub-folder without files or of no known class, fewer than two
            sub-folders, or sub-folders that are parts (`train`, `test`) and not classes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        ...         Path(root, name).parent.mkdir(exist_ok=True)
        ...         Path(root, name).touch()
        ...     class_files(Path(root), {".png"})[1]
        ['cat', 'cat', 'dog']
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from None
    stray = next((entry for entry in entries if entry.is_file() and _ends(entry, endings)), None)
    if stray is not None:
        raise InputError(f"{stray}: lies outside any class; move it into a sub-folder named after its class.")
    classes = [entry for entry in entries if entry.is_dir()]
    names = [each.name for each in classes]
    if labels is None:
        parts = [name for name in names if name.lower() in _PARTS]
        if parts and len(parts) == len(names):
            first = next((each for each in classes if each.name.lower().startswith("train")), classes[0])
            raise InputError(f"{folder}: holds the parts {', '.join(parts)} and not classes; give {first}.")
        if len(classes) < 2:
            raise InputError(
                f"{folder}: has sub-folders for {names or 'no classes'}; give one for each of two or more."
            )
    else:
        known = [str(label) for label in labels]
        for each in classes:
            if each.name not in known:
                raise InputError(f"{each}: names a class that is not known; the labels are {', '.join(known)}.")
    paths: list[Path] = []
    targets: list[str] = []
    for each in classes:
        found = files_in(each, endings)
        paths += found
        targets += [each.name] * len(found)
    return paths, targets


def names_files(column: "pandas.Series[Any]", endings: Collection[str]) -> bool:
    """Returns whether a column of a table holds paths of such files: text that mostly ends so.

    Mostly, so that a wrong entry among them is an error with its row, and not a table of one strange category.
    """
    texts = [value for value in column if isinstance(value, str)]
    return sum(_ends(Path(text), endings) for text in texts) > len(column) / 2


def column_paths(frame: "pandas.DataFrame", column: str) -> list[Path]:
    """Returns the paths in a column; relative ones start from the folder of the file the table was read from.

    Args:
        frame: a table; one without a `SOURCE` takes relative paths from the working directory.
        column: the name of the column.

    Raises:
        InputError: no such column, or a row that holds no path or the path of no file.
    """
    if column not in frame.columns:
        raise InputError(f"data: has no column {column!r}, which the model was trained on; add it.")
    source = frame.attrs.get(SOURCE)
    place = "data" if source is None else str(source)
    folder = Path() if source is None else Path(source).parent
    paths = []
    for row, value in enumerate(frame[column]):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{place}: column {column!r}, row {row} holds {value!r}; give the path of a file.")
        path = folder / value
        if not path.is_file():
            raise InputError(f"{place}: column {column!r}, row {row} names {value!r}, and there is no file {path}.")
        paths.append(path)
    return paths


def _files(folder: Path, endings: Collection[str], above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    above |= {folder.resolve()}
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if _ends(entry, endings):
                yield entry
        elif entry.resolve() not in above:  # a link may lead back up
            yield from _files(entry, endings, above)


def _ends(path: Path, endings: Collection[str]) -> bool:
    return path.suffix.lower() in endings
