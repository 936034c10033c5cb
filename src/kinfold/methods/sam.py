"""Sharpness-aware minimisation (Foret et al., ICLR 2021, algorithm 1), also adaptive (Kwon et al., ICML 2021)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Method, Params, State, ValueAndGrad


@final
@dataclass(frozen=True)
class SAM(Method):
    """The gradient is that at the worst place near by, θ + ε, where the loss rises most to first order.

    ε = ρ g / ‖g‖ with g the gradient at θ; in the adaptive form (ASAM) ε = ρ T² g / ‖T g‖ with T = |θ| + η, number by
    number, which does not change when a layer is scaled up and the next one down. Each step costs two gradients. The
    loss that is told of is that at θ; of batch-norm statistics those of the second pass count.

    Attributes:
        rho: ρ; 0.05 in the paper of SAM (0.5 to 2 in that of ASAM).
        adaptive: whether to take the adaptive form.
        eta: η of the adaptive form.

    Example:
        >>> SAM(rho=0.1).adaptive
        False
    """

    rho: float | int = 0.05
    adaptive: bool = False
    eta: float | int = 0.01

    def __post_init__(self) -> None:
        for argument, value in (("rho", self.rho), ("eta", self.eta)):
            if not 0.0 <= value < math.inf:
                raise InputError(f"sam: {argument} is {value!r}; give a number of 0 or more.")

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Tensor, Params]:
        del state, key
        value, grads = value_and_grad(params)
        scales = {name: params[name].abs() + self.eta for name in grads} if self.adaptive else None
        steep = grads if scales is None else {name: scales[name] * grad for name, grad in grads.items()}
        norm = torch.stack([grad.square().sum() for grad in steep.values()]).sum().sqrt()
        step = self.rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        rise = steep if scales is None else {name: scales[name] * grad for name, grad in steep.items()}
        near = {name: value + step * rise[name] if name in rise else value for name, value in params.items()}
        _, found = value_and_grad(near)
        return value, found
