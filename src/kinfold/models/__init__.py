"""Network structures by name, sized to the data; and the user's own by `package.module:factory`.

Building a model draws its initial parameters from torch's global generator, as every torch module does: callers
that keep the global state clean build inside `kinfold.random.seeded`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from kinfold.config import arguments_of, class_of
from kinfold.errors import InputError, unknown
from kinfold.importing import one_line
from kinfold.models.densenet import DenseNet
from kinfold.models.fcn import FCN
from kinfold.models.ft_transformer import FTTransformer
from kinfold.models.hubs import PRETRAINED, build_from_hub, check_hub_model, hub_of, hub_package
from kinfold.models.inception_time import InceptionTime
from kinfold.models.lenet5 import LeNet5
from kinfold.models.mlp import mlp
from kinfold.models.mobilenetv2 import MobileNetV2
from kinfold.models.recurrent import Recurrent
from kinfold.models.rescaled import Rescaled, StandardisedMSE, moments
from kinfold.models.resnet import ResNet
from kinfold.models.resnet18 import ResNet18
from kinfold.models.tabular_resnet import TabularResNet
from kinfold.models.textcnn import TextCNN
from kinfold.models.transformer import Transformer
from kinfold.models.vgg import VGG
from kinfold.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class Structure:
    """A network by name.

    Attributes:
        make: called with the shape of a row, the number of outputs and arguments of its own.
        rows: what it takes, in words.
        paper: where it is from.
        shape: of a row, for the parameter count that lists give.
        outputs: likewise.
        hints: what a data set of such rows says beside their shape (`Encoder.hints`).
    """

    make: Callable[..., nn.Module]
    rows: str
    paper: str
    shape: tuple[int, ...]
    outputs: int
    hints: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> int:
        """Returns how many parameters it has at the reference shape; nothing is drawn or held in memory.

        Example:
            >>> MODELS["resnet20"].parameters()
            269722
        """
        with torch.device("meta"):
            return sum(p.numel() for p in self.make(self.shape, self.outputs, **self.hints).parameters())


_SMALL, _PHOTO, _SERIES, _TEXT, _TABLE = (3, 32, 32), (3, 224, 224), (1, 500), (256,), (16,)
_WORDS = {"vocabulary": 20_000}

MODELS: dict[str, Structure] = {
    "mlp": Structure(mlp, "any", "Rosenblatt 1958; Rumelhart et al. 1986", (64,), 10),
    "lenet5": Structure(LeNet5, "images", "LeCun et al. 1998", (1, 28, 28), 10),
    "resnet20": Structure(partial(ResNet, depth=20), "small images", "He et al. 2016", _SMALL, 10),
    "resnet32": Structure(partial(ResNet, depth=32), "small images", "He et al. 2016", _SMALL, 10),
    "resnet56": Structure(partial(ResNet, depth=56), "small images", "He et al. 2016", _SMALL, 10),
    "resnet18": Structure(ResNet18, "images", "He et al. 2016", _PHOTO, 1000),
    "vgg11-bn": Structure(partial(VGG, depth=11), "images", "Simonyan, Zisserman 2015", _PHOTO, 1000),
    "vgg16-bn": Structure(partial(VGG, depth=16), "images", "Simonyan, Zisserman 2015", _PHOTO, 1000),
    "densenet40": Structure(partial(DenseNet, depth=40), "small images", "Huang et al. 2017", _SMALL, 10),
    "mobilenetv2": Structure(MobileNetV2, "images", "Sandler et al. 2018", _PHOTO, 1000),
    "wide-resnet-16-4": Structure(
        partial(WideResNet, depth=16, widen=4), "small images", "Zagoruyko, Komodakis 2016", _SMALL, 10
    ),
    "fcn": Structure(FCN, "series", "Wang et al. 2017", _SERIES, 2),
    "inception-time": Structure(InceptionTime, "series", "Fawaz et al. 2020", _SERIES, 2),
    "lstm": Structure(
        partial(Recurrent, cell="lstm"), "series, text", "Hochreiter, Schmidhuber 1997", _TEXT, 20, _WORDS
    ),
    "gru": Structure(partial(Recurrent, cell="gru"), "series, text", "Cho et al. 2014", _TEXT, 20, _WORDS),
    "transformer": Structure(Transformer, "series, text", "Vaswani et al. 2017", _TEXT, 20, _WORDS),
    "textcnn": Structure(TextCNN, "text", "Kim 2014", _TEXT, 20, _WORDS),
    "tabular-resnet": Structure(TabularResNet, "tables", "Gorishniy et al. 2021", _TABLE, 26),
    "ft-transformer": Structure(FTTransformer, "tables", "Gorishniy et al. 2021", _TABLE, 26),
}
"""Every structure, by name."""


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
    arguments = arguments_of("model", MODELS[name].make, arguments, first=2)
    try:
        return MODELS[name].make(input_shape, outputs, **arguments)
    except TypeError as error:
        given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise InputError(f"model {name}: cannot be built with {given} ({one_line(error)}).") from error


def factory(
    spec: str | Mapping[str, Any], input_shape: tuple[int, ...], outputs: int, hints: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """Returns a factory without arguments of the model that `spec` describes; each call builds a new one.

    Args:
        spec: a name of `MODELS`; `timm:NAME` or `torchvision:NAME`; `package.module:factory`, which is called without
            arguments but those of `sized`; `{"name": …, **arguments}`; or `{"class_path": "package.module.Class",
            "init_args": {…}}`.
        input_shape: the shape of one row, without the batch axis, for models by name.
        outputs: how many numbers the model gives per row, for models by name.
        hints: what else the data says (`Encoder.hints`); a model by name gets those that it takes and that `spec`
            does not set.

    Raises:
        InputError: an unknown name, or a factory or a package that cannot be imported; on calling what is returned,
            also a factory that fails or returns something other than an `nn.Module`.

    Example:
        >>> factory({"name": "mlp", "hidden": [4]}, (2,), 3)()[1]
        Linear(in_features=2, out_features=4, bias=True)
        >>> factory({"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 2}}, (2,), 2)()
        Flatten(start_dim=2, end_dim=-1)
    """
    if isinstance(spec, str):
        path = spec not in MODELS and hub_of(spec) is None and (":" in spec or "." in spec)
        spec = {"class_path" if path else "name": spec}
    if "name" in spec:
        arguments = {key: value for key, value in spec.items() if key != "name"}
        hub = hub_of(str(spec["name"]))
        if hub is not None:
            check_hub_model(str(spec["name"]), arguments)
            hub_package(hub)  # whether it is there is told before anything is built
            return partial(build_from_hub, spec["name"], input_shape, outputs, **arguments)
        if spec["name"] not in list(MODELS):  # a list, since what YAML gives may not be hashable
            raise InputError(f"{unknown('model', spec['name'], MODELS)} Of your own: package.module:factory.")
        make = MODELS[spec["name"]].make
        arguments_of("model", make, arguments, first=2)  # what is wrong is told before anything is built
        known = inspect.signature(make).parameters
        taken = {name: value for name, value in (hints or {}).items() if name in known}
        return partial(build, spec["name"], input_shape, outputs, **{**taken, **arguments})
    function, given = class_of("model", spec)
    return partial(_call, spec["class_path"], sized(function, input_shape, outputs), given)


def untrained(spec: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """Returns what describes the same structure, but downloads no parameters: for models whose own are at hand.

    Example:
        >>> untrained({"name": "timm:resnet18", "pretrained": True})
        {'name': 'timm:resnet18'}
    """
    if isinstance(spec, str) or hub_of(str(spec.get("name"))) is None:
        return spec
    return {name: value for name, value in spec.items() if name not in PRETRAINED}


def sized(make: Callable[..., nn.Module], input_shape: tuple[int, ...], outputs: int) -> Callable[..., nn.Module]:
    """Returns the factory with the sizes of the data bound, where it cannot be called without them.

    Args:
        make: a class or a function; parameters of it that are called `input_shape` and `outputs` and have no default
            are given those of the data.
        input_shape: the shape of one row, without the batch axis.
        outputs: how many numbers the model gives per row.

    Example:
        >>> def make(input_shape, outputs, bias=False):
        ...     return nn.Linear(input_shape[0], outputs, bias)
        >>> sized(make, (4,), 3)()
        Linear(in_features=4, out_features=3, bias=False)
    """
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return make
    sizes: dict[str, Any] = {"input_shape": input_shape, "outputs": outputs}
    asked = [name for name in sizes if name in parameters and parameters[name].default is inspect.Parameter.empty]
    return partial(make, **{name: sizes[name] for name in asked}) if asked else make


def _call(path: str, function: Callable[..., Any], given: Mapping[str, Any]) -> nn.Module:
    arguments = arguments_of("model.init_args", function, given)  # modules within it are built for each model anew
    try:
        model = function(**arguments)
    except Exception as error:  # the user's own code, which may raise anything
        raise InputError(f"model: {path!r} failed ({one_line(error)}).") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {path!r} returned a {type(model).__name__}; return a torch.nn.Module.")
    return model


__all__ = [
    "FCN",
    "MODELS",
    "VGG",
    "DenseNet",
    "FTTransformer",
    "InceptionTime",
    "LeNet5",
    "MobileNetV2",
    "Recurrent",
    "ResNet",
    "ResNet18",
    "Rescaled",
    "StandardisedMSE",
    "Structure",
    "TabularResNet",
    "TextCNN",
    "Transformer",
    "WideResNet",
    "build",
    "factory",
    "mlp",
    "moments",
    "sized",
    "untrained",
]
