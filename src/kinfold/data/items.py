"""The items of a map-style `torch.utils.data.Dataset` that stay where they are, read one by one as they are needed."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt64
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from kinfold import random
from kinfold.data.streamed import Streamed
from kinfold.errors import InputError
from kinfold.importing import one_line

_CPU = torch.device("cpu")


@final
@dataclass(frozen=True)
class Items:
    """The features of N items.

    Attributes:
        dataset: gives (x, y) items.
        shape: of x.
        dtype: of x.
        hashes: [N] of each x, as it is drawn outside training.
        num_workers: how many processes read items; None for as many as this one may use CPUs, 0 for none.
    """

    dataset: TorchDataset[Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    hashes: UInt64[np.ndarray, " N"]
    num_workers: int | None = None

    def __len__(self) -> int:
        return len(self.hashes)


@final
class StreamedItems(Streamed):
    """Items as they are, unscaled; those of uint8 are held as such.

    Args:
        items: whose features.
        device: where they are held.
        dtype: of what a model reads.
    """

    def __init__(self, items: Items, device: torch.device = _CPU, dtype: torch.dtype = torch.float32):
        self._items, self.device, self._dtype = items, device, dtype
        self.num_workers = items.num_workers

    def __len__(self) -> int:
        return len(self._items)

    @property
    def form(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self._items.shape, torch.uint8 if self._items.dtype == torch.uint8 else torch.float32

    def decode(self, row: int, key: int) -> Shaped[Tensor, "*shape"]:
        x, _ = pair(read_item(self._items.dataset, row, key), row)
        return checked(x, row, self._items.shape, self._items.dtype)

    def finished(self, held: Shaped[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return held.to(self._dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "StreamedItems":
        return StreamedItems(self._items, device, dtype)


def read_item(dataset: TorchDataset[Any], number: int, key: int) -> Any:
    """Returns an item, which the dataset may draw at random from the global generators: by the key, and its number.

    Raises:
        InputError: the dataset fails on it.
    """
    with random.seeded_everywhere(key, number):
        try:
            return dataset[number]
        except InputError:
            raise
        except Exception as error:  # the user's own code, which may raise anything
            raise InputError(
                f"data: item {number} of {type(dataset).__name__} cannot be read ({one_line(error)})."
            ) from error


def pair(item: Any, number: int) -> tuple[Any, Any]:
    """Returns the item as (x, y).

    Raises:
        InputError: it is no pair.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(f"data: item {number} is a {type(item).__name__}; every item must be an (x, y) pair.")
    return item[0], item[1]


def value_tensor(value: Any, what: str, number: int) -> Tensor:
    """Returns what an item holds, a tensor, an array, a picture or numbers, as a tensor on the CPU.

    Args:
        value: of the item.
        what: `x` or `y`, for messages.
        number: the item's.

    Raises:
        InputError: it cannot become a tensor.

    Example:
        >>> value_tensor([1.0, 2.0], "x", 0)
        tensor([1., 2.], dtype=torch.float64)
    """
    try:
        return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"data: {what} of item {number} cannot become a tensor ({error}).") from None


def checked(x: Any, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """Returns an item's x as it is held: uint8 as such, all else as float32.

    Raises:
        InputError: it is no tensor, its shape or type is not that of item 0, or a number in it is not finite.
    """
    tensor = value_tensor(x, "x", number)
    if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
        raise InputError(
            f"data: x of item {number} is {tensor.dtype} of shape {list(tensor.shape)} where item 0 is {dtype} of "
            f"shape {list(shape)}; give items of one shape and type."
        )
    if dtype == torch.uint8:
        return tensor
    single = tensor.to(torch.float32)
    if not bool(single.isfinite().all()):
        raise InputError(f"data: x of item {number} has a number that is no finite float32; leave the item out.")
    return single
