"""Read back with MLflow's own client, from an SQLite store and from a file store."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from kinfold.errors import InputError
from kinfold.tracking import MLflow

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*unclosed database:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture
def track(track):
    """Runs with few points: every call of a store is a flush to the disk."""
    return partial(track, tasks=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """An SQLite file that has MLflow's tables already: making them takes a second."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


def read(uri: str, experiment: str = "kinfold") -> tuple[Any, Any, list[Any]]:
    """The client, the parent run and its children in order."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(children)
    return client, parent, sorted(children, key=lambda run: run.data.tags["kinfold.task"])


def curve(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def names(client: Any, run: Any, path: str | None = None) -> set[str]:
    return {Path(info.path).name for info in client.list_artifacts(run.info.run_id, path)}


@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_one_parent_a_child_for_each_task_and_everything_in_them(track, tmp_path, store, kind):
    uri = f"sqlite:///{store}" if kind == "sqlite" else (tmp_path / "mlruns").as_uri()
    experiment = f"on {kind}"
    result = track(MLflow(uri=uri, experiment=experiment), tmp_path / "mine")
    client, parent, children = read(uri, experiment)
    assert len(children) == 2
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert [run.info.run_name for run in (parent, *children)] == ["mine", "task-0", "task-1"]
    assert parent.data.params["transfer.name"] == "amto"
    assert parent.data.params["tasks"] == "2"
    assert [run.data.params["task"] for run in children] == ["0", "1"]
    assert result.estimate is not None
    for end in ("value", "low", "high"):
        assert parent.data.metrics[f"estimate/{end}"] == getattr(result.estimate, end)
    assert parent.data.metrics["transfers/accepted"] == result.transfers.accepted
    assert parent.data.metrics["system/process_memory_megabytes"] > 1
    periods = [event for event in result.history if event["event"] == "period"]
    for task, run in enumerate(children):
        for name, key in (("validation/accuracy", "metric"), ("train/loss", "train_loss"), ("lr", "lr")):
            assert curve(client, run, name) == [(p["period"], p[key][task]) for p in periods]
        assert run.data.metrics["final/own_score"] == float(result.scores.own[task])
    assert {"config.yaml", "result.json", "report.html", "history.jsonl", "transfers.json"} <= names(client, parent)
    assert names(client, parent, "model") == {"model.safetensors", "model.json"}
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "transfers.json")).read_text())
    assert sum(table["accepted"]) == int(result.transfers.by_pair.sum())
    assert not any(names(client, run) for run in children)


def test_a_resumed_run_goes_on_in_the_same_runs_without_doubled_points(track, stopped, tmp_path, store):
    uri = f"sqlite:///{store}"
    tracker = MLflow(uri=uri, experiment="resumed", files=False)
    stopped(tracker, tmp_path / "mine", tasks=2)
    client, parent, children = read(uri, "resumed")
    assert [run.info.status for run in (parent, *children)] == ["KILLED"] * 3
    assert [step for step, _ in curve(client, children[1], "lr")] == [1, 2]
    track(tracker, tmp_path / "mine", resume=True)
    track(MLflow(uri=uri, experiment="whole", files=False), tmp_path / "whole")
    client, again, resumed = read(uri, "resumed")
    _, other, whole = read(uri, "whole")
    assert again.info.run_id == parent.info.run_id
    assert [run.info.run_id for run in resumed] == [run.info.run_id for run in children]
    assert again.info.status == "FINISHED"
    for one, expected in zip((again, *resumed), (other, *whole), strict=True):
        for name in expected.data.metrics:
            points = curve(client, one, name)
            assert len(points) == len({step for step, _ in points}), name
            if not name.startswith(("system/", "period_seconds", "cost/")):
                assert points == curve(client, expected, name), name


def test_the_default_store_lies_beside_the_runs(track, tmp_path, monkeypatch):
    tracker = MLflow()
    assert tracker._uri(tmp_path / "runs" / "one") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracker._uri(tmp_path / "runs" / "one") == "http://elsewhere"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="nowhere to write"):
        track("mlflow", None)


def test_a_failed_run_is_marked_as_such(stopped, tmp_path, store):
    from kinfold.errors import RunError

    uri = f"sqlite:///{store}"
    stopped(MLflow(uri=uri, experiment="failed", files=False), tmp_path / "mine", RunError, tasks=2)
    _, parent, children = read(uri, "failed")
    assert [run.info.status for run in (parent, *children)] == ["FAILED"] * 3


def test_no_password_is_kept(track, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has a password") as refused:
        track(MLflow(uri="postgresql://me:secret@host/db"), tmp_path / "mine")
    assert "secret" not in str(refused.value)
    from kinfold.tracking.mlflow import _without_password

    assert _without_password("http://me:secret@host:80/x") == "http://me@host:80/x"


def test_a_server_that_is_gone_does_not_end_training(track, tmp_path, store, monkeypatch):
    from mlflow import MlflowClient

    log_batch = MlflowClient.log_batch

    def gone_in_the_end(*given: Any, tags: Any = (), **named: Any) -> None:
        if tags:
            raise ConnectionError("connection refused")
        log_batch(*given, **named)

    said: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", gone_in_the_end)
        tracker = MLflow(uri=f"sqlite:///{store}", experiment="gone", files=False)
        result = track(tracker, tmp_path / "mine", listen=said.append)
    assert result.estimate is not None
    assert sum("connection refused" in str(event.get("message")) for event in said) == 1
    assert read(f"sqlite:///{store}", "gone")[1].info.status == "FAILED"
    track(tracker, tmp_path / "mine", resume=True)  # nothing is trained: it is told what it has missed
    client, parent, children = read(f"sqlite:///{store}", "gone")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["estimate/value"] == result.estimate.value
    assert [step for step, _ in curve(client, children[0], "lr")] == [1, 2, 3, 4]
