from pathlib import Path

import pytest
import yaml

from kinfold.report.beside import compare_command, comparison_beside

CONFIG = {"data": "iris", "model": "mlp", "transfer": "amto", "tasks": 8, "epochs": 30}
MARKDOWN = r"""accuracy on rows that no arm has seen, 3 seeds, 8 tasks

| arm | mean (95% interval) | p |
|:---|---:|---:|
| amto | 0.95 (0.93 to 0.97) | 0.01 |
| a\|b (8 × inference) | 0.90 (0.88 to 0.92) | – |

3 seeds, 95% intervals. Differences are paired.

Against a|b over 3 seeds: better beyond doubt: amto.
"""


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    (tmp_path / "comparison.md").write_text(MARKDOWN, encoding="utf-8")
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump({**CONFIG, "arms": ["amto"]}))
    (tmp_path / "runs" / "one").mkdir(parents=True)
    return tmp_path


def test_the_comparison_that_a_run_lies_in(comparison):
    for run in ("one", "runs/one"):
        found = comparison_beside(comparison / run, CONFIG)
        assert found is not None
        assert found.about == "accuracy on rows that no arm has seen, 3 seeds, 8 tasks"
        assert found.head == ("arm", "mean (95% interval)", "p")
        assert found.rows == (
            ("amto", "0.95 (0.93 to 0.97)", "0.01"),
            ("a|b (8 × inference)", "0.90 (0.88 to 0.92)", "–"),
        )
        assert found.notes == "3 seeds, 95% intervals. Differences are paired."
        assert found.sentence == "Against a|b over 3 seeds: better beyond doubt: amto."
        assert (found.differs, found.arm) == ((), "amto")


def test_a_comparison_of_something_else_is_said_to_be(comparison):
    found = comparison_beside(comparison / "one", {**CONFIG, "data": "wine", "tasks": 4, "transfer": "papa"})
    assert found is not None
    assert found.differs == ("data iris and not wine", "tasks 8 and not 4")
    assert found.arm is None


def test_there_is_none(tmp_path, comparison):
    assert comparison_beside(comparison, CONFIG) is None  # it does not lie in itself
    assert comparison_beside(comparison / "a" / "b" / "c", CONFIG) is None
    (comparison / "comparison.md").write_text("nothing\n\nof the kind\n")
    assert comparison_beside(comparison / "one", CONFIG) is None


def test_the_command_is_quoted_and_complete():
    config = {**CONFIG, "data": "my table.csv", "target": "the price", "transfer": ["teach", {"name": "papa"}]}
    assert compare_command(config) is None  # a list of parts is no name
    assert compare_command({**config, "transfer": "teach+papa"}) == (
        "kinfold compare 'my table.csv' --model mlp --tasks 8 --epochs 30 --target 'the price' "
        "--arms conventional,all-rows,teach+papa"
    )
    texts = compare_command({**CONFIG, "target": "y", "texts": ["a note", "b"]})
    assert texts is not None
    assert '--target y --texts \'["a note", "b"]\' --arms' in texts
    assert compare_command({**CONFIG, "transfer": "none"}).endswith("--arms conventional,all-rows")
    assert compare_command({**CONFIG, "data": "<tuple>"}) is None
    assert compare_command({**CONFIG, "model": {"name": "mlp"}}) is None
    assert compare_command({}) is None
