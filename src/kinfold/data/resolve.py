"""From what the user calls their data (a name, a path, arrays, a function) to a `Dataset`."""

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from kinfold.data.audio import WAV_ENDINGS, from_audio_folder, from_audio_table
from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.benchmarks import NAMES
from kinfold.data.cifar import cifar_features, from_cifar, is_cifar
from kinfold.data.folders import SOURCE, files_in, has_files, names_files
from kinfold.data.hubs import HUBS, read_hub
from kinfold.data.huggingface import features_of, from_disk, is_parts, is_rows, is_saved, labelled, part_of
from kinfold.data.idx import from_idx, idx_features, is_idx_folder
from kinfold.data.image_files import ENDINGS, ImageFiles
from kinfold.data.images import from_image_folder, from_image_table, from_pixels, image_features, images_or_arrays
from kinfold.data.items import Items
from kinfold.data.npy import from_npy, is_npy_folder, npy_features
from kinfold.data.npz import from_npz, npz_features
from kinfold.data.public import PUBLIC, read_public
from kinfold.data.series import from_ts, from_ucr, is_ucr, read_ts, read_ucr
from kinfold.data.table import TableDataset, from_frame
from kinfold.data.table_files import read_arrow, read_csv, read_parquet
from kinfold.data.targets import encode_target
from kinfold.data.text import from_text_table, from_texts
from kinfold.data.text_files import JSON_TARGET, TARGET, read_json_table, read_tab
from kinfold.data.words import is_free_text, is_texts
from kinfold.data.wrapped import from_torch, torch_features
from kinfold.errors import InputError, printable, unknown
from kinfold.importing import load_callable, one_line

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas


@dataclass(frozen=True)
class Choice:
    """What the user, or the run that is evaluated, says about the data beside where they are."""

    target: str | None = None
    groups: str | None = None
    times: str | None = None
    kind: Kind | None = None
    labels: Sequence[Label] | None = None
    texts: tuple[str, ...] | None = None
    written: Sequence[str] | None = None


@dataclass(frozen=True)
class Format:
    """How files of one ending, or folders of one form, are read: with targets, and without."""

    read: Callable[[Path, Choice], Dataset]
    features: Callable[[Path, Choice], Any]


@dataclass(frozen=True)
class FolderForm:
    """What a folder may hold.

    Attributes:
        holds: what that is, in words.
        detect: whether a folder does.
        format: how it is read.
    """

    holds: str
    detect: Callable[[Path], bool]
    format: Format


@dataclass(frozen=True)
class ColumnForm:
    """What the one feature column of a table may hold, beside numbers and categories.

    Attributes:
        detect: whether a column does.
        read: makes the data set of a table that has this feature column and no other.
    """

    detect: Callable[["pandas.Series[Any]"], bool]
    read: Callable[[TableDataset], Dataset]


def read(
    source: Any,
    *,
    target: str | None = None,
    groups: str | None = None,
    times: str | None = None,
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    texts: str | Sequence[str] | None = None,
    written: Sequence[str] | None = None,
) -> Dataset:
    """Returns the data set that `source` names, holds or makes.

    Args:
        source: a name (`digits`); the path of a file whose name ends as in `FORMATS`, or of a folder as in `FOLDERS`;
            an (X, y) pair (X of uint8 and an image's shape is images, a list of strings is texts); a pandas DataFrame
            (one whose only feature is as in `COLUMNS` is no table of numbers); a map-style
            `torch.utils.data.Dataset`; a `datasets.Dataset` of Hugging Face, or a `DatasetDict`, of which it is the
            part `train`; a `Dataset`, which comes back as it is; or `package.module:function`, called
            without arguments, whose answer is read in turn.
        target: the column to predict, for tables.
        groups: the column of each row's group, for tables.
        times: the column of each row's time, for tables.
        kind: `classification` or `regression` where the targets' type says otherwise.
        labels: the classes of an earlier run, in its order: targets are numbered by them, and one that is not
            among them is an error.
        texts: the column of free text, or several, for tables; `()` for none; default those that look it. A table of
            which this is said remains one, if it has one feature alone.
        written: for an encoder that has been fitted to a table, its `written`: the columns whose values a text file
            gives as they are written. Of a table this, too, says that it remains one.

    Raises:
        InputError: there is no such name, file, column or function, or what it gives cannot be used; see
            `from_arrays`, `from_frame`, `read_csv` and the others.

    Example:
        >>> dataset = read("digits")
        >>> dataset.name, dataset.features.shape, dataset.target.outputs
        ('digits', torch.Size([1797, 1, 8, 8]), 10)
    """
    choice = Choice(
        target,
        groups,
        times,
        kind,
        labels,
        (texts,) if isinstance(texts, str) else None if texts is None else tuple(texts),
        written,
    )
    dataset = _read(source, choice)
    if choice.texts is not None:
        if not isinstance(dataset, TableDataset):
            raise InputError(f"texts: {dataset.name} has no columns of which some could be text; leave it out.")
        dataset = dataclasses.replace(dataset, texts=choice.texts)  # one that was made without
    if kind is not None and dataset.target.kind != kind:
        raise InputError(f"kind: {dataset.name} is for {dataset.target.kind}, not for {kind}.")
    if target is not None and dataset.target.name != target:
        raise InputError(f"target: {dataset.name} comes with its own target, not {target!r}; leave it out.")
    for argument, column, taken in (("groups", groups, dataset.groups), ("times", times, dataset.times)):
        if column is not None and taken is None:
            raise InputError(f"{argument}: {dataset.name} has no columns to take {column!r} from; leave it out.")
    if labels is not None and dataset.target.labels is not None and dataset.target.labels != tuple(labels):
        # A data set that came with labels of its own: its rows are renumbered by the run's.
        written = np.array(dataset.target.labels, dtype=object)[dataset.target.values.numpy()]
        values = encode_target(written, labels, "classification", name=dataset.target.name or "y")
        renumbered = dataclasses.replace(dataset.target, values=values, labels=tuple(labels))
        dataset = dataclasses.replace(dataset, target=renumbered)
    return dataset


def read_features(source: Any, written: Sequence[str] | None = None) -> Any:
    """Returns raw features, labelled or not, as `Encoder.encode` takes them.

    Args:
        source: as for `read`; also an array or a tensor, a file without a target, a folder of pictures with no
            sub-folders, one picture, or a dataset whose items are x alone.
        written: as for `read`.

    Returns:
        A pandas DataFrame of a table (with all its columns), picture files, an array or a tensor of the rest.

    Raises:
        InputError: there is no such name, file or function, or it cannot be read.

    Example:
        >>> read_features("digits").shape
        torch.Size([1797, 1, 8, 8])
    """
    if isinstance(source, (str, Path)):
        found = _find(source)
        if isinstance(found, Path):
            return _format(found).features(found, Choice(written=written))
        return read_features(_call(found, source), written)
    if is_parts(source):
        source = part_of(source, "train", "the DatasetDict")
    if is_rows(source):
        return features_of(source, "the Dataset")
    if isinstance(source, Dataset):
        return source.features
    if isinstance(source, TorchDataset):
        return torch_features(source)
    return source[0] if _is_pair(source) else source


def some_rows(features: Any, most: int) -> Any:
    """Returns raw features in the form they have, of so many rows at most, evenly spaced.

    Args:
        features: as `read_features` returns them.
        most: how many rows.

    Example:
        >>> some_rows(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
    """
    rows = spaced(len(features), most)
    if isinstance(features, ImageFiles):
        return features.some(rows.tolist())
    if isinstance(features, Items):
        chosen: TorchDataset[Any] = Subset(features.dataset, rows.tolist())
        return dataclasses.replace(features, dataset=chosen, hashes=features.hashes[rows])
    if _is_frame(features):
        return features.iloc[rows]
    return type(features)(features[row] for row in rows) if isinstance(features, (list, tuple)) else features[rows]


def spaced(count: int, most: int) -> Int64[np.ndarray, " m"]:
    """Returns which of `count` rows are taken where `most` are wanted: all of them, or evenly spaced ones.

    Example:
        >>> spaced(10, 4).tolist(), spaced(2, 4).tolist()
        ([0, 3, 6, 9], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def feature_paths(features: Any) -> tuple[Path, ...] | None:
    """Returns the files that raw features are, one a row; None where they are no files.

    Args:
        features: as `read_features` returns them.

    Example:
        >>> feature_paths([Path("a.wav")]) == (Path("a.wav"),), feature_paths([[1.0]])
        (True, None)
    """
    if isinstance(features, ImageFiles):
        return features.paths
    if isinstance(features, (list, tuple)) and features and all(isinstance(row, Path) for row in features):
        return tuple(features)
    return None


def _read(source: Any, choice: Choice) -> Dataset:
    if isinstance(source, (str, Path)):
        found = _find(source)
        if isinstance(found, Path):
            return _format(found).read(found, choice)
        return _read(_call(found, source), choice)
    if isinstance(source, Dataset):
        return source
    if is_parts(source):
        source = part_of(source, "train", "the DatasetDict")
    if is_rows(source):
        return _from_rows(source, "dataset", choice)
    if isinstance(source, TorchDataset):
        return from_torch(source, kind=choice.kind, labels=choice.labels)
    if _is_frame(source):
        return _from_frame(source, "table", choice)
    if _is_pair(source):
        X, y = source
        if _is_frame(X):
            return _table(X, y, choice)
        if is_texts(X):
            return from_texts(X, y, kind=choice.kind, labels=choice.labels)
        return images_or_arrays(X, y, kind=choice.kind, labels=choice.labels)
    raise InputError(
        f"data: a {type(source).__name__} cannot be read; give (X, y), a table, a dataset, a name or a path."
    )


def _from_frame(frame: "pandas.DataFrame", name: str, choice: Choice) -> Dataset:
    target = choice.target or frame.attrs.get(TARGET)
    if target is None:
        columns = ", ".join(printable(str(column)) for column in frame.columns)
        raise InputError(f"target: name the column of {name} to predict. Columns: {columns}.")
    return _table(frame, target, choice, name=name)


def _table(frame: "pandas.DataFrame", target: Any, choice: Choice, **named: str) -> Dataset:
    table = from_frame(
        frame,
        target,
        groups=choice.groups,
        times=choice.times,
        kind=choice.kind,
        labels=choice.labels,
        texts=choice.texts,
        **named,
    )
    return _of_columns(table, choice)


def _from_rows(rows: Any, name: str, choice: Choice) -> Dataset:
    """Returns a data set of a `datasets.Dataset`: pictures, texts or a table."""
    beside = [column for column in (choice.groups, choice.times) if column is not None]
    features, values, target = labelled(rows, choice.target, beside, name)
    if _is_frame(features):
        features[target] = values
        return _from_frame(features, name, dataclasses.replace(choice, target=target))
    images = from_pixels(features, values, name=name, kind=choice.kind, labels=choice.labels)
    return dataclasses.replace(images, target=dataclasses.replace(images.target, name=target))


def _of_columns(table: TableDataset, choice: Choice) -> Dataset:
    """Returns the table as what its feature column holds, where it has only one."""
    if table.features.shape[1] == 1 and table.texts is None and choice.written is None:
        column = table.features.iloc[:, 0]
        for form in COLUMNS:
            if form.detect(column):
                return form.read(table)
    return table


def _tables(
    read_table: Callable[[Path, Choice], "pandas.DataFrame"],
    read_labelled: Callable[[Path, Choice], "pandas.DataFrame"] | None = None,
) -> Format:
    """Returns the format of files that are tables.

    Args:
        read_table: reads one.
        read_labelled: reads one whose target is known, where that makes a difference; default the same.
    """

    def located(frame: "pandas.DataFrame", path: Path) -> "pandas.DataFrame":
        frame.attrs[SOURCE] = str(path)
        return frame

    def labelled(path: Path, choice: Choice) -> Dataset:
        frame = (read_labelled or read_table)(path, choice)
        return _from_frame(located(frame, path), path.stem, choice)

    return Format(labelled, lambda path, choice: located(read_table(path, choice), path))


def _read_csv(path: Path, choice: Choice) -> "pandas.DataFrame":
    words = {*(choice.written or ()), *(choice.texts or ())}
    return read_csv(path, target=choice.target, kind=choice.kind, written=words)


def _from_picture(path: Path, choice: Choice) -> Dataset:
    if is_cifar(path):
        return from_cifar(path, labels=choice.labels)
    raise InputError(f"data: {path} is one picture; give a folder that has a sub-folder of pictures for each class.")


def _picture_features(path: Path, choice: Choice) -> Any:
    del choice
    return cifar_features(path) if is_cifar(path) else ImageFiles([path])


def _from_recording(path: Path, choice: Choice) -> Dataset:
    del choice
    raise InputError(f"data: {path} is one recording; give a folder that has a sub-folder of wav files for each class.")


_IDX = Format(
    lambda path, choice: from_idx(path, kind=choice.kind, labels=choice.labels), lambda path, _: idx_features(path)
)
_CIFAR = Format(lambda path, choice: from_cifar(path, labels=choice.labels), lambda path, _: cifar_features(path))
_NPY = Format(
    lambda path, choice: from_npy(path, kind=choice.kind, labels=choice.labels), lambda path, _: npy_features(path)
)
_PICTURE = Format(_from_picture, _picture_features)
_TS = Format(
    lambda path, choice: from_ts(path, kind=choice.kind, labels=choice.labels), lambda path, _: read_ts(path)[0]
)
_UCR = Format(
    lambda path, choice: from_ucr(path, kind=choice.kind, labels=choice.labels), lambda path, _: read_ucr(path)[0]
)
_CSV = _tables(_read_csv)
_JSON = _tables(
    lambda path, _: read_json_table(path),
    lambda path, choice: read_json_table(path, target=choice.target or JSON_TARGET, kind=choice.kind),
)
_PARQUET, _ARROW = _tables(lambda path, _: read_parquet(path)), _tables(lambda path, _: read_arrow(path))
_TSV = Format(
    lambda path, choice: (_UCR if choice.target is None and is_ucr(path) else _CSV).read(path, choice),
    lambda path, choice: (_UCR if is_ucr(path) else _CSV).features(path, choice),
)

FORMATS: dict[str, Format] = {
    ".csv": _CSV,
    ".tsv": _TSV,
    ".tab": _tables(lambda path, _: read_tab(path)),
    ".jsonl": _JSON,
    ".ts": _TS,
    ".parquet": _PARQUET,
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".npz": Format(
        lambda path, choice: from_npz(path, kind=choice.kind, labels=choice.labels), lambda path, _: npz_features(path)
    ),
    ".npy": _NPY,
    ".idx": _IDX,
    ".idx.gz": _IDX,
    "-ubyte": _IDX,
    "-ubyte.gz": _IDX,
    ".bin": _CIFAR,
    **dict.fromkeys(ENDINGS, _PICTURE),
    **dict.fromkeys(WAV_ENDINGS, Format(_from_recording, lambda path, _: [path])),
}
"""How the names of files that are data end. Of a single picture there are features only, unless it is CIFAR's."""

FOLDERS: tuple[FolderForm, ...] = (
    FolderForm(
        "a data set that Hugging Face datasets saved",
        is_saved,
        Format(
            lambda path, choice: _from_rows(from_disk(path), path.name, choice),
            lambda path, _: features_of(from_disk(path), str(path)),
        ),
    ),
    FolderForm("CIFAR batches", is_cifar, _CIFAR),
    FolderForm("idx files", is_idx_folder, _IDX),
    FolderForm("X.npy with y.npy", is_npy_folder, _NPY),
    FolderForm(
        "a sub-folder of pictures for each class",
        lambda folder: has_files(folder, ENDINGS),
        Format(
            lambda path, choice: from_image_folder(path, labels=choice.labels), lambda path, _: image_features(path)
        ),
    ),
    FolderForm(
        "a sub-folder of wav files for each class",
        lambda folder: has_files(folder, WAV_ENDINGS),
        Format(
            lambda path, choice: from_audio_folder(path, labels=choice.labels),
            lambda path, _: files_in(path, WAV_ENDINGS),
        ),
    ),
)
"""What folders that are data hold; the first that fits counts."""

COLUMNS: tuple[ColumnForm, ...] = (
    ColumnForm(lambda column: names_files(column, ENDINGS), from_image_table),
    ColumnForm(lambda column: names_files(column, WAV_ENDINGS), from_audio_table),
    ColumnForm(is_free_text, from_text_table),
)
"""What a table's only feature may be; the first that fits counts."""


def _find(source: str | Path) -> Path | Callable[[], Any]:
    """Returns the file, or the function that gives the data, which the user named."""
    name, path = str(source), Path(source)
    if name in NAMES:
        return NAMES[name]
    base, _, part = name.partition(":")
    if base in HUBS and part:
        return partial(read_hub, name)
    if base in PUBLIC and part in ("", "test"):
        return partial(read_public, base, test=part == "test")
    if base in NAMES and part == "test":
        raise InputError(f"data: {base} has no official test part; all its rows are in {base}.")
    folder, colon, part = name.rpartition(":")
    if colon and is_saved(Path(folder)):
        return partial(from_disk, Path(folder), part)
    if path.exists():
        return path
    if isinstance(source, Path) or os.sep in name or _ending(path) or (path.suffix and ":" not in name):
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else "."
        raise InputError(f"data: {name}: no such file{hint}")
    if ":" in name:
        return load_callable(name, "data")
    raise unknown("data", name, (*NAMES, *PUBLIC))


def _format(path: Path) -> Format:
    """Returns how to read a file or a folder."""
    if path.is_dir():
        for form in FOLDERS:
            if form.detect(path):
                return form.format
        forms = "; ".join(form.holds for form in FOLDERS)
        raise InputError(f"data: the folder {path} holds nothing that is known; give one that holds {forms}.")
    ending = _ending(path)
    if path.suffix.lower() in _SPREADSHEETS:
        raise InputError(f"data: {path} is a spreadsheet; save it as CSV, and give that.")
    if ending is None:
        raise InputError(f"data: {path} is not of a known format; give a file ending {', '.join(FORMATS)}.")
    return FORMATS[ending]


_SPREADSHEETS = (".xlsx", ".xls", ".ods")


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    return max((ending for ending in FORMATS if name.endswith(ending)), key=len, default=None)


def _call(function: Callable[[], Any], source: str | Path) -> Any:
    try:
        return function()
    except InputError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        raise InputError(f"data: {source} failed ({one_line(error)}).") from error


def _is_frame(source: Any) -> bool:
    pandas = sys.modules.get("pandas")  # where it was never imported, nobody can hold a table
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2  # a list of two is two rows
