import json
import math
import os

import numpy as np
import pytest
import torch

from kinfold import files
from kinfold.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "a.json"
    files.write_json(path, {"old": 1})
    real = os.fsync

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"new": 2})
    monkeypatch.setattr(os, "fsync", real)
    assert files.read_json(path) == {"old": 1}
    assert list(path.parent.iterdir()) == [path]


def test_json_holds_no_nan_and_reads_arrays_as_lists(tmp_path):
    value = {1: torch.tensor([1.5, math.nan]), "b": (np.float64(math.inf), np.arange(2)), "c": [None, True, "é"]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == {"1": [1.5, None], "b": [None, [0, 1]], "c": [None, True, "é"]}
    assert json.loads(files.json_line(value)) == files.read_json(tmp_path / "a.json")
    assert "\n" not in files.json_line({"text": "two\nlines"})


def test_json_lines_survive_a_cut_through_a_character(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [{"label": "line\u2028separator\x85"}, {"label": "é"}]
    whole = "".join(files.json_line(line) + "\n" for line in lines).encode()
    path.write_bytes(whole)
    assert files.read_json_lines(path) == lines
    path.write_bytes(whole[: whole.rindex("é".encode()) + 1])
    assert files.read_json_lines(path) == lines[:1]
    path.write_bytes(b'{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        files.read_json_lines(path)


def test_tensors_come_back_bit_for_bit_whatever_memory_they_share(tmp_path):
    base = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = {
        "same": base,
        "again": base,
        "view": base[1:3],
        "turned": base.T,
        "wide": torch.ones(1, 2).expand(3, 2),
        "scalar": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "nan": torch.tensor([math.nan, math.inf]),
    }
    about = {"best": math.inf, "text": "é", "list": [1, None]}
    files.write_tensors(tmp_path / "t.safetensors", given, about)
    tensors, read = files.read_tensors(tmp_path / "t.safetensors")
    assert read == about
    assert set(tensors) == set(given)
    for name, value in given.items():
        assert tensors[name].dtype == value.dtype
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (files.read_json, b"{", "cannot be read as JSON"),
        (files.read_json, b"\xff", "cannot be read as JSON"),
        (files.read_yaml, b"a: [1", "cannot be read as YAML"),
        (files.read_yaml, b"!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        (files.read_tensors, b"", "cannot be read as safetensors"),
        (files.read_tensors, b"x" * 100, "cannot be read as safetensors"),
    ],
)
def test_damaged_files_are_named_in_one_line(tmp_path, read, content, message):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent")


def test_a_header_that_is_not_json_is_an_input_error(tmp_path):
    path = tmp_path / "t.safetensors"
    files.write_tensors(path, {"a": torch.zeros(2)}, "about")
    path.write_bytes(path.read_bytes().replace(b'\\"about\\"', b'\\"about! '))
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        files.read_tensors(path)
