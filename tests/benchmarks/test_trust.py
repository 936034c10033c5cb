import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "trust"))

from licences import allowed, installed, licence


def test_what_kinfold_requires_may_be_distributed_along_with_it():
    found = {each.metadata["Name"].lower(): licence(each) for each in installed()}
    assert {"torch", "numpy", "safetensors", "scipy"} <= set(found)
    assert "pyarrow" not in found
    assert not {name: said for name, said in found.items() if not allowed(said)}
    assert "pyarrow" in {each.metadata["Name"] for each in installed(["parquet"])}


@pytest.mark.parametrize(
    "said",
    [
        *("GPL-3.0-only", "AGPL", "Proprietary", "", "LGPL-2.1", "SSPL-1.0", "not MIT"),
        *("GPL-3.0-only AND MIT", "MIT AND GPL-3.0-only", "MIT License, GNU General Public License v3 (GPLv3)"),
        "MIT AND (GPL-2.0-only OR LGPL-2.1)",
    ],
)
def test_other_licences_are_not_allowed(said):
    assert not allowed(said)


@pytest.mark.parametrize("said", ["MIT OR GPL-3.0-only", "(MIT OR GPL-3.0-only) AND BSD-3-Clause", "BSD License, MIT"])
def test_of_a_choice_one_is_enough(said):
    assert allowed(said)


def test_a_licence_is_read_from_where_it_is_stated():
    assert licence(distribution("torch"))
    assert "\n" not in licence(distribution("numpy"))
