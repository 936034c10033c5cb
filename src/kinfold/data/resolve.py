"""From what the user calls their data (a name, a path, arrays, a function) to a `Dataset`."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from kinfold.data.arrays import from_arrays
from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.benchmarks import NAMES
from kinfold.data.npz import from_npz, npz_features
from kinfold.data.table import from_frame
from kinfold.data.table_files import read_csv, read_parquet
from kinfold.data.targets import encode_target
from kinfold.data.wrapped import from_torch, torch_features
from kinfold.errors import InputError, unknown
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


@dataclass(frozen=True)
class Format:
    """How a file of one ending is read: with targets, and without."""

    read: Callable[[Path, Choice], Dataset]
    features: Callable[[Path], Any]


def read(
    source: Any,
    *,
    target: str | None = None,
    groups: str | None = None,
    times: str | None = None,
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
) -> Dataset:
    """Returns the data set that `source` names, holds or makes.

    Args:
        source: a name (`digits`); the path of a .csv, .tsv, .parquet or .npz file; an (X, y) pair; a pandas
            DataFrame; a map-style `torch.utils.data.Dataset`; a `Dataset`, which comes back as it is; or
            `package.module:function`, called without arguments, whose answer is read in turn.
        target: the column to predict, for tables.
        groups: the column of each row's group, for tables.
        times: the column of each row's time, for tables.
        kind: `classification` or `regression` where the targets' type says otherwise.
        labels: the classes of an earlier run, in its order: targets are numbered by them, and one that is not
            among them is an error.

    Raises:
        InputError: there is no such name, file, column or function, or what it gives cannot be used; see
            `from_arrays`, `from_frame`, `read_csv` and the others.

    Example:
        >>> dataset = read("digits")
        >>> dataset.name, dataset.features.shape, dataset.target.outputs
        ('digits', torch.Size([1797, 1, 8, 8]), 10)
    """
    choice = Choice(target, groups, times, kind, labels)
    dataset = _read(source, choice)
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


def read_features(source: Any) -> Any:
    """Returns raw features, labelled or not, as `Encoder.encode` takes them.

    Args:
        source: as for `read`; also an array or a tensor, a file without a target, or a dataset whose items are x
            alone.

    Returns:
        A pandas DataFrame of a table (with all its columns), an array or a tensor of the rest.

    Raises:
        InputError: there is no such name, file or function, or it cannot be read.

    Example:
        >>> read_features("digits").shape
        torch.Size([1797, 1, 8, 8])
    """
    if isinstance(source, (str, Path)):
        found = _find(source)
        if isinstance(found, Path):
            return FORMATS[found.suffix.lower()].features(found)
        return read_features(_call(found, source))
    if isinstance(source, Dataset):
        return source.features
    if isinstance(source, TorchDataset):
        return torch_features(source)
    return source[0] if _is_pair(source) else source


def _read(source: Any, choice: Choice) -> Dataset:
    if isinstance(source, (str, Path)):
        found = _find(source)
        if isinstance(found, Path):
            return FORMATS[found.suffix.lower()].read(found, choice)
        return _read(_call(found, source), choice)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, TorchDataset):
        return from_torch(source, kind=choice.kind, labels=choice.labels)
    if _is_frame(source):
        return _from_frame(source, "table", choice)
    if _is_pair(source):
        X, y = source
        if _is_frame(X):
            return from_frame(X, y, groups=choice.groups, times=choice.times, kind=choice.kind, labels=choice.labels)
        return from_arrays(X, y, kind=choice.kind, labels=choice.labels)
    raise InputError(
        f"data: a {type(source).__name__} cannot be read; give (X, y), a table, a dataset, a name or a path."
    )


def _from_frame(frame: "pandas.DataFrame", name: str, choice: Choice) -> Dataset:
    if choice.target is None:
        columns = ", ".join(str(column) for column in frame.columns)
        raise InputError(f"target: name the column of {name} to predict. Columns: {columns}.")
    return from_frame(
        frame,
        choice.target,
        name=name,
        groups=choice.groups,
        times=choice.times,
        kind=choice.kind,
        labels=choice.labels,
    )


FORMATS: dict[str, Format] = {
    ".csv": Format(lambda path, choice: _from_frame(read_csv(path), path.stem, choice), read_csv),
    ".tsv": Format(lambda path, choice: _from_frame(read_csv(path), path.stem, choice), read_csv),
    ".parquet": Format(lambda path, choice: _from_frame(read_parquet(path), path.stem, choice), read_parquet),
    ".npz": Format(lambda path, choice: from_npz(path, kind=choice.kind, labels=choice.labels), npz_features),
}
"""The endings of files that are data."""


def _find(source: str | Path) -> Path | Callable[[], Any]:
    """Returns the file, or the function that gives the data, which the user named."""
    name, path = str(source), Path(source)
    if name in NAMES:
        return NAMES[name]
    if path.suffix.lower() in FORMATS:
        return path
    if path.exists():
        raise InputError(f"data: {name} is not of a known format; give a file ending {', '.join(FORMATS)}.")
    if isinstance(source, Path) or os.sep in name or (path.suffix and ":" not in name):
        raise InputError(f"data: {name}: no such file.")
    if ":" in name:
        return load_callable(name, "data")
    raise unknown("data", name, NAMES)


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
