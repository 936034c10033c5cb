"""Read back with TensorBoard's own reader."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

from kinfold.errors import InputError
from kinfold.tracking import TensorBoard


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    events.Reload()
    return events


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return sorted((event.step, event.value) for event in read(folder).Scalars(tag))


def told(result, name):
    return [event[name] for event in result.history if event["event"] == "period"]


def test_a_log_directory_with_a_run_for_each_task(track, tmp_path):
    result = track("tensorboard", tmp_path / "mine")
    logs = tmp_path / "mine" / "tensorboard"
    assert sorted(path.name for path in logs.iterdir() if path.is_dir()) == ["task-0", "task-1", "task-2"]
    for task in range(3):
        expected = [values[task] for values in told(result, "metric")]
        steps, values = zip(*curve(logs / f"task-{task}", "validation/accuracy"), strict=True)
        assert steps == (1, 2, 3, 4)
        assert values == pytest.approx(expected)
        assert {"train/loss", "validation/loss", "lr", "final/own_score"} <= set(
            read(logs / f"task-{task}").Tags()["scalars"]
        )
    own = read(logs)
    assert result.estimate is not None
    assert own.Scalars("estimate/value")[-1].value == pytest.approx(result.estimate.value)
    assert own.Scalars("estimate/low")[-1].value == pytest.approx(result.estimate.low)
    assert own.Scalars("transfers/accepted")[-1].value == result.transfers.accepted
    assert {"system/process_memory_megabytes", "system/system_memory_usage_percentage"} <= set(own.Tags()["scalars"])
    table = own.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| transfer.name | amto |" in table
    assert "tensorboard --logdir" in own.Tensors("notes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| recipient |" in own.Tensors("transfers/text_summary")[0].tensor_proto.string_val[0].decode()


def test_the_hyper_parameters_are_those_that_its_plugin_shows(track, tmp_path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    track("tensorboard", tmp_path / "mine")
    content = read(tmp_path / "mine" / "tensorboard").summary_metadata
    data = {tag: plugin_data_pb2.HParamsPluginData.FromString(meta.plugin_data.content) for tag, meta in content.items()
            if meta.plugin_data.plugin_name == "hparams"}  # fmt: skip
    started = data["_hparams_/session_start_info"].session_start_info.hparams
    assert started["tasks"].number_value == 3
    assert started["transfer.name"].string_value == "amto"
    shown = [info.name.tag for info in data["_hparams_/experiment"].experiment.metric_infos]
    assert shown == ["estimate/value", "estimate/low", "estimate/high", "selected/score"]
    assert "_hparams_/session_end_info" in data


def test_a_resumed_run_has_no_doubled_points_and_no_gaps(track, stopped, tmp_path):
    stopped("tensorboard", tmp_path / "mine")
    logs = tmp_path / "mine" / "tensorboard"
    assert [step for step, _ in curve(logs / "task-1", "lr")] == [1, 2]
    result = track("tensorboard", tmp_path / "mine", resume=True)
    whole = track("tensorboard", tmp_path / "whole")
    assert result.history[-1] == whole.history[-1] or result.epochs_run == 4
    for folder in ("", "task-0", "task-1", "task-2"):
        tags = read(logs / folder).Tags()["scalars"]
        for tag in tags:
            steps = [step for step, _ in curve(logs / folder, tag)]
            assert len(steps) == len(set(steps)), tag
        for tag in (tag for tag in tags if not tag.startswith(("system/", "period_seconds", "cost/"))):
            assert curve(logs / folder, tag) == curve(tmp_path / "whole" / "tensorboard" / folder, tag), tag
    assert len(read(logs).Tensors("configuration/text_summary")) == 1
    messages = [event for event in result.history if event["event"] in ("note", "finding")]
    assert len(read(logs).Tensors("notes/text_summary")) == len(messages)


def test_what_a_killed_process_had_not_passed_on_is_made_up_for(track, stopped, tmp_path, monkeypatch):
    from kinfold.tracking import tensorboard

    with monkeypatch.context() as patched:  # nothing of it reaches the disk but what a start writes
        patched.setattr(tensorboard._Session, "tell", lambda self, told: None)
        stopped("tensorboard", tmp_path / "mine")
    track("tensorboard", tmp_path / "mine", resume=True)
    logs = tmp_path / "mine" / "tensorboard"
    assert [step for step, _ in curve(logs / "task-1", "lr")] == [1, 2, 3, 4]
    assert [step for step, _ in curve(logs, "transfers/proposed")] == [1, 2, 3]


@pytest.mark.parametrize("log_dir", [None, "elsewhere"])
def test_a_directory_that_is_gone_or_another(track, stopped, tmp_path, log_dir):
    stopped("tensorboard", tmp_path / "mine")
    logs = tmp_path / "mine" / "tensorboard" if log_dir is None else tmp_path / log_dir
    if log_dir is None:
        shutil.rmtree(logs)
    track(TensorBoard(log_dir=None if log_dir is None else str(logs)), tmp_path / "mine", resume=True)
    assert [step for step, _ in curve(logs / "task-1", "lr")] == [1, 2, 3, 4]
    assert len(read(logs).Tensors("configuration/text_summary")) == 1


def test_a_directory_of_ones_own(track, tmp_path):
    track(TensorBoard(log_dir=str(tmp_path / "logs")), None)
    assert len(curve(tmp_path / "logs" / "task-2", "train/loss")) == 4
    with pytest.raises(InputError, match="nowhere to write"):
        track("tensorboard", None)


def test_a_disk_that_fails_does_not_end_training(track, tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    said, flush = [], RecordWriter.flush

    def perhaps_full(self: RecordWriter) -> None:
        if said:
            raise OSError(28, "No space left on device")
        flush(self)

    monkeypatch.setattr(RecordWriter, "flush", perhaps_full)
    monkeypatch.setattr("threading.excepthook", lambda about: None)  # its own threads report themselves, besides
    result = track("tensorboard", tmp_path / "mine", listen=said.append)
    assert result.epochs_run == 4
    assert sum("No space left" in event.get("message", "") for event in said) == 1
