"""What a plan's changes do to stacked tensors: pure functions from the state before to a candidate.

Donors are read as they were before the plan; a task's own part is its candidate so far, so that changes compose.
Legend: T tasks, K units (layers, or numbers).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.transfer.changes import BinaryCross, Change, Cross, Elastic, Median, Mix, Shuffle


def layers_of(params: Iterable[str], buffers: Iterable[str] = ()) -> dict[str, int]:
    """Returns the number of the layer (module) that each tensor belongs to, in the order of the parameters.

    Buffers of a module without parameters count to the last layer.
    """
    numbers: dict[str, int] = {}
    layers = {name: numbers.setdefault(name.rpartition(".")[0], len(numbers)) for name in params}
    return layers | {name: numbers.get(name.rpartition(".")[0], len(numbers) - 1) for name in buffers}


def moved(
    change: Change,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    """Returns one stacked tensor after one change.

    Args:
        change: one that moves numbers between tasks; others leave tensors as they are, and so does `Elastic`,
            whose centre is the engine's (see `pulled`).
        name: of the tensor.
        before: the state before the plan.
        candidate: the state after the changes so far.
        layers: see `layers_of`; must be the same for every tensor of a model.
    """
    if isinstance(change, Mix):
        return _mixed(change, before, candidate)
    if isinstance(change, Cross):
        return _crossed(change, name, before, candidate, layers)
    if isinstance(change, BinaryCross):
        return _binary_crossed(change, name, before, candidate)
    if isinstance(change, Median):
        return _median(change, before, candidate)
    if isinstance(change, Shuffle):
        return _shuffled(change, name, before, candidate, layers)
    return candidate


def pulled(
    change: Elastic,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    centre: Shaped[Tensor, "*shape"] | None,
) -> tuple[Shaped[Tensor, "T *shape"], Shaped[Tensor, "*shape"]]:
    """Returns one stacked tensor and its centre after an elastic pull; without a centre yet, it is the mean."""
    rate, centre_rate = (
        weights.to(before).view(-1, *[1] * (before.ndim - 1)) for weights in (change.rate, change.centre_rate)
    )
    if centre is None:
        pulling = change.centre_rate.to(before.device) > 0
        centre = before[pulling].mean(0) if bool(pulling.any()) else before.mean(0)
    # Rates of 0 are skipped, never multiplied, since 0 · NaN would spread one task's divergence to all.
    drawn = torch.where(centre_rate != 0, centre_rate * (before - centre), 0.0).sum(0)
    return torch.where(rate != 0, candidate - rate * (candidate - centre), candidate), centre + drawn


def donors_of(change: Mix) -> Int64[Tensor, " T"]:
    """Returns [T] the donor whose indivisible state (step counts, whole-number buffers) each task takes.

    It is the one with the largest weight; of several, the task itself where it is among them.
    """
    weights = change.weights.cpu()
    own = weights.diagonal() == weights.amax(1)
    return torch.where(own, torch.arange(len(weights)), weights.argmax(1))


def blended(change: Change, tasks: int) -> Bool[Tensor, " T"]:
    """Returns [T] whether a task's candidate is a mixture, whose batch-norm statistics nobody has measured."""
    if isinstance(change, Mix):
        return ((change.weights != 0).sum(1) > 1).cpu()
    touched = change.touched()
    if touched is None or not isinstance(change, (Cross, BinaryCross, Median, Elastic, Shuffle)):
        return torch.zeros(tasks, dtype=torch.bool)
    return touched.cpu()


def _mixed(
    change: Mix, before: Shaped[Tensor, "T *shape"], candidate: Shaped[Tensor, "T *shape"]
) -> Shaped[Tensor, "T *shape"]:
    if candidate is before and before.is_floating_point() and bool((change.weights != 0).all()):
        averaged: Tensor = torch.tensordot(change.weights.to(before), before, 1)  # the common case, in one go
        return averaged
    result = candidate.clone()
    largest_of = donors_of(change).tolist()
    for t, (weights, largest) in enumerate(zip(change.weights, largest_of, strict=True)):
        donors = weights.nonzero().flatten()
        if donors.tolist() == [t]:
            continue
        if len(donors) == 1 or not before.is_floating_point():
            result[t] = before[largest] if largest != t else candidate[t]
            continue
        values = before[donors.to(before.device)]
        own = (donors == t).nonzero().flatten().tolist()
        if own:
            values[own[0]] = candidate[t]
        result[t] = torch.tensordot(weights[donors].to(values), values, 1)
    return result


def _crossed(
    change: Cross,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    result = candidate.clone()
    for t in (change.source >= 0).nonzero().flatten().tolist():
        key, rate = change.keys[t].cpu(), float(change.rate[t])
        if change.unit == "layer":
            drawn = random.uniform(key, (max(layers.values()) + 1,), torch.float64) < rate
            mask = drawn[layers[name]].to(before.device)
        else:
            mask = random.uniform(_key_of(key, name, before), before.shape[1:], torch.float64) < rate
        result[t] = torch.where(mask, before[change.source[t]], candidate[t])
    return result


def _binary_crossed(
    change: BinaryCross, name: str, before: Shaped[Tensor, "T *shape"], candidate: Shaped[Tensor, "T *shape"]
) -> Shaped[Tensor, "T *shape"]:
    if not before.is_floating_point():
        return candidate
    result = candidate.clone()
    for t in (change.source >= 0).nonzero().flatten().tolist():
        power = 1.0 / (float(change.eta[t]) + 1.0)
        u = random.uniform(_key_of(change.keys[t], name, before), before.shape[1:], torch.float64)
        beta = torch.where(u <= 0.5, 2.0 * u, 1.0 / (2.0 - 2.0 * u)).pow(power).to(before.dtype)
        result[t] = 0.5 * ((1.0 + beta) * candidate[t] + (1.0 - beta) * before[change.source[t]])
    return result


def _median(
    change: Median, before: Shaped[Tensor, "T *shape"], candidate: Shaped[Tensor, "T *shape"]
) -> Shaped[Tensor, "T *shape"]:
    if not before.is_floating_point():
        return candidate
    result = candidate.clone()
    medians: dict[tuple[int, ...], Tensor] = {}  # tasks often have the same members
    for t in change.lineage().any(1).nonzero().flatten().tolist():
        members = tuple(change.members[t].nonzero().flatten().tolist())
        if members not in medians:
            ordered = before[list(members)].sort(0).values
            low, high = (len(members) - 1) // 2, len(members) // 2
            medians[members] = (ordered[low] + ordered[high]) / 2
        result[t] = medians[members]
    return result


def _shuffled(
    change: Shuffle,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    if not before.is_floating_point() or int(change.tasks.sum()) < 2:
        return candidate
    last = max(layers.values())
    rate = change.rate + (change.last_rate - change.rate) * (layers[name] / last if last else 0.0)
    key = _key_of(random.key(change.key), name, before)
    drawn = random.uniform(random.fold_in(key, 0), before.shape[1:], torch.float64) < rate
    where = drawn.reshape(-1).nonzero().flatten()
    who = change.tasks.nonzero().flatten().to(before.device)
    # A permutation of the tasks for every number drawn: the order of that many draws.
    order = random.uniform(random.fold_in(key, 1), (len(who), len(where)), torch.float64).argsort(0)
    result = candidate.clone().reshape(len(candidate), -1)
    result[who[:, None], where] = before.reshape(len(before), -1)[who[order], where]
    return result.view_as(candidate)


def _key_of(key: Int64[Tensor, ""], name: str, like: Tensor) -> Int64[Tensor, ""]:
    """The key of one tensor's draws, on the tensor's device."""
    return random.fold_in(key.cpu(), random.seed_of(name)).to(like.device)
