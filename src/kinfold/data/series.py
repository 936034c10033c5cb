"""Time series: one channel or several, of equal or unequal lengths, from arrays, UCR .tsv and sktime .ts files.

Legend: N rows, C channels, L steps. Rows are counted from 0 in messages, lines of a file from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped, UInt64
from torch import Tensor

from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label, TensorInputs, taken
from kinfold.data.hashes import content_hashes
from kinfold.data.plain import numbered_lines, read_text
from kinfold.data.programs import FromSeries, Port, Program, padded
from kinfold.data.targets import is_whole_number, make_target, row_values
from kinfold.errors import InputError

Series: TypeAlias = tuple[Float32[np.ndarray, "C _L"], ...]
"""N series of C channels each; a missing value is NaN."""

MAX_BYTES = 2**34
"""The most that series may take once they are padded to one length (16 GiB): one endless series makes all endless."""

_MISSING = frozenset({"?", "NaN", "nan", "NA"})


class MaskedInputs(Inputs):
    """Series of unequal lengths, padded to one: a row is (x [C, L], mask [L]), the mask 1 on its own steps.

    Args:
        values: [N, C, L] the series, 0 behind their ends.
        lengths: [N] how many steps each has.

    Example:
        >>> inputs = MaskedInputs(torch.zeros(2, 1, 3), torch.tensor([2, 3]))
        >>> inputs.rows(torch.tensor([0]))[1]
        tensor([[1., 1., 0.]])
    """

    def __init__(self, values: Float[Tensor, "N C L"], lengths: Int64[Tensor, " N"]):
        self.values = values
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Int64[Tensor, "*axes"]) -> tuple[Tensor, Tensor]:
        steps = torch.arange(self.values.shape[-1], device=self.values.device)
        mask = steps < self.lengths[index].unsqueeze(-1)
        return taken(self.values, index), mask.to(self.values.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "MaskedInputs":
        return MaskedInputs(self.values.to(device, dtype), self.lengths.to(device))

    def held(self) -> Sequence[Tensor]:
        return (self.values, self.lengths)


@dataclass(frozen=True)
class SeriesEncoder(Encoder):
    """Brings each channel to standard units and all series to one length.

    A value x of a channel becomes (x − shift) / scale; a missing one becomes 0, the channel's mean. A series that is
    longer than `length` is cut to its first steps; a shorter one is padded with zeros at its end, and a mask says
    where, if the fitted rows were of unequal lengths.

    Attributes:
        length: L: the length of the longest fitted row.
        masked: whether the fitted rows were of unequal lengths, so that a row is (x [C, L], mask [L]) and not x alone.
        shift: mean of each channel over the fitted rows.
        scale: standard deviation of each channel over the fitted rows (ddof 0); 1 where it is constant.

    Example:
        >>> encoder = SeriesEncoder.fit(as_series([[[1.0, 3.0]], [[2.0, 2.0]], [[5.0, 5.0]]]), np.array([0, 1]))
        >>> encoder.shift, encoder.length, encoder.masked
        ((2.0,), 2, False)
        >>> SeriesEncoder((2), False, (2.0,), (0.5,)).encode([[[3.0, 1.0, 9.0]]]).values
        tensor([[[ 2., -2.]]])
    """

    length: int
    masked: bool
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    kind = "series"

    @classmethod
    def fit(cls, series: Series, rows: Int64[np.ndarray, " rows"]) -> "SeriesEncoder":
        """Returns an encoder fitted to the given rows only."""
        fitted = [series[row] for row in rows]
        lengths = {each.shape[1] for each in fitted}
        moments = [_moments(np.concatenate([each[c] for each in fitted])) for c in range(fitted[0].shape[0])]
        shift, scale = zip(*moments, strict=True)
        return cls(max(lengths), len(lengths) > 1, shift, scale)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (len(self.shift), self.length)

    def encode(self, features: Any) -> Inputs:
        series, channels = self._series(features), len(self.shift)
        if 4 * len(series) * channels * self.length > MAX_BYTES:
            raise InputError(
                f"X: {len(series)} series padded to the longest of them, {self.length} steps, take more than "
                f"{MAX_BYTES >> 30} GiB; cut or thin out the long ones."
            )
        values = np.zeros((len(series), channels, self.length), dtype=np.float32)
        shift, scale = np.array(self.shift)[:, None], np.array(self.scale)[:, None]
        for row, each in enumerate(series):
            with np.errstate(over="ignore"):
                scaled = ((each[:, : self.length] - shift) / scale).astype(np.float32)
            if np.isinf(scaled).any():
                raise InputError(f"X: row {row} lies too far outside what the model was trained on; correct it.")
            values[row, :, : scaled.shape[1]] = np.where(np.isnan(scaled), 0, scaled)
        if not self.masked:
            return TensorInputs(torch.from_numpy(values))
        lengths = torch.tensor([min(each.shape[1], self.length) for each in series])
        return MaskedInputs(torch.from_numpy(values), lengths)

    def _series(self, features: Any) -> Series:
        series, channels = as_series(features), len(self.shift)
        if series[0].shape[0] != channels:
            raise InputError(
                f"X: series have {series[0].shape[0]} channels; give {channels}, as the model was trained on."
            )
        return series

    def program(self) -> Program:
        port = Port("series", self.input_shape, torch.float32, "raw values, NaN where missing and behind the end")
        shift, scale = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (self.shift, self.scale))
        about = {
            "length": f"series are cut to their first {self.length} steps, or padded with NaN at their end",
            "shift": list(self.shift),
            "scale": list(self.scale),
        }
        return Program((port,), FromSeries(shift, scale, self.masked), self._tensors, about)

    def _tensors(self, features: Any) -> tuple[Float32[Tensor, "N C L"]]:
        rows = [torch.from_numpy(self._cut(each)) for each in self._series(features)]
        return (padded(rows, self.input_shape),)

    def _cut(self, series: Float32[np.ndarray, "C _L"]) -> Float32[np.ndarray, "C _M"]:
        """Returns the steps that are kept; where more follow, missing values at the end are no padding, but filled."""
        if series.shape[1] <= self.length:
            return series
        kept = series[:, : self.length].copy()
        kept[:, -1] = np.where(np.isnan(kept[:, -1]), np.array(self.shift), kept[:, -1])
        return kept

    def spec(self) -> dict[str, Any]:
        state = {"length": self.length, "masked": self.masked, "shift": list(self.shift), "scale": list(self.scale)}
        return {"kind": self.kind, **state}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "SeriesEncoder":
        return cls(spec["length"], spec["masked"], tuple(spec["shift"]), tuple(spec["scale"]))


@dataclass(frozen=True)
class SeriesDataset(Dataset):
    """Labelled series: `features` is a tuple of N float32 arrays [C, L]."""

    form = "series"
    standardised = True

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> SeriesEncoder:
        return SeriesEncoder.fit(self.features, rows)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        # Adding 0 turns -0.0, which equals 0.0, into it; the lengths of two channels must not run into each other.
        return content_hashes(f"{each.shape}".encode() + (each + 0).tobytes() for each in self.features)


def from_series(
    series: Any,
    y: Any,
    *,
    name: str = "series",
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    groups: Any = None,
    times: Any = None,
) -> SeriesDataset:
    """Returns a data set of time series.

    Args:
        series: [N, C, L] or, of one channel, [N, L] numbers; or, of unequal lengths, a list of N arrays [C, L_i] or
            [L_i]. A missing value is NaN; steps at the end in which every channel is NaN are padding, and left out.
        y: [N] text, whole numbers or booleans (classes), or [N] or [N, K] floats (regression).
        name: a short name for messages and the run directory.
        kind: `classification` or `regression` where the type of `y` says otherwise.
        labels: the classes of an earlier run, in its order; default the labels of `y`, sorted.
        groups: [N] group of each row, or None.
        times: [N] number or date of each row, or None.

    Raises:
        InputError: no rows, a row without values, infinite values, unequal numbers of channels, lengths that differ
            between series and y, a target that cannot be used.

    Example:
        >>> dataset = from_series([[1.0, 2.0, 3.0], [4.0, 5.0]], ["up", "down"])
        >>> [each.shape for each in dataset.features], dataset.target.labels
        ([(1, 3), (1, 2)], ('down', 'up'))
    """
    features = as_series(series)
    target = make_target(y, kind=kind, labels=labels)
    if len(features) != len(target.values):
        raise InputError(f"y: has {len(target.values)} targets for {len(features)} series; give one a series.")
    return SeriesDataset(
        name,
        features,
        target,
        row_values(groups, len(features), "groups"),
        row_values(times, len(features), "times", sortable=True),
    )


def as_series(series: Any) -> Series:
    """Returns series as float32 arrays [C, L], checked, and their padding left out (see `from_series`).

    Raises:
        InputError: as for `from_series`.

    Example:
        >>> as_series([[1, 2, 3], [4, 5]])
        (array([[1., 2., 3.]], dtype=float32), array([[4., 5.]], dtype=float32))
    """
    if isinstance(series, (np.ndarray, Tensor)):
        whole = _numbers(series, "X")
        if whole.ndim not in (2, 3):
            raise InputError(f"X: has shape {list(whole.shape)}; give series of shape [N, C, L] or [N, L].")
        items: list[Float32[np.ndarray, "*shape"]] = list(whole)
    elif isinstance(series, (list, tuple)):
        items = [_numbers(each, f"X: row {row}") for row, each in enumerate(series)]
    else:
        raise InputError(f"X: is a {type(series).__name__}; give series as an array [N, C, L] or a list of arrays.")
    if not items:
        raise InputError("X: has no rows; give one series at least.")
    channels = len(np.atleast_2d(items[0]))
    return tuple(_checked(each, row, channels) for row, each in enumerate(items))


def from_ucr(path: Path, *, kind: Kind | None = None, labels: Sequence[Label] | None = None) -> SeriesDataset:
    """Returns a data set of a UCR file (see `read_ucr`).

    Raises:
        InputError: as for `read_ucr` and `from_series`.
    """
    series, y = read_ucr(path)
    return from_series(series, y, name=path.stem, kind=kind, labels=labels)


def is_ucr(path: Path) -> bool:
    """Returns whether a .tsv file begins with numbers alone, as those of the UCR archive do, and not with names."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            fields = file.readline().strip().split("\t")
    except (OSError, UnicodeDecodeError):
        return False  # the reader of tables says what is wrong
    return len(fields) > 1 and all(_is_number(field) for field in fields)


def read_ucr(path: Path) -> tuple[Float32[np.ndarray, "N 1 L"], Shaped[np.ndarray, " N"]]:
    r"""Returns the series and the labels of a file of the UCR archive.

    One series a line: the label, then its values, divided by tabs, with no line of names. NaN at the end pads a
    shorter series; elsewhere it is a missing value. (Dau et al., *The UCR time series archive*, 2019,
    arXiv:1810.07758.)

    Args:
        path: a .tsv file.

    Returns:
        Series [N, 1, L], padded with NaN; labels, int64 where all are whole numbers, else float64.

    Raises:
        InputError: no such file, no series, a line with too few or too many fields, a field that is no finite number,
            a missing label; the line is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a_TRAIN.tsv")
        ...     _ = path.write_text("1\t0.5\t2\n-1\t3\tNaN\n")
        ...     read_ucr(path)
        (array([[[0.5, 2. ]],
        <BLANKLINE>
               [[3. , nan]]], dtype=float32), array([ 1, -1]))
    """
    rows: list[Float64[np.ndarray, " fields"]] = []
    for line, text in numbered_lines(read_text(path)):
        fields = text.split("\t")
        if rows and len(fields) != len(rows[0]):
            raise InputError(
                f"{path}: line {line} has {len(fields)} fields where the first has {len(rows[0])}; complete or "
                "remove it (a shorter series is padded with NaN)."
            )
        if len(fields) < 2:
            raise InputError(f"{path}: line {line} has no values; give a label and values, divided by tabs.")
        row = _parse(fields, path, line)
        if np.isnan(row[0]):
            raise InputError(f"{path}: line {line} has no label; its first field must be a number.")
        if np.isnan(row[1:]).all():
            raise InputError(f"{path}: line {line} has no values; give one at least, or remove it.")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no series; give one line at least.")
    table = np.stack(rows)
    labels = table[:, 0]
    whole = bool((labels == np.round(labels)).all())
    return table[:, None, 1:].astype(np.float32), labels.astype(np.int64) if whole else labels


def from_ts(path: Path, *, kind: Kind | None = None, labels: Sequence[Label] | None = None) -> SeriesDataset:
    """Returns a data set of a .ts file (see `read_ts`).

    Raises:
        InputError: the file is unlabelled; as for `read_ts` and `from_series`.
    """
    series, y = read_ts(path)
    if y is None:
        raise InputError(f"{path}: is unlabelled; give a file with '@classLabel true' or '@targetLabel true'.")
    return from_series(series, y, name=path.stem, kind=kind, labels=labels)


def read_ts(path: Path) -> tuple[Series, list[str] | list[int] | list[float] | None]:
    r"""Returns the series and the labels of an sktime .ts file.

    Lines that begin with `@` say what follows, those that begin with `#` or `%` are remarks, and after `@data` every
    line is a series: its channels divided by colons, their values by commas, and last, where the file is labelled,
    the class or the target. `?` is a missing value. (The format of Bagnall et al., *The UEA multivariate time series
    classification archive*, 2018, arXiv:1811.00075.) What the header says of `@dimensions`, `@seriesLength`,
    `@equalLength` and the names of the classes is held against every line. Time stamps are not read.

    Args:
        path: a .ts file.

    Returns:
        Series [C, L_i], float32; and classes (whole numbers where all are, else text), targets as floats, or None
        where the file is unlabelled.

    Raises:
        InputError: no such file, no `@data`, no series, a line that contradicts the header or the first line, a
            field that is no finite number; the line is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.ts")
        ...     _ = path.write_text("@classLabel true up down\n@data\n1,?,3:4,5,6:up\n7,8:9,0:down\n")
        ...     series, labels = read_ts(path)
        >>> series[0], labels
        (array([[ 1., nan,  3.],
               [ 4.,  5.,  6.]], dtype=float32), ['up', 'down'])
    """
    lines = numbered_lines(read_text(path))
    header = _TsHeader.parse(lines, path)
    series: list[Float32[np.ndarray, "C L"]] = []
    labels: list[str] = []
    for line, text in lines:
        if text.lstrip()[0] in "#%":
            continue
        channels = text.strip().split(":")
        if header.labelled:
            labels.append(header.checked_label(channels.pop().strip(), f"{path}: line {line}"))
        rows = [_parse(channel.split(","), path, line) for channel in channels]
        shape = (len(rows), len(rows[0]) if rows else 0)
        if len({len(row) for row in rows}) > 1:
            raise InputError(f"{path}: line {line} has channels of unequal lengths; complete or remove it.")
        header.check_shape(shape, series[0].shape if series else shape, f"{path}: line {line}")
        if np.isnan(rows).all():
            raise InputError(f"{path}: line {line} has no values; give one at least, or remove it.")
        series.append(np.stack(rows).astype(np.float32))
    if not series:
        raise InputError(f"{path}: holds no series behind @data; give one line at least.")
    return tuple(series), header.typed(labels)


@dataclass(frozen=True)
class _TsHeader:
    """What the lines of a .ts file before `@data` say.

    Attributes:
        classes: the names of the classes; none where they are not listed.
        labelled: whether lines end with a class or a target.
        regression: whether that is a target.
        channels: C, or None where it is not said.
        length: L, or None where it is not said.
        equal: whether all series are said to be of one length.
    """

    classes: tuple[str, ...]
    labelled: bool
    regression: bool
    channels: int | None
    length: int | None
    equal: bool

    @classmethod
    def parse(cls, lines: Iterator[tuple[int, str]], path: Path) -> "_TsHeader":
        """Returns the header, having read `lines` through `@data`."""
        said: dict[str, list[str]] = {}
        for line, text in lines:
            key, *values = text.split()
            if key.lower() == "@data":
                return cls._of(said, path)
            if key[0] == "@":
                said[key.lower()] = values
            elif key[0] not in "#%":
                raise InputError(f"{path}: line {line} is no header; a line '@data' must stand before the series.")
        raise InputError(f"{path}: has no line '@data'; it is no .ts file, or was cut off.")

    @classmethod
    def _of(cls, said: Mapping[str, list[str]], path: Path) -> "_TsHeader":
        def flag(key: str) -> bool:
            return [value.lower() for value in said.get(key, [])[:1]] == ["true"]

        def count(key: str) -> int | None:
            value = said.get(key, [])
            if not value:
                return None
            if not value[0].isdecimal() or int(value[0]) < 1:
                raise InputError(f"{path}: {key} is {value[0]!r}; give a whole number of at least 1.")
            return int(value[0])

        if flag("@timestamps"):
            raise InputError(
                f"{path}: has time stamps, which are not read; write the values alone, '@timeStamps false'."
            )
        channels = count("@dimensions") or count("@dimension") or (1 if flag("@univariate") else None)
        regression = flag("@targetlabel")
        classes = tuple(said["@classlabel"][1:]) if flag("@classlabel") else ()
        labelled = regression or flag("@classlabel")
        return cls(classes, labelled, regression, channels, count("@serieslength"), flag("@equallength"))

    def checked_label(self, label: str, where: str) -> str:
        """Returns the label of a line, which must be one of the classes, or a number where targets are."""
        if not label or label in _MISSING:
            raise InputError(f"{where} has no label; complete or remove it.")
        if self.classes and label not in self.classes:
            raise InputError(
                f"{where} ends with {label[:40]!r}, which @classLabel does not list; it was cut off, or give one of "
                f"{', '.join(self.classes)}."
            )
        if self.regression and not _is_number(label):
            raise InputError(f"{where} ends with {label[:40]!r}; '@targetLabel true' needs numbers.")
        return label

    def check_shape(self, shape: tuple[int, int], first: tuple[int, ...], where: str) -> None:
        """Holds the shape of a line against the header and the first line."""
        channels = self.channels or first[0]
        if shape[0] != channels:
            raise InputError(f"{where} has {shape[0]} channels where {channels} are due; complete or remove it.")
        length = (self.length or first[1]) if self.equal else None
        if length is not None and shape[1] != length:
            raise InputError(
                f"{where} has {shape[1]} steps where {length} are due; complete or remove it, or say "
                "'@equalLength false'."
            )

    def typed(self, labels: list[str]) -> list[str] | list[int] | list[float] | None:
        """Returns the labels as what they are."""
        if not self.labelled:
            return None
        if self.regression:
            return [float(label) for label in labels]
        return [int(label) for label in labels] if all(map(is_whole_number, labels)) else labels


def _numbers(values: Any, where: str) -> Float32[np.ndarray, "*shape"]:
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot become an array ({error}).") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where}: holds values of type {array.dtype}; give numbers.")
    with np.errstate(over="ignore"):
        single: Float32[np.ndarray, "*shape"] = array.astype(np.float32)
    return single


def _checked(values: Float32[np.ndarray, "*shape"], row: int, channels: int) -> Float32[np.ndarray, "C L"]:
    """Returns one series [C, L] without its padding."""
    if values.ndim not in (1, 2):
        raise InputError(f"X: row {row} has shape {list(values.shape)}; give a series of shape [C, L] or [L].")
    series = np.atleast_2d(values)
    if series.shape[0] != channels:
        raise InputError(f"X: row {row} has {series.shape[0]} channels where row 0 has {channels}; give the same.")
    if np.isinf(series).any():
        channel, step = np.argwhere(np.isinf(series))[0].tolist()
        raise InputError(
            f"X: row {row}, channel {channel}, step {step} is no finite float32; correct it, or write NaN for a "
            "missing value."
        )
    known = np.flatnonzero(~np.isnan(series).all(axis=0))
    if len(known) == 0:
        raise InputError(f"X: row {row} has no values; give one at least, or drop the row.")
    return series[:, : known[-1] + 1]


def _moments(values: Float32[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns (mean, standard deviation) of what is not missing; (its value, 1) of what is constant."""
    known = values[~np.isnan(values)].astype(np.float64)
    if len(known) == 0:
        return 0.0, 1.0
    if (known == known[0]).all():  # their computed deviation need not come out as 0
        return float(known[0]), 1.0
    return float(known.mean()), float(known.std())


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse(fields: Sequence[str], path: Path, line: int) -> Float64[np.ndarray, " fields"]:
    """Returns fields as numbers, NaN where missing."""
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:  # rare, so looked at one by one only here
        values = np.empty(len(fields))
        for place, field in enumerate(map(str.strip, fields)):
            if field not in _MISSING and not _is_number(field):
                raise InputError(f"{path}: line {line} holds {field[:40]!r}, which is no number; correct it.") from None
            values[place] = np.nan if field in _MISSING else float(field)
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise InputError(f"{path}: line {line} holds a number that is no finite float32; correct it.")
    return values
