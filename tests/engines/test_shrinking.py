"""Where memory runs out on the way, fewer tasks go through a pass at once, and the run is what it would have been."""

import copy
import gc
import json
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinfold.engines import Job, choose_engine, vectorised
from kinfold.engines.devices import Devices
from kinfold.engines.local import UNRECORDED, LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import RunError
from kinfold.tasks.order import Segment
from kinfold.tasks.update import Updater
from kinfold.transfer import AMTO, PAPA, Together

EVERYTHING = Together((AMTO(p_low=1.0, p_high=1.0), PAPA(steps=3)))
SIZES = (44, 40, 44, 21, 44)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> Iterator[None]:
    """Whoever goes back collects garbage, and need not look for it among all that the tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def job(lab: SimpleNamespace) -> Job:
    """Five tasks, not all of as many steps; optimizers step every second batch, so also across segments."""
    return lab.make_job(tasks=5, sizes=SIZES, model=lambda: lab.network(batch_norm=True), accumulate=2)


def going_back(job: Job) -> Vectorised:
    engine = Vectorised(job)
    engine.goes_back = True  # as on a GPU
    return engine


class Switched:
    """An engine of which fewer tasks go together from some calls of `train` on, by their numbers."""

    def __init__(self, switches: dict[int, int]):
        self.switches = dict(switches)

    def __call__(self, job: Job) -> Vectorised:
        engine, calls = Vectorised(job), iter(range(10**6))
        train = engine.train

        def switching(segment: Segment) -> Any:
            fewer = self.switches.get(next(calls), engine.together)
            while engine.together > fewer:
                engine.shrink("as told")
            return train(segment)

        engine.train = switching  # type: ignore[method-assign]
        return engine


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """To how many tasks at once engines that go back have shrunk, by the number of the call of `train`."""
    found: dict[int, int] = {}
    train, shrink, calls = LocalEngine.train, LocalEngine.shrink, [-1]

    def counted(engine: LocalEngine, segment: Segment) -> Any:
        calls[0] += engine.goes_back
        return train(engine, segment)

    def noted(engine: LocalEngine, problem: str) -> None:
        shrink(engine, problem)
        found[calls[0]] = engine.together

    monkeypatch.setattr(LocalEngine, "train", counted)
    monkeypatch.setattr(LocalEngine, "shrink", noted)
    return found


def limit(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    count: Callable[..., int],
    most: int,
    after: int = 0,
    late: bool = False,
) -> None:
    """From a call of a function on, there is memory for so many tasks at once; `late`: found out when it has worked."""
    real, calls = getattr(owner, name), [0]

    def limited(self: Any, *given: Any, **named: Any) -> Any:
        calls[0] += 1
        short = calls[0] > after and count(*given) > most
        if late or not short:
            result = real(self, *given, **named)
        if short:
            raise torch.OutOfMemoryError("tried to allocate\n2.00 GiB")
        return result

    monkeypatch.setattr(owner, name, limited)


def of_pass(stack: Any, *_: Any) -> int:
    return stack.tasks


def of_step(grads: Any, *_: Any) -> int:
    return len(next(iter(grads.values())))


def bits(trained: Any) -> tuple[dict[str, bytes], Any]:
    tensors, values = trained.engine.state()
    events = copy.deepcopy([event for event in trained.events if event["event"] != "note"])
    for event in events:
        event.pop("seconds", None)
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}, (values, events)


@pytest.mark.parametrize("most", [3, 1])
def test_what_runs_out_at_first_is_as_if_it_had_been_smaller_from_the_start(
    lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    expected = lab.train(Switched({0: most}), job, EVERYTHING, epochs=2)
    limit(monkeypatch, Vectorised, "_recorded", of_pass, most)
    found = lab.train(going_back, job, EVERYTHING, epochs=2)
    assert found.engine.together == most
    assert bits(found) == bits(expected)


SGD, ADAM = partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Adam


@pytest.mark.parametrize(
    ("owner", "name", "count", "late", "optimizer", "after"),
    [
        pytest.param(Vectorised, "_recorded", of_pass, False, SGD, 3, id="a pass between two of one optimizer step"),
        pytest.param(Vectorised, "_recorded", of_pass, False, ADAM, 4, id="a pass"),
        pytest.param(Updater, "step", of_step, False, ADAM, 1, id="an optimizer's first step"),
        pytest.param(Updater, "step", of_step, True, SGD, 4, id="half an optimizer's step"),
        pytest.param(Updater, "step", of_step, True, ADAM, 0, id="half an optimizer's first step"),
    ],
)
def test_what_runs_out_later_goes_on_from_where_its_segment_began(
    lab: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    switches: dict[int, int],
    optimizer: Any,
    owner: type,
    name: str,
    count: Any,
    late: bool,
    after: int,
) -> None:
    job = lab.make_job(tasks=5, sizes=SIZES, accumulate=2 if owner is Vectorised else 1, optimizer=optimizer)
    whole = lab.train(Vectorised, job, EVERYTHING, epochs=2)
    with monkeypatch.context() as patched:
        limit(patched, owner, name, count, most=2, after=after, late=late)
        found = lab.train(going_back, job, EVERYTHING, epochs=2)
    assert list(switches.values()) == [2]  # by way of 3
    assert bits(found) == bits(lab.train(Switched(switches), job, EVERYTHING, epochs=2))
    notes = [event for event in found.events if event["event"] == "note"]
    assert [note["message"] for note in notes] == [
        f"engine: memory of cpu ran out, so it goes on with {n} tasks at a time." for n in (3, 2)
    ]
    assert all(1 <= note["period"] <= 2 for note in notes)
    found.events[:] = [event for event in found.events if event["event"] != "note"]
    lab.assert_agree(found, whole)


def test_segments_are_taken_back_until_every_kind_of_step_has_been_recorded(job: Job) -> None:
    engine, on_a_cpu = going_back(job), Vectorised(job)
    most = int(engine.steps(1).max())
    recorded = UNRECORDED // most + 1  # the period in which steps first are
    assert recorded > 2
    assert [p for p in range(1, 3 * recorded) if engine.may_go_back(p)] == list(range(1, recorded + 2))
    resumed = going_back(job)
    assert [p for p in range(90, 99) if resumed.may_go_back(p)] == [90, 91]
    assert not on_a_cpu.may_go_back(1)


def test_scoring_goes_on_in_parts(lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.train(Vectorised, job, EVERYTHING, epochs=2)
    engine, real = going_back(job), vectorised.stacked

    def limited(function: Any) -> Any:
        def over_tasks(*trees: Any) -> Any:
            if not engine.stack.module.training and len(next(iter(trees[0].values()))) > 1:
                raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
            return real(function)(*trees)

        return over_tasks

    monkeypatch.setattr(vectorised, "stacked", limited)
    found = lab.train(lambda _: engine, job, EVERYTHING, epochs=2)
    assert engine.together == 1
    found.events[:] = [event for event in found.events if event["event"] != "note"]
    lab.assert_agree(found, whole)


@pytest.mark.parametrize("make", [going_back, Sequential])
def test_less_than_one_task_at_a_time_there_is_not(
    lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    limit(monkeypatch, make if isinstance(make, type) else Vectorised, "_recorded", of_pass, most=0)
    engine = make(job)
    engine.goes_back = True
    with pytest.raises(RunError, match="memory: cpu ran out of it with one task at a time .*batch_size") as caught:
        lab.train(lambda _: engine, job)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_at_the_start_begins_smaller(
    lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, Vectorised, "_recorded", of_pass, most=2)
    engine, _ = choose_engine("vectorised", job)
    assert (engine.name, engine.together) == ("vectorised", 2)
    lab.train(lambda _: engine, job, EVERYTHING, epochs=1)


def test_a_resumed_run_goes_on_as_small(lab: SimpleNamespace, job: Job) -> None:
    one = lab.train(Switched({0: 2}), job, EVERYTHING, epochs=2)
    other = Vectorised(job)
    other.restore(*one.engine.state())
    assert other.together == 2
    tensors, values = Vectorised(job).state()
    older = Vectorised(job)
    older.restore(tensors, {name: value for name, value in values.items() if name != "together"})
    assert older.together == 5  # checkpoints of before it was kept
    for engine in (one.engine, other):
        engine.train(Segment(3))
    states = [engine.state()[0] for engine in (one.engine, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_devices_go_back_together(lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.train(Vectorised, job, EVERYTHING, epochs=2)
    devices = Devices(job, devices=[torch.device("cpu")] * 2)
    for share in devices._engines:
        share.goes_back = True
    limit(monkeypatch, Vectorised, "_recorded", of_pass, most=2, after=5)
    found = lab.train(lambda _: devices, job, EVERYTHING, epochs=2)
    notes = [event["message"] for event in found.events if event["event"] == "note"]
    assert notes == ["engine: memory of cpu ran out, so it goes on with 2 tasks at a time."]
    found.events[:] = [event for event in found.events if event["event"] != "note"]
    lab.assert_agree(found, whole)
    again = Devices(job, devices=[torch.device("cpu")] * 2)
    again.restore(*devices.state())
    assert [share.together for share in again._engines] == [2, 2]


def test_shares_that_shrank_are_as_small_when_resumed(lab: SimpleNamespace, job: Job) -> None:
    """Shares of two and three tasks, of which one shrank."""
    devices, again = (Devices(job, devices=[torch.device("cpu")] * 2) for _ in range(2))
    devices._engines[1].shrink("as told")
    devices.train(Segment(1))
    tensors, values = devices.state()[0], json.loads(json.dumps(devices.state()[1]))
    again.restore(tensors, values)
    assert [share.together for share in again._engines] == [2, 2]
    assert values["together"] == [None, None, 2, 2, 2]
    for engine in (devices, again):
        engine.train(Segment(2))
    states = [engine.state()[0] for engine in (devices, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    alone = Vectorised(job)
    alone.restore(tensors, values)
    assert alone.together == 2
    again.restore(tensors, {name: value for name, value in values.items() if name != "together"})
    assert [share.together for share in again._engines] == [2, 3]  # checkpoints of before it was kept


def test_dropout_goes_by_the_tasks_that_step_together(lab: SimpleNamespace) -> None:
    job = lab.make_job(tasks=4, model=lambda: nn.Sequential(nn.Dropout(0.5), lab.network()))
    whole, small = Vectorised(job), Vectorised(job)
    small.shrink("as told")
    losses = [engine.train(Segment(1)) for engine in (whole, small)]
    assert not torch.allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("why", ["no room", "one at a time"])
def test_no_copies_are_made_where_they_are_of_no_use(
    lab: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    engine = going_back(job)
    if why == "one at a time":
        engine.together = 1
    else:
        monkeypatch.setattr("kinfold.engines.local.free_bytes", lambda: engine.kept_bytes() - 1.0)
    monkeypatch.setattr(Vectorised, "kept", lambda self: pytest.fail("copies are made"))
    engine.train(Segment(1))
    assert not engine.returns


def test_copies_are_as_large_as_is_said(job: Job) -> None:
    engine = going_back(job)
    engine.train(Segment(1, 0, 3))
    copied: list[int] = []
    to = torch.Tensor.to

    def counted(self: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        copied.append(self.nbytes)
        return to(self, *given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "to", counted)
        engine.kept()
    assert engine.kept_bytes() == sum(copied) > 0


def test_going_back_takes_no_memory_and_counts_no_row_twice(job: Job) -> None:
    engine = going_back(job)
    engine.train(Segment(1, 0, 1))  # half of an optimizer's step of two batches
    sums = {name: value for own, _ in engine._accumulated.values() for name, value in own.items()}
    before, visits = {name: value.clone() for name, value in sums.items()}, engine.visits()
    back = engine.kept()
    engine.train(Segment(1, 1, None))
    assert engine.visits() > visits
    back()
    assert engine.visits() == visits
    ((own, count),) = engine._accumulated.values()
    assert count == 1
    assert all(own[name] is value and torch.equal(value, before[name]) for name, value in sums.items())
