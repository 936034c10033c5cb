"""Data sets of Hugging Face `datasets`, in memory and saved: the package's own objects and files."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kinfold
from kinfold.data import read, read_features
from kinfold.errors import InputError

datasets = pytest.importorskip("datasets")

ROWS = 12
TEXTS = [f"a story of {n} words, or more" for n in range(ROWS)]


@pytest.fixture(autouse=True)
def _no_bars() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def part(kind: str) -> Any:
    label = datasets.ClassLabel(names=["dog", "cat"])
    numbers = np.arange(ROWS) % 2
    if kind == "image":
        pixels = np.arange(ROWS * 48, dtype=np.uint8).reshape(ROWS, 4, 4, 3)
        features = datasets.Features({"i": datasets.Image(), "l": label, "n": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"i": list(pixels), "l": numbers, "n": numbers}, features=features)
    if kind == "text":
        features = datasets.Features({"t": datasets.Value("string"), "l": label})
        return datasets.Dataset.from_dict({"t": TEXTS, "l": numbers}, features=features)
    columns = {"size": np.arange(ROWS) / 3, "shape": numbers, "where": ["u", "v", "w"] * 4, "who": numbers}
    features = datasets.Features(
        {
            "size": datasets.Value("float64"),
            "shape": datasets.ClassLabel(names=["round", "long"]),
            "where": datasets.Value("string"),
            "who": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(("kind", "form"), [("image", "image"), ("text", "text"), ("table", "table")])
@pytest.mark.parametrize("saved", [False, True])
def test_a_part_is_read_by_its_features(kind: str, form: str, saved: bool, tmp_path: Path) -> None:
    rows = part(kind)
    source = str(tmp_path / "mine") if saved else rows
    if saved:
        rows.save_to_disk(source)
    dataset = read(source)
    assert (dataset.form, len(dataset), dataset.name) == (form, ROWS, "mine" if saved else "dataset")
    names = ("long", "round") if kind == "table" else ("cat", "dog")
    assert (dataset.target.labels, dataset.target.name) == (names, "shape" if kind == "table" else "l")
    assert dataset.target.values.tolist() == [1, 0] * 6  # by name: the hub's numbers are another order
    encoder = dataset.fit(np.arange(ROWS))
    assert len(encoder.encode(read_features(source))) == ROWS


def test_a_table_with_a_target_groups_and_labels_among_its_features() -> None:
    dataset = read(part("table"), target="where", groups="who")
    assert list(dataset.features.columns) == ["size", "shape"]
    assert dataset.features["shape"].tolist() == ["round", "long"] * 6
    assert (dataset.target.labels, dataset.groups is None) == (("u", "v", "w"), False)
    assert read(part("table"), target="size").target.kind == "regression"


def test_parts_by_name(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=part("text"), test=part("text").select(range(4)))
    both.save_to_disk(str(tmp_path / "both"))
    assert len(read(both)) == len(read(tmp_path / "both")) == ROWS
    assert len(read(f"{tmp_path / 'both'}:test")) == 4
    result = kinfold.fit({"name": "textcnn", "width": 4, "maps": 4}, str(tmp_path / "both"), tasks=2, epochs=1)
    assert len(result.predict(read_features(f"{tmp_path / 'both'}:test"))) == 4
    with pytest.raises(InputError, match="has no part 'dev'; it has train, test"):
        read(f"{tmp_path / 'both'}:dev")
    part("text").save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match="one is not divided into parts; leave ':test' out"):
        read(f"{tmp_path / 'one'}:test")


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = part("text")
    for source, arguments, message in (
        (rows.remove_columns("l"), {}, "target: name the column of dataset to predict. Columns: t"),
        (rows, {"target": "m"}, "target: unknown name 'm'"),
        (part("image"), {"groups": "n"}, "pictures stand beside n; leave one out"),
        (rows.map(lambda row: {"l": None if row["t"] == TEXTS[3] else row["l"]}), {}, "row 3 has no label"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read(source, **arguments)
        assert "\n" not in str(error.value)
    rows.save_to_disk(str(tmp_path / "mine"))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "mine", whole)
    (arrow,) = (tmp_path / "mine").glob("*.arrow")
    arrow.write_bytes(b"gone")
    with pytest.raises(InputError, match="mine is damaged"):
        read(tmp_path / "mine")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets; install it by: pip install 'kinfold\[huggingface\]'"):
        read(whole)
