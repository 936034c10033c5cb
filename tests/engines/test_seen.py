"""Evaluation passes are shared: what was computed once for a model as it stands is not computed again."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.data.base import Inputs, TensorInputs
from kinfold.engines.seen import Seen
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.tasks.order import Segment
from kinfold.transfer import Mix, Plan

ENGINES = pytest.mark.parametrize("make", [Sequential, Vectorised, lambda job: Workers(job, processes=2)])


class Counting(nn.Module):
    """Counts the rows that go through it outside training, all tasks' together."""

    rows = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            Counting.rows += len(x)
        return self.layer(x)


def counted(call: Any, *arguments: Any) -> tuple[Any, int]:
    Counting.rows = 0
    return call(*arguments), Counting.rows


def enlarged(lab: SimpleNamespace, **changes: Any) -> Any:
    """A job with so many rows that a CPU scores models one by one."""
    small = lab.make_job(model=Counting)
    inputs = TensorInputs(small.inputs.values.repeat(16, 1))
    train, validation = small.train.repeat(1, 16), small.validation.repeat(1, 16)
    return lab.make_job(
        model=Counting, inputs=inputs, targets=small.targets.repeat(16), train=train, validation=validation, **changes
    )


def test_scores_acceptance_and_teaching_share_their_passes(lab: SimpleNamespace) -> None:
    job = enlarged(lab)
    engine = Vectorised(job)
    engine.train(Segment(1))
    T, own, all_rows = 3, int(job.validation.sum()), torch.arange(len(job.inputs))
    scores, rows = counted(engine.score)
    assert rows == own
    again, rows = counted(engine.score)
    assert rows == 0
    assert torch.equal(again, scores)
    outputs, rows = counted(engine.predict, all_rows)
    assert rows == T * len(all_rows) - own
    plan = Plan((Mix(torch.eye(3, dtype=torch.float64)[[1, 2, 2]]),), trial=job.validation)
    outcome, rows = counted(engine.apply, plan, 1)
    assert rows == int(job.validation[:2].sum())  # the two candidates' alone
    assert torch.equal(outcome.before[:2], scores[:2])
    changed = int(job.validation[outcome.accepted].sum())
    assert counted(engine.score)[1] == changed
    assert counted(engine.predict, all_rows, True)[1] == T * len(all_rows)
    assert counted(engine.predict, all_rows[3:9], True)[1] == 0
    engine.train(Segment(2))
    assert counted(engine.score)[1] == own
    assert not torch.equal(engine.predict(all_rows), outputs)


@ENGINES
@pytest.mark.parametrize("small", [True, False])
def test_what_is_known_is_what_would_be_computed(lab: SimpleNamespace, make: Any, small: bool) -> None:
    """After anything that changes parameters."""
    job = lab.make_job() if small else enlarged(lab)
    engine, rows = make(job), torch.arange(len(job.inputs)).flip(0)[::3]
    tensors, values = engine.state()  # the engine's own memory, as it stands
    start = {name: value.clone() for name, value in tensors.items()}, values
    plan = Plan((Mix(torch.eye(3, dtype=torch.float64)[[1, 0, 2]]),))
    for change in (
        lambda: engine.train(Segment(1)),
        lambda: engine.apply(plan, 1),
        lambda: engine.snapshot(torch.tensor([True, False, True])),
        lambda: engine.train(Segment(2)),
        lambda: engine.snapshot(torch.tensor([False, True, True])),
        lambda: engine.restore(*start),
    ):
        change()
        scores, outputs, best = engine.score(), engine.predict(rows), engine.predict(rows, best=True)
        fresh = Sequential(job)
        fresh.restore(*engine.state())
        lab.assert_close(outputs, fresh.predict(rows))
        lab.assert_close(best, fresh.predict(rows, best=True))
        lab.assert_close(best[:, 2:5], engine.predict(rows[2:5], best=True))
        lab.assert_close(scores, fresh.score())
    engine.close()


class Read(Inputs):
    """Rows that count how often one is read."""

    def __init__(self, values: Tensor, reads: list[int]):
        self.values, self.reads = values, reads

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Tensor:
        self.reads.append(index.numel())
        return self.values[index]


def test_predictions_for_all_tasks_read_a_row_once(lab: SimpleNamespace) -> None:
    job = enlarged(lab)
    reads: list[int] = []
    engine = Vectorised(dataclasses.replace(job, inputs=Read(job.inputs.values.double(), reads)))
    reads.clear()
    engine.predict(torch.arange(600))
    assert sum(reads) == 600


def test_known_rows_in_any_order() -> None:
    validation = torch.tensor([[True, False, True, True], [False, True, False, True]])
    seen = Seen.start(validation, width=1, dtype=torch.float64)
    seen.put(0, torch.tensor([[0.0], [2.0], [3.0]], dtype=torch.float64))
    outputs, known = seen.on(torch.tensor([3, 1, 2]))
    assert known.tolist() == [[True, False, True], [False, False, False]]
    assert outputs[known].flatten().tolist() == [3.0, 2.0]
    assert seen.of(0, torch.tensor([3, 0])).flatten().tolist() == [3.0, 0.0]
    assert seen.of(0, torch.tensor([3, 1])) is None
    assert seen.of(1, torch.tensor([1])) is None
    seen.tasks(slice(0, 1)).forget()
    assert not seen.fresh.any()
