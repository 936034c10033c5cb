import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kinfold.comparing.charts import critical_difference, differences, gaps, write_svg
from kinfold.comparing.statistics import Interval, interval, paired_t
from kinfold.errors import InputError

RANKS = {"all-rows": 1.5, "teach": 1.9, "amto": 3.1, "conventional": 3.5}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter("text")]


def parse(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg", '<svg xmlns:xlink="urn:x"', 1))


def bars(svg: str) -> int:
    """The thick lines of groups."""
    return len(re.findall(r"stroke: #0072b2; stroke-width: 4", svg))


def paired(*values: float):
    return paired_t(np.array(values))


def test_a_critical_difference_diagram_names_all_and_joins_groups():
    svg = critical_difference(RANKS, 1.3, describe="ranks")
    assert {"all-rows 1.50", "teach 1.90", "amto 3.10", "conventional 3.50", "critical difference 1.30"} <= set(
        texts(svg)
    )
    assert bars(svg) == 3  # all-rows and teach, teach and amto, amto and conventional
    assert bars(critical_difference(RANKS, 0.1, describe="ranks")) == 0
    assert bars(critical_difference(RANKS, 9.0, describe="ranks")) == 1


@pytest.mark.parametrize("count", [2, 3, 14])
def test_any_number_of_arms_is_drawn(count):
    ranks = {f"arm {i}": 1.0 + i for i in range(count)}
    written = texts(critical_difference(ranks, 2.5, describe="ranks"))
    assert all(f"arm {i} {1 + i:.2f}" in written for i in range(count))


def test_names_are_plain_text():
    named = {"$x_1$": 1.2, "<b> & co": 1.8}
    assert {"$x_1$ 1.20", "<b> & co 1.80"} <= set(texts(critical_difference(named, 1.0, describe="ranks")))
    intervals = {name: Interval(1.0, 0.5, 1.5) for name in named}
    assert set(named) <= set(texts(gaps(intervals, intervals, describe="gaps")))
    rows = {name: paired(1.0, 2.0) for name in named}
    assert {*named, "better than $c$ by"} <= set(texts(differences(rows, "$c$", describe="differences")))


def test_gaps_draws_what_there_is():
    loss = {arm: interval(np.array([0.1, 0.2]) + i) for i, arm in enumerate(RANKS)}
    gap = {**loss, "amto": Interval(math.nan, math.nan, math.nan), "teach": Interval(3.0, math.nan, math.nan)}
    svg = gaps(loss, gap, describe="gaps")
    assert {*RANKS, "training loss", "generalization gap"} <= set(texts(svg))
    many = {f"arm {i}": Interval(i, i - 1, i + 1) for i in map(float, range(20))}
    assert set(many) <= set(texts(gaps(many, many, describe="gaps")))


def test_a_difference_is_blue_where_its_interval_excludes_zero():
    blue = "#0072b2"
    assert blue in differences({"a": paired(1.0, 1.1, 0.9)}, "c", describe="it")
    assert blue in differences({"a": paired(-1.0, -1.1, -0.9)}, "c", describe="it")
    assert blue not in differences({"a": paired(1.0, -1.1, 0.2)}, "c", describe="it")
    assert blue not in differences({"a": paired(1.0)}, "c", describe="it")  # one seed


def test_a_file_stands_alone(tmp_path):
    chart = critical_difference(RANKS, 1.3, describe='a "b"')
    write_svg(tmp_path / "ranks.svg", chart)
    text = (tmp_path / "ranks.svg").read_text()
    root = ET.fromstring(text)  # its name spaces are declared
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["width"].endswith("pt")
    assert root.attrib["aria-label"] == 'a "b"'
    assert "var(--" in chart
    assert "var(--" not in text
    assert "#1b1f24" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_difference({"a": 1.0}, 1.0, describe="it"), "ranks: 1 arms"),
        (lambda: critical_difference({"a": 1.0, "b": math.nan}, 1.0, describe="it"), "ranks: 'b' has nan"),
        (lambda: critical_difference({"a": 1, "b": 3}, 1, describe="it"), "ranks: 'b' has 3; .* between 1 and 2"),
        (lambda: critical_difference({"a": 1, "b": 2}, 0, describe="it"), "cd: must be above 0, not 0"),
        (lambda: gaps({}, {}, describe="it"), r"gap: has the arms \[\]"),
        (lambda: gaps({"a": Interval(1.0, 0.0, 2.0)}, {}, describe="it"), r"train_loss \['a'\]"),
        (lambda: differences({}, "c", describe="it"), "rows: there is no arm"),
    ],
)
def test_what_cannot_be_drawn_names_its_cause(call, message):
    with pytest.raises(InputError, match=message):
        call()
