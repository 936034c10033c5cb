import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.report import svg
from kinfold.report.svg import Axis


def test_a_drawing_is_named_and_escaped():
    hostile = '<script>"&'
    drawn = svg.drawing("it", 10, [svg.text(1, 2, hostile)], title=hostile, describe=hostile)
    root = ET.fromstring(drawn)
    assert root.attrib["role"] == "img"
    named = root.attrib["aria-labelledby"].split()
    assert [each.attrib["id"] for each in root if "id" in each.attrib] == named
    assert [each.text for each in root] == [hostile] * 3


def test_attributes_are_escaped():
    assert svg.element("a", b='"><c') == '<a b="&#34;&gt;&lt;c"/>'


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9),
    st.booleans(),
)
def test_an_axis_holds_its_values_and_its_ticks(values, log):
    axis = Axis.over(values, 200, 10, log=log and min(values) > 1e-9)
    assert all(10 <= axis.at(value) <= 200 for value in values)
    ticks = axis.ticks(5)
    assert 1 <= len(ticks) <= 12
    assert all(9.9 <= axis.at(value) <= 200.1 for value, _ in ticks)
    assert len({written for _, written in ticks}) == len(ticks)


def test_what_is_not_there_has_no_place():
    axis = Axis.over([1.0, 10.0, math.nan], 0, 1, log=True, room=0.0)
    assert (axis.low, axis.high) == (1.0, 10.0)
    assert math.isnan(axis.at(0.0))
    assert math.isnan(axis.at(math.inf))
    empty = Axis.over([math.nan], 0, 1)
    assert empty.low < empty.high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 250), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_their_order(wanted):
    places = svg.spaced(wanted, 12, 0, 190)
    assert all(-1e-6 <= place <= 190 + 1e-6 for place in places)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    stepped = [places[i] for i in order]
    assert all(b - a > 12 - 1e-6 for a, b in itertools.pairwise(stepped))


def test_more_labels_than_room_are_spread_evenly():
    assert svg.spaced([5.0, 5.0, 5.0], 100, 0, 10) == pytest.approx([0, 5, 10])


@given(st.text(max_size=30), st.floats(10, 200))
@settings(max_examples=40, deadline=None)
def test_a_cut_text_fits(words, room):
    cut = svg.fitted(words, room)
    assert cut == words or (cut.endswith("…") and words.startswith(cut[:-1]))
    assert svg.width_of(cut) <= room or cut == "…"
