"""Shapes and types are checked over the whole package while it is tested."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook("kinfold", "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are small, and pytest-xdist has the other core


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone():
    """Nothing may read or move the global random state of the caller."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was used"
