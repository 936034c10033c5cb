import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kinfold.report import charts
from kinfold.report.charts import Transfer


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter("text")]


def parse(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg", '<svg xmlns:xlink="urn:x"', 1))


def matrix(values, exposed=None) -> str:
    return charts.matrix(values, exposed=exposed, digits=".1f", xlabel="set", ylabel="model", describe="it")


def test_a_matrix_shows_its_numbers_up_to_twelve():
    values = np.arange(144.0).reshape(12, 12)
    assert {f"{value:.1f}" for value in values.flat} <= set(texts(matrix(values)))
    assert "143.0" not in texts(matrix(np.arange(169.0).reshape(13, 13)))


def test_a_missing_cell_is_left_empty():
    shown = texts(matrix(np.array([[1.5, np.nan], [2.5, 3.5]])))
    assert {"1.5", "2.5", "3.5"} <= set(shown)
    assert not any("nan" in text.lower() for text in shown)


def test_a_dot_for_each_exposed_cell():
    values = np.ones((2, 2))
    bare, one, three = (
        str(matrix(values, np.array(exposed))).count("<path")
        for exposed in ([[0.0, 0.0], [0.0, np.nan]], [[0.0, 0.8], [0.0, 0.0]], [[0.5, 0.8], [0.1, 0.0]])
    )
    assert one == bare + 1
    assert three == bare + 3


def test_a_transfer_is_filled_where_accepted_and_hollow_where_not():
    one = charts.timeline([Transfer(2, 0, 1, True)], 3, 5, describe="it")
    two = charts.timeline([Transfer(2, 0, 1, False)], 3, 5, describe="it")
    donor = "#56b4e9"
    assert f"fill: {donor}; stroke: {donor}" in one
    assert f"fill: {donor}; stroke: {donor}" not in two
    assert f"fill: none; stroke: {donor}" in two


def test_many_tasks_and_transfers():
    transfers = [Transfer(p, t, (t + p) % 64 or None, p % 2 == 0) for p in range(1, 20) for t in range(64)]
    svg = charts.timeline(transfers, 64, 20, describe="it")
    assert str(svg).count("<use") >= len(transfers)


def test_comparison_writes_each_score():
    svg = charts.comparison([("own", 0.9), ("sealed", 0.8)], (0.7, 0.85), digits=".2f", describe="it")
    assert {"own", "sealed", "0.90", "0.80"} <= set(texts(svg))
    assert "#0072b2" in svg  # the one to trust
    assert "#0072b2" not in charts.comparison([("own", 0.9)], None, digits=".2f", describe="it")


def test_charts_follow_the_page_and_leave_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    svg = charts.curves(
        np.array([[100.0], [1.0]]), np.array([1.0, 2.0]), selected=0, kept=1, ylabel="loss", describe='a "b" <c>'
    )
    assert dict(matplotlib.rcParams) == before
    assert svg.startswith("<svg viewBox=")
    assert parse(svg).attrib["aria-label"] == 'a "b" <c>'
    assert "var(--ink)" in svg
    assert "var(--ground)" in svg
    assert not re.search("#01020[345]", svg)
    assert {"1", "10", "100"} <= set(texts(svg))  # a range of a hundred is drawn on a logarithmic axis


numbers = st.floats(-1e6, 1e6) | st.just(float("nan"))


@settings(max_examples=15, deadline=None)
@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers), st.data())
def test_any_numbers_can_be_drawn(values, data):
    periods, tasks = values.shape
    selected = data.draw(st.none() | st.integers(0, tasks - 1))
    kept = data.draw(st.none() | st.integers(0, periods - 1))
    when = np.arange(1.0, periods + 1)
    parse(charts.curves(values, when, selected=selected, kept=kept, ylabel="y", describe="it"))


@pytest.mark.parametrize("tasks", [1, 2, 8, 9, 13])
@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_a_matrix_of_one_value(tasks, value):
    parse(matrix(np.full((tasks, tasks), value), np.ones((tasks, tasks))))
