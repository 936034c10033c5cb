import json
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from kinfold import checkpoint
from kinfold.checkpoint import Checkpoints
from kinfold.errors import InputError, RunError


def test_the_latest_whole_checkpoint_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    with checkpoints:
        for period in (1, 2, 10):
            checkpoints.save(period, {"a": torch.full((2,), period)}, {"period": period})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["period-000002.safetensors", "period-000010.safetensors"]
    tensors, values = checkpoints.latest()
    assert values == {"period": 10}
    assert tensors["a"].tolist() == [10, 10]

    newest = tmp_path / "checkpoints" / kept[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    assert checkpoints.latest()[1] == {"period": 2}

    oldest = tmp_path / "checkpoints" / kept[0]
    oldest.write_bytes(b"")
    with pytest.raises(InputError, match="period-000010"):
        checkpoints.latest()


def test_a_half_written_file_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, None)
    (tmp_path / ".period-000002.safetensors.123.part").write_bytes(b"half")
    assert checkpoints.latest()[1] is None
    with checkpoints:
        checkpoints.save(2, {"a": torch.ones(1)}, None)
    assert checkpoints.latest()[0]["a"].item() == 1
    assert not (tmp_path / "period-000001.safetensors").exists()


@pytest.fixture
def gate(monkeypatch):
    """Lets a checkpoint be written only once it is opened."""
    opened, write = threading.Event(), checkpoint.write_own_tensors

    def wait_and_write(*arguments):
        assert opened.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_own_tensors", wait_and_write)
    yield opened
    opened.set()


def test_what_is_written_is_what_was_handed_over(tmp_path, gate):
    """Training goes on meanwhile, in the same memory."""
    tensors = {"stack": torch.zeros(2, 3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"row": tensors["stack"][1], **tensors}, {"period": 1})
        tensors["stack"] += 1
        assert checkpoints.due() is False
        assert checkpoints.latest() is None
        gate.set()
    found, values = checkpoints.latest()
    assert values == {"period": 1}
    assert found["stack"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert found["row"].tolist() == [0, 0, 0]


def test_one_is_written_at_a_time(tmp_path, gate):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, 1)
        later = threading.Timer(0.05, gate.set)
        later.start()
        checkpoints.save(2, {"a": torch.zeros(1)}, 2)  # waits for the first
        assert (tmp_path / "period-000001.safetensors").exists()
        later.join()
    assert checkpoints.latest()[1] == 2


def test_a_checkpoint_is_due_when_the_last_one_has_paid(tmp_path, monkeypatch):
    """The clock stands still but for the two seconds that writing takes."""
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    write = checkpoint.write_own_tensors

    def slow(*arguments):
        write(*arguments)
        now[0] += 2.0

    monkeypatch.setattr(checkpoint, "write_own_tensors", slow)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.due()
    with checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, None)
    assert not checkpoints.due()
    now[0] += 37.0
    assert not checkpoints.due()
    now[0] += 1.0
    assert checkpoints.due()


def _wait_until_due(checkpoints):
    while not checkpoints.due():
        time.sleep(0.001)


def _save_and_raise(folder, error):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, 1)
        raise error


def test_an_interrupted_run_still_writes_what_was_handed_over(tmp_path, gate):
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        _save_and_raise(tmp_path, KeyboardInterrupt)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest()[1] == 1


def _full(*arguments):
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_own_tensors", _full)
    message = r"period-000001.*cannot be written \(No space left on device\); make room, and resume the run."
    with pytest.raises(RunError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {}, None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {}, None)
        with pytest.raises(RunError, match=message):
            checkpoints.save(2, {}, None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {}, None)
        with pytest.raises(RunError, match=message):
            _wait_until_due(checkpoints)
    with pytest.raises(ValueError, match="the first"):
        _save_and_raise(tmp_path, ValueError("the first"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    """Whichever of its bits it is; safetensors by itself would read most of them as other numbers."""
    checkpoints, told = Checkpoints(tmp_path), []
    with checkpoints:
        for period in (1, 2):
            checkpoints.save(period, {"a": torch.full((64,), float(period))}, {"period": period})
    newest = tmp_path / "period-000002.safetensors"
    whole = newest.read_bytes()
    for at in (*range(0, 120, 7), *range(120, len(whole), 41), len(whole) - 1):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert checkpoints.latest(told.append)[1] == {"period": 1}, at
        assert told.pop().startswith(f"checkpoint: {newest}: ")
    newest.write_bytes(whole)
    assert checkpoints.latest(told.append)[1] == {"period": 2}
    assert not told


def test_checkpoints_from_before_there_were_checksums_are_read(tmp_path):
    values = {"period": 3}
    save_file({"a": torch.ones(3)}, tmp_path / "period-000003.safetensors", {"about": json.dumps(values)})
    tensors, found = Checkpoints(tmp_path).latest()
    assert found == values
    assert tensors["a"].tolist() == [1, 1, 1]


def test_damaged_ones_do_not_count_among_the_latest(tmp_path):
    """A run that went on from behind them writes two whole ones before it removes the one that it went on from."""
    checkpoints = Checkpoints(tmp_path)
    for period in (1, 9, 10):
        with checkpoints:
            checkpoints.save(period, {"a": torch.zeros(1)}, period)
        if period == 1:
            (tmp_path / "period-000001.safetensors").rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "period-000001.safetensors")
    for period in (2, 3):
        with checkpoints:
            checkpoints.save(period, {"a": torch.zeros(1)}, period)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"period-{number:06d}.safetensors" for number in (period - 1, period)
        ]


def test_its_log_is_flushed_before_a_checkpoint_is_there(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: flushed.append((path, list(tmp_path.iterdir()))))
    with Checkpoints(tmp_path, tmp_path / "log") as checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, 1)
    assert flushed == [(tmp_path / "log", [])]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_are_kept_as_asked(tmp_path, keep):
    for period in range(1, 6):
        with Checkpoints(tmp_path, keep=keep) as checkpoints:
            checkpoints.save(period, {"a": torch.zeros(1)}, period)
        kept = [int(path.stem.split("-")[1]) for path in sorted(tmp_path.iterdir())]
        assert kept == list(range(max(1, period + 1 - keep), period + 1))


def test_they_are_cleared_away(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, 1)
    checkpoints.clear()
    assert checkpoints.latest() is None
