"""Tasks beside each other on lanes that stand for a GPU's streams."""

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.engines.captured import Graph
from kinfold.engines.sequential import Sequential
from kinfold.engines.streams import Lane, Streams
from kinfold.errors import InputError
from kinfold.methods.base import Method, Params
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, TeachRule, Together

RULES = Together((AMTO(p_low=1.0, p_high=1.0), TeachRule(cool=2.0)))

pytestmark = pytest.mark.usefixtures("recorded")


class Noted(Lane):
    """Notes what is asked of it; one is entered at a time."""

    def __init__(self, number: int, notes: list[tuple[str, int]], graph: Any):
        self._number, self._notes, self._graph = number, notes, graph

    def follow(self) -> None:
        self._notes.append(("follow", self._number))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        assert not self._notes or self._notes[-1][0] != "enter"
        self._notes.append(("enter", self._number))
        yield
        self._notes.append(("leave", self._number))

    def joined(self) -> None:
        self._notes.append(("join", self._number))

    def graph(self, like: Graph | None) -> Graph:
        return self._graph(like)


def noted(lab: SimpleNamespace, streams: int = 2) -> tuple[Any, list[tuple[str, int]]]:
    """A maker of the engine on noted lanes, and their notes."""
    notes: list[tuple[str, int]] = []
    numbers = itertools.count()
    return partial(Streams, streams=streams, lane=lambda device: Noted(next(numbers), notes, lab.Replaying)), notes


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))


CASES: dict[str, dict[str, Any]] = {
    "captured": {"optimizer": partial(torch.optim.AdamW, lr=0.01)},
    "drawing, unequal": {"model": network, "sizes": (44, 31, 25)},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", [RULES, PAPA(steps=3)], ids=["amto+teach", "papa"])
def test_the_run_is_the_loops(lab: SimpleNamespace, name: str, rule: Any) -> None:
    job = lab.make_job(**CASES[name])
    make, _ = noted(lab)
    other = lab.train(make, job, rule, epochs=2)
    assert bool(lab.Replaying.made) == (name == "captured")  # graphs that run beside others do not draw
    lab.assert_agree(lab.train(Sequential, job, rule, epochs=2), other)


@pytest.mark.parametrize("blown", [(2,), (0, 1, 2)], ids=["from another", "from their own best"])
def test_tasks_that_diverge_are_rescued(lab: SimpleNamespace, blown: tuple[int, ...]) -> None:
    make, _ = noted(lab)
    one, other = (lab.train(each, lab.make_job(), lab.Planting(blown), rescues=2) for each in (Sequential, make))
    assert one.progress.health.rescues.tolist() == [int(t in blown) for t in range(3)]
    lab.assert_agree(one, other)


def test_a_stream_alone_may_draw(lab: SimpleNamespace) -> None:
    job = lab.make_job(**CASES["drawing, unequal"])
    make, _ = noted(lab, streams=1)
    other = lab.train(make, job, epochs=2)
    assert lab.Replaying.made == 3
    lab.assert_agree(lab.train(Sequential, job, epochs=2), other)


def test_who_goes_where_and_when(lab: SimpleNamespace) -> None:
    make, notes = noted(lab)
    make(lab.make_job(sizes=(44, 31, 44))).train(Segment(1))
    waits = [("follow", 0), ("follow", 1)], [("join", 0), ("join", 1)]
    turns = [0, 1, 0] * 3 + [0, 0]  # tasks 0, 1 and 2 in turns; task 1 has three batches
    steps = [(what, lane) for lane in turns for what in ("enter", "leave")]
    assert notes == [*waits[0], *steps, *waits[1]]


def test_lanes_are_joined_whatever_happens(lab: SimpleNamespace) -> None:
    class Fails(Method):
        def before_step(self, params: Params, grads: Params, state: Any) -> Any:
            raise ZeroDivisionError

    make, notes = noted(lab)
    engine = make(lab.make_job(methods=(Fails(),)))
    with pytest.raises(ZeroDivisionError):
        engine.train(Segment(1))
    assert notes == [("follow", 0), ("follow", 1), ("enter", 0), ("join", 0), ("join", 1)]


def test_a_changed_attribute_is_captured_anew_on_all(lab: SimpleNamespace) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.linear(x)

    job = lab.make_job(model=Scaled)
    engines = Sequential(job), noted(lab)[0](job)
    for period in (1, 2):
        for engine in engines:
            engine.stack.module.scale = 1.0 / period
            engine.train(Segment(period))
    assert lab.Replaying.made == 6
    lab.assert_close(*(engine.stack.params for engine in engines))


def test_never_more_streams_than_tasks(lab: SimpleNamespace) -> None:
    make, notes = noted(lab, streams=8)
    make(lab.make_job()).train(Segment(1))
    assert {lane for _, lane in notes} == {0, 1, 2}


def test_a_cpu_has_no_streams(lab: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"^engine: streams train on a GPU, and device is cpu; give device cuda, or"):
        Streams(lab.make_job())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_has(lab: SimpleNamespace, name: str) -> None:
    job = lab.make_job(device=torch.device("cuda"), **CASES[name])
    lab.assert_agree(lab.train(Sequential, job, RULES), lab.train(Streams, job, RULES))
