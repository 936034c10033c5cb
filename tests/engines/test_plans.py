"""Plans as the engines carry them out: trials, moments, buffers, statistics, lessons, tuning, fresh starts."""

import copy
import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold import random
from kinfold.candidates import ExponentialAverage, StochasticAverage
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.methods.base import Context, Method, Params, State
from kinfold.tasks.order import Segment, row_orders
from kinfold.tasks.state import export_module
from kinfold.transfer import (
    MFEA,
    MFEA2,
    BinaryCross,
    Cross,
    Elastic,
    Exchange,
    Median,
    MergeMedian,
    Mix,
    Plan,
    Restart,
    Rule,
    Shuffle,
    ShuffleRule,
    Teach,
    Tune,
)

ENGINES = pytest.mark.parametrize("make", [Sequential, Vectorised])
NOBODY = torch.tensor([-1, -1, -1])


def onto(*donors: int) -> Mix:
    """Task t becomes a copy of `donors[t]`."""
    return Mix(torch.eye(len(donors), dtype=torch.float64)[list(donors)])


def crossed(source: list[int], rate: float = 0.5, unit: Any = "layer") -> Cross:
    rates = torch.full((len(source),), rate, dtype=torch.float64)
    return Cross(torch.tensor(source), rates, torch.arange(len(source)), unit)


def doubles(*rates: float) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64)


# Each leaves task 0 alone, but for the pull on the centre.
MIXING = {
    "binary": BinaryCross(torch.tensor([-1, 0, 1]), doubles(2.0, 2.0, 2.0), torch.arange(3)),
    "median": Median(torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)),
    "elastic": Elastic(doubles(0.0, 0.5, 0.25), doubles(0.25, 0.25, 0.25)),
    "shuffle": Shuffle(torch.tensor([False, True, True]), 0.5, 0.5, key=4),
}
MIXES = pytest.mark.parametrize("kind", MIXING)


def ready(lab: SimpleNamespace, make: Any, batch_norm: bool = False, **changes: Any) -> LocalEngine:
    """An engine after two periods, with moments in its optimizers."""
    job = lab.make_job(**{"model": lambda: lab.network(batch_norm), **changes})
    return lab.train(make, job, epochs=2).engine


def moments(engine: LocalEngine, t: int) -> dict[str, Tensor]:
    tensors, _ = engine.updater.state()
    found = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{t}/")}
    return {name: value.clone() for name, value in found.items()}


def params(engine: LocalEngine, t: int) -> dict[str, Tensor]:
    return {name: value[t].clone() for name, value in engine.stack.params.items()}


def score_of(engine: LocalEngine, t: int, rows: Tensor) -> tuple[float, float]:
    """(accuracy, loss) of task t's parameters as an ordinary module gives them."""
    with torch.no_grad():
        outputs = export_module(engine.stack, t)(engine.inputs.values[rows])
    right = outputs.argmax(1) == engine.targets[rows]
    return float(right.double().mean()), float(nn.functional.cross_entropy(outputs, engine.targets[rows]))


@ENGINES
@pytest.mark.parametrize("by", ["metric", "loss"])
def test_a_trial_keeps_what_is_strictly_better(lab: SimpleNamespace, make: Any, by: str) -> None:
    engine = ready(lab, make, better=by)
    engine.stack.params["2.weight"][1] *= -1  # task 1 is spoilt, and worse than the others on any rows
    engine.seen.forget([1])
    rows, donors = engine.job.validation, (1, 2, 2)
    own = [score_of(engine, t, rows[t]) for t in range(3)]
    offered = [score_of(engine, donor, rows[t]) for t, donor in enumerate(donors)]
    before = [params(engine, t) for t in range(3)]
    outcome = engine.apply(Plan((onto(*donors),), trial=rows), period=2)

    assert outcome.accepted.tolist() == [False, True, False]
    for t in (0, 1):
        lab.assert_close(tuple(outcome.before[t].tolist()), own[t])
        lab.assert_close(tuple(outcome.after[t].tolist()), offered[t])
    assert bool(outcome.before[2].isnan().all())  # nothing was proposed to task 2
    assert bool(outcome.after[2].isnan().all())
    lab.assert_close(params(engine, 0), before[0])
    assert all(torch.equal(value, before[2][name]) for name, value in params(engine, 1).items())


@ENGINES
def test_equal_is_not_better(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make)
    engine.apply(Plan((onto(0, 0, 2),)), period=2)
    outcome = engine.apply(Plan((onto(1, 0, 2),), trial=engine.job.validation[[0, 0, 0]]), period=2)
    assert not bool(outcome.accepted.any())
    assert torch.equal(outcome.before[0], outcome.after[0])


@ENGINES
def test_without_a_trial_all_is_taken(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make)
    before = [params(engine, t) for t in range(3)]
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    outcome = engine.apply(Plan((Mix(weights),)), period=2)
    assert outcome.accepted.tolist() == [False, True, True]
    for name, value in params(engine, 2).items():
        expected = 0.5 * before[0][name] + 0.25 * before[1][name] + 0.25 * before[2][name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)


@ENGINES
@pytest.mark.parametrize("carry", ["follow", "keep", "reset"])
def test_moments(lab: SimpleNamespace, make: Any, carry: Any) -> None:
    engine = ready(lab, make)
    old = [moments(engine, t) for t in range(3)]
    assert old[0].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0, 0, 1.0]], dtype=torch.float64)
    engine.apply(Plan((Mix(weights), crossed([-1, -1, 1])), moments=carry), period=2)
    lab.assert_close(moments(engine, 0), old[0])
    if carry == "reset":
        assert moments(engine, 1) == moments(engine, 2) == {}
        return
    lab.assert_close(moments(engine, 1), _blend(old, 0.25) if carry == "follow" else old[1])
    if carry == "keep":
        lab.assert_close(moments(engine, 2), old[2])
        return
    from_donor = {name for name, value in moments(engine, 2).items() if torch.equal(value, old[1][name])}
    # Donors are read as they were: task 1 is a recipient of the same plan, and its old moments are what goes on.
    assert from_donor in ({"0.weight", "0.bias"}, {"2.weight", "2.bias"})
    kept = {name for name, value in moments(engine, 2).items() if torch.equal(value, old[2][name])}
    assert kept == old[2].keys() - from_donor


def _blend(old: list[dict[str, Tensor]], share: float) -> dict[str, Tensor]:
    return {name: share * old[0][name] + (1 - share) * old[1][name] for name in old[0]}


@ENGINES
def test_moments_go_with_their_parameters(lab: SimpleNamespace, make: Any) -> None:
    for unit in ("layer", "parameter"):
        engine = ready(lab, make)
        own, donor = params(engine, 0), params(engine, 1)
        own_moments, donor_moments = moments(engine, 0), moments(engine, 1)
        engine.apply(Plan((crossed([1, -1, -1], 0.5, unit),)), period=2)
        taken = {name: params(engine, 0)[name] == donor[name] for name in own}
        assert any(bool(mask.any()) for mask in taken.values())
        assert not all(bool(mask.all()) for mask in taken.values())
        for name, mask in taken.items():
            assert torch.equal(params(engine, 0)[name], torch.where(mask, donor[name], own[name]))
            assert torch.equal(moments(engine, 0)[name], torch.where(mask, donor_moments[name], own_moments[name]))


@ENGINES
def test_a_refused_candidate_takes_no_state_along(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make, batch_norm=True)
    engine.stack.params["3.weight"][1] *= -1
    before = copy.deepcopy(engine.state())
    for carry in ("follow", "reset"):
        plan = Plan((onto(1, 1, 2),), trial=engine.job.validation, moments=carry, buffers=carry)
        assert not bool(engine.apply(plan, period=2).accepted.any())
        lab.assert_close(engine.state()[0], before[0])


@ENGINES
@pytest.mark.parametrize("carry", ["follow", "keep", "reset"])
def test_buffers_of_a_copy(lab: SimpleNamespace, make: Any, carry: Any) -> None:
    engine = ready(lab, make, batch_norm=True, sizes=(44, 21, 44))
    old = {name: value.clone() for name, value in engine.stack.buffers.items()}
    assert old["1.num_batches_tracked"].tolist() == [8, 4, 8]
    engine.apply(Plan((onto(1, 1, 2),), buffers=carry), period=2)
    fresh = {"running_mean": torch.zeros(6).double(), "running_var": torch.ones(6).double()}
    for name, value in engine.stack.buffers.items():
        expected = {"follow": old[name][1], "keep": old[name][0], "reset": fresh.get(name[2:], torch.tensor(0))}[carry]
        assert torch.equal(value[0], expected), name
        assert torch.equal(value[1:], old[name][1:])


@ENGINES
@pytest.mark.parametrize("change", [onto(0, 0, 0), "blend", "cross", *MIXING])
def test_statistics_of_a_mixture_are_measured_anew(lab: SimpleNamespace, make: Any, change: Any) -> None:
    engine = ready(lab, make, batch_norm=True)
    if change == "blend":
        change = Mix(torch.tensor([[1.0, 0, 0], [0.4, 0.6, 0], [0, 0.5, 0.5]], dtype=torch.float64))
    elif change == "cross":
        change = crossed([-1, 0, 1])
    elif isinstance(change, str):
        change = MIXING[change]
    old = {name: value.clone() for name, value in engine.stack.buffers.items()}
    engine.apply(Plan((change,)), period=2)
    assert torch.equal(engine.stack.buffers["1.running_mean"][0], old["1.running_mean"][0])
    for t in (1, 2):
        if isinstance(change, Mix) and int((change.weights[t] != 0).sum()) == 1:  # a copy's follow the donor
            assert torch.equal(engine.stack.buffers["1.running_mean"][t], old["1.running_mean"][0])
            continue
        model = export_module(engine.stack, t).train()
        model[1].reset_running_stats()
        model[1].momentum = None  # the plain mean over batches
        rows = row_orders(engine.job.seed, 2, engine.job.train)[t]
        with torch.no_grad():
            for batch in torch.split(rows[: len(rows) // 10 * 10], 10):
                model(engine.inputs.values[batch])
        for name in ("running_mean", "running_var"):
            expected = getattr(model[1], name)
            torch.testing.assert_close(engine.stack.buffers[f"1.{name}"][t], expected, rtol=1e-9, atol=1e-12)
    assert engine.stack.module[1].momentum == 0.1


@ENGINES
def test_a_diverged_donor_is_never_accepted_and_does_not_spread(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make, batch_norm=True)
    for value in engine.stack.params.values():
        value[0] = torch.nan
    before = [params(engine, t) for t in range(3)]
    blend = Mix(torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]], dtype=torch.float64))
    for change in (onto(0, 0, 0), blend, crossed([-1, 0, 0], 1.0), crossed([-1, 0, 0], 1.0, "parameter")):
        assert not bool(engine.apply(Plan((change,), trial=engine.job.validation), period=2).accepted.any())
        for t in (1, 2):
            assert all(torch.equal(value, before[t][name]) for name, value in params(engine, t).items())
    # Untried, and with no weight on it: 0 · NaN must not be computed. The diverged task may take what is sound.
    weights = torch.tensor([[0, 1.0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], dtype=torch.float64)
    outcome = engine.apply(Plan((Mix(weights),), trial=engine.job.validation), period=2)
    assert bool(outcome.accepted[0])
    assert all(bool(value.isfinite().all()) for value in params(engine, 0).values())
    assert bool(engine.apply(Plan((Mix(weights),)), period=2).accepted.all())
    assert all(bool(value.isfinite().all()) for value in engine.stack.params.values())


@ENGINES
def test_tune(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make)
    others = engine.options()["lr"].tolist()[0]
    nan = float("nan")
    rates = torch.tensor([nan, 0.01, nan], dtype=torch.float64)
    engine.apply(Plan((Tune({"lr": rates, "momentum": torch.tensor([nan, nan, 0.0])}),)), period=2)
    assert engine.options()["lr"].tolist() == pytest.approx([others, 0.01, others], rel=1e-12)
    velocities = [moments(engine, t) for t in range(3)]
    engine.train(Segment(3, first=0, last=1))
    lab.assert_close(moments(engine, 2), velocities[2])  # without momentum, SGD leaves it lying
    assert not torch.equal(moments(engine, 1)["0.bias"], velocities[1]["0.bias"])
    engine.end_period(torch.zeros(3, 2, dtype=torch.float64))
    now = engine.options()["lr"].tolist()
    assert now[1] / now[0] == pytest.approx(0.01 / others)  # the schedule goes on from the tuned value


class Anchored(Method):
    """Holds the start, and counts the steps since."""

    def start(self, params: Params, context: Context) -> State:
        return {"steps": torch.zeros((), dtype=torch.int64)} | {name: value.clone() for name, value in params.items()}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, state | {"steps": state["steps"] + 1}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[name] + 0.5 * (value - state[name]) for name, value in params.items()}


@ENGINES
def test_restart(lab: SimpleNamespace, make: Any) -> None:
    engine = ready(lab, make, batch_norm=True, methods=(Anchored(),))
    before = [params(engine, t) for t in range(3)]
    engine.apply(Plan((Restart(torch.tensor([False, True, False]), key=5),)), period=2)
    with random.seeded(torch.device("cpu"), engine.job.seed, "start", 1, 5):
        fresh = lab.network(True).double()
    lab.assert_close(params(engine, 1), {name: value.detach() for name, value in fresh.named_parameters()})
    assert moments(engine, 1) == {}
    assert engine.stack.buffers["1.num_batches_tracked"].tolist() == [8, 0, 8]
    for t in (0, 2):
        lab.assert_close(params(engine, t), before[t])
        assert moments(engine, t)
    (state,) = engine.states  # the methods begin anew as well, or they would hold the task to what it left
    assert state["steps"].tolist() == [8, 0, 8]
    assert torch.equal(state["0.weight"][1], engine.stack.params["0.weight"][1])


@ENGINES
def test_a_trial_scores_what_would_be_scored_after_it(lab: SimpleNamespace, make: Any) -> None:
    """With a method that scores other parameters than it trains, a candidate is judged by those as well."""
    engine = ready(lab, make, methods=(Anchored(),))
    everywhere = torch.ones_like(engine.job.validation)
    rows = [mask.nonzero().flatten() for mask in everywhere]
    everyone = list(range(engine.job.tasks))
    own = engine._scores(engine._evaluated(), rows, everyone)
    outcome = engine.apply(Plan((onto(1, 1, 1),), trial=everywhere), period=2)
    lab.assert_close(outcome.before[0], own[0])
    lab.assert_close(outcome.after[0], own[1])
    for t in outcome.accepted.nonzero().flatten().tolist():
        lab.assert_close(engine._scores(engine._evaluated(), rows, everyone)[t], own[1])


class Stamped(Method):
    """Exports what it knew of the period of the snapshot."""

    def start(self, params: Params, context: Context) -> State:
        return {"period": torch.zeros((), dtype=torch.float64)}

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return params, {"period": state["period"] + 1}

    def export(self, params: Params, state: State) -> Params:
        return {name: torch.zeros_like(value) + state["period"] for name, value in params.items()}


@ENGINES
def test_export_takes_the_state_of_the_snapshot(lab: SimpleNamespace, make: Any) -> None:
    engine = make(lab.make_job(methods=(Stamped(),)))
    scores = torch.zeros(3, 2, dtype=torch.float64)
    for improved in ([True, True, True], [False, True, False], [False, False, True]):
        engine.snapshot(torch.tensor(improved))
        engine.end_period(scores)
    assert [float(engine.export(t)[0].bias.detach()[0]) for t in range(3)] == [0.0, 1.0, 2.0]


@ENGINES
def test_a_lesson(lab: SimpleNamespace, make: Any) -> None:
    """One step under a lesson is the step of its formula, unlabelled rows by their soft targets alone."""
    job = lab.make_job(optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=None)
    engine = make(job)
    T, n, tau = 3, lab.N, 2.0
    logits = torch.randn(T, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    unlabelled = job.validation & torch.tensor([True, True, False])[:, None]
    lesson = Teach(torch.softmax(logits, -1), weight, ~torch.eye(T, dtype=torch.bool), unlabelled, tau)
    starts = [export_module(engine.stack, t).train() for t in range(T)]
    outcome = engine.apply(Plan((lesson,)), period=1)
    assert not bool(outcome.accepted.any())
    engine.train(Segment(1, first=0, last=1))
    orders = row_orders(job.seed, 1, job.train, unlabelled)
    assert bool(unlabelled[0, orders[0][:10]].any())
    for t, model in enumerate(starts):
        rows = orders[t][: job.batch_size]
        outputs, labelled = model(job.inputs.values.double()[rows]), (~unlabelled[t, rows]).double()
        hard = (nn.functional.cross_entropy(outputs, job.targets[rows], reduction="none") * labelled).mean()
        soft = tau**2 * nn.functional.cross_entropy(outputs / tau, lesson.targets[t, rows])
        ((1 - weight[t]) * hard + weight[t] * soft).backward()
        for name, value in model.named_parameters():
            expected = value.detach() - 0.1 * value.grad
            torch.testing.assert_close(engine.stack.params[name][t], expected, rtol=1e-9, atol=1e-12)


@ENGINES
@pytest.mark.parametrize("sizes", [None, (44, 7, 23)])
def test_a_period_in_segments_is_the_period(lab: SimpleNamespace, make: Any, sizes: Any) -> None:
    job = lab.make_job(sizes=sizes, accumulate=3)
    whole, parts = make(job), make(job)
    whole.train(Segment(1))
    for first, last in ((0, 1), (1, 3), (3, None)):
        parts.train(Segment(1, first, last))
    for name, value in whole.stack.params.items():
        assert torch.equal(value, parts.stack.params[name])
    assert whole.visits() == parts.visits()


def test_visits_are_rows_trained_on(lab: SimpleNamespace) -> None:
    job = dataclasses.replace(lab.make_job(sizes=(44, 7, 23)))
    for make in (Sequential, Vectorised):
        assert lab.train(make, job, epochs=2).engine.visits() == 2 * (40 + 7 + 20)


def expected_of(kind: str, name: str, old: Tensor) -> Tensor:
    """What the plan's change makes of one stacked tensor, by formulas on plain numbers."""
    after = old.clone()
    if kind == "median":
        after[1], after[2] = old.median(0).values, (old[0] + old[1]) / 2
    elif kind == "elastic":
        for t, rate in ((1, 0.5), (2, 0.25)):
            after[t] = old[t] - rate * (old[t] - old.mean(0))
    elif kind == "binary":
        for t in (1, 2):
            key = random.fold_in(torch.tensor(t), random.seed_of(name))
            u = random.uniform(key, old.shape[1:], torch.float64)
            beta = torch.where(u <= 0.5, 2 * u, 1 / (2 - 2 * u)) ** (1 / 3)
            after[t] = ((1 + beta) * old[t] + (1 - beta) * old[t - 1]) / 2
    return after


@ENGINES
@MIXES
def test_mixtures_of_the_engines(lab: SimpleNamespace, make: Any, kind: str) -> None:
    engine = ready(lab, make)
    old = {name: value.clone() for name, value in engine.stack.params.items()}
    outcome = engine.apply(Plan((MIXING[kind],)), period=2)
    assert outcome.accepted.tolist() == [False, True, True]
    for name, value in engine.stack.params.items():
        if kind == "shuffle":
            assert torch.equal(value[0], old[name][0])
            assert torch.equal(value[1:].sort(0).values, old[name][1:].sort(0).values)
        else:
            torch.testing.assert_close(value, expected_of(kind, name, old[name]), rtol=1e-12, atol=1e-14)
    assert not torch.equal(engine.stack.params["0.weight"][1:], old["0.weight"][1:])


@ENGINES
@MIXES
@pytest.mark.parametrize("carry", ["follow", "keep", "reset"])
def test_moments_of_mixtures(lab: SimpleNamespace, make: Any, kind: str, carry: Any) -> None:
    engine = ready(lab, make)
    old, before = [moments(engine, t) for t in range(3)], [params(engine, t) for t in range(3)]
    engine.apply(Plan((MIXING[kind],), moments=carry), period=2)
    lab.assert_close(moments(engine, 0), old[0])
    if carry == "reset":
        assert moments(engine, 1) == moments(engine, 2) == {}
        return
    for t in (1, 2):
        for name, value in moments(engine, t).items():
            if carry == "keep" or kind == "elastic":  # the centre has no moments to pull towards
                assert torch.equal(value, old[t][name])
            elif kind == "shuffle":  # where a number came from the other task, so did its moment
                swapped = params(engine, t)[name] == before[3 - t][name]
                assert name != "0.weight" or 0 < int(swapped.sum()) < swapped.numel()
                assert torch.equal(value, torch.where(swapped, old[3 - t][name], old[t][name]))
            else:
                stacked = torch.stack([row[name] for row in old])
                torch.testing.assert_close(value, expected_of(kind, name, stacked)[t], rtol=1e-12, atol=1e-14)


@ENGINES
@MIXES
def test_buffers_that_stay_are_not_measured_anew(lab: SimpleNamespace, make: Any, kind: str) -> None:
    engine = ready(lab, make, batch_norm=True)
    old = {name: value.clone() for name, value in engine.stack.buffers.items()}
    engine.apply(Plan((MIXING[kind],), buffers="keep"), period=2)
    assert all(torch.equal(value, old[name]) for name, value in engine.stack.buffers.items())


@ENGINES
@MIXES
def test_a_refused_mixture_leaves_the_tasks_as_they_were(lab: SimpleNamespace, make: Any, kind: str) -> None:
    engine = ready(lab, make, batch_norm=True)
    for value in engine.stack.params.values():
        value[0] = torch.nan  # every mixture with task 0 is
    before = copy.deepcopy(engine.state())
    change = {
        "binary": BinaryCross(torch.tensor([-1, 0, 0]), doubles(2.0, 2.0, 2.0), torch.arange(3)),
        "median": Median(torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)),
        "elastic": MIXING["elastic"],
        "shuffle": Shuffle(torch.ones(3, dtype=torch.bool), 1.0, 1.0, key=4),
    }[kind]
    assert not bool(engine.apply(Plan((change,), trial=engine.job.validation), period=2).accepted[1:].any())
    after = engine.state()[0]
    assert before[0].keys() <= after.keys()
    lab.assert_close({name: value for name, value in after.items() if name in before[0]}, before[0])


@ENGINES
def test_the_centre_survives_a_checkpoint(lab: SimpleNamespace, make: Any) -> None:
    pull = Plan((MIXING["elastic"],))
    whole = ready(lab, make)
    whole.apply(pull, period=2)
    assert whole.centre.keys() == whole.stack.params.keys()
    parts = make(whole.job)
    parts.restore(*copy.deepcopy(whole.state()))
    lab.assert_close(parts.centre, whole.centre)
    forgetful = make(whole.job)
    tensors, values = copy.deepcopy(whole.state())
    forgetful.restore({name: value for name, value in tensors.items() if not name.startswith("centre/")}, values)
    assert forgetful.centre == {}
    for engine in (whole, parts, forgetful):
        engine.train(Segment(3))
        engine.apply(pull, period=3)
    lab.assert_close(parts.state()[0], whole.state()[0])
    assert not torch.equal(forgetful.stack.params["0.weight"], whole.stack.params["0.weight"])


@ENGINES
def test_the_centre_by_hand_over_two_pulls(lab: SimpleNamespace, make: Any) -> None:
    engine, pull = ready(lab, make), Plan((MIXING["elastic"],))
    theta = engine.stack.params["2.bias"].clone()
    centre = theta.mean(0)
    for _ in range(2):
        engine.apply(pull, period=2)
        apart = theta - centre
        theta = theta - torch.tensor([[0.0], [0.5], [0.25]], dtype=torch.float64) * apart
        centre = centre + 0.25 * apart.sum(0)
        torch.testing.assert_close(engine.stack.params["2.bias"], theta, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(engine.centre["2.bias"], centre, rtol=1e-12, atol=1e-14)


ACTING: dict[str, Rule] = {  # set so that they act in a run of four short periods
    "exchange": Exchange(truncation=0.5, perturb=("lr", "weight_decay"), period=1),
    "shuffle": ShuffleRule(p=0.5, steps=3, moments="follow"),
    "shuffle at the ends": ShuffleRule(p=0.2, p_last=0.4, steps=None),
    "merge-median": MergeMedian(period=1, trial=False),
    "merge-median, tried": MergeMedian(period=1),
    "mfea": MFEA(rmp=1.0),
    "mfea, uniform": MFEA(rmp=1.0, form="uniform"),
    "mfea-2": MFEA2(min_rows=1),
    "mfea-2, directed": MFEA2(directed=True, min_rows=1),
}


@pytest.mark.parametrize("name", ACTING)
def test_engines_agree_while_a_rule_acts(lab: SimpleNamespace, name: str) -> None:
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    job = lab.make_job(tasks=4, model=partial(lab.network, True), optimizer=optimizer, sizes=(44, 36, 25, 44))
    one = lab.train(Sequential, job, ACTING[name])
    for other in (Vectorised, partial(Workers, processes=2)):
        lab.assert_agree(one, lab.train(other, job, ACTING[name]))
    assert one.progress.proposed > 0
    moved = [move for event in one.events for move in event.get("transfers", ())]
    assert {move["form"] for move in moved} <= {"copy", "shuffle", "median", "crossover-binary", "crossover-parameter"}
    if name == "exchange":
        assert len(set(one.engine.options()["lr"].tolist())) > 1


@ENGINES
def test_on_a_return_to_the_best_counts_go_on(lab: SimpleNamespace, make: Any) -> None:
    """An average begins anew from the snapshot; which period it is does not."""
    watching = StochasticAverage(last=0.5).tracker(4)
    engine = ready(lab, make, methods=(watching, ExponentialAverage().tracker(4)))
    swa, ema = engine.method_states()
    assert swa["period"].tolist() == [2.0] * 3
    steps = ema["count"].clone()
    assert steps.min() > 0
    ema["count"][1] = torch.nan
    tasks = torch.tensor([True, True, False])
    before = {name: value.clone() for name, value in swa.items()}
    engine.apply(Plan((Restart(tasks, best=True),), moments="reset"), 2)
    swa, ema = engine.method_states()
    assert swa["period"].tolist() == [2.0] * 3
    assert ema["count"].tolist() == [float(steps[0]), 0.0, float(steps[2])]
    for name, value in swa.items():
        if "/" in name:
            torch.testing.assert_close(value[:2], engine.best.params[name.partition("/")[2]][:2])
            assert torch.equal(value[2], before[name][2])
    engine.apply(Plan((Restart(tasks),)), 2)
    assert engine.method_states()[0]["period"].tolist() == [0.0, 0.0, 2.0]
