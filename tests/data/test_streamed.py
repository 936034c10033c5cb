"""What is decoded, when, how often and how much of it is held; and that nothing is left running."""

import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold import random
from kinfold.data import streamed
from kinfold.data.streamed import Pieces, Reading, Schedule, Streamed, check_num_workers
from kinfold.errors import InputError, RunError

SHAPE = (2, 3)


class Numbered(Streamed):
    """Row i is full of i, plus the key; counts, over all processes, how often each has been decoded."""

    device = torch.device("cpu")

    def __init__(self, n=200, num_workers=2, fails=None):
        self.num_workers, self.fails = num_workers, fails
        self.counts = torch.zeros(n, dtype=torch.int64).share_memory_()
        self.by = torch.zeros(n, dtype=torch.int64).share_memory_()

    def __len__(self):
        return len(self.counts)

    @property
    def form(self):
        return SHAPE, torch.float32

    def decode(self, row, key):
        if row == self.fails:
            raise InputError(f"row {row} is damaged.")
        self.counts[row] += 1
        self.by[row] = os.getpid()
        return torch.full(SHAPE, float(row + key))

    def finished(self, held):
        return held.double()


@pytest.fixture(autouse=True)
def _small_pieces_and_no_process_left(monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 4)  # so that processes start for few rows
    yield
    assert not multiprocessing.active_children()


def batches_of(orders, size):
    """One batch of each task, then the next."""
    steps = max(len(order) // size for order in orders)
    return [order[i * size : (i + 1) * size] for i in range(steps) for order in orders if i < len(order) // size]


def tasks_orders(tasks=4, n=200, share=0.8, seed=0):
    """What tasks read in an epoch: one order, and of it each its own rows."""
    order, draws = torch.randperm(n, generator=random.generator(seed)), random.generator(seed, "own")
    return [order[torch.rand(n, generator=draws) < share] for _ in range(tasks)]


def assert_rows(rows, index, key=0):
    assert rows.shape == (*index.shape, *SHAPE)
    assert bool((rows == (index + key).view(*index.shape, 1, 1)).all())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), min_size=0, max_size=6), min_size=1, max_size=12), st.integers(0, 14))
def test_any_sequence_of_batches_is_served_within_the_slots(rows, most):
    batches = [torch.tensor(each, dtype=torch.int64) for each in rows]
    schedule = Schedule(batches, most)
    assert schedule.slots <= max(most, *map(len, rows))
    held, decoded = np.full(schedule.slots, -1), []
    for step, index in zip(schedule, batches, strict=True):
        assert len(set(step.into.tolist())) == len(step.into) == len(step.missing)
        held[step.into] = step.missing
        decoded += step.missing.tolist()
        assert held[step.slots].tolist() == index.tolist()
    assert set(decoded) == {row for each in rows for row in each}
    first, last = {}, {}
    for number, each in enumerate(rows):
        for row in each:
            first.setdefault(row, number)
            last[row] = number
    live = max(sum(first[row] <= number <= last[row] for row in first) for number in range(len(rows)))
    assert schedule.slots <= live
    if most >= live:
        assert len(decoded) == len(set(decoded)) == schedule.rows


def test_what_makes_room_is_what_is_needed_last():
    batches = [torch.tensor([row]) for row in (0, 1, 2, 0, 1, 2)]
    assert [step.missing.tolist() for step in Schedule(batches, most=2)] == [[0], [1], [2], [], [1], []]


def test_tasks_in_one_order_need_few_slots():
    orders = tasks_orders(tasks=8, n=20_000)
    schedule = Schedule(batches_of(orders, 64), most=20_000)
    assert schedule.rows > 19_900
    assert schedule.slots < 1500


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_each_row_is_decoded_once_for_all(num_workers):
    inputs, batches = Numbered(num_workers=num_workers), batches_of(tasks_orders(), 8)
    reading = inputs.read(batches, key=1000)
    for index in batches:
        assert_rows(next(reading), index, key=1000)
    with pytest.raises(StopIteration):
        next(reading)
    visited = torch.cat(batches).unique()
    assert torch.equal(inputs.counts.nonzero().flatten(), visited)
    assert int(inputs.counts.max()) == 1
    assert reading.decoded == len(visited)
    assert len(inputs.by[visited].unique()) == max(1, num_workers)
    assert (os.getpid() in inputs.by) == (num_workers == 0)


def test_where_slots_are_few_rows_are_decoded_again_and_counted(monkeypatch):
    inputs, batches = (
        Numbered(),
        batches_of([order.flip(0) if t % 2 else order for t, order in enumerate(tasks_orders())], 8),
    )
    monkeypatch.setattr(streamed, "HELD_BYTES", 40 * 6 * 4)
    reading = inputs.read(batches)
    assert len(reading._held) == 40
    for index in batches:
        assert_rows(next(reading), index)
    assert reading.decoded == int(inputs.counts.sum()) > 200


def test_what_is_decoded_ahead_is_bounded(monkeypatch):
    monkeypatch.setattr(streamed, "AHEAD_BYTES", 16 * 6 * 4)
    inputs, batches = Numbered(num_workers=1), batches_of(tasks_orders(), 8)
    reading = inputs.read(batches)
    next(reading)
    time.sleep(0.2)
    assert int(inputs.counts.sum()) <= 8 + 3 * 16
    reading.close()


def test_axes_of_any_number_and_batches_of_nothing():
    inputs = Numbered(num_workers=0)
    assert_rows(inputs.rows(torch.tensor(3)), torch.tensor(3))
    index = torch.tensor([[[1, 2], [3, 1]]])
    assert_rows(inputs.rows(index), index)
    nothing = torch.empty(0, dtype=torch.int64)
    assert inputs.rows(nothing).shape == (0, *SHAPE)
    assert list(inputs.batches([])) == []
    assert [len(each) for each in inputs.batches([nothing, torch.tensor([5]), nothing])] == [0, 1, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_row_that_cannot_be_read(num_workers):
    batches = batches_of(tasks_orders(), 8)
    row = int(batches[30][3])
    inputs = Numbered(num_workers=num_workers, fails=row)
    with pytest.raises(InputError, match=rf"^row {row} is damaged\.$") as error:
        list(inputs.batches(batches))
    assert "in decode" in str(error.value.__cause__)  # where it was raised, in whichever process
    assert not multiprocessing.active_children()  # though the traceback is still held


def open_files():
    files = Path("/proc/self/fd")
    return list(files.iterdir()) if files.is_dir() else []


def test_what_is_left_midway_leaves_nothing_behind():
    gc.collect()
    inputs, batches = Numbered(), batches_of(tasks_orders(), 8)
    for _ in range(2):  # what torch opens once and for all is open after the first
        before = len(open_files())
        reading = inputs.read(batches)
        next(reading)
        assert len(multiprocessing.active_children()) == 2
        reading.close()
        reading.close()
        with pytest.raises(StopIteration):
            next(reading)
        for _ in inputs.batches(batches):
            break
        gc.collect()
        assert not multiprocessing.active_children()
    deadline = time.monotonic() + 30  # threads that hand on to processes close theirs a little later
    while len(open_files()) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(open_files()) <= before


# Where it was killed as it handed on what it had read, torch looks whether files can be opened, and leaves these open.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_is_killed_is_told_of():
    inputs, batches = Numbered(n=2000, num_workers=1), batches_of(tasks_orders(n=2000), 8)
    reading = inputs.read(batches)
    next(reading)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"^data: a reading process ended .*num_workers"):
        list(reading)


def test_an_interrupt_ends_the_processes(monkeypatch):
    inputs, batches = Numbered(), batches_of(tasks_orders(), 8)
    reading = Reading(inputs, batches)
    next(reading)

    def interrupted(self, held):
        raise KeyboardInterrupt

    monkeypatch.setattr(Numbered, "finished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(reading)
    assert not multiprocessing.active_children()


def test_few_rows_start_no_process(monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 32)
    inputs = Numbered()
    inputs.rows(torch.arange(100))
    assert inputs.by[:100].unique().tolist() == [os.getpid()]


def test_a_process_that_may_have_no_children_reads_by_itself(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    inputs = Numbered()
    assert_rows(inputs.rows(torch.arange(200)), torch.arange(200))
    assert inputs.by.unique().tolist() == [os.getpid()]


def test_pieces_come_in_order():
    pieces = Pieces(lambda rows: rows.sum(), iter(np.arange(40).reshape(10, 4)), workers=2)
    assert [int(each) for each in pieces] == np.arange(40).reshape(10, 4).sum(1).tolist()
    pieces.close()


def test_the_number_of_processes_is_checked():
    assert check_num_workers(None) is None
    with pytest.raises(InputError, match="num_workers: is -1; give 0 or more"):
        check_num_workers(-1)
