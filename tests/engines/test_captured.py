"""Captured steps, on a graph that stands for a GPU's: the same training as without."""

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfold import random
from kinfold.engines import Job
from kinfold.engines.captured import Graph, MakeGraph, Pass
from kinfold.engines.local import LocalEngine, take_turns
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State
from kinfold.tasks.order import Segment
from kinfold.transfer import PAPA, Plan, Teach, TeachRule, Together

ENGINES = (Sequential, Vectorised)

pytestmark = pytest.mark.usefixtures("recorded")


class Failing(Graph):
    """A capture that fails half way."""

    def __init__(self, like: Graph | None) -> None:
        assert like is None

    def capture(self, function: Callable[[], Pass]) -> Pass:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    def replay(self) -> None:
        raise AssertionError("nothing was captured")


def captured(make: Any, job: Job, graph: MakeGraph, beside: bool = False) -> LocalEngine:
    engine: LocalEngine = make(job)
    engine._captures = engine._captures_on(graph, beside)
    return engine


class Noisy(nn.Module):
    """Batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.25), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


class Stateful(Method):
    """Draws by keys, reads its state in the loss, and changes it after the step."""

    def start(self, params: Params, context: Context) -> State:
        return {f"average/{name}": value.clone() for name, value in params.items()}

    def batch(self, batch: Batch, state: State, key: Tensor) -> Batch:
        return batch._replace(x=batch.x + 0.1 * random.uniform(key, batch.x.shape, batch.x.dtype))

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> Tensor:
        return inner(model, batch) + 0.01 * sum(value.square().sum() for value in state.values())

    def gradients(self, value_and_grad: Any, params: Params, state: State, key: Tensor) -> Any:
        value, grads = value_and_grad(params)
        return value, {name: grad + 0.1 * state[f"average/{name}"] for name, grad in grads.items()}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, {key: 0.9 * old + 0.1 * params[key.partition("/")[2]] for key, old in state.items()}


class Counting(Method):
    """New state comes out of the pass itself."""

    def start(self, params: Params, context: Context) -> State:
        zero = torch.zeros((), dtype=torch.float64)
        return {"passes": zero, "norm": zero.clone(), "train/shift": zero.clone(), "grad/shift": zero.clone()}

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> tuple[Tensor, State]:
        shifted = (model(batch.x) * state["train/shift"] - 1.0).square().mean()
        return inner(model, batch) * (1 + 0.01 * state["passes"]) + shifted, {"passes": state["passes"] + 1}

    def gradients(self, value_and_grad: Any, params: Params, state: State, key: Tensor) -> Any:
        value, grads = value_and_grad(params)
        return value, grads, {"norm": 0.5 * state["norm"] + grads["0.bias"].norm()}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, state | {"train/shift": state["train/shift"] - 0.1 * state["grad/shift"]}


LESSONS = Together((TeachRule(cool=2.0), PAPA(steps=3)))
CASES: dict[str, dict[str, Any]] = {
    "draws": {"model": Noisy, "optimizer": partial(torch.optim.AdamW, lr=0.01)},
    "methods": {"methods": (Stateful(),)},
    "state out of the pass": {"methods": (Counting(),)},
    "unequal, accumulated": {"sizes": (44, 31, 44), "accumulate": 3, "clip_norm": 0.5, "model": Noisy},
}


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_same_run(lab: SimpleNamespace, make: Any, name: str) -> None:
    job = lab.make_job(**CASES[name])
    one, other = (
        lab.train(make, job, LESSONS, epochs=2),
        lab.train(partial(captured, make, graph=lab.Replaying), job, LESSONS, epochs=2),
    )
    assert lab.Replaying.made >= (3 if make is Sequential else 1)
    lab.assert_agree(one, other)
    assert all(torch.equal(value, other.engine.state()[0][key]) for key, value in one.engine.state()[0].items())


@pytest.mark.parametrize("make", ENGINES)
def test_a_graph_draws_anew_at_every_replay(lab: SimpleNamespace, make: Any) -> None:
    job = lab.make_job(model=Noisy, optimizer=partial(torch.optim.SGD, lr=0.0))
    engine = captured(make, job, lab.Replaying)
    losses = torch.stack([engine.train(Segment(1, step, step + 1)) for step in range(4)])
    assert lab.Replaying.made == (3 if make is Sequential else 1)
    assert len(losses.flatten().unique()) == losses.numel()


def test_where_graphs_run_beside_each_other_none_draws(lab: SimpleNamespace) -> None:
    captured(Vectorised, lab.make_job(model=Noisy), lab.Replaying, beside=True).train(Segment(1))
    assert lab.Replaying.made == 0
    captured(Vectorised, lab.make_job(), lab.Replaying, beside=True).train(Segment(1))
    assert lab.Replaying.made == 1


def test_a_capture_that_fails(lab: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    job = lab.make_job(model=Noisy)
    with caplog.at_level(logging.DEBUG, "kinfold"):
        other = lab.train(partial(captured, Vectorised, graph=Failing), job)
    assert caplog.messages.count(
        "steps of training are not captured: operation not permitted when stream is capturing"
    ) == len(caplog.messages)
    assert len(caplog.messages) == 1
    lab.assert_agree(lab.train(Vectorised, job), other)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def test_what_cannot_be_recorded_is_not_captured(lab: SimpleNamespace) -> None:
    job = lab.make_job(loss=own_loss)
    other = lab.train(partial(captured, Vectorised, graph=lab.Replaying), job)
    assert lab.Replaying.made == 0
    lab.assert_agree(lab.train(Vectorised, job), other)


def test_a_changed_attribute_is_captured_anew(lab: SimpleNamespace) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.linear(x)

    engines = Vectorised(lab.make_job(model=Scaled)), captured(Vectorised, lab.make_job(model=Scaled), lab.Replaying)
    for period in (1, 2):
        for engine in engines:
            engine.stack.module.scale = 1.0 / period
            engine.train(Segment(period))
    assert lab.Replaying.made == 2
    (kept,) = engines[1]._captures._kept.values()
    assert kept.graph.like is None  # there was none left whose memory could be shared
    lab.assert_close(*(engine.stack.params for engine in engines))


def test_graphs_share_the_memory_of_one_that_is_there(lab: SimpleNamespace) -> None:
    engine = captured(Sequential, lab.make_job(), lab.Replaying)
    engine.train(Segment(1))
    first, *others = [kept.graph for kept in engine._captures._kept.values()]
    assert first.like is None
    assert [graph.like for graph in others] == [first, first]


def test_lessons_of_one_form_are_read_from_one_place(lab: SimpleNamespace) -> None:
    job = lab.make_job()
    one, other = Vectorised(job), captured(Vectorised, job, lab.Replaying)
    draws = torch.Generator().manual_seed(1)
    made = []
    for period, weight in enumerate((torch.full((3,), 0.5), torch.full((3,), 0.2), torch.full((3, lab.N), 0.3)), 1):
        soft = torch.softmax(torch.randn(3, lab.N, 3, generator=draws, dtype=torch.float64), -1)
        before = soft.clone()
        nobody = torch.zeros(3, 3, dtype=torch.bool)
        for engine in (one, other):
            engine.apply(Plan((Teach(soft, weight.double(), nobody, job.validation, 2.0),)), period)
            engine.train(Segment(period))
        made.append(lab.Replaying.made)
        assert torch.equal(soft, before)  # a rule's own tensors are not written over
    assert made == [1, 1, 2]
    lab.assert_close(one.state(), other.state())


def test_a_lesson_is_forgotten_with_its_graphs(lab: SimpleNamespace) -> None:
    job = lab.make_job()
    engine = captured(Vectorised, job, lab.Replaying)
    start = {name: value.clone() for name, value in engine.state()[0].items()}, engine.state()[1]
    soft = torch.full((3, lab.N, 3), 1 / 3, dtype=torch.float64)
    weight, nobody = torch.full((3,), 0.5, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.bool)
    engine.apply(Plan((Teach(soft, weight, nobody, job.validation),)), 1)
    engine.train(Segment(1))
    engine.restore(*start)
    fresh = Vectorised(job)
    lab.assert_close(fresh.train(Segment(1)), engine.train(Segment(1)))
    lab.assert_close(fresh.state(), engine.state())


def test_engines_go_by_turns_without_meeting(lab: SimpleNamespace) -> None:
    """Each goes on drawing where it stopped, and nothing is left of the others' in the generators."""
    job = lab.make_job(model=Noisy)
    alone, turning = [Sequential(job), Vectorised(job)], [Sequential(job), Vectorised(job)]
    for engine in turning:
        engine.in_turns = True
    expected = [take_turns([engine.advance(Segment(1))])[0] for engine in alone]
    lab.assert_close(expected, take_turns([engine.advance(Segment(1)) for engine in turning]))
    for one, other in zip(alone, turning, strict=True):
        lab.assert_close(one.state(), other.state())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_gpu_trains_captured_and_without_a_wait(lab: SimpleNamespace, make: Any, optimizer: Any) -> None:
    job = lab.make_job(model=Noisy, optimizer=partial(optimizer, lr=0.01), device=torch.device("cuda"))
    one, other = make(job), make(job)
    other._captures = None
    for engine in (one, other):
        engine.train(Segment(1))
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_turns([engine.advance(Segment(2))])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert one._captures is not None
    assert one._captures._kept
    lab.assert_close(one.state(), other.state())


class Starved(Failing):
    """A capture for which memory runs out."""

    def capture(self, function: Callable[[], Pass]) -> Pass:
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")


@pytest.mark.parametrize("returns", [True, False])
def test_want_of_memory_is_told_to_who_can_make_do_with_less(lab: SimpleNamespace, returns: bool) -> None:
    engine = captured(Vectorised, lab.make_job(), Starved)
    assert engine._captures is not None
    engine.returns = returns
    given = [torch.zeros(2)]
    if returns:
        with pytest.raises(torch.OutOfMemoryError):
            engine._captures("kind", lambda x: (x + 1, {}), given, [])
    else:
        assert engine._captures("kind", lambda x: (x + 1, {}), given, [])[0].tolist() == [1, 1]
