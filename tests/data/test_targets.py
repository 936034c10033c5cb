import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.data import from_arrays
from kinfold.data.targets import encode_target, make_target, row_values, weighted
from kinfold.errors import InputError

LABELS = st.one_of(
    st.lists(st.text(min_size=1), min_size=2, max_size=30),
    st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=30),
    st.lists(st.booleans(), min_size=2, max_size=30),
).filter(lambda values: len(set(values)) > 1)


@settings(max_examples=50, deadline=None)
@given(LABELS)
def test_labels_come_back_as_written_through_json(values):
    target = make_target(values)
    assert target.kind == "classification"
    assert target.values.dtype == torch.int64
    labels = json.loads(json.dumps(target.labels))
    assert labels == sorted(set(values))
    back = [labels[c] for c in target.values.tolist()]
    assert back == values
    assert [type(each) for each in back] == [type(each) for each in values]
    assert torch.equal(encode_target(values, labels, "classification"), target.values)


@pytest.mark.parametrize(
    "values",
    [
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], dtype=object),
        pd.Series(["b", "a", "b"]),
        pd.Series(["b", "a", "b"], dtype="category"),
    ],
)
def test_text_in_any_container(values):
    target = make_target(values)
    assert target.labels == ("a", "b")
    assert target.values.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_are_classes_in_sorted_order(dtype):
    target = make_target(torch.tensor([7, 3, 7], dtype=dtype))
    assert target.labels == (3, 7)
    assert target.values.tolist() == [1, 0, 1]
    assert target.outputs == 2


def test_floats_are_regression_and_kind_overrides():
    assert make_target([1.0, 2.0]).values.dtype == torch.float64
    assert make_target(np.zeros((3, 2), dtype=np.float32)).outputs == 2
    assert make_target([1, 2], kind="regression").values.tolist() == [1.0, 2.0]
    target = make_target([2.5, 1.0, 2.5], kind="classification")
    assert (target.labels, target.values.tolist()) == ((1.0, 2.5), [1, 0, 1])


def test_given_labels_number_the_classes_by_value_or_text():
    assert encode_target([2, 2], ("x", "2"), "classification").tolist() == [1, 1]
    assert encode_target([2.0], (1, 2), "classification").tolist() == [1]
    assert encode_target(np.array([1.5]), None, "regression").tolist() == [1.5]
    with pytest.raises(
        InputError, match=r"colour: row 1 has the label 'z', which is not known; the labels are 'x', 'y'"
    ):
        encode_target(["x", "z"], ("x", "y"), "classification", name="colour")


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1, 1, 1], None, "every row has the label 1"),
        (["a", None], None, "row 1 holds None"),
        (["a", float("nan")], None, "row 1 holds nan"),
        (np.array([["a", 1], ["b", None]], dtype=object), None, "row 1 holds None"),
        (["a", 1], None, "mixes labels of the types int, str"),
        ([1.0, float("nan")], None, "row 1 is nan"),
        ([[1.0, 2.0], [3.0, float("inf")]], None, "row 1, column 1 is inf"),
        ([1.0, float("inf")], "classification", "row 1 is inf"),
        (["a", "b"], "regression", "row 0 holds 'a'; regression needs numbers"),
        ([[1, 2], [3, 4]], None, "one label a row"),
        (np.zeros((2, 2, 2)), None, r"shape \[2, 2, 2\]"),
        ([], None, "a row at least"),
        (3.0, None, "one target a row"),
        ([[1.0], [1.0, 2.0]], None, "differ in shape"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), None, "datetime64"),
        ([b"a", b"b"], None, "row 0 holds b'a'"),
    ],
)
def test_bad_targets(values, kind, message):
    with pytest.raises(InputError, match=message) as error:
        make_target(values, kind=kind)
    assert "\n" not in str(error.value)


def test_groups_and_times():
    assert row_values(None, 3, "groups") is None
    assert row_values(["a", "b"], 2, "groups").tolist() == ["a", "b"]
    assert row_values(torch.tensor([1, 2]), 2, "times", sortable=True).tolist() == [1, 2]
    days = np.array(["2020-01-02", "2020-01-01"], dtype="datetime64[D]")
    assert row_values(days, 2, "times", sortable=True) is days


@pytest.mark.parametrize(
    ("values", "sortable", "message"),
    [
        ([1, 2, 3], False, r"shape \[3\] for 2 rows"),
        (["a", None], False, "row 1 holds None"),
        ([1.0, float("nan")], True, "row 1 has no value"),
        (np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"), True, "row 1 has no value"),
        (["monday", "friday"], True, "row 0 holds 'monday'"),
    ],
)
def test_bad_groups_and_times(values, sortable, message):
    with pytest.raises(InputError, match=f"times: .*{message}"):
        row_values(values, 2, "times", sortable=sortable)


def test_weights_are_kept_by_their_mean():
    dataset = from_arrays(np.zeros((3, 2)), [0, 1, 1])
    assert dataset.weights is None
    made = weighted(dataset, torch.tensor([1, 2, 6]))
    assert type(made) is type(dataset)
    assert made.weights.tolist() == [1 / 3, 2 / 3, 2.0]
    assert made.features is dataset.features


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"shape \[2\] for 3 rows"),
        ([1.0, 0.0, 2.0], r"row 1 has 0\.0; give a number above 0, or leave the row out"),
        ([1.0, 1.0, -2.0], r"row 2 has -2\.0"),
        ([1.0, float("inf"), 2.0], "row 1 has inf"),
        ([1.0, 2.0, float("nan")], "row 2 has no value"),
        (["a", "b", "c"], "give numbers"),
        (None, "are no numbers"),
        (np.array(["2020", "2021", "2022"], dtype="datetime64[D]"), "are no numbers"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(InputError, match=f"weights: .*{message}"):
        weighted(from_arrays(np.zeros((3, 2)), [0, 1, 1]), weights)
