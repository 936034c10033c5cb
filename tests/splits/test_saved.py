import re

import numpy as np
import pytest
import torch

from kinfold.errors import InputError
from kinfold.files import write_tensors
from kinfold.splits import RowInfo, Saved, draw_splits, load_splits, save_splits

INFO = RowInfo(np.arange(30) % 3, 3)
SPLITS = draw_splits(INFO, None, tasks=3, val_fraction=0.2, holdout=0.1, seed=4)


def assert_same(a, b):
    for name in ("train", "validation", "sealed"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_splits_come_back_as_they_were_whatever_else_is_asked(tmp_path):
    path = tmp_path / "splits.safetensors"
    save_splits(SPLITS, path)
    assert_same(load_splits(path), SPLITS)
    for source in (path, str(path), SPLITS):
        assert_same(draw_splits(INFO, source, tasks=9, val_fraction=0.5, holdout=0, seed=9), SPLITS)


@pytest.mark.parametrize("source", ["file", "splits"])
def test_splits_of_other_data_are_refused(tmp_path, source):
    save_splits(SPLITS, tmp_path / "splits.safetensors")
    saved = Saved(SPLITS if source == "splits" else tmp_path / "splits.safetensors")
    name = "splits" if source == "splits" else str(saved.source)
    with pytest.raises(InputError, match=f"^{re.escape(name)}: 30 rows are split and the data have 29"):
        saved.draw(INFO.take(np.arange(29)), tasks=1, holdout=0, seed=0)


MASKS = {
    "train": torch.tensor([[1, 0]], dtype=torch.uint8),
    "validation": torch.tensor([[0, 1]], dtype=torch.uint8),
    "sealed": torch.tensor([0, 0], dtype=torch.uint8),
}
ABOUT = {"format": "kinfold splits", "version": 1}


@pytest.mark.parametrize(
    ("changes", "about", "message"),
    [
        ({}, None, "is not a file of Kinfold's splits"),
        ({"more": torch.zeros(1)}, ABOUT, "is not a file of Kinfold's splits"),
        ({"sealed": torch.zeros(3, dtype=torch.uint8)}, ABOUT, "its masks are not"),
        ({"sealed": torch.zeros(2)}, ABOUT, "its masks are not"),
        ({"validation": torch.zeros(2, 2, dtype=torch.uint8)}, ABOUT, "its masks are not"),
        ({name: torch.tensor(0, dtype=torch.uint8) for name in MASKS}, ABOUT, "its masks are not"),
        ({name: torch.zeros(1, 1, 1, dtype=torch.uint8) for name in MASKS}, ABOUT, "its masks are not"),
        ({}, ABOUT | {"version": 2}, "is not a file of Kinfold's splits"),
        ({"sealed": torch.tensor([0, 2], dtype=torch.uint8)}, ABOUT, "its masks are not"),
        ({"sealed": torch.tensor([0, 1], dtype=torch.uint8)}, ABOUT, "a sealed row stands"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, about, message):
    write_tensors(tmp_path / "x.safetensors", MASKS | changes, about)
    with pytest.raises(InputError, match=message):
        load_splits(tmp_path / "x.safetensors")


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_splits(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no such file"):
        draw_splits(INFO, tmp_path / "y.safetensors", tasks=1, val_fraction=0.2, holdout=0, seed=0)
