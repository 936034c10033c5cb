"""What goes from process to process: anything that can be pickled, its tensors beside it as plain memory.

Ray keeps plain memory apart from the rest of an object, so it is written once and read where it lies, by every process
of a node. Torch's own way would copy each tensor, and all of what it is a part of.
"""

import io
import pickle  # nosec B403  # of what a run's own processes send each other, as Ray does; files hold none
import warnings
from collections import ChainMap
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from ray.cloudpickle import CloudPickler
from torch import Tensor

from kinfold.errors import InputError
from kinfold.importing import one_line

Packed: TypeAlias = tuple[bytes, list[np.ndarray]]
"""(the object without its tensors, their bytes)."""


def packed(value: Any) -> Packed:
    """Returns an object as it is sent; functions and classes that cannot be imported go along.

    Example:
        >>> unpacked(packed({"a": torch.arange(3)[1:], "double": lambda x: 2 * x}))["a"]
        tensor([1, 2])
    """
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)  # type: ignore[no-untyped-call]
    return file.getvalue(), [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]


def sent(value: Any) -> Packed:
    """Returns what is the user's, packed.

    Raises:
        InputError: it cannot be.
    """
    try:
        return packed(value)
    except Exception as error:  # whatever the user's objects raise when they are taken apart
        raise InputError(
            f"engine: cluster cannot send the model, the data or another part to its actors ({one_line(error)[:200]}); "
            "give what can be pickled, or another engine."
        ) from error


def unpacked(content: Packed, shared: bool = False) -> Any:
    """Returns the object; its tensors lie in the memory that was sent if `shared`, and may then not be written to."""
    plain, buffers = content
    with warnings.catch_warnings():
        if shared:
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        else:
            buffers = [buffer.copy() for buffer in buffers]
        return pickle.loads(plain, buffers=buffers)  # nosec B301  # from this run's own processes, through Ray


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return tensor.__reduce_ex__(5)  # type: ignore[no-any-return, no-untyped-call]
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _tensor, (flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))


class _Pickler(CloudPickler):
    dispatch_table: ClassVar[Any] = ChainMap(  # type: ignore[misc]  # looked up when a pickler is made
        {Tensor: _reduced}, CloudPickler.dispatch_table
    )


def _tensor(values: UInt8[np.ndarray, " bytes"], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(values).view(dtype).reshape(shape)
