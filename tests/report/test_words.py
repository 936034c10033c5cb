import pytest

from kinfold.report import words
from kinfold.report.words import Scale

SELECTED = {"kind": "task", "task": 0, "criterion": "mean", "score": 0.9}


def test_scale():
    percent = Scale.of("accuracy")
    assert percent.text(0.12345) == "12.3\u00a0%"
    assert percent.text(None) == "–"
    assert percent.title == "accuracy (%)"
    assert percent.difference(-0.021) == "2.1 points"
    assert Scale.of("r2").text(-0.5) == "-0.500"
    assert Scale.of("r2").title == "r2"
    assert Scale.of("mean squared error").difference(12.34) == "12"


def test_the_interval_in_words():
    estimate = {"rows": 1200, "low": 0.9, "high": 0.95, "level": 0.95, "details": {"interval": "wilson"}}
    said = words.interval(estimate, Scale.of("accuracy"))
    assert said["what"].replace("\u00a0", " ") == "On new rows like these, expect accuracy between 90.0 % and 95.0 %."
    assert said["how"] == "Wilson's score interval of 95 % from 1,200 sealed rows, taken as drawn independently."
    assert words.interval({**estimate, "details": {}}, Scale.of("r2"))["how"].startswith("An interval of 95 %")
    assert "no interval" in words.interval({**estimate, "low": None}, Scale.of("r2"))["what"]


@pytest.mark.parametrize(("validation", "within"), [(0.93, True), (0.99, False)])
def test_whether_chance_could_make_the_difference(validation, within):
    result = {
        "tasks": 1,
        "selected": {**SELECTED, "score": validation},
        "contenders": [],
        "scores": {"matrix": [[validation]], "exposed": [[0.0]]},
        "estimate": {"value": 0.9, "low": 0.85, "high": 0.95},
    }
    said = " ".join(words.optimism(result, Scale.of("accuracy")))
    assert ("chance alone could make the difference" in said) is within
    assert "tends to flatter" in said


def test_a_student_of_labels_alone_is_not_called_distilled():
    contender = {"kind": "distilled", "name": "distilled", "members": [], "score": 0.5, "exposed": 1.0}
    selected = {"kind": "distilled", "task": None, "score": 0.5}
    result = {"tasks": 4, "selected": selected, "contenders": [contender]}
    assert words.picked_words(result) == "a model trained in the end on all unsealed rows, by their labels alone"
    result["contenders"] = [{**contender, "members": [0, 1, 2, 3]}]
    assert words.picked_words(result).startswith("a model distilled from all 4 tasks")


def test_sizes():
    assert words.memory(412 * 2**20) == "412 MiB"
    assert words.memory(12 * 2**30) == "12.0 GiB"
    assert words.memory(None) == words.duration(None) == words.percent(None) == "–"
