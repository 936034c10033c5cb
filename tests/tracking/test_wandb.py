"""Read back from the files that W&B writes offline: records of its protocol, framed like a LevelDB log."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kinfold.errors import InputError
from kinfold.tracking import WandB

wandb = pytest.importorskip("wandb")

_HEADER, _BLOCK = 7, 32768


def records(path: Path) -> list[Any]:
    """The records of a `.wandb` file."""
    from wandb.proto import wandb_internal_pb2

    content, place, found, begun = path.read_bytes(), _HEADER, [], b""
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:  # the rest of a block that no header fits in
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        begun += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # a whole one, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(begun))
            begun = b""
    return found


def offline(folder: Path) -> list[list[Any]]:
    """The records of each offline run, in order of time."""
    return [records(path) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]


def rows(found: list[Any]) -> dict[int, dict[str, Any]]:
    """The history: what was logged at each step."""
    every: dict[int, dict[str, Any]] = {}
    for record in found:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            every.setdefault(record.history.step.num, {}).update(row)
    return every


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def test_one_run_holds_all_tasks_and_goes_on_when_resumed(track, stopped, tmp_path):
    stopped("wandb", tmp_path / "mine")
    result = track("wandb", tmp_path / "mine", resume=True)
    first, second = offline(tmp_path / "mine")
    ids = {record.run.run_id for record in first + second if record.WhichOneof("record_type") == "run"}
    assert len(ids) == 1
    assert set(rows(first)) == {1, 2}
    assert {f"transfers/proposed/task-{t}" for t in range(3)} <= set(rows(first)[2])
    assert set(rows(second)) >= {3, 4}
    assert not set(rows(first)) & set(rows(second))
    exits = [[r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] for found in (first, second)]
    assert exits == [[130], [0]]
    every = rows(first) | rows(second)
    for event in result.history:
        if event["event"] == "period":
            row = every[event["period"]]
            assert [row[f"validation/accuracy/task-{t}"] for t in range(3)] == event["metric"]
            assert [row[f"train/loss/task-{t}"] for t in range(3)] == event["train_loss"]
    (begun,) = [record.run for record in first if record.WhichOneof("record_type") == "run"][:1]
    assert begun.display_name == "mine"
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["transfer"] == {"name": "amto", "p_low": 1.0, "p_high": 1.0}
    summary: dict[str, Any] = {}
    for record in second:
        if record.WhichOneof("record_type") == "summary":
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert result.estimate is not None
    assert summary["estimate/value"] == result.estimate.value
    assert summary["final/own_score/task-2"] == float(result.scores.own[2])
    artifacts = [
        r.request.log_artifact.artifact for r in second if r.request.WhichOneof("request_type") == "log_artifact"
    ]
    artifacts += [r.artifact for r in second if r.WhichOneof("record_type") == "artifact"]
    assert {Path(entry.path).name for entry in artifacts[-1].manifest.contents} >= {"result.json", "report.html"}


def test_the_mode(track, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="mode of wandb is 'on'"):
        track({"name": "wandb", "mode": "on"}, tmp_path / "mine")
    asked = {}

    def init(**given: Any) -> None:
        asked.update(given)
        raise OSError("not now")

    monkeypatch.setattr(wandb, "init", init)
    for logged_in, variable, option, expected in (
        (False, None, None, "offline"),
        (True, None, None, None),  # wandb's own to decide
        (False, "disabled", None, None),
        (False, "disabled", "online", "online"),
    ):
        monkeypatch.setattr(wandb, "login", lambda prompt, verify, answer=logged_in: answer)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if variable is not None:
            monkeypatch.setenv("WANDB_MODE", variable)
        with pytest.raises(InputError, match="wandb cannot be started"):
            track(WandB(mode=option, group="seeds"), tmp_path / "mine")
        assert (asked["mode"], asked["group"], asked["name"]) == (expected, "seeds", "mine")
        assert not (tmp_path / "mine").exists()
