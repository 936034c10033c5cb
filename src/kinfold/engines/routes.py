"""Which share sends what to which when a plan is carried out: worked out from the plan alone, before anything moves.

What many tasks learn from alike need not go to each of them. A mean over a group is summed up along a tree of shares, a
share sends what several of its tasks amount to in a mixture as one model, and the median of a group is found in slices.
Each of these stands for a donor of its own, a *stand-in*, numbered from T.

Legend: T tasks, A shares, G tasks of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from jaxtyping import Bool, Int64
from torch import Tensor

from kinfold.engines.moves import Medians, Mixture, Part, medians_of, mixture_of
from kinfold.transfer.changes import BinaryCross, Change, Cross, Median, Mix, Shuffle


@final
@dataclass(frozen=True)
class Mean:
    """Stands for a group whose mean several shares need.

    Attributes:
        members: the group.
    """

    members: tuple[int, ...]


@final
@dataclass(frozen=True)
class Combination:
    """Stands for several tasks of one share in a mixture.

    Attributes:
        members: (task, weight), weights summing to one.
    """

    members: tuple[tuple[int, float], ...]


@final
@dataclass(frozen=True)
class MedianOf:
    """Stands for a group whose median several shares need.

    Attributes:
        members: the group.
    """

    members: tuple[int, ...]


StandIn: TypeAlias = Mean | Combination | MedianOf


@final
@dataclass(frozen=True)
class Route:
    """What is left of a plan's changes for each share, and what must come to it from others.

    Attributes:
        changes: [A] the changes, in order.
        stand_ins: donor, from T on → what it stands for.
        whole: [A] donors, stand-ins among them, of which all numbers are needed that can be mixed.
        some: [A] other tasks of which something is needed.
        shuffles: [A] (number of the change, share that gives).
        learn: [A] tasks that learn.
        origins: [A] tasks from whom these take what cannot be divided.
    """

    changes: tuple[tuple[Part, ...], ...]
    stand_ins: Mapping[int, StandIn]
    whole: tuple[tuple[int, ...], ...]
    some: tuple[tuple[int, ...], ...]
    shuffles: tuple[tuple[tuple[int, int], ...], ...]
    learn: tuple[tuple[int, ...], ...]
    origins: tuple[frozenset[int], ...]


def routed(
    changes: Sequence[Change],
    shares: Sequence[slice],
    learn: Bool[Tensor, " T"],
    origin: Int64[Tensor, " T"],
) -> Route:
    """Returns how to carry out changes among shares.

    Args:
        changes: a plan's, in order.
        shares: the tasks of each share.
        learn: tasks that shall learn; the plan's changes to others do not count.
        origin: the task from which each takes what cannot be divided.

    Example:
        >>> import torch
        >>> mean = Mix(torch.full((4, 4), 0.25, dtype=torch.float64))
        >>> route = routed([mean], [slice(0, 2), slice(2, 4)], torch.ones(4, dtype=torch.bool), torch.arange(4))
        >>> route.stand_ins, route.whole
        ({4: Mean(members=(0, 1, 2, 3))}, ((4,), (4,)))
    """
    share_of = {t: a for a, tasks in enumerate(shares) for t in range(tasks.start, tasks.stop)}
    learners = learn.nonzero().flatten().tolist()
    stand_ins = _StandIns(len(share_of), share_of)
    parts: list[Part] = []
    altered: set[int] = set()
    for change in changes:
        part: Part = change
        if isinstance(change, Mix):
            part = stand_ins.mixture(mixture_of(change, learners), altered)
        elif isinstance(change, Median):
            part = stand_ins.medians(medians_of(change, learners))
        parts.append(part)
        touched = change.touched()
        altered |= set() if touched is None else set(touched.nonzero().flatten().tolist())
    own = [tuple(t for t in learners if share_of[t] == a) for a in range(len(shares))]
    whole = [_whole(parts, mine) - set(range(tasks.start, tasks.stop)) for mine, tasks in zip(own, shares, strict=True)]
    origins = [frozenset(int(origin[t]) for t in mine) for mine in own]
    some = [
        (_some(parts, mine) | from_whom) - needed - set(range(tasks.start, tasks.stop))
        for mine, from_whom, needed, tasks in zip(own, origins, whole, shares, strict=True)
    ]
    return Route(
        tuple(tuple(_rows_of(part, mine) for part in parts) for mine in own),
        stand_ins.found,
        tuple(tuple(sorted(donors)) for donors in whole),
        tuple(tuple(sorted(donors)) for donors in some),
        tuple(tuple(_givers(parts, shares, a, mine)) for a, mine in enumerate(own)),
        tuple(own),
        tuple(origins),
    )


def alone(
    changes: Sequence[Change], tasks: slice, learn: Bool[Tensor, " T"], origin: Int64[Tensor, " T"]
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """Returns (what is left of changes for one share, donors at others, who all come whole).

    Args:
        changes: a plan's, in order, of the kinds of which `Change.only` leaves something.
        tasks: of the share.
        learn: tasks that shall learn; those of other shares do not count.
        origin: as in `routed`.

    Example:
        >>> import torch
        >>> copy = Mix(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
        >>> alone([copy], slice(0, 2), torch.ones(3, dtype=torch.bool), torch.tensor([0, 2, 0]))[1]
        (2,)
    """
    own = [t for t in range(tasks.start, tasks.stop) if bool(learn[t])]
    parts: list[Part] = []
    for change in changes:
        part: Part = change
        if isinstance(change, Mix):
            part = mixture_of(change, own)
        elif isinstance(change, Median):
            part = medians_of(change, own)
        parts.append(part)
    donors = _whole(parts, own) | _some(parts, own) | {int(origin[t]) for t in own}
    return tuple(parts), tuple(sorted(donors - set(range(tasks.start, tasks.stop))))


def _whole(parts: Sequence[Part], learn: Sequence[int]) -> set[int]:
    """Donors of which tasks need all numbers."""
    donors: set[int] = set()
    for part in parts:
        for t in learn:
            if isinstance(part, Mixture):
                donors |= set(part.rows.get(t, {}))
            elif isinstance(part, Medians):
                donors |= set(part.members.get(t, ()))
            elif isinstance(part, BinaryCross) and int(part.source[t]) >= 0:
                donors.add(int(part.source[t]))
    return donors


def _some(parts: Sequence[Part], learn: Sequence[int]) -> set[int]:
    """Donors of which tasks need some numbers, or what cannot be mixed."""
    donors: set[int] = set()
    for part in parts:
        for t in learn:
            if isinstance(part, Mixture) and t in part.whole:
                donors.add(part.whole[t])
            elif isinstance(part, Cross) and int(part.source[t]) >= 0:
                donors.add(int(part.source[t]))
    return donors


def _givers(parts: Sequence[Part], shares: Sequence[slice], share: int, learn: Sequence[int]) -> list[tuple[int, int]]:
    """(number of a shuffle, other share whose tasks take part) for some tasks of a share."""
    return [
        (number, b)
        for number, part in enumerate(parts)
        if isinstance(part, Shuffle) and any(bool(part.tasks[t]) for t in learn)
        for b, tasks in enumerate(shares)
        if b != share and bool(part.tasks[tasks].any())
    ]


def _rows_of(part: Part, learn: Sequence[int]) -> Part:
    if isinstance(part, Mixture):
        rows = {t: part.rows[t] for t in learn if t in part.rows}
        return Mixture(rows, {t: part.whole[t] for t in rows})
    if isinstance(part, Medians):
        return Medians({t: part.members[t] for t in learn if t in part.members})
    return part


class _StandIns:
    """Finds stand-ins that save traffic, and puts them in the place of those whom they stand for."""

    def __init__(self, tasks: int, share_of: Mapping[int, int]):
        self._tasks, self._share_of = tasks, share_of
        self.found: dict[int, StandIn] = {}
        self._number: dict[StandIn, int] = {}

    def mixture(self, mixture: Mixture, altered: set[int]) -> Mixture:
        """Returns a mixture with fewer donors at other shares.

        Args:
            mixture: of tasks.
            altered: tasks whose candidates are not what they were before the plan; what a stand-in has of them, it has
                from before.
        """
        rows = {t: dict(row) for t, row in mixture.rows.items()}
        groups: dict[tuple[int, ...], list[int]] = {}
        for t, row in rows.items():
            others = [s for s in row if s != t]
            if len(others) > 1 and len({row[s] for s in others}) == 1:
                members = others if t not in row or t in altered else [*others, t]
                groups.setdefault(tuple(sorted(members)), []).append(t)
        for group, recipients in groups.items():
            direct = self._direct([rows[t] for t in recipients], recipients)
            if self._apart(group) and self._hops(group, recipients) <= direct:
                stand_in = self._numbered(Mean(group))
                for t in recipients:
                    rows[t] = _through_mean(t, rows[t], group, stand_in)
        self._combine(rows)
        return Mixture(rows, mixture.whole)

    def medians(self, medians: Medians) -> Part:
        """Returns medians with fewer members at other shares."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for t, members in medians.members.items():
            groups.setdefault(members, []).append(t)
        shipped = sum(
            sum(self._share_of[s] != a for s in members)
            for members, recipients in groups.items()
            for a in {self._share_of[t] for t in recipients}
        )
        if sum(self._sliced(members, recipients) for members, recipients in groups.items()) >= shipped:
            return medians
        rows = {t: {self._numbered(MedianOf(members)): 1.0} for t, members in medians.members.items()}
        return Mixture(rows, {t: t for t in rows})

    def _apart(self, tasks: Sequence[int]) -> bool:
        return len({self._share_of[t] for t in tasks}) > 1

    def _hops(self, members: Sequence[int], recipients: Sequence[int]) -> int:
        """Models that go between shares where a mean is summed up along a tree."""
        givers, takers = ({self._share_of[t] for t in tasks} for tasks in (members, recipients))
        return len(givers) - 1 + len(takers) - (1 if givers & takers else 0)

    def _direct(self, rows: Sequence[Mapping[int, float]], recipients: Sequence[int]) -> int:
        """Those that go where every share sends each other one what its own members amount to."""
        pairs = {(self._share_of[s], self._share_of[t]) for t, row in zip(recipients, rows, strict=True) for s in row}
        return sum(giver != taker for giver, taker in pairs)

    def _sliced(self, members: Sequence[int], recipients: Sequence[int]) -> float:
        """Those that go where each share with members finds the medians of a slice."""
        givers, takers = ({self._share_of[t] for t in tasks} for tasks in (members, recipients))
        return len(members) * (1 - 1 / len(givers)) + len(takers) - len(givers & takers) / len(givers)

    def _combine(self, rows: dict[int, dict[int, float]]) -> None:
        """Has shares send combinations where these are fewer than the models in them, in place."""
        pairs: dict[tuple[int, int], list[int]] = {}
        for t, row in rows.items():
            for giver in {self._share_of[s] for s in row if s < self._tasks} - {self._share_of[t]}:
                pairs.setdefault((giver, self._share_of[t]), []).append(t)
        for (giver, _), recipients in pairs.items():
            own = {t: {s: w for s, w in rows[t].items() if self._share_of.get(s) == giver} for t in recipients}
            models = {s for row in own.values() for s in row}
            combinations = {t: _combination(row) for t, row in own.items()}
            sent = {s for t, row in own.items() if combinations[t] is None for s in row} | set(combinations.values())
            if len(sent - {None}) >= len(models):
                continue
            for t, combination in combinations.items():
                if combination is not None:
                    total = sum(rows[t].pop(s) for s in own[t])
                    rows[t][self._numbered(combination)] = total

    def _numbered(self, stand_in: StandIn) -> int:
        number = self._number.setdefault(stand_in, self._tasks + len(self._number))
        self.found[number] = stand_in
        return number


def _through_mean(t: int, row: Mapping[int, float], members: Sequence[int], stand_in: int) -> dict[int, float]:
    """A row whose weights on the members, but for t, are all c: |G| c on their mean, and what is left on t itself."""
    c = next(weight for s, weight in row.items() if s != t)
    own = row.get(t, 0.0) - (c if t in members else 0.0)
    return {stand_in: len(members) * c} | ({t: own} if own else {})


def _combination(row: Mapping[int, float]) -> Combination | None:
    """What several donors amount to; None for one, and where weights of both signs may cancel."""
    if len(row) == 1 or min(row.values()) <= 0:
        return None
    total = sum(row.values())
    return Combination(tuple((s, weight / total) for s, weight in row.items()))
