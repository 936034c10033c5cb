"""What is done at a share when a plan is carried out among several: packing what others need, and using what came.

Every function here is called with a share's engine, in the process where that is. What it returns stays there until
another share fetches it. A *parcel* holds tensors of one donor by field (see `proposals.Donors`).

Legend: T tasks, k those of the share, n numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from kinfold.engines.compression import Codec, Difference
from kinfold.engines.local import LocalEngine, parameter_of
from kinfold.engines.moves import Held, Part, drawn, either, median_of, moved, permuted, taken, towards
from kinfold.engines.proposals import Donors, Proposal
from kinfold.methods.base import OWN
from kinfold.tasks.update import Slots
from kinfold.transfer.base import Outcome
from kinfold.transfer.changes import Elastic, Shuffle

Tensors: TypeAlias = dict[str, Tensor]


class Parcel(NamedTuple):
    """What is sent of one donor.

    Attributes:
        coded: its parameters, as the codec gave them; nothing where there is no codec.
        plain: field → numbers.
        slots: what its optimizer remembers besides moments.
    """

    coded: Tensors
    plain: Tensors
    slots: Slots


class Field(NamedTuple):
    """One tensor of the state of every task of a share.

    Attributes:
        name: the parameter or buffer that it goes with; None for what cannot be divided.
        rows: each task's.
    """

    name: str | None
    rows: Sequence[Tensor] | Tensor


@final
@dataclass(frozen=True)
class Scope:
    """Which part of the tasks' state moves: models and what methods keep beside them, or optimizers' state.

    Attributes:
        buffers: whether buffers go with models.
        moving: slots of optimizers that change as parameters did; None for models.
        codec: for parameters, or None.
    """

    buffers: bool = True
    moving: frozenset[tuple[str, str]] | None = None
    codec: Codec | None = None

    def fields(self, engine: LocalEngine) -> dict[str, Field]:
        """Returns what moves of a share's tasks."""
        if self.moving is not None:
            slots = engine.updater.slots()
            return {
                f"moments/{name}/{slot}": Field(name, [own[name, slot] for own in slots]) for name, slot in self.moving
            }
        stack = engine.stack
        found = {f"params/{name}": Field(name, value.detach()) for name, value in stack.params.items()}
        if self.buffers:
            found |= {f"buffers/{name}": Field(name, value) for name, value in stack.buffers.items()}
        for i, state in enumerate(engine.states):
            for name, value in state.items():
                if name.startswith(OWN):
                    continue
                found[f"method{i}/{name}"] = Field(parameter_of(name, value, stack.params), value.detach())
        return found

    def others(self, engine: LocalEngine, task: int) -> Slots:
        """Returns what the optimizer of a share's task remembers besides what moves, if optimizers' state does."""
        if self.moving is None:
            return {}
        return {key: value for key, value in engine.updater.slots()[task].items() if key not in self.moving}

    def packed(self, engine: LocalEngine, tensors: Tensors) -> Parcel:
        """Returns a parcel of a whole model, its parameters coded."""
        if self.codec is None or self.moving is not None:
            return Parcel({}, tensors, {})
        params = {field.removeprefix("params/"): value for field, value in tensors.items() if field[:7] == "params/"}
        rest = {field: value for field, value in tensors.items() if field[:7] != "params/"}
        return Parcel(_coding(self.codec, engine).encode(params), rest, {})

    def opened(self, engine: LocalEngine, parcel: Parcel) -> Tensors:
        """Returns what `packed` was given."""
        if not parcel.coded:
            return parcel.plain
        assert self.codec is not None
        params = _coding(self.codec, engine).decode(parcel.coded)
        return {f"params/{name}": value for name, value in params.items()} | parcel.plain


def _coding(codec: Codec, engine: LocalEngine) -> Codec:
    """What is coded is how parameters differ from the tasks' start: if it is common, every share has it."""
    return Difference(codec, engine.start) if engine.start else codec


# -- what is sent ------------------------------------------------------------------------------------------------------


def model(engine: LocalEngine, scope: Scope, task: int) -> Parcel:
    """Returns all that moves of one task, by its number in the share."""
    packed = scope.packed(engine, {field: rows[task] for field, (_, rows) in scope.fields(engine).items()})
    return packed._replace(slots=scope.others(engine, task))


def combined(engine: LocalEngine, scope: Scope, weights: Sequence[tuple[int, float]]) -> Parcel:
    """Returns a weighted sum of the share's tasks, given by their numbers in the share."""
    tasks = [t for t, _ in weights]
    found = {}
    for field, rows in _mixable(scope.fields(engine)):
        values = _rows(rows, tasks)
        found[field] = torch.tensordot(torch.tensor([w for _, w in weights], dtype=torch.float64).to(values), values, 1)
    return scope.packed(engine, found)


def summed(engine: LocalEngine, scope: Scope, tasks: Sequence[int]) -> Parcel:
    """Returns the sum of some of the share's tasks."""
    return scope.packed(engine, {field: _rows(rows, tasks).sum(0) for field, rows in _mixable(scope.fields(engine))})


def added(engine: LocalEngine, scope: Scope, divisor: int, *parcels: Parcel) -> Parcel:
    """Returns the sum of what several shares sent, divided by a number."""
    device, opened = engine.device, [scope.opened(engine, parcel) for parcel in parcels]
    total = {field: value.to(device, copy=True) for field, value in opened[0].items()}
    for parcel in opened[1:]:
        for field, value in total.items():
            value += parcel[field].to(device)
    return scope.packed(engine, {field: value / divisor for field, value in total.items()} if divisor != 1 else total)


def numbers(
    engine: LocalEngine,
    scope: Scope,
    changes: Sequence[Part],
    donors: Mapping[int, int],
    learn: Sequence[int],
    origins: Iterable[int],
) -> dict[int, Parcel]:
    """Returns what tasks of another share read of some of this share's tasks, and no more.

    Args:
        engine: the share's.
        scope: what moves.
        changes: what is left of the plan's changes for the other share.
        donors: task → its number in this share.
        learn: the tasks that read.
        origins: donors from whom one of them takes what cannot be divided.
    """
    found, fields = {}, scope.fields(engine)
    for donor, t in donors.items():
        whole = donor in origins
        plain = {}
        for field, (name, rows) in fields.items():
            mask = whole if name is None else _read(changes, name, rows[t], engine.layers, learn, donor)
            if isinstance(mask, Tensor):
                plain[field] = rows[t][mask]
            elif mask:
                plain[field] = rows[t]
        found[donor] = Parcel({}, plain, scope.others(engine, t) if whole else {})
    return found


def shuffled(engine: LocalEngine, scope: Scope, change: Shuffle, learn: Sequence[int], tasks: slice) -> Tensors:
    """Returns the numbers that tasks of another share are given by this share's in a shuffle, [n] by field."""
    found = {}
    for field, (name, rows) in scope.fields(engine).items():
        if name is not None:
            _, donors, where = permuted(change, name, rows[0], engine.layers, learn, tasks)
            found[field] = _flat(rows)[donors - tasks.start, where]
    return found


def sliced(engine: LocalEngine, scope: Scope, tasks: Sequence[int], part: int, parts: int) -> Tensors:
    """Returns one of several slices of s tasks' flattened tensors, [s, n] by field."""
    return {
        field: _rows(rows, tasks).reshape(len(tasks), -1)[:, _slice_of(rows[0].numel(), part, parts)]
        for field, rows in _mixable(scope.fields(engine))
    }


def medians(engine: LocalEngine, *slices: Tensors) -> Tensors:
    """Returns the medians, by field, over [s, n] numbers of as many tasks as each of several shares sent."""
    return {field: median_of(torch.cat([values[field].to(engine.device) for values in slices])) for field in slices[0]}


def summed_params(engine: LocalEngine, scope: Scope, tasks: Sequence[int]) -> Parcel:
    """Returns the sum of some of the share's tasks, but of their parameters alone."""
    params = engine.stack.params.items()
    return scope.packed(engine, {f"params/{name}": _rows(value.detach(), tasks).sum(0) for name, value in params})


def pull(engine: LocalEngine, scope: Scope, change: Elastic, first: bool, *parcels: Parcel) -> Parcel:
    """Returns by how much a share's tasks draw the centre.

    Args:
        engine: the share's.
        scope: what moves.
        change: cut to the share's tasks.
        first: whether the first of the parcels is the centre; else it is the engine's.
        parcels: how far earlier changes of the plan have drawn it.
    """
    opened = [scope.opened(engine, parcel) for parcel in parcels]
    found = {}
    for name, value in engine.stack.params.items():
        field = f"params/{name}"
        centre = opened[0][field].to(value) if first else engine.centre[name]
        for earlier in opened[1 if first else 0 :]:
            centre = centre + earlier[field].to(value)
        found[field] = drawn(change, value.detach(), centre)
    return scope.packed(engine, found)


# -- what is done with it ----------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """What something that came from another share is.

    Attributes:
        kind: `model` of a donor or stand-in; `numbers` of some tasks; what a share gives in a `shuffle`; a `slice` of a
            stand-in; the `centre` that an elastic pull begins with; how far tasks have `drawn` it.
        number: of the donor, or of the change in the plan.
        tasks: of the share that gives.
    """

    kind: Literal["model", "numbers", "shuffle", "slice", "centre", "drawn"]
    number: int = -1
    tasks: slice = slice(0, 0)


@final
@dataclass(frozen=True)
class Errand:
    """What a share is to do of a plan.

    Attributes:
        proposal: what is left of it for the share's tasks.
        learn: tasks that learn, by their numbers among all.
        scope: what moves.
        arrivals: what comes with it from other shares.
        period: number of the present period.
    """

    proposal: Proposal
    learn: tuple[int, ...]
    scope: Scope
    arrivals: tuple[Arrival, ...]
    period: int


def consider(engine: LocalEngine, errand: Errand, *arrived: Any) -> Outcome:
    """Builds, tries and keeps the candidates of a share's tasks; see `LocalEngine.consider`."""
    return engine.consider(errand.proposal, errand.period, Arrived(engine, errand, arrived))


def follow(engine: LocalEngine, errand: Errand, accepted: Bool[Tensor, " k"], *arrived: Any) -> None:
    """Lets optimizers' state go with what was accepted; see `LocalEngine.follow`."""
    engine.follow(errand.proposal, accepted, Arrived(engine, errand, arrived))


def moments(engine: LocalEngine) -> frozenset[tuple[str, str]]:
    """Returns the slots of optimizers that are moments of all of the share's tasks."""
    return engine.updater.moments()


def has_centre(engine: LocalEngine) -> bool:
    """Returns whether an elastic pull has left a centre."""
    return bool(engine.centre)


def tune(engine: LocalEngine, values: Mapping[str, Shaped[Tensor, " k"]], relative: bool) -> None:
    """Sets options of the optimizers of the share's tasks, or multiplies them."""
    engine.updater.tune(values, relative)


@final
class Arrived(Donors):
    """Donors some of whom are at other shares, from where what is needed of them has come.

    Args:
        engine: of the share.
        errand: what to do.
        arrived: what came, in the order of the errand's arrivals.
    """

    def __init__(self, engine: LocalEngine, errand: Errand, arrived: Sequence[Any]):
        self._proposal, self._learn, self._layers = errand.proposal, errand.learn, engine.layers
        tasks = errand.proposal.tasks
        self._own = {t: t - tasks.start for t in range(tasks.start, tasks.stop)}
        self._whole: dict[int, Tensors] = {}
        self._some: dict[int, Tensors] = {}
        self._given: list[tuple[Arrival, Tensors]] = []
        self._centres: dict[int, Tensors] = {}
        self._drawn: dict[int, Tensors] = {}
        slices: dict[int, list[Tensors]] = {}
        parcels: dict[int, Parcel] = {}
        for arrival, content in zip(errand.arrivals, arrived, strict=True):
            if arrival.kind == "model":
                self._whole[arrival.number] = errand.scope.opened(engine, content)
                parcels[arrival.number] = content
            elif arrival.kind == "numbers":
                self._some |= {donor: parcel.plain for donor, parcel in content.items()}
                parcels |= content
            elif arrival.kind == "shuffle":
                self._given.append((arrival, content))
            elif arrival.kind == "slice":
                slices.setdefault(arrival.number, []).append(content)
            elif arrival.kind == "centre":
                self._centres[arrival.number] = errand.scope.opened(engine, content)
            else:
                self._drawn[arrival.number] = errand.scope.opened(engine, content)
        for donor, parts in slices.items():
            self._whole[donor] = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
        self.slots = [parcel.slots for parcel in parcels.values()]
        self.place = self._own | {donor: len(self._own) + i for i, donor in enumerate(parcels)}
        self.moving, self.count = errand.scope.moving, len(errand.proposal.changes)

    def moved(
        self,
        number: int,
        field: str,
        name: str,
        before: Shaped[Tensor, "k *shape"],
        candidate: Shaped[Tensor, "k *shape"],
    ) -> Shaped[Tensor, "k *shape"]:
        change = self._proposal.changes[number]
        if isinstance(change, Shuffle):
            return self._shuffled(change, number, field, name, before, candidate)
        known, held = self._with_donors(field, name, before)
        return moved(change, name, known, candidate, self._layers, held)

    def pulled(
        self,
        number: int,
        name: str,
        before: Shaped[Tensor, "k *shape"],
        candidate: Shaped[Tensor, "k *shape"],
        centre: Shaped[Tensor, "*shape"] | None,
    ) -> tuple[Shaped[Tensor, "k *shape"], Shaped[Tensor, "*shape"]]:
        change = self._proposal.changes[number]
        assert isinstance(change, Elastic)
        field = f"params/{name}"
        if number in self._centres:
            centre = self._centres[number][field].to(before)
        assert centre is not None
        drawn_to = centre + self._drawn[number][field].to(before) if number in self._drawn else centre
        return towards(change, candidate, centre), drawn_to

    def origins(self, field: str, before: Shaped[Tensor, "k *shape"]) -> Shaped[Tensor, "k *shape"]:
        known, held = self._with_donors(field, None, before)
        learn = set(self._learn)
        rows = [
            held.row[origin] if t in learn else held.row[t]
            for t, origin in zip(self._own, self._proposal.origin.tolist(), strict=True)
        ]
        return known[torch.tensor(rows, device=before.device)]

    def _with_donors(self, field: str, name: str | None, before: Tensor) -> tuple[Tensor, Held]:
        """A field of the share's tasks and of those donors of whom it came, and whose row is whose."""
        whole = {
            donor: parts[field].to(before).view_as(before[0]) for donor, parts in self._whole.items() if field in parts
        }
        some = {
            donor: self._spread(parts[field], name, before[0], donor)
            for donor, parts in self._some.items()
            if field in parts
        }
        donors = whole | some
        row = self._own | {donor: len(before) + i for i, donor in enumerate(donors)}
        known = torch.cat([before, torch.stack(list(donors.values()))]) if donors else before
        return known, Held(row, self._learn)

    def _spread(self, values: Tensor, name: str | None, like: Tensor, donor: int) -> Tensor:
        """Numbers of a donor where they belong, among others that nobody reads."""
        mask = True if name is None else _read(self._proposal.changes, name, like, self._layers, self._learn, donor)
        if not isinstance(mask, Tensor):
            return values.to(like)
        return torch.zeros_like(like).masked_scatter(mask, values.to(like))

    def _shuffled(
        self, change: Shuffle, number: int, field: str, name: str, before: Tensor, candidate: Tensor
    ) -> Tensor:
        tasks = self._proposal.tasks
        result = candidate.clone().reshape(len(candidate), -1)

        def crossing(giving: slice) -> tuple[Tensor, Tensor, Tensor]:
            return permuted(change, name, before[0], self._layers, self._learn, giving)

        who, donors, where = crossing(tasks)
        result[who - tasks.start, where] = _flat(before)[donors - tasks.start, where]
        for arrival, content in self._given:
            if arrival.number == number:
                who, _, where = crossing(arrival.tasks)
                result[who - tasks.start, where] = content[field].to(result)
        return result.view_as(candidate)


# -- small parts -------------------------------------------------------------------------------------------------------


def _read(
    changes: Sequence[Part], name: str, like: Tensor, layers: dict[str, int], learn: Sequence[int], donor: int
) -> bool | Tensor:
    return either(taken(change, name, like, layers, learn, donor) for change in changes)


def _mixable(fields: Mapping[str, Field]) -> list[tuple[str, Sequence[Tensor] | Tensor]]:
    return [(f, rows) for f, (name, rows) in fields.items() if name is not None and rows[0].is_floating_point()]


def _rows(rows: Sequence[Tensor] | Tensor, tasks: Sequence[int]) -> Tensor:
    return torch.stack([rows[t] for t in tasks])


def _flat(rows: Sequence[Tensor] | Tensor) -> Tensor:
    stacked = rows if isinstance(rows, Tensor) else torch.stack(list(rows))
    return stacked.reshape(len(stacked), -1)


def _slice_of(count: int, part: int, parts: int) -> slice:
    return slice(count * part // parts, count * (part + 1) // parts)
