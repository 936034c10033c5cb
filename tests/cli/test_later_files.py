"""Files that a run meets later hold fewer kinds of values than the one it was trained on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import kinfold

FAST = ("--model", "mlp", "--tasks", "2", "--epochs", "2")


@pytest.fixture
def trained(cli):
    draws = np.random.default_rng(0)
    columns = {"smoker": ["true", "false", "unknown"], "code": ["01234", "77", "A1"], "dose": ["1.0", "2.50", "n.a."]}
    frame = pd.DataFrame({name: draws.choice(values, 90) for name, values in columns.items()})
    frame["size"] = draws.normal(size=90)
    frame["sick"] = np.where((frame["smoker"] == "true") ^ (frame["code"] == "77"), "yes", "no")
    frame.to_csv("whole.csv", index=False)
    assert cli("train", "whole.csv", "--target", "sick", *FAST, "--out", "run")[0] == 0
    some = frame[(frame["smoker"] == "true") & (frame["code"] != "A1") & (frame["dose"] != "n.a.")]
    some.to_csv("some.csv", index=False)
    return some


def test_predictions_are_those_of_the_words(cli, trained):
    for name in ("whole", "some"):
        assert cli("predict", "run", f"{name}.csv", "--out", f"{name}-predicted.csv")[0] == 0
    whole = pd.read_csv("whole-predicted.csv").iloc[trained.index]
    some = pd.read_csv("some-predicted.csv")
    assert np.allclose(some["probability_yes"], whole["probability_yes"], rtol=0, atol=1e-6)
    status, out, _ = cli("evaluate", "run", "some.csv", "--json")
    assert status == 0
    outputs = kinfold.load("run").outputs(trained)
    expected = F.cross_entropy(outputs, torch.tensor((trained["sick"] == "yes").to_numpy(dtype=np.int64)))
    assert json.loads(out)["details"]["loss"] == pytest.approx(float(expected), abs=1e-6)


def test_what_was_said_of_texts_holds_later(cli):
    words = np.random.default_rng(0).choice(["one", "two", "three", "four"], (60, 4))
    frame = pd.DataFrame({"note": [" ".join(row) for row in words], "y": np.where(words[:, 0] == "one", "a", "b")})
    frame.to_csv("notes.csv", index=False)
    assert cli("train", "notes.csv", "--target", "y", "--texts", "[]", *FAST, "--out", "run")[0] == 0
    assert cli("evaluate", "run", "notes.csv")[0] == 0
    assert cli("predict", "run", "notes.csv", "--out", "p.csv")[0] == 0
    assert cli("report", "run", "--rows", "notes.csv") == (0, "run/report.html\n", "")
    assert 'class="cards"' in Path("run/report.html").read_text()


def test_a_stray_word_among_numbers_is_warned_of(cli):
    size = [f"{number:.3f}" for number in np.random.default_rng(0).normal(size=60)]
    size[7], size[9], size[30] = "n.a.", "", "n.a."
    pd.DataFrame({"size": size, "code": ["A", "1"] * 30, "y": ["a", "b"] * 30}).to_csv("rows.csv", index=False)
    said = "column 'size': is taken as categories, since 2 of its 59 values are no numbers: 'n.a.' (rows 7, 30)"
    _, _, err = cli("train", "rows.csv", "--target", "y", *FAST, "--out", "run")
    assert f"warning: {said}" in err
    assert "'code'" not in err
    found = [event for event in kinfold.load("run").history if event.get("kind") == "column-words"]
    assert [(event["severity"], event["rows"], event["count"]) for event in found] == [("warning", [7, 30], 2)]
    assert said in cli("data", "show", "rows.csv", "--target", "y")[1]
