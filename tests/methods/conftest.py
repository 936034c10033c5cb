import pytest
import torch

from kinfold.methods import Batch


@pytest.fixture
def images():
    """A batch of five images of three classes, in float64."""
    x = torch.randn(5, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(x, torch.tensor([0, 1, 2, 1, 0]), torch.arange(5), classes=3)
