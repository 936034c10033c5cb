"""Exponential and stochastic weight averages, by hand and along the way of an engine."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.candidates import ExponentialAverage, StochasticAverage
from kinfold.candidates.base import measure_batch_norm
from kinfold.engines import Engine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import InputError
from kinfold.methods.base import Method, State
from kinfold.tasks.order import Segment
from kinfold.transfer import Cross, Mix, Plan

NAN = float("nan")
EVERY: Any = pytest.mark.parametrize("make", [Sequential, Vectorised])


def theta(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def steps(tracker: Method, *way: float, context: Any) -> list[float]:
    """The average after each step of a way, of which the first is the start."""
    state, averages = tracker.start(theta(way[0]), context), []
    for value in way[1:]:
        params, state = tracker.after_step(theta(value), state)
        assert torch.equal(params["w"], theta(value)["w"])  # it only watches
        averages.append(float(state["average/w"]))
    return averages


def periods(tracker: Method, *way: float, context: Any) -> list[float]:
    """The same, after each period."""
    state, averages = tracker.start(theta(way[0]), context), []
    for value in way[1:]:
        params, state = tracker.period_end(theta(value), state, torch.tensor([0.5, 1.0]))
        assert torch.equal(params["w"], theta(value)["w"])
        averages.append(float(state["average/w"]))
    return averages


def test_the_exponential_average_by_hand(context: Any) -> None:
    """From 1 by 2, 5 and 5: d is 2/11, 3/12 and 4/13 while it warms up, and then what was asked for."""
    first = 2 / 11 * 1 + 9 / 11 * 2
    second = 3 / 12 * first + 9 / 12 * 5
    assert steps(ExponentialAverage(0.99).tracker(1), 1, 2, 5, 5, context=context) == pytest.approx(
        [first, second, 4 / 13 * second + 9 / 13 * 5], rel=1e-15
    )
    second = 0.2 * first + 0.8 * 5
    assert steps(ExponentialAverage(0.2).tracker(1), 1, 2, 5, 5, context=context) == pytest.approx(
        [first, second, 0.2 * second + 0.8 * 5], rel=1e-15
    )
    assert steps(ExponentialAverage(0).tracker(1), 1, 2, 5, context=context) == [2, 5]


def test_the_exponential_average_does_not_count_periods(context: Any) -> None:
    tracker = ExponentialAverage().tracker(1)
    state = tracker.start(theta(1.0), context)
    assert tracker.period_end(theta(9.0), state, torch.zeros(2))[1] is state


def test_the_stochastic_average_by_hand(context: Any) -> None:
    """The last quarter of eight periods is two of them; before these it is where the task stands."""
    way = [1, 2, 3, 4, 5, 6, 7, 10, 20]
    assert periods(StochasticAverage(0.25).tracker(8), *way, context=context) == [2, 3, 4, 5, 6, 7, 10, 15]
    assert periods(StochasticAverage(1).tracker(4), 0, 2, 4, 9, 1, context=context) == pytest.approx(
        [2, 3, 5, 4], rel=1e-15
    )
    assert periods(StochasticAverage(0.01).tracker(3), 0, 2, 4, 9, context=context) == [2, 4, 9]


@pytest.mark.parametrize(
    ("last", "epochs", "counted"),
    [(0.25, 8, 2), (0.25, 10, 3), (0.25, 1, 1), (0.1, 30, 3), (0.07, 100, 7), (1.0, 6, 6)],
)
def test_how_many_periods_enter_the_mean(last: float, epochs: int, counted: int, context: Any) -> None:
    way = [float(period**2) for period in range(epochs + 1)]
    assert periods(StochasticAverage(last).tracker(epochs), *way, context=context)[-1] == pytest.approx(
        sum(way[-counted:]) / counted
    )


def test_steps_do_not_move_the_stochastic_average(context: Any) -> None:
    tracker = StochasticAverage().tracker(4)
    state = tracker.start(theta(1.0), context)
    assert tracker.after_step(theta(9.0), state)[1] is state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialAverage(1.0), "ema: decay is 1.0; give a number from 0 to below 1"),
        (lambda: ExponentialAverage(-0.1), "ema: decay is -0.1"),
        (lambda: StochasticAverage(0), "swa: last is 0; give a number above 0, and at most 1"),
        (lambda: StochasticAverage(1.5), "swa: last is 1.5"),
    ],
)
def test_wrong_values_are_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def values_of(engine: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.stack.params.items()}  # type: ignore[attr-defined]


@EVERY
def test_averages_along_the_way_of_an_engine(lab: Any, make: Any, context: Any) -> None:
    """Watched step by step and period by period, of every task; and nothing of the training is changed."""
    trackers = (ExponentialAverage(0.5).tracker(3), StochasticAverage(0.5).tracker(3))
    job = lab.make_job(methods=trackers)
    engine, alone = make(job), make(dataclasses.replace(job, methods=()))
    ema, ends = values_of(engine), []
    count = 0
    for period in (1, 2, 3):
        for step in range(int(engine.steps(period).max())):
            engine.train(Segment(period, step, step + 1))
            count += 1
            decay = min(0.5, (1 + count) / (10 + count))
            ema = {name: decay * ema[name] + (1 - decay) * value for name, value in values_of(engine).items()}
        alone.train(Segment(period))
        ends.append(values_of(engine))
        for one in (engine, alone):
            one.end_period(torch.full((3, 2), 0.5, dtype=torch.float64))
    exponential, stochastic = engine.method_states()
    for name, value in values_of(engine).items():
        torch.testing.assert_close(exponential[f"average/{name}"], ema[name], rtol=1e-12, atol=1e-14)
        expected = (ends[1][name] + ends[2][name]) / 2
        torch.testing.assert_close(stochastic[f"average/{name}"], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value, values_of(alone)[name], rtol=1e-12, atol=1e-14)


@EVERY
def test_accumulated_batches_are_one_step(lab: Any, make: Any, context: Any) -> None:
    job = lab.make_job(methods=(ExponentialAverage().tracker(1),), accumulate=2)
    engine = make(job)
    engine.train(Segment(1))
    assert engine.steps(1).tolist() == [3, 3, 3]
    assert engine.method_states()[0]["count"].tolist() == [2.0, 2.0, 2.0]


@EVERY
def test_a_transfer_moves_the_averages_along(lab: Any, make: Any) -> None:
    """Task 0 becomes task 1, task 2 is mixed with it, and task 1 stays: parameters, averages and counts alike."""
    job = lab.make_job(
        methods=(ExponentialAverage().tracker(4), StochasticAverage(1.0).tracker(4)),
        model=lambda: nn.Linear(4, 3),
    )
    engine = make(job)
    for period in (1, 2):
        engine.train(Segment(period))
        engine.end_period(torch.full((3, 2), 0.5, dtype=torch.float64))
    before = engine.method_states()
    before = [{name: value.clone() for name, value in state.items()} for state in before]
    weights = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0.25, 0.75]], dtype=torch.float64)
    engine.apply(Plan((Mix(weights),)), period=2)
    for old, new in zip(before, engine.method_states(), strict=True):
        for name, value in new.items():
            if "/" in name:
                torch.testing.assert_close(value, torch.tensordot(weights, old[name], 1))
            else:
                assert torch.equal(value, old[name])  # tasks have taken as many steps

    key = torch.tensor([7, 8, 9])
    old = engine.method_states()[0]["average/weight"].clone()
    params = values_of(engine)["weight"]
    cross = Cross(torch.tensor([2, -1, -1]), torch.full((3,), 0.5, dtype=torch.float64), key, "parameter")
    engine.apply(Plan((cross,)), period=2)
    taken = values_of(engine)["weight"][0] == params[2]
    assert 0 < int(taken.sum()) < taken.numel()
    assert torch.equal(engine.method_states()[0]["average/weight"][0], torch.where(taken, old[2], old[0]))


@EVERY
def test_a_copy_brings_the_donors_count(lab: Any, make: Any) -> None:
    """Else the average of a task with few steps behind it would still be warming up."""
    validation = torch.zeros(2, lab.N, dtype=torch.bool)
    validation[:, 20:27] = True
    train = torch.zeros_like(validation)
    train[0, :5], train[1, :20] = True, True
    job = lab.make_job(methods=(ExponentialAverage().tracker(1),), train=train, validation=validation)
    engine = make(job)
    engine.train(Segment(1))
    assert engine.method_states()[0]["count"].tolist() == [1.0, 4.0]
    engine.apply(Plan((Mix(torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)),)), period=1)
    assert engine.method_states()[0]["count"].tolist() == [4.0, 4.0]


def watched(engine: Engine, last: int = -1) -> State:
    return engine.method_states()[last]


@pytest.mark.parametrize("candidate", [ExponentialAverage(0.5), StochasticAverage(1.0)])
def test_what_is_built(lab: Any, candidate: Any) -> None:
    """A model a task: the averages, batch norm measured on its own training rows, exposed as the task is now."""
    job = lab.make_job(methods=(candidate.tracker(2),))
    engine = Sequential(job)
    for period in (1, 2):
        engine.train(Segment(period))
        engine.end_period(torch.full((3, 2), 0.5, dtype=torch.float64))
    engine.snapshot(torch.ones(3, dtype=torch.bool))
    members = [engine.export(t) for t in range(3)]
    exposed = job.train.clone()
    exposed[1] |= job.train[2]
    finished = lab.make_finished(job, members, exposed=exposed, best_exposed=torch.zeros_like(exposed))
    built = candidate.build(finished, watched(engine))
    assert [(one.kind, one.members) for one in built] == [("average", (t,)) for t in range(3)]
    for t, one in enumerate(built):
        assert torch.equal(one.exposed, exposed[t])
        assert not one.model.training
        expected = engine.export(t)
        for name, parameter in expected.named_parameters():
            parameter.data.copy_(watched(engine)[f"average/{name}"][t])
        assert not torch.equal(expected[3].weight, members[t][3].weight)
        measure_batch_norm(expected, job, job.train[t], words=("average", t))
        for name, value in expected.state_dict().items():
            assert torch.equal(one.model.state_dict()[name], value), name


def test_a_diverged_task_has_no_average(lab: Any) -> None:
    job = lab.make_job(methods=(ExponentialAverage().tracker(1),))
    engine = Sequential(job)
    state = {name: value.clone() for name, value in watched(engine).items()}
    state["average/3.bias"][1, 0] = math.nan
    finished = lab.make_finished(job, [engine.export(t) for t in range(3)])
    assert [one.members for one in ExponentialAverage().build(finished, state)] == [(0,), (2,)]


def test_what_is_frozen_or_tied_stays_so(lab: Any) -> None:
    """Frozen parameters are not watched, and come from the task's model."""

    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        model[0].requires_grad_(False)
        model[2].weight = model[1].weight
        return model

    job = lab.make_job(model=make, methods=(ExponentialAverage(0.5).tracker(1),), shared_start=True)
    engine = Sequential(job)
    engine.train(Segment(1))
    members = [engine.export(t) for t in range(3)]
    assert "average/0.weight" not in watched(engine)
    one = ExponentialAverage(0.5).build(lab.make_finished(job, members), watched(engine))[0].model
    assert torch.equal(one[0].weight, members[0][0].weight)
    assert one[2].weight is one[1].weight
    assert torch.equal(one[1].weight, watched(engine)["average/1.weight"][0])


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("float64", torch.float64)])
def test_averages_and_counts_have_the_parameters_digits(lab: Any, precision: Any, dtype: torch.dtype) -> None:
    trackers = (ExponentialAverage().tracker(1), StochasticAverage().tracker(1))
    engine = Sequential(lab.make_job(methods=trackers, precision=precision))
    engine.train(Segment(1))
    assert {value.dtype for state in engine.method_states() for value in state.values()} == {dtype}
