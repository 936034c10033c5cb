"""Model cards: what they say, that all of it is shown as written, and what they leave out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import kinfold
from kinfold.exporting import model_card

HOSTILE = "<b>*pear*</b>\n---\n`x`: [y](z)"


def head_of(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


@pytest.fixture(scope="module")
def result() -> kinfold.Result:
    draws = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draws.normal(size=90), "secret": [f"row number {n} of it" for n in range(90)]})
    frame["is|it"] = np.where(frame["size"] > 0, HOSTILE, "plum")
    return kinfold.fit({"name": "mlp", "hidden": [4]}, frame, target="is|it", tasks=2, epochs=2)


def test_what_a_card_says(result: kinfold.Result) -> None:
    card = model_card(result._finished())
    head = head_of(card)
    assert (head["library_name"], head["pipeline_tag"], head["license"]) == ("kinfold", "tabular-classification", None)
    (metric,) = head["model-index"][0]["results"][0]["metrics"]
    assert result.estimate is not None
    assert (metric["type"], metric["value"]) == ("accuracy", result.estimate.value)
    parameters = sum(p.numel() for p in result.model.parameters())
    low, high = result.estimate.low, result.estimate.high
    for said in (
        f"`mlp` network of {parameters:,} parameters",
        "Rows: 90, of which 9 were sealed",
        result.source.fingerprint,
        f"**accuracy {result.estimate.value:.3f}** on 9 sealed rows; ",
        f"the 95% interval is {low:.3f} to {high:.3f} (Wilson)",
        "quote the estimate, not this",
        "`distil`",
        "fill in `license`",
        'kinfold.load("FOLDER")',
    ):
        assert said in card, said


def test_text_of_the_user_is_shown_as_it_is_and_rows_are_not(result: kinfold.Result) -> None:
    card = model_card(result._finished())
    assert "`<b>*pear*</b> --- 'x': [y](z)`" in card  # between backticks nothing else has a meaning
    assert r"is\|it" in card
    assert card.count("\n---\n") == 1  # the end of the head
    assert "row number 7" not in card


def test_without_an_estimate_and_with_findings(tmp_path: Path) -> None:
    x = np.repeat(np.arange(40.0).reshape(20, 2), 4, axis=0)
    result = kinfold.fit(
        "mlp", (x, np.arange(80) % 2), tasks=2, epochs=1, holdout=0, transfer="none", out=tmp_path / "r"
    )
    card = (tmp_path / "r" / "MODEL_CARD.md").read_text()
    assert card == model_card(result._finished())
    assert "There is no clean estimate" in card
    assert "model-index" not in head_of(card)
    assert "Audit of the splits: validation rows equal to a row their task trains on" in card
    assert "It is optimistic, since the model was selected by it" in card


def test_fingerprints_know_the_data_again(result: kinfold.Result) -> None:
    one, same, other = (
        kinfold.fit(
            "mlp", (np.arange(40.0).reshape(20, 2) + off, np.arange(20) % 2), tasks=2, epochs=1, seed=seed
        ).source
        for off, seed in ((0, 0), (0, 1), (1, 0))
    )
    assert one == same
    assert one.fingerprint != other.fingerprint
