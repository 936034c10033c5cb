"""What moves when a plan is carried out among shares of the tasks, where nobody holds all of them.

Every share is a slice of neighbouring tasks with an engine of its own, wherever that is. The one who asks sees plans,
acceptances and sizes; models go straight from the share that has them to the share that needs them, and only what a
plan needs moves. What comes of it is what `LocalEngine.apply` makes of the plan with all tasks in one engine.

Legend: T tasks, k those of one share, A shares, N rows.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_map

from kinfold.engines import parcels
from kinfold.engines.compression import Codec as Codec
from kinfold.engines.compression import bytes_of as bytes_of
from kinfold.engines.local import LocalEngine
from kinfold.engines.moves import pulling
from kinfold.engines.parcels import Arrival, Errand, Parcel, Scope
from kinfold.engines.proposals import Proposal
from kinfold.engines.routes import Combination, Mean, Route, routed
from kinfold.engines.sharing import lesson_of
from kinfold.transfer.base import Outcome, Plan
from kinfold.transfer.changes import Elastic, Teach, Tune


@final
@dataclass(frozen=True, eq=False)
class Handle:
    """What a share computed, and keeps.

    Attributes:
        share: number of the share, where it lies.
        kind: what it counts as where another share fetches it.
        number: that no other handle of the transport has.
        held: the transport's own means to reach it.
        size: by which the transport knows how many bytes its tensors have.
    """

    share: int
    kind: str
    number: int
    held: Any
    size: Any


class Transport(abc.ABC):
    """Reaches the engines of the shares, and counts what goes between them. A subclass says where they are.

    Every share does what it is asked in the order in which it was asked.
    """

    def __init__(self) -> None:
        self._asked = itertools.count()
        # (share, number of a handle) → (kind, size); not the handle, which would keep what it holds.
        self._fetched: dict[tuple[int, int], tuple[str, Any]] = {}
        self._counted: dict[str, int] = {}

    @final
    def ask(self, share: int, function: Callable[..., Any], *arguments: Any, kind: str = "") -> Handle:
        """Has `function(engine, *arguments)` called in the process of a share's engine, where the result stays.

        It need not wait for it. What fails there is raised by `get`, if not before.

        Args:
            share: number of the share.
            function: one at the top of a module.
            arguments: those that are handles are replaced there by what they hold, fetched from where it lies.
            kind: what the result counts as in `traffic`.
        """
        for argument in arguments:
            if isinstance(argument, Handle) and argument.share != share:
                # Once, however often the share is given it.
                self._fetched[share, argument.number] = argument.kind, argument.size
        return Handle(share, kind, next(self._asked), *self._run(share, function, arguments))

    @abc.abstractmethod
    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Returns what handles hold, here; for what is small: scores, flags, names."""

    @abc.abstractmethod
    def first(self, handles: Sequence[Handle]) -> Handle:
        """Returns a handle of what has been computed, of several; it waits until there is one."""

    @final
    def count(self) -> None:
        """Counts what was fetched, and lets go of what that takes; what is fetched again by a share counts again."""
        fetched, self._fetched = list(self._fetched.values()), {}
        for (kind, _), size in zip(fetched, self._bytes([size for _, size in fetched]), strict=True):
            if size:
                self._counted[kind] = self._counted.get(kind, 0) + size

    @final
    def traffic(self) -> dict[str, int]:
        """Returns the bytes of tensors that shares fetched from other shares since it was last called, by kind."""
        self.count()
        counted, self._counted = self._counted, {}
        return counted

    @abc.abstractmethod
    def _run(self, share: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Does what `ask` says; returns the handle's (held, size)."""

    @abc.abstractmethod
    def _bytes(self, sizes: Sequence[Any]) -> list[int]:
        """Returns the bytes that the sizes of handles stand for; it may wait for them."""


@final
class InProcess(Transport):
    """Shares that are all in this process, for tests and as the reference of other transports.

    Args:
        engines: one for each share.
    """

    def __init__(self, engines: Sequence[LocalEngine]):
        super().__init__()
        self._engines = engines

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return [handle.held for handle in handles]

    def first(self, handles: Sequence[Handle]) -> Handle:
        return min(handles, key=lambda handle: handle.number)

    def _run(self, share: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        given = (argument.held if isinstance(argument, Handle) else argument for argument in arguments)
        result = tree_map(_own, function(self._engines[share], *given))
        return result, bytes_of(result)

    def _bytes(self, sizes: Sequence[Any]) -> list[int]:
        return list(sizes)


def carry_out(
    plan: Plan, period: int, shares: Sequence[slice], transport: Transport, codec: Codec | None = None
) -> Outcome:
    """Carries out a plan among shares, and returns what became of it.

    What goes between shares counts in `Transport.traffic` as `models` (copied, or donors in a mixture), `combinations`
    (what several tasks of a share amount to in a mixture), `sums` (of means, up and down a tree), `medians`,
    `centres`, `shuffled`, or `numbers` (of crossovers, and what cannot be mixed); what optimizers remember, as
    `moments models` and so on.

    Args:
        plan: over all T tasks.
        period: number of the present period.
        shares: the tasks of each share, neighbours, in order, all T together.
        transport: reaches the engines of these shares; what went between them is then in `Transport.traffic`.
        codec: makes whole models, and sums of them, smaller where they go to another share. What is drawn number by
            number, optimizer state and buffers go as they are.

    Raises:
        RunError: whatever the transport raises where a share is lost.
    """
    T = shares[-1].stop
    proposal, outcome = Proposal.of(plan, T), Outcome.nothing(T)
    if bool(proposal.touched.any()):
        outcome = _considered(proposal, plan, period, shares, transport, codec)
        _follow(proposal, plan, outcome.accepted, period, shares, transport)
    transport.get(
        [
            transport.ask(share, function, *own)
            for function, arguments in told(plan, shares)
            for share, own in enumerate(arguments)
        ]
    )
    return outcome


def told(plan: Plan, shares: Sequence[slice]) -> Iterator[tuple[Callable[..., Any], list[tuple[Any, ...]]]]:
    """Yields (function, arguments of each share) of what shares are told of a plan besides what moves."""
    for change in plan.changes:
        if isinstance(change, Teach):
            yield LocalEngine.learn, [(lesson_of(change, tasks),) for tasks in shares]
        elif isinstance(change, Tune):
            yield (
                parcels.tune,
                [({n: values[own] for n, values in change.values.items()}, change.relative) for own in shares],
            )


_Arrivals: TypeAlias = list[list[tuple[Arrival, Handle]]]
"""[A] what comes to each share from others."""


def _considered(
    proposal: Proposal,
    plan: Plan,
    period: int,
    shares: Sequence[slice],
    transport: Transport,
    codec: Codec | None,
) -> Outcome:
    """Has every share build, try and keep its candidates."""
    route = routed(plan.changes, shares, proposal.touched, proposal.origin)
    scope = Scope(buffers=plan.buffers == "follow", codec=codec)
    # Before any share changes a task, every share has packed what others need of it: each does one thing at a time.
    arrivals = _sent(route, scope, shares, transport)
    pulls = _pulled(plan, scope, shares, transport)
    outcome, asked = Outcome.nothing(shares[-1].stop), {}
    for share, tasks in enumerate(shares):
        coming = arrivals[share] + pulls
        if coming or bool(proposal.touched[tasks].any()):
            errand = _errand(proposal, route, share, shares, scope, coming, period)
            asked[share] = transport.ask(share, parcels.consider, errand, *(handle for _, handle in coming))
    for share, own in zip(asked, transport.get(list(asked.values())), strict=True):
        outcome.accepted[shares[share]] = own.accepted
        outcome.before[shares[share]] = own.before
        outcome.after[shares[share]] = own.after
    return outcome


def _follow(
    proposal: Proposal,
    plan: Plan,
    accepted: Bool[Tensor, " T"],
    period: int,
    shares: Sequence[slice],
    transport: Transport,
) -> None:
    """Has what optimizers remember follow, where a candidate was accepted."""
    concerned = accepted & proposal.restarted if plan.moments == "keep" else accepted
    if not bool(concerned.any()):
        return
    learn = accepted & ~proposal.restarted if plan.moments == "follow" else torch.zeros_like(accepted)
    moving: frozenset[tuple[str, str]] = frozenset()
    if bool(learn.any()):
        everywhere = [transport.ask(share, parcels.moments) for share in range(len(shares))]
        moving = frozenset.intersection(*transport.get(everywhere))
    route = routed(plan.changes, shares, learn, proposal.origin)
    scope = Scope(moving=moving)
    arrivals = _sent(route, scope, shares, transport)
    asked = []
    for share, tasks in enumerate(shares):
        if bool(concerned[tasks].any()):
            errand = _errand(proposal, route, share, shares, scope, arrivals[share], period)
            handles = [handle for _, handle in arrivals[share]]
            asked.append(transport.ask(share, parcels.follow, errand, accepted[tasks], *handles))
    transport.get(asked)


def _errand(
    proposal: Proposal,
    route: Route,
    share: int,
    shares: Sequence[slice],
    scope: Scope,
    coming: Sequence[tuple[Arrival, Handle]],
    period: int,
) -> Errand:
    own = proposal.to(shares[share], route.changes[share])
    return Errand(own, route.learn[share], scope, tuple(arrival for arrival, _ in coming), period)


def _sent(route: Route, scope: Scope, shares: Sequence[slice], transport: Transport) -> _Arrivals:
    """Has shares pack what others need of their tasks; returns what comes to each."""
    arrivals: _Arrivals = [[] for _ in shares]
    prefix = "" if scope.moving is None else "moments "
    share_of = {t: a for a, tasks in enumerate(shares) for t in range(tasks.start, tasks.stop)}

    def ask(share: int, function: Callable[..., Any], *arguments: Any, kind: str) -> Handle:
        return transport.ask(share, function, scope, *arguments, kind=prefix + kind)

    models: dict[int, list[tuple[Arrival, Handle]]] = {}
    for donor in sorted({donor for donors in route.whole for donor in donors}):
        stand_in = route.stand_ins.get(donor)
        takers = [a for a, donors in enumerate(route.whole) if donor in donors]
        if stand_in is None:
            home = share_of[donor]
            handle = ask(home, parcels.model, donor - shares[home].start, kind="models")
            models[donor] = [(Arrival("model", donor), handle)]
        elif isinstance(stand_in, Combination):
            home = share_of[stand_in.members[0][0]]
            weights = [(t - shares[home].start, weight) for t, weight in stand_in.members]
            models[donor] = [(Arrival("model", donor), ask(home, parcels.combined, weights, kind="combinations"))]
        elif isinstance(stand_in, Mean):
            homes = _by_share(stand_in.members, shares)
            givers = sorted(homes, key=lambda home: home not in takers)  # so that the mean is found where it is needed

            own_sum = partial(_own_sum, transport, parcels.summed, homes, f"{prefix}sums")
            mean = _reduced(own_sum, givers, len(stand_in.members), scope, transport)
            models[donor] = [(Arrival("model", donor), mean)]
        else:
            homes = _by_share(stand_in.members, shares)
            models[donor] = []
            for part, finder in enumerate(homes):
                slices = [
                    ask(home, parcels.sliced, own, part, len(homes), kind="medians") for home, own in homes.items()
                ]
                found = transport.ask(finder, parcels.medians, *slices, kind=f"{prefix}medians")
                models[donor].append((Arrival("slice", donor), found))
    for share, (learn, changes) in enumerate(zip(route.learn, route.changes, strict=True)):
        for donor in route.whole[share]:
            arrivals[share] += models[donor]
        for home, own in _by_share(route.some[share], shares).items():
            donors = {t + shares[home].start: t for t in own}
            handle = ask(home, parcels.numbers, changes, donors, learn, route.origins[share], kind="numbers")
            arrivals[share].append((Arrival("numbers"), handle))
        for number, home in route.shuffles[share]:
            handle = ask(home, parcels.shuffled, changes[number], learn, shares[home], kind="shuffled")
            arrivals[share].append((Arrival("shuffle", number, shares[home]), handle))
    return arrivals


def _pulled(plan: Plan, scope: Scope, shares: Sequence[slice], transport: Transport) -> list[tuple[Arrival, Handle]]:
    """Has shares work out how elastic pulls draw the centre; returns what comes to every share."""
    found: list[tuple[Arrival, Handle]] = []
    for number, change in enumerate(plan.changes):
        if not isinstance(change, Elastic):
            continue
        (known,) = transport.get([transport.ask(0, parcels.has_centre)]) if not found else (True,)
        if not known:
            who = pulling(change).nonzero().flatten().tolist()
            homes = _by_share(who, shares)
            own_sum = partial(_own_sum, transport, parcels.summed_params, homes, "centres")
            found.append((Arrival("centre", number), _reduced(own_sum, list(homes), len(who), scope, transport)))
        drawing = [share for share, tasks in enumerate(shares) if bool((change.centre_rate[tasks] != 0).any())]
        if drawing:
            own_pull = partial(_own_pull, transport, shares, change, tuple(found))
            found.append((Arrival("drawn", number), _reduced(own_pull, drawing, 1, scope, transport)))
    return found


def _own_sum(
    transport: Transport,
    function: Callable[..., Parcel],
    homes: Mapping[int, Sequence[int]],
    kind: str,
    share: int,
    scope: Scope,
) -> Handle:
    return transport.ask(share, function, scope, homes[share], kind=kind)


def _own_pull(
    transport: Transport,
    shares: Sequence[slice],
    change: Elastic,
    earlier: Sequence[tuple[Arrival, Handle]],
    share: int,
    scope: Scope,
) -> Handle:
    first = bool(earlier) and earlier[0][0].kind == "centre"
    own = Elastic(change.rate[shares[share]], change.centre_rate[shares[share]])
    return transport.ask(share, parcels.pull, scope, own, first, *(handle for _, handle in earlier), kind="centres")


def _reduced(
    term: Callable[[int, Scope], Handle], givers: Sequence[int], divisor: int, scope: Scope, transport: Transport
) -> Handle:
    """Sums up what several shares have along a tree, and divides it by a number.

    Args:
        term: has a share pack its own term; those at the ends of the tree send it on.
        givers: shares; at the first of them is the result.
        divisor: the number.
        scope: what moves.
        transport: reaches the shares.
    """
    stays = dataclasses.replace(scope, codec=None)
    sums: dict[int, Handle] = {}
    for i in reversed(range(len(givers))):
        below = [sums[j] for j in (2 * i + 1, 2 * i + 2) if j < len(givers)]
        last = i == 0 and divisor != 1
        sums[i] = term(givers[i], stays if below or last else scope)
        if below or last:
            total = divisor if i == 0 else 1
            sums[i] = transport.ask(givers[i], parcels.added, scope, total, sums[i], *below, kind=sums[i].kind)
    return sums[0]


def _by_share(tasks: Iterable[int], shares: Sequence[slice]) -> dict[int, list[int]]:
    """Share → those of the tasks that are there, by their numbers in it."""
    found: dict[int, list[int]] = {}
    for t in tasks:
        share = next(a for a, own in enumerate(shares) if own.start <= t < own.stop)
        found.setdefault(share, []).append(t - shares[share].start)
    return found


def _own(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
