"""Processes that share out the tasks: equal however many they are, and gone when they should be."""

import copy
import dataclasses
import gc
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kinfold
from kinfold.engines import Engine, Job, choose_engine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Context, Method, Params, State
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, Plan, Rule, Teach, TeachRule, Together, Tune, View

ADAM = partial(torch.optim.Adam, lr=0.01)
EVERYTHING = Together((AMTO(p_low=1.0, p_high=1.0), TeachRule(cool=2.0)))  # moves, trials and lessons, each period


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_engine() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


class Averaged(Method):
    """An average that transfers move along, and that is scored."""

    def start(self, params: Params, context: Context) -> State:
        return {f"average/{name}": value.clone() for name, value in params.items()}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, {key: 0.9 * old + 0.1 * params[key.partition("/")[2]] for key, old in state.items()}

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"average/{name}"] for name in params}


def rich_job(lab: SimpleNamespace, **changes: Any) -> Job:
    """Batch norm, moments, a method with state, and tasks of different lengths."""
    model = partial(lab.network, True)
    given = {"tasks": 4, "model": model, "optimizer": ADAM, "methods": (Averaged(),), "sizes": (44, 36, 25, 44)}
    return lab.make_job(**(given | changes))


def workers_of(engine: Engine) -> list[Any]:
    return [worker.process for worker in engine._workers]


@pytest.mark.parametrize("processes", [1, 3, 9])
def test_however_many_there_are(lab: SimpleNamespace, processes: int) -> None:
    job = rich_job(lab)
    other = lab.train(partial(Workers, processes=processes), job, EVERYTHING)
    assert len(workers_of(other.engine)) == min(processes, 4)
    lab.assert_agree(lab.train(Sequential, job, EVERYTHING), other)


def test_what_a_model_draws_is_what_the_loop_draws(lab: SimpleNamespace) -> None:
    job = lab.make_job(model=lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    lab.assert_agree(lab.train(Sequential, job), lab.train(partial(Workers, processes=2), job))


def test_one_optimizer_a_task(lab: SimpleNamespace) -> None:
    job = lab.make_job(tasks=4, optimizer=[partial(torch.optim.SGD, lr=0.1 * t) for t in (1, 2, 3, 4)])
    lab.assert_agree(lab.train(Sequential, job), lab.train(partial(Workers, processes=3), job))


def test_what_is_asked_between_periods(lab: SimpleNamespace) -> None:
    """Every question has the same answer, before the first period as well, and when the workers are gone."""
    job, rows = rich_job(lab), torch.tensor([3, 1, 60])
    one, other = Sequential(job), Workers(job, processes=2)

    def answers(engine: Engine) -> list[Any]:
        return [
            engine.score(),
            *(ask(rows, best) for ask in (engine.predict, engine.losses) for best in (False, True)),
            *(engine.sound(best) for best in (False, True)),
            engine.options(),
            engine.visits(),
            engine.steps(2),
            engine.method_states(),
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
    assert not multiprocessing.active_children()
    lab.assert_close(answers(one), answers(other))
    with pytest.raises(RunError, match="engine: it has been closed"):
        other.train(Segment(3))


class Tunes(Rule):
    """New rates, and nothing else."""

    name = "tunes"

    def plan(self, view: View, state: Any, generator: torch.Generator) -> tuple[Plan | None, Any]:
        return Plan((Tune({"lr": 0.01 * view.period * torch.arange(1.0, 5.0, dtype=torch.float64)}),)), state


@pytest.mark.parametrize("rule", [Tunes(), PAPA(steps=3)], ids=["tunes", "papa"])
def test_a_checkpoint_goes_on_in_any_engine(lab: SimpleNamespace, rule: Rule) -> None:
    job = rich_job(lab)
    saved = lab.train(partial(Workers, processes=2), job, Together((rule, TeachRule(cool=2.0))), epochs=2)
    state = copy.deepcopy(saved.engine.state())
    assert state[1]["visits"] == saved.engine.visits() > 0
    assert state[1]["temperature"] is not None
    assert any(name.endswith("exp_avg") for name in state[0])
    makes: list[Callable[[Job], Engine]] = [Sequential, Vectorised, partial(Workers, processes=3, kind=Vectorised)]
    engines = [saved.engine, *(make(job) for make in makes)]
    for engine in engines[1:]:
        engine.restore(*state)
    ends = []
    for engine in engines:
        losses = engine.train(Segment(3))
        engine.end_period(engine.score())
        ends.append(copy.deepcopy((losses, engine.state()[0], engine.options(), engine.visits())))
    for end in ends[1:]:
        lab.assert_close(ends[0], end)
    saved.engine.restore(*state)  # back to where it was, in mid-run
    saved.engine.train(Segment(3))
    saved.engine.end_period(saved.engine.score())
    lab.assert_close(saved.engine.state()[0], ends[0][1])


def test_a_checkpoint_leaves_the_workers_what_they_had(lab: SimpleNamespace) -> None:
    engines = [Workers(rich_job(lab), processes=2) for _ in range(2)]
    for period in (1, 2):
        for engine in engines:
            engine.train(Segment(period))
        engines[0].state()
    (one, _), (other, _) = (engine.state() for engine in engines)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def together(engine: Engine) -> list[bool]:
    return [own["fused"] for own in engine.state()[1]["optimizers"]]


@pytest.mark.parametrize("parted", [False, True])
def test_stacked_tasks_of_a_worker_take_one_optimizers_step(lab: SimpleNamespace, parted: bool) -> None:
    make = partial(Workers, lab.make_job(tasks=5, optimizer=ADAM), processes=2, kind=Vectorised)
    whole, stopped = make(), make()
    for engine in (whole, stopped):
        assert all(together(engine))
        engine.train(Segment(1))
        if parted:  # of the first two tasks, which are one worker's
            engine.apply(Plan((Tune({"lr": torch.tensor([0.01, 0.02, math.nan, math.nan, math.nan])}),)), period=1)
        assert together(engine) == [not parted] * 2 + [True] * 3
    resumed = make()
    resumed.restore(*copy.deepcopy(stopped.state()))
    assert together(resumed) == together(whole)
    for engine in (whole, resumed):
        engine.train(Segment(2))
    (one, _), (other, _) = whole.state(), resumed.state()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert together(resumed) == together(whole)
    for engine in (whole, stopped, resumed):
        engine.close()


def test_a_new_schedule(lab: SimpleNamespace) -> None:
    """It is a function that no pipe could carry."""
    engines = [make(rich_job(lab)) for make in (Sequential, partial(Workers, processes=2))]
    for engine in engines:
        engine.train(Segment(1))
        engine.end_period(engine.score())
        engine.reschedule(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.5**done))
        for period in (2, 3):
            engine.train(Segment(period))
            engine.end_period(engine.score())
    assert engines[1].options()["lr"].tolist() == [0.01 * 0.25] * 4
    lab.assert_close(engines[0].state()[0], engines[1].state()[0])


def test_a_lesson_before_the_first_step(lab: SimpleNamespace) -> None:
    job = rich_job(lab)
    soft = torch.softmax(torch.randn(4, lab.N, 3, generator=torch.Generator().manual_seed(1)), -1)
    weight = torch.full((4, lab.N), 0.5, dtype=torch.float64)
    lesson = Plan((Teach(soft, weight, ~torch.eye(4, dtype=torch.bool), job.validation, 2.0),))
    one, other = Sequential(job), Workers(job, processes=2)
    for engine in (one, other):
        engine.apply(lesson, period=1)
    lab.assert_close(one.train(Segment(1)), other.train(Segment(1)))
    lab.assert_close(one.state(), other.state())


# -- when something goes wrong ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fails(Method):
    """In the process of one task, in the second period."""

    how: Callable[[], Any]

    def start(self, params: Params, context: Context) -> State:
        return {"periods": torch.zeros((), dtype=torch.int64), "seed": next(iter(params.values())).sum()}

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        if multiprocessing.parent_process() is not None and len(order) == 25 and int(state["periods"]) == 1:
            self.how()
        return order

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return params, state | {"periods": state["periods"] + 1}


def bad_input() -> None:
    raise InputError("methods: the user's fault.")


def broken() -> None:
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (bad_input, InputError, r"^methods: the user's fault\.$"),
        (broken, RunError, r"^engine: training or scoring tasks 2 to 3 failed \(ValueError: two lines\)\.$"),
        (lambda: os._exit(7), RunError, r"^engine: the worker process of tasks 2 to 3 ended \(exit code 7\); if"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), RunError, r"tasks 2 to 3 ended \(exit code -9\)"),
    ],
    ids=["input", "error", "exit", "kill"],
)
def test_a_worker_that_fails_ends_all(lab: SimpleNamespace, how: Any, kind: Any, message: str) -> None:
    engine = Workers(rich_job(lab, methods=(Fails(how),)), processes=2)
    processes: list[Any] = []

    def started(job: Job) -> Engine:
        engine.score()
        processes.extend(workers_of(engine))
        return engine

    with pytest.raises(kind, match=message) as caught:
        lab.train(started, engine._job)
    assert "\n" not in str(caught.value)
    assert len(processes) == 2
    assert not multiprocessing.active_children()
    assert bool(engine.sound().all())


def test_a_worker_that_was_lost_while_nothing_was_asked(lab: SimpleNamespace) -> None:
    engine = Workers(lab.make_job(), processes=3)
    engine.train(Segment(1))
    os.kill(workers_of(engine)[1].pid, signal.SIGKILL)
    workers_of(engine)[1].join()
    with pytest.raises(RunError, match=r"the worker process of task 1 ended \(exit code -9\)"):
        engine.train(Segment(2))


def test_what_was_inherited_is_not_collected(lab: SimpleNamespace) -> None:
    engine = Workers(lab.make_job(), processes=2)
    engine.train(Segment(1))
    assert min(engine._tell(inherited_by_collections, [()] * 2)) > 10_000
    assert gc.get_freeze_count() == 0


def inherited_by_collections(engine: Engine) -> int:
    """How many objects a collection in this process leaves alone, and does not copy by writing to them."""
    return gc.get_freeze_count()


def test_an_interrupt_is_the_drivers_alone(lab: SimpleNamespace) -> None:
    job = lab.make_job()
    engine = Workers(job, processes=2)
    engine.train(Segment(1))
    for process in workers_of(engine):
        os.kill(process.pid, signal.SIGINT)
    engine.train(Segment(2))
    assert all(process.is_alive() for process in workers_of(engine))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_go_with_the_engine(lab: SimpleNamespace) -> None:
    engine = Workers(lab.make_job(), processes=2)
    engine.train(Segment(1))
    assert len(multiprocessing.active_children()) == 2
    del engine
    assert not multiprocessing.active_children()


_KILLED = """
import multiprocessing, os, time

os.sched_getaffinity = lambda pid: {0, 1}

import torch
import kinfold
from kinfold.methods import Method

class Sleeps(Method):
    def draw(self, order, state, key):
        if multiprocessing.parent_process() is not None:
            os.write(1, f"{os.getpid()}\\n".encode())  # at once, whatever the other one writes
            time.sleep(600)
        return order

torch.ones(500, 500) @ torch.ones(500, 500)  # with all of torch's threads
kinfold.fit("mlp", "iris", tasks=2, epochs=2, engine="workers", methods=[Sleeps()])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_go_with_their_driver(number: signal.Signals) -> None:
    """However that ends, and whatever they are at."""
    driver = subprocess.Popen(
        [sys.executable, "-c", _KILLED],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Where the tests run as a shell's background job, SIGINT is ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with driver:
        try:
            assert driver.stdout is not None
            workers = [int(driver.stdout.readline()) for _ in range(2)]
            assert all(alive(worker) for worker in workers)
            driver.send_signal(number)
            driver.wait(timeout=60)
        finally:
            driver.kill()
    until = time.monotonic() + 60
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has asked after, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- who may have workers ----------------------------------------------------------------------------------------------


def set_up(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "spawn":
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    elif what == "gpu":
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    elif what == "daemon":
        monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cuda", "engine: workers train on the CPU, and device is cuda:0; give device cpu, or engine auto."),
        ("none", "engine: 0 worker processes cannot train; give 1 or more."),
        ("spawn", "engine: workers are forked, which this system cannot do; give engine auto."),
        ("gpu", "engine: workers cannot be forked beside a GPU; hide it (CUDA_VISIBLE_DEVICES=), or give engine auto."),
        ("daemon", "engine: workers cannot start in a daemonic process, such as one of a Pool; give engine auto."),
    ],
)
def test_refusals(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, what: str, message: str) -> None:
    job = lab.make_job(device=torch.device("cuda:0" if what == "cuda" else "cpu"))
    set_up(monkeypatch, what)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Workers(job, processes=0 if what == "none" else 2)


def test_no_more_can_be_started(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    engine = Workers(lab.make_job(), processes=2)
    with pytest.raises(RunError, match=r"cannot be started \(BlockingIOError: Resource temporarily unavailable\)"):
        engine.train(Segment(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


def convolving() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3))


def test_what_each_worker_runs(lab: SimpleNamespace) -> None:
    for model, kind in ((lab.network, Vectorised), (Recurrent, Sequential), (convolving, Sequential)):
        engine, line = choose_engine("workers", lab.make_job(model=model))
        assert (engine.name, engine._kind, line) == ("workers", kind, None)
        engine.train(Segment(1))


# -- a whole run -------------------------------------------------------------------------------------------------------


def rows() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(80, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)


FIT: dict[str, Any] = {"tasks": 3, "epochs": 6, "batch_size": 16, "seed": 2, "precision": "float64"}


def test_a_fit_is_that_of_the_other_engines() -> None:
    for rule in ("distil", "teach+papa"):
        model = {"name": "mlp", "hidden": [8]}
        one, other = (kinfold.fit(model, rows(), transfer=rule, engine=e, **FIT) for e in ("sequential", "workers"))
        assert (one.engine, other.engine) == ("sequential", "workers")
        assert not multiprocessing.active_children()
        torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-9, atol=1e-12)
        assert one.cost["sample_visits"] == other.cost["sample_visits"]


def test_a_run_that_is_interrupted_ends_its_workers_and_goes_on(tmp_path: Path) -> None:
    fit = partial(kinfold.fit, {"name": "mlp", "hidden": [8]}, rows(), transfer="amto", engine="workers", **FIT)

    def stop(event: dict[str, Any]) -> None:
        if (event["event"], event.get("period")) == ("period", 4):
            assert multiprocessing.active_children()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(out=tmp_path / "run", listen=stop)
    assert not multiprocessing.active_children()
    resumed, whole = fit(out=tmp_path / "run", resume=True), fit()
    assert torch.equal(resumed.scores.loss_matrix, whole.scores.loss_matrix)
    assert torch.equal(resumed.transfers.by_pair, whole.transfers.by_pair)
