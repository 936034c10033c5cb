import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "trust"))

from licences import ALLOWED, installed, licence


def test_what_kinfold_requires_may_be_distributed_along_with_it():
    found = {each.metadata["Name"].lower(): licence(each) for each in installed()}
    assert {"torch", "numpy", "safetensors", "scipy"} <= set(found)
    assert "pyarrow" not in found
    assert not {name: said for name, said in found.items() if ALLOWED.search(said) is None}
    assert "pyarrow" in {each.metadata["Name"] for each in installed(["parquet"])}


@pytest.mark.parametrize("said", ["GPL-3.0-only", "AGPL", "Proprietary", "", "LGPL-2.1", "SSPL-1.0"])
def test_other_licences_are_not_allowed(said):
    assert ALLOWED.search(said) is None


def test_a_licence_is_read_from_where_it_is_stated():
    assert licence(distribution("torch"))
    assert "\n" not in licence(distribution("numpy"))
