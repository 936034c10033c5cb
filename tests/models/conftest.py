import pytest
import torch

from kinfold.random import seeded


@pytest.fixture(autouse=True)
def _seeded():
    with seeded(torch.device("cpu"), 0, "models"):
        yield
