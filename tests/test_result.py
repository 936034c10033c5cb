"""`Result`: its JSON, its files, and what comes back from them."""

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.result import Result

SMALL: dict[str, Any] = {"tasks": 3, "epochs": 3, "batch_size": 16}
MLP = {"name": "mlp", "hidden": [8], "batch_norm": True}

KEYS = {
    "": {
        *("version", "seed", "engine", "device", "precision", "data", "model", "tasks", "epochs_run", "stopped"),
        *("selected", "contenders", "scores", "estimate", "diagnostics", "transfers", "cost"),
    },
    "selected": {"kind", "task", "criterion", "score"},
    "scores": {"metric", "matrix", "loss_matrix", "own", "exposed"},
    "estimate": {"metric", "value", "low", "high", "level", "rows", "clean", "details"},
    "diagnostics": {"source", "rows", "seen", "data", "labels", "confusion", "calibration", "points", "hardest"},
    "transfers": {"proposed", "accepted", "by_pair", "rescues"},
    "cost": {
        *("wall_seconds", "train_seconds", "transfer_seconds", "sample_visits", "samples_per_second"),
        "peak_memory_bytes",
    },
}
FILES = {
    *("config.yaml", "splits.safetensors", "history.jsonl", "model.safetensors", "model.json", "result.json"),
    "report.html",
    "MODEL_CARD.md",
    "SHA256SUMS",
}


def rows() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    return x, np.array(["no", "yes"])[(x[:, 0] + x[:, 1] > 0).astype(int)]


def assert_same(loaded: Result, result: Result, x: Any) -> None:
    assert loaded.to_json() == result.to_json()
    assert (loaded.history, loaded.config, loaded.target) == (result.history, result.config, result.target)
    for mask in ("train", "validation", "sealed"):
        assert (getattr(loaded.splits, mask) == getattr(result.splits, mask)).all()
    assert torch.equal(loaded.outputs(x), result.outputs(x))
    assert (loaded.predict(x) == result.predict(x)).all()
    assert not loaded.model.training


@pytest.fixture(scope="module")
def result() -> Result:
    return kinfold.fit(MLP, rows(), **SMALL)


def test_json_has_the_contracts_keys(result: Result) -> None:
    said = result.to_json()
    for part, keys in KEYS.items():
        assert set(said[part] if part else said) == keys, part
    assert {"interval", "loss", "per_class", "calibration_error"} == set(said["estimate"]["details"])


def test_diagnostics_are_of_the_sealed_rows_and_are_kept(result: Result, tmp_path: Path) -> None:
    found = result.diagnostics
    assert found is not None
    sealed = np.flatnonzero(result.splits.sealed)
    assert (found.source, found.rows, found.seen) == ("sealed", len(sealed), 0.0)
    assert {each["row"] for each in found.hardest} <= set(sealed.tolist())
    path = result.save(tmp_path / "run")
    assert kinfold.load(path).diagnostics == found
    said = json.loads((path / "result.json").read_text())
    del said["diagnostics"]  # as earlier versions wrote it
    (path / "result.json").write_text(json.dumps(said))
    (path / "SHA256SUMS").unlink()
    assert kinfold.load(path).diagnostics is None


@pytest.mark.parametrize("transfer", ["none", "distil"])
def test_without_sealed_rows_diagnostics_are_of_the_validation_rows(transfer: str) -> None:
    found = kinfold.fit(MLP, rows(), **{**SMALL, "holdout": 0.0, "transfer": transfer})
    assert found.diagnostics is not None
    assert found.diagnostics.source == "validation"
    own = found.selected.task
    scored = found.splits.validation.any(0) if own is None else found.splits.validation[own]
    assert found.diagnostics.rows == scored.sum()
    assert found.diagnostics.seen == (1.0 if own is None else 0.0)  # a student has trained on all of them


def test_json_is_json_with_numbers_where_they_are(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "run")
    said = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=pytest.fail)
    for name in ("matrix", "loss_matrix", "exposed"):
        assert np.shape(said["scores"][name]) == (3, 3)
    assert np.shape(said["scores"]["own"]) == (3,)
    assert np.shape(said["transfers"]["by_pair"]) == (3, 3)
    assert (said["tasks"], said["seed"], said["stopped"], said["precision"]) == (3, 0, "epochs", "float32")
    assert (said["selected"]["kind"], said["selected"]["task"]) == ("distilled", None)  # the default rule's student
    assert said["estimate"]["clean"] is True


@pytest.mark.parametrize("changes", [{}, {"holdout": 0}, {"precision": "float64"}, {"transfer": "teach"}])
def test_a_named_model_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    x, y = rows()
    written = kinfold.fit(MLP, (x, y), out=tmp_path / "run", **SMALL, **changes)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES | {"checkpoints"}
    assert_same(kinfold.load(tmp_path / "run"), written, x)
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_saved_result_is_a_run(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "run")
    assert {file.name for file in path.iterdir()} == FILES
    assert_same(kinfold.load(path), result, rows()[0])
    with pytest.raises(InputError, match=r"save: .*run already holds a run"):
        result.save(path)


def test_nothing_is_pickled(result: Result, tmp_path: Path) -> None:
    for file in result.save(tmp_path / "run").iterdir():
        assert file.suffix in (".yaml", ".safetensors", ".jsonl", ".json", ".html", ".md") or file.name == "SHA256SUMS"


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))


@pytest.mark.parametrize("make", [tied, lazy])
def test_a_module_comes_back_into_its_structure(tmp_path: Path, make: Any) -> None:
    x, y = rows()
    written = kinfold.fit(lambda: make(), (x, y), out=tmp_path / "run", **SMALL)
    with pytest.raises(InputError, match="model"):
        kinfold.load(tmp_path / "run")
    with random.seeded(torch.device("cpu"), 0):
        loaded = kinfold.load(tmp_path / "run", make())
    assert_same(loaded, written, x)
    if make is tied:
        assert loaded.model[2].weight is loaded.model[0].weight
    other = nn.utils.skip_init(nn.Linear, 4, 2)
    with pytest.raises(InputError, match="the model does not fit what was saved, at '"):
        kinfold.load(tmp_path / "run", other)


def sized(outputs: int, *, input_shape: tuple[int, ...], width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(*input_shape, width), nn.ReLU(), nn.Linear(width, outputs))


def test_a_factory_that_asks_for_the_sizes_of_the_data(tmp_path: Path) -> None:
    x, y = rows()
    make = lambda input_shape, outputs: sized(outputs, input_shape=input_shape, width=3)  # noqa: E731
    written = kinfold.fit(make, (x, y), out=tmp_path / "run", **SMALL)
    assert [layer.out_features for layer in written.model if isinstance(layer, nn.Linear)] == [3, 2]
    assert_same(kinfold.load(tmp_path / "run", make), written, x)
    again = kinfold.fit(make, (x, y), out=tmp_path / "run", resume=True, **SMALL)  # which is finished
    assert_same(again, written, x)
    with pytest.raises(InputError, match="does not fit what was saved"):
        kinfold.load(tmp_path / "run", sized)


def test_a_table_comes_back(tmp_path: Path) -> None:
    import pandas as pd

    draws = np.random.default_rng(1)
    frame = pd.DataFrame({"size": draws.normal(size=60), "colour": draws.choice(["red", "blue"], 60)})
    frame["kind"] = np.where(frame["size"] + (frame["colour"] == "red") > 0.4, "plum", "pear")
    frame.loc[3, "size"] = np.nan
    written = kinfold.fit("mlp", frame, target="kind", out=tmp_path / "run", **SMALL)
    assert_same(kinfold.load(tmp_path / "run"), written, frame)
    assert set(written.predict(frame.drop(columns="kind"))) <= {"plum", "pear"}


def test_a_regression_comes_back(tmp_path: Path) -> None:
    written = kinfold.fit("mlp", "diabetes", out=tmp_path / "run", **SMALL)
    assert_same(kinfold.load(tmp_path / "run"), written, kinfold.data.read_features("diabetes"))


def test_a_diverged_task_comes_back_as_nan(tmp_path: Path) -> None:
    class Sick(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(self.weight[0, 0] < 0, torch.nan, super().forward(x))

    written = kinfold.fit(
        partial(Sick, 4, 2),
        rows(),
        out=tmp_path / "run",
        **{**SMALL, "tasks": 6, "transfer": "none", "start": "independent"},
    )
    assert bool(written.scores.matrix.isnan().any())
    with random.seeded(torch.device("cpu"), 0):
        loaded = kinfold.load(tmp_path / "run", Sick(4, 2))
    torch.testing.assert_close(loaded.scores.matrix, written.scores.matrix, rtol=0, atol=0, equal_nan=True)
    assert math.isfinite(loaded.selected.score)


def test_what_is_no_run(tmp_path: Path, result: Result) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        kinfold.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no run"):
        kinfold.load(tmp_path)
    path = result.save(tmp_path / "run")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="model.safetensors: is damaged, or was changed after the run ended"):
        kinfold.load(path)
    (path / "SHA256SUMS").unlink()  # and then the file's own is left
    with pytest.raises(InputError, match="model.safetensors: .* does not have its checksum"):
        kinfold.load(path)
    (path / "model.safetensors").write_bytes(whole)
    (path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged or of another version"):
        kinfold.load(path)
    (path / "result.json").unlink()
    with pytest.raises(InputError, match="holds an unfinished run; go on with"):
        kinfold.load(path)


@pytest.mark.parametrize(
    "name", ["config.yaml", "splits.safetensors", "history.jsonl", "model.safetensors", "model.json", "result.json"]
)
def test_a_damaged_file_of_a_finished_run_is_named(tmp_path: Path, result: Result, name: str) -> None:
    path = result.save(tmp_path / "run")
    noted = (path / "SHA256SUMS").read_text()
    assert hashlib.sha256((path / name).read_bytes()).hexdigest() + f"  {name}\n" in noted
    whole = (path / name).read_bytes()
    at = len(whole) // 2
    (path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match=f"{name}: is damaged, or was changed") as error:
        kinfold.load(path)
    assert "\n" not in str(error.value)
    (path / name).unlink()
    with pytest.raises(InputError, match=f"{name}|holds an unfinished run|is damaged or of another version"):
        kinfold.load(path)
    (path / name).write_bytes(whole)
    assert kinfold.load(path).to_json() == result.to_json()
    (path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(InputError, match="SHA256SUMS: is damaged; delete it"):
        kinfold.load(path)


def test_rows_that_do_not_fit(result: Result) -> None:
    with pytest.raises(InputError, match="X: rows have shape"):
        result.predict(np.zeros((2, 5), dtype=np.float32))


def test_a_run_of_version_0_1_loads(tmp_path):
    kinfold.fit("mlp", "iris", tasks=2, epochs=2, transfer="none", out=tmp_path / "run")
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    for added_since in ("source", "parameters"):
        del about[added_since]
    (tmp_path / "run" / "model.json").write_text(json.dumps(about))
    (tmp_path / "run" / "SHA256SUMS").unlink()
    old = kinfold.load(tmp_path / "run")
    assert (old.source.name, old.source.rows, old.source.sealed) == ("iris", 150, 15)
    old.save(tmp_path / "again")
    assert "not known" in (tmp_path / "again" / "MODEL_CARD.md").read_text()


def test_an_estimate_that_is_no_number(result, tmp_path):
    path = result.save(tmp_path / "run")
    said = json.loads((path / "result.json").read_text())
    said["estimate"] |= {"value": None, "low": None, "high": None}
    (path / "result.json").write_text(json.dumps(said))
    (path / "SHA256SUMS").unlink()  # which would say that it was altered
    loaded = kinfold.load(path)
    assert loaded.estimate is not None
    assert math.isnan(loaded.estimate.value)
    assert "accuracy nan" in loaded._repr_html_()
    assert loaded.to_json()["estimate"] == said["estimate"]
