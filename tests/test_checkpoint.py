import threading

import pytest
import torch

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
        assert not checkpoints.due()
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
    with pytest.raises(ValueError, match="the first"):
        _save_and_raise(tmp_path, ValueError("the first"))
