import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kinfold
from kinfold import random
from kinfold.cli import main
from kinfold.data import TextEncoder, encoder_from_spec, from_frame, from_texts, read, read_features
from kinfold.data.text import PADDING, UNKNOWN
from kinfold.data.text_files import TARGET, read_json_table, read_tab
from kinfold.data.words import is_free_text, words_of
from kinfold.errors import InputError

GOOD, BAD = (
    ["a good warm film", "such good fun today", "really good work"],
    ["a bad dull film", "so bad today", "too bad"],
)


def reviews(n=60):
    draws = np.random.default_rng(0)
    labels = [("bad", "good")[row % 2] for row in range(n)]
    fill = [" ".join(draws.choice(["film", "the", "was", "it", "so", "very"], 4)) for _ in range(n)]
    return [f"{words} {label} {row}" for row, (words, label) in enumerate(zip(fill, labels, strict=True))], labels


class Bag(nn.Module):
    """The mean of the embeddings of a text's words."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != PADDING).to(self.linear.weight.dtype)[:, :, None]
        return self.linear((self.embedding(x) * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("ÉTÉ e\u0301te\u0301", ["été", "été"]),  # composed and decomposed are the same word
        ("x_1 3.5€", ["x_1", "3", ".", "5", "€"]),
        (" \t\n\u2028", []),
        ("Привет мир", ["привет", "мир"]),
        ("a-b", ["a", "-", "b"]),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_vocabulary_by_hand():
    texts = ["b b b a a", "c c", "d d d d d d d d"]
    encoder = from_texts(texts, [0, 1, 0]).fit(np.array([0, 1]))
    assert encoder.vocabulary == ("b", "a", "c")  # most frequent first, then by the alphabet; d is in no fitted row
    assert encoder.hints == {"vocabulary": 5}
    assert encoder.input_shape == (5,)
    values = encoder.encode(["c D b", "", "a " * 9]).values
    assert values.dtype == torch.int64
    assert values.tolist() == [[4, UNKNOWN, 2, 0, 0], [UNKNOWN, 0, 0, 0, 0], [3] * 5]
    assert from_texts(texts, [0, 1, 0], min_count=3).fit(np.arange(2)).vocabulary == ("b",)
    assert from_texts(texts, [0, 1, 0], max_words=2).fit(np.arange(2)).vocabulary == ("b", "a")


def test_length_is_the_95th_percentile_up_to_a_limit():
    texts = ["word " * length for length in range(1, 101)]
    labels = np.arange(100) % 2
    assert from_texts(texts, labels).fit(np.arange(100)).length == 96
    assert from_texts(texts, labels, max_length=50).fit(np.arange(100)).length == 50
    assert from_texts(["a " * 300] * 2, [0, 1]).fit(np.arange(2)).length == 256
    assert from_texts(["", "a"], [0, 1]).fit(np.array([0])).length == 1


@given(texts=st.lists(st.text(max_size=30), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_text_can_be_encoded(texts):
    dataset = from_texts([*texts, "word"], np.arange(len(texts) + 1) % 2, min_count=1)
    encoder = dataset.fit(np.arange(len(texts)))
    values = encoder.encode(dataset.features).values
    assert values.shape == (len(texts) + 1, encoder.length)
    assert int(values.max()) < encoder.hints["vocabulary"]
    assert (values[:, 0] != PADDING).all()
    same = encoder_from_spec(json.loads(json.dumps(encoder.spec())))
    assert same == encoder
    for text, row in zip(texts, values.tolist(), strict=False):
        words = words_of(text)[: encoder.length]
        assert [encoder.vocabulary[word - 2] for word in row if word > UNKNOWN] == words
    assert len(dataset.fingerprints()) == len(texts) + 1


@pytest.mark.parametrize(
    ("texts", "y", "options", "message"),
    [
        ([], [], {}, "X: has no rows"),
        ("one text", [0], {}, "X: is a str where texts are needed"),
        (3, [0], {}, "X: is a int where texts are needed"),
        (["a", None], [0, 1], {}, "X: row 1 is a NoneType"),
        (["a", 2.5], [0, 1], {}, "X: row 1 is a float"),
        (["", " "], [0, 1], {}, "X: no text has a word in it"),
        (["a", "b"], [0, 1, 0], {}, "y: has 3 targets for 2 texts"),
        (["a", "b"], [0, 0], {}, "y: every row has the label 0"),
        (["a", "b"], [0, 1], {"max_words": 0}, "max_words: is 0"),
    ],
)
def test_texts_that_cannot_be_used(texts, y, options, message):
    with pytest.raises(InputError, match=message) as error:
        from_texts(texts, y, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series(GOOD), True),
        (pd.Series([*GOOD, None]), True),
        (pd.Series(["red", "green", "blue"]), False),
        (pd.Series(["new york city"] * 9), False),
        (pd.Series(GOOD, dtype="category"), False),
        (pd.Series([1.0, 2.0]), False),
        (pd.Series([None, None]), False),
        (pd.Series(["ok", "no"], name="Text"), True),
        (pd.Series([1, 2], name="text"), False),
    ],
)
def test_free_text(column, expected):
    assert is_free_text(column) is expected


def test_a_table_with_one_column_of_text(tmp_path):
    frame = pd.DataFrame({"review": [*GOOD, *BAD], "stars": [5] * 3 + [1] * 3, "who": list("ababab")})
    frame.loc[0, "review"] = None
    for ending, write in ((".csv", frame.to_csv), (".parquet", frame.to_parquet)):
        path = tmp_path / f"rows{ending}"
        write(path, index=False)
        dataset = read(path, target="stars", groups="who")
        assert (dataset.form, dataset.features[0], dataset.features[1]) == ("text", "", GOOD[1])
        assert dataset.groups.tolist() == list("ababab")
        encoder = dataset.fit(np.arange(6))
        assert encoder.column == "review"
        assert torch.equal(encoder.encode(read_features(path)).values, encoder.encode(dataset.features).values)
        assert read(path, target="stars").form == "table"  # two feature columns
    with pytest.raises(InputError, match="data: has no column 'review'"):
        encoder.encode(frame[["stars"]])
    with pytest.raises(InputError, match="X: row 0 is a int"):
        encoder.encode(pd.DataFrame({"review": [3]}))
    assert read((frame[["review"]], frame["stars"])).form == "text"
    assert read((GOOD + BAD, [1] * 3 + [0] * 3)).form == "text"
    assert from_frame(frame, "stars").form == "table"


def test_json_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text, "label": label} for text, label in (("ok\u2028then", "x"), ("no", "y"), (None, "y"))]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    dataset = read(path)
    assert (dataset.form, dataset.target.labels, dataset.features) == ("text", ("x", "y"), ("ok\u2028then", "no", ""))
    path.write_text('{"size": 1, "kind": "a", "y": 0.5}\n{"size": null, "kind": "b", "y": 1.5}\n')
    assert (read(path, target="y").form, read(path, target="y").target.kind) == ("table", "regression")
    with pytest.raises(InputError, match="target: name the column of rows to predict. Columns: size, kind, y"):
        read(path)


@pytest.mark.parametrize(
    ("tokens", "kind", "expected"),
    [
        (["true", "false"], None, ["true", "false"]),
        (['"007"', '"7"'], None, ["007", "7"]),
        (['"NA"', '"x"'], None, ["NA", "x"]),
        (["7", "-1"], None, [7, -1]),
        (["1.0", "2"], None, [1.0, 2.0]),
        (["1.0", "2.50"], "classification", ["1.0", "2.50"]),
    ],
)
def test_json_labels_are_kept_as_they_were_written(tmp_path, tokens, kind, expected):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"x": {row}, "label": {token}}}\n' for row, token in enumerate(tokens)))
    target = read(path, kind=kind).target  # `label` needs not be named
    written = target.values.tolist() if target.labels is None else [target.labels[c] for c in target.values]
    assert written == expected
    assert [type(value) for value in written] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["1", "null"], "label: row 1 has no value; fill it"),
        (["1", "NaN"], "label: row 1 has no value, since 'NaN' is read as missing"),
        (["1", '"a"'], "label: mixes labels of the types int, str"),
    ],
)
def test_bad_json_labels(tmp_path, tokens, message):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"x": {row}, "label": {token}}}\n' for row, token in enumerate(tokens)))
    with pytest.raises(InputError, match=message):
        read(path)
    assert len(read_features(path)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ('{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ("[1]\n", "line 1 is no object"),
        ("{}\n", "line 1 is no object"),
        ('{"a": 1}\n\n{"b": 1}\n', "line 3 has no 'a', unlike the first"),
        ('{"a": 1}\n{"a": 1, "b": 1}\n', "line 2 has a key 'b', unlike the first"),
        ('{"a": [1]}\n', "line 1, 'a' is a list"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_damaged_json_lines(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=f"x.jsonl: {message}") as error:
        read_json_table(path)
    assert "\n" not in str(error.value)


def test_orange_tab(tmp_path):
    path = tmp_path / "x.tab"
    path.write_text('topic\tbody\nd\tstring\nclass\t\n\t\nspace\t"up\tup"\nsea\t\n')
    table = read_tab(path)
    assert table.attrs[TARGET] == "topic"
    assert table["body"].tolist()[0] == "up\tup"
    assert table["body"].isna().tolist() == [False, True]
    dataset = read(path, target="topic")
    assert (dataset.target.labels, list(dataset.features.columns)) == (("sea", "space"), ["body"])
    path.write_text(
        "n\tid\tskip\tt\tc\nc\ts\ts\ts\td\n\tmeta\tignore\tmeta include=True title=True\tclass\n1\t2\t3\tx\ty\n"
    )
    assert list(read_tab(path).columns) == ["t", "c"]
    path.write_text("n\tid\tm\nc\tdiscrete\tcontinuous\n\n1.5\ta\t?\n")
    table = read_tab(path)
    assert table.attrs[TARGET] is None
    assert table["n"].tolist() == [1.5]
    assert table["m"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 lines; give three of header"),
        ("a\tb\nd\ts\n", "has 2 lines; give three of header"),
        ("a\tb\nd\n\n1\t2\n", "lines 1 to 3 have 2, 1 and 0 fields"),
        ("a\ta\nd\ts\n\n1\t2\n", r"column 1 \(from 0\) has no name of its own"),
        ("a\tb\nd\twords\n\n1\t2\n", "line 2: type: unknown name 'words'"),
        ("a\tb\nd\ts\nclass\tclass\n1\t2\n", "line 3 marks 2 columns as class"),
        ("a\tb\nd\ts\nclass\t\n", "has three header lines and no rows"),
        ("a\tb\nd\ts\nclass\t\n1\t2\n1\n", "line 5 has 1 fields where line 1 has 2"),
        ("a\tb\nd\tc\nclass\t\n1\tx\n", "line 4, column 'b' holds 'x', which is no number"),
        ('a\tb\nd\ts\nclass\t\n1\t"x\n', "line 4 cannot be read as CSV"),
    ],
)
def test_damaged_tab(tmp_path, text, message):
    path = tmp_path / "x.tab"
    path.write_text(text)
    with pytest.raises(InputError, match=f"x.tab: {message}") as error:
        read_tab(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "tab"])
def test_text_trains_by_path(tmp_path, ending):
    texts, labels = reviews()
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        pd.DataFrame({"review": texts, "label": labels}).to_csv(path, index=False)
    elif ending == "jsonl":
        path.write_text(
            "".join(json.dumps({"review": t, "label": y}) + "\n" for t, y in zip(texts, labels, strict=True))
        )
    else:
        rows = [f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)]
        path.write_text("review\tlabel\nstring\tdiscrete\n\tclass\n" + "".join(rows))
    result = kinfold.fit(lambda: Bag(64), path, target="label", tasks=2, epochs=8, batch_size=8, engine="vectorised")
    assert result.engine == "vectorised"
    assert isinstance(result.encoder, TextEncoder)
    assert "good" in result.encoder.vocabulary
    assert (result.predict(read_features(path)) == labels).mean() > 0.9
    with random.seeded(torch.device("cpu"), 0):
        structure = Bag(64)
    loaded = kinfold.load(result.save(tmp_path / "run"), structure)
    assert loaded.encoder == result.encoder
    assert loaded.predict(["so good", "very bad"]).tolist() == ["good", "bad"]


def test_text_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "kf_bag.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Embedding(64, 2), nn.Flatten(), nn.Linear(12, 2))\n"
    )
    texts, labels = reviews()
    pd.DataFrame({"review": texts, "label": labels}).to_csv("rows.csv", index=False)
    pd.DataFrame({"review": texts[:4]}).to_csv("new.csv", index=False)
    train = ["train", "rows.csv", "--target", "label", "--tasks", "2", "--epochs", "2", "--batch-size", "8"]
    assert main([*train, "--model", "kf_bag:make", "--out", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", "rows.csv"]) == 0
    assert main(["predict", "run", "new.csv", "--out", "out.csv"]) == 0
    assert list(pd.read_csv("out.csv").columns) == ["row", "prediction", "probability_bad", "probability_good"]
    (tmp_path / "cut.jsonl").write_text('{"text": "a b c", "label": 1}\n{"text": "d e')
    capsys.readouterr()
    assert main(["train", "cut.jsonl", "--out", "other"]) == 2
    assert capsys.readouterr().err.startswith("kinfold: cut.jsonl: line 2 is not JSON")
    assert not (tmp_path / "other").exists()
