"""Columns of a table as columns of numbers, fitted: numbers, booleans and dates scaled, categories one-hot.

Rows are counted from 0 in every message.
"""

import abc
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from kinfold.data.targets import is_number
from kinfold.errors import InputError

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

MAX_CATEGORIES = 64
"""How many values of a text column get a column of their own; in an id-like column the rarer ones get none."""

STRAY = 0.1
"""What share of the values of a text column are no numbers, at most, that looks like a column of numbers."""

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
        fitted = numbers_of(series, name, sort)[rows]
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
        values = numbers_of(series, self.name, self.sort)
        missing = np.isnan(values)
        with np.errstate(over="ignore"):
            scaled = ((np.where(missing, self.fill, values) - self.shift) / self.scale).astype(np.float32)
        _require_finite(scaled, series, self.name, "too far from the rows that the column was fitted to")
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
        codes, texts = texts_of(series.iloc[rows])
        present = codes[codes >= 0]
        counts: Counter[str] = Counter()  # values that differ may be written alike
        for text, count in zip(texts, np.bincount(present, minlength=len(texts)).tolist(), strict=True):
            counts[text] += count
        frequent = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
        return cls(name, tuple(sorted(frequent)), len(present) < len(codes))

    @property
    def code_of_missing(self) -> int:
        """The number that stands for a missing value."""
        return len(self.categories) if self.missing else -1

    def codes(self, series: "pandas.Series[Any]") -> Int64[np.ndarray, " N"]:
        """Returns which of its columns of numbers is 1 in each row; −1 for none."""
        codes, texts = texts_of(series)
        place = {text: number for number, text in enumerate(self.categories)}
        # A missing value has the code −1, and so finds the last entry.
        known = np.array([place.get(text, -1) for text in texts] + [self.code_of_missing], dtype=np.int64)
        found: Int64[np.ndarray, " N"] = known[codes]
        return found

    def encode(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N width"]:
        one_hot: Float32[np.ndarray, "N width"] = np.equal.outer(self.codes(series), np.arange(self.width)).astype(
            np.float32
        )
        return one_hot


def sort_of(series: "pandas.Series[Any]", name: str) -> Sort:
    """Returns what a column holds. One without any value counts as numbers: all that it says is "missing".

    Raises:
        InputError: a type of column that cannot be encoded.
    """
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


def numbers_of(series: "pandas.Series[Any]", name: str, sort: Sort) -> Float64[np.ndarray, " N"]:
    """Returns the column as numbers, NaN where missing; dates in seconds since 1970 (UTC), durations in seconds.

    Raises:
        InputError: a value that is none of the sort, or no finite float32.
    """
    import pandas as pd

    if series.dtype.kind == "m":
        seconds: Float64[np.ndarray, " N"] = series.dt.total_seconds().to_numpy(dtype=np.float64)
        return seconds
    held = series.astype(object) if isinstance(series.dtype, pd.CategoricalDtype) else series
    is_date = sort_of(held, name) == "date"
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


def _require_finite(
    numbers: Shaped[np.ndarray, " N"], series: "pandas.Series[Any]", name: str, fault: str = "no finite float32"
) -> None:
    bad = np.abs(numbers) > np.finfo(np.float32).max
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"data: column {name!r}, row {row} holds {series.iloc[row]}, which is {fault}; "
            "correct it or leave it empty."
        )


def texts_of(series: "pandas.Series[Any]") -> tuple[Int64[np.ndarray, " N"], list[str]]:
    """Returns each row's place in the list of distinct values, −1 where missing, and the list, as text."""
    try:
        codes, distinct = series.factorize()
    except TypeError as error:
        raise InputError(f"data: column {series.name!r} holds values that are no text ({error}); drop it.") from None
    return codes.astype(np.int64), [_text(value) for value in distinct]


def stray_words(series: "pandas.Series[Any]") -> Int64[np.ndarray, " m"]:
    """Returns the rows of a text column that hold no number, where nearly all the others do (see `STRAY`); else none.

    Example:
        >>> import pandas as pd
        >>> stray_words(pd.Series([*map(str, range(9)), "n.a."])).tolist(), stray_words(pd.Series(["1", "a"])).tolist()
        ([9], [])
    """
    import pandas as pd

    none = np.zeros(0, dtype=np.int64)
    if isinstance(series.dtype, pd.CategoricalDtype):  # somebody said that these are categories
        return none
    codes, texts = texts_of(series)
    # A missing value has the code −1, and so finds the last entry.
    rows = np.flatnonzero(np.array([not is_number(text.strip()) for text in texts] + [False])[codes])
    return rows.astype(np.int64) if len(rows) <= STRAY * (codes >= 0).sum() else none


def _text(value: Any) -> str:
    # Among missing values a file's whole numbers are read as floats; they remain the same categories.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
