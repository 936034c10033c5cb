"""Tasks shared out over devices, here several of one CPU: the same training as in one engine."""

import copy
import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.engines import Job
from kinfold.engines.devices import Devices
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Context, Method, Params, State
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, Elastic, Mix, Plan, Restart, Rule, TeachRule, Together, Tune, View

CPU = torch.device("cpu")
TWO = partial(Devices, devices=[CPU, CPU])
THREE_APART = partial(Devices, devices=[CPU] * 3, kind=Sequential)
ADAM = partial(torch.optim.Adam, lr=0.01)


class Averaged(Method):
    """An average that transfers move along, that is scored, and that a period's end changes."""

    def start(self, params: Params, context: Context) -> State:
        return {f"average/{name}": value.clone() for name, value in params.items()}

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        return order[int(state["average/0.weight"].abs().sum() > 1e-3) :]  # it needs the share's own state

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, {key: 0.9 * old + 0.1 * params[key.partition("/")[2]] for key, old in state.items()}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"average/{name}"] for name in params}

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return {name: value - 1e-3 * score[1] for name, value in params.items()}, state


@dataclasses.dataclass(frozen=True)
class Everything(Rule):
    """Mixtures, a pull, fresh starts and new rates, untried."""

    name = "everything"
    moments: str = "follow"

    def plan(self, view: View, state: Any, generator: torch.Generator) -> tuple[Plan | None, Any]:
        T = len(view.metric)
        weights = torch.eye(T, dtype=torch.float64)
        weights[0] = torch.full((T,), 1 / T, dtype=torch.float64)
        weights[T - 1] = torch.eye(T, dtype=torch.float64)[0]
        fresh = torch.zeros(T, dtype=torch.bool)
        fresh[1] = view.period == 2
        rates = torch.full((T,), torch.nan, dtype=torch.float64)
        rates[2] = 0.02 * view.period
        pull = torch.full((T,), 0.1, dtype=torch.float64)
        changes = (Mix(weights), Elastic(pull, pull), Restart(fresh, key=view.period), Tune({"lr": rates}))
        return Plan(changes, moments=self.moments), state


def rich_job(lab: SimpleNamespace, **changes: Any) -> Job:
    given = {"tasks": 4, "model": partial(lab.network, True), "optimizer": ADAM, "methods": (Averaged(),)}
    return lab.make_job(**(given | changes))


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return model[0].requires_grad_(False) and model


RULES: dict[str, Rule] = {
    "amto+teach": Together((AMTO(p_low=1.0, p_high=1.0), TeachRule(cool=2.0))),
    "papa": PAPA(steps=3),
    "everything": Everything(),
    "everything, reset": Everything("reset"),
}


@pytest.mark.parametrize("name", RULES)
def test_devices_agree(lab: SimpleNamespace, name: str) -> None:
    job = rich_job(lab)
    one = lab.train(Sequential, job, RULES[name], epochs=3)
    assert one.progress.proposed > 0
    for make in (TWO, THREE_APART):
        lab.assert_agree(one, lab.train(make, job, RULES[name], epochs=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": (44, 36, 25, 44), "accumulate": 2},
        {"model": lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)), "methods": ()},
        {"model": nn.Linear(5, 3).requires_grad_(), "methods": (), "loss": nn.CrossEntropyLoss(torch.ones(3))},
        {"model": partly_frozen(), "methods": ()},
        {"optimizer": [partial(torch.optim.SGD, lr=0.1 * t) for t in (1, 2, 3, 4)]},
    ],
    ids=["unequal", "drawing", "a module, and a loss with tensors", "frozen", "an optimizer a task"],
)
def test_devices_agree_on_other_jobs(lab: SimpleNamespace, changes: dict[str, Any]) -> None:
    job = rich_job(lab, **changes)
    one = lab.train(Sequential, job, RULES["amto+teach"], epochs=2)
    lab.assert_agree(one, lab.train(THREE_APART, job, RULES["amto+teach"], epochs=2))


@pytest.mark.parametrize("blown", [(3,), (0, 1, 2, 3)], ids=["from another", "from their own best"])
def test_tasks_that_diverge_are_rescued(lab: SimpleNamespace, blown: tuple[int, ...]) -> None:
    job = rich_job(lab, optimizer=[ADAM] * 3 + [partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
    one = lab.train(Sequential, job, lab.Planting(blown), rescues=2)
    assert one.progress.health.rescues.tolist() == [int(t in blown) for t in range(4)]
    for make in (TWO, THREE_APART):
        lab.assert_agree(one, lab.train(make, job, lab.Planting(blown), rescues=2))


class Tunes(Rule):
    """New rates in the first period, and nothing else."""

    name = "tunes"

    def plan(self, view: View, state: Any, generator: torch.Generator) -> tuple[Plan | None, Any]:
        rates = 0.01 * torch.arange(1.0, 5.0, dtype=torch.float64)
        return (Plan((Tune({"lr": rates}),)) if view.period == 1 else None), state


@pytest.mark.parametrize("rule", [Tunes(), PAPA(steps=3)], ids=["tunes", "papa"])
def test_a_checkpoint_goes_on_in_any_engine(lab: SimpleNamespace, rule: Rule) -> None:
    job = rich_job(lab)
    saved = lab.train(TWO, job, Together((rule, TeachRule(cool=2.0))), epochs=2)
    state = copy.deepcopy(saved.engine.state())
    assert state[1]["visits"] == saved.engine.visits() > 0
    assert state[1]["temperature"] is not None
    ends = []
    for make in (lambda job: saved.engine, Sequential, Vectorised, THREE_APART, TWO):
        engine = make(job)
        if engine is not saved.engine:
            engine.restore(*state)
        losses = engine.train(Segment(3))
        engine.end_period(engine.score())
        ends.append(copy.deepcopy((losses, engine.state()[0], engine.options(), engine.visits())))
    for end in ends[1:]:
        lab.assert_close(ends[0], end)
    assert all(torch.equal(value, ends[-1][1][name]) for name, value in ends[0][1].items())  # bit for bit
    saved.engine.restore(*state)  # back to where it was
    saved.engine.train(Segment(3))
    saved.engine.end_period(saved.engine.score())
    lab.assert_close(saved.engine.state()[0], ends[0][1])


def test_what_no_plan_parts_is_stepped_in_one_kernel(lab: SimpleNamespace) -> None:
    def fused(rule: Rule, **changes: Any) -> list[bool]:
        return [
            engine.updater.fused for engine in lab.train(TWO, rich_job(lab, **changes), rule, epochs=2).engine._engines
        ]

    assert fused(PAPA(steps=3)) == [True, True]
    assert fused(Together((Tunes(), PAPA(steps=3)))) == [False, False]
    assert fused(PAPA(steps=3), sizes=(44, 44, 44, 33)) == [True, False]


def test_a_lesson_is_forgotten_with_the_state_that_had_it(lab: SimpleNamespace) -> None:
    job = rich_job(lab)
    engine, fresh = TWO(job), TWO(job)
    start = copy.deepcopy(engine.state())
    lab.train(lambda job: engine, job, TeachRule(cool=2.0), epochs=1)
    engine.restore(*start)
    lab.assert_close(fresh.train(Segment(1)), engine.train(Segment(1)))
    lab.assert_close(fresh.state(), engine.state())


def test_a_new_schedule(lab: SimpleNamespace) -> None:
    engines = [make(rich_job(lab)) for make in (Sequential, TWO)]
    for engine in engines:
        engine.train(Segment(1))
        engine.end_period(engine.score())
        engine.reschedule(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.5**done))
        for period in (2, 3):
            engine.train(Segment(period))
            engine.end_period(engine.score())
    assert engines[1].options()["lr"].tolist() == [0.01 * 0.25] * 4
    lab.assert_close(engines[0].state()[0], engines[1].state()[0])


def test_what_is_asked_between_periods(lab: SimpleNamespace) -> None:
    job, rows = rich_job(lab), torch.tensor([3, 1, 60])
    one, other = Sequential(job), TWO(job)

    def answers(engine: Any) -> list[Any]:
        return [
            engine.score(),
            *(ask(rows, best) for ask in (engine.predict, engine.losses) for best in (False, True)),
            *(engine.sound(best) for best in (False, True)),
            engine.options(),
            engine.visits(),
            engine.steps(2),
            engine.method_states(),
            [engine.export(t).state_dict() for t in range(4)],
        ]

    for period in (1, 2):
        lab.assert_close(answers(one), answers(other))
        for engine in (one, other):
            engine.train(Segment(period, 0, 2))
            engine.train(Segment(period, 2))
            engine.snapshot(torch.tensor([True, period == 1, False, True]))
            engine.end_period(engine.score())
    lab.assert_close(answers(one), answers(other))
    other.close()
    lab.assert_close(answers(one), answers(other))
    with pytest.raises(RunError, match="engine: it has been closed"):
        other.train(Segment(3))


def test_one_that_fails_ends_all(lab: SimpleNamespace) -> None:
    class Fails(Method):
        def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
            if len(order) == 25:
                raise InputError("methods: the user's fault.")
            return order

    engine = TWO(lab.make_job(tasks=4, methods=(Fails(),), sizes=(44, 44, 25, 44)))
    with pytest.raises(InputError, match=r"^methods: the user's fault\.$"):
        engine.train(Segment(1))
    with pytest.raises(RunError, match="engine: it has been closed"):
        engine.train(Segment(1))
    assert bool(engine.sound().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            Devices,
            "engine: devices shares out the tasks over GPUs, and device is cpu; give device cuda, or engine auto.",
        ),
        (partial(Devices, devices=[]), "engine: no devices are given; give one or more."),
    ],
)
def test_who_may_share_out(lab: SimpleNamespace, make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make(lab.make_job())
    assert str(caught.value) == message


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpus_agree(lab: SimpleNamespace) -> None:
    job = rich_job(lab, device=torch.device("cuda"), loss=nn.CrossEntropyLoss(torch.ones(3)))
    lab.assert_agree(lab.train(Sequential, job, RULES["amto+teach"]), lab.train(Devices, job, RULES["amto+teach"]))
