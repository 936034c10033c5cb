"""Data sets of Hugging Face `datasets`, in memory and saved: the package's own objects and files."""

import io
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kinfold
from kinfold.data import read, read_features
from kinfold.errors import InputError

datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")

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


PIXELS = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)


def pictures(folder: Path, names: list[str], labels: bool = True) -> Any:
    """A data set whose pictures are named, and are not in it."""
    columns: dict[str, Any] = {"i": [{"path": name, "bytes": None} for name in names]}
    features = {"i": datasets.Image()}
    if labels:
        columns["l"], features["l"] = [0, 1] * (len(names) // 2), datasets.ClassLabel(names=["u", "v"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_no_address_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    rows = pictures(tmp_path, ["http://127.0.0.1:9/x.png"] * 4)
    with pytest.raises(InputError, match=r"x\.png: no such file"):
        read(rows)
    whole = datasets.Dataset.from_dict({"i": [PIXELS] * 4, "l": [0, 1] * 2}, features=rows.features)
    whole.save_to_disk(str(tmp_path / "theirs"))  # of the others it would fetch the pictures
    (path,) = (tmp_path / "theirs").glob("*.arrow")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.data.table.schema) as stream:
        stream.write_table(rows.data.table)
    for target in ("l", "i"):
        with pytest.raises(
            InputError, match="column 'i' has rows without a picture, or that name one elsewhere"
        ) as error:
            read(tmp_path / "theirs", target=target)
        assert "\n" not in str(error.value)


def test_pictures_in_files_of_the_users_own_are_read(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    dataset = read(pictures(tmp_path, [str(tmp_path / "a.png")] * 4))
    assert (np.asarray(dataset.features[3]).transpose(1, 2, 0) == PIXELS).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "row 0: cannot be read as a picture"),
        (b"", "row 0: cannot be read as a picture .the file is empty"),
        (None, r"row 0: has 9 × 9 pixels; make it smaller, or raise KINFOLD_MAX_PIXELS"),
    ],
)
def test_pictures_are_decoded_as_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    if content is None:
        from PIL import Image

        file = io.BytesIO()
        Image.new("L", (9, 9)).save(file, "PNG")
        content = file.getvalue()
        monkeypatch.setenv("KINFOLD_MAX_PIXELS", "80")
    features = datasets.Features({"i": datasets.Image(), "l": datasets.ClassLabel(names=["u", "v"])})
    rows = datasets.Dataset.from_dict({"i": [{"path": None, "bytes": content}] * 2, "l": [0, 1]}, features=features)
    with pytest.raises(InputError, match=said) as error:
        read(rows)
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_rows_is_refused(tmp_path: Path) -> None:
    part("text").save_to_disk(str(tmp_path / "mine"))
    (path,) = (tmp_path / "mine").glob("*.arrow")
    content = path.read_bytes()
    at = content.index("".join(TEXTS).encode())
    offsets = (0).to_bytes(4, "little") + len(TEXTS[0]).to_bytes(4, "little")
    where = content.rindex(offsets, 0, at) + 4
    path.write_bytes(content[:where] + (2**31 - 2**20).to_bytes(4, "little") + content[where + 4 :])
    with pytest.raises(InputError, match="is damaged .*; remove it, and write it again") as error:
        read(tmp_path / "mine")
    assert "\n" not in str(error.value)
