"""Shapes and types are checked over the whole package while it is tested."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook("kinfold", "beartype.beartype")

import numpy as np
import pandas as pd
import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are small, and pytest-xdist has the other core


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone():
    """Nothing may read or move the global random state of the caller."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was used"


@pytest.fixture
def measurements():
    """Writes the tables that the documentation speaks of, with and without the column to predict."""

    def write(folder):
        rng = np.random.default_rng(0)
        size = rng.normal(size=80)
        frame = pd.DataFrame(
            {"size": size, "site": rng.choice(["a", "b"], 80), "species": np.where(size > 0, "oak", "ash")}
        )
        for name in ("measurements.csv", "more.csv"):
            frame.to_csv(folder / name, index=False)
        frame.drop(columns="species").to_csv(folder / "new.csv", index=False)

    return write
