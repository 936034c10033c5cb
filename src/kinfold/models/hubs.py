"""Networks of timm and torchvision by name, where these packages are installed: `timm:NAME`, `torchvision:NAME`."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.models.shapes import image_shape


def from_timm(package: ModuleType, name: str, shape: tuple[int, int, int], outputs: int, **given: Any) -> nn.Module:
    """Returns timm's model of that name for images of any number of channels."""
    model: nn.Module = package.create_model(name, in_chans=shape[0], num_classes=outputs, **given)
    return model


def from_torchvision(
    package: ModuleType, name: str, shape: tuple[int, int, int], outputs: int, **given: Any
) -> nn.Module:
    """Returns torchvision's model of that name for images of three channels."""
    if shape[0] != 3:
        raise InputError(
            f"model: torchvision:{name} needs images of 3 channels, and these have {shape[0]}; choose resnet18, "
            "or a model of timm."
        )
    model: nn.Module = package.get_model(name, num_classes=outputs, **given)
    return model


HUBS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "timm": ("timm", from_timm),
    "torchvision": ("torchvision.models", from_torchvision),
}
"""The module that each prefix stands for, and what makes a model of it."""


def hub_of(name: str) -> str | None:
    """Returns the prefix of a hub's model, or None for another name.

    Example:
        >>> hub_of("timm:resnet18"), hub_of("my_package:factory")
        ('timm', None)
    """
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in HUBS else None


def hub_package(hub: str) -> ModuleType:
    """Returns the module that makes a hub's models.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    module = HUBS[hub][0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision that does not fit torch fails in its own ways
        raise InputError(
            f"model: {hub} cannot be imported ({one_line(error)}); install kinfold[vision] or choose another model."
        ) from None


def build_from_hub(spec: str, input_shape: tuple[int, ...], outputs: int, **arguments: Any) -> nn.Module:
    """Returns a new model of timm or torchvision.

    Args:
        spec: `timm:NAME` or `torchvision:NAME`.
        input_shape: (channels, height, width).
        outputs: how many numbers to give per image.
        arguments: whatever the hub's own `create_model` or `get_model` takes, such as timm's `pretrained`.

    Raises:
        InputError: the package cannot be imported, it has no such model or refuses an argument, or rows are no images
            that the model could take.
    """
    hub, _, name = spec.partition(":")
    package, make = hub_package(hub), HUBS[hub][1]
    shape = image_shape(spec, input_shape, smallest=1)
    try:
        return make(package, name, shape, outputs, **arguments)
    except InputError:
        raise
    except Exception as error:  # the hub's code may raise anything
        given = "".join(f", {argument}={value!r}" for argument, value in arguments.items())
        raise InputError(f"model: {spec}{given} cannot be built ({one_line(error)}).") from error
