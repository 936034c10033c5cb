"""The seam between a format and the rest.

Labelled rows (`Dataset`), fitted preprocessing (`Encoder`), and the encoded rows a model reads (`Inputs`).
A format is one file that gives a `Dataset`. Its preprocessing is fitted once, on the unsealed rows, and not per
task: otherwise column widths would differ between tasks and a copied model would meet another scaler. Once
fitted, an encoder is plain data (`Encoder.spec`) and goes into `model.json`, so that prediction needs no pickle.

Example:
    >>> from kinfold.data import from_arrays
    >>> dataset = from_arrays(torch.zeros(4, 2), ["yes", "no", "no", "yes"])
    >>> dataset.target.labels, dataset.target.values.tolist()
    (('no', 'yes'), [1, 0, 0, 1])
    >>> inputs = dataset.fit(np.arange(3)).encode(dataset.features)
    >>> inputs.rows(torch.tensor([[0, 1]])).shape
    torch.Size([1, 2, 2])
"""

import abc
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped, UInt64
from torch import Tensor

from kinfold.data.programs import Program

Kind: TypeAlias = Literal["classification", "regression"]
Form: TypeAlias = Literal["array", "table", "image", "series", "text"]
Label: TypeAlias = str | int | float | bool
Rows: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a model is called with: one tensor, or a tuple of tensors that become its positional arguments."""


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        kind: classification or regression.
        values: int64 [N] class numbers 0 … C−1, or float64 [N] or [N, K] values.
        labels: class c as the user wrote it, C of them in sorted order; None for regression.
        name: the column's name, or None.
    """

    kind: Kind
    values: Shaped[Tensor, "N *K"]
    labels: tuple[Label, ...] | None = None
    name: str | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a model must give per row: classes, or regression targets."""
        if self.labels is not None:
            return len(self.labels)
        return 1 if self.values.ndim == 1 else int(self.values.shape[1])


class Inputs(abc.ABC):
    """Encoded rows, in memory or read as they are asked for."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def rows(self, index: Int64[Tensor, "*axes"]) -> Rows:
        """Returns the rows at `index`: tensors [*axes, *shape of a row] on the index's device."""

    def batches(self, indices: Sequence[Int64[Tensor, "..."]]) -> Iterator[Rows]:
        """Yields the rows at each of several indices; what is not in memory is read ahead, once for all of them."""
        return map(self.rows, indices)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Inputs":
        """Returns the same rows with floating values as `dtype`, kept on `device` where they are in memory."""
        del device, dtype
        return self

    def held(self) -> Sequence[Tensor]:
        """Returns the tensors that `to` brings to a device; none where rows are read as they are asked for."""
        return ()


class TensorInputs(Inputs):
    """Rows held in one tensor [N, …], once, whatever the number of tasks."""

    def __init__(self, values: Shaped[Tensor, "N *shape"]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Int64[Tensor, "*axes"]) -> Tensor:
        return taken(self.values, index)

    def to(self, device: torch.device, dtype: torch.dtype) -> "TensorInputs":
        floating = self.values.is_floating_point()
        return TensorInputs(self.values.to(device, dtype if floating else self.values.dtype))

    def held(self) -> Sequence[Tensor]:
        return (self.values,)


def every_row(inputs: Inputs) -> Rows:
    """Returns all encoded rows at once."""
    return next(iter(inputs.batches([torch.arange(len(inputs))])))


def taken(values: Shaped[Tensor, "N *shape"], index: Int64[Tensor, "*axes"]) -> Shaped[Tensor, "*taken"]:
    """Returns `values[index]`, by the call that takes a CPU less time than indexing does.

    Example:
        >>> taken(torch.arange(6).view(3, 2), torch.tensor([[2, 0]])).tolist()
        [[[4, 5], [0, 1]]]
    """
    return values.index_select(0, index.reshape(-1)).view(*index.shape, *values.shape[1:])


class Encoder(abc.ABC):
    """Fitted preprocessing: turns a format's raw features into `Inputs`."""

    kind: str
    """The encoder's name in `kinfold.data.ENCODERS`, under which `model.json` keeps it."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one encoded row, without the batch axis; models by name are sized by it."""

    @property
    def hints(self) -> dict[str, Any]:
        """What else a model by name may want to know: `vocabulary` of token ids, `widths` of a table's columns."""
        return {}

    @property
    def written(self) -> tuple[str, ...] | None:
        """The columns of a table whose values are read as they are written; None where it encodes no tables."""
        return None

    @abc.abstractmethod
    def encode(self, features: Any) -> Inputs:
        """Returns the encoded rows of `features`, labelled or not.

        Raises:
            InputError: the features do not fit what the encoder was fitted to (missing column, other width,
                a NaN or infinity where none may be), naming the column or row.
        """

    @abc.abstractmethod
    def program(self) -> Program:
        """Returns what of it can be exported with a model, and the way there."""

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """Returns the fitted state as JSON values (floats round-trip exactly)."""

    @classmethod
    @abc.abstractmethod
    def from_spec(cls, spec: dict[str, Any]) -> "Encoder":
        """Returns the encoder that `spec` describes."""


@dataclass(frozen=True)
class Dataset(abc.ABC):
    """Labelled rows, with nothing fitted to them yet.

    Attributes:
        name: a short name for messages and the run directory, such as `digits`.
        features: the raw features, in whatever form the format's encoder reads.
        target: what is to be predicted.
        groups: [N] group of each row (rows of one group are never divided by a grouped split), or None.
        times: [N] sortable time of each row (for ordered splits), or None.
        weights: [N] how much each row counts, in training and where models are scored, all above 0; or None where all
            count alike. See `kinfold.data.weighted`.
        form: what kind of thing a row is; network, augmentation and recipe are chosen by it where nobody says.
        standardised: whether this format brings features, and regression targets for training, to standard units.
    """

    form: ClassVar[Form] = "array"
    standardised: ClassVar[bool] = False
    name: str
    features: Any
    target: Target
    groups: Shaped[np.ndarray, " N"] | None = None
    times: Shaped[np.ndarray, " N"] | None = None
    weights: Float64[np.ndarray, " N"] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.target.values)

    @abc.abstractmethod
    def fit(self, rows: Int64[np.ndarray, " rows"]) -> Encoder:
        """Returns an encoder fitted to the given rows only."""

    @abc.abstractmethod
    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        """Returns a hash of each row's features, equal for rows with equal features (for the split audit)."""


def fingerprint(dataset: Dataset, hashes: UInt64[np.ndarray, " N"]) -> str:
    """Returns a hash of rows, targets and weights, given the rows' own: by it a resumed run knows its data again."""
    weights = b"" if dataset.weights is None else dataset.weights.tobytes()
    return hashlib.sha256(hashes.tobytes() + dataset.target.values.numpy().tobytes() + weights).hexdigest()
