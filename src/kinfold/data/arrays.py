"""Arrays and tensors: rows of any shape that reach the model as they are, unscaled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt64
from torch import Tensor, nn

from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label, TensorInputs, every_row
from kinfold.data.hashes import tensor_hashes
from kinfold.data.items import Items, StreamedItems
from kinfold.data.programs import Port, Program
from kinfold.data.targets import make_target, row_values
from kinfold.errors import InputError

_HASHED_ROWS = 4096  # rows copied at a time while they are hashed


@dataclass(frozen=True)
class ArrayEncoder(Encoder):
    """Passes rows through, having checked their shape and that every number is finite.

    Attributes:
        shape: the shape of one row.
        integer_inputs: whether rows are whole numbers that stay so (token ids).

    Example:
        >>> encoder = ArrayEncoder((2,))
        >>> encoder.encode([[0, 1], [2, 3]]).values
        tensor([[0., 1.],
                [2., 3.]])
    """

    shape: tuple[int, ...]
    integer_inputs: bool = False
    kind = "array"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, features: Any) -> Inputs:
        if isinstance(features, Items):
            self._check(features.shape)
            return StreamedItems(features)
        values = rows_tensor(features, integer_inputs=self.integer_inputs)
        self._check(tuple(values.shape[1:]))
        return TensorInputs(values)

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise InputError(
                f"X: rows have shape {list(shape)}; give rows of shape {list(self.shape)}, as the model was trained on."
            )

    def program(self) -> Program:
        port = Port("x", self.shape, torch.int64 if self.integer_inputs else torch.float32, "rows as they are")
        return Program((port,), nn.Identity(), self._tensors, {})

    def _tensors(self, features: Any) -> tuple[Tensor, ...]:
        rows = every_row(self.encode(features))
        assert isinstance(rows, Tensor)
        return (rows,)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "integer_inputs": self.integer_inputs}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ArrayEncoder":
        return cls(tuple(spec["shape"]), spec["integer_inputs"])


@dataclass(frozen=True)
class ArrayDataset(Dataset):
    """Labelled rows in one tensor: `features` is float32 [N, …], or int64 where whole numbers were asked for."""

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> ArrayEncoder:
        del rows  # nothing is learned from them: arrays pass through unscaled
        return ArrayEncoder(tuple(self.features.shape[1:]), not self.features.is_floating_point())

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        hashes = np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), _HASHED_ROWS):
            block = self.features[start : start + _HASHED_ROWS]
            hashes[start : start + len(block)] = tensor_hashes(block)
        return hashes


def from_arrays(
    X: Any,
    y: Any,
    *,
    name: str = "arrays",
    labels: Sequence[Label] | None = None,
    groups: Any = None,
    times: Any = None,
    kind: Kind | None = None,
    integer_inputs: bool = False,
) -> ArrayDataset:
    """Returns a data set of arrays, tensors or lists; features are not scaled.

    Args:
        X: [N, …] numbers or booleans, which become float32 whatever their type.
        y: [N] text, whole numbers or booleans (classes), or [N] or [N, K] floats (regression).
        name: a short name for messages and the run directory.
        labels: the classes of an earlier run, in its order; default the labels of `y`, sorted.
        groups: [N] group of each row, or None.
        times: [N] number or date of each row, or None.
        kind: `classification` or `regression` where the type of `y` says otherwise.
        integer_inputs: keep whole numbers whole, as int64 (token ids for an embedding).

    Raises:
        InputError: a NaN or infinity in X or y (named by row and column), lengths that differ, no rows, rows of
            no features, only one class, a type that cannot be used.

    Example:
        >>> dataset = from_arrays([[0.0, 1.0], [2.0, 3.0]], [7, 3])
        >>> dataset.features.dtype, dataset.target.labels, dataset.target.values.tolist()
        (torch.float32, (3, 7), [1, 0])
    """
    features = rows_tensor(X, integer_inputs=integer_inputs)
    target = make_target(y, kind=kind, labels=labels)
    if len(features) != len(target.values):
        raise InputError(f"y: has {len(target.values)} targets for {len(features)} rows of X; give one a row.")
    return ArrayDataset(
        name,
        features,
        target,
        row_values(groups, len(features), "groups"),
        row_values(times, len(features), "times", sortable=True),
    )


def rows_tensor(X: Any, *, integer_inputs: bool = False) -> Float32[Tensor, "N *shape"] | Int64[Tensor, "N *shape"]:
    """Returns the rows of an array, a tensor, a table of numbers or nested lists, on the CPU, checked.

    Args:
        X: [N, …] numbers or booleans.
        integer_inputs: whether to return int64 and not float32; X must then hold whole numbers.

    Raises:
        InputError: not numbers, no rows, rows of no features, or a number that is not finite as float32.

    Example:
        >>> rows_tensor(np.array([[1, 2]], dtype=np.uint8))
        tensor([[1., 2.]])
    """
    values = _tensor(X)
    if values.ndim < 2:
        raise InputError(f"X: has shape {list(values.shape)}; give rows of features, shape [N, D] or [N, …].")
    if values.numel() == 0:
        raise InputError(f"X: has shape {list(values.shape)}; give one row and one feature at least.")
    if integer_inputs:
        if values.is_floating_point():
            raise InputError(f"X: holds {values.dtype} where whole numbers are asked for; give an integer array.")
        return values.to(torch.int64).contiguous()
    single = values.to(torch.float32).contiguous()
    if not bool(single.isfinite().all()):
        row, *column = (~single.isfinite()).nonzero()[0].tolist()
        place = column[0] if len(column) == 1 else column
        raise InputError(
            f"X: row {row}, column {place} is {values[(row, *column)].item()}, which is no finite float32; "
            "fill it or drop the row."
        )
    return single


def _tensor(X: Any) -> Tensor:
    if isinstance(X, Tensor):
        if X.is_complex():
            raise InputError(f"X: holds {X.dtype}; give real numbers.")
        return X.detach().cpu()
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise InputError(f"X: rows differ in shape ({error}).") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"X: holds values of type {array.dtype}; give numbers, or a table with named columns.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64 if array.dtype.itemsize < 8 else np.float64)
    if not array.dtype.isnative or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # A copy where torch could not share the memory safely: reversed views, arrays that may not be written.
    return torch.from_numpy(np.array(array, order="C"))
