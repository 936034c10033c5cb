"""What docs/determinism.md says, where no other test does; and that it names tests that are there."""

import dataclasses
import random
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kinfold
from kinfold.engines.devices import Devices
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.transfer import AMTO, PAPA, TeachRule, Together

ROOT = Path(__file__).parents[2]
EVERYTHING = Together((AMTO(p_low=1.0, p_high=1.0), TeachRule(cool=2.0), PAPA(steps=3)))
ENGINES = {
    "sequential": Sequential,
    "vectorised": Vectorised,
    "workers": partial(Workers, processes=2),
    "devices": partial(Devices, devices=[torch.device("cpu")] * 2),
}


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def bits(trained: Any) -> tuple[Any, ...]:
    engine = trained.engine
    tensors, _ = engine.state()
    engine.close()
    events = [{k: v for k, v in event.items() if k != "seconds"} for event in trained.events]
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}, events


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_repeats_bit_for_bit(lab: SimpleNamespace, name: str) -> None:
    job = lab.make_job(model=noisy, precision="float32")
    one, other = (bits(lab.train(ENGINES[name], job, EVERYTHING, epochs=2)) for _ in range(2))
    assert one == other


def test_the_number_of_processes_changes_nothing(lab: SimpleNamespace) -> None:
    job = lab.make_job(tasks=4, model=noisy, precision="float32")
    one, *others = (
        bits(lab.train(partial(Workers, processes=count), job, EVERYTHING, epochs=2)) for count in (1, 2, 3)
    )
    assert others == [one, one]


def test_a_task_alone_is_what_it_is_among_others(lab: SimpleNamespace) -> None:
    job = lab.make_job(model=noisy, precision="float32")
    alone = dataclasses.replace(job, train=job.train[:1], validation=job.validation[:1])
    (among, _), (one, _) = (bits(lab.train(Sequential, each, epochs=2)) for each in (job, alone))
    size = {name: len(value) for name, value in one.items()}
    params = [name for name in one if name.startswith(("params/", "best_params/", "buffers/"))]
    assert params
    assert all(among[name][: size[name]] == one[name] for name in params)


def test_the_number_of_threads_changes_rounding_alone(lab: SimpleNamespace) -> None:
    def by(threads: int, job: Any) -> Sequential:
        engine = Sequential(job)
        engine.threads = threads
        return engine

    one, two = (lab.train(partial(by, count), lab.make_job(), EVERYTHING, epochs=2) for count in (1, 2))
    lab.assert_agree(one, two)


def fitted(seed: int = 0) -> Any:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(90, 4)).astype(np.float32)
    result = kinfold.fit(
        {"name": "mlp", "hidden": [8], "dropout": 0.2},
        (x, (x[:, 0] > 0).astype(int)),
        tasks=3,
        epochs=2,
        seed=seed,
        transfer=["amto", "papa"],
        engine="vectorised",
    )
    state = {name: value.numpy().tobytes() for name, value in result.model.state_dict().items()}
    events = [{k: v for k, v in event.items() if k != "seconds"} for event in result.history]
    return state, result.scores.loss_matrix.tolist(), events, result.splits.train.tolist()


def test_a_fit_repeats_whatever_the_global_generators_hold() -> None:
    one = fitted()
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        moved = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert fitted() == one
        now = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    random.setstate(python)
    np.random.set_state(numpy_state)  # noqa: NPY002
    assert torch.equal(moved[0], now[0])
    assert moved[1] == now[1]


def test_another_seed_is_another_run() -> None:
    one, other = fitted(0), fitted(1)
    assert one[0] != other[0]
    assert one[3] != other[3]


def test_the_page_names_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "tested by" not in line]
    for row in rows:
        tested = row.split("|")[3]
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tested)
        assert named or "not tested" in tested, row
        for path, test in named:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
    assert len(rows) > 25
