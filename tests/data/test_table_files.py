import sys

import numpy as np
import pandas as pd
import pytest
import torch

from kinfold.data import TableEncoder, from_frame, read, read_csv, read_features, read_parquet, write_table
from kinfold.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(write, delimiter):
    rows = [["a", "b", "c"], ["1", "x y", "2.5"], ["2", "z", "3.5"]]
    frame = read_csv(write("\n".join(delimiter.join(row) for row in rows) + "\n"))
    assert frame.to_dict("list") == {"a": [1, 2], "b": ["x y", "z"], "c": [2.5, 3.5]}


def test_quotation_marks_line_breaks_and_a_byte_order_mark(write):
    frame = read_csv(write('\ufeff"a;a";b\r\n"one; ""two""\nthree";1\r\n\r\n"x";2\r\n'))
    assert frame.to_dict("list") == {"a;a": ['one; "two"\nthree', "x"], "b": [1, 2]}


def test_only_the_listed_words_are_missing(write):
    frame = read_csv(write("a,b\n1,None\n,NA\nNaN,n/a\nnull,\nNULL,inf\nnan,x\n"))
    assert frame["a"].isna().tolist() == [False, True, True, True, True, True]
    assert frame["b"].tolist()[0] == "None"
    assert frame["b"].isna().tolist() == [False, True, False, True, False, False]


def test_one_column_and_its_gaps(write):
    assert read_csv(write("a\n1\n\n3\n"))["a"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        (["007", "008"], None, ["007", "008"]),
        (["true", "false"], None, ["true", "false"]),
        (["TRUE", "True"], None, ["TRUE", "True"]),
        ([" oak", "oak "], None, [" oak", "oak "]),
        (["7", "-1"], None, [7, -1]),
        (["7", "-1"], "classification", [7, -1]),
        (["7", "+1"], None, ["7", "+1"]),
        (["7", "1" * 20], None, ["7", "1" * 20]),
        (["1.0", "2.0"], None, [1.0, 2.0]),
        (["1.0", "2.0"], "classification", ["1.0", "2.0"]),
        ([" 1", "2.5"], None, [1.0, 2.5]),
        (["007", "8"], "regression", [7.0, 8.0]),
        (["1e3", ".5"], None, [1000.0, 0.5]),
        (["1_0", "2_0"], None, ["1_0", "2_0"]),
    ],
)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_target_is_kept_as_it_was_written(write, delimiter, fields, kind, expected):
    path = write("\n".join(delimiter.join(row) for row in (("x", "y"), ("0", fields[0]), ("NA", fields[1]))))
    table = read_csv(path, target="y", kind=kind)
    assert table["y"].tolist() == expected
    assert [type(value) for value in table["y"].tolist()] == [type(value) for value in expected]
    assert table["x"].isna().tolist() == [False, True]
    labels = read(path, target="y", kind=kind).target.labels
    assert labels == (None if isinstance(expected[0], float) else tuple(sorted(expected)))


def test_labels_of_a_later_file_are_matched_as_written(write):
    path = write("x,y\n0,2\n1,1\n")  # whole numbers, by themselves
    for labels in ((1, 2), ("007", "1", "2")):
        target = read(path, target="y", kind="classification", labels=labels).target
        assert [str(labels[c]) for c in target.values] == ["2", "1"]
    with pytest.raises(InputError, match="y: row 0 has the label '1.0', which is not known"):
        read(write("x,y\n0,1.0\n1,2.0\n"), target="y", kind="classification", labels=(1, 2))


@pytest.mark.parametrize("word", ["NA", "NaN", "nan", "NULL", "null", "None"])
def test_a_label_that_is_read_as_missing_is_said_to_be(write, word):
    path = write(f"x,y\n0,a\n1,{word}\n")
    with pytest.raises(InputError, match=f"^y: row 1 has no value, since '{word}' is read as missing; .*$"):
        read(path, target="y")
    with pytest.raises(InputError, match="^y: row 1 has no value; fill it or drop the row.$"):
        read(write("x,y\n0,a\n1,\n"), target="y")
    assert len(read_csv(path)) == 2  # nobody asked for its labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 fields where line 1 has 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 fields where line 1 has 2"),
        ('a,b\n"x\ny",2\n3\n', "line 4 has 1 fields"),
        ('a,b\n1,"cut of', "line 2 cannot be read as CSV"),
        ("", "line 1 is empty"),
        ("a,b\n", "no rows"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        (",a\n0,2\n", "column 0 .* has no name"),
        (b"a,b\n\xff\xfe,1\n", "not UTF-8 text"),
        (b"a,b\n\0,1\n", "binary"),
    ],
)
def test_bad_csv(write, content, message):
    path = write(content)
    with pytest.raises(InputError, match=message) as error:
        read_csv(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", [read_csv, read_parquet])
def test_no_such_file(tmp_path, reader):
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        reader(tmp_path)


@pytest.mark.parametrize(("suffix", "reader"), [(".csv", read_csv), (".parquet", read_parquet)])
def test_written_tables_come_back(tmp_path, suffix, reader):
    frame = pd.DataFrame({"class": ["a,b", 'q"', "c\nd"], "p": [0.1, 1 / 3, 1.0]})
    path = tmp_path / f"out{suffix}"
    write_table(path, frame)
    pd.testing.assert_frame_equal(reader(path), frame)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_parquet_table_is_data(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"x": [1.0, None], "c": pd.Categorical(["u", "v"]), "y": [1, 0]}).to_parquet(path)
    dataset = from_frame(read_parquet(path), "y")
    assert dataset.fit(pd.Index([0, 1]).to_numpy()).input_shape == (4,)


def test_bad_parquet_and_bad_endings(write, tmp_path, monkeypatch):
    damaged = write(b"PAR1 and then nothing", "rows.parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet") as error:
        read_parquet(damaged)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"unknown name '\.xlsx'"):
        write_table(tmp_path / "out.xlsx", pd.DataFrame())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: read_parquet(damaged), lambda: write_table(tmp_path / "out.parquet", pd.DataFrame())):
        with pytest.raises(InputError, match=r"install kinfold\[parquet\]"):
            call()
    assert not (tmp_path / "out.parquet").exists()


WORDS = "smoker,code,dose,size\ntrue,01234,1.0,1\nfalse,77,n.a.,2\nunknown,A1,2.50,3\nTRUE,5e3,,4\n"


def test_categories_are_read_as_written_whatever_else_a_file_holds(write):
    whole = read_features(write(WORDS))
    encoder = TableEncoder.fit(whole, np.arange(4))
    assert encoder.written == ("smoker", "code", "dose")
    known = encoder.encode(whole).values
    for row, line in enumerate(WORDS.splitlines()[1:]):
        path = write(f"smoker,code,dose,size\n{line}\n", "one.csv")
        for features in (
            read_features(path, encoder.written),
            read(write(f"smoker,code,dose,size,y\n{line},0.5\n"), target="y", written=encoder.written).features,
        ):
            assert torch.equal(encoder.encode(features).values[0], known[row])
    assert read_csv(path, written=("code", "absent"))["code"].tolist() == ["5e3"]


def test_columns_of_text_are_read_as_written(write):
    path = write("note,y\n0042,0.5\n7.0,1.5\n")
    assert read(path, target="y", texts="note").features["note"].tolist() == ["0042", "7.0"]
