import numpy as np
import pytest
import torch

from kinfold.data import NAMES


@pytest.mark.parametrize(
    ("name", "rows", "shape", "labels"),
    [
        ("digits", 1797, (1, 8, 8), tuple(range(10))),
        ("iris", 150, (4,), ("setosa", "versicolor", "virginica")),
        ("wine", 178, (13,), ("class_0", "class_1", "class_2")),
        ("breast-cancer", 569, (30,), ("benign", "malignant")),
        ("diabetes", 442, (10,), None),
    ],
)
def test_sets(name, rows, shape, labels):
    dataset = NAMES[name]()
    encoder = dataset.fit(np.arange(rows))
    assert (dataset.name, len(dataset), encoder.input_shape, dataset.target.labels) == (name, rows, shape, labels)
    assert encoder.encode(dataset.features).values.shape == (rows, *shape)


def test_every_name_is_tested():
    assert set(NAMES) == {"digits", "iris", "wine", "breast-cancer", "diabetes"}


def test_digits_are_images_from_0_to_1():
    features = NAMES["digits"]().features
    assert features.dtype == torch.float32
    assert (float(features.min()), float(features.max())) == (0.0, 1.0)
