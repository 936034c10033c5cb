"""What a job takes is measured before it starts; what cannot fit is refused, and nothing else is."""

import dataclasses
import gc
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import kinfold
from kinfold.data.image_files import HeldPixels
from kinfold.data.images import ImageInputs, Units
from kinfold.engines import choose_engine, memory
from kinfold.engines.memory import want_of_memory_named
from kinfold.engines.sequential import Sequential
from kinfold.engines.timing import quick_step
from kinfold.errors import InputError, RunError


def needed(job: Any) -> memory.Need | None:
    return memory.needed(job, memory.free_on(job.device))


PARAMETERS = 8 * (5 * 6 + 6 + 6 * 3 + 3)
"""Bytes of the laboratory's network."""


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), PARAMETERS),
        (torch.optim.Adam, 2 * PARAMETERS + 4 * 4),  # and a counter for each of four parameters
    ],
)
def test_a_task_takes_its_parameters_their_best_and_what_the_optimizer_remembers(
    lab: SimpleNamespace, optimizer: Any, slots: int
) -> None:
    need = needed(lab.make_job(optimizer=optimizer, shared_start=True))
    assert need is not None
    assert need.model == 2 * PARAMETERS + slots
    kept = 8 * 10 * (6 + 3 + 5)  # of ten rows: tanh's result, the logarithms of the softmax, the rows
    assert PARAMETERS + kept <= need.step <= PARAMETERS + 3 * kept
    assert need.data == 8 * 64 * 5  # rows in float64; they were given in float32


def test_a_larger_batch_takes_more(lab: SimpleNamespace) -> None:
    small, large = (needed(lab.make_job(batch_size=size)) for size in (10, 40))
    assert small is not None
    assert large is not None
    assert 3 * (small.step - PARAMETERS) < large.step - PARAMETERS < 5 * (small.step - PARAMETERS)
    assert small.model == large.model


def test_a_probe_leaves_nothing_behind(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    started = Sequential.__init__

    def noted(self: Sequential, *given: Any, **named: Any) -> None:
        started(self, *given, **named)
        left.append(weakref.ref(next(iter(self.stack.params.values()))))

    monkeypatch.setattr(Sequential, "__init__", noted)
    gc.disable()  # which would find it, some time later
    try:
        needed(lab.make_job())
        engine, _ = choose_engine("vectorised", lab.make_job())
        quick_step(lab.make_job())
    finally:
        gc.enable()
    assert engine.name == "vectorised"
    assert len(left) >= 3
    assert not any(one() is not None for one in left)


def test_what_is_free_is_asked_before_anything_is_made(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    need = needed(lab.make_job(shared_start=True))
    assert need is not None
    free = iter([float(need.of(3, 3)), *[0.0] * 9])
    monkeypatch.setattr(memory, "free_bytes", lambda: next(free))
    engine, line = choose_engine("vectorised", lab.make_job(shared_start=True))
    assert (engine.name, line) == ("vectorised", None)


def test_pictures_in_memory_are_counted(lab: SimpleNamespace) -> None:
    pixels = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    inputs = ImageInputs(HeldPixels(pixels), Units([0.0] * 3, [1.0] * 3))
    job = dataclasses.replace(lab.make_job(), inputs=inputs, device=torch.device("meta"))  # which is not where they are
    assert memory._copied(job) == 10 * 3 * 4 * 4 + job.targets.nbytes
    assert "in_memory=False" in memory._less_data(job)
    assert "in_memory" not in memory._less_data(lab.make_job())


def test_a_job_that_cannot_be_trained_is_not_judged(lab: SimpleNamespace) -> None:
    assert needed(lab.make_job(model=lambda: nn.Unflatten(1, (1, 5)))) is None


WHOLE = r"memory: 3 tasks in batches of \d+ take at least \S+ MiB, and \S+ MiB of memory are free; give "


@pytest.mark.parametrize(
    ("asked", "changes", "advice"),
    [
        ("auto", {"batch_size": 1}, r"fewer tasks, or a smaller model\.$"),
        ("sequential", {"batch_size": 1, "shared_start": True}, r"fewer tasks, or a smaller model\.$"),
        ("vectorised", {"batch_size": 40, "shared_start": True}, r"a smaller batch_size\.$"),
    ],
)
def test_what_cannot_fit_is_refused_with_advice(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: str, changes: dict[str, Any], advice: str
) -> None:
    job = lab.make_job(**changes, precision="float32")
    need = needed(job)
    assert need is not None
    monkeypatch.setattr(memory, "free_bytes", lambda: need.of(tasks=3, at_once=1) - 1.0)
    with pytest.raises(InputError, match=WHOLE + advice):
        choose_engine(asked, job)
    monkeypatch.setattr(memory, "free_bytes", lambda: float(need.of(tasks=3, at_once=1)))
    engine, line = choose_engine(asked, job)
    assert engine.name == "sequential"
    assert (asked == "sequential") == (line is None)


def test_workers_that_are_too_many_are_told_of_one(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lab.make_job(batch_size=40, shared_start=True)
    need = needed(job)
    assert need is not None
    monkeypatch.setattr("kinfold.engines.choose.usable_cpus", lambda: 2)
    monkeypatch.setattr(memory, "free_bytes", lambda: float(need.of(tasks=3, at_once=1)))
    with pytest.raises(InputError, match=WHOLE + r"a smaller batch_size, or engine sequential\.$"):
        choose_engine("workers", job)


def test_data_that_cannot_be_brought_to_the_device_are_refused(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 8.0 * 64 * 5 - 1)
    with pytest.raises(InputError, match=WHOLE + r"data of fewer rows\.$"):
        choose_engine("auto", lab.make_job())


def test_a_refused_run_leaves_nothing_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000.0)
    with pytest.raises(InputError, match="memory: 8 tasks in batches of 64"):
        kinfold.fit("mlp", "iris", epochs=1, out=tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_want_of_memory_is_named(error: Exception) -> None:
    with pytest.raises(RunError, match="memory: it ran out .*batch_size.*resume") as caught, want_of_memory_named():
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), want_of_memory_named():
        raise RuntimeError("shapes do not fit")
