"""What is to be predicted, out of whatever the user holds it in; and the columns that stand beside it.

Rows are counted from 0 in every message.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from kinfold.data.base import Dataset, Kind, Label, Target
from kinfold.errors import InputError

Data = TypeVar("Data", bound=Dataset)

_LABEL_TYPES = (str, int, float, bool)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)


def make_target(
    values: Any, *, name: str | None = None, kind: Kind | None = None, labels: Sequence[Label] | None = None
) -> Target:
    """Returns the target that `values` hold.

    Whole numbers, booleans and text are classes, numbered in sorted order; floating numbers are for regression.

    Args:
        values: [N] labels or [N] or [N, K] numbers: an array, a tensor, a list or a column of a table.
        name: the column's name, for messages and predictions.
        kind: overrides what the values' type says.
        labels: the classes of an earlier run, in its order; classes are then not read from `values`.

    Raises:
        InputError: values are missing, infinite, of mixed types or of a type that is no label; there is only
            one class; a class is not among `labels`.

    Example:
        >>> target = make_target(["cat", "dog", "cat"])
        >>> target.kind, target.labels, target.values.tolist()
        ('classification', ('cat', 'dog'), [0, 1, 0])
        >>> make_target([0.5, 2.0]).kind
        'regression'
    """
    where = name or "y"
    array = _plain(values, where)
    kind = kind or ("regression" if array.dtype.kind == "f" else "classification")
    if kind == "regression":
        return Target(kind, torch.from_numpy(_numbers(array, where)), None, name)
    if labels is None:
        labels = tuple(np.unique(_one_per_row(array, where)).tolist())
        if len(labels) < 2:
            raise InputError(f"{where}: every row has the label {labels[0]!r}; give rows of two classes or more.")
    return Target(kind, torch.from_numpy(_class_numbers(array, labels, where)), tuple(labels), name)


def encode_target(values: Any, labels: Sequence[Label] | None, kind: Kind, *, name: str = "y") -> Tensor:
    """Returns targets as a run that knows `labels` numbers them.

    A label is found by its value, else by its text: the labels `1` and `2` of a file that holds no others are
    the classes `"1"` and `"2"` of a run that was trained on text.

    Args:
        values: [N] labels or [N] or [N, K] numbers, as for `make_target`.
        labels: the run's classes, in its order; None for regression.
        kind: what the run predicts.
        name: what the values are called in messages.

    Returns:
        int64 [N] class numbers, or float64 [N] or [N, K].

    Raises:
        InputError: a label that the run does not know, a missing or infinite value.

    Example:
        >>> encode_target(["dog", "cat"], ("cat", "dog"), "classification").tolist()
        [1, 0]
    """
    return make_target(values, name=name, kind=kind, labels=labels).values


def as_written(texts: Sequence[str], kind: Kind | None = None) -> Shaped[np.ndarray, " N"]:
    """Returns what stands in a text file's target column, typed so that its labels come back as they were written.

    Whole numbers, where all are written as Python writes them (`007` is not); floats, where all are numbers and one
    is no integer, or `kind` is regression; else, and where `kind` is classification, the texts themselves.

    Args:
        texts: [N] fields, none of them missing.
        kind: `classification` or `regression` where the user says so.

    Returns:
        int64, float64 or an object array of text.

    Example:
        >>> [as_written(texts).tolist() for texts in (["7", "-1"], ["007", "1"], ["1.0", "2"], ["true", "no"])]
        [[7, -1], ['007', '1'], [1.0, 2.0], ['true', 'no']]
        >>> as_written(["1.0", "2"], "classification").tolist()
        ['1.0', '2']
    """
    if all(map(is_whole_number, texts)):
        return np.array([int(text) for text in texts], dtype=np.int64)
    stripped = [text.strip() for text in texts]
    fractions = kind is None and not all(map(_INTEGER.fullmatch, stripped))
    if (kind == "regression" or fractions) and all(map(is_number, stripped)):
        return np.array([float(text) for text in stripped])
    return np.array(texts, dtype=object)


def is_whole_number(text: str) -> bool:
    """Returns whether a text is an integer of 64 bits, written as Python writes it.

    Example:
        >>> [is_whole_number(text) for text in ("7", "-7", "007", "+7", "-0", "7.0", " 7")]
        [True, True, False, False, False, False, False]
    """
    short = len(text) <= 20 and _INTEGER.fullmatch(text) is not None  # more digits than 64 bits have
    return short and str(int(text)) == text and -(2**63) <= int(text) < 2**63


def is_number(text: str) -> bool:
    """Returns whether a text is a number, as files have them.

    Example:
        >>> [is_number(text) for text in ("-7", "1.", ".5e-3", "inf", "1,5", "n.a.", "")]
        [True, True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(text) is not None


def row_values(values: Any, rows: int, argument: str, *, sortable: bool = False) -> Shaped[np.ndarray, " N"] | None:
    """Returns the group or the time of each row as an array, checked; None stays None.

    Args:
        values: [N] values, or None.
        rows: N.
        argument: `groups` or `times`, for messages.
        sortable: whether only numbers and dates will do.

    Raises:
        InputError: not one value a row, a missing value, or text where `sortable`.

    Example:
        >>> row_values(["a", "b"], 2, "groups").tolist()
        ['a', 'b']
    """
    if values is None:
        return None
    array = _to_numpy(values, argument)
    if array.shape != (rows,):
        raise InputError(f"{argument}: has shape {list(array.shape)} for {rows} rows; give one value a row.")
    if array.dtype.kind != "M":
        array = _plain(array, argument)
    missing = np.isnat(array) if array.dtype.kind == "M" else array != array
    if missing.any():
        raise InputError(f"{argument}: row {int(missing.argmax())} has no value; fill it or drop the row.")
    if sortable and array.dtype.kind not in "iufM":
        raise InputError(f"{argument}: row 0 holds {array[0]!r}; give numbers or dates.")
    return array.astype(str) if array.dtype.kind == "O" else array


def weighted(dataset: Data, weights: Any) -> Data:
    """Returns the data set with rows that count by weights: in the loss they are trained by, and in validation scores.

    The loss of a batch is Σ w · loss / Σ w over its rows, so that only the weights' proportions matter.

    Args:
        dataset: N rows.
        weights: [N] numbers above 0; they are kept divided by their mean. Rows that are not to count at all are to
            be left out of the data, since a row in it is split, scaled and normalised by like any other.

    Raises:
        InputError: not one number a row, or one that is not above 0 or not finite.

    Example:
        >>> from kinfold.data import from_arrays
        >>> weighted(from_arrays([[0.0], [1.0]], [0, 1]), [1, 3]).weights
        array([0.5, 1.5])
    """
    values = row_values(weights, len(dataset), "weights", sortable=True)
    if values is None or values.dtype.kind == "M":
        raise InputError("weights: are no numbers; give one number above 0 a row.")
    values = values.astype(np.float64)
    bad = ~((values > 0) & np.isfinite(values))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"weights: row {row} has {values[row]}; give a number above 0, or leave the row out.")
    return dataclasses.replace(dataset, weights=values / values.mean())


def _to_numpy(values: Any, where: str) -> Shaped[np.ndarray, "*shape"]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array: Shaped[np.ndarray, "*shape"] = np.asarray(values)
        # Of a list of text and other things numpy would make text, and of None the label "None".
        return np.asarray(values, dtype=object) if array.dtype.kind in "US" else array
    except ValueError as error:
        raise InputError(f"{where}: rows differ in shape ({error}).") from None


def _plain(values: Any, where: str) -> Shaped[np.ndarray, "N *K"]:
    """Returns the values as booleans, whole numbers, floats, or an object array of text alone."""
    array = _to_numpy(values, where)
    if array.ndim == 0 or array.size == 0:
        raise InputError(f"{where}: has shape {list(array.shape)}; give one target a row, for a row at least.")
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind != "O":
        raise InputError(f"{where}: holds values of type {array.dtype}; give text, whole numbers, booleans or floats.")
    plain = [value.item() if isinstance(value, np.generic) else value for value in array.ravel().tolist()]
    types = {type(value) for value in plain}
    for row, value in enumerate(plain):
        if type(value) not in _LABEL_TYPES or value != value:
            raise InputError(
                f"{where}: row {row // (array.size // len(array))} holds {value!r}, which cannot be used; "
                "give text, a whole number, a boolean or a float, or drop the row."
            )
    if len(types) > 1 and not types <= {int, float}:
        names = ", ".join(sorted(each.__name__ for each in types))
        raise InputError(f"{where}: mixes labels of the types {names}; write them all the same way.")
    return np.array(plain, dtype=object if types == {str} else None).reshape(array.shape)


def _one_per_row(array: Shaped[np.ndarray, "N *K"], where: str) -> Shaped[np.ndarray, " N"]:
    if array.ndim != 1:
        raise InputError(f"{where}: has shape {list(array.shape)}; classes need one label a row, shape [N].")
    if array.dtype.kind == "f":
        _require_finite(array, where)
    return array


def _class_numbers(array: Shaped[np.ndarray, "N *K"], labels: Sequence[Label], where: str) -> Int64[np.ndarray, " N"]:
    distinct, inverse = np.unique(_one_per_row(array, where), return_inverse=True)
    by_value: Mapping[Label, int] = {label: number for number, label in enumerate(labels)}
    by_text: Mapping[str, int] = {str(label): number for number, label in enumerate(labels)}
    numbers = [by_value.get(label, by_text.get(str(label), -1)) for label in distinct.tolist()]
    if -1 in numbers:
        stranger = numbers.index(-1)
        row = int((inverse == stranger).argmax())
        known = ", ".join(repr(label) for label in labels)
        raise InputError(
            f"{where}: row {row} has the label {distinct.tolist()[stranger]!r}, which is not known; "
            f"the labels are {known}."
        )
    return np.array(numbers, dtype=np.int64)[inverse]


def _numbers(array: Shaped[np.ndarray, "N *K"], where: str) -> Float64[np.ndarray, "N *K"]:
    if array.dtype.kind == "O":
        raise InputError(f"{where}: row 0 holds {array.flat[0]!r}; regression needs numbers.")
    if array.ndim > 2:
        raise InputError(f"{where}: has shape {list(array.shape)}; regression needs shape [N] or [N, K].")
    _require_finite(array, where)
    return np.array(array, dtype=np.float64, order="C")  # a copy: torch shares no memory that may not be written


def _require_finite(array: Shaped[np.ndarray, "N *K"], where: str) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, *column = bad[0].tolist()
        place = f"row {row}" + (f", column {column[0]}" if column else "")
        raise InputError(f"{where}: {place} is {array[tuple(bad[0])]}; give a finite target or drop the row.")
