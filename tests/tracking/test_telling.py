"""Trackers of every temper, on real runs."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import kinfold
from kinfold import files
from kinfold.cli import main
from kinfold.errors import InputError, RunError
from kinfold.importing import only_parts
from kinfold.tracking import TRACKERS, Ending, Session, Status, Told, TrackedRun, Tracker, telling


@dataclass
class Kept(Session):
    """Keeps what it is told."""

    run: TrackedRun
    fails_in: str = ""
    told: list[Told] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    release: threading.Event | None = None

    @property
    def where(self) -> str:
        return "in memory"

    def identity(self) -> dict[str, Any]:
        return {"times": 1 + (0 if self.run.kept is None else self.run.kept["times"])}

    def tell(self, told: Sequence[Told]) -> None:
        if self.release is not None:
            self.release.wait()
        if self.fails_in == "first tell":
            raise OSError("not yet")
        if self.fails_in == "tell" and any(one.event.get("period") == 2 for one in told):
            raise OSError("no space left\non the device")
        self.told += told

    def end(self, ending: Ending) -> None:
        if self.fails_in == "end":
            raise ConnectionError("gone")
        self.endings.append(ending)
        self.sizes += [path.stat().st_size for path in ending.files]
        self.reports += [path.read_text() for path in ending.files if path.name == "report.html"]

    def close(self, status: Status) -> None:
        self.statuses.append(status)


@dataclass(frozen=True)
class Keeping(Tracker):
    """Starts such sessions."""

    fails_in: str = ""
    release: threading.Event | None = None
    sessions: list[Kept] = field(default_factory=list)
    name: str = "keeping"

    def check(self, folder: Path | None) -> None:
        if self.fails_in == "check":
            raise InputError("tracking: keeping needs more.")

    def start(self, run: TrackedRun) -> Session:
        if self.fails_in == "start":
            raise ConnectionError("nobody\nthere")
        self.sessions.append(Kept(run, self.fails_in, release=self.release))
        return self.sessions[-1]


def test_it_is_told_of_everything_in_order(track, tmp_path):
    tracker = Keeping()
    result = track(tracker, tmp_path / "mine")
    (session,) = tracker.sessions
    events = [dict(one.event) for one in session.told]
    assert [event for event in events if event["event"] not in ("system", "end")] == result.history
    assert (session.run.name, session.run.tasks, session.run.score) == ("mine", 3, "validation/accuracy")
    assert session.run.config == files.read_yaml(tmp_path / "mine" / "config.yaml")
    (ending,) = session.endings
    assert ending.result == files.read_json(tmp_path / "mine" / "result.json")
    assert result.estimate is not None
    assert ending.values["estimate/value"] == result.estimate.value
    assert [path.name for path in ending.files][-1] == "model.json"
    by_pair = torch.zeros(3, 3, dtype=torch.int64)
    for move in ending.moves:
        by_pair[move.recipient, move.donor] = move.accepted
    assert torch.equal(by_pair, result.transfers.by_pair)
    assert sum(move.proposed for move in ending.moves) == result.transfers.proposed > 0
    last = {(p.task, p.name): p.value for one in session.told for p in one.points}
    assert last[None, "transfers/accepted"] == result.transfers.accepted
    assert last[None, "system/process_memory_megabytes"] > 1
    assert session.statuses == ["finished"]
    assert files.read_json(tmp_path / "mine" / "tracking" / "keeping.json") == {"times": 1, "ended": True}


def test_the_run_is_the_same_and_needs_no_directory(track):
    tracker = Keeping()
    tracked, alone = track(tracker, None), track((), None)
    assert torch.equal(tracked.scores.loss_matrix, alone.scores.loss_matrix)
    (session,) = tracker.sessions
    assert len(session.sizes) == 6
    assert min(session.sizes) > 0
    assert not any(path.exists() for path in session.endings[0].files)  # they were for it alone


@pytest.mark.parametrize(("fails_in", "why"), [("tell", "OSError: no space left on the device"), ("end", "gone")])
def test_one_that_fails_is_left_out_and_said_once(track, tmp_path, fails_in, why):
    failing, sound, said = Keeping(fails_in), Keeping(name="sound"), []
    result = track([failing, sound], tmp_path / "mine", listen=said.append, epochs=12)
    assert result.epochs_run == 12
    warnings = [event["message"] for event in said if event.get("severity") == "warning"]
    assert len(warnings) == 1
    assert why in warnings[0]
    assert "keeping failed" in warnings[0]
    assert "\n" not in warnings[0]
    assert failing.sessions[0].statuses == ["failed"]
    assert sound.sessions[0].statuses == ["finished"]
    assert (tmp_path / "mine" / "result.json").exists()


def test_one_that_hangs_does_not_hold_up_training(track, stopped, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(telling, "_PATIENCE", 0.05)
    release = threading.Event()
    stopped(Keeping(release=release), tmp_path / "mine")
    release.set()
    assert "keeping failed (does not answer)" in caplog.text


def test_one_that_cannot_start_ends_the_run_before_it_has_begun(track, tmp_path):
    sound = Keeping(name="sound")
    with pytest.raises(InputError, match=r"keeping cannot be started \(ConnectionError: nobody there\)"):
        track([sound, Keeping("start")], tmp_path / "mine")
    with pytest.raises(InputError, match="needs more"):
        track(Keeping("check"), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert sound.sessions[0].statuses == ["failed"]


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ([Keeping(), Keeping()], "keeping, keeping; give each once"),
        ("kinfold.tracking.points:Curves", "tasks"),
        ("kinfold.tracking.points:clean_name", "is not a tracker"),
        ({"name": "mlflow", "url": "x"}, "url"),
    ],
)
def test_what_cannot_be_a_tracker(track, tmp_path, tracking, said):
    with pytest.raises(InputError, match=said):
        track(tracking, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (RunError, "failed")])
def test_a_resumed_run_goes_on_as_the_same(track, stopped, tmp_path, error, status):
    tracker = Keeping()
    stopped(tracker, tmp_path / "mine", error)
    result = track(tracker, tmp_path / "mine", resume=True)
    first, second = tracker.sessions
    assert (first.statuses, second.statuses) == ([status], ["finished"])
    assert first.run.kept is None
    assert second.run.kept == {"times": 1, "ended": False}
    told = [one.event for one in second.told if one.event["event"] not in ("system", "end")]
    assert told == result.history
    assert sum("in memory" in str(event.get("message")) for event in result.history) == 1
    points = [{point for one in session.told for point in one.points} for session in (first, second)]
    curves = [{p for p in some if p.name not in ("period_seconds",) and "system" not in p.name} for some in points]
    assert curves[0] <= curves[1]  # what was told twice was the same


def test_one_that_has_not_heard_of_the_end_is_told_later(track, tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def killed(*given: Any) -> None:
        raise KilledError

    tracker, out = Keeping(), tmp_path / "mine"
    with monkeypatch.context() as patched:
        patched.setattr(telling.Tracking, "end", killed)
        with pytest.raises(KilledError):
            track(tracker, out)
    (out / "report.html").write_text("with rows of the data")
    result = track(tracker, out, resume=True)
    assert len(tracker.sessions) == 2
    (report,) = tracker.sessions[1].reports
    assert "rows of the data" not in report
    assert tracker.sessions[1].endings[0].result == files.read_json(out / "result.json")
    assert [one.event for one in tracker.sessions[1].told if one.event["event"] != "end"] == result.history
    assert tracker.sessions[1].statuses == ["finished"]
    track(tracker, out, resume=True)
    assert len(tracker.sessions) == 2


def test_one_that_fails_at_once_is_caught_up_with(track, tmp_path):
    result = track(Keeping("first tell"), tmp_path / "mine")
    later = Keeping()
    track(later, tmp_path / "mine", resume=True)
    (session,) = later.sessions
    assert session.run.kept == {"times": 1}  # the same, and not another
    assert [one.event for one in session.told if one.event["event"] != "end"] == result.history
    assert session.statuses == ["finished"]


def test_an_interrupted_run_has_told_its_last_transfers(track, stopped, tmp_path):
    tracker = Keeping()
    stopped(tracker, tmp_path / "mine")
    result = track(tracker, tmp_path / "mine", resume=True)
    first, second = ({p for one in session.told for p in one.points} for session in tracker.sessions)
    of_last = {point for point in second if point.period == 2 and point.name.startswith("transfers/")}
    assert of_last
    assert of_last <= first
    assert result.epochs_run == 4


def test_other_trackers_may_hear_of_the_rest(track, stopped, tmp_path):
    stopped(Keeping(), tmp_path / "mine")
    other = Keeping(name="other")
    result = track(other, tmp_path / "mine", resume=True)
    assert [one.event["event"] for one in other.sessions[0].told].count("period") == result.epochs_run


def test_the_command_line(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    out = tmp_path / "mine"
    train = ["train", "iris", "--model", "mlp", "--tasks", "2", "--epochs", "1", "--out", str(out), "--tracking"]
    assert main([*train, "tensorbord"]) == 2
    assert "tracking: unknown name 'tensorbord'" in capsys.readouterr().err
    assert not out.exists()
    assert main([*train, "[{name: tensorboard}]"]) == 0
    assert "note: tracking: tensorboard: tensorboard --logdir" in capsys.readouterr().err
    assert files.read_yaml(out / "config.yaml")["tracking"] == [{"name": "tensorboard"}]
    assert list((out / "tensorboard" / "task-1").iterdir())


def test_a_comparison_is_not_tracked():
    with pytest.raises(InputError, match="tracking: is the comparison's own to set"):
        kinfold.compare("mlp", "iris", tracking="tensorboard")


def test_the_packages_of_trackers_are_not_imported_unless_used():
    code = "import sys, json, kinfold.tracking, kinfold.fitting; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorboard", "mlflow", "wandb", "IPython", "rich", "matplotlib.pyplot"} & set(json.loads(done.stdout))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_installed(track, tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"{name} needs \w+; pip install 'kinfold\[tracking\]'"):
        track(name, tmp_path / "mine")


def test_which_run_of_a_tracker_to_go_on_with_is_not_another_partys_to_say(tmp_path):
    mark = tmp_path / "theirs" / "tracking" / "keeping.json"
    files.write_json(mark, {"times": 1})
    run = TrackedRun("theirs", tmp_path / "theirs", {}, 2, "validation/accuracy", None)
    tracker = Keeping(fails_in="start")
    with (
        only_parts("theirs"),
        pytest.raises(InputError, match=r"tracking: theirs names .*keeping.json', which says which run of keeping"),
    ):
        telling._started(tracker, run)
    with pytest.raises(InputError, match="cannot be started"):  # it is tried
        telling._started(tracker, run)
