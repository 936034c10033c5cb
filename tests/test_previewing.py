"""A look at data before training: what is said of tables, pictures, series and texts, and of what is wrong in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kinfold import previewing
from kinfold.cli import main
from kinfold.data import from_pixels, from_series, from_texts
from kinfold.errors import InputError
from kinfold.previewing import contact_sheet, preview


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": draws.normal(size=60).round(3),
            "town": draws.choice(["Ulm", "Bonn"], 60),
            "said": [f"what they said was {n} words" for n in range(60)],
            "kind": ["\x1b[31mred"] * 45 + ["blue"] * 15,
        }
    )
    frame.loc[3:5, "size"] = None
    pd.concat([frame, frame[:4]]).to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.csv"


def test_a_table(table: Path) -> None:
    seen, dataset = preview(table, target="kind")
    assert dataset is not None
    assert (seen.name, seen.taken_as, seen.rows, seen.whole, seen.looked_at) == (
        *("rows", "table, classification", 64),
        *(True, 64),
    )
    assert seen.classes == (("\x1b[31mred", 49), ("blue", 15))
    assert [(c.name, c.holds, c.missing, c.unique) for c in seen.columns] == [
        ("size", "number", 4, dataset.features["size"].nunique()),
        ("town", "category", 0, 2),
        ("said", "free text", 0, 60),
    ]
    assert seen.columns[0].values == f"{dataset.features['size'].min()} to {dataset.features['size'].max()}"
    assert seen.doubles == 4
    assert any("validation rows equal to a row their task trains on" in finding for finding in seen.findings)
    assert seen.recipe is not None
    assert seen.recipe["model"] == {"name": "mlp"}


def test_a_table_without_a_target(table: Path) -> None:
    seen, dataset = preview(table)
    assert dataset is None
    assert [column.name for column in seen.columns] == ["size", "town", "said", "kind"]
    assert (seen.classes, seen.recipe, seen.doubles) == (None, None, 4)
    with pytest.raises(InputError, match="target: unknown name 'knd', did you mean 'kind'"):
        preview(table, target="knd")


def test_of_a_large_table_the_beginning_is_read(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = 'size,said,kind\n1,"two\nlines",a\n' + "".join(
        f'{n},"one, {n}\n""more""",{"ab"[n % 2]}\n' for n in range(99)
    )
    table.write_text(long)
    whole, _ = preview(table, target="kind")
    assert (whole.rows, whole.whole) == (100, True)
    for size in range(300, 330):  # wherever it is cut, in quotation marks or not
        monkeypatch.setattr(previewing, "HEAD_BYTES", size)
        seen, _ = preview(table, target="kind")
        assert not seen.whole
        assert 10 < seen.rows < 20


def test_of_many_rows_some_are_looked_at(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previewing, "LOOKED_AT", 20)
    seen, _ = preview(table, target="kind")
    assert (seen.rows, seen.looked_at, seen.classes) == (64, 20, (("\x1b[31mred", 49), ("blue", 15)))


def test_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    y = np.arange(40) % 2
    series = from_series([np.where(draws.random(n) < 0.2, np.nan, n) for n in range(5, 45)], y)
    for dataset, taken, row in (
        (series, "series, classification", "1 channel of "),
        (from_texts([f"a {n} b" for n in range(40)], y), "text, classification", "3 to 3 words, 3 in the median"),
        (from_pixels(np.zeros((40, 4, 5, 3), np.uint8), y), "image, classification", "4 x 5 pixels, 3 channels"),
    ):
        monkeypatch.setattr(previewing, "read", lambda path, dataset=dataset, **_: dataset)
        seen, _ = preview("it")
        assert seen.taken_as == taken
        assert seen.row.startswith(row)
        assert seen.classes == ((0, 20), (1, 20))
    assert seen.doubles == 39
    seen, _ = preview("digits")
    assert "values missing" in previewing._row(series, (1, 44))


def test_contact_sheets(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0]], dtype=np.uint8)
    y = [0] * 3 + [1] * 12 + [2]
    dataset = from_pixels(np.broadcast_to(colours[y][:, None, None], (16, 200, 4, 3)).copy(), ["abc"[c] for c in y])
    content, lines = contact_sheet(dataset)
    assert lines == ("b", "a", "c")
    (tmp_path / "sheet.png").write_bytes(content)
    with image.open(tmp_path / "sheet.png") as drawn:
        sheet = np.asarray(drawn.convert("RGB"))
    height, width = 200 // 3 + 1, 2  # every third pixel, to come below 96
    assert sheet.shape == (3 * (height + 2), 8 * (width + 2), 3)
    assert [sheet[line * (height + 2), 0].tolist() for line in range(3)] == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert sheet[0, 7 * (width + 2)].tolist() == [0, 0, 255]
    assert sheet[height + 2, 3 * (width + 2)].tolist() == [255, 255, 255]  # of a there are three


def test_the_command(table: Path, capsys: Any, tmp_path: Path) -> None:
    assert main(["data", "show", str(table), "--target", "kind"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mred" in out
    for said in (
        "taken as",
        "rows            64",
        "76.6%",
        "free text",
        "recipe",
        "model mlp",
        "warning: validation rows",
    ):
        assert said in out, said
    assert main(["data", "show", str(table), "--target", "kind", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [["\x1b[31mred", 49], ["blue", 15]]
    sheet = tmp_path / "sheet.png"
    for arguments, message in (
        ([str(table), "--out", str(sheet)], "a table without a target has no pictures"),
        (["digits", "--out", str(sheet)], "digits has no pictures to be drawn"),
        (["digits", "--out", "sheet.jpg"], "is no name of a PNG file"),
        (["digits", "--root", "x"], "takes no root"),
        ([], "which data? Give a name"),
    ):
        assert main(["data", "show", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not sheet.exists()


def test_pictures_in_files_are_drawn(tmp_path: Path, capsys: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(12):
            image.fromarray(np.full((8, 9), n, np.uint8)).save(tmp_path / "pets" / name / f"{n}.png")
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", str(tmp_path / "pets"), "--out", str(sheet)]) == 0
    assert "line by line: cat, dog" in capsys.readouterr().out
    with image.open(sheet) as drawn:
        assert drawn.size == (8 * (5 * 9 + 2), 2 * (5 * 8 + 2))  # five times as large
    assert main(["data", "show", str(tmp_path / "pets"), "--out", str(sheet)]) == 2
    assert "exists already" in capsys.readouterr().err
