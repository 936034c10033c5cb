"""Shares at their own pace: who learns from which copy, what the ledger says of it, and that all end at one point."""

import contextlib
import copy
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from kinfold import asynchronous, fitting
from kinfold.asynchronous import LEAD, check_asynchronous, run_asynchronously
from kinfold.checkpoint import Checkpoints
from kinfold.engines import Job
from kinfold.engines.apart import Apart, Snapshot, Uneven
from kinfold.engines.compression import resolve_compression
from kinfold.engines.exchange import Handle, InProcess, Transport
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import joined_states, start_share, state_of_tasks
from kinfold.errors import InputError, RunError
from kinfold.files import read_yaml
from kinfold.living import Lived, live
from kinfold.methods.base import Context, Method, Params, State
from kinfold.run import Progress
from kinfold.tasks.order import Segment
from kinfold.transfer import (
    AMTO,
    MFEA2,
    RULES,
    BinaryCross,
    Cross,
    Exchange,
    Median,
    Mix,
    PAPAAll,
    Plan,
    Restart,
    Rule,
    Shuffle,
    ShuffleRule,
    Teach,
    TeachRule,
    Together,
    Tune,
    View,
)

EAGER = AMTO(p_low=1.0, p_high=1.0)  # tries at every transfer point
COPIES = AMTO(p_low=0.6, p_high=0.6, forms=("copy",))
STILL = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.0), "scheduler": None}  # nobody improves


class Paced(Transport):
    """Shares in this process that answer in a made-up order, again and again; all are asked at once."""

    def __init__(self, engines: Sequence[Sequential], order: Sequence[int]):
        super().__init__()
        self._inner, self._order, self._turn = InProcess(engines), order, 0
        self.began: list[tuple[int, int]] = []  # (share, period), in the order in which they were asked

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return self._inner.get(handles)

    def first(self, handles: Sequence[Handle]) -> Handle:
        for _ in self._order:
            share = self._order[self._turn % len(self._order)]
            self._turn += 1
            mine = [handle for handle in handles if handle.share == share]
            if mine:
                return self._inner.first(mine)
        return self._inner.first(handles)

    def _run(self, share: int, function: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        if function is live:
            self.began.append((share, arguments[0]))
        return self._inner._run(share, function, arguments)

    def _bytes(self, sizes: Sequence[Any]) -> list[int]:
        return self._inner._bytes(sizes)


class Shares(Uneven):
    """As much of an engine of shares as is asked for where these meet."""

    name = "cluster"

    def __init__(self, job: Job, ends: Sequence[int], order: Sequence[int] = (0,), codec: Any = None):
        self.tasks = [slice(first, end) for first, end in zip((0, *ends[:-1]), ends, strict=True)]
        self.engines = [start_share(Sequential, job, tasks) for tasks in self.tasks]
        self.transport, self._codec = Paced(self.engines, order), codec
        self.copies, self.most = weakref.WeakSet[Snapshot](), 0  # that there are, and were at a time

    @contextlib.contextmanager
    def apart(self) -> Iterator[Apart]:
        apart = Apart(self.tasks, self.transport, self._codec)

        def publish(*given: Any) -> dict[int, Snapshot]:
            made = Apart.publish(apart, *given)
            self.copies.update(made.values())
            self.most = max(self.most, len(self.copies))
            return made

        apart.publish = publish
        yield apart

    def state(self) -> Any:
        return joined_states([engine.state() for engine in self.engines], self.tasks)

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        for engine, tasks in zip(self.engines, self.tasks, strict=True):
            engine.restore(*state_of_tasks(tensors, copy.deepcopy(values), tasks))

    def predict(self, rows: Tensor, best: bool = False) -> Tensor:
        return torch.cat([engine.predict(rows, best) for engine in self.engines])

    def export(self, task: int) -> nn.Module:
        return next(e.export(task - s.start) for e, s in zip(self.engines, self.tasks, strict=True) if task < s.stop)

    def visits(self) -> int:
        return sum(engine.visits() for engine in self.engines)

    def score(self) -> Tensor:
        return torch.cat([engine.score() for engine in self.engines])

    def unasked(self, *given: Any) -> Any:
        raise AssertionError("shares are apart")

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    train = steps = losses = snapshot = apply = end_period = reschedule = norms = unasked
    method_states = options = unasked


class Own(Rule):
    """A rule of the user's that says nothing of itself."""

    name = "own"

    def plan(self, view: View, state: Any, generator: torch.Generator) -> Any:
        return Plan((Shuffle(view.sound, 0.1, 0.1, 3),)), state


def run_apart(lab: SimpleNamespace, engine: Shares, job: Job, rule: Rule, **how: Any) -> Any:
    events: list[dict[str, Any]] = []
    progress = how.pop("progress", None) or Progress.start(job, rule)
    unsealed = torch.arange(lab.N) < lab.N - 4
    given = {"epochs": 6, "patience": None, "listen": events.append, **how}
    stopped = run_asynchronously(engine, job, rule, progress, unsealed=unsealed, **given)
    return SimpleNamespace(engine=engine, progress=progress, events=events, stopped=stopped)


def small_job(lab: SimpleNamespace, **changes: Any) -> Job:
    """Six tasks of few rows, so that the ledger is not soon full."""
    return lab.make_job(**{"tasks": 6, "sizes": (8, 6, 8, 10, 8, 6), "batch_size": 4, **changes})


def transfers(events: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    return [(event["period"], move) for event in events if event["event"] == "transfer" for move in event["transfers"]]


# -- the loop ----------------------------------------------------------------------------------------------------------

RULES_HERE: dict[str, Rule] = {
    "none": RULES["none"](),
    "amto": EAGER,
    "papa-all": PAPAAll(period=2),
    "exchange": Exchange(period=2, perturb=("lr",)),
    "mfea-2": MFEA2(),
    "teach and amto": Together((TeachRule(cool=2.0, period=2), EAGER)),
}


@pytest.mark.parametrize("rule", RULES_HERE)
def test_one_share_alone_is_the_loop(lab: SimpleNamespace, rule: str) -> None:
    job = lab.make_job(tasks=5, model=lambda: lab.network(batch_norm=True), sizes=(44, 37, 21, 30, 44))
    apart = run_apart(lab, Shares(job, [5]), job, RULES_HERE[rule], rescues=1)
    moves = transfers(apart.events)
    assert all(move.pop("ages") == [0] * len(move["donors"]) for _, move in moves)
    assert moves or rule == "none"
    together = lab.train(Sequential, job, RULES_HERE[rule], epochs=6, rescues=1)
    lab.assert_agree(together, apart)
    lab.assert_close(vars(together.progress.health), vars(apart.progress.health))


def test_where_nothing_moves_the_pace_is_nothing(lab: SimpleNamespace) -> None:
    job = small_job(lab)
    apart = run_apart(lab, Shares(job, [2, 3, 6], order=(1, 1, 1, 0, 2)), job, RULES["none"](), rescues=1)
    together = lab.train(Sequential, job, epochs=6, rescues=1)
    lab.assert_agree(together, apart)
    lab.assert_close(vars(together.progress.health), vars(apart.progress.health))


def test_shares_run_ahead(lab: SimpleNamespace) -> None:
    job = small_job(lab)
    run = run_apart(lab, Shares(job, [2, 6], order=(0, 0, 0, 0, 0, 1)), job, EAGER)
    began = run.engine.transport.began
    assert began.index((0, 4)) < began.index((1, 2))  # nobody waited
    assert sorted(began) == [(share, period) for share in (0, 1) for period in range(1, 7)]
    periods = [event["period"] for event in run.events if event["event"] == "period"]
    assert periods == [1, 2, 3, 4, 5, 6] == sorted(periods)
    for i, event in enumerate(run.events):  # a period comes before its transfers, which come before the next
        assert event["event"] == "period" or run.events[i - 1]["period"] == event["period"]
    ages = {0: set[int](), 1: set[int]()}
    for _, move in transfers(run.events):
        share, donors = int(move["recipient"] >= 2), [int(donor >= 2) for donor in move["donors"]]
        for donor, age in zip(donors, move["ages"], strict=True):
            if donor == share:
                assert age == 0
            else:
                ages[share].add(age)
    assert max(ages[0]) > 1
    assert min(ages[0]) >= 0
    assert min(ages[1]) < -1
    assert max(ages[1]) <= 0
    assert run.progress.proposed == len(transfers(run.events)) > 0
    assert (
        run.progress.by_pair.sum()
        == run.progress.accepted
        == sum(move["accepted"] for _, move in transfers(run.events))
    )
    rows = sum(len(own) for own in (range(int(n)) for n in job.train.sum(1) // 4 * 4))
    assert run.engine.visits() == 6 * rows  # every task, six periods
    assert run.engine.most <= 3 * job.tasks  # the newest, and those in use
    assert run.engine.transport.traffic()["models"] > 0


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (COPIES, (0, 0, 0, 1, 2, 2)),
        (COPIES, (1, 0, 2)),
        (TeachRule(period=2), (2, 1, 2, 2)),
        (Together((TeachRule(period=3), COPIES)), (0, 0, 0, 1, 2, 2)),
    ],
    ids=["amto", "amto in turns", "teach", "both"],
)
def test_the_ledger_is_that_of_the_copies(lab: SimpleNamespace, rule: Rule, order: tuple[int, ...]) -> None:
    """Who learns inherits what the copy's task had been exposed to when it was published: no less, and no more."""
    job = small_job(lab)
    run = run_apart(lab, Shares(job, [2, 3, 6], order=order), job, rule, epochs=8)
    took: dict[tuple[int, int], list[tuple[int, int]]] = {}
    lessons: dict[int, set[int]] = {t: set() for t in range(6)}
    for period, move in transfers(run.events):
        if move["accepted"]:
            for donor, age in zip(move["donors"], move["ages"], strict=True):
                assert period - age >= 1  # nobody learns from who has published nothing
                took.setdefault((move["recipient"], period), []).append((donor, period - age))
            if move["form"] == "teach":
                lessons[move["recipient"]].add(period)

    @cache
    def exposed(t: int, period: int, before: bool) -> Any:
        """To what a task had been exposed at the end of a period, before and after its transfers."""
        if period == 0:
            return frozenset(job.train[t].nonzero().flatten().tolist())
        so_far = exposed(t, period - 1, False)
        if before:
            return so_far
        own = job.validation[t].nonzero().flatten().tolist() if period in lessons[t] else []
        return so_far.union(own, *(exposed(s, when, True) for s, when in took.get((t, period), [])))

    found = [frozenset(row.nonzero().flatten().tolist()) for row in run.progress.ledger.exposed]
    assert found == [exposed(t, 8, False) for t in range(6)]
    kept = [frozenset(row.nonzero().flatten().tolist()) for row in run.progress.best_exposed]
    assert all(rows in {exposed(t, period, True) for period in range(1, 9)} for t, rows in enumerate(kept))
    assert took


def test_nobody_is_far_ahead(lab: SimpleNamespace) -> None:
    job = small_job(lab, scheduler=None)
    run = run_apart(lab, Shares(job, [3, 6], order=(0,) * 40 + (1,)), job, RULES["none"](), epochs=3 * LEAD)
    ended, most = [0, 0], 0
    for share, period in run.engine.transport.began:
        ended[share] = period - 1
        most = max(most, ended[0] - ended[1])
    assert LEAD - 1 <= most <= LEAD
    assert run.progress.period == 3 * LEAD
    assert run.stopped == "epochs"


@pytest.mark.parametrize("ends", [[3, 6], [6]], ids=str)
def test_a_checkpoint_is_where_all_have_met(
    lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    """An interrupted run goes on from there, whatever the shares are then."""
    monkeypatch.setattr(asynchronous, "LEAD", 2)
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    job, rule = small_job(lab), Together((TeachRule(period=2), COPIES))
    heard: list[dict[str, Any]] = []

    def interrupt(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["event"] == "period" and event["period"] == 8:
            raise KeyboardInterrupt

    engine = Shares(job, [2, 6], order=(0, 0, 0, 1))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        run_apart(lab, engine, job, rule, epochs=12, listen=interrupt, checkpoints=checkpoints)
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    resumed = Shares(job, ends, order=(0, 1, 1))
    progress = Progress.load(resumed, *saved)
    met = progress.period
    assert 2 <= met < 8
    # The rule's state, the ledger and the counts are those of the meeting: what was told until then, and no more.
    before = [move for period, move in transfers(heard) if period <= met]
    assert progress.proposed == len(before)
    assert progress.accepted == sum(move["accepted"] for move in before)
    rows = int((job.train.sum(1) // 4 * 4).sum())
    assert resumed.visits() == met * rows
    with Checkpoints(tmp_path) as checkpoints:
        run = run_apart(lab, resumed, job, rule, epochs=12, progress=progress, checkpoints=checkpoints)
    assert run.progress.period == 12
    assert resumed.visits() == 12 * rows
    assert [event["period"] for event in run.events if event["event"] == "period"] == [*range(met + 1, 13)]
    assert run.progress.proposed == len(before) + len(transfers(run.events))
    first = [age for period, move in transfers(run.events) if period == met + 1 for age in move["ages"]]
    assert {*first} <= {0, 1}  # who is first learns from what the others were where they met
    assert (1 in first) == (len(ends) > 1)
    assert bool((run.progress.ledger.exposed >= run.progress.best_exposed).all())
    last = Checkpoints(tmp_path).latest()
    assert last is not None
    assert last[1]["run"]["period"] == 12


def test_a_run_of_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the arguments to the report; interrupted, and gone on with."""
    monkeypatch.setattr(asynchronous, "LEAD", 2)
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    monkeypatch.setattr(fitting, "choose_engine", lambda name, job, *rest: (Shares(job, [1, 4], (0, 0, 0, 1)), None))
    out, how = tmp_path / "run", {"tasks": 4, "epochs": 8, "engine": "cluster", "transfer": EAGER, "seed": 2}

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "period" and event["period"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit("mlp", "iris", **how, asynchronous=True, out=out, listen=interrupt)
    assert read_yaml(out / "config.yaml")["asynchronous"] is True
    with pytest.raises(InputError, match="resume: asynchronous is False"):
        fitting.fit("mlp", "iris", **how, out=out, resume=True)
    result = fitting.fit("mlp", "iris", **how, asynchronous=True, out=out, resume=True)
    periods = [event["period"] for event in result.history if event["event"] == "period"]
    assert periods == [*range(1, 9)]
    assert result.epochs_run == 8
    moves = transfers(result.history)
    assert result.transfers.proposed == len(moves) > 0
    assert all(len(move["ages"]) == len(move["donors"]) for _, move in moves)
    assert (out / "report.html").exists()


def test_a_run_of_a_version_that_knew_no_other_way(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("tasks: 3\n")
    assert not fitting._check_folder(tmp_path, {"tasks": 3, "asynchronous": False}, resume=True)
    with pytest.raises(InputError, match="resume: asynchronous is True, and the run in .* has False"):
        fitting._check_folder(tmp_path, {"tasks": 3, "asynchronous": True}, resume=True)


def test_a_note_is_told_once_a_period(lab: SimpleNamespace) -> None:
    """Every share has the rule plan for all, and says no more than what is its own."""
    job, rule = small_job(lab), AMTO(p_low=1.0, p_high=1.0, rows="shared", min_rows=99)
    run = run_apart(lab, Shares(job, [1, 3, 6], order=(0, 0, 1, 2)), job, rule)
    told = [event for event in run.events if event["event"] == "transfer"]
    assert [event["period"] for event in told] == [1, 2, 3, 4, 5]
    assert {event["note"] for event in told} == {"acceptance rows fell back to val for 6 tasks"}
    assert run.progress.rule["fallbacks"].tolist() == [5] * 6


class Silent(Own):
    """Has something to say, and nothing to transfer."""

    def plan(self, view: View, state: Any, generator: torch.Generator) -> Any:
        return (Plan((), note="nothing to do") if view.period == 2 else None), state


def test_a_note_without_transfers(lab: SimpleNamespace) -> None:
    job = small_job(lab)
    run = run_apart(lab, Shares(job, [3, 6]), job, Silent())
    (event,) = (event for event in run.events if event["event"] == "transfer")
    assert event == {"event": "transfer", "period": 2, "rule": "own", "transfers": [], "note": "nothing to do"}


def test_rates_come_from_the_same_point_of_the_schedule(lab: SimpleNamespace) -> None:
    """Of a donor at another period, a rate is taken over as it is where the recipient is."""
    epochs, rule = 16, Exchange(period=2, truncation=0.5, perturb=("lr",), factors=(1.0,))
    one = nn.Parameter(torch.zeros(()))
    job = small_job(lab, scheduler=lambda own: torch.optim.lr_scheduler.CosineAnnealingLR(own, T_max=epochs))
    optimizer = job.optimizer([one])
    schedule, expected = job.scheduler(optimizer), []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    run = run_apart(lab, Shares(job, [3, 6], order=(0,) * 9 + (1,)), job, rule, epochs=epochs)
    ages = {age for _, move in transfers(run.events) for age in move["ages"]}
    assert min(ages) < -2
    assert max(ages) > 2
    rates = [event["lr"] for event in run.events if event["event"] == "period"]
    lab.assert_close(rates, [[rate] * 6 for rate in expected])


def test_rates_without_a_schedule_are_those_last_heard_of(lab: SimpleNamespace) -> None:
    job = small_job(lab, scheduler=None)
    known = asynchronous._Known(job, None)
    known.options = {"lr": torch.arange(6, dtype=torch.float64)}
    known.period = torch.tensor([5, 5, 2, 2, 2, -1])
    assert known.options_at(slice(2, 5))["lr"].tolist() == [0, 1, 2, 3, 4, 5]
    known.options["initial_lr"] = torch.tensor([0, 4, 0, 6, 8, math.nan], dtype=torch.float64)
    lab.assert_close(known.options_at(slice(2, 5))["lr"].tolist(), [0, 2, 2, 3, 4, math.nan])
    assert known.options_at(slice(0, 1))["lr"].tolist() == [0, 1, 2, 3, 4, 5]  # its own says nothing


def test_patience_ends_all_at_one_point(lab: SimpleNamespace) -> None:
    job = small_job(lab, **STILL)
    run = run_apart(lab, Shares(job, [3, 6], order=(0, 0, 0, 1)), job, COPIES, epochs=20, patience=2)
    assert run.stopped == "patience"
    assert 3 <= run.progress.period < 20
    assert [event["period"] for event in run.events if event["event"] == "period"] == [
        *range(1, run.progress.period + 1)
    ]
    assert sorted(run.engine.transport.began)[-1] == (1, run.progress.period)


def test_who_catches_up_transfers_what_was_due(lab: SimpleNamespace) -> None:
    """The end is told while a share is behind a transfer point that another has passed."""
    job = small_job(lab, **STILL)
    run = run_apart(lab, Shares(job, [3, 6], order=(0, 0, 0, 1)), job, TeachRule(period=5), epochs=20, patience=2)
    assert run.stopped == "patience"
    assert run.progress.period > 5 > 3  # 3 is where all are worn out
    lessons = [engine.lesson for engine in run.engine.engines]
    assert all(lesson is not None for lesson in lessons)
    assert {(period, move["recipient"]) for period, move in transfers(run.events)} == {(5, t) for t in range(6)}
    run.engine.state()  # which is that of all: a lesson of some is none


def test_what_was_worn_out_stays_so(lab: SimpleNamespace, tmp_path: Path) -> None:
    """Tasks that improve while others catch up are at their end nonetheless, also where the run is gone on with."""
    job = small_job(lab, scheduler=lambda own: torch.optim.lr_scheduler.LambdaLR(own, lambda done: float(done >= 3)))
    heard: list[dict[str, Any]] = []
    how = {"epochs": 20, "patience": 2}
    with Checkpoints(tmp_path) as checkpoints:
        engine = Shares(job, [3, 6], order=(0, 0, 0, 1))
        run = run_apart(lab, engine, job, RULES["none"](), **how, listen=heard.append, checkpoints=checkpoints)
    assert any(any(event["improved"]) for event in heard if event["period"] > 3)
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    resumed = Shares(job, [3, 6])
    again = run_apart(lab, resumed, job, RULES["none"](), progress=Progress.load(resumed, *saved), **how)
    assert again.stopped == run.stopped == "patience"
    assert not again.events
    assert again.progress.period == run.progress.period
    again.progress.begin_stage(1)
    assert not again.progress.worn_out(2)


def test_no_score_at_all(lab: SimpleNamespace) -> None:
    job = small_job(lab, optimizer=lambda params: torch.optim.SGD(params, lr=math.inf))
    with pytest.raises(RunError, match="no task ever had a finite score"):
        run_apart(lab, Shares(job, [3, 6]), job, PAPAAll(period=1), epochs=3)


def test_models_made_smaller(lab: SimpleNamespace) -> None:
    job = small_job(
        lab, model=lambda: nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 3)), shared_start=True
    )
    moved = []
    for codec in (None, resolve_compression("bf16")):
        run = run_apart(lab, Shares(job, [3, 6], codec=codec), job, COPIES)
        fetched = {(move["recipient"] // 3, period, *move["donors"]) for period, move in transfers(run.events)}
        others = [one for one in fetched if one[2] // 3 != one[0]]
        moved.append(run.engine.transport.traffic()["models"] / len(others))
        assert all(
            math.isfinite(value) for event in run.events if event["event"] == "period" for value in event["loss"]
        )
    assert moved[1] < moved[0] / 2


# -- tasks that diverge ------------------------------------------------------------------------------------------------


@pytest.fixture
def exploding(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], bool]:
    """Task 1 explodes in period 3, to numbers that are finite; fills in who has diverged in which period."""
    found: dict[tuple[int, int], bool] = {}

    def blown(engine: Sequential, period: int, *given: Any) -> Lived:
        if engine._first == 0 and period == 3:
            for value in engine.stack.params.values():
                value.detach()[1] *= 1e6
            engine.seen.forget()
        lived = live(engine, period, *given)
        if lived.health is not None:
            found.update({(engine._first + i, period): gone for i, gone in enumerate(lived.health.aside.tolist())})
        return lived

    monkeypatch.setattr(asynchronous, "live", blown)
    return found


@pytest.mark.parametrize(
    "rule",
    [PAPAAll(period=1), TeachRule(), EAGER, Exchange(period=1, truncation=0.5), RULES["merge-median"]()],
    ids=lambda rule: rule.name,
)
@pytest.mark.parametrize("order", [(0,), (0, 0, 0, 1), (1, 1, 1, 0)], ids=str)
def test_nobody_learns_from_who_has_exploded(
    lab: SimpleNamespace, exploding: dict[tuple[int, int], bool], rule: Rule, order: tuple[int, ...]
) -> None:
    job = small_job(lab)
    first = run_apart(lab, Shares(job, [2, 6], order=order), job, rule, epochs=7, rescues=1)
    # What has come of it holds where the run is gone on with.
    run = run_apart(lab, first.engine, job, rule, epochs=10, rescues=1, progress=first.progress)
    events = [*first.events, *run.events]
    assert exploding[1, 3]
    assert not any(gone for (t, _), gone in exploding.items() if t != 1)
    for period, move in transfers(events):
        for donor, age in zip(move["donors"], move["ages"], strict=True):
            assert not exploding[donor, period - age], (period, move)
    (note,) = (event for event in events if "diverged" in event)
    assert note == {
        "event": "note",
        "severity": "warning",
        "period": 3,
        "message": "task 1 diverged in period 3: set aside, the others see no more of it",
        "diverged": [1],
        "rescued": [],
    }
    periods = [event for event in events if event["event"] == "period"]
    assert math.isnan(periods[2]["loss"][1])
    assert not periods[2]["improved"][1]
    others = [loss for event in periods for t, loss in enumerate(event["loss"]) if t != 1]
    assert max(others) < 10.0
    assert run.progress.health.rescues.tolist() == [0] * 6
    if rule.name == "teach":  # all have a lesson, each share was told of its own
        assert run.progress.health.ease.tolist() == [1.0 + 0.5 * 8.0**2] * 6
    rows = torch.arange(60)  # the snapshot is of before
    assert run.engine.predict(rows, best=True).abs().max() < 1e3


def test_where_nobody_is_looked_at(lab: SimpleNamespace, exploding: dict[tuple[int, int], bool]) -> None:
    job = small_job(lab)
    run = run_apart(lab, Shares(job, [2, 6]), job, PAPAAll(period=1), rescues=0)
    assert not exploding
    assert not any("diverged" in event for event in run.events)
    assert not run.progress.health.aside.any()
    assert run.progress.health.loss.isnan().all()


@final
@dataclass(frozen=True)
class Watching(Rule):
    """Notes what is to be seen of each task, and would have all learn from task 1."""

    name = "watching"
    needs = frozenset({"predictions", "losses"})
    seen: list[tuple[int, list[list[bool]]]] = field(default_factory=list)

    def plan(self, view: View, state: Any, generator: torch.Generator) -> Any:
        assert view.predict is not None
        assert view.losses is not None
        rows = torch.arange(5)
        outputs, losses = view.predict(rows).flatten(1), view.losses(rows)
        shown = [outputs.isfinite().all(1), losses.isfinite().all(1), view.train_loss.isfinite()]
        self.seen.append(
            (view.period, torch.stack([*shown, view.sound, view.metric.isfinite(), view.loss.isfinite()]).tolist())
        )
        return Plan((onto(1, 1, 1, 1, 1, 1),)), state


def test_what_is_seen_of_who_has_exploded(lab: SimpleNamespace, exploding: dict[tuple[int, int], bool]) -> None:
    job, rule = small_job(lab), Watching()
    run = run_apart(lab, Shares(job, [2, 6]), job, rule, epochs=5, rescues=1)
    assert exploding[1, 3]
    # The share of tasks 0 and 1 is through before that of the others has ended its first period.
    assert [period for period, _ in rule.seen] == [1, 2, 3, 4, 1, 2, 3, 4]
    mine = [[row[1] for row in seen] for _, seen in rule.seen]
    assert mine == [[True] * 6] * 2 + [[False] * 6] * 6
    assert all(row[0] for _, seen in rule.seen for row in seen)
    assert [(period, move["recipient"]) for period, move in transfers(run.events)] == [(1, 0), (2, 0)]


# -- one plan among copies ---------------------------------------------------------------------------------------------


class Averaging(Method):
    """Scores a running mean of the parameters, and counts its steps."""

    def start(self, params: Params, context: Context) -> State:
        del context
        averages = {f"mean/{name}": value.clone() for name, value in params.items()}
        return {**averages, "steps": torch.zeros((), dtype=torch.int64)}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        means = {f"mean/{name}": 0.5 * state[f"mean/{name}"] + 0.5 * value for name, value in params.items()}
        return params, {**means, "steps": state["steps"] + 1}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"mean/{name}"] for name in params}


def onto(*donors: int) -> Mix:
    return Mix(torch.eye(len(donors), dtype=torch.float64)[list(donors)])


SOURCE = torch.tensor([4, -1, 3, 0, -1, 1])
RATE = torch.tensor([0.5, 0.5, 0.7, 0.3, 0.5, 0.9], dtype=torch.float64)
KEYS = torch.arange(6) + 77
MEAN = Mix(torch.full((6, 6), 1 / 6, dtype=torch.float64))
TRIED = torch.arange(64) < 20
LESSON = Teach(
    torch.softmax(torch.randn(6, 64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), -1),
    torch.linspace(0.1, 0.6, 6, dtype=torch.float64),
    ~torch.eye(6, dtype=torch.bool),
    torch.zeros(6, 64, dtype=torch.bool),
    2.0,
)
PLANS = {
    "copies, tried": Plan((onto(5, 1, 4, 0, 2, 2),), trial=TRIED.repeat(6, 1)),
    "copies of each other": Plan((onto(3, 4, 5, 0, 1, 2),)),
    "a mean": Plan((MEAN,)),
    "a mean, buffers kept": Plan((MEAN,), moments="keep", buffers="keep"),
    "a blend and a crossover": Plan(
        (
            Mix(torch.eye(6, dtype=torch.float64) * 0.5 + torch.eye(6, dtype=torch.float64)[[3, 4, 5, 0, 1, 2]] * 0.5),
            Cross(SOURCE, RATE, KEYS),
        ),
        trial=TRIED.repeat(6, 1),
    ),
    "numbers crossed": Plan((Cross(SOURCE, RATE, KEYS, "parameter"),), moments="reset", buffers="reset"),
    "binary": Plan((BinaryCross(SOURCE, RATE, KEYS),), moments="keep"),
    "medians": Plan((Median(torch.ones(6, 6, dtype=torch.bool)),)),
    "restarts": Plan((onto(0, 1, 2, 3, 0, 5), Restart(torch.arange(6) % 3 == 1, key=2))),
    "a lesson and options": Plan((LESSON, Tune({"lr": torch.tensor([math.nan, 0.3, math.nan, 0.2, 0.1, math.nan])}))),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_by_its_parts(lab: SimpleNamespace, plan: str) -> None:
    """Copies that are all of the present make of every share's part what one engine makes of the whole."""
    job = lab.make_job(
        tasks=6,
        model=lambda: lab.network(batch_norm=True),
        sizes=(44, 30, 44, 21, 44, 40),
        methods=(Averaging(),),
        optimizer=torch.optim.Adam,
    )
    ends = [1, 3, 6]
    whole, among = Sequential(job), Shares(job, ends)
    for period in (1, 2):
        for engine in (whole, *among.engines):
            engine.train(Segment(period))
            engine.end_period(engine.score())
    with among.apart() as apart:
        moving = [engine.updater.moments() for engine in among.engines]
        copies = {t: one for share in range(len(ends)) for t, one in apart.publish(share, moving[share]).items()}
        expected, accepted = whole.apply(PLANS[plan], 2), torch.zeros(6, dtype=torch.bool)
        for share in reversed(range(len(ends))):
            mine = torch.zeros(6, dtype=torch.bool)
            mine[apart.tasks[share]] = True
            left = PLANS[plan].only(mine)
            asked = apart.consider(share, left, 2, copies)
            if asked is not None:
                (outcome,) = apart.transport.get([asked])
                accepted[apart.tasks[share]] = outcome.accepted
            apart.follow(share, left, 2, copies, accepted & mine, moving[share])
    assert torch.equal(accepted, expected.accepted)
    for engine in (whole, *among.engines):  # lessons and options show when it goes on
        engine.train(Segment(3))
    (tensors, values), (others, theirs) = whole.state(), among.state()
    for one in (*values["optimizers"], *theirs["optimizers"]):
        del one["fused"]
    lab.assert_close(tensors, others, "state")
    lab.assert_close(values["optimizers"], theirs["optimizers"], "optimizers")


def test_optimizers_that_remember_other_things(lab: SimpleNamespace) -> None:
    """A copy of before the first step has no moments; who takes it begins anew."""
    job = lab.make_job(tasks=2)
    among = Shares(job, [1, 2])
    with among.apart() as apart:
        early = apart.publish(0, among.engines[0].updater.moments())
        among.engines[1].train(Segment(1))
        moving = among.engines[1].updater.moments()
        plan = Plan((onto(0, 0),))
        asked = apart.consider(1, plan, 1, early)
        assert asked is not None
        apart.follow(1, plan, 1, early, torch.tensor([False, True]), moving)
    first, second = (engine.state()[0] for engine in among.engines)
    lab.assert_close(first["params/0.weight"], second["params/0.weight"])
    assert moving
    assert not any(bool(value.any()) for name, value in second.items() if "momentum" in name)


# -- what there cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_which_rules_there_are(name: str) -> None:
    if name in ("papa", "elastic", "shuffle"):
        with pytest.raises(
            InputError, match=f"^asynchronous: {name} needs all tasks at the same step; choose none, amto"
        ):
            check_asynchronous("cluster", RULES[name]())
    else:
        check_asynchronous("cluster", RULES[name]())


@pytest.mark.parametrize(
    "rule", [ShuffleRule(steps=None), Together((TeachRule(), ShuffleRule(steps=None)))], ids=lambda rule: rule.name
)
def test_a_shuffle_between_periods_neither(rule: Rule) -> None:
    with pytest.raises(InputError, match="needs all tasks at the same step"):
        check_asynchronous("cluster", rule)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"engine": "auto"}, "asynchronous: it is for the engine cluster, and engine is 'auto'; leave it out."),
        ({"transfer": "papa"}, "asynchronous: papa needs all tasks at the same step; choose none, amto, distil, "),
    ],
    ids=["engine", "rule"],
)
def test_mistakes(how: dict[str, Any], line: str, tmp_path: Path) -> None:
    given = {"engine": "cluster", "asynchronous": True, "tasks": 2, "epochs": 2, **how}
    with pytest.raises(InputError) as raised:
        fitting.fit("mlp", "iris", **given, out=tmp_path / "run")
    assert str(raised.value).startswith(line)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_plan_that_cannot_be_taken_apart(lab: SimpleNamespace) -> None:
    job = small_job(lab)
    with pytest.raises(RunError, match="^transfer: Shuffle changes tasks at one moment"):
        run_apart(lab, Shares(job, [3, 6]), job, Own())


class Nosy(Own):
    """Asks for what the tasks make of a sealed row."""

    needs = frozenset({"predictions"})

    def plan(self, view: View, state: Any, generator: torch.Generator) -> Any:
        assert view.predict is not None
        view.predict(torch.tensor([63]))
        return None, state


def test_sealed_rows_stay_so(lab: SimpleNamespace) -> None:
    job = small_job(lab)
    with pytest.raises(RunError, match="asked for predictions on sealed rows"):
        run_apart(lab, Shares(job, [3, 6]), job, Nosy())


def test_the_state_of_several_rules() -> None:
    """Which of the parts have planned is of nobody in particular, also where there are as many parts as tasks."""
    rule = Together((TeachRule(), AMTO()))
    before = rule.start(2)
    after = {name: value + 1 if value.dtype != torch.bool else ~value for name, value in before.items()}
    merged = rule.merged(before, after, torch.tensor([True, False]))
    assert torch.equal(merged["planned"], after["planned"])
    for name in ("1/reward", "1/try", "1/source", "1/fallbacks"):
        assert torch.equal(merged[name][0], after[name][0])
        assert torch.equal(merged[name][1], before[name][1])
