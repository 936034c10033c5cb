"""A few hundred inputs a reader: all that are kept, and others made of them. More in `benchmarks/trust/fuzz.py`."""

import importlib
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing
from fuzzing import TARGETS, Target, mutated, seeds, workplace

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


def _opened(path):
    os.close(os.open(path.parent.parent / "elsewhere", os.O_WRONLY | os.O_CREAT))


@pytest.mark.parametrize(
    ("reads", "verdict"),
    [
        (lambda path: importlib.import_module("kf_theirs"), "did import kf_theirs"),
        (_opened, "did open "),
        (lambda path: path.parent.parent.joinpath("elsewhere").write_bytes(b""), "did open "),
        (lambda path: os.system("true"), "did os.system "),
        (lambda path: path.with_name("here").write_bytes(b""), "read"),
        (lambda path: os.close(os.open(path, os.O_RDONLY)), "read"),
    ],
)
def test_the_judge_sees_what_no_reader_may_do(reads, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "TARGETS", {"a": Target("a", reads)})
    with workplace("a", tmp_path) as judge:
        assert judge.verdict(b"").startswith(verdict)
