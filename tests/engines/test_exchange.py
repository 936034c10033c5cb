"""A plan carried out among shares ends as it does with all tasks in one engine, and moves no more than it must."""

import copy
import dataclasses
import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinfold.engines import Engine, Job
from kinfold.engines.exchange import Codec, Handle, InProcess, carry_out
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import joined_states, start_share, state_of_tasks
from kinfold.engines.vectorised import Vectorised
from kinfold.methods.base import Context, Method, Params, State
from kinfold.tasks.order import Segment
from kinfold.transfer import (
    AMTO,
    RULES,
    BinaryCross,
    Cross,
    Elastic,
    Median,
    Mix,
    Plan,
    Restart,
    Rule,
    Shuffle,
    Teach,
    Tune,
)

TASKS = 6
SHARES = [[slice(0, 3), slice(3, 6)], [slice(0, 1), slice(1, 3), slice(3, 6)]]


class Averaging(Method):
    """Scores a running mean of the parameters, and counts its steps."""

    def start(self, params: Params, context: Context) -> State:
        averages = {f"mean/{name}": value.clone() for name, value in params.items()}
        return {**averages, "steps": torch.zeros((), dtype=torch.int64)}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        means = {f"mean/{name}": 0.5 * state[f"mean/{name}"] + 0.5 * value for name, value in params.items()}
        return params, {**means, "steps": state["steps"] + 1}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"mean/{name}"] for name in params}


class Among:
    """Shares of a job in one process."""

    def __init__(self, job: Job, shares: list[slice], kind: type[LocalEngine] = Sequential):
        self.shares, self.engines = shares, [start_share(kind, job, tasks) for tasks in shares]
        self.transport = InProcess(self.engines)

    def state(self) -> Any:
        return joined_states([engine.state() for engine in self.engines], self.shares)

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        for engine, tasks in zip(self.engines, self.shares, strict=True):
            engine.restore(*state_of_tasks(tensors, copy.deepcopy(values), tasks))


def plain(state: Any) -> Any:
    """A state without what engines may differ in: the form of the optimizer's step, and whether one was recorded."""
    tensors, values = copy.deepcopy(state)
    for own in values["optimizers"]:
        del own["fused"]
    del values["recordable"]
    return tensors, values


class Pair:
    """One engine of all tasks and shares of them, at the same point after two periods."""

    def __init__(self, lab: SimpleNamespace, shares: list[slice], kind: type[LocalEngine], **changes: Any):
        self.lab = lab
        sizes = (44, 30, 44, 21, 44, 40)[: shares[-1].stop]
        job = lab.make_job(**{"tasks": shares[-1].stop, "sizes": sizes, **changes})
        self.whole, self.among = kind(job), Among(job, shares, kind)
        for period in (1, 2):
            self.train(period)
        self.state = copy.deepcopy(self.whole.state())  # which lies in memory that changes
        self.agree()

    def train(self, period: int) -> None:
        for engine in (self.whole, *self.among.engines):
            engine.train(Segment(period))
            scores = engine.score()
            engine.snapshot(torch.ones(len(scores), dtype=torch.bool))
            engine.end_period(scores)

    def reset(self, spoilt: tuple[int, ...] = ()) -> None:
        """Goes back to where they were, but for tasks that are to diverge."""
        tensors, values = copy.deepcopy(self.state)
        for name, value in tensors.items():
            if name.startswith("params/") and spoilt:
                value[list(spoilt)] = torch.nan
        self.whole.restore(tensors, copy.deepcopy(values))
        self.among.restore(tensors, values)
        self.among.transport.traffic()

    def agree(self) -> None:
        self.lab.assert_close(plain(self.among.state()), plain(self.whole.state()), "state")

    def carry_out(self, plan: Plan) -> Any:
        expected = self.whole.apply(plan, period=2)
        outcome = carry_out(plan, 2, self.among.shares, self.among.transport)
        self.lab.assert_close(dataclasses.asdict(outcome), dataclasses.asdict(expected), "outcome")
        self.agree()
        return outcome


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def mix(*rows: tuple[float, ...]) -> Mix:
    return Mix(torch.tensor(rows, dtype=torch.float64))


def onto(*donors: int) -> Mix:
    return Mix(torch.eye(len(donors), dtype=torch.float64)[list(donors)])


def towards_mean(share: float = 1.0, tasks: int = TASKS, who: tuple[int, ...] = tuple(range(TASKS))) -> Mix:
    weights = torch.eye(tasks, dtype=torch.float64)
    for t in who:
        weights[t] *= 1 - share
        weights[t, list(who)] += share / len(who)
    return Mix(weights)


def cross(unit: Any, rate: float = 0.5) -> Cross:
    return Cross(torch.tensor([3, -1, 0, 4, 3, 0]), torch.full((TASKS,), rate).double(), torch.arange(TASKS), unit)


MEMBERS = torch.ones(TASKS, TASKS, dtype=torch.bool)
SOME = torch.tensor(
    [[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0], [1] * 6]
).bool()
RATES = doubles(0.0, 0.5, 0.25, 0.1, 0.0, 0.3)
CHANGES = {
    "copies": onto(0, 4, 4, 0, 4, 2),
    "blends": mix(
        (0.5, 0, 0, 0, 0.5, 0),
        (0, 1, 0, 0, 0, 0),
        (0.25, 0, 0.25, 0.25, 0, 0.25),
        (0.5, 0.3, 0, 0.2, 0, 0),
        (0, 0, 0, 0, 1, 0),
        (0, 0, 0, 1.25, 0.25, -0.5),
    ),
    "mean": towards_mean(),
    "mean-of-some": towards_mean(0.25, who=(0, 2, 3, 5)),
    "others-mean": Mix((1 - torch.eye(TASKS, dtype=torch.float64)) / (TASKS - 1)),
    "one-share's-mean": mix(*[(0, 0, 0, 0.25, 0.25, 0.5)] * TASKS),
    "cross-layer": cross("layer"),
    "cross-parameter": cross("parameter"),
    "binary": BinaryCross(torch.tensor([3, -1, 0, 4, 3, 0]), torch.full((TASKS,), 2.0).double(), torch.arange(TASKS)),
    "median": Median(MEMBERS),
    "medians": Median(SOME),
    "elastic": Elastic(RATES, RATES / 2),
    "elastic-nobody": Elastic(RATES, torch.zeros(TASKS, dtype=torch.float64)),
    "shuffle": Shuffle(torch.tensor([True, True, False, True, True, True]), 0.6, 0.2, key=4),
    "restart": Restart(torch.tensor([False, True, False, False, True, False]), key=1),
}
KINDS = pytest.mark.parametrize("kind", [Sequential, Vectorised])
SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "adam": {"optimizer": partial(torch.optim.Adam, lr=0.01)},
    "averaging": {"methods": (Averaging(),)},
}


@pytest.fixture(scope="module")
def pairs() -> dict[Any, Pair]:
    """Trained once, and put back where they were before each use."""
    return {}


def pair_of(pairs: dict[Any, Pair], lab: SimpleNamespace, shares: int, kind: Any, setting: str) -> Pair:
    key = shares, kind, setting
    if key not in pairs:
        changes = {"model": partial(lab.network, True), **SETTINGS[setting]}
        pairs[key] = Pair(lab, SHARES[shares], kind, **changes)
    pairs[key].reset()
    return pairs[key]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change(lab: SimpleNamespace, pairs: dict[Any, Pair], change: str) -> None:
    pair = pair_of(pairs, lab, 0, Vectorised, "adam")
    pair.carry_out(Plan((CHANGES[change],)))
    pair = pair_of(pairs, lab, 1, Sequential, "averaging")
    pair.carry_out(Plan((CHANGES[change],), trial=pair.whole.job.validation))


@pytest.mark.parametrize("moments", ["follow", "keep", "reset"])
@pytest.mark.parametrize("buffers", ["follow", "keep", "reset"])
def test_what_goes_with_parameters(lab: SimpleNamespace, pairs: dict[Any, Pair], moments: Any, buffers: Any) -> None:
    pair = pair_of(pairs, lab, 1, Sequential, "averaging")
    changes = (CHANGES["cross-layer"], CHANGES["mean-of-some"], CHANGES["shuffle"])
    pair.carry_out(Plan(changes, trial=pair.whole.job.validation, moments=moments, buffers=buffers))


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_goes_on_as_one_engine(lab: SimpleNamespace, pairs: dict[Any, Pair], setting: str) -> None:
    """Also where some tasks' optimizers have forgotten everything, and those of others have not."""
    pair = pair_of(pairs, lab, 1, Vectorised, setting)
    pair.carry_out(Plan((CHANGES["restart"],)))
    pair.carry_out(Plan((CHANGES["blends"],)))
    pair.carry_out(Plan((CHANGES["elastic"], CHANGES["elastic"]), moments="keep", buffers="keep"))
    pair.carry_out(Plan((CHANGES["elastic"], onto(0, 4, 4, 0, 4, 2))))
    pair.train(3)
    pair.agree()
    lesson = Teach(
        torch.full((TASKS, lab.N, 3), 1 / 3, dtype=torch.float64),
        torch.linspace(0, 1, TASKS, dtype=torch.float64),
        MEMBERS,
        pair.whole.job.validation,
        temperature=2.0,
    )
    pair.carry_out(
        Plan((lesson, Tune({"lr": doubles(0.1, torch.nan, 0.2, 0.3, torch.nan, 0.4)}), onto(1, 1, 2, 3, 4, 0)))
    )
    pair.train(4)
    pair.agree()


def test_optimizers_that_are_in_step_stay_in_one(lab: SimpleNamespace) -> None:
    pair = Pair(lab, SHARES[0], Vectorised, sizes=None, **SETTINGS["adam"])
    pair.carry_out(Plan((onto(0, 4, 4, 0, 4, 2),)))
    assert all(engine.updater.fused for engine in pair.among.engines)
    pair.carry_out(Plan((Restart(torch.arange(TASKS) == 0),)))
    assert [engine.updater.fused for engine in pair.among.engines] == [False, True]
    pair.train(3)
    pair.carry_out(Plan((onto(0, 1, 2, 0, 4, 5),)))  # which has taken fewer steps than the tasks beside it
    assert not pair.among.engines[1].updater.fused


def plan_of(draw: Any) -> Plan:
    """Draws a plan of up to three changes, whose mixtures have rows of every kind."""
    task, share = st.integers(0, TASKS - 1), st.sampled_from([0.0, 0.3, 0.7, 1.0])
    some = st.sets(task, min_size=2)
    group = sorted(draw(some))

    def row(t: int) -> list[float]:
        kind = draw(st.sampled_from(["own", "copy", "group", "others", "any"]))
        weights = torch.zeros(TASKS, dtype=torch.float64)
        if kind == "own":
            weights[t] = 1
        elif kind == "copy":
            weights[draw(task)] = 1
        elif kind == "any":
            for s in draw(some):
                weights[s] = draw(st.integers(1, 4))
            weights /= weights.sum()
        else:
            members = [s for s in group if s != t] if kind == "others" else group
            weights[members] = 1 / len(members)
            kept = draw(share)
            weights *= 1 - kept
            weights[t] += kept
        return weights.tolist()

    def source() -> Tensor:
        return torch.tensor([s if s != t else -1 for t, s in enumerate(draw(st.lists(task, min_size=6, max_size=6)))])

    rates, keys = torch.full((TASKS,), 0.4, dtype=torch.float64), torch.arange(TASKS) + draw(task)
    makers = {
        "mix": lambda: mix(*[row(t) for t in range(TASKS)]),
        "cross": lambda: Cross(source(), rates, keys, draw(st.sampled_from(["layer", "parameter"]))),
        "binary": lambda: BinaryCross(source(), rates + 2, keys),
        "median": lambda: Median(torch.tensor([[draw(st.booleans()) or s == t for s in range(6)] for t in range(6)])),
        "elastic": lambda: Elastic(*(doubles(*[draw(share) for _ in range(6)]) / 2 for _ in range(2))),
        "shuffle": lambda: Shuffle(torch.tensor([draw(st.booleans()) for _ in range(6)]), 0.5, 0.1, draw(task)),
        "restart": lambda: Restart(torch.tensor([draw(st.booleans()) for _ in range(6)]), draw(task)),
    }
    # Mixtures are what most can go wrong with.
    kinds = draw(st.lists(st.sampled_from(["mix", "mix", *makers]), min_size=1, max_size=3))
    trial = torch.zeros(TASKS, 64, dtype=torch.bool)
    trial[:, 10:40] = True
    carry = st.sampled_from(["follow", "keep", "reset"])
    return Plan(
        tuple(makers[kind]() for kind in kinds),
        trial=trial if draw(st.booleans()) else None,
        moments=draw(carry),
        buffers=draw(carry),
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_plan(lab: SimpleNamespace, pairs: dict[Any, Pair], data: st.DataObject) -> None:
    pair = pair_of(pairs, lab, data.draw(st.integers(0, 1)), Sequential, "averaging")
    pair.carry_out(plan_of(data.draw))


@pytest.mark.parametrize("change", ["copies", "mean-of-some", "medians", "elastic", "shuffle"])
def test_who_takes_no_part_spreads_nothing(lab: SimpleNamespace, pairs: dict[Any, Pair], change: str) -> None:
    """Task 1 is NaN, and no other task has a weight on it."""
    pair = pair_of(pairs, lab, 1, Sequential, "averaging")
    pair.reset(spoilt=(1,))
    who = torch.arange(TASKS) != 1
    alone = {
        "copies": onto(2, 1, 3, 4, 5, 0),
        "medians": Median(who & who[:, None]),
        "elastic": Elastic(RATES * who, RATES * who),
        "shuffle": Shuffle(who, 0.5, 0.5, key=1),
    }
    pair.carry_out(Plan((alone.get(change, CHANGES[change]),), moments="keep", buffers="keep"))
    sound = torch.cat([engine.sound() for engine in pair.among.engines])
    assert sound.tolist() == who.tolist()


# -- what goes between shares ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[int, Pair]:
    """Likewise, without buffers."""
    return {}


def moved_bytes(small: dict[int, Pair], lab: SimpleNamespace, shares: int, *changes: Any, **how: Any) -> dict[str, int]:
    """Bytes by kind that go between shares of tasks without buffers and methods."""
    if shares not in small:
        small[shares] = Pair(lab, SHARES[shares], Sequential)
    pair = small[shares]
    pair.reset()
    pair.carry_out(Plan(changes, **{"moments": "keep", **how}))
    return pair.among.transport.traffic()


MODEL = 8 * (5 * 6 + 6 + 6 * 3 + 3)


def test_bytes_of_copies(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    assert moved_bytes(small, lab, 0, onto(0, 1, 2, 0, 4, 5)) == {"models": MODEL}
    assert moved_bytes(small, lab, 0, onto(0, 1, 2, 0, 0, 0)) == {"models": MODEL}  # once to each share
    assert moved_bytes(small, lab, 1, onto(0, 0, 2, 0, 0, 5)) == {"models": 2 * MODEL}
    assert moved_bytes(small, lab, 0, onto(1, 1, 2, 3, 3, 5)) == {}  # among neighbours
    follow = moved_bytes(small, lab, 0, onto(0, 1, 2, 0, 4, 5), moments="follow")
    assert follow == {"models": MODEL, "moments models": MODEL}


def test_refused_candidates_send_for_no_moments(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    nowhere = {"moments": "follow", "trial": torch.ones(TASKS, lab.N, dtype=torch.bool)}
    moved_bytes(small, lab, 0)
    pair = small[0]
    pair.reset(spoilt=(0,))
    outcome = pair.carry_out(Plan((onto(0, 1, 2, 0, 4, 5),), **nowhere))
    assert not bool(outcome.accepted.any())
    assert pair.among.transport.traffic() == {"models": MODEL}


@pytest.mark.parametrize(("shares", "count"), [(0, 2), (1, 3)])
def test_bytes_of_means(lab: SimpleNamespace, small: dict[int, Pair], shares: int, count: int) -> None:
    there_and_back = {"sums": 2 * (count - 1) * MODEL}
    assert moved_bytes(small, lab, shares, towards_mean()) == there_and_back
    assert moved_bytes(small, lab, shares, towards_mean(0.01), buffers="keep") == there_and_back
    assert moved_bytes(small, lab, shares, CHANGES["one-share's-mean"]) == {"combinations": (count - 1) * MODEL}
    assert moved_bytes(small, lab, shares, CHANGES["restart"]) == {}
    rate = torch.full((TASKS,), 0.1, dtype=torch.float64)
    first = moved_bytes(small, lab, shares, Elastic(rate, rate))
    assert first == {"centres": 4 * (count - 1) * MODEL}  # the mean of all, and what draws it
    again = moved_bytes(small, lab, shares, Elastic(rate, rate), Elastic(rate, rate))
    assert again == {"centres": 6 * (count - 1) * MODEL}


def test_bytes_of_crossovers(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    def taken(change: Any) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that went, and those of the numbers that task 3 now has from task 0."""
        moved = moved_bytes(small, lab, 0, change)
        tensors = small[0].among.state()[0]
        parts = {name: value for name, value in tensors.items() if name.startswith("params/")}
        return moved, {name: 8 * int((value[3] == value[0]).sum()) for name, value in parts.items()}

    for seed in range(3):
        draws = {
            "source": torch.tensor([-1, -1, -1, 0, -1, 3]),
            "rate": torch.full((TASKS,), 0.5, dtype=torch.float64),
            "keys": torch.arange(TASKS) + seed,
        }
        for unit in ("layer", "parameter"):
            moved, numbers = taken(Cross(**draws, unit=unit))
            assert sum(moved.values()) == sum(numbers.values())
            if unit == "layer":
                assert set(numbers.values()) <= {0, 8 * 30, 8 * 6, 8 * 18, 8 * 3}


def test_bytes_of_shuffles_and_medians(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    moved = moved_bytes(small, lab, 1, CHANGES["shuffle"])
    pair, crossed = small[1], 0
    old, new = pair.state[0], pair.among.state()[0]
    share_of = torch.tensor([0, 1, 1, 2, 2, 2])
    for name in old:
        if name.startswith("params/"):
            same = new[name].reshape(TASKS, 1, -1) == old[name].reshape(1, TASKS, -1)
            crossed += int(same[share_of[:, None] != share_of].sum())
    assert moved == {"shuffled": 8 * crossed}
    # Each of 6 models but for a third, which stays where it is; and each share's medians but for its own third.
    assert moved_bytes(small, lab, 1, CHANGES["median"])["medians"] == pytest.approx((4 + 2) * MODEL, rel=0.1)
    pairwise = Median(torch.eye(TASKS, dtype=torch.bool).roll(3, 1) | torch.eye(TASKS, dtype=torch.bool))
    assert moved_bytes(small, lab, 0, pairwise) == {"models": 6 * MODEL}


def test_combinations_that_are_fewer_than_models(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    row = (0.3, 0.2, 0.1, 0.4, 0, 0)
    assert moved_bytes(small, lab, 0, mix(*_eye(3), row, *_eye(6)[4:])) == {"combinations": MODEL}
    other = (0.1, 0.2, 0.3, 0, 0.4, 0)
    two = mix(*_eye(6)[:3], row, other, _eye(6)[5])
    assert moved_bytes(small, lab, 0, two) == {"combinations": 2 * MODEL}
    third = (0.2, 0.2, 0.2, 0.1, 0.1, 0.2)
    assert moved_bytes(small, lab, 0, mix(*_eye(6)[:3], row, other, third)) == {"models": 3 * MODEL}


def _eye(rows: int) -> list[tuple[float, ...]]:
    return [tuple(float(s == t) for s in range(TASKS)) for t in range(rows)]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 600), nn.Tanh(), nn.Linear(600, 3))


@pytest.mark.parametrize("change", ["blends", "mean", "cross-parameter", "median", "elastic", "shuffle", "restart"])
def test_no_model_passes_through_who_asks(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """All that is said and answered can be sent, and is short; models have 40 kB."""
    run, get = InProcess._run, InProcess.get

    def watched_run(self: InProcess, share: int, function: Any, arguments: tuple[Any, ...]) -> Any:
        given = [argument for argument in arguments if not isinstance(argument, Handle)]
        assert len(pickle.dumps((function, given))) < 10_000
        return run(self, share, function, arguments)

    def watched_get(self: InProcess, handles: Any) -> list[Any]:
        answers = get(self, handles)
        assert len(pickle.dumps(answers)) < 10_000
        return answers

    monkeypatch.setattr(InProcess, "_run", watched_run)
    monkeypatch.setattr(InProcess, "get", watched_get)
    job = lab.make_job(tasks=TASKS, model=wide)
    among = Among(job, SHARES[0])
    for engine in among.engines:
        engine.train(Segment(1, 0, 1))
    carry_out(Plan((CHANGES[change],), trial=job.validation), 1, among.shares, among.transport)


class Rounding(Codec):
    """Sends parameters as bf16."""

    def encode(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(torch.bfloat16) for name, value in tensors.items()}

    def decode(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.double() for name, value in tensors.items()}


def test_a_codec_is_for_models_on_their_way(lab: SimpleNamespace, small: dict[int, Pair]) -> None:
    moved_bytes(small, lab, 0)
    pair = small[0]
    old = {name: value for name, value in pair.state[0].items() if name.startswith("params/")}
    rounded = {name: value.bfloat16().double() for name, value in old.items()}
    for change, kind, models in ((onto(0, 0, 2, 0, 4, 5), "models", 1), (towards_mean(), "sums", 2)):
        pair.reset()
        carry_out(Plan((change,), moments="keep"), 2, pair.among.shares, pair.among.transport, Rounding())
        assert pair.among.transport.traffic() == {kind: models * MODEL // 4}
        new = pair.among.state()[0]
        for name, value in old.items():
            if kind == "models":  # what stays in its share is not rounded
                expected = torch.stack([value[0], value[0], value[2], rounded[name][0], value[4], value[5]])
                assert torch.equal(new[name], expected)
            else:
                torch.testing.assert_close(new[name][3], value.mean(0), rtol=2e-2, atol=1e-2)
                assert not torch.allclose(new[name][3], value.mean(0), rtol=1e-9)


# -- cut and joined states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_states_cut_and_joined(lab: SimpleNamespace, pairs: dict[Any, Pair], setting: str) -> None:
    pair = pair_of(pairs, lab, 1, Vectorised, setting)
    soft = torch.full((TASKS, lab.N, 3), 1 / 3, dtype=torch.float64)
    lesson = Teach(soft, torch.ones(TASKS).double(), MEMBERS, pair.whole.job.validation)
    pair.whole.apply(Plan((CHANGES["elastic"], lesson), moments="keep"), period=2)
    tensors, values = pair.whole.state()
    for shares in (*SHARES, [slice(0, 6)], [slice(t, t + 1) for t in range(6)]):
        again = joined_states([state_of_tasks(tensors, values, tasks) for tasks in shares], shares)
        lab.assert_close(again, (tensors, values))
        older = {name: value for name, value in values.items() if name != "together"}  # of before it was kept
        lab.assert_close(joined_states([state_of_tasks(tensors, older, own) for own in shares], shares), again)
    assert values["visits"] == state_of_tasks(tensors, values, SHARES[1][0])[1]["visits"] > 0
    pair.among.restore(tensors, values)
    pair.train(3)
    pair.agree()


def test_shares_that_shrank_are_as_small_when_joined(lab: SimpleNamespace) -> None:
    shares = [slice(0, 2), slice(2, 6)]
    among = Among(lab.make_job(tasks=6), shares, Vectorised)
    assert among.state()[1]["together"] == [None] * 6
    among.engines[1].shrink("as told")
    tensors, values = among.state()
    assert values["together"] == [None, None, 2, 2, 2, 2]
    among.restore(tensors, values)
    assert [engine.together for engine in among.engines] == [2, 2]
    assert state_of_tasks(tensors, values, slice(0, 1))[1]["together"] == [None]
    assert state_of_tasks(tensors, values, slice(5, 6))[1]["together"] == [2]


class Backbone(nn.Module):
    """Its first layer is drawn at random and is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "shared"), [(Backbone, False), (Backbone, True), (lazy, False)], ids=["frozen", "frozen, shared", "lazy"]
)
def test_shares_start_as_all_tasks_do(lab: SimpleNamespace, model: Any, shared: bool) -> None:
    pair = Pair(lab, SHARES[1], Sequential, model=model, shared_start=shared)
    pair.carry_out(Plan((CHANGES["restart"], onto(0, 1, 2, 1, 4, 5)), buffers="reset"))


# -- whole runs --------------------------------------------------------------------------------------------------------


class Shared(Engine):
    """A whole engine of shares in one process, as a run sees it."""

    name = "shared"

    def __init__(self, job: Job):
        self.among = Among(job, [slice(0, 1), slice(1, 3), slice(3, 4)])

    def _each(self, function: Any, *arguments: Any) -> list[Any]:
        return [function(engine, *arguments) for engine in self.among.engines]

    def train(self, segment: Segment) -> Any:
        return torch.cat(self._each(LocalEngine.train, segment))

    def steps(self, period: int) -> Any:
        return torch.cat(self._each(LocalEngine.steps, period))

    def score(self) -> Any:
        return torch.cat(self._each(LocalEngine.score))

    def predict(self, rows: Tensor, best: bool = False) -> Any:
        return torch.cat(self._each(LocalEngine.predict, rows, best))

    def losses(self, rows: Tensor, best: bool = False) -> Any:
        return torch.cat(self._each(LocalEngine.losses, rows, best))

    def snapshot(self, tasks: Tensor) -> None:
        for engine, own in zip(self.among.engines, self.among.shares, strict=True):
            engine.snapshot(tasks[own])

    def apply(self, plan: Plan, period: int) -> Any:
        return carry_out(plan, period, self.among.shares, self.among.transport)

    def end_period(self, scores: Tensor) -> None:
        for engine, own in zip(self.among.engines, self.among.shares, strict=True):
            engine.end_period(scores[own])

    def reschedule(self, scheduler: Any) -> None:
        self._each(LocalEngine.reschedule, scheduler)

    def export(self, task: int) -> nn.Module:
        share = next(a for a, own in enumerate(self.among.shares) if own.start <= task < own.stop)
        return self.among.engines[share].export(task - self.among.shares[share].start)

    def norms(self, best: bool = False) -> Any:
        return torch.cat(self._each(LocalEngine.norms, best))

    def method_states(self) -> Any:
        found = self._each(LocalEngine.method_states)
        return [
            {name: torch.cat([own[i][name] for own in found]) for name in found[0][i]} for i in range(len(found[0]))
        ]

    def options(self) -> Any:
        found = self._each(LocalEngine.options)
        return {name: torch.cat([own[name] for own in found]) for name in found[0]}

    def visits(self) -> int:
        return sum(self._each(LocalEngine.visits))

    def state(self) -> Any:
        return self.among.state()

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.among.restore(tensors, values)

    def close(self) -> None:
        self._each(LocalEngine.close)


def often(rule: Rule) -> Rule:
    """The rule at as many transfer points as there can be, where it is not so already."""
    fields = {field.name for field in dataclasses.fields(rule)} if dataclasses.is_dataclass(rule) else set()
    changes = {"steps": 2} if rule.steps is not None else {"period": 1} if "period" in fields else {}
    return dataclasses.replace(rule, **changes) if changes else rule


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("none", "distil")])  # these change nothing
def test_every_rule(lab: SimpleNamespace, name: str) -> None:
    rule = AMTO(p_low=1.0, p_high=1.0) if name == "amto" else often(RULES[name]())
    job = lab.make_job(tasks=4, model=partial(lab.network, True), sizes=(44, 36, 25, 44))
    one = lab.train(Sequential, job, rule, epochs=2)
    assert one.progress.proposed > 0 or name == "teach"
    lab.assert_agree(one, lab.train(Shared, job, rule, epochs=2))
