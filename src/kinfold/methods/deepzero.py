"""DeepZero: gradients by finite differences, coordinate by coordinate, on a sparse set of coordinates.

Chen et al., *DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training* (ICLR 2024), by the authors'
published code. Legend: k coordinates of a parameter, m parameters at once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State, ValueAndGrad, linear_layers, within

Losses: TypeAlias = Callable[[Params], Float[Tensor, " m"]]
"""From m parameters at once, [m, …] each, to their losses."""

_COORDINATES = "own/coordinates/"
_ROWS_A_CLASS = 25  # that the scores at the start are of
_DIRECTIONS = 16  # at once


def coordinate_gradient(
    losses: Callable[[Float[Tensor, "m *shape"]], Float[Tensor, " m"]],
    value: Float[Tensor, "*shape"],
    coordinates: Int64[Tensor, " k"],
    mu: float | int = 5e-3,
    together: int = 128,
) -> Float[Tensor, "*shape"]:
    """Returns g with gᵢ = (L(θ + μ eᵢ) − L(θ)) / μ at the coordinates, and 0 elsewhere.

    L(θ) is one of the losses of each call, so that what a network draws in the call is the same in both.

    Args:
        losses: L, of m values at once.
        value: θ, one parameter.
        coordinates: i, places in the flattened parameter, each once.
        mu: μ.
        together: coordinates in one call.

    Example:
        >>> w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> coordinate_gradient(lambda many: (many**2).sum(1), w, torch.tensor([0, 2]), mu=1e-6).round(decimals=3)
        tensor([2., 0., 6.], dtype=torch.float64)
    """
    flat = value.flatten()
    places = torch.arange(flat.shape[0], device=value.device)
    nowhere = coordinates.new_full((1,), -1)
    slopes = []
    for some in torch.split(coordinates, together):
        here = torch.cat([nowhere, some])[:, None] == places
        found = losses((flat + mu * here.to(flat.dtype)).reshape(-1, *value.shape))
        slopes.append((found[1:] - found[0]) / mu)
    return torch.zeros_like(flat).scatter(0, coordinates, torch.cat(slopes)).reshape(value.shape)


def zo_grasp(
    losses: Losses, params: Params, generator: torch.Generator, queries: int = 192, mu: float | int = 5e-3
) -> Params:
    """Returns |θ ⊙ H g|, by which coordinates matter, from losses alone; larger is to be kept.

    g is a sum of slopes along random directions, of length 1 in each parameter, and H g the change of g from θ to
    θ + μ g, along the same directions.

    Args:
        losses: of m parameters at once.
        params: θ.
        generator: of the directions.
        queries: directions.
        mu: μ.
    """

    def slopes(at: Params, state: Tensor) -> Params:
        generator.set_state(state)  # the same directions
        total = {name: torch.zeros_like(value) for name, value in at.items()}
        for drawn in _directions(at, generator, queries):
            steps = {name: torch.cat([torch.zeros_like(one[:1]), mu * one]) for name, one in drawn.items()}
            found = losses({name: at[name] + step for name, step in steps.items()})
            slope = (found[1:] - found[0]) / mu
            for name, one in drawn.items():
                total[name] += torch.tensordot(slope, one, 1) / queries
        return total

    state = generator.get_state()
    here = slopes(params, state)
    there = slopes({name: value + mu * here[name] for name, value in params.items()}, state)
    return {name: (value * (there[name] - here[name]) / mu).abs() for name, value in params.items()}


def layer_densities(scores: Params, density: float | int) -> dict[str, float]:
    """Returns which share of each parameter is among the best of all, by scores; to be given to `DeepZero`.

    Args:
        scores: of every parameter that is to be sparse (see `zo_grasp`).
        density: share of all coordinates that is kept.
    """
    every = torch.cat([score.flatten() for score in scores.values()])
    least = every.topk(max(1, round(density * len(every)))).values[-1]
    return {name: float((score >= least).double().mean()) for name, score in scores.items()}


@final
@dataclass(frozen=True)
class DeepZero(Method):
    """Estimates gradients by `coordinate_gradient`: the network is only evaluated, never differentiated.

    Of the weights of linear layers and convolutions, a share of the coordinates is taken, of other parameters all.
    They are those of each layer that score best by `zo_grasp` at the start, on 25 rows a class; with `shuffle`, they
    are drawn at random every so many periods, as in the paper. Coordinates that are not taken have a gradient of 0.
    Layers before the perturbed one are evaluated once for all its coordinates.

    Attributes:
        mu: μ, the step of the differences. Too small a one is lost in rounding: bf16 does not go with this method.
        density: share of a layer's coordinates; or a share for each weight by its name, as of `layer_densities`.
        shuffle: periods after which the coordinates are drawn anew; 0 keeps those of the start.
        queries: directions of the scores at the start.
        together: coordinates, or models, that are evaluated at once.

    Example:
        >>> DeepZero(density=1.0).mu
        0.005
    """

    conflicts: ClassVar[frozenset[str]] = frozenset({"MKOR", "SAM"})  # they differentiate
    differentiates: ClassVar[bool] = False

    mu: float | int = 5e-3
    density: float | int | Mapping[str, float | int] = 0.5
    shuffle: int = 1
    queries: int = 192
    together: int = 128

    def __post_init__(self) -> None:
        if not self.mu > 0.0:
            raise InputError(f"deepzero: mu is {self.mu!r}; give a number above 0.")
        for share in self.density.values() if isinstance(self.density, Mapping) else [self.density]:
            if not 0.0 <= share <= 1.0:
                raise InputError(f"deepzero: density is {share!r}; give a share from 0 to 1.")
        for argument, least, count in (
            ("shuffle", 0, self.shuffle),
            ("queries", 1, self.queries),
            ("together", 1, self.together),
        ):
            if count < least:
                raise InputError(f"deepzero: {argument} is {count!r}; give {least} or more.")

    def start(self, params: Params, context: Context) -> State:
        layers = linear_layers(context.module)
        weights = [name for layer in layers if (name := within(layer, "weight")) in params]
        shares = dict(self.density) if isinstance(self.density, Mapping) else dict.fromkeys(weights, self.density)
        for name in shares:
            if name not in weights:
                raise InputError(
                    f"deepzero: density names {name!r}; give weights of {', '.join(weights) or 'no layer'}."
                )
        counts = {name: round(shares[name] * params[name].numel()) if name in shares else None for name in params}
        sparse = {n: value for n, value in params.items() if (count := counts[n]) is not None and count < value.numel()}
        scores = self._scores(sparse, context) if sparse else {}
        state = {"own/key": context.key, "own/period": torch.zeros_like(context.key)}
        for name, value in params.items():
            if name in scores:
                chosen = scores[name].flatten().topk(counts[name] or 0).indices.sort().values
            else:
                chosen = torch.arange(value.numel(), device=value.device)
            state[_COORDINATES + name] = chosen
        return state

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Tensor, Params]:
        del key
        grads = {}
        for name, value in params.items():

            def losses(many: Shaped[Tensor, "m *shape"], name: str = name) -> Float[Tensor, " m"]:
                return value_and_grad.values(params, {name: many})

            coordinates = state[_COORDINATES + name]
            if coordinates.shape[0]:
                grads[name] = coordinate_gradient(losses, value, coordinates, self.mu, self.together)
            else:
                grads[name] = torch.zeros_like(value)
        return value_and_grad.value(params, keep=True), grads

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        del score
        period = state["own/period"] + 1
        state = state | {"own/period": period}
        if not self.shuffle:
            return params, state
        key = random.fold_in(state["own/key"], period)
        for i, (name, value) in enumerate(params.items()):
            before = state[_COORDINATES + name]
            if before.shape[0] < value.numel():
                drawn = random.permutation(random.fold_in(key, i), value.numel())[: before.shape[0]].sort().values
                due = period % self.shuffle == 0
                state[_COORDINATES + name] = torch.where(due, drawn.to(before.device), before)
        return params, state

    def _scores(self, sparse: Params, context: Context) -> Params:
        generator = random.generator("deepzero", int(context.key))
        order = torch.randperm(len(context.rows), generator=generator)[: _ROWS_A_CLASS * (context.classes or 1)]
        batch = context.batch(context.rows[order.to(context.rows.device)])
        model = context.model.evaluating()  # nothing is drawn in it

        def loss(own: Params) -> Tensor:
            return context.loss(model.with_params(own), batch)

        def losses(many: Params) -> Float[Tensor, " m"]:
            with torch.no_grad():
                found: Tensor = torch.vmap(loss)(many)
            return found

        return zo_grasp(losses, sparse, generator, self.queries, self.mu)


def _directions(like: Params, generator: torch.Generator, count: int) -> Iterator[Params]:
    """Yields random directions [some, …], of length 1 in each parameter."""
    for first in range(0, count, _DIRECTIONS):
        some = min(_DIRECTIONS, count - first)
        drawn = {}
        for name, value in like.items():
            one = torch.randn(some, *value.shape, generator=generator, dtype=torch.float64)
            one = one / one.flatten(1).norm(dim=1).view(-1, *[1] * value.ndim)
            drawn[name] = one.to(value)
        yield drawn
