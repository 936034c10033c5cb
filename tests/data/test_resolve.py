import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from kinfold.data import encoder_from_spec, from_arrays, read, read_features
from kinfold.errors import InputError

FRAME = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "who": ["a", "a", "b", "b"], "y": ["u", "v", "u", "v"]})
X = np.arange(8.0).reshape(4, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    FRAME.to_csv("rows.csv", index=False)
    FRAME.to_csv("rows.tsv", index=False, sep="\t")
    FRAME.to_parquet("rows.parquet")
    np.savez("rows.npz", X=X, y=np.array([0, 1, 0, 1]))
    (tmp_path / "notes.md").write_text("no data")
    (tmp_path / "kf_rows.py").write_text(
        "def pair():\n    return [[1.0], [2.0]], ['a', 'b']\n"
        "def again():\n    return 'rows.csv'\n"
        "def broken():\n    raise OSError('disk\\nfull')\n"
        "def nothing():\n    return None\n"
    )
    sys.modules.pop("kf_rows", None)
    return tmp_path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_tables_by_path(folder, ending):
    for source in (f"rows.{ending}", folder / f"rows.{ending}"):
        dataset = read(source, target="y", groups="who")
        assert (dataset.name, list(dataset.features.columns)) == ("rows", ["x"])
        assert (dataset.target.labels, dataset.groups.tolist()) == (("u", "v"), ["a", "a", "b", "b"])


def test_sources(folder):
    arrays = from_arrays(X, [0, 1, 0, 1])
    assert read(arrays) is arrays
    assert read("digits").name == "digits"
    assert read((X, [0, 1, 0, 1])).features.shape == (4, 2)
    assert read(TensorDataset(torch.from_numpy(X), torch.arange(4))).target.outputs == 4
    assert read("rows.npz").name == "rows"
    assert read(FRAME, target="y").target.labels == ("u", "v")
    assert list(read((FRAME[["x"]], FRAME["y"])).features.columns) == ["x"]
    assert read("kf_rows:pair").target.labels == ("a", "b")
    assert read("kf_rows:again", target="y").name == "rows"


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("digit", {}, "data: unknown name 'digit', did you mean 'digits'"),
        ("absent.csv", {"target": "y"}, "absent.csv: no such file"),
        ("absent.npz", {}, "absent.npz: no such file"),
        ("sub/absent", {}, "sub/absent: no such file"),
        ("absent.xlsx", {}, "absent.xlsx: no such file"),
        ("notes.md", {}, r"not of a known format; give a file ending \.csv"),
        ("rows.csv", {}, "target: name the column of rows to predict. Columns: x, who, y"),
        ("rows.csv", {"target": "Y"}, "target: unknown name 'Y'"),
        ("rows.npz", {"target": "y"}, "target: rows comes with its own target"),
        ("digits", {"groups": "who"}, "groups: digits has no columns"),
        ("digits", {"kind": "regression"}, "kind: digits is for classification"),
        ("kf_rows:absent", {}, "cannot be imported"),
        ("kf_rows:broken", {}, r"data: kf_rows:broken failed \(OSError: disk full\)"),
        ("kf_rows:nothing", {}, "a NoneType cannot be read"),
        (X, {}, "a ndarray cannot be read"),
    ],
)
def test_bad_sources(folder, source, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        read(source, **arguments)
    assert "\n" not in str(error.value)


def test_labels_of_an_earlier_run(folder):
    assert read("rows.csv", target="y", labels=("v", "u")).target.values.tolist() == [1, 0, 1, 0]
    assert read((X[:1], [1]), labels=(0, 1)).target.values.tolist() == [1]
    own = from_arrays(X, ["b", "c", "b", "c"])
    target = read(own, labels=("a", "b", "c")).target
    assert (target.labels, target.values.tolist()) == (("a", "b", "c"), [1, 2, 1, 2])
    for source in (own, (X, ["b", "c", "b", "c"])):
        with pytest.raises(InputError, match="row 1 has the label 'c', which is not known"):
            read(source, labels=("a", "b"))


def test_features_need_no_target(folder):
    for ending in ("csv", "tsv", "parquet"):
        assert list(read_features(f"rows.{ending}").columns) == ["x", "who", "y"]
    np.testing.assert_array_equal(read_features("rows.npz"), X)
    assert read_features((X, [0])) is X
    assert read_features(X) is X
    assert read_features([[1.0], [2.0]]) == [[1.0], [2.0]]
    assert read_features(FRAME) is FRAME
    assert read_features("kf_rows:pair") == [[1.0], [2.0]]
    assert read_features(TensorDataset(torch.ones(2, 2))).shape == (2, 2)
    assert read_features("digits").shape == (1797, 1, 8, 8)
    with pytest.raises(InputError, match="no such file"):
        read_features("absent.parquet")


def test_an_unknown_encoder_is_named():
    with pytest.raises(InputError, match="encoder: unknown name 'tabel', did you mean 'table'"):
        encoder_from_spec({"kind": "tabel"})
