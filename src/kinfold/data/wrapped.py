"""Map-style `torch.utils.data.Dataset`s of (x, y) items, read once into memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from kinfold.data.arrays import ArrayDataset, from_arrays
from kinfold.data.base import Kind, Label
from kinfold.errors import InputError


def from_torch(
    dataset: TorchDataset[Any],
    *,
    name: str = "dataset",
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
) -> ArrayDataset:
    """Returns a data set of the items of a map-style dataset; features are not scaled.

    Every item is read once, here, so an item that its dataset draws at random (augmentation) stays as first
    drawn.

    Args:
        dataset: has a length and gives (x, y) items: x a tensor, an array or numbers, all of one shape; y a
            whole number, a boolean or text (classes), or floats (regression).
        name: a short name for messages and the run directory.
        kind: `classification` or `regression` where the type of y says otherwise.
        labels: the classes of an earlier run, in its order.

    Raises:
        InputError: no length, an item that is no (x, y) pair, items of different shapes (the item is named), and
            all that `from_arrays` raises.

    Example:
        >>> dataset = from_torch(TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])))
        >>> dataset.features.shape, dataset.target.labels
        (torch.Size([4, 3]), (0, 1))
    """
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        X, y = dataset.tensors
        return from_arrays(X, y, name=name, kind=kind, labels=labels)
    items = [_pair(item, number) for number, item in enumerate(_items(dataset))]
    X = _stack([x for x, _ in items], "x")
    targets = [y for _, y in items]
    if isinstance(targets[0], (Tensor, np.ndarray)):
        return from_arrays(X, _stack(targets, "y"), name=name, kind=kind, labels=labels)
    return from_arrays(X, targets, name=name, kind=kind, labels=labels)


def torch_features(dataset: TorchDataset[Any]) -> Tensor:
    """Returns the features of a map-style dataset whose items are (x, y) pairs or x alone.

    Raises:
        InputError: no length, or items of different shapes (the item is named).
    """
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    return _stack([item[0] if isinstance(item, (tuple, list)) else item for item in _items(dataset)], "x")


def _items(dataset: TorchDataset[Any]) -> list[Any]:
    try:
        length = len(dataset)  # type: ignore[arg-type]  # whether it has one is what is asked
    except (TypeError, NotImplementedError):
        raise InputError(f"data: {type(dataset).__name__} has no length; give a map-style dataset.") from None
    if length == 0:
        raise InputError(f"data: {type(dataset).__name__} has no items; give one at least.")
    return [dataset[number] for number in range(length)]


def _pair(item: Any, number: int) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(f"data: item {number} is a {type(item).__name__}; every item must be an (x, y) pair.")
    return item[0], item[1]


def _stack(values: Sequence[Any], what: str) -> Tensor:
    """Returns the items' values as one tensor, floats as float32 (x) or as they are (y)."""
    tensors: list[Tensor] = []
    for number, value in enumerate(values):
        try:
            tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        except (TypeError, ValueError) as error:
            raise InputError(f"data: {what} of item {number} cannot become a tensor ({error}).") from None
        if tensors and tensor.shape != tensors[0].shape:
            raise InputError(
                f"data: {what} of item {number} has shape {list(tensor.shape)} where item 0 has "
                f"{list(tensors[0].shape)}; give items of one shape."
            )
        tensors.append(tensor)
    return torch.stack(tensors)
