"""The model trained on all rows, against a plain PyTorch loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinfold import random
from kinfold.candidates import ExponentialAverage, StochasticAverage
from kinfold.checkpoint import Checkpoints
from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.errors import RunError
from kinfold.student import Student, epochs_done, epochs_within, train_student
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import row_orders, steps_in
from kinfold.tasks.state import build_starts

N, EPOCHS = 30, 4
UNSEALED = torch.arange(N) < 26
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
COSINE = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS)


class StoppedError(Exception):
    """Stands for the end of the process."""


class Noted(TensorInputs):
    """Writes down which rows were read."""

    def __init__(self, values: Tensor, read: set[int] | None = None):
        super().__init__(values)
        self.read = set() if read is None else read

    def rows(self, index: Tensor) -> Tensor:
        self.read |= set(index.flatten().tolist())
        return super().rows(index)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Noted":
        return Noted(self.values.to(device, dtype), self.read)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def make_job(**changes: Any) -> Job:
    draws = torch.Generator().manual_seed(1)
    half = torch.arange(N) < 13
    given = {
        "model": network,
        "inputs": Noted(torch.randn(N, 4, generator=draws)),
        "targets": torch.randint(3, (N,), generator=draws),
        "train": torch.stack([half, ~half]),
        "validation": torch.stack([~half, half]),
        "objective": make_objective("classification", 3, None, None, torch.device("cpu"), torch.float64),
        "optimizer": SGD,
        "scheduler": None,
        "batch_size": 8,
        "seed": 5,
        "precision": "float64",
    }
    return Job(**{**given, **changes})


def plain(job: Job, rows: Tensor, targets: Tensor, seed: int, clip_norm: float | None = None) -> nn.Module:
    """The loop that anyone would write, on the same rows in the same order, from the same start."""
    (model,) = build_starts(job.model, 1, shared=False, seed=seed)
    model = model.double()
    optimizer = SGD(model.parameters())
    scheduler = COSINE(optimizer)
    for epoch in range(1, EPOCHS + 1):
        (order,) = row_orders(seed, epoch, rows[None])
        model.train()
        for step in range(len(order) // 8):
            batch = order[8 * step : 8 * (step + 1)]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(job.inputs.rows(batch).double()), targets[batch]).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
        scheduler.step()
    return model


def assert_equal_models(one: nn.Module, other: nn.Module) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-9, atol=1e-12)


SOFT = torch.softmax(torch.randn(N, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 1)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["labels", "probabilities"])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_a_student_is_a_plain_loop(soft: Tensor | None, clip_norm: float | None) -> None:
    job = make_job(clip_norm=clip_norm)
    student = train_student(job, UNSEALED, epochs=EPOCHS, scheduler=COSINE, targets=soft)
    expected = plain(job, UNSEALED, job.targets if soft is None else soft, random.seed_of(5, "student"), clip_norm)
    assert_equal_models(student.model, expected)
    assert not student.model.training
    assert (student.visits, student.watched, student.earlier_seconds) == (EPOCHS * 3 * 8, (), 0.0)
    assert student.seconds > 0


def test_one_hot_targets_are_the_labels() -> None:
    job = make_job()
    one_hot = nn.functional.one_hot(job.targets, 3).double()
    student = train_student(job, UNSEALED, epochs=2, scheduler=None, targets=one_hot)
    assert_equal_models(train_student(job, UNSEALED, epochs=2, scheduler=None).model, student.model)


@pytest.mark.parametrize("loss", ["own", "weighted"])
def test_a_loss_of_class_numbers_is_expected_under_probabilities(loss: str) -> None:
    """Of the user's own making, or one of torch's that knows no probabilities; by the sum over the classes."""
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.softmax(1) - nn.functional.one_hot(targets, 3)).square().sum(1).mean()

    given = own if loss == "own" else nn.MultiMarginLoss(weight=weights)
    objective = make_objective("classification", 3, given, None, torch.device("cpu"), torch.float64)
    job = make_job(objective=objective)
    outputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    each = [[given(outputs[i : i + 1], torch.tensor([c])) for c in range(3)] for i in range(7)]
    by_hand = (SOFT[:7] * torch.tensor(each)).sum(1).mean()
    torch.testing.assert_close(objective.of_probabilities().loss(outputs, SOFT[:7]), by_hand)
    one_hot = nn.functional.one_hot(job.targets, 3).double()
    taught = train_student(job, UNSEALED, epochs=2, scheduler=None, targets=one_hot)
    assert_equal_models(train_student(job, UNSEALED, epochs=2, scheduler=None).model, taught.model)
    assert taught.train_loss > 0


def test_regression() -> None:
    values = torch.randn(N, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    objective = make_objective("regression", 3, None, None, torch.device("cpu"), torch.float64)
    job = make_job(objective=objective, targets=values)
    assert torch.isfinite(torch.tensor(train_student(job, UNSEALED, epochs=2, scheduler=None).train_loss))


def test_no_other_rows_are_read() -> None:
    job = make_job()
    train_student(job, UNSEALED, epochs=6, scheduler=None, watching=(ExponentialAverage().tracker(6),))
    assert isinstance(job.inputs, Noted)
    assert job.inputs.read == set(range(26))


def test_what_draws_are_keyed_by() -> None:
    job = make_job()
    student = train_student(job, UNSEALED, epochs=EPOCHS, scheduler=COSINE, words=("all-rows", 2))
    expected = plain(job, UNSEALED, job.targets, random.seed_of(5, "all-rows", 2))
    assert_equal_models(student.model, expected)
    again = train_student(job, UNSEALED, epochs=EPOCHS, scheduler=COSINE, words=("all-rows", 2))
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in student.model.state_dict().items())


def test_another_start() -> None:
    """A module, from the job or given, is where it starts; and it stays as it was."""
    with random.seeded(torch.device("cpu"), 9):
        start = network().double()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    given = train_student(make_job(), UNSEALED, epochs=1, scheduler=None, model=start)
    own = train_student(make_job(model=start), UNSEALED, epochs=1, scheduler=None)
    still = train_student(
        make_job(optimizer=partial(torch.optim.SGD, lr=0.0)), UNSEALED, epochs=1, scheduler=None, model=start
    )
    assert_equal_models(given.model, own.model)
    assert torch.equal(still.model[0].weight, before["0.weight"])
    assert not torch.equal(given.model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_of_an_optimizer_a_task_the_first() -> None:
    slow = partial(torch.optim.SGD, lr=1e-9)
    several = train_student(make_job(optimizer=[SGD, slow]), UNSEALED, epochs=2, scheduler=None)
    assert_equal_models(several.model, train_student(make_job(), UNSEALED, epochs=2, scheduler=None).model)


def test_who_watches_changes_nothing() -> None:
    watching = (ExponentialAverage(0.5).tracker(EPOCHS), StochasticAverage(0.5).tracker(EPOCHS))
    job = make_job(methods=(StochasticAverage(1.0).tracker(EPOCHS),))
    student = train_student(job, UNSEALED, epochs=EPOCHS, scheduler=COSINE, watching=watching)
    assert_equal_models(student.model, train_student(make_job(), UNSEALED, epochs=EPOCHS, scheduler=COSINE).model)
    exponential, stochastic = student.watched  # and not the job's own method's
    assert float(exponential["count"][0]) == EPOCHS * 3
    assert float(stochastic["count"][0]) == EPOCHS / 2


def test_what_is_told() -> None:
    heard: list[dict[str, Any]] = []
    student = train_student(make_job(), UNSEALED, epochs=EPOCHS, scheduler=COSINE, after=7, listen=heard.append)
    assert [set(event) for event in heard] == [
        {"event", "period", "epoch", "epochs", "train_loss", "lr", "seconds"}
    ] * EPOCHS
    assert [(event["event"], event["period"], event["epoch"], event["epochs"]) for event in heard] == [
        ("student", 7 + epoch, epoch, EPOCHS) for epoch in range(1, EPOCHS + 1)
    ]
    # Half a cosine from 0.1: the rate that the epoch was trained with.
    assert [event["lr"] for event in heard] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert heard[-1]["train_loss"] == student.train_loss < heard[0]["train_loss"]
    assert all(event["seconds"] > 0 for event in heard)


class Sick(nn.Linear):
    """Gives NaN, though no gradient takes that to its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, torch.nan, super().forward(x))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": partial(Sick, 4, 3)},
        {"model": partial(nn.Linear, 4, 3), "optimizer": partial(torch.optim.SGD, lr=float("inf"))},
    ],
    ids=["outputs", "parameters"],
)
def test_divergence_is_an_error_in_one_line(changes: dict[str, Any]) -> None:
    job = make_job(**changes)
    with pytest.raises(RunError, match="on all rows diverged; lower the learning rate, or set clip_norm") as error:
        train_student(job, UNSEALED, epochs=3, scheduler=None)
    assert "\n" not in str(error.value)


def test_schedules_that_follow_a_score_have_the_training_loss() -> None:
    heard: list[dict[str, Any]] = []
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, factor=0.5)
    train_student(make_job(), UNSEALED, epochs=3, scheduler=plateau, listen=heard.append)
    assert [event["lr"] for event in heard] == [
        0.1,
        0.1,
        0.05,
    ]  # it falls, and does not rise; of a NaN the first would be no best


def stop_at(epoch: int, heard: list[int]) -> Callable[[dict[str, Any]], None]:
    def listen(event: dict[str, Any]) -> None:
        heard.append(event["epoch"])
        if event["epoch"] == epoch:
            raise StoppedError

    return listen


def assert_same_end(one: Student, other: Student) -> None:
    assert (one.visits, one.train_loss) == (other.visits, other.train_loss)
    for tree, same in ((one.model.state_dict(), other.model.state_dict()), (one.watched[0], other.watched[0])):
        assert all(torch.equal(value, same[name]) for name, value in tree.items())


@pytest.mark.parametrize("soft", [None, SOFT], ids=["labels", "probabilities"])
def test_stopped_after_any_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: Tensor | None) -> None:
    """With dropout, momentum, a schedule and averages: bit for bit where the uninterrupted student ended."""

    def train(folder: Path | None, listen: Any = None) -> Student:
        job = make_job(model=lambda: nn.Sequential(network(), nn.Dropout(0.3), nn.Linear(3, 3)))
        watching = (ExponentialAverage().tracker(EPOCHS),)
        return train_student(
            *(job, UNSEALED),
            epochs=EPOCHS,
            scheduler=COSINE,
            targets=soft,
            watching=watching,
            listen=listen,
            checkpoints=None if folder is None else Checkpoints(folder),
        )

    monkeypatch.setattr(Checkpoints, "due", lambda _: True)  # else epochs as short as these have none
    whole = train(None)
    for epoch in range(1, EPOCHS + 1):
        folder, heard = tmp_path / str(epoch), []
        with pytest.raises(StoppedError):
            train(folder, stop_at(epoch, heard))
        assert epochs_done(Checkpoints(folder)) == epoch - 1  # the event of an epoch comes before its checkpoint
        resumed = train(folder, stop_at(0, heard))
        assert heard == [*range(1, epoch + 1), *range(epoch, EPOCHS + 1)]
        assert_same_end(whole, resumed)
        assert (resumed.earlier_seconds > 0) == (epoch > 1)
        assert resumed.seconds > resumed.earlier_seconds
        assert epochs_done(Checkpoints(folder)) == EPOCHS
    finished = train(tmp_path / "1", stop_at(EPOCHS, []))  # nothing is left to do
    assert_same_end(whole, finished)
    assert finished.seconds == finished.earlier_seconds


def test_no_checkpoints_no_epochs_done(tmp_path: Path) -> None:
    assert epochs_done(None) == epochs_done(Checkpoints(tmp_path / "nothing")) == 0


@settings(max_examples=100, deadline=None)
@given(visits=st.integers(0, 10**6), rows=st.integers(1, 500), batch_size=st.integers(1, 64))
def test_epochs_within_a_budget(visits: int, rows: int, batch_size: int) -> None:
    """As many as fit, of as many visits as an engine counts; and one in any case."""
    epochs = epochs_within(visits, rows, batch_size)
    each = sum(min(rows, (step + 1) * batch_size) - step * batch_size for step in range(steps_in(rows, batch_size)))
    assert epochs >= 1
    assert epochs == 1 or epochs * each <= visits
    assert (epochs + 1) * each > visits
