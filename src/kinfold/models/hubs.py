"""Networks of timm and torchvision by name, where these packages are installed: `timm:NAME`, `torchvision:NAME`."""

import importlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from kinfold.errors import InputError
from kinfold.importing import one_line, require, require_part
from kinfold.models.shapes import image_shape


def from_timm(package: ModuleType, name: str, shape: tuple[int, int, int], outputs: int, **given: Any) -> nn.Module:
    """Returns timm's model of that name for images of any number of channels."""
    model: nn.Module = package.create_model(name, in_chans=shape[0], num_classes=outputs, **given)
    return model


def from_torchvision(
    package: ModuleType, name: str, shape: tuple[int, int, int], outputs: int, **given: Any
) -> nn.Module:
    """Returns torchvision's model of that name for images of three channels."""
    if name not in package.list_models(module=package):  # those of other tasks download a backbone, unasked
        raise InputError(f"model: torchvision:{name} is no network that classifies images; choose another.")
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


PRETRAINED = ("pretrained", "weights", "weights_backbone")
"""The arguments by which hubs download parameters."""


def hub_of(name: str) -> str | None:
    """Returns the prefix of a hub's model, or None for another name.

    Example:
        >>> hub_of("timm:resnet18"), hub_of("my_package:factory")
        ('timm', None)
    """
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in HUBS else None


def check_hub_model(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuses, where `only_parts` may be named, a hub's model that would bring files or addresses of its maker's.

    Raises:
        InputError: a name such as `timm:hf-hub:…`, an argument that names a file or an address, or one that downloads
            parameters.
    """
    _, _, own = name.partition(":")
    plain = _PLAIN.fullmatch(own) is not None and all(map(_is_plain, arguments.values()))
    require_part(plain and not _FILES & arguments.keys(), name, "model")
    wanted = [f"{argument}={arguments[argument]}" for argument in PRETRAINED if arguments.get(argument)]
    require(not wanted, name, "model", f"is to download parameters ({', '.join(wanted)})")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float)) or _PLAIN.fullmatch(str(value)) is not None


_PLAIN = re.compile(r"\w[\w.-]*")
_FILES = {"cache_dir", "checkpoint_path"}


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
