"""LANTON: learning rates of layers by the noise of their gradients, over Muon.

Hao, Gong, Xu, Wang, Liu, *Noise-Adaptive Layerwise Learning Rates: Accelerating Geometry-Aware Optimization for Deep
Neural Network Training* (arXiv:2510.14009). Legend: O outputs and I inputs of a layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State

_GRADIENT, _NOISE = "gradient/", "noise/"


def dual_norm(matrix: Float[Tensor, "O I"]) -> Float[Tensor, ""]:
    """Returns a gradient's norm dual to that by which Muon's steps are of one length: √max(1, O / I) ‖·‖_nuclear.

    A Muon step is an orthogonal matrix times √max(1, O / I).

    Example:
        >>> dual_norm(torch.diag(torch.tensor([3.0, 4.0])))
        tensor(7.)
    """
    outputs, inputs = matrix.shape
    nuclear: Tensor = torch.linalg.svdvals(matrix).sum()
    return math.sqrt(max(1.0, outputs / inputs)) * nuclear


def layer_rates(noises: Mapping[str, Float[Tensor, ""]], alpha: float | int) -> dict[str, Float[Tensor, ""]]:
    """Returns √(α_l / max α) of each layer of a group, with α_l = α / √(α² + H_l).

    Args:
        noises: H_l, mean squared norms of the gradient's noise.
        alpha: α; towards 0 the rates depend on ratios of noises alone, and above all of them they are 1.

    Example:
        >>> rates = layer_rates({"a": torch.tensor(0.0), "b": torch.tensor(15.0)}, alpha=1.0)
        >>> float(rates["a"]), float(rates["b"])
        (1.0, 0.5)
    """
    least = torch.stack(list(noises.values())).min()
    return {name: ((alpha**2 + least) / (alpha**2 + noise)) ** 0.25 for name, noise in noises.items()}


@final
@dataclass(frozen=True)
class LANTON(Method):
    """Makes the steps of noisy layers shorter, in proportion to the least noisy one of the network.

    H_l ← β₂ H_l + (1 − β₂) ‖G − G̃‖², with G the gradient of a layer's matrix, G̃ that of the step before, and the norm
    `dual_norm`; then the layer's step, weight decay included, is scaled by `layer_rates`. The layers are the parameters
    of two axes, which are those that the optimizer `muon` steps by Muon; others keep their steps.

    Attributes:
        alpha: α, against which noise counts.
        beta: β₂.

    Example:
        >>> LANTON(alpha=0.1).beta
        0.9
    """

    alpha: float | int = 0.01
    beta: float | int = 0.9

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"lanton: alpha is {self.alpha!r}; give a number above 0.")
        if not 0.0 <= self.beta < 1.0:
            raise InputError(f"lanton: beta is {self.beta!r}; give a number from 0 to below 1.")

    def start(self, params: Params, context: Context) -> State:
        del context
        matrices = {name: value for name, value in params.items() if value.ndim == 2}
        if not matrices:
            raise InputError(
                "lanton: the model has no parameter of two axes, as a linear layer's weight; leave it out."
            )
        state = {"steps": next(iter(matrices.values())).new_zeros(())}
        for name, value in matrices.items():
            state |= {_GRADIENT + name: torch.zeros_like(value), _NOISE + name: value.new_zeros(())}
        return state

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        del params
        first, state = state["steps"] == 0, state | {"steps": state["steps"] + 1}
        for name in _matrices(state):
            if name in grads:
                noise = dual_norm(grads[name] - state[_GRADIENT + name]).square()
                before = state[_NOISE + name]
                mean = self.beta * before + (1 - self.beta) * noise
                state[_NOISE + name] = torch.where(first, before, mean)  # there is no gradient before the first
                state[_GRADIENT + name] = grads[name]
        return grads, state

    def update(self, before: Params, params: Params, state: State) -> tuple[Params, State]:
        rates = layer_rates({name: state[_NOISE + name] for name in _matrices(state)}, self.alpha)
        scaled = {name: before[name] + rate * (params[name] - before[name]) for name, rate in rates.items()}
        return params | scaled, state


def _matrices(state: State) -> list[str]:
    return [name.removeprefix(_GRADIENT) for name in state if name.startswith(_GRADIENT)]
