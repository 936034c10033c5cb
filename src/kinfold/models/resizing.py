"""Layers of other sizes in a module that stays the same: what a method's `rebuild` leaves, loaded again."""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from kinfold.errors import InputError


def resize(module: nn.Module, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Gives the layers of a module the sizes that the tensors have, in place; numbers are left undetermined.

    Known are linear layers, convolutions (grouped by channel or not at all), batch norm, layer norm over one axis, and
    embeddings.

    Args:
        module: whose layers have those names.
        tensors: parameters and buffers, by name.

    Raises:
        InputError: a layer of another kind would have to change.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 2))
        >>> smaller = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
        >>> resize(module, smaller.state_dict())
        >>> module(torch.ones(4, 3, 4, 4)).shape, module[0].out_channels
        (torch.Size([4, 2]), 5)
    """
    for path, layer in module.named_modules():
        start = f"{path}." if path else ""
        own = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
        changed = {
            name: tensors[start + name]
            for name, value in own.items()
            if start + name in tensors and tensors[start + name].shape != value.shape
        }
        if not changed:
            continue
        for name, like in changed.items():
            old = own[name]
            new = torch.empty(like.shape, dtype=old.dtype, device=old.device)
            setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        _describe(layer, path)


def _describe(layer: nn.Module, path: str) -> None:
    """Makes a layer say of itself what its tensors are."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd) and not layer.transposed and layer.groups in (1, layer.in_channels):
        layer.out_channels = layer.weight.shape[0]
        if layer.groups > 1:
            layer.groups = layer.in_channels = layer.out_channels
        else:
            layer.in_channels = layer.weight.shape[1]
    elif isinstance(layer, _BatchNorm):
        sized = layer.weight if layer.running_mean is None else layer.running_mean
        layer.num_features = len(sized)
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    else:
        raise InputError(f"load: layer {path!r} is a {type(layer).__name__}, whose size cannot be changed.")
