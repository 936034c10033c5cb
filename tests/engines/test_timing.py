"""What is timed, and what `auto` makes of it; never how long anything takes."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kinfold import random
from kinfold.data.base import TensorInputs
from kinfold.engines import Engine, Job, choose, choose_engine, memory, timing
from kinfold.engines.sequential import Sequential
from kinfold.engines.timing import Form, best_threads, by_one_thread, first_tasks, seconds_a_step
from kinfold.engines.vectorised import Vectorised
from kinfold.processes import using_threads

LONG = 10**9


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Puts given times of a step in the place of measured ones; returns those that were asked for."""

    def put(**seconds: float) -> dict[str, float]:
        asked: dict[str, float] = {}

        def given(forms: dict[str, Form], job: Job) -> dict[str, float]:
            asked.update({name: seconds[name.partition(",")[0]] for name in forms})
            return dict(asked)

        monkeypatch.setattr(choose, "seconds_a_step", given)
        return asked

    return put


@pytest.mark.parametrize("fastest", ["sequential", "vectorised", "workers"])
def test_auto_takes_the_fastest_and_says_so(lab: SimpleNamespace, took: Any, fastest: str) -> None:
    seconds = {"sequential": 0.003, "vectorised": 0.002, "workers": 0.004, fastest: 0.001}
    with using_threads(2):
        asked = took(**seconds)
        engine, line = choose_engine("auto", lab.make_job(), steps=LONG)
    try:
        assert engine.name == fastest
        assert set(asked) == {"sequential", "sequential, one thread", "vectorised", "workers"}
        assert line is not None
        assert line.startswith(f"engine: {fastest}")
        assert f"{fastest} 1 ms" in line
        assert "\n" not in line
        agreed = lab.train(lambda job: engine, lab.make_job(), epochs=2)  # as one that was never timed
        lab.assert_agree(agreed, lab.train(Sequential, lab.make_job(), epochs=2))
    finally:
        engine.close()


@pytest.mark.parametrize(("workers", "name"), [(0.00096, "vectorised"), (0.00094, "workers")])
def test_processes_are_taken_only_where_they_gain(lab: SimpleNamespace, took: Any, workers: float, name: str) -> None:
    with using_threads(2):
        took(sequential=0.003, vectorised=0.001, workers=workers)
        engine, line = choose_engine("auto", lab.make_job(), steps=LONG)
    engine.close()
    assert engine.name == name
    assert line is not None
    assert ("level with processes" in line) == (name == "vectorised")


def test_one_stacked_task_is_timed_by_one_thread_too(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    def given(forms: dict[str, Form], job: Job) -> dict[str, float]:
        asked.update(forms)
        return {name: 0.1 if name == "vectorised, one thread" else 0.2 for name in forms}

    monkeypatch.setattr(choose, "seconds_a_step", given)
    job = first_tasks(lab.make_job(), 1)
    with using_threads(2):
        engine, line = choose_engine("auto", job, steps=LONG)
    assert asked == {"sequential", "sequential, one thread", "vectorised", "vectorised, one thread"}
    assert isinstance(engine, Vectorised)
    assert engine.threads == 1
    assert line is not None
    assert line.startswith("engine: vectorised, one thread, by the time")
    lab.assert_agree(lab.train(lambda job: engine, job, epochs=2), lab.train(Sequential, job, epochs=2))


def test_short_training_is_not_timed(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "seconds_a_step", None)
    for steps in (0, 10):
        engine, line = choose_engine("auto", lab.make_job(), steps=steps)
        assert (engine.name, line) == ("vectorised", None)


def test_what_takes_too_much_memory_is_not_stacked(
    lab: SimpleNamespace, took: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_at_once = memory.needed(lab.make_job(), 2.0**40).of(tasks=3, at_once=1)
    monkeypatch.setattr(memory, "free_bytes", lambda: float(one_at_once))
    asked = took(sequential=0.002, workers=0.001)
    engine, _ = choose_engine("auto", lab.make_job(), steps=LONG)
    engine.close()
    assert (engine.name, "vectorised" in asked) == ("workers", False)
    engine, line = choose_engine("auto", lab.make_job())
    assert line == "engine: sequential, since 3 tasks do not fit in memory together."


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("at_once", "name"), [(2, "vectorised"), (1, "sequential")])
def test_what_steps_in_lanes_takes_the_memory_of_one(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, at_once: int, name: str
) -> None:
    job = lab.make_job(tasks=5, shared_start=True)
    enough = memory.needed(job, 2.0**40).of(tasks=5, at_once=at_once)
    monkeypatch.setattr(memory, "free_bytes", lambda: float(enough))
    engine, _ = choose_engine("vectorised", job)
    assert engine.name == name


def test_a_form_that_fails_is_left_out(lab: SimpleNamespace) -> None:
    def fails(job: Job) -> Engine:
        raise ValueError("not here")

    found = seconds_a_step({"fails": Form(fails), "stack": Form(Vectorised)}, lab.make_job())
    assert list(found) == ["stack"]
    assert 0 < found["stack"] < float("inf")


def test_the_share_of_a_few_tasks_stands_for_all(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(job: Job) -> Engine:
        seen.append(job.tasks)
        return Sequential(job)

    monkeypatch.setattr(timing, "_timed", lambda engine, segment: 0.5)
    found = seconds_a_step({"few": Form(counted, tasks=1, share=3.0), "all": Form(counted)}, lab.make_job())
    assert seen == [1, 3]
    assert found["few"] == 3 * found["all"]


@pytest.mark.parametrize(("other", "blocks"), [(0.52, 9), (0.6, 5), (0.9, 1)])
def test_forms_that_are_level_are_timed_further(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, other: float, blocks: int
) -> None:
    names = {Sequential: "one", Vectorised: "other"}
    timed = {"one": 0, "other": 0}

    def took(engine: Engine, segment: timing.Segment) -> float:
        timed[names[type(engine)]] += 1
        return 0.5 if isinstance(engine, Sequential) else other

    monkeypatch.setattr(timing, "_timed", took)
    found = seconds_a_step({"one": Form(Sequential), "other": Form(Vectorised)}, lab.make_job())
    assert found == {"one": 0.5, "other": other}
    settling = 2  # calls before a form's blocks
    assert timed == {"one": settling + max(5, blocks), "other": settling + blocks}


def test_first_tasks_are_a_job_of_their_own(lab: SimpleNamespace) -> None:
    makers = [partial(torch.optim.SGD, lr=rate) for rate in (0.1, 0.2, 0.3)]
    few = first_tasks(lab.make_job(optimizer=makers), 2)
    assert few.tasks == 2
    lab.train(Sequential, few, epochs=1)


def test_threads_are_put_back(lab: SimpleNamespace) -> None:
    with using_threads(2):
        by_one_thread(lab.make_job()).train(timing.Segment(1))
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("one", "chosen"), [(0.1, 1), (0.3, None)])
def test_the_number_of_threads(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, one: float, chosen: int | None
) -> None:
    monkeypatch.setattr(timing, "seconds_a_step", lambda forms, job: {"all": 0.2, "one": one})
    job = lab.make_job()
    with using_threads(2):
        assert best_threads(job, LONG) == chosen
        assert best_threads(job, 0) is None
        monkeypatch.setattr(timing, "_WORTH_TIMING", float("inf"))
        assert best_threads(job, LONG) is None
    with using_threads(1):
        assert best_threads(job, LONG) is None


def test_threads_survive_a_checkpoint(lab: SimpleNamespace) -> None:
    one, other = by_one_thread(lab.make_job()), Sequential(lab.make_job())
    other.restore(*one.state())
    assert other.threads == 1


def test_timing_leaves_what_it_is_given_as_it_was(lab: SimpleNamespace) -> None:
    """Timing trains copies: rows, targets and the caller's model are as they were."""
    with random.seeded(torch.device("cpu"), "model"):
        model = lab.network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job = dataclasses.replace(lab.make_job(), model=model)
    assert isinstance(job.inputs, TensorInputs)
    rows = job.inputs.values.clone()
    seconds_a_step({"stack": Form(Vectorised), "loop": Form(Sequential)}, job)
    assert torch.equal(job.inputs.values, rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
