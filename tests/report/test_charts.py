import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kinfold.report import charts
from kinfold.report.charts import Transfer

ABOUT = {"title": "A chart", "describe": "It shows something."}


def elements(svg: str, tag: str, class_: str = "") -> list[ET.Element]:
    return [
        each for each in ET.fromstring(svg).iter(tag) if class_ in each.attrib.get("class", "").split() or not class_
    ]


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in elements(svg, "text")]


def curves(values, *, selected=None, kept=None, when=None) -> str:
    when = np.arange(1.0, len(values) + 1) if when is None else when
    return charts.curves("it", values, when, selected=selected, kept=kept, ylabel="loss", **ABOUT)


def matrix(values, **options) -> str:
    return charts.matrix("it", values, digits=".1f", xlabel="set", ylabel="model", **ABOUT, **options)


def timeline(transfers, tasks=3, periods=5) -> str:
    return charts.timeline("it", transfers, tasks, periods, **ABOUT)


def test_each_line_has_its_number_and_its_dash():
    values = np.random.default_rng(0).random((5, 4))
    svg = curves(values, selected=2, kept=3.0)
    assert {"0", "1", "2", "3"} <= set(texts(svg))
    lines = elements(svg, "path", "line")
    assert len(lines) == 4
    assert [line.attrib["class"] for line in lines if "strong" in line.attrib["class"].split()] == ["line c2 strong"]
    dashes = [line.attrib.get("stroke-dasharray") for line in lines]
    assert dashes[-1] is None  # the selected one is drawn last, and whole
    assert len(set(dashes[:-1])) == 3
    dot = elements(svg, "circle", "dot")
    assert len(dot) == 1
    across = re.findall(r"[ML](\S+) ", lines[-1].attrib["d"])
    assert dot[0].attrib["cx"] == across[2]  # the third period's


def test_of_many_lines_one_stands_out():
    svg = curves(np.random.default_rng(0).random((5, 9)), selected=4)
    assert len(elements(svg, "path", "c-many")) == 8
    assert elements(svg, "path", "strong")
    assert "4" in [each.text for each in elements(svg, "text", "strong")]


def test_a_long_history_is_thinned_out_but_keeps_its_extremes():
    values = np.ones((20_000, 2))
    values[7_777, 0], values[5_000, 1] = 3.0, 0.5
    svg = curves(values)
    assert len(svg) < 10_000
    heights = [
        [float(y) for y in re.findall(r"[ML]\S+? (\S+?)(?=[ML]|$)", line.attrib["d"])]
        for line in elements(svg, "path", "line")
    ]
    assert min(heights[0]) < max(heights[0])  # the spike, upwards
    assert max(heights[1]) > min(heights[1])


def test_a_range_of_a_hundred_is_logarithmic():
    assert {"1", "10", "100"} <= set(texts(curves(np.array([[100.0], [1.0]]))))


numbers = st.floats(-1e6, 1e6) | st.just(float("nan"))


@settings(max_examples=15, deadline=None)
@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers), st.data())
def test_any_numbers_can_be_drawn(values, data):
    periods, tasks = values.shape
    selected = data.draw(st.none() | st.integers(0, tasks - 1))
    kept = data.draw(st.none() | st.integers(1, periods))
    svg = curves(values, selected=selected, kept=None if kept is None else float(kept))
    assert not re.search(r"\bnan\b", svg)


def test_a_matrix_shows_its_numbers_where_they_have_room():
    values = np.arange(64.0).reshape(8, 8)
    assert {f"{value:.1f}" for value in values.flat} <= set(texts(matrix(values)))
    many = texts(matrix(np.arange(289.0).reshape(17, 17)))
    assert {"0.0", "288.0"} <= set(many)  # the ends of the key of the colours
    assert "100.0" not in many


def test_a_missing_cell_is_left_empty():
    shown = texts(matrix(np.array([[1.5, np.nan], [2.5, 3.5]])))
    assert {"1.5", "2.5", "3.5"} <= set(shown)
    assert not any("nan" in text.lower() for text in shown)


def test_exposed_cells_are_hatched_by_how_much_was_seen():
    def hatched(*exposed) -> dict[str, int]:
        svg = matrix(np.ones((2, 2)), exposed=np.array(exposed))
        # the swatch in the key below comes after the cells
        fills = {each.attrib.get("fill"): each.attrib["d"].count("M") for each in reversed(elements(svg, "path"))}
        return {kind: fills[f"url(#it-{kind})"] for kind in ("few", "many") if f"url(#it-{kind})" in fills}

    assert hatched([0.0, 0.0], [0.0, np.nan]) == {}
    assert hatched([0.0, 0.8], [0.0, 0.0]) == {"many": 1}
    assert hatched([0.5, 0.8], [0.1, 0.0]) == {"few": 1, "many": 2}
    assert "half or more of its rows seen" in texts(matrix(np.ones((2, 2)), exposed=np.ones((2, 2))))


def test_names_are_escaped_and_cut():
    long = "x" * 90
    svg = matrix(np.ones((2, 2)), labels=["<b>&", long], frames=[(0, 0, 1, 2)])
    shown = texts(svg)
    assert shown.count("<b>&") == 2
    assert long not in shown
    assert sum(text.startswith("xxx") and text.endswith("…") for text in shown) == 2
    assert len(elements(svg, "path", "frame")) == 2


@pytest.mark.parametrize("tasks", [1, 2, 9, 17])
@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_a_matrix_of_one_value(tasks, value):
    svg = matrix(np.full((tasks, tasks), value), exposed=np.ones((tasks, tasks)))
    assert not re.search(r"\bnan\b", svg)


def test_a_large_matrix_is_of_means():
    values = np.full((300, 300), np.nan)
    values[:10, :10] = 4.0
    values[0, 0] = np.nan
    svg = matrix(values, exposed=np.ones((300, 300)), frames=[(0, 0, 1, 300)])
    assert len(svg) < 120_000
    assert {"4.0"} <= set(texts(svg))
    assert not elements(svg, "path", "frame")


def test_a_transfer_is_filled_where_accepted_and_hollow_where_not():
    one, two = timeline([Transfer(2, 0, 1, True)]), timeline([Transfer(2, 0, 1, False)])
    marks = [[each for each in elements(svg, "circle", "mark") if each.attrib["r"] != "2.5"] for svg in (one, two)]
    assert [mark.attrib["class"] for mark in (*marks[0], *marks[1])] == ["mark c1", "mark hollow c1"]
    assert len(elements(one, "path", "arc")) == 1  # from the donor's lane
    assert not elements(two, "path", "arc")
    for svg in (one, two):
        assert [each.text for each in ET.fromstring(svg).iter("text") if each.attrib.get("font-size") == "10"] == ["1"]


def test_a_lesson_from_several_is_a_square():
    assert len(elements(timeline([Transfer(1, 2, None, True)]), "rect", "mark")) == 1


def test_a_mark_of_several_periods_has_what_was_accepted_most_often():
    several = [
        Transfer(1, 0, 1, False, times=9),
        Transfer(2, 0, 2, True),
        Transfer(3, 0, 2, True),
        Transfer(2, 0, 1, True),
    ]
    svg = timeline(several, periods=60)
    assert charts.columns_of(60) == 4
    (mark,) = [each for each in elements(svg, "circle", "mark") if each.attrib["r"] != "2.5"]
    assert mark.attrib["class"] == "mark c2"
    assert "1–4" in texts(svg)


def test_many_tasks_and_transfers_stay_small():
    transfers = [Transfer(p, t, (t + p) % 256 or None, p % 2 == 0) for p in range(1, 60) for t in range(256)]
    assert len(timeline(transfers, 256, 60)) < 150_000


def test_scores_write_each_score_and_mark_the_one_to_trust():
    def scores(interval) -> str:
        rows = [("own", 0.9), ("sealed", 0.8)]
        return charts.scores("it", rows, interval, digits=".2f", unit=" %", **ABOUT)

    svg = scores((0.7, 0.85))
    assert {"own", "sealed", "0.90 %", "0.80 %"} <= set(texts(svg))
    assert [each.text for each in elements(svg, "text", "strong")] == ["sealed", "0.80 %"]
    assert elements(svg, "path", "interval")
    assert not elements(scores(None), "path", "interval")


def test_a_calibration_curve_has_a_dot_for_each_bin():
    bins = [{"rows": 5, "confidence": 0.5, "accuracy": 0.8}, {"rows": 50, "confidence": 0.9, "accuracy": 0.7}]
    svg = charts.calibration("it", bins, **ABOUT)
    small, large = elements(svg, "circle", "dot")
    assert float(small.attrib["r"]) < float(large.attrib["r"])
    assert float(small.attrib["cx"]) < float(large.attrib["cx"])
    assert float(small.attrib["cy"]) < float(large.attrib["cy"])  # higher up: more of them right
    assert charts.calibration("it", [], **ABOUT)


def test_predictions_that_are_right_lie_on_the_line():
    true = np.array([1.0, 2.0, 4.0])
    svg = charts.predictions("it", true, np.array([1.0, 2.0, np.nan]), **ABOUT)
    (points,) = elements(svg, "path", "points")
    assert points.attrib["d"].count("M") == 2
    places = [tuple(map(float, place)) for place in re.findall(r"M(\S+) (\S+?)h0", points.attrib["d"])]
    (line,) = elements(svg, "path", "ideal")
    x0, y0, x1, y1 = map(float, re.findall(r"[-\d.]+", line.attrib["d"]))
    for x, y in places:
        assert y == pytest.approx(y0 + (x - x0) / (x1 - x0) * (y1 - y0), abs=0.2)


def test_a_series_has_three_channels_at_most():
    svg = charts.series("it", np.random.default_rng(0).random((5, 900)).astype(np.float32), **ABOUT)
    assert len(elements(svg, "path", "line")) == 3
    assert len(svg) < 9_000
