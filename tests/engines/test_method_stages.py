"""Methods that enter every stage: engines agree, runs resume, and each stage does what the loop in `base.py` says."""

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from kinfold import random
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.errors import InputError, RunError
from kinfold.methods import QuantisedDistillation
from kinfold.methods.base import (
    STAGES,
    Batch,
    Context,
    Inner,
    Method,
    Model,
    Params,
    State,
    ValueAndGrad,
    overrides,
    straight_through,
)
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, PAPAAll

EAGER = AMTO(p_low=1.0, p_high=1.0)
LOOPING = partial(Workers, processes=2, kind=Sequential)
ADAM = partial(torch.optim.Adam, lr=0.02)


@final
@dataclass(frozen=True)
class Whole(Method):
    """Does a little at every stage, on a network whose last layer is `2`."""

    def start(self, params: Params, context: Context) -> State:
        first = context.batch(context.rows[:8])
        like = params["2.bias"]
        with torch.no_grad():
            spread = context.model.evaluating()(first.x).std()
        hard = torch.zeros(context.count, dtype=like.dtype)
        hard[context.rows] = 1.0
        return {
            "mask/2.weight": (params["2.weight"].abs() > 0.05).to(like.dtype),
            "train/scale": torch.ones((), dtype=like.dtype) + 0.01 * spread,
            "grad/scale": torch.zeros((), dtype=like.dtype),
            "own/hard": hard,
            "own/drawn": 1.0 * random.uniform(context.key, (), like.dtype),
            "inputs": torch.zeros(5, dtype=like.dtype),
            "seen": torch.zeros((), dtype=torch.int64),
            "rate": torch.full((), 1.0 / context.periods, dtype=like.dtype),
            "average": like.clone(),
        }

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        easy = state["own/hard"][order].argsort(stable=True)
        return order[easy[: max(20, len(order) - 5 - 5 * int(state["seen"] // 20))]]

    def rate(self, state: State) -> Tensor:
        return 0.4 + state["rate"]

    def batch(self, batch: Batch, state: State, key: Tensor) -> Batch:
        return batch._replace(x=batch.x + 0.1 * random.uniform(key, batch.x.shape, batch.x.dtype))

    def weights(self, params: Params, state: State) -> Params:
        scale = state["train/scale"]
        masked = straight_through(params["2.weight"] * state["mask/2.weight"], params["2.weight"])
        return params | {"2.weight": scale * masked}

    def backward_weights(self, params: Params, state: State) -> Params:
        return {"2.weight": params["2.weight"] * (1 - 0.5 * state["mask/2.weight"])}

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> tuple[Tensor, State]:
        _, inside = model.tapped(batch.x, ["1"])
        x = batch.x.detach()
        slope = torch.func.grad(lambda rows: model.aside()(rows).square().sum())(x)
        near = model.evaluating()(x + 0.01 * slope.detach().sign())
        loss = inner(model, batch) + 0.01 * inside["1"].square().mean() + 0.01 * near.square().mean()
        return loss, {"seen": state["seen"] + 1}

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor
    ) -> tuple[Tensor, Params, State]:
        value, grads, layers = value_and_grad.layers(params, ["0", "2"])
        steps = 1e-2 * torch.eye(3, dtype=params["2.bias"].dtype)
        rises = value_and_grad.values(params, {"2.bias": params["2.bias"] + steps}) - value_and_grad.value(params)
        grads = grads | {
            "0.weight": grads["0.weight"] / (1 + layers["0"].inputs.square()),
            "2.bias": 0.5 * (rises / 1e-2 + layers["2"].output_grads),
        }
        return value, grads, {"inputs": 0.9 * state["inputs"] + layers["0"].inputs}

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        return {name: grad + 0.01 * params[name] for name, grad in grads.items()}, state

    def update(self, before: Params, params: Params, state: State) -> tuple[Params, State]:
        return {name: before[name] + 0.8 * (value - before[name]) for name, value in params.items()}, state

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, state | {"train/scale": state["train/scale"] - 0.1 * state["grad/scale"]}

    def evaluation(self, params: Params, state: State) -> Params:
        return params | {"2.bias": 0.5 * (params["2.bias"] + state["average"])}

    def row_losses(self, rows: Tensor, losses: Tensor, state: State) -> State:
        return {"own/hard": state["own/hard"].index_put((rows,), losses)}

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return params, state | {"average": params["2.bias"], "rate": 0.9 * state["rate"] + 0.01 * score[1]}

    def after_transfer(self, params: Params, state: State) -> tuple[Params, State]:
        mask = (params["2.weight"].abs() > 0.05).to(params["2.weight"].dtype)
        return params | {"0.bias": 0.99 * params["0.bias"]}, state | {
            "mask/2.weight": mask,
            "inputs": 0 * state["inputs"],
        }

    def export(self, params: Params, state: State) -> Params:
        return {name: value + 1e-3 * state["rate"] for name, value in params.items()}

    def rebuild(self, module: nn.Module, state: State) -> nn.Module:
        """Twice as many hidden units, which do half as much each."""
        wide = copy.deepcopy(module)
        wide[0], wide[2] = nn.Linear(5, 12).double(), nn.Linear(12, 3).double()
        with torch.no_grad():
            for layer, own in ((wide[0], module[0]), (wide[2], module[2])):
                layer.bias.copy_(own.bias.repeat(2) if layer is wide[0] else own.bias)
            wide[0].weight.copy_(module[0].weight.repeat(2, 1))
            wide[2].weight.copy_(module[2].weight.repeat(1, 2) / 2)
        return wide


def without(stage: str) -> Method:
    """The method, without one stage."""
    kept = {k: v for k, v in vars(Whole).items() if (k in STAGES or k == "_rate_of") and k != stage}
    return type(f"Without{stage}", (Method,), kept)()


def test_the_method_enters_every_stage() -> None:
    assert all(overrides(Whole(), stage) for stage in STAGES)


@pytest.mark.parametrize("rule", [EAGER, PAPAAll(period=1), PAPA(steps=3)], ids=["amto", "papa-all", "papa"])
def test_engines_agree(lab: SimpleNamespace, rule: Any) -> None:
    job = lab.make_job(methods=(Whole(),), periods=3, sizes=(34, 27, 25))
    one = lab.train(Sequential, job, rule, epochs=2)
    for other in (Vectorised, LOOPING):
        lab.assert_agree(one, lab.train(other, job, rule, epochs=2))
    assert one.progress.proposed > 0
    assert one.engine.export(0)[0].weight.shape == (12, 5)
    rows = torch.arange(7)
    shown = Sequential(dataclasses.replace(job, methods=(without("export"),)))
    shown.restore(*one.engine.state())
    x = job.inputs.rows(rows).double()
    for t in range(3):  # what is handed out gives what was scored
        torch.testing.assert_close(shown.export(t)(x), shown.predict(rows, best=True)[t])


@pytest.mark.parametrize("engine", [Sequential, Vectorised])
@pytest.mark.usefixtures("recorded")
def test_a_recorded_run_is_the_same_run(lab: SimpleNamespace, engine: Any) -> None:
    job = lab.make_job(methods=(without("draw"),), periods=2, optimizer=ADAM)
    eager = engine(job)
    eager._recorder.possible = False
    recorded = engine(job)
    losses = [one.train(Segment(1)) for one in (eager, recorded)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
    (tensors, _), (others, values) = eager.state(), recorded.state()
    lab.assert_close(tensors, others)
    assert values["recordable"] == recorded._recorder.possible


def test_leaving_any_stage_out_changes_the_run(lab: SimpleNamespace) -> None:
    def ended(method: Method) -> list[Tensor]:
        job = lab.make_job(methods=(method,), periods=2, sizes=(30, 30, 30), batch_size=15)
        engine = lab.train(Sequential, job, PAPAAll(period=1), epochs=2).engine
        tensors, _ = engine.state()
        return [*(tensors[name] for name in sorted(tensors)), *engine.export(0).parameters()]

    whole = ended(Whole())
    for stage in STAGES[1:]:
        other = ended(without(stage))
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(whole, other, strict=True)), stage


@pytest.mark.parametrize("engine", [Sequential, Vectorised, LOOPING])
def test_a_run_goes_on_bit_for_bit(lab: SimpleNamespace, engine: Any) -> None:
    job = lab.make_job(methods=(Whole(),), periods=2, optimizer=ADAM, accumulate=2)
    straight, first, second = engine(job), engine(job), engine(job)
    try:
        for one, period in ((straight, 1), (first, 1), (straight, 2)):
            one.train(Segment(period))
            one.end_period(one.score())
        second.restore(*first.state())
        second.train(Segment(2))
        second.end_period(second.score())
        (tensors, _), (others, _) = straight.state(), second.state()
        assert tensors.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    finally:
        for one in (straight, first, second):
            one.close()


@pytest.mark.parametrize("engine", [Sequential, Vectorised])
def test_trained_state_steps_by_the_mean_gradient_of_its_batches(lab: SimpleNamespace, engine: Any) -> None:
    """As it does on one batch of all these rows; and the same bits, wherever a segment ends or is taken back to."""
    methods = (QuantisedDistillation(2, bucket=None, points_lr=0.05),)
    job = lab.make_job(methods=methods, sizes=(40, 40, 40), batch_size=20)
    parts = dataclasses.replace(job, batch_size=5, accumulate=4)
    one, other, cut = engine(job), engine(parts), engine(parts)
    one.train(Segment(1))
    other.train(Segment(1))
    cut.train(Segment(1, 0, 6))
    back = cut.kept()
    cut.train(Segment(1, 6))
    back()
    cut.train(Segment(1, 6))
    tensors, others, again = (each.state()[0] for each in (one, other, cut))
    trained = [name for name in tensors if name.startswith(("method0/train/", "method0/grad/"))]
    assert len(trained) == 4
    for name in (*trained, "params/0.weight"):
        torch.testing.assert_close(tensors[name], others[name], rtol=1e-8, atol=1e-10)
        assert torch.equal(others[name], again[name]), name


@final
@dataclass(frozen=True)
class Own(Method):
    """State of every kind that a transfer tells apart."""

    def start(self, params: Params, context: Context) -> State:
        mark = context.rows.sum().to(params["2.bias"].dtype)
        return {"own/mark": mark, "mark": mark.clone(), "own/2.bias": params["2.bias"].clone()}

    def after_transfer(self, params: Params, state: State) -> tuple[Params, State]:
        return params | {"2.bias": torch.full_like(params["2.bias"], 7.0)}, state


def test_what_a_transfer_moves_and_what_stays(lab: SimpleNamespace) -> None:
    job = lab.make_job(methods=(Own(),))
    trained = lab.train(Sequential, job, PAPAAll(period=1), epochs=2)
    fresh = Sequential(job).states[0]
    (state,) = trained.engine.states
    assert torch.equal(state["own/mark"], fresh["own/mark"])
    assert torch.equal(state["own/2.bias"], fresh["own/2.bias"])
    # Scored after the last transfer, at the end of the first period: what is promised held then.
    engine = Sequential(job)
    from kinfold.transfer.base import Plan
    from kinfold.transfer.changes import Mix

    before = {name: value.clone() for name, value in engine.stack.params.items()}
    copying = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    engine.apply(Plan((Mix(copying),)), 1)
    (state,) = engine.states
    assert state["mark"].tolist() == [fresh["mark"][1], fresh["mark"][1], fresh["mark"][2]]
    assert torch.equal(state["own/mark"], fresh["own/mark"])
    assert torch.equal(engine.stack.params["2.bias"][0], torch.full((3,), 7.0, dtype=torch.float64))
    assert torch.equal(engine.stack.params["2.bias"][1:], before["2.bias"][1:])  # nothing was proposed to them
    never = dataclasses.replace(job, better="loss")
    engine = Sequential(never)
    trial = torch.zeros_like(job.validation)
    trial[0] = job.validation[0]
    worse = Plan((Mix(copying),), trial=trial)
    states = {name: value.clone() for name, value in engine.states[0].items()}
    outcome = engine.apply(worse, 1)
    if not bool(outcome.accepted[0]):  # a candidate that was turned down leaves no trace
        assert torch.equal(engine.stack.params["2.bias"], before["2.bias"])
        assert all(torch.equal(value, states[name]) for name, value in engine.states[0].items())


@final
@dataclass(frozen=True)
class Rate(Method):
    """Halves task by task: those with a greater sum of rows go slower."""

    factors: tuple[float, ...]

    def start(self, params: Params, context: Context) -> State:
        return {"own/rows": torch.tensor(float(len(context.rows)))}

    def rate(self, state: State) -> Tensor:
        return torch.tensor(self.factors[0]) if state["own/rows"] > 40 else torch.tensor(self.factors[1])


@pytest.mark.parametrize("engine", [Sequential, Vectorised])
def test_rates_compose_with_the_schedule(lab: SimpleNamespace, engine: Any) -> None:
    """A factor of a half is a schedule of half the learning rate; tasks may have their own."""
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)

    def ended(rate: float, *methods: Method) -> Tensor:
        optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9)
        job = lab.make_job(optimizer=optimizer, methods=methods, sizes=(44, 44, 30), scheduler=halving)
        trained = lab.train(engine, job, epochs=3)
        assert trained.engine.options()["lr"].tolist() == [rate / 8] * 3  # the schedule's own
        return trained.engine.stack.params["2.weight"]

    torch.testing.assert_close(ended(0.2, Rate((0.5, 0.5))), ended(0.1))
    apart = ended(0.2, Rate((0.5, 1.0)))
    torch.testing.assert_close(apart[:2], ended(0.1)[:2])
    torch.testing.assert_close(apart[2], ended(0.2)[2])


class Breaks(Method):
    def rebuild(self, module: nn.Module, state: State) -> nn.Module:
        with torch.no_grad():
            module[2].bias += 1.0
        return module


def test_a_rebuilt_module_must_give_what_was_scored(lab: SimpleNamespace) -> None:
    with pytest.raises(RunError, match="rebuilt for task 1 does not give what was scored"):
        Sequential(lab.make_job(methods=(Breaks(),))).export(1)


class Strangers(Method):
    def start(self, params: Params, context: Context) -> State:
        context.batch(torch.arange(context.count))
        return {}


def test_no_method_sees_rows_of_others(lab: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="rows that its task does not train on"):
        Sequential(lab.make_job(methods=(Strangers(),)))
