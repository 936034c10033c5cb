"""Network structures by name, sized to the data; and the user's own by `package.module:factory`.

Building a model draws its initial parameters from torch's global generator, as every torch module does: callers
that keep the global state clean build inside `kinfold.random.seeded`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from kinfold.errors import InputError, unknown
from kinfold.importing import load_callable, one_line
from kinfold.models.lenet5 import LeNet5
from kinfold.models.mlp import mlp
from kinfold.models.rescaled import Rescaled, StandardisedMSE, moments
from kinfold.models.resnet import ResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet5": LeNet5,
    "resnet20": partial(ResNet, depth=20),
    "resnet32": partial(ResNet, depth=32),
    "resnet56": partial(ResNet, depth=56),
}
"""Every structure: called with the shape of a row, the number of outputs and arguments of its own."""


def build(name: str, input_shape: tuple[int, ...], outputs: int, **arguments: Any) -> nn.Module:
    """Returns a new model of the structure called `name`.

    Args:
        name: an entry of `MODELS`.
        input_shape: the shape of one row, without the batch axis.
        outputs: how many numbers the model gives per row: classes, or regression targets.
        arguments: what the structure takes beside these, such as `hidden` for `mlp`.

    Raises:
        InputError: an unknown name or argument, an argument of a wrong type, or rows of a shape that the structure
            cannot take.

    Example:
        >>> sum(p.numel() for p in build("mlp", (1, 8, 8), 10, hidden=(32,)).parameters())
        2410
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    known = list(inspect.signature(MODELS[name]).parameters)[2:]
    for argument in arguments:
        if argument not in known:
            raise unknown(f"model {name}", argument, known)
    try:
        return MODELS[name](input_shape, outputs, **arguments)
    except TypeError as error:
        given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise InputError(f"model {name}: cannot be built with {given} ({one_line(error)}).") from error


def factory(spec: str | Mapping[str, Any], input_shape: tuple[int, ...], outputs: int) -> Callable[[], nn.Module]:
    """Returns a factory without arguments of the model that `spec` describes; each call builds a new one.

    Args:
        spec: a name of `MODELS`; `package.module:factory`, which is called without arguments;
            `{"name": …, **arguments}`; or `{"class_path": "package.module.Class", "init_args": {…}}`.
        input_shape: the shape of one row, without the batch axis, for models by name.
        outputs: how many numbers the model gives per row, for models by name.

    Raises:
        InputError: an unknown name, or a factory that cannot be imported; on calling what is returned, also a
            factory that fails or returns something other than an `nn.Module`.

    Example:
        >>> factory({"name": "mlp", "hidden": [4]}, (2,), 3)()[1]
        Linear(in_features=2, out_features=4, bias=True)
        >>> factory({"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 2}}, (2,), 2)()
        Flatten(start_dim=2, end_dim=-1)
    """
    if isinstance(spec, str):
        spec = {"class_path": spec} if ":" in spec else {"name": spec}
    if "name" in spec:
        arguments = {key: value for key, value in spec.items() if key != "name"}
        if spec["name"] not in MODELS:
            raise unknown("model", spec["name"], MODELS)
        return partial(build, spec["name"], input_shape, outputs, **arguments)
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown("model", key, ("class_path", "init_args", "name"))
    if "class_path" not in spec:
        raise InputError("model: has neither name nor class_path; give one of them.")
    return partial(_call, spec["class_path"], load_callable(spec["class_path"], "model"), spec.get("init_args") or {})


def _call(path: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = function(**arguments)
    except Exception as error:  # the user's own code, which may raise anything
        raise InputError(f"model: {path!r} failed ({one_line(error)}).") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {path!r} returned a {type(model).__name__}; return a torch.nn.Module.")
    return model


__all__ = ["MODELS", "LeNet5", "ResNet", "Rescaled", "StandardisedMSE", "build", "factory", "mlp", "moments"]
