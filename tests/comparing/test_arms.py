"""What the arms of a comparison train, what that costs, and what they are judged by."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kinfold
from kinfold import random
from kinfold.assembling import assemble
from kinfold.comparing import arms
from kinfold.comparing.arms import CONTROLS, SET_BY_TRIAL, Trial, resolve_arm
from kinfold.comparing.comparison import fit_arguments
from kinfold.comparing.table import Score
from kinfold.data import from_arrays
from kinfold.errors import InputError
from kinfold.student import train_student
from kinfold.transfer import RULES

MLP = {"name": "mlp", "hidden": [4]}
SMALL: dict[str, Any] = {"tasks": 3, "epochs": 4, "batch_size": 8, "engine": "sequential"}


def rows(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)


def trial(seed: int = 0, test: Any = None, model: Any = MLP, data: Any = None, **options: Any) -> Trial:
    given = fit_arguments(model, rows() if data is None else data, **{**SMALL, **options})
    return Trial({**given, "seed": seed, "holdout": 0.3 if test is None else 0.0}, test)


def fit(given: Trial, **changes: Any) -> kinfold.Result:
    """The same by the front door."""
    return kinfold.fit(**{**given.given, **changes})


def accuracy(result: kinfold.Result, x: np.ndarray, y: np.ndarray) -> float:
    return float((result.predict(x) == y).mean())


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[nn.Module]]:
    """The models of each arm, as they are handed to judgement."""
    models: dict[str, list[nn.Module]] = {}
    score = arms._score

    def noting(arm: str, found: list[nn.Module], *others: Any) -> Score:
        models[arm] = list(found)
        return score(arm, found, *others)

    monkeypatch.setattr(arms, "_score", noting)
    return models


def test_the_controls() -> None:
    assert {arm.name for arm in CONTROLS.values() if arm.reference} == {"ensemble"}
    assert all(arm.control and arm.changes is None and resolve_arm(name) is arm for name, arm in CONTROLS.items())
    shared = {name: arm.experiment for name, arm in CONTROLS.items() if arm.experiment != name}
    assert shared == {
        **dict.fromkeys(("refit", "ensemble"), "restarts"),
        **dict.fromkeys(("all-rows-ema", "all-rows-swa"), "all-rows-averaged"),
    }
    runs = {arm.experiment: arm.run for arm in CONTROLS.values()}
    for name, arm in CONTROLS.items():  # an experiment is one thing, whichever arm asks for it
        assert arm.run is runs[arm.experiment], name


@pytest.mark.parametrize(
    "spec", [*RULES, "teach+papa", {"name": "papa-soup", "transfer": "papa", "candidates": "soup"}]
)
def test_rules_and_mappings_are_arms_in_question(spec: Any) -> None:
    arm = resolve_arm(spec)
    name = spec if isinstance(spec, str) else "papa-soup"
    assert (arm.name, arm.experiment, arm.reference) == (name, name, False)
    assert arm.control == (spec == "none")  # which exchanges nothing
    expected = {"transfer": spec} if isinstance(spec, str) else {"transfer": "papa", "candidates": "soup"}
    assert arm.changes == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("conventionall", "arms: unknown name 'conventionall', did you mean 'conventional'"),
        ("teach+papaa", "arms: unknown name 'papaa', did you mean 'papa'"),
        ("", "arms: unknown name ''"),
        ({"transfer": "amto"}, "is no arm; give a name, or a mapping of a name and arguments of fit"),
        ({"name": 3}, "is no arm"),
        ({"name": "all-rows"}, "arms: 'all-rows' is the name of a control; give your arm another"),
        ({"name": "all-rows-averaged"}, "arms: 'all-rows-averaged' is the name of a control"),
        ({"name": "../mine"}, "arms: the name '../mine' cannot be that of a file; leave out slashes"),
        ({"name": ""}, "arms: the name '' cannot be"),
        ({"name": "mine", "epoch": 3}, "arms: mine: unknown name 'epoch', did you mean 'epochs'"),
        ({"name": "mine", "out": "there"}, "arms: mine: unknown name 'out'"),
        *(({"name": "mine", name: 1}, f"arms: mine: {name} is the same for all arms") for name in SET_BY_TRIAL),
    ],
)
def test_what_is_no_arm_is_said_in_one_line(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        resolve_arm(spec)
    assert "\n" not in str(error.value)


def test_conventional_is_one_split_and_its_best_epoch() -> None:
    given = trial()
    (score,) = CONTROLS["conventional"].run(given).values()
    result = fit(given, tasks=1, transfer="none")
    assert result.estimate is not None
    assert (score.arm, score.seed, score.kept) == ("conventional", 0, "task 0")
    assert score.value == pytest.approx(result.estimate.value)
    assert score.visits == result.cost["sample_visits"] == 4 * 32  # of 34 training rows
    x, y = rows()
    train = result.splits.train[0]
    assert score.train_value == pytest.approx(accuracy(result, x[train], y[train]))
    loss = nn.functional.cross_entropy(result.outputs(x[train]), torch.from_numpy(y[train]))
    assert score.train_loss == pytest.approx(float(loss), rel=1e-5)
    assert score.seconds > 0


def test_conventional_is_one_split_of_those_that_fix_their_number() -> None:
    folds = trial(splits={"name": "kfold", "folds": 3, "repeats": 1})
    score = CONTROLS["conventional"].run(folds)["conventional"]
    assert (score.visits, score.kept) == (4 * 24, "task 0")  # 28 of 42 rows, and not three times as many
    splits = fit(folds, transfer="none").splits
    assert splits.tasks == 3
    first = kinfold.splits.Splits(splits.train[:1], splits.validation[:1], splits.sealed)
    estimate = fit(folds, tasks=1, transfer="none", splits=first).estimate
    assert estimate is not None
    assert score.value == pytest.approx(estimate.value)


def test_of_an_optimizer_a_task_conventional_has_the_first() -> None:
    fast, slow = {"name": "sgd", "lr": 0.5}, {"name": "sgd", "lr": 1e-6}
    several, one = (CONTROLS["conventional"].run(trial(optimizer=made)) for made in ([fast, slow, slow], fast))
    assert several["conventional"].train_loss == one["conventional"].train_loss


def test_conventional_with_the_compute_of_all() -> None:
    (score,) = CONTROLS["conventional-long"].run(trial()).values()
    assert (score.arm, score.visits) == ("conventional-long", 3 * 4 * 32)
    estimate = fit(trial(), tasks=1, transfer="none", epochs=12).estimate
    assert estimate is not None
    assert score.value == pytest.approx(estimate.value)


def test_restarts_refit_and_ensemble(judged: dict[str, list[nn.Module]]) -> None:
    given = trial()
    found = CONTROLS["restarts"].run(given)
    assert list(found) == ["restarts", "ensemble", "refit"]
    assert {score.arm for score in found.values()} == set(found)
    result = fit(given, transfer="none", start="independent")
    assert result.estimate is not None
    assert found["restarts"].value == pytest.approx(result.estimate.value)
    assert found["restarts"].kept == f"task {result.selected.task}"
    assert found["restarts"].visits == found["ensemble"].visits == 3 * 4 * 32

    x, y = rows()
    sealed = result.splits.sealed
    assert len(judged["ensemble"]) == 3
    with torch.no_grad():
        each = [torch.softmax(model(torch.from_numpy(x)), 1) for model in judged["ensemble"]]
    mean = (each[0] + each[1] + each[2]) / 3
    assert found["ensemble"].value == pytest.approx((mean.argmax(1).numpy() == y)[sealed].mean())
    trained = result.splits.train.any(0)
    of_label = mean[torch.arange(60), torch.from_numpy(y)][torch.from_numpy(trained)]
    assert found["ensemble"].train_loss == pytest.approx(-float(of_label.log().mean()), rel=1e-5)
    assert found["ensemble"].kept == "all 3"
    outputs = [model(torch.from_numpy(x)) for model in judged["ensemble"]]
    chosen = outputs[result.selected.task or 0]
    assert torch.equal(chosen, judged["restarts"][0](torch.from_numpy(x)))

    means = [np.mean(event["metric"]) for event in result.history if event["event"] == "period"]
    best = 1 + int(np.argmax(means))
    assert found["refit"].kept == f"epoch {best}"
    assert found["refit"].visits == 3 * 4 * 32 + best * 40
    assembled = assemble(given.given)
    unsealed = torch.from_numpy(~sealed)
    scheduler = assembled.remaining.scheduler(4)  # as long as it was when the epoch was chosen
    again = train_student(assembled.job, unsealed, epochs=best, scheduler=scheduler, words=("all-rows",))
    assert all(torch.equal(v, judged["refit"][0].state_dict()[k]) for k, v in again.model.state_dict().items())


class Sick(nn.Linear):
    """Gives NaN where it started with a negative first weight."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("sick", self.weight[0, 0].detach() < 0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.sick, torch.nan, super().forward(x))


def test_who_diverged_has_no_say(judged: dict[str, list[nn.Module]]) -> None:
    found = CONTROLS["restarts"].run(trial(seed=3, model=Sick, tasks=5))
    assert 0 < len(judged["ensemble"]) < 5
    assert found["ensemble"].kept == f"all {len(judged['ensemble'])}"
    assert math.isfinite(found["ensemble"].value)
    assert not any(bool(model.sick) for model in judged["ensemble"])
    epoch = int(found["refit"].kept.split()[1])
    result = fit(trial(seed=3, model=Sick, tasks=5), transfer="none", start="independent")
    means = [
        np.mean([one for one in event["metric"] if one is not None])
        for event in result.history
        if event["event"] == "period"
    ]
    assert epoch == 1 + int(np.argmax(means))


class Late(nn.Sequential):
    """Some of them give no numbers while they are trained: their snapshots stay as they began."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3))
        self.register_buffer("sick", torch.tensor(float(torch.rand(())) < 0.4))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x)
        return torch.where(self.sick & torch.tensor(self.training), torch.nan, outputs)


def test_who_never_had_a_score_has_no_say(judged: dict[str, list[nn.Module]]) -> None:
    CONTROLS["restarts"].run(trial(seed=3, model=Late, tasks=5))
    assert 0 < len(judged["ensemble"]) < 5
    assert not any(bool(model.sick) for model in judged["ensemble"])


def test_what_a_task_diverged_to_has_no_part_in_the_best_period() -> None:
    steep = [partial(torch.optim.SGD, lr=rate) for rate in (0.05, 1e6, 0.05)]
    result = fit(trial(optimizer=steep, scheduler=None, rescue=1), transfer="none", start="independent")
    diverged = {(event["period"], t) for event in result.history for t in event.get("diverged", ())}
    assert {t for _, t in diverged} == {1}
    for event in result.history:
        if event["event"] == "period" and (event["period"], 1) in diverged:
            assert event["loss"][1] is None or math.isnan(event["loss"][1])


def periods(*rows: Any, name: str = "metric") -> list[dict[str, Any]]:
    return [{"event": "note"}, *({"event": "period", "loss": [0], "metric": [0], name: row} for row in rows)]


def test_the_best_period_by_hand() -> None:
    job = assemble(trial().given).job
    assert arms._best_period(periods([0.5, 0.5], [0.9, 0.7], [0.7, 0.9], [0.6, 0.8]), job) == 2  # the earliest
    assert arms._best_period(periods([0.9, 0.1], [0.6, None], [0.5, None]), job) == 2
    assert arms._best_period(periods([None, None], [0.1, None]), job) == 2
    assert arms._best_period(periods([None, None], [None, None]), job) == 1
    by_loss = assemble(trial(better="loss").given).job
    assert arms._best_period(periods([0.5, 0.5], [0.2, 0.2], [0.3, 0.0], name="loss"), by_loss) == 3
    error = kinfold.Metric("error", lambda o, t: float((o.argmax(1) != t).double().mean()), higher_is_better=False)
    lower = assemble(trial(metric=error).given).job
    assert arms._best_period(periods([0.5, 0.5], [0.2, 0.2], [0.3, 0.3]), lower) == 2


def test_all_rows_at_equal_compute(judged: dict[str, list[nn.Module]]) -> None:
    """42 unsealed rows, 34 in a split: three tasks of four epochs of 32 visits, or nine epochs of 40."""
    given = trial()
    found = CONTROLS["all-rows"].run(given)
    assert list(found) == ["all-rows"]
    found |= CONTROLS["all-rows-swa"].run(given)
    assert list(found) == ["all-rows", "all-rows-ema", "all-rows-swa"]
    for score in found.values():
        assert (score.visits, score.kept) == (9 * 40, "epoch 9")
        assert score.visits <= fit(given, transfer="none").cost["sample_visits"] < score.visits + 40
    assembled = assemble(given.given)
    unsealed = torch.from_numpy(~assembled.prepared.splits.sealed)
    scheduler = assembled.remaining.scheduler(9)
    plain = train_student(assembled.job, unsealed, epochs=9, scheduler=scheduler, words=("all-rows",)).model
    assert all(torch.equal(v, judged["all-rows"][0].state_dict()[k]) for k, v in plain.state_dict().items())
    ways = [torch.cat([p.flatten() for p in judged[name][0].parameters()]) for name in found]
    assert len({tuple(way.tolist()) for way in ways}) == 3
    assert all(torch.allclose(ways[0], way, atol=0.5) for way in ways)  # averages of one way lie beside its end
    x, y = rows()
    with torch.no_grad():
        right = plain(torch.from_numpy(x)).argmax(1).numpy() == y
    sealed = assembled.prepared.splits.sealed
    assert found["all-rows"].value == pytest.approx(right[sealed].mean())
    assert found["all-rows"].train_value == pytest.approx(right[~sealed].mean())


def test_all_rows_for_the_plain_number_of_epochs(judged: dict[str, list[nn.Module]]) -> None:
    (score,) = CONTROLS["all-rows-once"].run(trial()).values()
    assert (score.arm, score.visits, score.kept) == ("all-rows-once", 4 * 40, "epoch 4")
    x, y = rows()
    sealed = assemble(trial().given).prepared.splits.sealed
    with torch.no_grad():
        right = judged["all-rows-once"][0](torch.from_numpy(x)).argmax(1).numpy() == y
    assert score.train_value == pytest.approx(right[~sealed].mean())  # all that it has trained on


@pytest.mark.parametrize(
    "spec", ["amto", "distil", {"name": "mine", "transfer": "papa", "candidates": ["soup", "ema"]}]
)
def test_an_arm_is_one_call_of_fit(spec: Any) -> None:
    given = trial(seed=2)
    arm = resolve_arm(spec)
    (score,) = arm.run(given).values()
    assert arm.changes is not None
    result = fit(given, **arm.changes)
    assert result.estimate is not None
    assert (score.arm, score.seed) == (arm.name, 2)
    assert score.value == pytest.approx(result.estimate.value)
    assert score.visits == result.cost["sample_visits"] <= 3 * 4 * 32
    kind, task = result.selected.kind, result.selected.task
    assert score.kept == (kind if task is None else f"{kind} {task}")
    assert (kind == "distilled") == (spec == "distil")


def test_a_test_set_of_its_own() -> None:
    """No row is sealed then; and the encoder knows the training rows alone."""
    x, y = rows(90)
    held = from_arrays(x[60:], y[60:])
    given = trial(test=held, data=(x[:60], y[:60]))
    for name in ("conventional", "all-rows-once"):
        (score,) = CONTROLS[name].run(given).values()
        assert score.visits == 4 * (48 if name == "conventional" else 56)
    result = fit(given, tasks=1, transfer="none")
    assert result.estimate is None
    (score,) = CONTROLS["conventional"].run(given).values()
    assert score.value == pytest.approx(accuracy(result, x[60:], y[60:]))


def test_regression() -> None:
    x, _ = rows()
    given = trial(data=(x, x @ np.array([1.0, -2.0, 0.5, 0.0], dtype=np.float32)), clip_norm=1.0)
    for name in ("restarts", "all-rows"):
        for score in CONTROLS[name].run(given).values():
            assert math.isfinite(score.value)
            assert score.value < 1
    result = fit(given, transfer="amto")
    assert result.estimate is not None
    assert resolve_arm("amto").run(given)["amto"].value == pytest.approx(result.estimate.value)


def test_a_metric_is_shown_in_its_own_direction() -> None:
    error = kinfold.Metric("error", lambda o, t: float((o.argmax(1) != t).double().mean()), higher_is_better=False)
    shares, errors = (resolve_arm("none").run(trial(metric=metric))["none"] for metric in (None, error))
    assert errors.value == pytest.approx(1 - shares.value)
    assert errors.train_value == pytest.approx(1 - shares.train_value)


def test_together_by_hand() -> None:
    third, ninth = torch.tensor([[0.0, math.log(2.0)]]), torch.tensor([[math.log(8.0), 0.0]])
    mean = torch.tensor([[(1 / 3 + 8 / 9) / 2, (2 / 3 + 1 / 9) / 2]])
    torch.testing.assert_close(arms._together([third, ninth], 2), mean.log())
    torch.testing.assert_close(arms._together([third, ninth], None), (third + ninth) / 2)
    assert arms._together([third], 2) is third
    sure = torch.tensor([[1e4, 0.0]])
    assert bool(arms._together([sure, sure], 2).isfinite().all())


def test_nothing_moves_the_callers_random_state() -> None:
    before = torch.random.get_rng_state()
    with random.seeded(torch.device("cpu"), 1):
        CONTROLS["all-rows-once"].run(trial())
    assert torch.equal(before, torch.random.get_rng_state())
