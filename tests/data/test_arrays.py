import json

import numpy as np
import pytest
import torch

from kinfold.data import encoder_from_spec, from_arrays
from kinfold.errors import InputError


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, np.uint8, np.uint16, np.uint64, np.int64, bool, ">f4"]
)
def test_features_become_float32_unscaled(dtype):
    X = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    dataset = from_arrays(X, ["a", "b", "a"])
    assert dataset.features.dtype == torch.float32
    assert dataset.features.tolist() == [[0, 1], [1, 1], [1, 0]]
    assert len(dataset) == 3


def test_tensors_lists_and_views_are_taken():
    X = torch.arange(12.0).reshape(3, 2, 2)
    for source in (X, X.double().requires_grad_(), X.tolist(), X.numpy()[::-1][::-1]):
        assert torch.equal(from_arrays(source, [0, 1, 0]).features, X)


def test_whole_numbers_stay_whole_where_asked():
    dataset = from_arrays(np.array([[1, 2], [3, 2**40]]), [0, 1], integer_inputs=True)
    assert dataset.features.dtype == torch.int64
    encoder = encoder_from_spec(json.loads(json.dumps(dataset.fit(np.arange(2)).spec())))
    assert torch.equal(encoder.encode(dataset.features).values, dataset.features)
    with pytest.raises(InputError, match="give an integer array"):
        from_arrays([[1.5]], [0], integer_inputs=True, labels=(0, 1))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[0.0, 1.0], [2.0, float("nan")]], "X: row 1, column 1 is nan"),
        (np.array([[0.0, 1.0], [np.inf, 0.0]]), "X: row 1, column 0 is inf"),
        (np.array([[0.0], [1e300]]), r"X: row 1, column 0 is 1e\+300, which is no finite float32"),
        (torch.full((2, 1, 2, 2), float("nan")), r"row 0, column \[0, 0, 0\]"),
        ([1.0, 2.0], r"shape \[2\]"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.zeros((2, 0)), r"shape \[2, 0\]"),
        ([["a"], ["b"]], "give numbers"),
        ([[1.0], [1.0, 2.0]], "differ in shape"),
        (torch.zeros(2, 2, dtype=torch.complex64), "real numbers"),
        (np.zeros((3, 2)), "y: has 2 targets for 3 rows"),
    ],
)
def test_bad_features(X, message):
    with pytest.raises(InputError, match=message) as error:
        from_arrays(X, [0, 1])
    assert "\n" not in str(error.value)


def test_encoder_round_trip_and_shape_check():
    dataset = from_arrays(np.zeros((3, 1, 4, 4)), [0, 1, 0])
    encoder = encoder_from_spec(json.loads(json.dumps(dataset.fit(np.arange(2)).spec())))
    assert encoder.input_shape == (1, 4, 4)
    assert torch.equal(encoder.encode(np.ones((2, 1, 4, 4))).values, torch.ones(2, 1, 4, 4))
    with pytest.raises(InputError, match=r"rows have shape \[4\]; give rows of shape \[1, 4, 4\]"):
        encoder.encode(np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"row 0, column .* is nan"):
        encoder.encode(np.full((2, 1, 4, 4), np.nan))


def test_fingerprints_tell_rows_apart_and_equal_ones_not():
    X = np.random.default_rng(0).normal(size=(5000, 3))
    X[4999] = X[0]
    X[10], X[4500] = [0.0, 1.0, 2.0], [-0.0, 1.0, 2.0]
    prints = from_arrays(X, np.arange(5000) % 2).fingerprints()
    assert prints.dtype == np.uint64
    assert prints[4999] == prints[0]
    assert prints[10] == prints[4500]
    assert len(np.unique(prints)) == 4998


def test_groups_and_times_stand_beside():
    dataset = from_arrays(np.zeros((2, 1)), [0, 1], groups=["a", "b"], times=[2, 1], name="pair")
    assert dataset.groups.tolist() == ["a", "b"]
    assert dataset.times.tolist() == [2, 1]
    with pytest.raises(InputError, match="groups: has shape"):
        from_arrays(np.zeros((2, 1)), [0, 1], groups=["a"])
