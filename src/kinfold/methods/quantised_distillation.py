"""Quantised distillation (Polino, Pascanu, Alistarh, *Model compression via distillation and quantization*, ICLR 2018).

Legend: B batch, C classes, P quantisation points, n weights of a bucket.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.methods.base import GRAD, TRAIN, Batch, Context, Inner, Method, Model, Params, State, linear_layers, within
from kinfold.methods.mtard import divergence
from kinfold.methods.networks import FrozenNetwork

_POINTS = "points/"
_BETAS, _TINY = (0.9, 0.999), 1e-8


def uniform_points(bits: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, " P"]:
    """Returns 2^bits points from 0 to 1, evenly spaced.

    Example:
        >>> uniform_points(1)
        tensor([0., 1.])
    """
    return torch.linspace(0.0, 1.0, 2**bits, dtype=dtype)


def quantile_points(weight: Float[Tensor, "*shape"], bits: int, bucket: int | None = 256) -> Float[Tensor, " P"]:
    """Returns 2^bits points such that as many weights, scaled as `quantise` does, are near each.

    They are the (j + ½) / 2^bits quantiles.

    Args:
        weight: of a layer.
        bits: of a weight.
        bucket: weights that are scaled together; None for all.

    Example:
        >>> quantile_points(torch.linspace(0.0, 1.0, 9), 1, bucket=None)
        tensor([0.2500, 0.7500])
    """
    rows, low, scale = _scaled(weight.detach(), bucket)
    places = torch.sort(((rows - low) / scale).flatten()).values
    at = (torch.arange(2**bits, dtype=places.dtype, device=places.device) + 0.5) / 2**bits * (len(places) - 1)
    below, above = at.floor().long(), at.ceil().long()
    return torch.lerp(places[below], places[above], at - at.floor())


def quantise(
    weight: Float[Tensor, "*shape"], points: Float[Tensor, " P"], bucket: int | None = 256
) -> Float[Tensor, "*shape"]:
    """Returns weights of which each is one of P values of its bucket: β + α p_j, for the p_j that is nearest.

    β is the least weight of the bucket and α the greatest minus it. The gradient goes to the weights as if they were
    not quantised, and to the points: ∂L/∂p_j = Σ α ∂L/∂w over the weights w that have p_j.

    Args:
        weight: of a layer, whose weights in order make buckets.
        points: p, in any order; 0 is the least weight of a bucket, 1 the greatest.
        bucket: n, weights that are scaled together; None for all.

    Example:
        >>> quantise(torch.tensor([0.0, 1.0, 2.9, 4.0]), torch.tensor([0.0, 0.25, 1.0]))
        tensor([0., 1., 4., 4.])
    """
    rows, low, scale = _scaled(weight.detach(), bucket)
    place, ordered = (rows - low) / scale, points.sort().values.unbind()
    nearest = ordered[0].expand_as(place)
    for below, above in pairwise(ordered):
        nearest = torch.where(place > (below + above).detach() / 2, above, nearest)
    value = (low + scale * nearest).flatten()[: weight.numel()].view(weight.shape)
    return value + (weight - weight.detach())


def distillation(
    outputs: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    temperature: float | int = 2.0,
    counts: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Returns T² KL(softmax(teacher / T) ‖ softmax(outputs / T)), the mean over the batch.

    Source: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network* (arXiv:1503.02531), section 2.

    Args:
        outputs: logits.
        teacher: logits, constants.
        temperature: T.
        counts: how much each row counts; default all alike.

    Example:
        >>> distillation(torch.zeros(2, 3), torch.zeros(2, 3)).item()
        0.0
    """
    return temperature**2 * divergence(teacher / temperature, outputs / temperature, counts)


@final
@dataclass(frozen=True)
class QuantisedDistillation(Method):
    """The forward pass has weights of few bits; gradients taken there step the float ones; a teacher adds to the loss.

    L = (1 − λ) · loss + λ · T² KL(teacher ‖ student). With `points="learned"` each layer has points of its own, which
    begin at the quantiles of its weights and are trained by Adam with a learning rate of their own. What is scored and
    handed back has quantised weights, as float tensors of 2^bits values a bucket; biases and norms are left alone.

    Attributes:
        bits: of a weight, 1 to 8.
        teacher: a trained network of the same classes, or a factory of one; it is the same for all tasks, and no part
            of checkpoints. With none there is no distillation, as in regression.
        share: λ.
        temperature: T.
        points: `learned`, or `uniform`, which stay.
        points_lr: learning rate of Adam on the points.
        bucket: weights that have a scale of their own; None for a layer's.
        layers: names of the layers; default all linear layers and ungrouped convolutions.

    Example:
        >>> QuantisedDistillation(bits=2, teacher=nn.Linear(4, 3)).bits
        2
    """

    bits: int = 4
    teacher: nn.Module | Callable[[], nn.Module] | None = None
    share: float | int = 0.7
    temperature: float | int = 2.0
    points: Literal["learned", "uniform"] = "learned"
    points_lr: float | int = 1e-3
    bucket: int | None = 256
    layers: tuple[str, ...] | list[str] | None = None
    _teacher: FrozenNetwork | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("bits", 1 <= self.bits <= 8, "a whole number from 1 to 8"),
            ("share", 0.0 <= self.share <= 1.0, "a number from 0 to 1"),
            ("temperature", 0.0 < self.temperature < math.inf, "a number above 0"),
            ("points", self.points in ("learned", "uniform"), "'learned' or 'uniform'"),
            ("points_lr", 0.0 <= self.points_lr < math.inf, "a number of 0 or more"),
            ("bucket", self.bucket is None or self.bucket >= 2, "a whole number of 2 or more, or None"),
        ):
            if not fits:
                raise InputError(f"quantised_distillation: {name} is {getattr(self, name)!r}; give {wanted}.")
        if self.teacher is not None:
            object.__setattr__(self, "_teacher", FrozenNetwork(self.teacher))

    def start(self, params: Params, context: Context) -> State:
        if self._teacher is not None and context.classes is None:
            raise InputError(
                "quantised_distillation: teacher gives probabilities of classes, and the task is a regression; leave "
                "teacher out."
            )
        known = linear_layers(context.module)
        for name in self.layers or ():
            if name not in known:
                raise InputError(
                    f"quantised_distillation: {name!r} is no linear layer or ungrouped convolution; use "
                    f"{', '.join(known)}."
                )
        names = [within(layer, "weight") for layer in (known if self.layers is None else self.layers)]
        state: State = {}
        for name in names:
            if name not in params:
                continue
            if self.points == "uniform":
                state[_POINTS + name] = uniform_points(self.bits, params[name].dtype).to(params[name].device)
                continue
            points = quantile_points(params[name], self.bits, self.bucket)
            state[TRAIN + _POINTS + name] = points
            for kind in (GRAD, "first/", "second/"):
                state[kind + _POINTS + name] = torch.zeros_like(points)
            state["count"] = points.new_zeros(())
        if not state:
            raise InputError(
                "quantised_distillation: the model trains no linear layer or ungrouped convolution; leave it out."
            )
        return state

    def weights(self, params: Params, state: State) -> Params:
        kind = (TRAIN if self.points == "learned" else "") + _POINTS
        points = {name.removeprefix(kind): value for name, value in state.items() if name.startswith(kind)}
        return {**params, **{name: quantise(params[name], value, self.bucket) for name, value in points.items()}}

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Float[Tensor, ""]:
        del state, key
        if self._teacher is None:
            return inner(model, batch)
        outputs = model(batch.x)
        with torch.no_grad():
            theirs = self._teacher(*(batch.x if isinstance(batch.x, tuple) else (batch.x,)))
        if theirs.shape != outputs.shape:
            raise InputError(
                f"quantised_distillation: the teacher gives {theirs.shape[-1]} outputs and the model "
                f"{outputs.shape[-1]}; give a teacher for the same classes."
            )
        soft = distillation(outputs, theirs, self.temperature, batch.weight)
        return (1.0 - self.share) * inner(model.remembering(batch.x, outputs), batch) + self.share * soft

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        if self.points == "uniform":
            return params, state
        count = state["count"] + 1
        new: State = {"count": count}
        for name in state:
            if not name.startswith(TRAIN):
                continue
            own = name.removeprefix(TRAIN)
            grad = state[GRAD + own]
            first = torch.lerp(grad, state[f"first/{own}"], _BETAS[0])
            second = torch.lerp(grad.square(), state[f"second/{own}"], _BETAS[1])
            size = (second / (1 - _BETAS[1] ** count)).sqrt() + _TINY
            new[name] = state[name] - self.points_lr * first / (1 - _BETAS[0] ** count) / size
            new |= {f"first/{own}": first, f"second/{own}": second}
        return params, {**state, **new}


def _scaled(
    weight: Float[Tensor, "*shape"], bucket: int | None
) -> tuple[Float[Tensor, "buckets n"], Float[Tensor, "buckets 1"], Float[Tensor, "buckets 1"]]:
    """Returns the weights by buckets, the last filled up with the last weight; each one's least, and its range."""
    flat = weight.flatten()
    size = len(flat) if bucket is None else min(bucket, len(flat))
    rows = torch.cat([flat, flat[-1:].expand(-len(flat) % size)]).view(-1, size)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return rows, low, torch.where(high > low, high - low, 1.0)
