import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "generalization"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "methods"))

import common
import compression
from cells import Cell

MODEL = {"name": "mlp", "hidden": [8]}
OPTIONS = {"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}}


@pytest.mark.parametrize("seeds", [1, 2])
def test_seeds_are_trained_side_by_side(seeds):
    data, _ = common.arrays("digits")
    found = common.trained(MODEL, data, seeds=seeds, **OPTIONS)
    assert len(found.models) == len(found.validation) == seeds


def test_models_of_an_arm_are_given_with_what_they_score():
    found = compression.train(Cell("digits", 300), MODEL, seeds=2, **OPTIONS)
    assert all(0 <= accuracy <= 100 for accuracy in found.accuracies())
    assert len(found.models) == 2
