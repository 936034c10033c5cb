import json
import math
from dataclasses import asdict

import pytest
import torch

from kinfold.selection import Diagnostics, calibration_bins, calibration_error, diagnose

ABOUT = {"source": "sealed", "seen": 0.0, "data": "f"}


def test_classes():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    targets, rows = torch.tensor([0, 1, 1, 0]), torch.tensor([10, 20, 30, 40])
    found = diagnose(probabilities.log(), targets, rows, **ABOUT, labels=["no", "yes"])
    assert sorted(found.confusion) == [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    worst = found.hardest[0]
    assert [each["row"] for each in found.hardest] == [40, 30, 20, 10]
    assert (worst["target"], worst["predicted"]) == ("no", "yes")
    assert worst["loss"] == pytest.approx(-math.log(0.3))
    assert worst["probability"] == pytest.approx(0.3)
    assert worst["confidence"] == pytest.approx(0.7)
    assert sum(each["rows"] for each in found.calibration) == found.rows == 4
    assert found.points is None
    again = Diagnostics(**json.loads(json.dumps(asdict(found))))
    assert again == found


def test_bins_add_up_to_the_calibration_error():
    outputs, targets = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 5
    bins = calibration_bins(outputs, targets)
    assert all(each["low"] < each["confidence"] <= each["high"] for each in bins)
    gaps = sum(each["rows"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / 200
    assert gaps == pytest.approx(calibration_error(outputs, targets))


def test_values():
    targets = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = diagnose(torch.tensor([[1.0], [4.0], [2.5]]), targets, torch.tensor([5, 6, 7]), **ABOUT, labels=None)
    assert [(each["row"], each["loss"]) for each in found.hardest] == [(6, 4.0), (7, 0.25), (5, 0.0)]
    assert found.points == [[5, 1.0, 1.0], [6, 2.0, 4.0], [7, 3.0, 2.5]]
    assert found.confusion is found.calibration is found.labels is None


def test_several_targets_count_by_their_variance():
    targets = torch.tensor([[0.0, 0.0], [2.0, 200.0]], dtype=torch.float64)  # variances 1 and 10,000
    outputs = torch.tensor([[2.0, 0.0], [2.0, 300.0]])
    found = diagnose(outputs, targets, torch.tensor([0, 1]), **ABOUT, labels=None)
    assert [(each["row"], each["loss"]) for each in found.hardest] == [(0, 2.0), (1, 0.5)]
    assert found.hardest[0]["predicted"] == [2.0, 0.0]


def test_targets_of_little_spread_count_by_their_variance_too():
    targets = torch.tensor([[0.0, 5.0], [1.0, 5.0]], dtype=torch.float64)  # variances ¼, and none to go by
    found = diagnose(torch.tensor([[0.5, 5.0], [1.0, 6.0]]), targets, torch.tensor([0, 1]), **ABOUT, labels=None)
    assert [(each["row"], each["loss"]) for each in found.hardest] == [(0, 0.5), (1, 0.5)]


def test_what_is_kept_is_bounded():
    n, C = 9_000, 100
    outputs, targets = torch.randn(n, C, generator=torch.Generator().manual_seed(0)), torch.arange(n) % C
    found = diagnose(outputs, targets, torch.arange(n), **ABOUT, labels=list(range(C)))
    assert len(found.confusion) == 4096
    assert len(found.hardest) == 16
    counts = [rows for _, _, rows in found.confusion]
    assert counts == sorted(counts, reverse=True)
    values = diagnose(outputs[:, :1], targets.double(), torch.arange(n), **ABOUT, labels=None)
    assert len(values.points) == 400
    assert (values.points[0][0], values.points[-1][0]) == (0, n - 1)


def test_equals_stand_in_the_order_of_rows_and_classes():
    classes = torch.arange(120) % 40
    found = diagnose(torch.eye(40)[classes], classes, torch.arange(120), **ABOUT, labels=list(range(40)))
    assert found.confusion == [[c, c, 3] for c in range(40)]
    assert [each["row"] for each in found.hardest] == list(range(16))


def test_a_row_without_a_number_is_the_hardest():
    outputs = torch.tensor([[0.0, 9.0], [math.nan, 0.0]])
    found = diagnose(outputs, torch.tensor([0, 0]), torch.tensor([0, 1]), **ABOUT, labels=["a", "b"])
    assert found.hardest[0]["row"] == 1
