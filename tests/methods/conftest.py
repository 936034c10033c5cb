import pytest
import torch
from torch import nn

from kinfold.methods import METHODS, Batch


def small_network():
    """Takes pictures of 1 × 4 × 4 to three classes."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


NEEDED = {
    "guidance": {"guide": small_network},
    "mtard": {"robust_teacher": small_network, "clean_teacher": small_network},
}
"""Arguments without which a method cannot be made."""


@pytest.fixture
def make():
    """Makes a method by its name."""
    return lambda name: METHODS[name](**NEEDED.get(name, {}))


NEEDS = {"hesso": "torch_pruning"}


@pytest.fixture(autouse=True)
def _optional_packages(request):
    """Leaves out methods whose package is not installed, in the tests over all methods."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters.get("method")
    if isinstance(name, str) and name in NEEDS:
        pytest.importorskip(NEEDS[name])


@pytest.fixture
def images():
    """A batch of five images of three classes, in float64."""
    x = torch.randn(5, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(x, torch.tensor([0, 1, 2, 1, 0]), torch.arange(5), classes=3)
