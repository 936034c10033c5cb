"""Bringing tensors from the host to a device."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def placed(value: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """Returns a tensor on a device; where that is a GPU, the host does not wait for the copy.

    Example:
        >>> placed(torch.arange(3), torch.device("cpu"))
        tensor([0, 1, 2])
    """
    if device.type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it has been read
