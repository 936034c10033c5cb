"""The engines agree: parameters, optimizer state, scores, plans and accepted transfers, in float64."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from kinfold import random
from kinfold.data.base import TensorInputs
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.methods import CropFlipCutout, LabelSmoothing, Mixup
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State, ValueAndGrad
from kinfold.transfer import (
    AMTO,
    PAPA,
    RULES,
    Cross,
    ElasticRule,
    Mix,
    PAPAAll,
    Plan,
    Restart,
    Rule,
    TeachRule,
    Together,
    Tune,
    View,
)

LOOPING, STACKING = (partial(Workers, processes=2, kind=kind) for kind in (Sequential, Vectorised))
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
EAGER = AMTO(p_low=1.0, p_high=1.0)  # tries at every transfer point


@final
@dataclass(frozen=True)
class Everything(Method):
    """Enters every stage, with state made of tensors: noise, a penalty, SAM, momentum of its own, an average."""

    def start(self, params: Params, context: Context) -> State:
        averages = {f"average/{name}": value.clone() for name, value in params.items()}
        return averages | {"steps": torch.zeros((), dtype=torch.int64), "score": torch.zeros(2, dtype=torch.float64)}

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        start = 1 + int(random.randint(key, 3)) + int(state["steps"]) % 2
        return order[start:]

    def batch(self, batch: Batch, state: State, key: Tensor) -> Batch:
        return batch._replace(x=batch.x + 0.1 * random.uniform(key, batch.x.shape, batch.x.dtype))

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> Tensor:
        return inner(model, batch) + 0.01 * model(batch.x + random.uniform(key, (), batch.x.dtype)).square().mean()

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor
    ) -> tuple[Tensor, Params]:
        _, grads = value_and_grad(params)
        norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
        return value_and_grad({name: value + 0.05 * grads[name] / norm for name, value in params.items()})

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        # What is kept of the parameters is kept as they were, not as the optimizer will leave them.
        state = state | {f"average/{name}": 0.5 * (state[f"average/{name}"] + value) for name, value in params.items()}
        return {name: grad + 0.01 * params[name] for name, grad in grads.items()}, state

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return {name: 0.999 * value for name, value in params.items()}, state | {"steps": state["steps"] + 1}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: 0.5 * (value + state[f"average/{name}"]) for name, value in params.items()}

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return {name: value - 1e-3 * score[1] for name, value in params.items()}, state | {"score": score}

    def export(self, params: Params, state: State) -> Params:
        return {name: value + 1e-3 * state["score"][0] for name, value in params.items()}


@final
@dataclass(frozen=True)
class KeepsBefore(Method):
    """Hands the parameters themselves back as state: what moves later must not move with them."""

    def start(self, params: Params, context: Context) -> State:
        return {name: value.clone() for name, value in params.items()}

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        return grads, dict(params)

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return {name: 0.9 * value + 0.1 * state[name] for name, value in params.items()}, state


@final
@dataclass(frozen=True)
class Mixed(Rule):
    """A plan of everything at once, untried: what `AMTO` and `teach` leave out."""

    name = "mixed"
    moments: str = "follow"
    buffers: str = "follow"

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        T = len(view.metric)
        weights = torch.eye(T, dtype=torch.float64)
        weights[0] = torch.tensor([0.5, 0.2, 0.3] + [0.0] * (T - 3))
        source = torch.tensor([-1, 0, -1] + [-1] * (T - 3))
        keys = torch.randint(2**62, (T,), generator=generator)
        crossed = Cross(source, torch.full((T,), 0.5, dtype=torch.float64), keys, "parameter")
        fresh = torch.zeros(T, dtype=torch.bool)
        fresh[2] = view.period == 2
        rates = torch.full((T,), torch.nan, dtype=torch.float64)
        rates[1] = 0.02 * view.period
        changes = (Mix(weights), crossed, Restart(fresh, key=view.period), Tune({"lr": rates}))
        return Plan(changes, moments=self.moments, buffers=self.buffers), state


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return model[0].requires_grad_(False) and model


def start_of(make: Any) -> nn.Module:
    with random.seeded(torch.device("cpu"), 1):
        return make()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3))


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    own = outputs.gather(1, targets[:, None])
    return (1.0 + outputs - own).clamp_min(0.0).square().mean()


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
ROW_WEIGHTS = torch.linspace(0.1, 3.0, 64, dtype=torch.float64)
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2)},
    "adamw": {"optimizer": ADAMW},
    "one optimizer a task": {
        "optimizer": [partial(torch.optim.SGD, lr=0.1 * t, momentum=0.5 * t) for t in (1, 2, 0.5)]
    },
    "batch norm": {"model": "batch norm", "optimizer": ADAMW},
    "clipped": {"clip_norm": 0.3},
    "accumulated": {"accumulate": 3},
    "accumulated, unequal": {"accumulate": 3, "sizes": (44, 37, 21)},
    "accumulated, one alone": {"accumulate": 2, "sizes": (42, 44, 33)},
    "fewer rows than a batch": {"sizes": (44, 7, 23), "model": "batch norm", "clip_norm": 1.0},
    "smoothed and mixed": {"methods": (LabelSmoothing(0.1), Mixup(0.4)), "optimizer": ADAMW},
    "shared start": {"shared_start": True},
    "a module": {"model": start_of(partial(nn.Linear, 5, 3))},
    "frozen, apart": {"model": partly_frozen},
    "frozen, shared": {"model": start_of(partly_frozen)},
    "tied": {"model": Tied},
    "lazy": {"model": lazy},
    "weighted": {"loss": WEIGHTED},
    "weighted rows": {"weights": ROW_WEIGHTS, "methods": (Mixup(0.4),), "better": "loss"},
    "weighted rows of regression": {"weights": ROW_WEIGHTS, "regression": True, "model": partial(nn.Linear, 5, 2)},
    "by loss": {"better": "loss"},
    "regression": {"regression": True, "model": partial(nn.Linear, 5, 2)},
    "own loss and metric": {"loss": margin, "metric": MulticlassF1Score(num_classes=3, average="macro")},
    "every stage": {"methods": (Everything(), LabelSmoothing(0.2)), "model": "batch norm"},
    "every stage, unequal": {"methods": (Everything(),), "sizes": (44, 7, 23), "accumulate": 2},
    "state that is the parameters": {"methods": (KeepsBefore(),)},
    "no schedule": {"scheduler": None},
    "plateau": {"scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)},
}


def job_of(lab: SimpleNamespace, case: dict[str, Any]) -> Any:
    changes = dict(case)
    if changes.get("model") == "batch norm":
        changes["model"] = partial(lab.network, True)
    return lab.make_job(**changes)


@pytest.mark.parametrize("name", CASES)
def test_engines_agree(lab: SimpleNamespace, name: str) -> None:
    job = job_of(lab, CASES[name])
    one = lab.train(Sequential, job, EAGER)
    for other in (Vectorised, LOOPING):
        lab.assert_agree(one, lab.train(other, job, EAGER))
    assert one.progress.proposed > 0


def often(rule: Rule) -> Rule:
    """The rule, with transfer points as close as a run of a few short periods needs them."""
    own = {field.name for field in dataclasses.fields(rule)}
    name, value = ("period", 1) if rule.steps is None else ("steps", 3)
    return dataclasses.replace(rule, **{name: value}) if name in own else rule


OFTEN = {name: often(make()) for name, make in RULES.items()} | {
    "teach+papa": Together((TeachRule(cool=2.0), PAPA(steps=3))),
    "amto+teach": Together((EAGER, TeachRule(teachers="out-of-fold"))),
    "papa-all, moments follow": PAPAAll(period=1, moments="follow"),
    "papa-all, moments reset": PAPAAll(period=1, moments="reset"),
}


@pytest.mark.parametrize("rule", OFTEN.values(), ids=OFTEN)
@pytest.mark.parametrize("optimizer", [ADAMW, partial(torch.optim.SGD, lr=0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_engines_agree_under_every_rule(lab: SimpleNamespace, rule: Rule, optimizer: Any) -> None:
    job = lab.make_job(tasks=4, model=partial(lab.network, True), optimizer=optimizer, sizes=(44, 36, 25, 44))
    one = lab.train(Sequential, job, rule)
    for other in (Vectorised, STACKING):
        lab.assert_agree(one, lab.train(other, job, rule))


@pytest.mark.parametrize("make", [Sequential, Vectorised])
def test_pulls_inside_periods_by_hand(lab: SimpleNamespace, make: Any) -> None:
    """Three tasks of two parameters that do not learn: what moves them is the rule alone, every second of 8 steps."""
    still = partial(torch.optim.SGD, lr=0.0)
    model = partial(nn.Linear, 1, 2, bias=False)
    changes = {"model": model, "regression": True, "inputs": TensorInputs(torch.ones(lab.N, 1)), "scheduler": None}
    job = lab.make_job(optimizer=still, **changes)
    start = make(job).stack.params["weight"].clone()
    assert start.shape == (3, 2, 1)
    mean = start.mean(0)
    pulled = lab.train(make, job, PAPA(alpha=0.75, steps=2), epochs=2)
    torch.testing.assert_close(pulled.engine.stack.params["weight"], mean + 0.75**4 * (start - mean))
    assert pulled.progress.accepted == 4 * 3
    assert [[move["times"] for move in e["transfers"]] for e in pulled.events if e["event"] == "transfer"] == [
        [2] * 3
    ] * 2

    averaged = lab.train(make, job, PAPAAll(period=1), epochs=2)
    torch.testing.assert_close(averaged.engine.stack.params["weight"], mean.expand(3, 2, 1))

    elastic = lab.train(make, job, ElasticRule(beta=0.75, steps=2), epochs=2)
    x, centre = start.clone(), mean
    for _ in range(4):
        x, centre = x - 0.25 * (x - centre), centre + 0.25 * (x - centre).sum(0)
    torch.testing.assert_close(elastic.engine.stack.params["weight"], x)
    torch.testing.assert_close(elastic.engine.state()[0]["centre/weight"], centre)


@pytest.mark.parametrize("case", ["sgd", "adamw", "batch norm", "every stage", "frozen, apart"])
@pytest.mark.parametrize(("moments", "buffers"), [("follow", "follow"), ("keep", "reset"), ("reset", "keep")])
def test_engines_agree_on_a_plan_of_everything(lab: SimpleNamespace, case: str, moments: str, buffers: str) -> None:
    job, rule = job_of(lab, CASES[case]), Mixed(moments, buffers)
    one = lab.train(Sequential, job, rule)
    for other in (Vectorised, LOOPING):
        lab.assert_agree(one, lab.train(other, job, rule))
    assert one.engine.options()["lr"][1] != one.engine.options()["lr"][0]


def test_engines_agree_with_augmented_images(lab: SimpleNamespace) -> None:
    rows = lab.make_job().inputs.values
    images = TensorInputs(rows[:, None, :, None] * rows[:, None, None, :])
    job = lab.make_job(
        model=lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3)),
        inputs=images,
        methods=(CropFlipCutout(padding=1, cutout=2), Mixup()),
    )
    one = lab.train(Sequential, job, EAGER)
    for other in (Vectorised, LOOPING, STACKING):
        lab.assert_agree(one, lab.train(other, job, EAGER))


@pytest.mark.parametrize("engine", [Sequential, Vectorised])
def test_every_stage_is_entered(lab: SimpleNamespace, engine: Any) -> None:
    """Leaving any one stage out changes where the run ends."""
    whole = lab.train(engine, lab.make_job(methods=(Everything(),)), epochs=2)
    stages = ("draw", "batch", "loss", "gradients", "before_step", "after_step", "evaluation", "period_end", "export")
    for stage in stages:
        less: Any = type(
            f"No{stage}", (Method,), {k: v for k, v in vars(Everything).items() if k in (*stages, "start")}
        )
        setattr(less, stage, getattr(Method, stage))
        other = lab.train(engine, lab.make_job(methods=(less(),)), epochs=2)
        pairs = zip(whole.engine.export(0).parameters(), other.engine.export(0).parameters(), strict=True)
        assert any(not torch.equal(one, another) for one, another in pairs), stage
