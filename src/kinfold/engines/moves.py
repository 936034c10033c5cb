"""What a plan's changes do to stacked tensors: pure functions from the state before to a candidate.

Donors are read as they were before the plan; a task's own part is its candidate so far, so that changes compose.
Legend: T tasks, k those whose candidates are made here, r those held here, K units (layers, or numbers), n numbers.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.transfer.changes import BinaryCross, Change, Cross, Elastic, Median, Mix, Shuffle


@final
@dataclass(frozen=True)
class Mixture:
    """Rows of a `Mix`, each by the donors that it has.

    Attributes:
        rows: task → {donor: weight}, none of them 0; a task that is not named is left alone.
        whole: task → the donor of what cannot be mixed.
    """

    rows: Mapping[int, Mapping[int, float]]
    whole: Mapping[int, int]


@final
@dataclass(frozen=True)
class Medians:
    """Rows of a `Median`.

    Attributes:
        members: task → whose numbers enter its median; a task that is not named is left alone.
    """

    members: Mapping[int, tuple[int, ...]]


Part: TypeAlias = Change | Mixture | Medians
"""A change, or what is left of it for some of the tasks."""


@final
@dataclass(frozen=True)
class Held:
    """Which rows of stacked tensors are which tasks', for who holds some of the tasks and donors to them.

    Attributes:
        row: task → row of the state before the plan. Those whose candidates are made come first, in their order.
        learn: tasks whose candidates a change may alter; it leaves others as they are.
    """

    row: Mapping[int, int]
    learn: Sequence[int]

    @classmethod
    def everyone(cls, tasks: int) -> "Held":
        """All tasks, in order."""
        return cls({t: t for t in range(tasks)}, range(tasks))


def layers_of(params: Iterable[str], buffers: Iterable[str] = ()) -> dict[str, int]:
    """Returns the number of the layer (module) that each tensor belongs to, in the order of the parameters.

    Buffers of a module without parameters count to the last layer.
    """
    numbers: dict[str, int] = {}
    layers = {name: numbers.setdefault(name.rpartition(".")[0], len(numbers)) for name in params}
    return layers | {name: numbers.get(name.rpartition(".")[0], len(numbers) - 1) for name in buffers}


def moved(
    change: Part,
    name: str,
    before: Shaped[Tensor, "r *shape"],
    candidate: Shaped[Tensor, "k *shape"],
    layers: dict[str, int],
    held: Held | None = None,
) -> Shaped[Tensor, "k *shape"]:
    """Returns one stacked tensor after one change.

    Args:
        change: one that moves numbers between tasks; others leave tensors as they are, and so does `Elastic`,
            whose centre is the engine's (see `pulled`).
        name: of the tensor.
        before: the state before the plan.
        candidate: the state after the changes so far.
        layers: see `layers_of`; must be the same for every tensor of a model.
        held: which tasks these are; default all T of them. `Shuffle` is for all tasks only (see `permuted`).
    """
    if isinstance(change, Mix) and held is None and _dense(change, before, candidate):
        averaged: Tensor = torch.tensordot(change.weights.to(before), before, 1)  # the common case, in one go
        return averaged
    if isinstance(change, Shuffle):
        return _shuffled(change, name, before, candidate, layers)
    held = Held.everyone(len(before)) if held is None else held
    if isinstance(change, Mix):
        return _mixed(mixture_of(change, held.learn), before, candidate, held)
    if isinstance(change, Mixture):
        return _mixed(change, before, candidate, held)
    if isinstance(change, Cross):
        return _crossed(change, name, before, candidate, layers, held)
    if isinstance(change, BinaryCross):
        return _binary_crossed(change, name, before, candidate, held)
    if isinstance(change, Median):
        return _median(medians_of(change, held.learn), before, candidate, held)
    if isinstance(change, Medians):
        return _median(change, before, candidate, held)
    return candidate


def taken(
    change: Part, name: str, like: Shaped[Tensor, "*shape"], layers: dict[str, int], learn: Sequence[int], donor: int
) -> bool | Bool[Tensor, "*shape"]:
    """Returns which numbers of a donor's tensor `moved` reads for other tasks: all, none, or those of a mask.

    Args:
        change: as in `moved`; of a `Shuffle`, `permuted` tells.
        name: of the tensor.
        like: one task's tensor.
        layers: see `layers_of`.
        learn: the tasks that read.
        donor: the task that they read from.
    """
    learn = [t for t in learn if t != donor]
    if isinstance(change, Mixture):
        if not like.is_floating_point():
            return any(change.whole.get(t) == donor for t in learn)
        return any(donor in change.rows.get(t, {}) for t in learn)
    if isinstance(change, Medians):
        return like.is_floating_point() and any(donor in change.members.get(t, ()) for t in learn)
    if isinstance(change, BinaryCross):
        return like.is_floating_point() and any(int(change.source[t]) == donor for t in learn)
    if isinstance(change, Cross):
        masks = [_mask(change, t, name, like, layers) for t in learn if int(change.source[t]) == donor]
        return either(masks)
    return False


def either(masks: Iterable[bool | Bool[Tensor, "*shape"]]) -> bool | Bool[Tensor, "*shape"]:
    """Returns which numbers are in any of several selections, each all, none, or those of a mask."""
    together: bool | Tensor = False
    for mask in masks:
        if mask is True or together is True:
            return True
        if isinstance(mask, Tensor):
            together = together | mask
    return together


def pulled(
    change: Elastic,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    centre: Shaped[Tensor, "*shape"] | None,
) -> tuple[Shaped[Tensor, "T *shape"], Shaped[Tensor, "*shape"]]:
    """Returns one stacked tensor and its centre after an elastic pull; without a centre yet, it is the mean."""
    if centre is None:
        who = pulling(change)
        centre = before[who.to(before.device)].sum(0) / int(who.sum())
    return towards(change, candidate, centre), centre + drawn(change, before, centre)


def pulling(change: Elastic) -> Bool[Tensor, " T"]:
    """Returns [T] whose mean the centre is at first: the tasks that pull on it, or all where none does."""
    who = change.centre_rate.cpu() > 0
    return who if bool(who.any()) else ~who


def drawn(
    change: Elastic, before: Shaped[Tensor, "T *shape"], centre: Shaped[Tensor, "*shape"]
) -> Shaped[Tensor, "*shape"]:
    """Returns by how much the tasks draw the centre."""
    rate = _beside(change.centre_rate, before)
    # Rates of 0 are skipped, never multiplied, since 0 · NaN would spread one task's divergence to all.
    return torch.where(rate != 0, rate * (before - centre), 0.0).sum(0)


def towards(
    change: Elastic, candidate: Shaped[Tensor, "T *shape"], centre: Shaped[Tensor, "*shape"]
) -> Shaped[Tensor, "T *shape"]:
    """Returns the tasks after the centre has pulled on them."""
    rate = _beside(change.rate, candidate)
    return torch.where(rate != 0, candidate - rate * (candidate - centre), candidate)


def _beside(rates: Tensor, stacked: Shaped[Tensor, "T *shape"]) -> Tensor:
    return rates.to(stacked).view(-1, *[1] * (stacked.ndim - 1))


def mixture_of(change: Mix, learn: Iterable[int]) -> Mixture:
    """Returns the rows of those tasks that a mix does not leave alone."""
    weights, largest = change.weights.tolist(), donors_of(change).tolist()
    rows = {t: {s: weight for s, weight in enumerate(weights[t]) if weight != 0} for t in learn}
    rows = {t: row for t, row in rows.items() if row.keys() != {t}}
    return Mixture(rows, {t: largest[t] for t in rows})


def medians_of(change: Median, learn: Iterable[int]) -> Medians:
    """Returns the members for those tasks that a median does not leave alone."""
    changed = change.touched()
    assert changed is not None
    return Medians({t: tuple(change.members[t].nonzero().flatten().tolist()) for t in learn if bool(changed[t])})


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


def _dense(change: Mix, before: Tensor, candidate: Tensor) -> bool:
    return candidate is before and before.is_floating_point() and bool((change.weights != 0).all())


def _mixed(
    change: Mixture, before: Shaped[Tensor, "r *shape"], candidate: Shaped[Tensor, "k *shape"], held: Held
) -> Shaped[Tensor, "k *shape"]:
    result = candidate.clone()
    for t in [t for t in held.learn if t in change.rows]:
        row = change.rows[t]
        if not before.is_floating_point():
            donor = change.whole[t]
            if donor != t:
                result[held.row[t]] = before[held.row[donor]]
            continue
        if len(row) == 1:
            (donor,) = row
            result[held.row[t]] = before[held.row[donor]]
            continue
        values = before[torch.tensor([held.row[s] for s in row], device=before.device)]
        if t in row:
            values[list(row).index(t)] = candidate[held.row[t]]
        weights = torch.tensor(list(row.values()), dtype=torch.float64).to(values)
        result[held.row[t]] = torch.tensordot(weights, values, 1)
    return result


def _crossed(
    change: Cross,
    name: str,
    before: Shaped[Tensor, "r *shape"],
    candidate: Shaped[Tensor, "k *shape"],
    layers: dict[str, int],
    held: Held,
) -> Shaped[Tensor, "k *shape"]:
    result = candidate.clone()
    for t in _learning(change, held):
        mask = _mask(change, t, name, before[0], layers)
        own, source = held.row[t], int(change.source[t])
        if isinstance(mask, Tensor):
            result[own] = torch.where(mask, before[held.row[source]], candidate[own])
        elif mask:
            result[own] = before[held.row[source]]
    return result


def _mask(
    change: Cross, t: int, name: str, like: Shaped[Tensor, "*shape"], layers: dict[str, int]
) -> bool | Bool[Tensor, "*shape"]:
    """Which numbers of a tensor a task takes from its source."""
    key, rate = change.keys[t].cpu(), float(change.rate[t])
    if change.unit == "layer":
        return _layers_taken(int(key), rate, max(layers.values()) + 1)[layers[name]]
    return random.uniform(_key_of(key, name, like), like.shape, torch.float64) < rate


@functools.lru_cache(maxsize=256)  # each tensor of a model asks for its layer, and so do its moments
def _layers_taken(key: int, rate: float, layers: int) -> tuple[bool, ...]:
    """Which layers a task takes from its source."""
    return tuple((random.uniform(torch.tensor(key), (layers,), torch.float64) < rate).tolist())


def _learning(change: Cross | BinaryCross, held: Held) -> list[int]:
    return [t for t in held.learn if int(change.source[t]) >= 0]


def _binary_crossed(
    change: BinaryCross,
    name: str,
    before: Shaped[Tensor, "r *shape"],
    candidate: Shaped[Tensor, "k *shape"],
    held: Held,
) -> Shaped[Tensor, "k *shape"]:
    if not before.is_floating_point():
        return candidate
    result = candidate.clone()
    for t in _learning(change, held):
        power = 1.0 / (float(change.eta[t]) + 1.0)
        u = random.uniform(_key_of(change.keys[t], name, before), before.shape[1:], torch.float64)
        beta = torch.where(u <= 0.5, 2.0 * u, 1.0 / (2.0 - 2.0 * u)).pow(power).to(before.dtype)
        own, source = candidate[held.row[t]], before[held.row[int(change.source[t])]]
        result[held.row[t]] = 0.5 * ((1.0 + beta) * own + (1.0 - beta) * source)
    return result


def _median(
    change: Medians, before: Shaped[Tensor, "r *shape"], candidate: Shaped[Tensor, "k *shape"], held: Held
) -> Shaped[Tensor, "k *shape"]:
    if not before.is_floating_point():
        return candidate
    result = candidate.clone()
    medians: dict[tuple[int, ...], Tensor] = {}  # tasks often have the same members
    for t in [t for t in held.learn if t in change.members]:
        members = change.members[t]
        if members not in medians:
            medians[members] = median_of(before[[held.row[s] for s in members]])
        result[held.row[t]] = medians[members]
    return result


def median_of(values: Shaped[Tensor, "s *shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns the median of every number; of an even count, the mean of the middle two."""
    ordered = values.sort(0).values
    low, high = (len(values) - 1) // 2, len(values) // 2
    middle: Tensor = (ordered[low] + ordered[high]) / 2
    return middle


def permuted(
    change: Shuffle,
    name: str,
    like: Shaped[Tensor, "*shape"],
    layers: dict[str, int],
    learn: Sequence[int],
    tasks: slice,
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Returns which numbers of one tensor some tasks are given by neighbouring tasks in a shuffle.

    Args:
        change: the shuffle.
        name: of the tensor.
        like: one task's tensor.
        layers: see `layers_of`.
        learn: the tasks that are given.
        tasks: those that give.

    Returns:
        (who is given, by whom, and where in the flattened tensor), always in the same order.
    """
    who = change.tasks.nonzero().flatten()
    learners = set(learn)
    learning = [i for i, t in enumerate(who.tolist()) if t in learners]
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    if not like.is_floating_point() or len(who) < 2 or not learning:
        return none, none, none
    who = who.to(like.device)
    last = max(layers.values())
    rate = change.rate + (change.last_rate - change.rate) * (layers[name] / last if last else 0.0)
    key = _key_of(random.key(change.key), name, like)
    where = (random.uniform(random.fold_in(key, 0), like.shape, torch.float64) < rate).reshape(-1).nonzero().flatten()
    # A permutation of the tasks for every number drawn: the order of that many draws.
    order = random.uniform(random.fold_in(key, 1), (len(who), len(where)), torch.float64).argsort(0)
    donors = who[order[learning]]
    given, places = ((donors >= tasks.start) & (donors < tasks.stop)).nonzero(as_tuple=True)
    return who[learning][given], donors[given, places], where[places]


def _shuffled(
    change: Shuffle,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    everyone = range(len(before))
    who, donors, where = permuted(change, name, before[0], layers, everyone, slice(0, len(before)))
    if not len(where):
        return candidate
    result = candidate.clone().reshape(len(candidate), -1)
    result[who, where] = before.reshape(len(before), -1)[donors, where]
    return result.view_as(candidate)


def _key_of(key: Int64[Tensor, ""], name: str, like: Tensor) -> Int64[Tensor, ""]:
    """The key of one tensor's draws, on the tensor's device."""
    return random.fold_in(key.cpu(), random.seed_of(name)).to(like.device)
