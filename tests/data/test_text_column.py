"""Free text beside other columns of a table: found, fitted to the given rows alone, and the same after saving."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kinfold
from kinfold.cli import main
from kinfold.data import encoder_from_spec, from_frame, read, text_column
from kinfold.data.table import TableEncoder
from kinfold.data.text_column import TextColumn
from kinfold.errors import InputError

TEXTS = ["a good film", "a bad film indeed", "good good bad", None, "the film"]


def test_weights_by_hand():
    series = pd.Series(TEXTS)
    column = TextColumn.fit("review", series, np.arange(4))  # the last row is not fitted to
    assert column.vocabulary == ("a", "bad", "film", "good")  # in two of the four rows each
    idf = 1 + math.log(5 / 3)
    assert column.idf == pytest.approx((idf,) * 4)
    weights = np.zeros((5, 4))
    weights[0, [0, 2, 3]] = weights[1, [0, 1, 2]] = 1 / math.sqrt(3)
    weights[2, [1, 3]] = np.array([1, 1 + math.log(2)]) / math.hypot(1, 1 + math.log(2))
    weights[4, 2] = 1
    components = np.array(column.components)
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-6)
    # As many components as there are words lose nothing: distances are those of the weights.
    encoded = column.encode(series)
    assert encoded[:, -1].tolist() == [0, 0, 0, 1, 0]
    scaled = encoded[:, :-1] * column.scale + np.array(column.shift)
    np.testing.assert_allclose(scaled @ scaled.T, weights @ weights.T, atol=1e-5)
    assert encoded[:4, :-1].mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert encoded[:4, :-1].std(axis=0).max() == pytest.approx(1, abs=1e-6)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "Ä", "7", "!", "\n"]), max_size=6).map(" ".join)


@given(st.lists(st.none() | WORDS, min_size=2, max_size=12), st.lists(st.none() | WORDS, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_saved_and_exported_it_gives_the_same(fitted, others):
    if not any(text is not None and text.split() for text in fitted):
        fitted = [*fitted, "a"]
    frame = pd.DataFrame({"said": [*fitted, *others]}, dtype=object)
    frame["size"] = np.arange(len(frame)) / 3
    encoder = TableEncoder.fit(frame, np.arange(len(fitted)), texts=("said",))
    values = encoder.encode(frame).values
    assert values.isfinite().all()
    again = encoder_from_spec(json.loads(json.dumps(encoder.spec())))
    assert torch.equal(again.encode(frame).values, values)
    program = encoder.program()
    torch.testing.assert_close(program.module(*program.tensors(frame)), values, rtol=1e-5, atol=1e-5)


def test_columns_are_found_or_named():
    frame = pd.DataFrame({"size": np.arange(30.0), "review": [f"film {n} is good {n % 3}" for n in range(30)]})
    frame["town"] = ["Ulm", "Bonn", "Rome"] * 10
    frame["kind"] = ["a", "b"] * 15
    rows = np.arange(30)

    def kinds(**arguments):
        encoder = from_frame(frame, "kind", **arguments).fit(rows)
        return [type(column).__name__.removesuffix("Column") for column in encoder.columns]

    assert kinds() == ["Number", "Text", "Category"]
    assert kinds(texts=()) == ["Number", "Category", "Category"]
    assert kinds(texts=("town",)) == ["Number", "Category", "Text"]
    made = from_frame(frame, "kind")
    assert read(made, texts="town").texts == ("town",)
    with pytest.raises(InputError, match="texts: unknown name 'twon', did you mean 'town'"):
        read(made, texts=["twon"])
    with pytest.raises(InputError, match="texts: unknown name 'towns', did you mean 'town'"):
        from_frame(frame, "kind", texts=("towns",))
    with pytest.raises(InputError, match="row 0 is a float where a text is needed"):
        from_frame(frame, "kind", texts=("size",))
    with pytest.raises(InputError, match="column 'town' has no word in the rows to train on"):
        from_frame(frame.assign(town=None), "kind", texts=("town",)).fit(rows)


def test_the_key_of_a_configuration(tmp_path, capsys):
    frame = pd.DataFrame({"size": np.arange(60.0), "note": [f"so {'good' if n % 2 else 'bad'}" for n in range(60)]})
    frame.assign(kind=["a", "b"] * 30).to_csv(tmp_path / "rows.csv", index=False)
    quick = ("--target", "kind", "--tasks", "2", "--epochs", "1", "--quiet")
    for texts, column in (("note", "TextColumn"), ("[note]", "TextColumn"), ("[]", "CategoryColumn")):
        out = tmp_path / f"run-{texts}"
        assert main(["train", str(tmp_path / "rows.csv"), *quick, "--texts", texts, "--out", str(out)]) == 0
        assert type(kinfold.load(out).encoder.columns[1]).__name__ == column
    capsys.readouterr()
    assert main(["train", "digits", "--texts", "note", "--tasks", "2"]) == 2
    assert "texts: digits has no columns of which some could be text; leave it out" in capsys.readouterr().err


def test_sizes_are_bounded(monkeypatch):
    monkeypatch.setattr(text_column, "MAX_WORDS", 5)
    monkeypatch.setattr(text_column, "MAX_COMPONENTS", 3)
    texts = pd.Series([" ".join(f"w{n * k % 11}" for k in range(1, 6)) for n in range(30)])
    column = TextColumn.fit("t", texts, np.arange(30))
    assert (len(column.vocabulary), column.width) == (5, 3)


@pytest.mark.parametrize("model", ["mlp", {"name": "ft-transformer", "width": 16, "layers": 1}])
def test_what_only_the_text_says_is_learned(model):
    draws = np.random.default_rng(0)
    good = draws.random(200) > 0.5
    filler = ["the", "film", "was", "long", "and", "loud", "a", "plot"]
    texts = [f"{' '.join(draws.choice(filler, 6))} {'lovely' if one else 'dreadful'}" for one in good]
    frame = pd.DataFrame({"noise": draws.normal(size=200), "review": texts, "liked": np.where(good, "yes", "no")})
    adam = {"name": "adam", "lr": 0.01}
    result = kinfold.fit(
        model, frame, target="liked", tasks=2, epochs=10, batch_size=32, optimizer=adam, transfer="none"
    )
    assert result.estimate is not None
    assert result.estimate.value > 0.9
