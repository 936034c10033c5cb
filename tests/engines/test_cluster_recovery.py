"""What becomes of shares and their copies, with a Ray that is made up: all in this process, and in a known order."""

import contextlib
import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.engines import Job
from kinfold.engines.compression import Codec
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.errors import RunError
from kinfold.tasks.order import Segment
from kinfold.transfer import Mix, Plan

pytest.importorskip("ray")

from ray.exceptions import RayActorError, RayError

from kinfold.engines.cluster import actors, placement, recovery, wires
from kinfold.engines.cluster.actors import Beginning, Host, Keeper, halves, shared_start, trained
from kinfold.engines.cluster.packing import packed, sent
from kinfold.engines.cluster.placement import Crew, Member
from kinfold.engines.cluster.recovery import Shares

A, B, C = (letter * 56 for letter in "abc")
"""Numbers of nodes, in order."""


class Ref:
    """What a call gives or a process has put down: gone with its owner; late, until it is waited for."""

    def __init__(self, make: Callable[[], Any], owner: "Actor | None" = None, late: bool = False):
        self._make, self._owner, self.late = make, owner, late
        self._found: tuple[Any, Exception | None] | None = None
        if not late:
            with contextlib.suppress(RayError):
                self.get()

    def get(self) -> Any:
        if self._owner is not None and not self._owner.alive:
            raise RayError("gone with its owner")
        if self._found is None:
            self.late = False
            try:
                self._found = self._make(), None
            except RayError as error:
                self._found = None, error
        value, error = self._found
        if error is not None:
            raise error
        return value


class Actor:
    def __init__(self, thing: Any, ray: "MadeUpRay"):
        self.thing, self.alive, self._ray = thing, True, ray

    def __getattr__(self, name: str) -> Any:
        method = SimpleNamespace(remote=lambda *arguments: self._asked(name, arguments))
        method.options = lambda num_returns: SimpleNamespace(
            remote=lambda *arguments: self._several(self._asked(name, arguments), num_returns)
        )
        return method

    def _asked(self, name: str, arguments: tuple[Any, ...]) -> Ref:
        def call() -> Any:
            if not self.alive:
                raise RayActorError
            given = [one.get() if isinstance(one, Ref) else one for one in arguments]
            before, self._ray.running = self._ray.running, self
            try:
                return getattr(self.thing, name)(*given)
            finally:
                self._ray.running = before

        return Ref(call, late=name == "store" and self._ray.slow)

    @staticmethod
    def _several(ref: Ref, count: int) -> list[Ref]:
        return [Ref(lambda i=i: ref.get()[i]) for i in range(count)]


class MadeUpRay:
    """As much of Ray as the engine asks for."""

    def __init__(self) -> None:
        self.up: list[str] = []
        self.running: Actor | None = None
        self.slow = False  # whether copies are on their way until they are waited for without a limit
        self.on_node: list[tuple[str, Actor]] = []

    def put(self, value: Any) -> Ref:
        copied = copy.deepcopy(value)
        return Ref(lambda: copied, self.running)

    def get(self, refs: Any) -> Any:
        return [ref.get() for ref in refs] if isinstance(refs, list) else refs.get()

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
        for ref in refs if timeout is None else ():
            try:
                ref.get()
            except RayError:
                continue
        ready = [ref for ref in refs if not ref.late][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def remote(self, kind: type) -> Any:
        def options(scheduling_strategy: Any, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: self.start(scheduling_strategy.node_id, kind(*arguments)))

        return SimpleNamespace(options=options)

    def start(self, node: str, thing: Any) -> Actor:
        actor = Actor(thing, self)
        self.on_node.append((node, actor))
        return actor

    def kill(self, actor: Actor) -> None:
        actor.alive = False

    def lose(self, node: str) -> None:
        self.up.remove(node)
        for where, actor in self.on_node:
            actor.alive = actor.alive and where != node

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": {}, "NodeManagerAddress": node} for node in self.up]

    def is_initialized(self) -> bool:
        return True


class MadeUpCrew(Crew):
    """Hosts on given nodes; `room` is where others will be."""

    def __init__(self, ray: MadeUpRay, nodes: list[str], room: list[str]):
        self._ray, self.places = ray, nodes
        self.hosts, self._keepers, self.closed = [], {}, False
        self._declined = None
        self.grow(0.0)
        self.places = room

    def grow(self, seconds: float | int) -> list[Member]:
        new = [Member(self._ray.start(node, Host(1, False)), node) for node in self.places]
        self.places = []
        self.hosts += new
        return new

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MadeUpRay:
    made = MadeUpRay()
    for module in (actors, placement, recovery, wires):
        monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return made


class Lab:
    """Shares on hosts of a Ray that is made up, and one engine of all that does the same."""

    def __init__(self, ray: MadeUpRay, job: Job, nodes: list[str], hosts: list[str], codec: Any = None):
        self.ray, ray.up = ray, nodes
        self.notes: list[str] = []
        self.crew = MadeUpCrew(ray, hosts, [])
        both = [sent(half) for half in halves(job, None)]
        self.shares = Shares(self.crew, job.tasks, both, Sequential, self.notes.append, codec, 0.0)
        self.one = Sequential(job)

    def train(self, period: int) -> None:
        self.shares.begin_period(period)
        self.one.train(Segment(period))
        self._tell(trained, Segment(period), changes=True)

    def mix(self, period: int) -> None:
        plan = Plan((Mix(torch.full((4, 4), 0.25, dtype=torch.float64)),), moments="keep")
        self.one.apply(plan, period)
        self.shares.carry_out(plan, period)

    def lose_host(self, share: int, room: str) -> None:
        """A host's process ends; there is room for another on a node."""
        self.crew.places = [room]
        self.shares.home(share).actor.alive = False

    def check(self, lab: SimpleNamespace) -> None:
        found = self._tell(LocalEngine.score)
        lab.assert_close(self.one.score(), torch.cat([found[share] for share in sorted(found)]))

    def _tell(self, function: Callable[..., Any], *arguments: Any, changes: bool = False) -> dict[int, Any]:
        return self.shares.tell(function, dict.fromkeys(range(len(self.shares.tasks)), arguments), changes)

    def keepers(self) -> list[Keeper]:
        return [keeper.actor.thing for keeper in self.crew.keepers()]


def test_where_all_go_back_lost_copies_are_made_again(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B, C], [A, B])
    for period in (1, 2, 3):
        run.train(period)
    run.mix(3)
    ray.lose(C)  # the keeper's of share 1
    run.lose_host(0, room=A)
    run.check(lab)
    run.lose_host(1, room=B)
    run.check(lab)
    assert len(run.notes) == 2
    assert "done again for all tasks" in run.notes[0]


def test_a_copy_counts_until_another_has_come(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B, C], [A, C])
    run.train(1)
    run.train(2)
    ray.slow = True
    run.lose_host(0, room=B)  # the keeper's node, so that another copy is wanted
    run.check(lab)
    run.lose_host(0, room=B)
    run.check(lab)
    ray.slow = False
    run.train(3)
    run.check(lab)


def test_slow_copies_are_waited_for(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B], [A])
    ray.slow = True
    run.train(1)
    run.train(2)
    run.crew.places = [B]
    run.train(3)
    assert len(run.shares.tasks) == 2
    run.train(4)
    run.check(lab)
    (note,) = run.notes
    assert "shared out anew" in note


def test_what_is_late_when_a_host_is_lost_is_not_gone_back_to(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B], [A, B])
    for period in (1, 2):
        run.train(period)
    run.check(lab)
    ray.slow = True
    run.train(3)
    run.lose_host(1, room=B)
    run.check(lab)
    (note,) = run.notes
    assert "the beginning of period 2" in note


def test_all_keepers_forget_what_is_older(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, C], [A, C])
    for period in (1, 2):
        run.train(period)
    ray.up = [A, B, C]  # B comes after "a"
    for period in (3, 4):
        run.train(period)
    run.check(lab)
    held = [key for keeper in run.keepers() for key in keeper._copies]
    assert len(run.keepers()) == 3
    assert len(held) == 2
    assert [len(host.actor.thing._kept) for host in run.crew.hosts] == [1, 1]


def test_nothing_is_left_of_shares_that_came_to_nothing(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B], [A])
    for period in (1, 2):
        run.train(period)
    run.crew.places = [B]
    originals = Keeper.store
    failing = iter([True])

    def store(self: Keeper, share: int, version: int, held: Any) -> bool:
        came = originals(self, share, version, held)
        return came and not next(failing, False)  # as if what it was to fetch were gone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "store", store)
        run.train(3)
    run.check(lab)
    assert {share for keeper in run.keepers() for share, _ in keeper._copies} == {*run.shares._ids}


class Breaking(Codec):
    """A codec of the user's."""

    def encode(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        raise OSError("no space left")

    def decode(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors


def test_a_failure_while_packing_is_not_taken_for_a_loss(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    run = Lab(ray, lab.make_job(tasks=4), [A, B], [A, B], codec=Breaking())
    with pytest.raises(RunError, match=r"carrying out a plan some of the tasks failed \(OSError: no space left"):
        run.mix(1)


# -- hosts -------------------------------------------------------------------------------------------------------------


def begin(host: Host, share: int, tasks: slice, job: Job, start: nn.Module | None = None) -> LocalEngine:
    rest, data = (packed(half) for half in halves(job, start))
    actors_answer = host.begin(share, packed(Beginning(Sequential, tasks, job.tasks)), rest, data)
    assert isinstance(actors_answer, actors.Done), actors_answer
    return host._engines[share]


def test_dropped_engines_are_closed_and_freed(
    lab: SimpleNamespace, ray: MadeUpRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, host, closed, alive = lab.make_job(tasks=4), Host(1, False), [], []
    monkeypatch.setattr(Sequential, "close", lambda engine: closed.append(id(engine)))
    gc.disable()  # that nobody else frees them
    try:
        for end in (host.drop, lambda: begin(host, 0, slice(0, 2), job), lambda: host.forget([0])):
            engine = weakref.ref(begin(host, 0, slice(0, 2), job))
            alive.append(id(engine()))
            end()
            assert engine() is None
    finally:
        gc.enable()
    assert len(closed) >= len(alive)
    assert {*alive} <= {*closed}


def test_a_shared_start_is_the_same_on_all_hosts(lab: SimpleNamespace, ray: MadeUpRay) -> None:
    """Though the factory never gives the same twice."""
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        model = lab.network()
        made.append(model)
        with torch.no_grad():
            model[0].bias.fill_(len(made))
        return model

    job = dataclasses.replace(lab.make_job(tasks=4), model=factory, shared_start=True)
    start = shared_start(job)
    engines = [begin(Host(1, False), i, own, job, start) for i, own in enumerate((slice(0, 2), slice(2, 4)))]
    for engine in engines:
        for name, value in engines[0].stack.params.items():
            assert torch.equal(engine.stack.params[name], value)
            assert torch.equal(engine.start[name], value[0])
    assert shared_start(lab.make_job()) is None
