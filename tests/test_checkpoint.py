import pytest
import torch

from kinfold.checkpoint import Checkpoints
from kinfold.errors import InputError


def test_the_latest_whole_checkpoint_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
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
    checkpoints.save(1, {"a": torch.zeros(1)}, None)
    (tmp_path / ".period-000002.safetensors.123.part").write_bytes(b"half")
    assert checkpoints.latest()[1] is None
    checkpoints.save(2, {"a": torch.ones(1)}, None)
    assert checkpoints.latest()[0]["a"].item() == 1
    assert not (tmp_path / "period-000001.safetensors").exists()
