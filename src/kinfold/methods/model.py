"""One task's model as a method sees it: called, looked into, and called with other parameters.

Everything here is functional: parameters and buffers are handed to the module for a call, and hooks are there for that
call alone, so that it can be lifted over all tasks with `torch.vmap`, and recorded.

Legend: B batch, C classes or outputs, I inputs and O outputs of a layer, K elements of a convolution's kernel.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from kinfold.errors import InputError

State: TypeAlias = dict[str, Tensor]
Params: TypeAlias = dict[str, Tensor]
Rows: TypeAlias = Tensor | tuple[Tensor, ...]
Forward: TypeAlias = Callable[[Params, Params, Params, Rows], tuple[Tensor, Params]]
"""From (parameters, frozen parameters, buffers, inputs) to (output [B, C], buffers after the pass)."""

Hooks: TypeAlias = Callable[[nn.Module], AbstractContextManager[None]]
"""Within it, the module's layers are listened to, or changed."""


def forward(module: nn.Module, params: Params, frozen: Params, buffers: Params, x: Rows) -> tuple[Tensor, Params]:
    """Returns one task's output and its buffers after the pass; what was handed in is left as it was."""
    tensors = {**params, **frozen, **{name: value.clone() for name, value in buffers.items()}}
    output = functional_call(module, tensors, x if isinstance(x, tuple) else (x,))
    return output, {name: tensors[name] for name in buffers}  # also those that the module replaced


@final
@dataclass
class Passed:
    """What has come of a pass so far.

    Attributes:
        buffers: as they are now.
        inputs: mean inputs of the layers that are asked for (see `ValueAndGrad.layers`).
    """

    buffers: Params
    inputs: Params = field(default_factory=dict)


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A module with one task's parameters, in the middle of a pass. A method calls it; an engine makes it.

    Calling it takes rows to outputs [B, C]. In training mode that moves batch-norm statistics on, as it does in a plain
    loop; the models that `aside`, `evaluating` and `with_params` return leave them alone.

    Attributes:
        module: the structure; its own parameters are not used.
        forward: how it is called.
        params: what the pass sees of the trained parameters, by name.
        frozen: those that are not trained.
        passed: what has come of the pass, which is common to all models made from this one.
        hooks: are around every call.
        mode: whether buffers go on (`main`), stay while batch norm goes by the batch (`aside`), or are used
            (`evaluating`).

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> model = Model.of(module)
        >>> output, inside = model.tapped(torch.ones(4, 2), ["1"])
        >>> output.shape, inside["1"].shape
        (torch.Size([4, 2]), torch.Size([4, 3]))
        >>> model.with_params({"2.bias": torch.ones(2)})(torch.ones(4, 2)).shape
        torch.Size([4, 2])
    """

    module: nn.Module
    forward: Forward
    params: Params
    frozen: Params
    passed: Passed
    hooks: tuple[Hooks, ...] = ()
    mode: Literal["main", "aside", "evaluating"] = "main"

    @classmethod
    def of(cls, module: nn.Module) -> "Model":
        """Returns a model of a module's own parameters and buffers, which stay as they are."""
        params = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
        frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
        return cls(module, partial(forward, module), params, frozen, Passed(dict(module.named_buffers())))

    def __call__(self, x: Rows) -> Tensor:
        if self.mode == "main" and not self.hooks:
            output, self.passed.buffers = self.forward(self.params, self.frozen, self.passed.buffers, x)
            return output
        with contextlib.ExitStack() as stack:
            for hooks in self.hooks:
                stack.enter_context(hooks(self.module))
            if self.mode != "main":
                stack.enter_context(_unmoved(self.module, evaluating=self.mode == "evaluating"))
            output, after = self.forward(self.params, self.frozen, self.passed.buffers, x)
        if self.mode == "main":
            self.passed.buffers = after
        return output

    def tapped(self, x: Rows, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (output, what the named layers gave in the same pass, [B, …] each).

        Of a layer that is called more than once, it is what the last call gave.

        Raises:
            InputError: the model has no such layer, or it gives something else than one tensor.
        """
        given: dict[str, Tensor] = {}

        def keep(name: str, layer: nn.Module, args: Any, output: Any) -> None:
            del layer, args
            if not isinstance(output, Tensor):
                raise InputError(
                    f"methods: layer {name!r} gives {type(output).__name__}; name one that gives a tensor."
                )
            given[name] = output.clone()  # the next layer may work in place

        named = {name: partial(keep, name) for name in names}
        for name in names:
            layer_of(self.module, name)
        output = replace(self, hooks=(*self.hooks, partial(_hooked, after=named)))(x)
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(f"methods: layer {missing[0]!r} is not called by the model's forward pass; name another.")
        return output, given

    def with_params(self, params: Params) -> "Model":
        """Returns the model with other parameters, seen as they are; those not named stay. Buffers stay, too."""
        mode = "aside" if self.mode == "main" else self.mode
        return replace(self, params={**self.params, **params}, hooks=(), mode=mode)

    def aside(self) -> "Model":
        """Returns the model in training mode whose calls leave no trace: batch-norm statistics stay."""
        return replace(self, mode="aside")

    def remembering(self, x: Rows, output: Tensor) -> "Model":
        """Returns the model, which does not pass the same rows again by which it gave an output just now."""
        training = self.module.training

        def forward(params: Params, frozen: Params, buffers: Params, asked: Rows) -> tuple[Tensor, Params]:
            if asked is x and params is self.params and self.module.training == training:
                return output, buffers
            return self.forward(params, frozen, buffers, asked)

        return replace(self, forward=forward)

    def evaluating(self) -> "Model":
        """Returns the model in evaluation mode: running statistics are used and stay, dropout is off."""
        return replace(self, mode="evaluating")


def layer_of(module: nn.Module, name: str) -> nn.Module:
    """Returns a module's layer by its name.

    Raises:
        InputError: there is none.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        known = [path for path, _ in module.named_modules() if path]
        raise InputError(f"methods: the model has no layer {name!r}; it has {', '.join(known)}.") from None


def linear_layers(module: nn.Module) -> dict[str, nn.Linear | _ConvNd]:
    """Returns the layers whose output is linear in their weight, by name: linear ones, and convolutions ungrouped.

    Example:
        >>> list(linear_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))))
        ['0', '2']
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and layer.groups == 1 and not layer.transposed)
    }


def within(layer: str, name: str) -> str:
    """Returns the whole name of a layer's parameter or buffer; a layer that is the model itself is named "".

    Example:
        >>> within("0.conv", "weight"), within("", "weight")
        ('0.conv.weight', 'weight')
    """
    return f"{layer}.{name}" if layer else name


class LayerMeans(NamedTuple):
    """What a linear layer or convolution met in a pass.

    Attributes:
        inputs: [I·K] mean input over the batch (and the places of an image), in the order of the flattened weight.
        output_grads: [O] sum over the batch (and places) of the gradient of the loss with respect to the output: where
            the loss is a mean over rows, the mean over these of their own loss's gradient.
    """

    inputs: Float[Tensor, " IK"]
    output_grads: Float[Tensor, " O"]


def measuring(biases: Params, passed: Passed) -> Hooks:
    """Returns hooks that add virtual biases to layers' outputs, and note the layers' mean inputs.

    A bias of zeros changes no number, and the gradient with respect to it is the sum of that to the output.

    Args:
        biases: [O] each, by the layer's name.
        passed: where mean inputs go; of a layer that is called more than once, the mean over the calls.
    """
    calls: dict[str, int] = {}

    def measure(name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mean, count = _mean_input(layer, args[0].detach()), calls.get(name, 0)
        before = passed.inputs.get(name, mean)
        calls[name] = count + 1
        passed.inputs[name] = before + (mean - before) / (count + 1)
        places = output.ndim - 2 if isinstance(layer, _ConvNd) else 0
        return output + biases[name].to(output.dtype).view(-1, *[1] * places)

    return partial(_hooked, after={name: partial(measure, name) for name in biases})


def looking_back(weights: Params) -> Hooks:
    """Returns hooks by which gradients go back to layers' inputs through other weights than the pass used.

    The output is y = f(x̄, W) + (f(x, V) − f(x, V)‾) with W the weight of the pass, V the other, and ‾ for what is
    constant to the gradient: f(x, W) in value, V in the gradient to x, and the usual gradient to W.

    Args:
        weights: V, shaped like W, by the parameters' names.
    """
    inputs: dict[str, list[Tensor]] = {}

    def before(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del layer
        inputs.setdefault(name, []).append(args[0])
        return (args[0].detach(), *args[1:])

    def after(name: str, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        del args
        x, weight = inputs[name].pop(), weights[within(name, "weight")].detach()
        if isinstance(layer, nn.Linear):
            back = F.linear(x, weight)
        else:
            assert isinstance(layer, _ConvNd)
            back = layer._conv_forward(x, weight, None)
        return output + (back - back.detach())

    def hooks(module: nn.Module) -> AbstractContextManager[None]:
        known = linear_layers(module)
        names = [name.rpartition(".")[0] for name in weights]
        for name in names:
            if name not in known:
                raise InputError(f"methods: {name!r} is no linear layer or ungrouped convolution; leave it out.")
        early, late = ({name: partial(hook, name) for name in names} for hook in (before, after))
        return _hooked(module, before=early, after=late)

    return hooks


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """Returns exactly `value`, through which the gradient goes to `like` as if it were that.

    Bengio, Léonard, Courville, *Estimating or Propagating Gradients Through Stochastic Neurons* (arXiv:1308.3432).

    Example:
        >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> rounded = straight_through(x.round(), x)
        >>> rounded.sum().backward()
        >>> rounded.tolist(), x.grad.tolist()
        ([0.0, 2.0], [1.0, 1.0])
    """
    return value.detach() + (like - like.detach())


def _mean_input(layer: nn.Module, x: Tensor) -> Float[Tensor, " IK"]:
    if not isinstance(layer, _ConvNd):
        return x.reshape(-1, x.shape[-1]).mean(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], *_windows(layer), strict=True)]
    means = []
    for place in itertools.product(*map(range, layer.kernel_size)):
        slices = [
            slice(at * d, at * d + s * (size - 1) + 1, s)
            for at, size, (_, s, d) in zip(place, sizes, zip(*_windows(layer), strict=True), strict=True)
        ]
        means.append(x[(slice(None), slice(None), *slices)].transpose(0, 1).flatten(1).mean(1))
    return torch.stack(means, 1).flatten()


def _windows(layer: _ConvNd) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return layer.kernel_size, layer.stride, layer.dilation


@contextmanager
def _hooked(
    module: nn.Module, before: Mapping[str, Callable[..., Any]] = {}, after: Mapping[str, Callable[..., Any]] = {}
) -> Iterator[None]:
    """Within, hooks are called before and after the named layers."""
    handles = [layer_of(module, name).register_forward_pre_hook(hook) for name, hook in before.items()]
    handles += [layer_of(module, name).register_forward_hook(hook) for name, hook in after.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unmoved(module: nn.Module, evaluating: bool) -> Iterator[None]:
    """Within, batch-norm statistics stay: they are used, in evaluation mode, or batches are normed by their own."""
    layers = [(layer, layer.training) for layer in module.modules()]
    measured = [layer for layer, _ in layers if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    measured = [] if evaluating else [layer for layer in measured if layer.training]
    try:
        if evaluating:
            module.eval()
        for norm in measured:
            norm.track_running_stats = False
        yield
    finally:
        for layer, training in layers:
            layer.training = training
        for norm in measured:
            norm.track_running_stats = True
