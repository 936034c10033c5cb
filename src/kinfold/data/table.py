"""Tables: columns of numbers, booleans, dates and categories, scaled and one-hot encoded from the fitted rows.

Rows are counted from 0 in every message.
"""

import abc
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped, UInt64

from kinfold.data.base import Dataset, Encoder, Kind, Label, TensorInputs
from kinfold.data.targets import make_target, row_values
from kinfold.errors import InputError, unknown

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

MAX_CATEGORIES = 64
"""How many values of a text column get a column of their own; in an id-like column the rarer ones get none."""

Sort: TypeAlias = Literal["number", "boolean", "date", "text"]


@dataclass(frozen=True)
class Column(abc.ABC):
    """How one column of a table becomes columns of numbers."""

    name: str

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """How many columns of numbers it becomes."""

    @abc.abstractmethod
    def encode(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N width"]:
        """Returns the encoded column."""


@dataclass(frozen=True)
class NumberColumn(Column):
    """A column of numbers, booleans or dates (in seconds): (x − shift) / scale.

    Attributes:
        sort: what the column holds.
        fill: what stands for a missing value: the mean of the fitted rows.
        shift: that mean; 0 for booleans, which stay 0 and 1.
        scale: the standard deviation of the fitted rows (ddof 0); 1 for booleans and constant columns.
        indicator: whether values were missing, so that a 0/1 column says where.
    """

    sort: Sort
    fill: float
    shift: float
    scale: float
    indicator: bool

    @property
    def width(self) -> int:
        return 2 if self.indicator else 1

    @classmethod
    def fit(
        cls, name: str, sort: Sort, series: "pandas.Series[Any]", rows: Int64[np.ndarray, " rows"]
    ) -> "NumberColumn":
        """Returns the column fitted to the given rows of `series`."""
        fitted = _numbers(series, name, sort)[rows]
        known = fitted[~np.isnan(fitted)]
        if len(known) == 0:
            known = np.zeros(1)
        # The mean and the deviation of equal values need not come out exact, so they are compared.
        constant = bool((known == known[0]).all())
        mean = float(known[0] if constant else known.mean())
        deviation = 0.0 if constant else float(known.std())
        shift, scale = (0.0, 1.0) if sort == "boolean" else (mean, deviation or 1.0)
        return cls(name, sort, mean, shift, scale, bool(np.isnan(fitted).any()))

    def encode(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N width"]:
        values = _numbers(series, self.name, self.sort)
        missing = np.isnan(values)
        with np.errstate(over="ignore"):
            scaled = ((np.where(missing, self.fill, values) - self.shift) / self.scale).astype(np.float32)
        _require_finite(scaled, series, self.name)
        return np.stack([scaled, missing] if self.indicator else [scaled], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class CategoryColumn(Column):
    """A column of text or categories, one-hot; a value that was not seen in the fitted rows is all zeros.

    Attributes:
        categories: the values with a column each, as text, sorted.
        missing: whether values were missing, so that "missing" has a column, the last.
    """

    categories: tuple[str, ...]
    missing: bool

    @property
    def width(self) -> int:
        return len(self.categories) + self.missing

    @classmethod
    def fit(cls, name: str, series: "pandas.Series[Any]", rows: Int64[np.ndarray, " rows"]) -> "CategoryColumn":
        """Returns the column fitted to the given rows of `series`."""
        codes, texts = _texts(series.iloc[rows])
        present = codes[codes >= 0]
        counts: Counter[str] = Counter()  # values that differ may be written alike
        for text, count in zip(texts, np.bincount(present, minlength=len(texts)).tolist(), strict=True):
            counts[text] += count
        frequent = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
        return cls(name, tuple(sorted(frequent)), len(present) < len(codes))

    def encode(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N width"]:
        codes, texts = _texts(series)
        place = {text: number for number, text in enumerate(self.categories)}
        last = len(self.categories) if self.missing else -1
        # A missing value has the code −1, and so finds the last entry.
        places = np.array([place.get(text, -1) for text in texts] + [last], dtype=np.int64)[codes]
        one_hot: Float32[np.ndarray, "N width"] = np.equal.outer(places, np.arange(self.width)).astype(np.float32)
        return one_hot


COLUMNS: dict[str, type[NumberColumn] | type[CategoryColumn]] = {
    "number": NumberColumn,
    "category": CategoryColumn,
}


@dataclass(frozen=True)
class TableEncoder(Encoder):
    """Turns the columns of a table into float32 [N, D], as fitted (see `NumberColumn` and `CategoryColumn`).

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [20.0, 40.0, 30.0], "town": ["Ulm", "Bonn", "Ulm"]})
        >>> encoder = TableEncoder.fit(frame, np.array([0, 1]))
        >>> encoder.encode(frame).values
        tensor([[-1.,  0.,  1.],
                [ 1.,  1.,  0.],
                [ 0.,  0.,  1.]])
    """

    columns: tuple[NumberColumn | CategoryColumn, ...]
    kind = "table"

    @classmethod
    def fit(cls, features: "pandas.DataFrame", rows: Int64[np.ndarray, " rows"]) -> "TableEncoder":
        """Returns an encoder of all columns of `features`, fitted to the given rows only.

        Raises:
            InputError: an infinite value, or a type of column that cannot be encoded.
        """
        columns: list[NumberColumn | CategoryColumn] = []
        for name, series in features.items():
            sort = _sort_of(series, str(name))
            if sort == "text":
                columns.append(CategoryColumn.fit(str(name), series, rows))
            else:
                columns.append(NumberColumn.fit(str(name), sort, series, rows))
        return cls(tuple(columns))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (sum(column.width for column in self.columns),)

    @property
    def hints(self) -> dict[str, Any]:
        return {"widths": [column.width for column in self.columns]}

    def encode(self, features: Any) -> TensorInputs:
        frame = _checked(features)
        names = [column.name for column in self.columns]
        for name in names:
            if name not in frame.columns:
                raise InputError(f"data: has no column {name!r}, which the model was trained on; add it.")
        blocks = [column.encode(frame[column.name]) for column in self.columns]
        return TensorInputs(torch.from_numpy(np.concatenate(blocks, axis=1)))

    def spec(self) -> dict[str, Any]:
        kinds = {column: kind for kind, column in COLUMNS.items()}
        columns = [{"encoding": kinds[type(column)], **dataclasses.asdict(column)} for column in self.columns]
        return {"kind": self.kind, "columns": columns}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "TableEncoder":
        columns = []
        for state in spec["columns"]:
            fields = {key: value for key, value in state.items() if key != "encoding"}
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
            columns.append(COLUMNS[state["encoding"]](**values))
        return cls(tuple(columns))


@dataclass(frozen=True)
class TableDataset(Dataset):
    """Labelled rows of a table: `features` is a pandas DataFrame of the feature columns alone."""

    form = "table"
    standardised = True

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> TableEncoder:
        return TableEncoder.fit(self.features, rows)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        import pandas as pd

        return pd.util.hash_pandas_object(self.features, index=False).to_numpy(dtype=np.uint64)


def from_frame(
    frame: "pandas.DataFrame",
    target: Any,
    *,
    name: str = "table",
    groups: str | None = None,
    times: str | None = None,
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
) -> TableDataset:
    """Returns a data set of a pandas DataFrame: every column but the named ones is a feature.

    Args:
        frame: the labelled rows. Numbers, booleans, dates, text and categories are encoded; values may be
            missing anywhere but in the target, the groups and the times.
        target: the name of the column to predict, or [N] or [N, K] targets that stand outside the frame.
        name: a short name for messages and the run directory.
        groups: the name of the column that says to which group a row belongs, or None.
        times: the name of the column that says when a row was (numbers, dates or ISO 8601 text), or None.
        kind: `classification` or `regression` where the target's type says otherwise: floats are values and not
            classes, even if all are whole and few differ (1.0, 2.0).
        labels: the classes of an earlier run, in its order; default the target's own, sorted.

    Raises:
        InputError: an unknown or doubled column, columns of several levels, no rows, no feature columns, a missing
            or infinite target, a target with one class.

    Example:
        >>> import pandas as pd
        >>> dataset = from_frame(pd.DataFrame({"age": [20, 40], "buys": ["yes", "no"]}), "buys")
        >>> list(dataset.features.columns), dataset.target.labels
        (['age'], ('no', 'yes'))
    """
    frame = _checked(frame)
    named = {"target": target if isinstance(target, str) else None, "groups": groups, "times": times}
    chosen = {argument: column for argument, column in named.items() if column is not None}
    for argument, column in chosen.items():
        if column not in frame.columns:
            raise unknown(argument, column, frame.columns)
        if list(chosen.values()).count(column) > 1:
            raise InputError(f"{argument}: column {column!r} is named twice; target, groups and times must differ.")
    features = frame.drop(columns=list(chosen.values()))
    if features.shape[1] == 0:
        raise InputError(f"data: {name} has no feature columns beside {', '.join(chosen.values())}; add one.")
    if isinstance(target, str):
        made = make_target(_whole(frame[target], target), name=target, kind=kind, labels=labels)
    else:
        made = make_target(target, kind=kind, labels=labels)
    if len(made.values) != len(frame):
        raise InputError(f"y: has {len(made.values)} targets for {len(frame)} rows of X; give one a row.")
    return TableDataset(
        name,
        features,
        made,
        None if groups is None else row_values(_whole(frame[groups], groups), len(frame), "groups"),
        None if times is None else row_values(_moments(frame[times], times), len(frame), "times", sortable=True),
    )


def _checked(frame: Any) -> "pandas.DataFrame":
    """Returns the frame with its columns' names as text, each standing once."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"data: is a {type(frame).__name__} where a table with named columns is needed.")
    if len(frame) == 0:
        raise InputError("data: the table has no rows; give one at least.")
    if isinstance(frame.columns, pd.MultiIndex):
        raise InputError(
            f"data: the names of the columns have {frame.columns.nlevels} levels, such as {frame.columns[0]!r}; "
            "join each into one name."
        )
    named: pd.DataFrame = frame.rename(columns=str)
    doubled = named.columns[named.columns.duplicated()]
    if len(doubled):
        raise InputError(f"data: two columns are called {doubled[0]!r}; rename one.")
    return named


def _whole(series: "pandas.Series[Any]", name: str) -> "pandas.Series[Any]":
    missing = series.isna().to_numpy()
    if missing.any():
        raise InputError(f"{name}: row {int(missing.argmax())} has no value; fill it or drop the row.")
    return series


def _moments(series: "pandas.Series[Any]", name: str) -> Float64[np.ndarray, " N"]:
    """Returns when each row was, as a number: dates, written out or not, in seconds."""
    sort = _sort_of(series, name)
    return _numbers(_whole(series, name), name, "date" if sort == "text" else sort)


def _sort_of(series: "pandas.Series[Any]", name: str) -> Sort:
    """Returns what a column holds. One without any value counts as numbers: all that it says is "missing"."""
    import pandas as pd

    sort_of_kind: dict[str, Sort] = {"b": "boolean", "i": "number", "u": "number", "f": "number"}
    sort_of_kind |= {"M": "date", "m": "number"}
    if isinstance(series.dtype, pd.CategoricalDtype):
        return "text"
    if series.dtype.kind in sort_of_kind:
        return sort_of_kind[series.dtype.kind]
    if series.dtype.kind != "O":
        raise InputError(f"data: column {name!r} holds {series.dtype}; give numbers, dates or text, or drop it.")
    inferred = pd.api.types.infer_dtype(series, skipna=True)
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
        return "number"
    if inferred in ("datetime", "datetime64", "date"):
        return "date"
    return "boolean" if inferred == "boolean" else "text"


def _numbers(series: "pandas.Series[Any]", name: str, sort: Sort) -> Float64[np.ndarray, " N"]:
    """Returns the column as numbers, NaN where missing."""
    import pandas as pd

    if series.dtype.kind == "m":
        seconds: Float64[np.ndarray, " N"] = series.dt.total_seconds().to_numpy(dtype=np.float64)
        return seconds
    held = series.astype(object) if isinstance(series.dtype, pd.CategoricalDtype) else series
    is_date = _sort_of(held, name) == "date"
    if sort == "date" and (is_date or not pd.api.types.is_numeric_dtype(held)):
        moments = pd.to_datetime(held, utc=True, errors="coerce", format="ISO8601")
        values = (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    elif sort != "date" and not is_date:
        values = pd.to_numeric(held, errors="coerce")
    else:  # dates where numbers belong, or numbers where dates do
        values = pd.Series(np.nan, index=held.index)
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    alien = np.isnan(numbers) & held.notna().to_numpy()
    if alien.any():
        row = int(alien.argmax())
        raise InputError(f"data: column {name!r}, row {row} holds {held.iloc[row]!r}, which is no {sort}; correct it.")
    _require_finite(np.where(np.isnan(numbers), 0.0, numbers), series, name)
    return numbers


def _require_finite(numbers: Shaped[np.ndarray, " N"], series: "pandas.Series[Any]", name: str) -> None:
    bad = np.abs(numbers) > np.finfo(np.float32).max
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"data: column {name!r}, row {row} holds {series.iloc[row]}, which is no finite float32; "
            "correct it or leave it empty."
        )


def _texts(series: "pandas.Series[Any]") -> tuple[Int64[np.ndarray, " N"], list[str]]:
    """Returns each row's place in the list of distinct values, −1 where missing, and the list, as text."""
    try:
        codes, distinct = series.factorize()
    except TypeError as error:
        raise InputError(f"data: column {series.name!r} holds values that are no text ({error}); drop it.") from None
    return codes.astype(np.int64), [_text(value) for value in distinct]


def _text(value: Any) -> str:
    # Among missing values a file's whole numbers are read as floats; they remain the same categories.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
