"""Rows that are read as they are needed give what rows in memory give, bit for bit, each decoded once an epoch."""

import dataclasses
import multiprocessing
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinfold.data import streamed
from kinfold.data.base import TensorInputs
from kinfold.data.items import Items, StreamedItems
from kinfold.engines import Job
from kinfold.engines.devices import Devices
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Method, State
from kinfold.tasks.order import Segment, row_orders
from kinfold.transfer import AMTO, PAPA, TeachRule, Together

ENGINES = {
    "sequential": Sequential,
    "vectorised": Vectorised,
    "workers": partial(Workers, processes=2, kind=Vectorised),
    "devices": partial(Devices, devices=[torch.device("cpu")] * 2),
}
EVERYTHING = Together((AMTO(p_low=1.0, p_high=1.0), TeachRule(cool=2.0), PAPA(steps=3)))


class Counted(Dataset[Any]):
    """Counts, over all processes, how often each item has been read."""

    def __init__(self, x: Tensor, noise: float = 0.0, fails: int | None = None):
        self.x, self.noise, self.fails = x, noise, fails
        self.counts = torch.zeros(len(x), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == self.fails:
            raise OSError("no such sector")
        self.counts[row] += 1
        return self.x[row] + self.noise * torch.randn(self.x.shape[1]), 0


class Shortened(Method):
    """Tasks leave out rows at both ends, each as many as its key says; so they drift apart."""

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        return order[int(key) % 5 : len(order) - int(key) % 3]


@pytest.fixture(autouse=True)
def _small_pieces_and_no_process_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 2)  # so that processes start for few rows
    yield
    assert not multiprocessing.active_children()


def streamed_job(job: Job, num_workers: int = 2, **given: Any) -> tuple[Job, Tensor]:
    """The same job with its rows to be read, and how often each has been."""
    assert isinstance(job.inputs, TensorInputs)
    dataset = Counted(job.inputs.values, **given)
    x = dataset.x
    items = Items(dataset, tuple(x.shape[1:]), x.dtype, torch.zeros(len(x)).numpy().astype("uint64"), num_workers)
    return dataclasses.replace(job, inputs=StreamedItems(items)), dataset.counts


def dropping() -> nn.Module:
    """Draws at every step, and keeps running statistics."""
    return nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def assert_same(one: Any, other: Any) -> None:
    tensors, others = one.engine.state()[0], other.engine.state()[0]
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    untimed = [[{k: v for k, v in e.items() if k != "seconds"} for e in run.events] for run in (one, other)]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_is_the_same_bit_for_bit(lab: SimpleNamespace, name: str) -> None:
    """Dropout, batch norm, accumulation; tasks of several lengths, draws; transfers inside periods, trials, lessons."""
    job = lab.make_job(
        tasks=4, model=dropping, sizes=(44, 36, 25, 44), batch_size=4, accumulate=2, methods=(Shortened(),)
    )
    held = lab.train(ENGINES[name], job, EVERYTHING, epochs=3)
    read = lab.train(ENGINES[name], streamed_job(job)[0], EVERYTHING, epochs=3)
    assert_same(held, read)
    for run in (held, read):
        run.engine.close()


@pytest.mark.usefixtures("narrow")
def test_it_is_where_tasks_step_in_lanes(lab: SimpleNamespace) -> None:
    test_a_run_is_the_same_bit_for_bit(lab, "vectorised")


@pytest.mark.parametrize("name", ["sequential", "vectorised"])
@pytest.mark.parametrize("every", [None, 3])
def test_a_period_decodes_each_row_once(lab: SimpleNamespace, name: str, every: int | None) -> None:
    job, counts = streamed_job(lab.make_job(tasks=4, sizes=(44, 36, 25, 44), batch_size=4))
    engine = ENGINES[name](job)
    counts.zero_()  # of what a start takes
    for period in (1, 2):
        ends = [*([] if every is None else range(every, 11, every)), None]
        first = 0
        for last in ends:
            engine.train(Segment(period, first, last))
            first = last
        orders = row_orders(job.seed, period, job.train)
        visited = torch.cat([order[: len(order) // 4 * 4] for order in orders]).unique()
        assert torch.equal(counts.nonzero().flatten(), visited)
        assert int(counts.max()) == 1
        assert not multiprocessing.active_children()
        counts.zero_()
    engine.score()
    assert torch.equal(counts, job.validation.any(0).long())
    counts.zero_()
    engine.predict(torch.arange(50))
    assert counts.tolist() == [1] * 50 + [0] * 14


def test_segments_that_do_not_follow_each_other(lab: SimpleNamespace) -> None:
    """A period that is left, another way of cutting it, and questions in between."""
    job = lab.make_job(tasks=3, batch_size=4)
    cuts = [Segment(1, 0, 2), Segment(1, 2, 5), Segment(2, 0, 3), Segment(3), Segment(2, 4, 6), Segment(3, 9)]
    one, other = Sequential(job), Sequential(streamed_job(job)[0])
    for cut in cuts:
        assert torch.equal(one.train(cut), other.train(cut)), cut
        assert torch.equal(one.score(), other.score())
    assert torch.equal(one.stack.params["0.weight"], other.stack.params["0.weight"])
    other.train(Segment(4, 0, 2))
    assert multiprocessing.active_children()
    other.close()
    assert not multiprocessing.active_children()


def test_resuming_ends_where_the_whole_run_ended(lab: SimpleNamespace) -> None:
    job = streamed_job(lab.make_job(model=dropping, batch_size=4), noise=0.1)[0]
    whole, before, after = Sequential(job), Sequential(job), Sequential(job)
    for period in (1, 2, 3):
        whole.train(Segment(period))
    before.train(Segment(1))
    after.restore(*before.state())
    for period in (2, 3):
        after.train(Segment(period))
    for name, value in whole.state()[0].items():
        assert torch.equal(value, after.state()[0][name]), name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_items_draw_follows_from_seed_epoch_and_row(lab: SimpleNamespace, num_workers: int) -> None:
    job = lab.make_job()
    inputs = streamed_job(job, num_workers, noise=1.0)[0].inputs
    alone = streamed_job(job, 0, noise=1.0)[0].inputs
    assert isinstance(inputs, StreamedItems)
    assert isinstance(alone, StreamedItems)
    index = torch.arange(40)

    def once(key: int, rows: Tensor = index) -> Tensor:
        (x,) = list(inputs.read([rows], key))
        return x

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    assert torch.equal(once(1, index.flip(0)).flip(0), once(1))
    assert torch.equal(inputs.rows(index), once(0))
    assert torch.equal(alone.rows(index), once(0))  # in whatever process


@pytest.mark.parametrize("name", ENGINES)
def test_an_item_that_fails_midway(lab: SimpleNamespace, name: str) -> None:
    job = lab.make_job(batch_size=4)
    row = int(row_orders(job.seed, 1, job.train)[0][30])  # well after what a start takes
    engine = ENGINES[name](streamed_job(job, fails=row)[0])
    with pytest.raises(
        InputError, match=rf"^data: item {row} of Counted cannot be read \(OSError: no such sector\)\.$"
    ):
        engine.train(Segment(1))
    engine.close()
    assert not multiprocessing.active_children()


def test_a_model_that_fails_midway_leaves_no_process(lab: SimpleNamespace) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(5, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            output: Tensor = self.layer(x)
            return output

    engine = Sequential(streamed_job(lab.make_job(model=Fails, batch_size=4))[0])
    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as held:
        engine.train(Segment(1))
    assert not multiprocessing.active_children()
    assert torch.equal(before, torch.random.get_rng_state()), held  # though the traceback is still there


def test_a_reading_process_that_is_killed_is_told_of(lab: SimpleNamespace) -> None:
    """Torch raises it at once, wherever this process then is: in the model's own code, say."""

    class Kills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(5, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                multiprocessing.active_children()[0].kill()
                time.sleep(5)
            output: Tensor = self.layer(x)
            return output

    engine = Sequential(streamed_job(lab.make_job(model=Kills, batch_size=4))[0])
    with pytest.raises(RunError, match=r"^data: a reading process ended .*num_workers"):
        engine.train(Segment(1))
    assert not multiprocessing.active_children()


def test_workers_read_for_themselves(lab: SimpleNamespace) -> None:
    """Processes that may have no children; so a row is read once by each whose tasks need it."""
    job, counts = streamed_job(lab.make_job(tasks=4, batch_size=4))
    engine = ENGINES["workers"](job)
    counts.zero_()
    engine.train(Segment(1))
    shares = [job.train[:2], job.train[2:]]
    visited = torch.zeros(64, dtype=torch.int64)
    for share in shares:
        orders = row_orders(job.seed, 1, share)
        visited[torch.cat([order[: len(order) // 4 * 4] for order in orders]).unique()] += 1
    assert torch.equal(counts, visited)
    engine.close()
