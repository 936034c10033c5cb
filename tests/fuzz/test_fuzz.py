"""A few hundred inputs a reader: all that are kept, and others made of them. More in `benchmarks/trust/fuzz.py`."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing import TARGETS, mutated, seeds, workplace

FEW = ("config", "report", "parts of a run", "result.json", "model.json", "model.safetensors", "config.yaml", "image")
"""Targets that take long for each input."""


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_read_or_refused(name, tmp_path):
    kept, rng = seeds(name), random.Random(name)
    inputs = [*kept, *(mutated(kept, rng) for _ in range(20 if name in FEW else 200))]
    with workplace(name, tmp_path) as judge:
        verdicts = [judge.verdict(content) for content in inputs]
    assert set(verdicts) <= {"read", "refused"}
    assert "read" in verdicts[: len(kept)]  # or nothing but a first check is tried
