import datetime
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.data import encoder_from_spec, from_frame
from kinfold.data.columns import MAX_CATEGORIES
from kinfold.data.table import TableEncoder
from kinfold.errors import InputError

FRAME = pd.DataFrame(
    {
        "age": [20.0, 40.0, np.nan, 1000.0],
        "member": [True, False, True, True],
        "town": ["Ulm", "Bonn", None, "Rome"],
        "buys": ["yes", "no", "yes", "no"],
    }
)


def encode(frame, rows=None):
    rows = np.arange(len(frame)) if rows is None else np.array(rows)
    return TableEncoder.fit(frame, rows).encode(frame).values


def test_columns_are_encoded_from_the_fitted_rows_alone():
    dataset = from_frame(FRAME, "buys")
    encoder = dataset.fit(np.array([0, 1, 2]))
    values = encoder.encode(dataset.features).values
    assert values.dtype == torch.float32
    # age: mean 30, deviation 10, was it missing; member as 0/1; Bonn, Ulm, missing (Rome was not seen)
    assert values.tolist() == [
        [-1, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 1],
        [97, 0, 1, 0, 0, 0],
    ]
    assert encoder.input_shape == (6,)
    assert dataset.target.labels == ("no", "yes")
    assert dataset.target.name == "buys"


def test_missing_values_that_the_fitted_rows_did_not_have():
    values = encode(FRAME[["age", "town"]], [0, 1])
    assert values[2].tolist() == [0, 0, 0]


def test_constant_and_empty_columns():
    assert encode(pd.DataFrame({"a": [0.1, 0.1, 0.1]})).tolist() == [[0], [0], [0]]
    assert encode(pd.DataFrame({"a": [0.0, 6e-194]})).tolist() == [[0], [0]]  # the deviation underflows
    assert encode(pd.DataFrame({"a": [None, None]})).tolist() == [[0, 1], [0, 1]]


def test_a_boolean_column_with_gaps_takes_the_mean():
    assert encode(pd.DataFrame({"a": [True, False, None]})).tolist() == [[1, 0], [0, 0], [0.5, 1]]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, 3], dtype="Int64"),
        pd.Series([1, 3], dtype="uint8"),
        pd.Series([Decimal(1), Decimal(3)]),
        pd.Series([1, 3.0], dtype=object),
        pd.to_datetime(pd.Series(["2020-01-01", "2020-01-02"])),
        pd.Series(pd.date_range("2020-01-01", periods=2, tz="Europe/Paris")),
        pd.Series([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)]),
        pd.to_timedelta(pd.Series([1, 2]), unit="D"),
    ],
)
def test_numbers_of_every_type(column):
    assert encode(pd.DataFrame({"a": column})).tolist() == [[-1], [1]]


def test_dates_are_seconds_and_text_dates_match_them():
    frame = pd.DataFrame({"when": pd.to_datetime(["1970-01-01T00:00:00", "1970-01-01T00:00:10"])})
    encoder = TableEncoder.fit(frame, np.arange(2))
    assert (encoder.columns[0].shift, encoder.columns[0].scale) == (5.0, 5.0)
    assert encoder.encode(pd.DataFrame({"when": ["1970-01-01T00:00:20"]})).values.tolist() == [[3]]


def test_an_id_like_column_keeps_the_most_frequent():
    names = [f"n{i:03}" for i in range(200)] + ["n150", "n199"]
    encoder = TableEncoder.fit(pd.DataFrame({"id": names}), np.arange(202))
    expected = sorted([*(f"n{i:03}" for i in range(MAX_CATEGORIES - 2)), "n150", "n199"])
    assert list(encoder.columns[0].categories) == expected
    assert encoder.encode(pd.DataFrame({"id": ["n100"]})).values.sum() == 0


def test_categories_of_a_file_that_holds_numbers_only():
    encoder = TableEncoder.fit(pd.DataFrame({"zip": ["1", "2", "x"]}), np.arange(3))
    for column in ([2, 1], pd.Series([2.0, 1.0]), ["2", "1"], pd.Series([2, 1], dtype="category")):
        assert encoder.encode(pd.DataFrame({"zip": column})).values.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_values_that_are_written_alike_share_a_category():
    assert encode(pd.DataFrame({"a": [1, "1", "b"]})).tolist() == [[1, 0], [1, 0], [0, 1]]


CELLS = st.one_of(st.none(), st.floats(-1e6, 1e6).map(lambda x: round(x, 6)), st.integers(-1000, 1000))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(CELLS, st.one_of(st.none(), st.text(max_size=3)), st.one_of(st.none(), st.booleans())),
        min_size=2,
        max_size=20,
    ),
    st.data(),
)
def test_spec_round_trip_gives_the_same_encoding(rows, data):
    frame = pd.DataFrame(rows, columns=["number", "text", "flag"])
    fitted = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    encoder = TableEncoder.fit(frame, np.array(fitted))
    again = encoder_from_spec(json.loads(json.dumps(encoder.spec(), allow_nan=False)))
    assert again == encoder
    values = encoder.encode(frame).values
    assert torch.equal(again.encode(frame).values, values)
    assert values.shape == (len(rows), *encoder.input_shape)
    assert bool(values.isfinite().all())


def test_encode_takes_more_columns_and_another_order_and_names_what_is_missing():
    encoder = from_frame(FRAME, "buys").fit(np.arange(4))
    shuffled = FRAME[["buys", "town", "age", "member"]].assign(extra=1)
    assert torch.equal(encoder.encode(shuffled).values, encoder.encode(FRAME).values)
    with pytest.raises(InputError, match="no column 'town'"):
        encoder.encode(FRAME.drop(columns="town"))
    with pytest.raises(InputError, match="ndarray where a table"):
        encoder.encode(np.zeros((2, 3)))
    with pytest.raises(InputError, match="no rows"):
        encoder.encode(FRAME.iloc[:0])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, "old", 3.0, 4.0], "column 'age', row 1 holds 'old', which is no number"),
        ([1.0, 2.0, float("-inf"), 4.0], "column 'age', row 2 holds -inf"),
        ([1.0, 2.0, 3.0, 1e300], r"column 'age', row 3 holds 1e\+300"),
        (pd.to_datetime(["2020-01-01"] * 4), "column 'age', row 0 holds Timestamp.*no number"),
    ],
)
def test_bad_values_when_encoding(column, message):
    encoder = from_frame(FRAME, "buys").fit(np.arange(4))
    with pytest.raises(InputError, match=message):
        encoder.encode(FRAME.assign(age=column))


def test_numbers_where_dates_were_fitted():
    frame = pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02"])})
    encoder = TableEncoder.fit(frame, np.arange(2))
    for value in (3, "yesterday"):
        with pytest.raises(InputError, match=r"column 'when', row 0 holds .*no date"):
            encoder.encode(pd.DataFrame({"when": [value]}))


@pytest.mark.parametrize("column", [[1j, 2j], [[1], [2]]])
def test_columns_that_cannot_be_encoded(column):
    with pytest.raises(InputError, match=r"column 'a' holds .*drop it"):
        TableEncoder.fit(pd.DataFrame({"a": column}), np.arange(2))


def test_infinite_values_are_named_by_their_row_in_the_table_when_fitting():
    with pytest.raises(InputError, match="column 'a', row 2 holds inf"):
        TableEncoder.fit(pd.DataFrame({"a": [0, 1, np.inf]}), np.array([2]))
    with pytest.raises(InputError, match=r"column 'a', row 1 holds 1e\+300, which is no finite float32"):
        TableEncoder.fit(pd.DataFrame({"a": [0, 1e300]}), np.array([0, 1]))


def test_a_row_beyond_measure_is_named():
    frame = pd.DataFrame({"a": [0, 1e-115, 1.0]})
    with pytest.raises(InputError, match=r"column 'a', row 2 holds 1.0, which is too far from the rows"):
        TableEncoder.fit(frame, np.array([0, 1])).encode(frame)


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        ([3, 1, 3, 1], "classification", (1, 3)),
        ([True, False, True, True], "classification", (False, True)),
        ([0.5, 1.0, 2.0, 3.0], "regression", None),
        (pd.Series([3, 1, 3, 1], dtype="Int64"), "classification", (1, 3)),
        (pd.Series(["u", "v", "u", "v"], dtype="category"), "classification", ("u", "v")),
    ],
)
def test_targets(values, kind, labels):
    target = from_frame(FRAME.assign(buys=values), "buys").target
    assert (target.kind, target.labels) == (kind, labels)


def test_groups_and_times_are_no_features():
    frame = FRAME.assign(day=["2020-01-02", "2020-01-01", "2020-01-03", "2020-01-04"])
    frame["town"] = ["a", "a", "b", "b"]
    dataset = from_frame(frame, "buys", groups="town", times="day", labels=("yes", "no"))
    assert list(dataset.features.columns) == ["age", "member"]
    assert dataset.groups.tolist() == ["a", "a", "b", "b"]
    assert np.argsort(dataset.times).tolist() == [1, 0, 2, 3]
    assert dataset.target.values.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "buyss"}, "target: unknown name 'buyss', did you mean 'buys'"),
        ({"target": "buys", "groups": "tow"}, "groups: unknown name 'tow', did you mean 'town'"),
        ({"target": "buys", "groups": "buys"}, "column 'buys' is named twice"),
        ({"target": "buys", "groups": "town"}, "town: row 2 has no value"),
        ({"target": "buys", "times": "age"}, "age: row 2 has no value"),
        ({"target": "town"}, "town: row 2 has no value"),
        ({"target": [0, 1]}, "y: has 2 targets for 4 rows"),
    ],
)
def test_bad_choices(arguments, message):
    with pytest.raises(InputError, match=message):
        from_frame(FRAME, **arguments)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME[["buys"]], "no feature columns"),
        (FRAME.iloc[:0], "no rows"),
        (pd.concat([FRAME, FRAME[["age"]]], axis=1), "two columns are called 'age'"),
        (FRAME.assign(buys="yes"), "every row has the label 'yes'"),
        (FRAME.assign(buys=[1.0, 2.0, np.inf, 0.0]), "buys: row 2 is inf"),
    ],
)
def test_bad_tables(frame, message):
    with pytest.raises(InputError, match=message):
        from_frame(frame, "buys")


def test_columns_of_several_levels():
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=pd.MultiIndex.from_product([["a"], ["x", "y"]]))
    with pytest.raises(InputError, match=r"columns have 2 levels, such as \('a', 'x'\); join[^\n]*$"):
        from_frame(frame, "a")
    with pytest.raises(InputError, match="columns have 2 levels"):
        TableEncoder(()).encode(frame)


def test_whole_floats_are_values_unless_they_are_said_to_be_classes():
    frame = pd.DataFrame({"x": [1, 2, 3], "y": [1.0, 2.0, 1.0]})
    assert from_frame(frame, "y").target.kind == "regression"
    assert from_frame(frame, "y", kind="classification").target.labels == (1.0, 2.0)


def test_fingerprints():
    frame = pd.DataFrame(
        {"x": [0.0, -0.0, 1.0, np.nan, np.nan], "t": ["a", "a", "a", None, None], "y": [0, 1, 0, 1, 0]}
    )
    prints = from_frame(frame, "y").fingerprints()
    assert prints[0] == prints[1]
    assert prints[3] == prints[4]
    assert len(set(prints.tolist())) == 3
