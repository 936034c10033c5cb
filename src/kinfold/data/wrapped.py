"""Map-style `torch.utils.data.Dataset`s of (x, y) items: read once into memory, or whenever an item is needed."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from kinfold.data.arrays import ArrayDataset, ArrayEncoder, from_arrays
from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.hashes import tensor_hashes
from kinfold.data.items import Items, checked, pair, read_item, value_tensor
from kinfold.data.streamed import Pieces, check_num_workers, processes_for
from kinfold.data.targets import make_target
from kinfold.errors import InputError

_LOOKED_AT = 64  # items that a process looks at at a time


@dataclass(frozen=True)
class ItemsDataset(Dataset):
    """Labelled items that are not in memory: `features` is `Items`."""

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> ArrayEncoder:
        del rows  # nothing is learned from them: items pass through unscaled
        return ArrayEncoder(self.features.shape)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        hashes: UInt64[np.ndarray, " N"] = self.features.hashes
        return hashes


def from_torch(
    dataset: TorchDataset[Any],
    *,
    name: str = "dataset",
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    in_memory: bool = True,
    num_workers: int | None = None,
) -> ArrayDataset | ItemsDataset:
    """Returns a data set of the items of a map-style dataset; features are not scaled.

    Held in memory, every item is read once, here, and what its dataset draws at random (augmentation) stays as first
    drawn. Otherwise every item is read here once for its target, and again in every epoch and every evaluation, once
    for all tasks, ahead of need in other processes (see `kinfold.data.streamed`). What its dataset draws from the
    global generators of torch, NumPy or Python, and from no others, then follows from the run's seed, the epoch and
    the item: it is drawn afresh in every epoch, the same for all tasks, and always the same outside training.

    Args:
        dataset: has a length and gives (x, y) items: x a tensor, an array or numbers, all of one shape; y a
            whole number, a boolean or text (classes), or floats (regression).
        name: a short name for messages and the run directory.
        kind: `classification` or `regression` where the type of y says otherwise.
        labels: the classes of an earlier run, in its order.
        in_memory: whether the items are held; False for those that do not fit.
        num_workers: how many processes read items that are not held; default as many as this one may use CPUs, 0 for
            none.

    Raises:
        InputError: no length, an item that is no (x, y) pair, items of different shapes (the item is named), and
            all that `from_arrays` raises.

    Example:
        >>> items = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> dataset = from_torch(items)
        >>> dataset.features.shape, dataset.target.labels
        (torch.Size([4, 3]), (0, 1))
        >>> len(from_torch(items, in_memory=False).features)
        4
    """
    if not in_memory:
        return _streamed(dataset, name, kind, labels, check_num_workers(num_workers))
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        X, y = dataset.tensors
        return from_arrays(X, y, name=name, kind=kind, labels=labels)
    items = [pair(dataset[number], number) for number in range(_length(dataset))]
    X = _stack([x for x, _ in items], "x")
    return from_arrays(X, _targets([y for _, y in items]), name=name, kind=kind, labels=labels)


def _streamed(
    dataset: TorchDataset[Any], name: str, kind: Kind | None, labels: Sequence[Label] | None, num_workers: int | None
) -> ItemsDataset:
    length = _length(dataset)
    first = value_tensor(pair(read_item(dataset, 0, 0), 0)[0], "x", 0)
    if not first.numel() or not first.ndim or first.is_complex():
        raise InputError(f"data: x of item 0 is {first.dtype} of shape {list(first.shape)}; give real features.")
    look = partial(_look, dataset, tuple(first.shape), first.dtype)
    pieces = (np.arange(start, min(start + _LOOKED_AT, length)) for start in range(0, length, _LOOKED_AT))
    workers = min(processes_for(num_workers), length // _LOOKED_AT)
    with closing(Pieces(look, pieces, workers)) as seen:
        both = [each for piece in seen for each in piece]
    hashes = np.array([each for each, _ in both], dtype=np.uint64)
    items = Items(dataset, tuple(first.shape), first.dtype, hashes, num_workers)
    return ItemsDataset(name, items, make_target(_targets([y for _, y in both]), kind=kind, labels=labels))


def _look(
    dataset: TorchDataset[Any], shape: tuple[int, ...], dtype: torch.dtype, rows: Int64[np.ndarray, " m"]
) -> list[tuple[int, Any]]:
    """Returns (hash of x, y) of some items; a y that is a tensor as an array, which is cheaper to send."""
    found = []
    for row in rows.tolist():
        x, y = pair(read_item(dataset, row, 0), row)
        (content,) = tensor_hashes(checked(x, row, shape, dtype).float()[None])  # as of rows in memory
        found.append((int(content), y.detach().cpu().numpy() if isinstance(y, Tensor) else y))
    return found


def torch_features(dataset: TorchDataset[Any]) -> Tensor:
    """Returns the features of a map-style dataset whose items are (x, y) pairs or x alone.

    Raises:
        InputError: no length, or items of different shapes (the item is named).
    """
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    items = [dataset[number] for number in range(_length(dataset))]
    return _stack([item[0] if isinstance(item, (tuple, list)) else item for item in items], "x")


def _length(dataset: TorchDataset[Any]) -> int:
    try:
        length = len(dataset)  # type: ignore[arg-type]  # whether it has one is what is asked
    except (TypeError, NotImplementedError):
        raise InputError(f"data: {type(dataset).__name__} has no length; give a map-style dataset.") from None
    if length == 0:
        raise InputError(f"data: {type(dataset).__name__} has no items; give one at least.")
    return length


def _targets(values: Sequence[Any]) -> Any:
    return _stack(values, "y") if isinstance(values[0], (Tensor, np.ndarray)) else values


def _stack(values: Sequence[Any], what: str) -> Tensor:
    """Returns the items' values as one tensor."""
    tensors: list[Tensor] = []
    for number, value in enumerate(values):
        tensor = value_tensor(value, what, number)
        if tensors and tensor.shape != tensors[0].shape:
            raise InputError(
                f"data: {what} of item {number} has shape {list(tensor.shape)} where item 0 has "
                f"{list(tensors[0].shape)}; give items of one shape."
            )
        tensors.append(tensor)
    return torch.stack(tensors)
