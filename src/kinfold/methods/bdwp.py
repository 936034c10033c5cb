"""BDWP, N:M sparse training in both directions (Fang, Sun, Zhou, Wang, arXiv:2309.13015, IEEE TCAD 2024).

Legend: O outputs and I inputs of a layer, G groups of M weights each.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State, linear_layers, straight_through, within

_MASKED = "masked/"


def nm_mask(weight: Float[Tensor, "*shape"], n: int, m: int, dim: int) -> Bool[Tensor, "*shape"]:
    """Returns which weights are kept: of each M consecutive along an axis, the N of largest magnitude.

    Of weights that are alike the first is kept. A last group may have fewer than M weights, and keeps N of them, too.

    Args:
        weight: of any shape.
        n: N, kept of a group.
        m: M, of a group.
        dim: the axis along which weights are grouped.

    Example:
        >>> nm_mask(torch.tensor([[1.0, -3.0, 2.0, 0.5], [0.1, 0.1, 0.1, 0.0]]), 2, 4, dim=1).int().tolist()
        [[0, 1, 1, 0], [1, 1, 0, 0]]
    """
    size = weight.detach().abs().movedim(dim, -1)
    length = size.shape[-1]
    padded = F.pad(size, (0, -length % m), value=-1.0)  # what is put in comes after all others
    groups = padded.reshape(*padded.shape[:-1], -1, m)
    places = [place.contiguous() for place in groups.unbind(-1)]
    ranks = [torch.zeros_like(place, dtype=torch.uint8) for place in places]
    # By comparing every two of a group, which for so few is much faster than to sort them.
    for i, j in itertools.combinations(range(m), 2):
        later = places[j] > places[i]
        ranks[i] = ranks[i] + later
        ranks[j] = ranks[j] + ~later
    return (torch.stack(ranks, -1) < n).flatten(-2)[..., :length].movedim(-1, dim)


def both_ways(
    weight: Float[Tensor, "O I *kernel"], n: int, m: int
) -> tuple[Float[Tensor, "O I *kernel"], Float[Tensor, "O I *kernel"]]:
    """Returns a layer's weight as the forward pass sees it, and as the gradient to the layer's inputs does.

    W̃_F keeps N of M along the inputs, which are summed over in y = W̃_F x; W̃_B keeps N of M along the outputs, summed
    over in ∂L/∂x = W̃_Bᵀ ∂L/∂y. The gradient to the first goes straight through to the weight; none goes to the second.

    Args:
        weight: W, of a linear layer or a convolution.
        n: N.
        m: M.

    Example:
        >>> forward, backward = both_ways(torch.tensor([[1.0, 2.0], [3.0, 1.5]]), 1, 2)
        >>> forward.tolist(), backward.tolist()
        ([[0.0, 2.0], [3.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]])
    """
    return straight_through(_sparse(weight, n, m, 1), weight), _sparse(weight, n, m, 0)


@final
@dataclass(frozen=True)
class BDWP(Method):
    """Trains with N:M sparse weights in the forward pass and in the backward pass to layers' inputs.

    The optimizer, the weights' own gradients and transfers are those of the dense master weights, from which both masks
    are made anew in every pass. So what a transfer has mixed is sparse as well; what is scored and handed back is W̃_F.

    Attributes:
        n: N, weights kept of each group.
        m: M, consecutive weights that are a group.
        layers: names of the layers; default all linear layers and ungrouped convolutions but the last, in whose
            backward pass most classes would go unheard.

    Example:
        >>> BDWP(2, 4)
        BDWP(n=2, m=4, layers=None)
    """

    n: int = 2
    m: int = 8
    layers: tuple[str, ...] | list[str] | None = None

    conflicts: ClassVar[frozenset[str]] = frozenset({"QuantisedDistillation"})  # its grids need not have a zero

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise InputError(f"bdwp: n is {self.n} and m is {self.m}; give whole numbers with 1 ≤ n ≤ m, such as 2, 8.")

    def start(self, params: Params, context: Context) -> State:
        known = linear_layers(context.module)
        for name in self.layers or ():
            if name not in known:
                raise InputError(f"bdwp: {name!r} is no linear layer or ungrouped convolution; use {', '.join(known)}.")
        chosen = [*known][: max(1, len(known) - 1)] if self.layers is None else self.layers
        names = [name for layer in chosen if (name := within(layer, "weight")) in params]
        if not names:
            raise InputError("bdwp: the model trains no linear layer or ungrouped convolution; leave bdwp out.")
        # The names are what the state is for; masks follow from the weights.
        return {_MASKED + name: params[name].new_zeros(0) for name in names}

    def weights(self, params: Params, state: State) -> Params:
        sparse = {name: _sparse(params[name], self.n, self.m, 1) for name in _names(state)}
        return {**params, **{name: straight_through(value, params[name]) for name, value in sparse.items()}}

    def backward_weights(self, params: Params, state: State) -> Params:
        return {name: _sparse(params[name], self.n, self.m, 0) for name in _names(state)}


def _sparse(weight: Float[Tensor, "*shape"], n: int, m: int, dim: int) -> Float[Tensor, "*shape"]:
    return torch.where(nm_mask(weight, n, m, dim), weight.detach(), 0.0)


def _names(state: State) -> list[str]:
    return [name.removeprefix(_MASKED) for name in state]
