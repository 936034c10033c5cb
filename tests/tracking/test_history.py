"""Events are packed as they come, and none is lost or changed by it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.tracking import history
from kinfold.tracking.history import Events

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\n\u2028", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text("abc", max_size=3), JSON, max_size=3), max_size=11))
@settings(max_examples=30, deadline=None)
def test_they_are_as_a_list_of_them(said):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "_BLOCK", 4)
        events = Events(said[:3])
        for event in said[3:]:
            events.append(event)
        assert events == said
        assert said == events
        assert list(events) == said
        assert len(events) == len(said)
        assert [events[i] for i in range(-len(said), len(said))] == said + said
        assert events[2:9:3] == said[2:9:3]
        assert repr(events) == repr(said)
        assert events != [*said, {}]
        for beyond in (len(said), -len(said) - 1):
            with pytest.raises(IndexError):
                events[beyond]


def test_what_is_taken_out_is_a_copy():
    events = Events([{"event": "note"}])
    events[0]["event"] = "other"
    assert events[0] == {"event": "note"}


def test_a_long_history_is_small():
    """Of a hundred thousand transfers it takes some megabytes."""
    draws = random.Random(0)
    events = Events()
    for period in range(1000):
        moves = [
            {"recipient": t, "donor": draws.randrange(8), "before": [draws.random(), draws.random()], "accepted": True}
            for t in range(8)
        ]
        events.append({"event": "transfer", "period": period, "rule": "amto", "transfers": moves})
    packed = sum(map(len, events._blocks)) + sum(map(len, events._latest))
    assert packed < 100 * 8000
