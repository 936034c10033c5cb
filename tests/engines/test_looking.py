"""Passes that only look, recorded where models pool."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinfold.data.base import TensorInputs
from kinfold.engines import Job, local
from kinfold.engines.local import widest_of_linear
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.random import generator
from kinfold.tasks.order import Segment
from kinfold.tasks.state import TaskStack

ROWS = 700


def pooling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def job(lab: SimpleNamespace) -> Job:
    """Of pictures, with 200 validation rows a task, so that models are scored one by one."""
    draw = generator(0, "pictures")
    validation = torch.zeros(3, ROWS, dtype=torch.bool)
    validation[:, 500:] = True
    return lab.make_job(
        model=pooling,
        inputs=TensorInputs(torch.randn(ROWS, 1, 6, 6, generator=draw)),
        targets=torch.randint(3, (ROWS,), generator=draw),
        train=~validation,
        validation=validation,
        precision="float32",
        periods=3,
    )


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("make", [Sequential, Vectorised])
def test_recorded_looks_give_what_others_give(job: Job, make: type[Sequential] | type[Vectorised]) -> None:
    engine, plain = make(job), make(job)
    plain._looker.possible = False
    for one in (engine, plain):
        one.train(Segment(1))
        one.snapshot(torch.ones(job.tasks, dtype=torch.bool))
    torch.testing.assert_close(engine.score(), plain.score(), rtol=1e-5, atol=1e-6)
    rows = torch.arange(ROWS)
    torch.testing.assert_close(engine.predict(rows, best=True), plain.predict(rows, best=True), rtol=1e-4, atol=1e-5)
    assert not plain._looker._programs
    assert len(engine._looker._programs) == 2  # of the validation rows, and of a whole chunk; not of what was left


@pytest.mark.usefixtures("recorded")
def test_predictions_take_whole_chunks_where_most_of_them_is_unknown(job: Job) -> None:
    engine, plain = Sequential(job), Sequential(job)
    plain._looker.possible = False
    rows = torch.arange(ROWS)
    known = [one.score() for one in (engine, plain)]  # of the last 200 rows, 12 of which are in the first 512
    torch.testing.assert_close(engine.predict(rows), plain.predict(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*known, rtol=1e-5, atol=1e-6)
    assert len(engine._looker._programs) == 2


@pytest.mark.usefixtures("recorded")
def test_looks_see_parameters_as_they_are(job: Job) -> None:
    engine = Sequential(job)
    before = engine.score()
    engine.train(Segment(1))
    assert not torch.equal(engine.score(), before)
    assert len(engine._looker._programs) == 1


def test_where_a_recorded_look_pays(lab: SimpleNamespace, job: Job) -> None:
    assert Sequential(job)._looker.possible
    assert not Sequential(dataclasses.replace(job, periods=2))._looker.possible
    assert not Sequential(dataclasses.replace(job, precision="bf16"))._looker.possible
    assert not Sequential(lab.make_job(periods=99))._looker.possible
    assert Sequential(lab.make_job(periods=100))._looker.possible


@pytest.mark.usefixtures("recorded")
def test_other_numbers_of_rows_are_looked_at_without(job: Job) -> None:
    engine = Sequential(job)
    engine._scores(engine.stack, [torch.arange(200)] * job.tasks, [0, 1, 2])
    assert not engine._looker._programs


@pytest.mark.usefixtures("recorded")
def test_a_candidate_that_is_the_task_scores_as_the_task(job: Job) -> None:
    engine = Sequential(job)
    own = engine.score()
    rows = [mask.nonzero().flatten() for mask in job.validation]
    assert torch.equal(engine._scores(engine.stack, rows, [0, 1, 2]), own)
    assert engine._looker._programs


@pytest.mark.parametrize(
    ("model", "widest"),
    [
        (nn.Sequential(nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3)), 36),
        (nn.Sequential(nn.Linear(36, 1024), nn.ReLU(), nn.Linear(1024, 3)), 1024),
        (
            nn.Sequential(nn.Unflatten(1, (6, 6)), nn.Linear(6, 8), nn.Flatten(), nn.Linear(48, 3)),
            None,
        ),  # steps of a row
        (nn.Sequential(nn.Unflatten(1, (1, 36)), nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(72, 3)), None),
        (nn.ReLU(), None),
    ],
)
def test_networks_of_linear_layers(model: nn.Module, widest: int | None, lab: SimpleNamespace) -> None:
    job = lab.make_job(inputs=TensorInputs(torch.zeros(64, 36)))
    assert widest_of_linear(job, model) == widest
    assert widest_of_linear(dataclasses.replace(job, device=torch.device("cuda")), model) is None


@pytest.mark.parametrize(("width", "rows"), [(8, 2048), (1024, 1024), (9999, 512)])
def test_they_look_at_as_many_rows_as_caches_hold(width: int, rows: int, lab: SimpleNamespace) -> None:
    job = lab.make_job(model=lambda: nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)))
    assert Vectorised(job)._evaluation_rows == rows


@pytest.mark.parametrize("batch_size", [10, 600])
def test_how_many_rows_go_at_once_changes_rounding_alone(batch_size: int, lab: SimpleNamespace) -> None:
    draw = generator(0, "rows")
    validation = torch.zeros(3, 5000, dtype=torch.bool)
    validation[:, 300:] = True
    given = {"inputs": TensorInputs(torch.randn(5000, 5, generator=draw)), "targets": torch.arange(5000) % 3}
    job = lab.make_job(**given, train=~validation, validation=validation, batch_size=batch_size)
    engine, other = Vectorised(job), Vectorised(job)
    assert engine._evaluation_rows == max(2048, 4 * batch_size)
    vars(other)["_evaluation_rows"] = 512
    torch.testing.assert_close(engine.score(), other.score(), rtol=1e-12, atol=1e-12)
    rows = torch.arange(5000)
    torch.testing.assert_close(engine.predict(rows), other.predict(rows), rtol=1e-12, atol=1e-12)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def joint(lab: SimpleNamespace) -> Job:
    """Of linear layers, with 200, 190 and 180 validation rows, in a run that is long enough for joint looks."""
    draw = generator(0, "rows")
    validation = torch.zeros(3, 500, dtype=torch.bool)
    for t in range(3):
        validation[t, 300 + 10 * t :] = True
    given = {"inputs": TensorInputs(torch.randn(500, 5, generator=draw)), "targets": torch.arange(500) % 3}
    made: Job = lab.make_job(model=linear, **given, train=~validation, validation=validation, periods=150)
    return made


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("numbers", [2**21, 3 * 8 * 70])  # in one pass, or in several
def test_joint_looks_give_what_others_give(joint: Job, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_NUMBERS_TOGETHER", numbers)
    engine, plain = Vectorised(joint), Vectorised(joint)
    plain._joint_looker.possible = False
    for period in (1, 2):
        for one in (engine, plain):
            one.train(Segment(period))
        torch.testing.assert_close(engine.score(), plain.score(), rtol=1e-9, atol=1e-9)
    assert not plain._joint_looker._programs
    assert len(engine._joint_looker._programs) == 1
    rows = torch.arange(500)
    torch.testing.assert_close(engine.predict(rows), plain.predict(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("recorded")
def test_some_candidates_score_as_their_tasks_do(joint: Job) -> None:
    engine = Vectorised(joint)
    own = engine.score()
    rows = [mask.nonzero().flatten() for mask in joint.validation]
    for tasks in ([0, 1, 2], [2, 0], [1]):
        candidates = engine.stack.clone()
        for value in candidates.params.values():
            value[[t for t in range(3) if t not in tasks]] = math.nan
        assert torch.equal(engine._scores(candidates, [rows[t] for t in tasks], tasks), own[tasks])
    assert len(engine._joint_looker._programs) == 1
    engine._scores(engine.stack, [rows[2]] * 3, [0, 1, 2])  # others' rows
    assert len(engine._joint_looker._programs) == 1


def test_where_a_joint_look_pays(joint: Job, job: Job) -> None:
    assert Vectorised(joint)._joint_looker.possible
    assert not Sequential(joint)._joint_looker.possible
    assert not Vectorised(dataclasses.replace(job, periods=100))._joint_looker.possible  # it convolves
    assert not Vectorised(dataclasses.replace(joint, periods=133))._joint_looker.possible
    assert not Vectorised(dataclasses.replace(joint, precision="bf16"))._joint_looker.possible
    few = joint.validation.clone()
    few[0, 390:] = False
    assert not Vectorised(dataclasses.replace(joint, validation=few))._joint_looker.possible


@pytest.mark.usefixtures("recorded")
def test_frozen_parameters_are_looked_at(joint: Job) -> None:
    with torch.random.fork_rng([]):
        model = linear()
    next(model.parameters()).requires_grad_(False)
    engine, plain = (Vectorised(dataclasses.replace(joint, model=model)) for _ in range(2))
    plain._joint_looker.possible = False
    torch.testing.assert_close(engine.score(), plain.score(), rtol=1e-9, atol=1e-9)
    rows = [mask.nonzero().flatten() for mask in joint.validation]
    assert torch.equal(engine._scores(engine.stack, [rows[1]], [1]), engine.score()[[1]])
    assert engine._joint_looker._programs


@pytest.mark.usefixtures("recorded")
def test_a_verdict_on_joint_looks_survives_a_checkpoint(joint: Job) -> None:
    engine = Vectorised(joint)
    engine.stack.module.register_forward_hook(lambda *_: None)
    before = engine.score()  # called, since hooks are
    assert not engine._joint_looker.possible
    resumed = Vectorised(joint)
    resumed.restore(*engine.state())
    assert torch.equal(resumed.score(), engine.score())
    torch.testing.assert_close(before, engine.score(), rtol=1e-9, atol=1e-9)
    assert not resumed._joint_looker._programs
    other = Vectorised(joint)
    other.restore(*Sequential(joint).state())  # which knows nothing of them
    assert other._joint_looker.possible


class Halves(nn.Module):
    """Writes to what it is given, and counts its passes in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.passes = pooling(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        x /= 2
        return self.inside(x)


@pytest.mark.usefixtures("recorded")
def test_a_model_may_write_to_its_rows(job: Job) -> None:
    assert isinstance(job.inputs, TensorInputs)
    engine = Sequential(dataclasses.replace(job, model=Halves))
    plain = Sequential(dataclasses.replace(job, inputs=TensorInputs(job.inputs.values / 2)))
    plain.stack.put(torch.arange(3), renamed(engine.stack, plain.stack))
    torch.testing.assert_close(engine.score(), plain.score(), rtol=1e-5, atol=1e-6)
    assert engine._looker._programs
    rows = torch.arange(ROWS)
    torch.testing.assert_close(engine.predict(rows, best=True), plain.predict(rows, best=True), rtol=1e-4, atol=1e-5)


def renamed(stack: TaskStack, like: TaskStack) -> TaskStack:
    return dataclasses.replace(like, params=dict(zip(like.params, stack.params.values(), strict=True)))


@pytest.mark.usefixtures("recorded")
def test_a_model_that_changes_in_training_is_looked_at_without(job: Job) -> None:
    engine = Sequential(dataclasses.replace(job, model=Halves))
    for period in (1, 2):
        engine.train(Segment(period))
        engine.score()
    assert not engine._looker._programs


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("make", [Sequential, partial(Workers, processes=2)])
def test_verdicts_survive_a_checkpoint(job: Job, make: Any) -> None:
    engine = make(dataclasses.replace(job, model=Halves))
    assert engine.state()[1]["recordable"]
    engine.train(Segment(1))
    tensors, values = engine.state()
    assert not values["recordable"]
    resumed = make(dataclasses.replace(job, model=Halves))
    resumed.restore(tensors, {**values, "lookable": False})
    verdicts = resumed.state()[1]
    resumed.score()
    assert not resumed.state()[1]["recordable"]
    assert not verdicts["lookable"]
    engine.close()
    resumed.close()


@pytest.mark.usefixtures("recorded")
def test_a_hook_is_called_at_every_look(job: Job) -> None:
    engine, called = Sequential(job), []
    engine.stack.module.register_forward_hook(lambda *_: called.append(1))
    engine.score()
    engine.train(Segment(1))
    called.clear()
    engine.score()
    assert len(called) == job.tasks
    assert not engine._looker._programs
