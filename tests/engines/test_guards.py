"""What engines and the loop refuse or keep apart, whatever a rule, a method or a user does."""

from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State, ValueAndGrad
from kinfold.tasks.order import Segment
from kinfold.tasks.update import Updater
from kinfold.transfer import Cross, Mix, Plan, Rule, Teach, View

ENGINES = (Sequential, Vectorised)


class Peeking(Rule):
    """Plans with every row there is."""

    name = "peeking"
    until = 1.0

    def __init__(self, teach: bool) -> None:
        self.teach = teach

    def plan(self, view: View, state: Any, generator: torch.Generator) -> tuple[Plan | None, Any]:
        everything = torch.ones_like(view.validation)
        T, N = everything.shape
        if self.teach:
            others = ~torch.eye(T, dtype=torch.bool)
            lesson = Teach(torch.full((T, N, 3), 1 / 3), torch.ones(T, dtype=torch.float64), others, everything)
            return Plan((lesson,)), state
        return Plan((Mix(torch.eye(T).roll(1, 0)),), trial=everything), state


@pytest.mark.parametrize("teach", [False, True])
def test_a_plan_with_sealed_rows_is_refused(lab: SimpleNamespace, teach: bool) -> None:
    with pytest.raises(RunError, match="peeking planned with sealed rows"):
        lab.train(Sequential, lab.make_job(), Peeking(teach))


class Draws(Method):
    """Draws what it is told to."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        return self.rows


@pytest.mark.parametrize("rows", [torch.arange(64), torch.arange(0)], ids=["all rows", "none"])
def test_a_draw_of_other_rows_or_none_is_refused(lab: SimpleNamespace, rows: Tensor) -> None:
    with pytest.raises(RunError, match="a draw must return some, and no others"):
        Sequential(lab.make_job(methods=(Draws(rows),))).train(Segment(1))


class Recorder(Method):
    """Writes down every key that it is given."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        self.keys.append(int(key))
        return order

    def batch(self, batch: Batch, state: State, key: Tensor) -> Batch:
        self.keys.append(int(key))
        return batch

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> Tensor:
        self.keys.append(int(key))
        return inner(model, batch)

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor
    ) -> tuple[Tensor, Params]:
        self.keys.append(int(key))
        return value_and_grad(params)


def test_no_two_draws_share_a_key(lab: SimpleNamespace) -> None:
    keys: list[int] = []
    job = lab.make_job(methods=(Recorder(keys), Recorder(keys)))
    engine = Sequential(job)
    engine._reached = frozenset(engine.stack.params)  # else it asks once more, with the first step's keys
    for period in (1, 2):
        engine.train(Segment(period))
    steps = 4  # of 44 rows in batches of 10
    assert len(keys) == 2 * 2 * 3 * (1 + 3 * steps)  # periods, methods, tasks, draw and the stages of each step
    assert len(set(keys)) == len(keys)


class Noisy(nn.Module):
    """Draws in its forward pass, as dropout does, and its class remembers, since engines copy the module."""

    seen: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(float(torch.rand((), dtype=torch.float64)))
        return self.layer(x)


def test_what_a_model_draws_differs_between_periods_and_tasks(lab: SimpleNamespace) -> None:
    engine = Sequential(lab.make_job(model=Noisy))
    Noisy.seen.clear()
    for period in (1, 2):
        engine.train(Segment(period))
    assert len(Noisy.seen) == 2 * 3 * 4
    assert len(set(Noisy.seen)) == len(Noisy.seen)


class Averaged(Method):
    """Scores an exponential average of the parameters."""

    def start(self, params: Params, context: Context) -> State:
        return {f"average/{name}": value.clone() for name, value in params.items()}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, {key: 0.9 * old + 0.1 * params[key.partition("/")[2]] for key, old in state.items()}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"average/{name}"] for name in params}


@pytest.mark.parametrize("make", ENGINES)
def test_an_average_goes_with_its_parameters(lab: SimpleNamespace, make: Any) -> None:
    engine = make(lab.make_job(methods=(Averaged(),)))
    engine.train(Segment(1))
    before = {name: value.clone() for name, value in engine.states[0].items()}
    weights = torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    sources, keys = torch.tensor([-1, -1, 0]), torch.tensor([1, 2, 3])
    engine.apply(Plan((Mix(weights), Cross(sources, torch.ones(3), keys))), period=1)
    for name, value in engine.states[0].items():
        torch.testing.assert_close(value[0], 0.25 * before[name][0] + 0.75 * before[name][1])
        assert torch.equal(value[1], before[name][1])
        assert torch.equal(value[2], before[name][0])  # a crossover that takes every layer


class Doubled(Method):
    """A gradient stage of its own."""

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor
    ) -> tuple[Tensor, Params]:
        value, grads = value_and_grad(params)
        return value, {name: 2 * grad for name, grad in grads.items()}


class Spare(nn.Module):
    """Has a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_parameter_that_the_loss_does_not_reach_is_left_alone(lab: SimpleNamespace) -> None:
    job = lab.make_job(
        model=Spare, methods=(Doubled(),), optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    )
    trained = [lab.train(make, job) for make in ENGINES]
    lab.assert_agree(*trained)
    fresh = Sequential(job).stack.params["spare.weight"]
    assert torch.equal(trained[1].engine.stack.params["spare.weight"], fresh)


def test_another_frozen_backbone_is_not_resumed(lab: SimpleNamespace) -> None:
    def backbone(seed: int) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        model[0].requires_grad_(False)
        return model

    saved = Sequential(lab.make_job(model=backbone(0))).state()
    Sequential(lab.make_job(model=backbone(0))).restore(*saved)
    with pytest.raises(InputError, match="frozen parameters have changed"):
        Sequential(lab.make_job(model=backbone(1))).restore(*saved)


def test_an_optimizer_option_that_is_a_tensor_is_refused(lab: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="optimizer: lr is a tensor"):
        Sequential(lab.make_job(optimizer=partial(torch.optim.Adam, lr=torch.tensor(0.1))))


def test_an_optimizer_with_hooks_is_not_fused() -> None:
    def hooked(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    params = {"w": torch.zeros(2, 3)}
    assert not Updater(params, hooked, None, fuse=True).fused
    assert Updater(params, partial(torch.optim.SGD, lr=0.1), None, fuse=True).fused
