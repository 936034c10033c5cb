"""Guidance: a network learns to represent rows as another network does, layer by layer.

Subramaniam, Mayo, Conwell, Poggio, Katz, Cheung, Barbu, *Training the Untrainable: Introducing Inductive Bias via
Representational Alignment* (arXiv:2410.20035), and its code (vsubramaniam851/untrainable-networks). Linear CKA is after
Kornblith, Norouzi, Lee, Hinton, *Similarity of Neural Network Representations Revisited* (ICML 2019, section 3).

Legend: B batch, D features of one representation, E of the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from kinfold.errors import InputError
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State
from kinfold.methods.model import layer_of
from kinfold.methods.networks import FrozenNetwork


@final
@dataclass(frozen=True)
class Guidance(Method):
    """The loss becomes loss + weight · Σ (1 − CKA(layer of the network, layer of the guide)), the guide being frozen.

    A trained guide passes on what it has learned, an untrained one the bias of its structure alone. Both see the batch
    as it is trained on. It costs a pass of the guide in each batch, and two products of B × B matrices a layer.

    Attributes:
        guide: a module, or a factory of one without arguments; it takes the same rows as the network.
        layers: which layer of the network is compared with which of the guide, by name; default `layer_pairs`.
        weight: of the sum.
        seed: of the guide, where it is a factory that draws.

    Raises:
        InputError: the weight is out of range, or a layer is not there.

    Example:
        >>> guide = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(32, 3))
        >>> Guidance(guide, layers={"0": "0"}).weight
        1.0
    """

    guide: nn.Module | Callable[[], nn.Module]
    layers: Mapping[str, str] | None = None
    weight: float | int = 1.0
    seed: int = 0
    network: FrozenNetwork = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise InputError(f"guidance: weight is {self.weight!r}; give a number of 0 or more.")
        object.__setattr__(self, "network", FrozenNetwork(self.guide, self.seed))
        for name in (self.layers or {}).values():
            layer_of(self.network.network, name)

    def start(self, params: Params, context: Context) -> State:
        del params
        for name in self._pairs(context.module):  # so that what is not there is told before training
            layer_of(context.module, name)
        return {}

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Float[Tensor, ""]:
        del state, key
        pairs = self._pairs(model.module)
        output, mine = model.tapped(batch.x, list(pairs))
        with torch.no_grad():
            _, theirs = self.network.tapped(batch.x, list(pairs.values()))
        distance = torch.stack([1.0 - linear_cka(mine[one], theirs[other]) for one, other in pairs.items()]).sum()
        return inner(model.remembering(batch.x, output), batch) + self.weight * distance

    def _pairs(self, module: nn.Module) -> Mapping[str, str]:
        return layer_pairs(module, self.network.network) if self.layers is None else self.layers


def linear_cka(x: Float[Tensor, "B *D"], y: Float[Tensor, "B *E"]) -> Float[Tensor, ""]:
    """Returns how alike two representations of the same rows are, from 0 to 1; rotations and scales do not matter.

    CKA = ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖) with K = X Xᵀ and L = Y Yᵀ, features flattened, and H = 1 − 1/B, which centres. In
    batches it is biased upwards where features are many and rows few. A constant representation is like none: 0.

    Args:
        x: [B, …] of one network; gradients go through it.
        y: [B, …] of the other.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> bool(torch.isclose(linear_cka(x, 3 * x.flip(1) + 1), torch.tensor(1.0)))
        True
    """
    # Each normed by its scale first: a Gram matrix of the Gram matrix is of the fourth power, which is soon 0 or ∞.
    k, m = _centred_gram(x), _centred_gram(y)
    floor = torch.finfo(k.dtype).tiny
    return (k * m.to(k.dtype)).sum() / (_norm(k) * _norm(m).to(k.dtype)).clamp_min(floor)


def layer_pairs(network: nn.Module, guide: nn.Module) -> dict[str, str]:
    """Returns which layers are compared: all linear ones and convolutions but the last, spread evenly over depth.

    Of G layers of the guide, number i goes to layer round(i (S − 1) / (G − 1)) of the network's S; where several go to
    one, the last of them counts.

    Raises:
        InputError: one of them has fewer than two such layers.

    Example:
        >>> deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
        >>> layer_pairs(deep, nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1), nn.Linear(2, 2)))
        {'0': '0', '4': '1'}
    """
    mine, theirs = _compared("the model", network), _compared("the guide", guide)
    step = (len(mine) - 1) / (len(theirs) - 1) if len(theirs) > 1 else 1.0
    return {mine[min(round(i * step), len(mine) - 1)]: name for i, name in enumerate(theirs)}


def _compared(what: str, module: nn.Module) -> Sequence[str]:
    names = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, _ConvNd))][:-1]
    if not names:
        raise InputError(f"guidance: {what} has no linear layer or convolution before its last; give layers.")
    return names


def _centred_gram(x: Float[Tensor, "B *D"]) -> Float[Tensor, "B B"]:
    x = x.flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x.mean(0)
    x = x / x.detach().abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
    return x @ x.T


def _norm(k: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """The Frobenius norm, whose gradient at zero is zero."""
    return k.square().sum().clamp_min(torch.finfo(k.dtype).tiny).sqrt()
