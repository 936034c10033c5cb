"""Tasks that diverge: told, kept from the others, started again, and reported; on every engine and under every rule."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kinfold
from kinfold import files, run
from kinfold.assembling import assemble, check
from kinfold.comparing.comparison import fit_arguments
from kinfold.data import from_arrays
from kinfold.diverging import GROWTH, Health, donor_of, exploded, rescue, rough_losses, told, without
from kinfold.engines import Engine
from kinfold.errors import InputError, RunError
from kinfold.exporting import model_card
from kinfold.splits import Splits
from kinfold.transfer import RULES, BinaryCross, Cross, Elastic, Median, Mix, Plan, Restart, Shuffle, Teach, Tune
from kinfold.yaml_files import yaml_text

NAN, INF = math.nan, math.inf


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- how it is told -----------------------------------------------------------------------------------------------


def known(*levels: float) -> Health:
    """Of tasks whose losses were that large before training."""
    health = Health.start(len(levels))
    health.begin(numbers(*levels), torch.zeros(len(levels), dtype=torch.float64))
    return health


def lesson(weight: Tensor, tau: float) -> Plan:
    T = len(weight)
    none = torch.zeros(T, 4, dtype=torch.bool)
    return Plan((Teach(torch.zeros(T, 4, 2), weight, torch.zeros(T, T, dtype=torch.bool), none, tau),))


def test_a_loss_that_is_no_number_has_diverged() -> None:
    health = known(1, 1, 1, 1)
    diverged = health.after_period(numbers(NAN, INF, 1, 1), numbers(0.1, 0.1, NAN, 0.1)).tolist()
    assert diverged == health.aside.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("train", "validation", "diverged"),
    [
        (21.0, 31.0, True),
        (19.0, 31.0, False),  # not beyond ten times what it was
        (21.0, 29.0, False),  # and its rows for validation have nothing of it
        (-1000.0, -1000.0, False),  # the likelihood of a density may be as great as it likes
    ],
)
def test_an_explosion_goes_by_what_both_losses_were(train: float, validation: float, diverged: bool) -> None:
    health = known(1.5, 1)
    for loss in (2.0, 0.5):  # the largest counts
        assert not health.after_period(numbers(loss, 1), numbers(1.5 * loss, 1)).any()
    assert health.after_period(numbers(train, 1), numbers(validation, 1)).tolist() == [diverged, False]
    assert health.loss.tolist() == [2.0 if diverged else max(2.0, abs(train)), 1.0]
    assert health.validation.tolist() == [3.0 if diverged else max(3.0, abs(validation)), 1.0]


def test_in_the_first_period_the_start_is_the_measure() -> None:
    health = Health.start(3)
    health.begin(numbers(1, NAN, 100), numbers(2, 3, 0))
    assert health.loss.tolist() == [2, 3, 100]
    assert health.validation[[0, 2]].tolist() == [2, 100]
    high = numbers(21, 29, 999)
    assert health.after_period(high, high).tolist() == [True, False, False]
    alone = known(1)  # nobody else is asked
    assert alone.after_period(numbers(1e9), numbers(1e9)).tolist() == [True]


def test_what_is_not_known_is_no_measure() -> None:
    health = Health.start(2)  # as of a checkpoint of a version that did not look
    assert not health.after_period(numbers(1e9, 1), numbers(NAN, 1)).any()
    assert not health.after_period(numbers(1e9, 1), numbers(1e9, 1)).any()
    assert health.after_period(numbers(NAN, 11), numbers(1, 11)).tolist() == [True, True]
    assert not exploded(numbers(NAN, 1e9), numbers(1, NAN)).any()
    assert exploded(numbers(GROWTH * 3, GROWTH * 3 + 1e-9), numbers(3, 3)).tolist() == [False, True]


def test_validation_rows_that_never_give_a_loss_say_nothing() -> None:
    x, y = rows()
    data = dataclasses.replace(from_arrays(x, y), weights=np.ones(len(y)))
    given = {"name": "mlp", "hidden": [3]}
    drawn = assemble(fit_arguments(given, data, tasks=3, epochs=2)).prepared.splits
    data.weights[drawn.validation[1] & ~drawn.validation[0] & ~drawn.validation[2]] = 0.0
    train = drawn.train.copy()
    train[1] |= drawn.validation[1]
    validation = drawn.validation.copy()
    validation[1] &= data.weights == 0
    train[1] &= ~validation[1]
    fixed = Splits(train, validation, drawn.sealed)
    result = kinfold.fit(given, data, splits=fixed, epochs=3, transfer="amto", listen=lambda event: None)
    assert not notes(result)
    assert result.scores.own[1].isnan()


@pytest.mark.parametrize(("classes", "beyond"), [(2, 10 * (1 + 0.5 * 64)), (None, 15.0)])
def test_a_lesson_is_no_explosion(classes: int | None, beyond: float) -> None:
    for weight in (numbers(0.5, 0.0), torch.tensor([[0.5, 0.1, 0, 0], [0, 0, 0, 0]])):
        health = known(1, 1)
        health.taught(lesson(weight, 8.0), classes)
        validation = numbers(1e9, 1e9)  # which alone says nothing
        assert health.after_period(numbers(beyond - 0.1, 9.9), validation).tolist() == [False, False]
        health = known(1, 1)
        health.taught(lesson(weight, 8.0), classes)
        health.taught(Plan(()), classes)  # the lesson holds
        assert health.after_period(numbers(beyond + 0.1, 10.1), validation).tolist() == [True, True]


def test_two_signs_are_asked_for_inside_a_period() -> None:
    health = known(1, 1, 1, 1)
    assert health.inside(numbers(1, 1, 0, 1), numbers(1, 100, 3, 1)).all()  # a norm alone
    assert health.inside(numbers(9, 9, 9, 99), numbers(1, 1, 3, 1)).all()  # a loss alone, and now a level
    norms = numbers(0.2, 0.2, 0.2, 2.1)
    assert health.inside(numbers(91, 91, 0, 991), norms).tolist() == [True, True, True, False]
    assert health.inside(numbers(1, NAN, 1, 1), numbers(INF, 1, 3, 1)).tolist() == [False, False, True, True]
    health.aside = torch.tensor([False, True, False, False])
    assert health.inside(numbers(1, 1, 5, 1), numbers(1, 2, 3, 1)).tolist() == [True, False, True, True]
    assert not health.inside(numbers(1, 1, 5, 1), numbers(NAN, NAN, NAN, NAN)).any()


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_knowing_nothing_costs(regression: bool, weighted: bool) -> None:
    x, y = rows(60)
    values, counts = 100.0 + 3.0 * x[:, 0].astype(np.float64), np.linspace(0.5, 2, 60)
    data = from_arrays(x, values if regression else y)
    if weighted:
        data = dataclasses.replace(data, weights=counts)
    job = assemble(fit_arguments({"name": "mlp", "hidden": [3]}, data, tasks=3, epochs=2)).job
    expected = [math.log(2)] * 3
    if regression:
        expected = [
            max(
                np.average((values[own] - values[train].mean()) ** 2, weights=counts[own] if weighted else None)
                for own in (train, validation)
            )
            for train, validation in zip(job.train.numpy(), job.validation.numpy(), strict=True)
        ]
    torch.testing.assert_close(rough_losses(job), numbers(*expected), rtol=1e-4, atol=1e-6)


def test_the_best_finite_task_is_the_donor() -> None:
    assert donor_of(torch.tensor([[NAN, NAN], [0.5, 1.0], [0.6, 2.0]]), "metric") == 2
    assert donor_of(torch.tensor([[NAN, NAN], [0.5, 1.0], [0.6, 2.0]]), "loss") == 1
    assert donor_of(torch.tensor([[INF, 1.0], [NAN, NAN]]), "metric") is None


def test_who_starts_again_and_from_where() -> None:
    tasks, rates = torch.tensor([False, True, False]), numbers(0.1, 0.2, 0.3)
    plan = rescue(tasks, 2)
    mix, tune = plan.changes
    assert plan.moments == "reset"
    assert isinstance(mix, Mix)
    assert mix.weights.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert isinstance(tune, Tune)
    assert tune.relative
    torch.testing.assert_close(tune.values["lr"], numbers(NAN, 0.5, NAN), equal_nan=True)
    own, _ = rescue(tasks, None).changes
    assert isinstance(own, Restart)
    assert own.best
    assert own.tasks.tolist() == tasks.tolist()
    said = told(4, [0, 1, 2], [1, 2], 3, rates)
    assert said["message"] == (
        "tasks 1 and 2 diverged in period 4: starting again from task 3, at half the rate; "
        "task 0 diverged in period 4: set aside, the others see no more of it"
    )
    assert said["rescued"] == [{"task": 1, "donor": 3, "lr": 0.1}, {"task": 2, "donor": 3, "lr": 0.15}]


# -- plans without them -------------------------------------------------------------------------------------------

T = 4
NOBODY = torch.zeros(T, dtype=torch.bool)
masks = st.lists(st.booleans(), min_size=T, max_size=T).map(torch.tensor)
sources = st.lists(st.integers(-1, T - 1), min_size=T, max_size=T).map(torch.tensor)
rates = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=T, max_size=T).map(lambda row: numbers(*row))
weights = st.lists(st.lists(st.integers(0, 3), min_size=T, max_size=T), min_size=T, max_size=T).map(
    lambda rows: torch.stack([numbers(*row) / sum(row) if sum(row) else torch.eye(T).double()[0] for row in rows])
)
changes = st.one_of(
    weights.map(Mix),
    st.builds(Cross, sources, rates, st.just(torch.arange(T))),
    st.builds(BinaryCross, sources, rates, st.just(torch.arange(T))),
    st.lists(masks, min_size=T, max_size=T).map(lambda rows: Median(torch.stack(rows))),
    st.builds(Shuffle, masks, st.just(0.1), st.just(0.0), st.just(1)),
)


@given(change=changes, aside=masks)
@settings(max_examples=60, deadline=None)
def test_nobody_learns_from_those_set_aside(change: Any, aside: Tensor) -> None:
    (left,) = without(Plan((change,)), aside, NOBODY).changes
    before, after = change.lineage(), left.lineage()
    assert not after[:, aside].any()
    keeps = before[:, ~aside] if not isinstance(change, Shuffle) else before[:, ~aside] & ~aside[:, None]
    assert torch.equal(after[:, ~aside], keeps)  # and from all others as was planned
    if isinstance(change, Mix):
        untouched = ~(before & aside).any(1)
        assert torch.equal(left.weights[untouched], change.weights[untouched])


@given(pull=rates, aside=masks)
@settings(max_examples=20, deadline=None)
def test_the_centre_neither_pulls_nor_is_pulled_by_them(pull: Tensor, aside: Tensor) -> None:
    (left,) = without(Plan((Elastic(pull, pull),)), aside, NOBODY).changes
    assert isinstance(left, Elastic)
    for rate in (left.rate, left.centre_rate):
        assert not rate[aside].any()
        assert torch.equal(rate[~aside], pull[~aside])


def test_what_moves_nothing_stays() -> None:
    aside, tune = torch.tensor([True, False]), Tune({"lr": numbers(0.1, 0.2)})
    assert without(Plan((tune, Restart(aside))), aside, ~aside & aside).changes == (tune, Restart(aside))


@given(change=changes, again=masks, pull=rates)
@settings(max_examples=60, deadline=None)
def test_who_has_just_started_again_is_left_as_that_made_it(change: Any, again: Tensor, pull: Tensor) -> None:
    taught = lesson(pull, 2.0).changes[0]
    plan = Plan((change, Elastic(pull, pull), Restart(torch.ones(T).bool()), Tune({"lr": pull}), taught))
    left, elastic, restart, tune, kept = without(plan, again, again).changes
    before = change.without(again)
    assert not left.lineage()[again].any()
    untouched = ~again if not isinstance(change, Shuffle) else ~again & ~again[:, None]
    assert torch.equal(left.lineage()[untouched], before.lineage()[untouched])
    touched = without(plan, again, again).touched(T)
    assert not touched[again].any()
    assert touched[~again].all()
    assert isinstance(elastic, Elastic)
    assert not elastic.rate[again].any()
    assert isinstance(restart, Restart)
    assert torch.equal(restart.tasks, ~again)
    assert isinstance(tune, Tune)
    torch.testing.assert_close(tune.values["lr"], torch.where(again, NAN, pull), equal_nan=True)
    assert kept is taught


# -- whole runs ---------------------------------------------------------------------------------------------------

BOMB = 3
"""The task of four that is made to diverge; when, and how, each test says."""


def rows(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(np.int64)


class Bomb:
    """Multiplies the parameters of some tasks before the training of some periods."""

    def __init__(self, value: float, periods: tuple[int, ...] = (2,), tasks: tuple[int, ...] = (BOMB,)) -> None:
        self.value, self.periods, self.tasks = value, periods, tasks

    def __call__(self, engine: Engine, period: int) -> None:
        if period in self.periods:
            whole: Any = getattr(engine, "_whole", engine)
            for t in self.tasks:
                for parameter in whole.stack.params.values():
                    parameter.detach()[t] *= self.value
            whole.seen.forget()


def explode(monkeypatch: pytest.MonkeyPatch, bomb: Callable[[Engine, int], None]) -> None:
    """Lays the bomb in every engine's training."""
    original = run._Transfers.train_period

    def train_period(self: Any) -> Tensor:
        bomb(self._engine, self._progress.period)
        return original(self)

    monkeypatch.setattr(run._Transfers, "train_period", train_period)


EAGER: Mapping[str, Mapping[str, Any]] = {
    "amto": {"p_low": 1.0, "p_high": 1.0},
    "papa": {"steps": 2, "alpha": 0.5},
    "papa-all": {"period": 1},
    "elastic": {"steps": 2},
    "exchange": {"period": 1, "truncation": 0.25},
    "shuffle": {"steps": 2, "p": 0.2},
    "merge-median": {"period": 1, "trial": False},
    "mfea": {"rmp": 1.0},
    "distil": {"stages": (0.4, 0.2)},
}


IDLE = {"name": "amto", "p_low": 0.0, "p_high": 0.0}
"""A rule that has tasks learn from each other, if it came to that."""


def fit(rule: str = "none", engine: str = "sequential", **options: Any) -> kinfold.Result:
    given: dict[str, Any] = {
        "tasks": 4,
        "epochs": 5,
        "batch_size": 16,
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "holdout": 0.1,
        "seed": 4,
        "model": {"name": "mlp", "hidden": [6]},
        "listen": lambda event: None,
    }
    transfer = {"name": rule, **EAGER[rule]} if rule in EAGER else rule
    return kinfold.fit(data=rows(), engine=engine, **{"transfer": transfer} | given | options)


def notes(result: kinfold.Result) -> list[dict[str, Any]]:
    return [event for event in result.history if event.get("diverged")]


ALONE = {rule for rule, kind in RULES.items() if kind().until == 0}
"""Under these, tasks learn nothing of each other while they train."""

LATE = ("soup", "greedy-soup", "ema", "swa")


def late(rule: str) -> tuple[str, ...]:
    return () if rule == "distil" else LATE  # which hands back a student of its own


def seen_by_the_others(result: kinfold.Result, periods: tuple[int, ...]) -> list[Any]:
    """All that is known of a run, but for the numbers of the task that diverged in some periods, and the clock's."""
    history = []
    for event in result.history:
        event = {name: value for name, value in event.items() if name != "seconds"}
        if event["event"] == "period" and event["period"] in periods:
            event |= {name: event[name][:BOMB] for name in ("train_loss", "loss", "metric")}
        history.append(event)
    return history


@pytest.mark.parametrize("rule", [*RULES, "teach+papa"])
def test_the_others_never_see_its_numbers(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to a bit of them: where it diverges otherwise, all goes the same way, whatever is made of the tasks."""
    runs = []
    for value in (NAN, 1e8):
        with monkeypatch.context() as patch:
            explode(patch, Bomb(value))
            runs.append(fit(rule, "vectorised", epochs=8 if rule == "distil" else 5, candidates=late(rule)))
    one, other = runs
    assert seen_by_the_others(one, (2,)) == seen_by_the_others(other, (2,))
    for name in ("selected", "contenders", "scores", "transfers"):
        assert repr(one.to_json()[name]) == repr(other.to_json()[name])
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])
    (event,) = notes(one)
    assert (event["period"], event["diverged"], event["severity"]) == (2, [BOMB], "warning")
    (again,) = event["rescued"]
    donor = again["donor"]
    assert one.transfers.rescues.tolist() == [0, 0, 0, 1]
    periods = [one for one in one.history if one["event"] == "period"]
    for period in periods:
        assert all(loss is not None and loss < 20 for loss in period["loss"][:BOMB])
    assert max(periods[2]["loss"]) < 20
    assert math.isclose(periods[2]["lr"][BOMB], 0.5 * periods[2]["lr"][0])
    copies = [event for event in one.history if event["event"] == "transfer" and event["rule"] == "rescue"]
    if rule in ALONE:  # and do not this way either
        assert (donor, copies) == (None, [])
        assert not one.transfers.by_pair.any()
        return
    assert donor in (0, 1, 2)
    (move,) = copies[0]["transfers"]
    assert (move["recipient"], move["donor"], move["form"], move["accepted"]) == (BOMB, donor, "copy", True)
    assert one.transfers.by_pair[BOMB, donor] >= 1
    learned = [
        move
        for event in one.history
        if event["event"] == "transfer" and event["period"] == 2
        for move in event["transfers"]
    ]
    if rule != "elastic":  # which reports all that the centre may remember, its own past of the task included
        assert not [move for move in learned if BOMB in move["donors"] and move["accepted"]]


@pytest.mark.parametrize("value", [INF, -1e12, 1e30])
def test_however_it_diverges(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for planted in (NAN, value):
        with monkeypatch.context() as patch:
            explode(patch, Bomb(planted))
            runs.append(seen_by_the_others(fit("papa", "vectorised"), (2,)))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("rule", ["papa", "papa-all", "elastic", "shuffle", "merge-median", "teach"])
def test_nobody_sees_who_is_set_aside_for_good(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It diverges in every period, so it never has a snapshot: no rule, soup or lesson has anything of it."""
    always, runs = (1, 2, 3, 4), []
    for value in (NAN, 1e8):
        with monkeypatch.context() as patch:
            explode(patch, Bomb(value, periods=always))
            runs.append(fit(rule, "vectorised", epochs=4, candidates=LATE, rescue=1))
    one, other = runs
    assert seen_by_the_others(one, always) == seen_by_the_others(other, always)
    soups = [[each for each in run.contenders if each.kind == "soup"] for run in runs]
    assert repr(soups[0]) == repr(soups[1])
    assert [BOMB in soup.members for soup in soups[0]] == [False] * len(soups[0])
    assert soups[0]
    assert torch.equal(one.scores.exposed, other.scores.exposed)
    assert one.selected == other.selected


@pytest.mark.parametrize("engine", ["sequential", "workers", "vectorised"])
@pytest.mark.parametrize("rule", ["papa", "exchange"])
def test_every_engine_rescues_alike(engine: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(NAN))
    one, other = fit(rule, engine, precision="float64"), fit(rule, precision="float64")
    assert notes(one) == notes(other)
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-9, atol=1e-12)
    assert torch.equal(one.scores.exposed, other.scores.exposed)


def test_the_ledger_has_the_donor(monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(NAN, periods=(1,)))  # so its best snapshot comes after the copy
    result = fit("amto", transfer=IDLE)
    donor = notes(result)[0]["rescued"][0]["donor"]
    seen = torch.from_numpy(result.splits.train[BOMB] | result.splits.train[donor])
    shares = [float(seen[torch.from_numpy(held)].double().mean()) for held in result.splits.validation]
    torch.testing.assert_close(result.scores.exposed[BOMB], numbers(*shares))


def test_with_all_gone_each_goes_back_to_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(NAN, periods=(3,), tasks=(0, 1, 2, 3)))
    result = fit("amto", transfer=IDLE, scheduler=None)
    (event,) = notes(result)
    assert [one["donor"] for one in event["rescued"]] == [None] * 4
    assert not result.transfers.by_pair.any()
    assert result.transfers.rescues.tolist() == [1] * 4
    last = [one for one in result.history if one["event"] == "period"][-1]
    assert last["lr"] == [0.025] * 4
    assert all(math.isfinite(loss) for loss in last["loss"])


def test_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(NAN, periods=(1, 2, 3, 4, 5, 6)))
    result = fit("papa", epochs=7)
    assert [len(event["rescued"]) for event in notes(result)] == [1, 1, 0]  # and it is told once that it is aside
    assert result.transfers.rescues.tolist() == [0, 0, 0, 2]
    assert result.selected.task != BOMB
    card = model_card(result._finished())
    for event in notes(result):
        assert event["message"] in card


def test_with_all_gone_too_often_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(NAN, periods=(3, 4, 5), tasks=(0, 1, 2, 3)))
    with pytest.raises(
        RunError, match=r"all tasks diverged by period 4, after 1 rescues each; lower the learning rate"
    ):
        fit(out=tmp_path / "run", rescue=1)
    assert not (tmp_path / "run" / "result.json").exists()
    (last,) = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1:]
    tensors, values = files.read_tensors(last)
    assert values["run"]["period"] < 4
    assert all(bool(value.isfinite().all()) for name, value in tensors.items() if name.startswith("engine/params"))


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("rule", ["papa", "amto"])
def test_a_run_that_was_stopped_in_between_ends_alike(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode(monkeypatch, Bomb(NAN, periods=(1, 2, 3, 4)))
    monkeypatch.setattr("kinfold.result.write_report", lambda folder: (folder / "report.html").touch())
    whole = fit(rule, "vectorised", out=tmp_path / "whole", epochs=6)

    def stop(event: dict[str, Any]) -> None:
        if (event["event"], event.get("period")) == ("period", 3):
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(rule, "vectorised", out=tmp_path / "run", epochs=6, listen=stop)
    again = fit(rule, "vectorised", out=tmp_path / "run", epochs=6, resume=True)
    for name in ("scores", "transfers", "selected", "contenders"):
        one, other = (json.loads((tmp_path / at / "result.json").read_text())[name] for at in ("whole", "run"))
        assert one == other
    assert notes(again) == notes(whole)
    assert whole.transfers.rescues.tolist() == [0, 0, 0, 2]
    loaded = kinfold.load(tmp_path / "run")
    assert loaded.transfers.rescues.tolist() == [0, 0, 0, 2]


def test_none_is_looked_at_where_none_is_to_be_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(1e8))
    result = fit(rescue=0)
    assert notes(result) == []
    assert not result.transfers.rescues.any()


class Blank(nn.Sequential):
    """Its last layer begins at 0."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        for parameter in self[2].parameters():
            nn.init.zeros_(parameter)


def warming(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda period: (0.0, 0.01, 0.2, 0.5, 1.0)[min(period, 4)])


def growing() -> Any:
    """Values that grow with time, and rows in the order of time: what a task validates on is beyond all it has seen."""
    rng, times = np.random.default_rng(3), np.arange(160)
    x = np.stack([times / 160, rng.normal(size=160)], 1).astype(np.float32)
    y = np.exp(times / 40) * (1 + 0.1 * rng.normal(size=160)) / 20
    return dataclasses.replace(from_arrays(x, y), times=times)


ORDERED: dict[str, Any] = {
    "data": growing(),
    "splits": "ordered",
    "tasks": 4,
    "epochs": 4,
    "batch_size": 8,
    "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "holdout": 0.1,
    "seed": 4,
    "engine": "vectorised",
    "listen": lambda event: None,
    "model": {"name": "mlp", "hidden": [6]},
}
HEALTHY: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule, "epochs": 8 if rule == "distil" else 3} for rule in RULES},
    "lessons": {"rule": "teach", "transfer": "teach", "epochs": 10},
    "lessons between pulls": {"rule": "teach", "transfer": ["teach", {"name": "papa", "steps": 2}], "epochs": 5},
    "a head that begins at 0": {"rule": "papa", "model": Blank, "scheduler": warming, "epochs": 5},
    "a return to high rates": {
        "rule": "none",
        "scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
        "optimizer": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        "epochs": 6,
    },
    "large steps": {"rule": "amto", "optimizer": partial(torch.optim.Adam, lr=0.1), "epochs": 4},
    "values that grow": {"fit": ORDERED, "transfer": "none"},
    "values that grow, pulled": {"fit": ORDERED, "transfer": {"name": "papa", "steps": 2}},
    "values that grow, taught": {"fit": ORDERED, "transfer": "teach"},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_where_nothing_diverges_nothing_is_changed(case: str) -> None:
    """Not to a bit, and nobody is set aside."""
    given = dict(HEALTHY[case])
    whole = given.pop("fit", None)
    runs = []
    for k in (0, 2):
        if whole is None:
            runs.append(fit(given["rule"], "vectorised", rescue=k, **{n: v for n, v in given.items() if n != "rule"}))
        else:
            runs.append(kinfold.fit(**{**whole, **given, "rescue": k}))
    one, other = runs
    assert not notes(other)
    assert repr(seen_by_the_others(one, ())) == repr(seen_by_the_others(other, ()))
    for name in ("selected", "contenders", "scores", "transfers", "estimate"):
        assert repr(one.to_json()[name]) == repr(other.to_json()[name])
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_losses_within_what_they_were_are_never_an_explosion(data: Any) -> None:
    """Whatever training losses do, while the validation losses stay near their level; and the other way round."""
    losses = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3).map(lambda row: numbers(*row))
    health, calm = known(1, 1, 1), data.draw(st.booleans())
    for _ in range(6):
        wild, tame = data.draw(losses), data.draw(losses).clamp(-9, 9)
        assert not health.after_period(*((wild, tame) if calm else (tame, wild))).any()


@pytest.mark.parametrize("tasks", [1, 4])
def test_an_explosion_of_all_in_the_first_period_is_told(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, Bomb(1e8, periods=(1,), tasks=tuple(range(tasks))))
    result = fit("amto", transfer=IDLE, tasks=tasks, epochs=3)
    (event,) = notes(result)
    assert (event["period"], event["diverged"]) == (1, list(range(tasks)))
    first, second = [one for one in result.history if one["event"] == "period"][:2]
    assert all(loss is None or math.isnan(loss) for loss in first["loss"])
    assert all(loss < 20 for loss in second["loss"])


def test_tasks_whose_optimizers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one kind remembers is nothing to the other."""
    kinds = (partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.Adam, lr=0.01))
    for first in (0, 1):
        with monkeypatch.context() as patch:
            explode(patch, Bomb(NAN))
            result = fit("amto", transfer=IDLE, optimizer=[*[kinds[first]] * BOMB, kinds[1 - first]])
        assert notes(result)[0]["rescued"][0]["donor"] is not None
        assert max([one for one in result.history if one["event"] == "period"][-1]["loss"]) < 20


def test_what_is_rescued_is_left_so_by_the_same_points_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or exchange, to which it is the worst, would give it another's rate."""
    explode(monkeypatch, Bomb(NAN))
    eager = {"name": "exchange", "period": 1, "truncation": 0.25, "perturb": ["lr"], "factors": [3.0]}
    result = fit(transfer=eager, scheduler=None, epochs=3)
    *_, after = [one["lr"] for one in result.history if one["event"] == "period"]
    (event,) = notes(result)
    assert math.isclose(after[BOMB], event["rescued"][0]["lr"])
    moved = [one for one in result.history if one["event"] == "transfer" and one["period"] == 2]
    assert [one["rule"] for one in moved] == ["rescue"]


@pytest.mark.parametrize("value", [-1, True])
def test_what_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"rescue: is .*; give a whole number"):
        fit(rescue=value)


def test_a_count_of_numpys_is_one() -> None:
    check(fit_arguments("mlp", rows(), rescue=np.int64(1)))


def test_a_loss_that_diverges_by_itself() -> None:
    """No bomb: a deep linear network under a learning rate at which every task explodes."""

    def deep() -> nn.Module:
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 2))

    for tasks, rate in ((3, 64.0), (1, 1e9)):
        with pytest.raises(RunError, match="all tasks diverged"):
            fit(model=deep, tasks=tasks, optimizer=partial(torch.optim.SGD, lr=rate), rescue=1, scheduler=None)


def test_a_run_of_a_version_that_did_not_look_goes_on(tmp_path: Path) -> None:
    whole = fit("papa")

    def stop(event: dict[str, Any]) -> None:
        if (event["event"], event.get("period")) == ("period", 3):
            raise StoppedError

    with pytest.raises(StoppedError):
        fit("papa", out=tmp_path / "run", listen=stop)
    paths = [*(tmp_path / "run" / "checkpoints").glob("*.safetensors")]  # as many as there was time for
    assert paths
    for path in paths:
        tensors, values = files.read_tensors(path)
        before = {name: value for name, value in tensors.items() if not name.startswith("health/")}
        assert len(before) < len(tensors)
        files.write_tensors(path, before, values)
    config = files.read_yaml(tmp_path / "run" / "config.yaml")
    assert config.pop("rescue") == 2
    files.write_text(tmp_path / "run" / "config.yaml", yaml_text(config))
    again = fit("papa", out=tmp_path / "run", resume=True)
    assert torch.equal(again.scores.loss_matrix, whole.scores.loss_matrix)
    assert seen_by_the_others(again, ()) == seen_by_the_others(whole, ())
