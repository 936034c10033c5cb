"""The loss of one step and its gradients, as the stage GRADIENTS gets them.

Legend: m parameters at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.methods.model import LayerMeans, Params, linear_layers

Loss: TypeAlias = Callable[[Params], tuple[Tensor, Params]]
"""From what is differentiated to (the loss, what has come of the pass)."""

Differentiate: TypeAlias = Callable[[Loss, Params], tuple[Tensor, Params, Params]]
"""From a loss and where to take it to (loss, gradients, what has come of the pass)."""

BIAS, INPUTS = "/bias/", "/inputs/"
"""Begin the names of virtual biases among what is differentiated, and of mean inputs among what has come of a pass."""


def by_autograd(loss: Loss, at: Params) -> tuple[Tensor, Params, Params]:
    """Differentiates as a plain loop does: what the loss does not depend on has no gradient."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    value, passed = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
    return value.detach(), grads, {name: part.detach() for name, part in passed.items()}


@final
class ValueAndGrad:
    """The loss of a step's batch at any parameters, and its gradient. It is called by a method; an engine makes it.

    Called with parameters, it returns (loss, gradients), those of the methods before this one included; buffers and
    the methods' states are then what that pass left, and of several passes, what the last one did.

    Args:
        loss: of what is differentiated: parameters, and whatever else there is, whose names begin with a slash.
        differentiate: how it is.
        module: the structure.
        aside: the same loss of a pass that moves no batch-norm statistics; default `loss`.
        also: what else is differentiated with respect to: the methods' own trained state.
        inside: the methods before this one, or None.
        passed: where goes what has come of a pass: buffers by name, new states of method i as `/i/name`.

    Example:
        >>> def loss(params):
        ...     return (params["w"] ** 2).sum(), {}
        >>> def differentiate(loss, params):
        ...     grads, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(params)
        ...     return value, grads, after
        >>> value_and_grad = ValueAndGrad(loss, differentiate, nn.Identity())
        >>> value_and_grad({"w": torch.tensor([1.0, 2.0])})
        (tensor(5.), {'w': tensor([2., 4.])})
        >>> value_and_grad.values({}, {"w": torch.tensor([[0.0, 1.0], [2.0, 0.0]])})
        tensor([1., 4.])
    """

    def __init__(
        self,
        loss: Loss,
        differentiate: Differentiate,
        module: nn.Module,
        aside: Loss | None = None,
        also: Mapping[str, Tensor] = {},
        inside: Callable[[Params], tuple[Tensor, Params]] | None = None,
        passed: Params | None = None,
    ):
        self._loss, self._differentiate, self._module = loss, differentiate, module
        self._aside, self._also, self._inside = loss if aside is None else aside, dict(also), inside
        self.passed: Params = {} if passed is None else passed

    def __call__(self, params: Params) -> tuple[Tensor, Params]:
        if self._inside is not None:
            return self._inside(params)
        value, grads, _ = self._pass(params, {})
        return value, grads

    def around(self, inside: Callable[[Params], tuple[Tensor, Params]]) -> "ValueAndGrad":
        """Returns the same loss, whose gradients are those that methods have made of it."""
        return ValueAndGrad(self._loss, self._differentiate, self._module, self._aside, self._also, inside, self.passed)

    def layers(self, params: Params, names: Sequence[str]) -> tuple[Tensor, Params, dict[str, LayerMeans]]:
        """Returns (loss, gradients, what the named layers met), of one pass; gradients are the plain ones.

        Args:
            params: where.
            names: of linear layers and ungrouped convolutions (see `linear_layers`).

        Raises:
            InputError: a layer is another, or the model does not call it.
        """
        known = linear_layers(self._module)
        for name in names:
            if name not in known:
                raise InputError(f"methods: {name!r} is no linear layer or ungrouped convolution; leave it out.")
        like = next(iter(params.values()))
        biases = {name: like.new_zeros(known[name].weight.shape[0]) for name in names}
        value, grads, found = self._pass(params, biases)
        for name in names:
            if INPUTS + name not in found:
                raise InputError(f"methods: layer {name!r} is not called by the model's forward pass; leave it out.")
        means = {
            name: LayerMeans(found[INPUTS + name], found.get(BIAS + name, torch.zeros_like(bias)))
            for name, bias in biases.items()
        }
        return value, grads, means

    def value(self, params: Params, keep: bool = False) -> Tensor:
        """Returns the loss alone. Buffers and states go on from this pass where `keep`, and stay where not."""
        with torch.no_grad():
            value, passed = (self._loss if keep else self._aside)({**params, **self._also})
        if keep:
            self._keep(passed)
        return value

    def values(self, params: Params, many: Params, chunk: int | None = None) -> Float[Tensor, " m"]:
        """Returns the losses at m parameters, in one vectorised pass; draws inside the model are the same for all.

        What does not depend on the parameters in `many`, such as the layers before them, is computed once.

        Args:
            params: common to all; those named in `many` need not be there.
            many: [m, …] each, of some of the parameters.
            chunk: so many at once; default all.
        """

        def of_one(own: Params) -> Tensor:
            return self.value({**params, **own})

        losses: Tensor = torch.vmap(of_one, randomness="same", chunk_size=chunk)(many)
        return losses

    def _pass(self, params: Params, biases: Params) -> tuple[Tensor, Params, Params]:
        """Returns (loss, gradients, mean inputs and the gradients of virtual biases)."""
        virtual = {BIAS + name: bias for name, bias in biases.items()}
        value, grads, passed = self._differentiate(self._loss, {**params, **self._also, **virtual})
        found = {name: grads[name] for name in virtual if name in grads}
        found |= {name: value for name, value in passed.items() if name.startswith(INPUTS)}
        own = {name: grad for name, grad in grads.items() if name not in virtual}
        self._keep({name: value for name, value in passed.items() if not name.startswith(INPUTS)})
        return value, settled(own, self.passed, self._also), found

    def _keep(self, passed: Params) -> None:
        self.passed.clear()
        self.passed.update(passed)


def settled(grads: Params, passed: Params, also: Mapping[str, Tensor]) -> Params:
    """Returns the parameters' gradients; those of the methods' trained state go to what has come of the pass.

    The gradient with respect to a method's `train/x` becomes its `grad/x`.
    """
    if not also:
        return grads
    for name, value in also.items():
        passed[name.replace("/train/", "/grad/", 1)] = grads.get(name, torch.zeros_like(value))
    return {name: grad for name, grad in grads.items() if name not in also}
