"""The shares of the tasks, and what is done where a host of some is lost, or another joins.

At the beginning of a period every host keeps the state of its share, and a keeper on another node a copy of it. From
there on it is written down here what the shares were told. A share that is lost is begun again from the copy, on
another host, and told the same once more; if a plan has been carried out in between, all shares go back, since what
moved came from states that are gone. Plans, orders of rows and draws are all keyed, so it comes out as it did.

The host's own copy and the keeper's come to be some time after they were asked for, so a version counts once all
shares' copies are there; until then the one before it does, and what has been told since that.

Legend: T tasks, A shares.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import ray
import torch
from ray.exceptions import RayError

from kinfold.engines import exchange
from kinfold.engines.cluster.actors import Beginning, piece
from kinfold.engines.cluster.packing import Packed, packed, sent, unpacked
from kinfold.engines.cluster.placement import Crew, LostError, Member, node_is_up, node_name
from kinfold.engines.cluster.wires import Wires, all_done, checked
from kinfold.engines.exchange import Codec
from kinfold.engines.local import LocalEngine
from kinfold.engines.sharing import divided, named
from kinfold.errors import RunError
from kinfold.importing import one_line
from kinfold.transfer.base import Outcome, Plan

_ATTEMPTS = 20
"""Recoveries in one period before it is given up: more are no accident."""

_STARTED_SECONDS = 60.0
"""The longest that further hosts are waited for."""

_LATE_SECONDS = 1.0
"""The longest that copies on their way are waited for where a host is lost: there is an older version to go back to."""


@dataclass(frozen=True)
class _Told:
    """Calls that changed shares, each for itself."""

    function: Callable[..., Any]
    arguments: Mapping[int, tuple[Any, ...]]


@dataclass(frozen=True)
class _Planned:
    """A plan that was carried out among the shares, and what became of it."""

    plan: Plan
    period: int
    outcome: Outcome


_Entry: TypeAlias = _Told | _Planned


@dataclass(eq=False)
class _Version:
    """A point to go back to.

    Attributes:
        number: 0 is the job's own start.
        period: at whose beginning it was taken.
        rest: the job that engines begin with.
        start: how much of the journal was written before.
        copies: by share, keepers of its copy, and whether that has come; those that came first stand first.
    """

    number: int
    period: int
    rest: Any
    start: int = 0
    copies: dict[int, list[tuple[Member, Any]]] = field(default_factory=dict)

    def keeper(self, share: int) -> Member | None:
        """Returns a keeper that has a share's copy, or None; it waits for one on its way."""
        for keeper, stored in self.copies[share]:
            try:
                if keeper.alive and keeper.answer(stored):
                    return keeper
            except LostError:
                continue
        return None

    def come(self, seconds: float | None) -> bool:
        """Whether nothing is on its way any more, after at most so long; without a limit, for None.

        A process that is lost has answered in that sense, so there is an end to it.
        """
        stored = [reference for copies in self.copies.values() for _, reference in copies]
        ready, _ = ray.wait(stored, num_returns=len(stored), timeout=seconds)
        return len(ready) == len(stored)

    def whole(self) -> bool:
        """Whether all copies are to be had; it waits for those on their way."""
        return all(self.keeper(share) is not None for share in self.copies)


@final
class Shares:
    """Shares of neighbouring tasks, each on a host.

    Args:
        crew: the hosts.
        tasks: T.
        halves: the job without its data, and these.
        kind: the engine that each host runs.
        note: is told what was lost, and what was done about it.
        codec: see `kinfold.engines.exchange.carry_out`.
        grace: seconds to wait for room for hosts in the place of lost ones.

    Attributes:
        tasks: those of each share.
    """

    def __init__(
        self,
        crew: Crew,
        tasks: int,
        halves: Sequence[Packed],
        kind: type[LocalEngine],
        note: Callable[[str], None],
        codec: Codec | None,
        grace: float | int,
    ):
        self._crew, self._kind, self._note, self._codec, self._grace = crew, kind, note, codec, grace
        self._total, self._period = tasks, 0
        self._rest, self._data = (ray.put(half) for half in halves)
        self._numbers = itertools.count(1)
        self.tasks = divided(tasks, len(crew.hosts))
        self._homes, self._ids = crew.hosts[: len(self.tasks)], [next(self._numbers) for _ in self.tasks]
        self._journal: list[_Entry] = []
        self._version = _Version(0, 1, self._rest)
        self._coming: _Version | None = None
        self._stale: set[int] = set()  # shares that are to be begun again
        self._bare: set[int] = set()  # shares whose host has not kept their state itself
        self._unsure = False  # whether a plan may be half carried out
        self._lost: dict[Member, list[int]] = {}
        self._attempts = 0  # in this period
        self._moved: dict[str, int] = {}
        self._parted = False  # whether shares are each at a point of its own, to which nothing could bring them back
        with self._all_or_none():
            try:
                self._begin(range(len(self.tasks)))
            except LostError:
                self._stale = set(range(len(self.tasks)))
                self._recover()

    # -- what shares are told ------------------------------------------------------------------------------------------

    def tell(
        self, function: Callable[..., Any], arguments: Mapping[int, tuple[Any, ...]], changes: bool = False
    ) -> dict[int, Any]:
        """Calls a function with engines of shares, whatever becomes of their hosts meanwhile; returns what it gave.

        Args:
            function: of an engine; it and its arguments may be any that cloudpickle knows how to send.
            arguments: by share.
            changes: whether it does more than look; then all shares are told.
        """
        answers: dict[int, Any] = {}
        going: dict[int, tuple[Member, Any]] = {}
        with self._all_or_none():
            self._settle(0.0)
            while len(answers) < len(arguments):
                for share in arguments.keys() - answers.keys() - going.keys():
                    going[share] = self._homes[share], self._call(share, function, arguments[share])
                (ready,), _ = ray.wait([reference for _, reference in going.values()], num_returns=1)
                (share,) = [share for share, (_, reference) in going.items() if reference == ready]
                home, reference = going[share]
                try:
                    answers[share] = unpacked(checked(home.answer(reference)))
                    del going[share]
                except LostError:
                    self._unsure |= home.alive  # then it was not the host, but something that the call needed
                    for again in self._recover():
                        answers.pop(again, None)
                        going.pop(again, None)
        if changes:
            self._journal.append(_Told(function, arguments))
        return answers

    def carry_out(self, plan: Plan, period: int) -> Outcome:
        """Carries out a plan among the shares; if a host is lost, from the beginning."""
        if not bool(plan.touched(self._total).any()):  # nothing moves, and each share is told of its own part alone
            for function, arguments in exchange.told(plan, self.tasks):
                self.tell(function, dict(enumerate(arguments)), changes=True)
            return Outcome.nothing(self._total)
        with self._all_or_none():
            while True:
                try:
                    outcome = self._carry_out(plan, period)
                    break
                except LostError:
                    self._unsure = True
                    self._recover()
        self._journal.append(_Planned(plan, period, outcome))
        return outcome

    @contextmanager
    def apart(self) -> Iterator[Wires]:
        """Within, shares are asked each for itself, and nothing of that is written down: what is lost ends the run."""
        self._parted = True
        wires = Wires(self._run, self._homes)
        with self._all_or_none():
            try:
                yield wires
                wires.settle()
            except LostError as error:
                raise self._lost_apart() from error
        self._count(wires)

    def meet(self, period: int) -> None:
        """Keeps all states after shares were apart, and have all ended a period; what is lost later goes back there."""
        self._period = period + 1
        with self._all_or_none():
            self._keep()
            coming = self._coming
            self._settle(None)
        self._parted = self._version is not coming

    def _lost_apart(self) -> RunError:
        self._crew.notice()
        lost = [
            f"{named(tasks)} on node {node_name(home.node)}"
            for tasks, home in zip(self.tasks, self._homes, strict=True)
            if not home.alive
        ]
        who = f"the actor of {' and of '.join(lost)}" if lost else "something that an actor had"
        return RunError(
            f"engine: {who} was lost, and asynchronous tasks cannot go back to where the others were then; go on from "
            "the last checkpoint with resume."
        )

    def traffic(self) -> dict[str, int]:
        """Returns the bytes that plans moved from share to share since it was last called."""
        moved, self._moved = self._moved, {}
        return moved

    def home(self, share: int) -> Member:
        """Returns the host of a share."""
        return self._homes[share]

    def start_from(self, rest: Packed) -> None:
        """From the next version on, engines begin with this job, which is given without its data."""
        self._rest = ray.put(rest)

    # -- periods -------------------------------------------------------------------------------------------------------

    def begin_period(self, period: int) -> None:
        """Shares out the tasks anew where there are other hosts than shares, and keeps all states."""
        self._period, self._attempts = period, 0
        with self._all_or_none():
            while self._other_hosts():
                try:
                    self._divide()
                except LostError:
                    self._unsure = True
                    self._recover()
            if self._journal:
                self._keep()

    def _other_hosts(self) -> bool:
        if len(self._crew.hosts) < self._total:
            self._crew.grow(_STARTED_SECONDS)
        return {*self._homes} != {*self._crew.hosts} or len({*self._homes}) < len(self._homes)

    def _keep(self) -> None:
        """Has all states kept, without waiting for that; those asked for before have had a period's time."""
        self._settle(None)
        version = _Version(next(self._numbers), self._period, self._rest, len(self._journal))
        for share, (home, number) in enumerate(zip(self._homes, self._ids, strict=True)):
            self._copy(share, home, number, version, home.actor.keep.remote(number, version.number))
        self._coming = version

    def _copy(self, share: int, home: Member, number: int, version: _Version, held: Any) -> None:
        """Has a keeper fetch a copy of what a share's host keeps, beside those that there are."""
        keeper = self._crew.keeper(home.node)
        stored = keeper.actor.store.remote(number, version.number, held)
        version.copies.setdefault(share, []).append((keeper, stored))

    def _settle(self, seconds: float | None) -> None:
        """The version that is coming is the one to go back to, if all copies are there within so long.

        If they are on their way after that, it goes on coming; if one was lost, it comes no more.
        """
        version = self._coming
        if version is None or not version.come(seconds):
            return
        self._coming = None
        if version.whole():
            self._version = version
            self._journal = self._journal[version.start :]
            version.start = 0
            for member in (*self._crew.hosts, *self._crew.keepers()):
                member.actor.forget_before.remote(version.number)

    def _divide(self) -> None:
        """Shares out the tasks anew among all hosts; states go from host to host.

        What there was before is forgotten when what comes after is whole, and kept.
        """
        hosts, before = self._crew.hosts[: self._total], len(self._homes)
        tasks = divided(self._total, len(hosts))
        ids = [next(self._numbers) for _ in tasks]
        version = _Version(next(self._numbers), self._period, self._rest)
        cuts: list[list[tuple[slice, Any]]] = [[] for _ in tasks]
        asked: list[tuple[Member, Any]] = []
        for share, own in enumerate(self.tasks):
            for new, its in enumerate(tasks):
                first, end = max(own.start, its.start), min(own.stop, its.stop)
                if first < end:
                    answer, held = self._run(share, piece, (slice(first - own.start, end - own.start),))
                    asked.append((self._homes[share], answer))
                    cuts[new].append((slice(first - its.start, end - its.start), held))
        try:
            for host in {*self._homes}:
                host.actor.drop.remote()  # once what is asked of it above has been put together
            for host, number, its, parts in zip(hosts, ids, tasks, cuts, strict=True):
                how = Beginning(self._kind, its, self._total, tuple(part for part, _ in parts))
                states = [held for _, held in parts]
                asked.append((host, host.actor.begin.remote(number, packed(how), self._rest, self._data, *states)))
            all_done(asked)
            for share, (host, number) in enumerate(zip(hosts, ids, strict=True)):
                self._copy(share, host, number, version, host.actor.keep.remote(number, version.number))
            if not version.whole():
                raise LostError
        except LostError:
            for member in (*hosts, *self._crew.keepers()):
                member.actor.forget.remote(ids)
            raise
        for member in (*hosts, *self._crew.keepers()):
            member.actor.forget.remote(self._ids)
        self.tasks, self._ids, self._homes = tasks, ids, hosts
        self._journal, self._version, self._coming = [], version, None
        where = ", ".join(sorted({node_name(host.node) for host in hosts}))
        self._note(
            f"cluster: from period {self._period} on the tasks are shared out anew, among {len(hosts)} actors instead "
            f"of {before}, on {where}."
        )

    # -- losses --------------------------------------------------------------------------------------------------------

    def _recover(self) -> set[int]:
        """Brings all shares to where they were before the call that is not yet in the journal.

        Returns:
            Those that were begun again; what they have answered to that call is void.
        """
        if self._parted:
            raise self._lost_apart()
        while self._attempts < _ATTEMPTS:
            self._attempts += 1
            try:
                return self._recovered()
            except LostError:
                continue
        raise RunError(
            f"engine: actors were lost {_ATTEMPTS} times in one period; see why (memory?), and go on from the last "
            "checkpoint with resume."
        )

    def _recovered(self) -> set[int]:
        self._crew.notice()
        everyone = set(range(len(self.tasks)))
        missing = {share for share in everyone if not self._homes[share].alive}
        for share in missing:
            self._lost.setdefault(self._homes[share], []).append(share)
        self._stale |= missing
        self._bare |= missing
        self._settle(_LATE_SECONDS if missing else None)
        self._coming = None  # a host that takes over has not kept it
        version = self._version
        alone = not self._unsure and not any(isinstance(entry, _Planned) for entry in self._journal)
        if not alone:
            self._stale = everyone
            for host in self._crew.hosts:
                host.actor.drop.remote()
        self._place(missing)
        again = sorted(self._stale)
        self._begin(again)
        for entry in self._journal:
            if isinstance(entry, _Planned):
                self._check(entry, self._carry_out(entry.plan, entry.period))
            else:
                all_done(
                    [
                        (self._homes[share], self._call(share, entry.function, entry.arguments[share]))
                        for share in again
                        if share in entry.arguments
                    ]
                )
        for share in everyone if version.number else ():
            if not self._copied(share, version):
                home, number = self._homes[share], self._ids[share]
                self._copy(share, home, number, version, home.actor.kept.remote(number, version.number))
        self._tell_of_loss(version, alone)
        self._stale, self._lost, self._unsure = set(), {}, False
        return {*again}

    def _copied(self, share: int, version: _Version) -> bool:
        """Whether a keeper that is not known to be lost has a copy, on another node than the host if there is one."""
        home = self._homes[share]
        wanted = self._crew.keeper(home.node)
        keepers = [keeper for keeper, _ in version.copies[share] if keeper.alive]
        return any(keeper is wanted or keeper.node != home.node for keeper in keepers)

    def _begin(self, shares: Sequence[int]) -> None:
        """Begins shares at the version to go back to."""
        version, asked = self._version, []
        for share in shares:
            home, tasks, states = self._homes[share], self.tasks[share], []
            how = Beginning(self._kind, tasks, self._total)
            if version.number and share in self._bare:
                keeper = version.keeper(share)
                if keeper is None:
                    raise RunError(
                        f"engine: what {named(tasks)} had learned was lost with its only copy, on node "
                        f"{node_name(version.copies[share][-1][0].node)}; go on from the last checkpoint with resume."
                    )
                states = [keeper.actor.give.remote(self._ids[share], version.number)]
                keeper.answer(states[0])  # so that it is known if it has gone
                how = Beginning(self._kind, tasks, self._total, (slice(0, tasks.stop - tasks.start),))
            elif version.number:
                how = Beginning(self._kind, tasks, self._total, version=version.number)
            begun = home.actor.begin.remote(self._ids[share], packed(how), version.rest, self._data, *states)
            asked.append((home, begun))
        all_done(asked)
        for share in shares:
            if version.number and share in self._bare:
                self._homes[share].actor.keep.remote(self._ids[share], version.number)
            self._bare.discard(share)

    def _place(self, missing: set[int]) -> None:
        """Finds hosts for shares: others where there is room within some time, else those that are left."""
        until = time.monotonic() + self._grace
        while len(self._idle()) < len(missing):
            self._crew.grow(_STARTED_SECONDS)
            if len(self._idle()) >= len(missing) or time.monotonic() > until:
                break
            time.sleep(0.2)
        for share in sorted(missing):
            hosts = self._idle() or self._crew.hosts
            if not hosts:
                raise RunError(
                    "engine: all actors were lost, and the cluster has no room for others; go on from the last "
                    "checkpoint with resume."
                )
            self._homes[share] = min(hosts, key=self._homes.count)

    def _idle(self) -> list[Member]:
        return [host for host in self._crew.hosts if host not in self._homes]

    def _check(self, entry: _Planned, outcome: Outcome) -> None:
        if not torch.equal(entry.outcome.accepted, outcome.accepted):
            raise RunError(
                f"engine: after a loss, the plan of period {entry.period} came out otherwise when it was carried out "
                "again (computations that are not deterministic); go on from the last checkpoint with resume."
            )

    def _tell_of_loss(self, version: _Version, alone: bool) -> None:
        count = f"{len(self._journal)} call{'' if len(self._journal) == 1 else 's'}"
        since = "their start" if not version.number else f"the beginning of period {version.period}"
        again = "" if alone else " for all tasks, since something had moved between them"
        for member, shares in self._lost.items():
            who = "an actor on node" if node_is_up(member.node) else "node"
            tasks = " and ".join(named(self.tasks[share]) for share in sorted({*shares}))
            now = " and ".join(sorted({node_name(self._homes[share].node) for share in shares}))
            self._note(
                f"cluster: {who} {node_name(member.node)} was lost in period {self._period} with {tasks}; they went "
                f"back to {since}, on node {now}, and what was done since ({count}) was done again{again}."
            )

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _call(self, share: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return self._homes[share].actor.tell.remote(self._ids[share], sent((function, arguments)))

    def _run(self, share: int, function: Callable[..., Any], arguments: tuple[Any, ...], *given: Any) -> Sequence[Any]:
        call = sent((function, arguments))
        run = self._homes[share].actor.run.options(num_returns=2)
        references: Sequence[Any] = run.remote(self._ids[share], call, *given)
        return references

    def _carry_out(self, plan: Plan, period: int) -> Outcome:
        wires = Wires(self._run, self._homes)
        try:
            outcome = exchange.carry_out(plan, period, self.tasks, wires, self._codec)
        except LostError:  # maybe only for what a failure left undone
            wires.settle()
            raise
        wires.settle()
        self._count(wires)
        return outcome

    def _count(self, wires: Wires) -> None:
        for kind, count in wires.traffic().items():
            self._moved[kind] = self._moved.get(kind, 0) + count

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """If one fails, the tasks are no longer all at the same point, and none can go on."""
        try:
            yield
        except RayError as error:  # not that of a process of ours: Ray's own
            self._crew.close()
            raise RunError(
                f"engine: Ray failed ({one_line(error)[:200]}); go on from the last checkpoint with resume."
            ) from error
        except BaseException:
            self._crew.close()
            raise
