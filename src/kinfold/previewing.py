"""A look at data before training: rows, classes, columns, pictures, doubles, and how they would be trained on.

Legend: N rows, C channels, H height, W width.
"""

import io
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from kinfold.assembling import column_findings, row_info
from kinfold.data import Dataset, ImageDataset, SeriesDataset, TableDataset, TextDataset, read, read_features, some_rows
from kinfold.data.base import Kind, Label
from kinfold.data.columns import sort_of, texts_of
from kinfold.data.images import pixel_tensor
from kinfold.data.resolve import spaced
from kinfold.data.text_files import TARGET
from kinfold.data.words import is_free_text, words_of
from kinfold.errors import InputError
from kinfold.recipes import recipe
from kinfold.splits import audit, draw_splits

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

LOOKED_AT = 20_000
"""How many rows, evenly spaced, are looked at for what must be asked of each: doubles, texts, the audit."""

HEAD_BYTES = 2**25
"""How much of a larger table in a text file is read."""

TABLES = (".csv", ".tsv", ".tab", ".jsonl")
"""How the names of text files end that are read in part."""

_FITTED, _EXAMPLES, _SIDE, _ACROSS, _DOWN = 256, 3, 96, 8, 12

Pixels: TypeAlias = UInt8[Tensor, "N C H W"]


@dataclass(frozen=True)
class ColumnFacts:
    """A column of a table.

    Attributes:
        name: its name.
        holds: `number`, `boolean`, `date`, `category` or `free text`.
        missing: how many rows have no value.
        unique: how many different values there are.
        values: from the least to the greatest; or the most frequent, with their counts.
    """

    name: str
    holds: str
    missing: int
    unique: int
    values: str


@dataclass(frozen=True)
class Preview:
    """What there is to know of data before training.

    Attributes:
        name: the data set's.
        taken_as: what kind of thing a row is, and what is predicted, in words.
        rows: how many there are; of a part of a file, how many were read.
        whole: whether that is all of the file.
        looked_at: how many of them were asked for doubles and audited.
        row: what a row is, in words.
        classes: (label, rows), the most frequent first; None for regression, or while no target is named.
        target: of regression, from the least to the greatest value, in words.
        columns: of a table.
        examples: a few rows in words.
        doubles: how many of the rows looked at equal one before them.
        recipe: what `auto` would choose, if it is known.
        findings: what the audit of the usual splits warns of, and what else should be known.
    """

    name: str
    taken_as: str
    rows: int
    whole: bool
    looked_at: int
    row: str
    classes: tuple[tuple[Label, int], ...] | None
    target: str | None
    columns: tuple[ColumnFacts, ...]
    examples: tuple[str, ...]
    doubles: int
    recipe: Mapping[str, Any] | None
    findings: tuple[str, ...]


def preview(
    source: str | Path,
    *,
    target: str | None = None,
    groups: str | None = None,
    times: str | None = None,
    kind: Kind | None = None,
) -> tuple[Preview, Dataset | None]:
    """Returns what there is to know of data, and the data set; None where it has no target yet.

    Of a table in a text file of more than `HEAD_BYTES`, the beginning is read; of a data set of more than `LOOKED_AT`
    rows, so many are asked for doubles.

    Args:
        source: a name or a path, as for `kinfold.data.read`.
        target: the column to predict; a table can be looked at without.
        groups: as for `read`.
        times: likewise.
        kind: likewise.

    Raises:
        InputError: the data cannot be read.

    Example:
        >>> seen, _ = preview("iris")
        >>> seen.rows, seen.classes, seen.recipe["model"]
        (150, (('setosa', 50), ('versicolor', 50), ('virginica', 50)), {'name': 'mlp'})
    """
    with _head(source) as (path, whole):
        try:
            dataset = read(path, target=target, groups=groups, times=times, kind=kind)
        except InputError:
            frame = _frame(path) if target is None else None
            if frame is None or frame.attrs.get(TARGET) is not None:
                raise
            return _unlabelled(frame, Path(source).name, whole), None
        return _labelled(dataset, whole), dataset


def _labelled(dataset: Dataset, whole: bool) -> Preview:
    target, rows = dataset.target, spaced(len(dataset), LOOKED_AT)
    part = _part(dataset, rows)
    hashes = part.fingerprints()
    encoder = part.fit(spaced(len(part), _FITTED))
    chosen = recipe(dataset.form, target.kind, max(1, round(0.9 * len(dataset))), encoder.input_shape)
    findings = [finding.message for finding in column_findings(dataset, encoder)]
    counts = np.bincount(target.values.numpy()) if target.labels is not None else np.zeros(0)
    try:
        splits = draw_splits(row_info(part), None, tasks=8, val_fraction=0.2, holdout=0.1, seed=0)
        found = audit(splits, row_info(part), hashes)
        findings += [finding.message for finding in found if finding.severity == "warning"]
    except InputError as error:
        findings.append(str(error))
    labels = target.labels
    classes = None if labels is None else tuple((labels[c], int(counts[c])) for c in np.argsort(-counts, kind="stable"))
    return Preview(
        name=dataset.name,
        taken_as=f"{dataset.form}, {target.kind}",
        rows=len(dataset),
        whole=whole,
        looked_at=len(part),
        row=_row(dataset, encoder.input_shape),
        classes=classes,
        target=None if labels is not None else _range(target.values.double().numpy()),
        columns=_columns(dataset.features) if isinstance(dataset, TableDataset) else (),
        examples=tuple(_examples(dataset)),
        doubles=len(hashes) - len(np.unique(hashes)),
        recipe=asdict(chosen),
        findings=tuple(findings),
    )


def _unlabelled(frame: "pandas.DataFrame", name: str, whole: bool) -> Preview:
    part = frame.iloc[spaced(len(frame), LOOKED_AT)]
    return Preview(
        name=name,
        taken_as="table",
        rows=len(frame),
        whole=whole,
        looked_at=len(part),
        row=f"{frame.shape[1]} columns",
        classes=None,
        target=None,
        columns=_columns(frame),
        examples=tuple(_table_examples(frame)),
        doubles=int(part.duplicated().sum()),
        recipe=None,
        findings=("no target yet: name the column to predict (--target COL) to see classes, recipe and audit.",),
    )


@contextmanager
def _head(source: str | Path) -> Iterator[tuple[str | Path, bool]]:
    """Gives what is read of a source, and whether that is all of it: of a large table, a copy of its beginning."""
    path = Path(source)
    if path.suffix.lower() not in TABLES or not path.is_file() or path.stat().st_size <= HEAD_BYTES:
        yield source, True
        return
    with path.open("rb") as file:
        content = file.read(HEAD_BYTES)
    end = content.rfind(b"\n")
    # A line may end within quotation marks, which come in pairs.
    while end > 0 and path.suffix.lower() != ".jsonl" and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end)
    if end <= 0:
        yield source, True
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).write_bytes(content[: end + 1])
        yield Path(folder) / path.name, False


def _part(dataset: Dataset, rows: Int64[np.ndarray, " m"]) -> Dataset:
    """Returns these rows alone."""
    if len(rows) == len(dataset):
        return dataset
    values = dataset.target.values[torch.from_numpy(rows)]
    return replace(
        dataset,
        features=some_rows(dataset.features, LOOKED_AT),
        target=replace(dataset.target, values=values),
        groups=None if dataset.groups is None else dataset.groups[rows],
        times=None if dataset.times is None else dataset.times[rows],
    )


def _row(dataset: Dataset, shape: tuple[int, ...]) -> str:
    """What a row is, in words."""
    if isinstance(dataset, TableDataset):
        return f"{dataset.features.shape[1]} columns, encoded as {shape[0]} numbers"
    if isinstance(dataset, TextDataset):
        lengths = [len(words_of(text)) for text in some_rows(dataset.features, LOOKED_AT)]
        return f"{min(lengths)} to {max(lengths)} words, {int(np.median(lengths))} in the median"
    if isinstance(dataset, SeriesDataset):
        lengths = [each.shape[1] for each in dataset.features]
        missing = sum(int(np.isnan(each).sum()) for each in dataset.features)
        gaps = f", {missing:,} values missing" if missing else ""
        steps = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
        return f"{shape[0]} channel{'s' if shape[0] > 1 else ''} of {steps} steps{gaps}"
    if dataset.form == "image":
        return f"{shape[1]} x {shape[2]} pixels, {shape[0]} channel{'s' if shape[0] > 1 else ''}"
    return f"numbers of shape {' x '.join(map(str, shape))}"


def _columns(frame: "pandas.DataFrame") -> tuple[ColumnFacts, ...]:
    return tuple(_column(series, str(name)) for name, series in frame.items())


def _column(series: "pandas.Series[Any]", name: str) -> ColumnFacts:
    sort = sort_of(series, name)
    texts_of(series)  # which says what is wrong with values that cannot be told apart
    missing, unique = int(series.isna().sum()), int(series.nunique())
    if sort in ("number", "date"):
        known = series.dropna()
        values = f"{_value(known.min())} to {_value(known.max())}" if len(known) else ""
        return ColumnFacts(name, sort, missing, unique, values)
    if sort == "text" and is_free_text(series.iloc[spaced(len(series), LOOKED_AT)]):
        lengths = [len(words_of(text)) for text in series.dropna().iloc[:LOOKED_AT]]
        return ColumnFacts(name, "free text", missing, unique, f"{int(np.median(lengths))} words in the median")
    counts = series.value_counts().iloc[:_EXAMPLES]
    values = ", ".join(f"{_value(value)} ({count:,})" for value, count in counts.items())
    return ColumnFacts(name, "category" if sort == "text" else sort, missing, unique, values)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _range(values: Shaped[np.ndarray, "N *K"]) -> str:
    return f"{values.min():.6g} to {values.max():.6g}, {values.mean():.6g} in the mean"


def _examples(dataset: Dataset) -> Iterator[str]:
    if isinstance(dataset, TableDataset):
        yield from _table_examples(dataset.features)
    elif isinstance(dataset, TextDataset):
        yield from dataset.features[:_EXAMPLES]
    elif isinstance(dataset, SeriesDataset):
        for series in dataset.features[:_EXAMPLES]:
            yield " ".join(_value(value) for value in series[0, :8]) + (" …" if series.shape[1] > 8 else "")


def _table_examples(frame: "pandas.DataFrame") -> Iterator[str]:
    for row in frame.iloc[:_EXAMPLES].to_dict("records"):
        yield ", ".join(f"{name} {_value(value)}" for name, value in row.items())


def _frame(source: str | Path) -> "pandas.DataFrame | None":
    """Returns a table with all its columns; None where the source is none."""
    import pandas as pd

    features = read_features(source)
    return features if isinstance(features, pd.DataFrame) else None


def contact_sheet(dataset: Dataset) -> tuple[bytes, tuple[str, ...]]:
    """Returns pictures of a data set on one sheet, as PNG, and what is in each of its lines.

    A line a class, `_ACROSS` pictures each, of the `_DOWN` most frequent classes; without classes, rows in their order.

    Args:
        dataset: of images.

    Raises:
        InputError: the rows are no pictures.
    """
    if not isinstance(dataset, ImageDataset):
        raise InputError(f"out: {dataset.name} has no pictures to be drawn; leave --out away.")
    labels, values = dataset.target.labels, dataset.target.values.numpy()
    if labels is None:
        lines = [
            ("rows", np.arange(start, min(start + _ACROSS, len(dataset)))) for start in range(0, len(dataset), _ACROSS)
        ]
    else:
        order = [number for number, _ in Counter(values.tolist()).most_common()]
        lines = [(str(labels[number]), np.flatnonzero(values == number)[:_ACROSS]) for number in order]
    lines = lines[:_DOWN]
    chosen = np.concatenate([rows for _, rows in lines])
    pixels = _pixels(dataset, chosen)
    step = math.ceil(max(pixels.shape[2:]) / _SIDE)
    grow = max(1, _SIDE // 2 // max(pixels.shape[2:]))  # tiny ones are shown larger
    small = pixels[:, :, ::step, ::step].repeat_interleave(grow, 2).repeat_interleave(grow, 3)
    height, width = small.shape[2] + 2, small.shape[3] + 2
    sheet = np.full((len(lines) * height, _ACROSS * width, 3), 255, dtype=np.uint8)
    at = 0
    for line, (_, rows) in enumerate(lines):
        for column in range(len(rows)):
            image = small[at, :3] if small.shape[1] >= 3 else small[at, :1].expand(3, -1, -1)
            top, left = line * height, column * width
            sheet[top : top + height - 2, left : left + width - 2] = image.permute(1, 2, 0).numpy()
            at += 1
    return _png(sheet), tuple(name for name, _ in lines)


def _pixels(dataset: ImageDataset, rows: Int64[np.ndarray, " m"]) -> Pixels:
    features: Any = dataset.features
    if isinstance(features, Tensor):
        return features[torch.from_numpy(rows)]
    files = features.some(rows.tolist())
    taken: Callable[[Tensor], Pixels] = files.pixels(features.shape).take
    return pixel_tensor(taken(torch.arange(len(rows))), features.shape)


def _png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    from matplotlib.image import imsave  # its import takes long

    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()
