"""A run that was stopped and went on ends, bit for bit, where the uninterrupted run ended."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

import kinfold
from kinfold import files
from kinfold.assembling import fingerprint
from kinfold.checkpoint import Checkpoints
from kinfold.data import read, weighted
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State, ValueAndGrad
from kinfold.transfer import (
    AMTO,
    PAPA,
    RULES,
    Cross,
    Distil,
    Lesson,
    Mix,
    Plan,
    Restart,
    Rule,
    TeachRule,
    Together,
    Tune,
    View,
)

EPOCHS = 4
MLP = {"name": "mlp", "hidden": [8], "batch_norm": True}
DROPOUT = {"name": "mlp", "hidden": [8], "dropout": 0.4}
SMALL: dict[str, Any] = {"tasks": 3, "epochs": EPOCHS, "batch_size": 16, "model": MLP, "transfer": "amto"}
EAGER = AMTO(p_low=1.0, p_high=1.0)
ADAM = partial(torch.optim.AdamW, lr=0.01)


class StoppedError(Exception):
    """Stands for the end of the process."""


@final
@dataclass(frozen=True)
class Averaged(Method):
    """Enters every stage with state of every kind; the two averages drift unless both are put back."""

    def start(self, params: Params, context: Context) -> State:
        averages = {f"average/{name}": value.clone() for name, value in params.items()}
        return averages | {"steps": torch.zeros((), dtype=torch.int64), "score": torch.zeros(2)}

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        return order.roll(int(state["steps"]) + int(key) % 3)

    def batch(self, batch: Batch, state: State, key: Tensor) -> Batch:
        return batch._replace(x=batch.x * (1.0 + 0.01 * state["steps"]))

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Tensor) -> Tensor:
        return inner(model, batch) * (1.0 + 0.01 * state["score"][1])

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor
    ) -> tuple[Tensor, Params]:
        return value_and_grad({name: 0.9 * value + 0.1 * state[f"average/{name}"] for name, value in params.items()})

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        return {name: 0.99 * grad for name, grad in grads.items()}, state | {"steps": state["steps"] + 1}

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        moved = {f"average/{name}": 0.8 * state[f"average/{name}"] + 0.2 * value for name, value in params.items()}
        return params, state | moved

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"average/{name}"] for name in params}

    def period_end(self, params: Params, state: State, score: Tensor) -> tuple[Params, State]:
        return params, state | {"score": score}

    def export(self, params: Params, state: State) -> Params:
        return {name: value * (1.0 + 0.01 * state["score"][0]) for name, value in params.items()}


@final
@dataclass(frozen=True)
class Stirs(Rule):
    """Mixes, crosses, restarts and tunes, with state that decides and that only a checkpoint remembers."""

    name = "stirs"
    moments: str = "follow"
    until: float = 1.0

    def start(self, tasks: int) -> State:
        return {"turn": torch.zeros((), dtype=torch.int64)}

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        T, turn = len(view.metric), int(state["turn"])
        weights = torch.eye(T, dtype=torch.float64)
        weights[turn % T] = torch.softmax(torch.rand(T, dtype=torch.float64, generator=generator), 0)
        rates = torch.full((T,), torch.nan, dtype=torch.float64)
        rates[(turn + 1) % T] = 0.01 * (turn + 1)
        source = torch.full((T,), -1)
        source[(turn + 1) % T] = turn % T
        keys = torch.randint(2**62, (T,), generator=generator)
        cross = Cross(source, torch.full((T,), 0.5, dtype=torch.float64), keys, "parameter")
        restart = Restart(torch.arange(T) == (turn + 2) % T, key=turn + 1)
        changes = (Mix(weights), cross, Tune({"lr": rates}), *((restart,) if turn == 1 else ()))
        return Plan(changes, moments=self.moments), {"turn": state["turn"] + 1}


@final
@dataclass(frozen=True)
class Graduates(Rule):
    """Tasks go through two stages of a quarter each, learning of each other; then a student learns of them all."""

    name = "graduates"
    needs = frozenset({"predictions"})
    stages = (0.25, 0.25)
    until: float = 1.0

    def start(self, tasks: int) -> State:
        return {"turn": torch.zeros((), dtype=torch.int64)}

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        T = len(view.metric)
        weights = torch.eye(T, dtype=torch.float64)
        weights[int(state["turn"]) % T] = 1 / T
        return Plan((Mix(weights),)), {"turn": state["turn"] + 1}

    def graduate(self, view: View, state: State, last: bool) -> Lesson | None:
        if not last:
            return None
        assert view.predict is not None
        targets = torch.zeros(len(view.unsealed), view.classes or 1, dtype=torch.float64)
        rows = view.unsealed.nonzero().flatten()
        targets[rows] = torch.softmax(view.predict(rows).double(), -1).mean(0)
        return Lesson(targets, note=f"after {int(state['turn'])} turns")


def often(rule: Rule) -> Rule:
    """The rule, with transfer points between any two places where a run is stopped."""
    own = {field.name for field in dataclasses.fields(rule)}
    name, value = ("period", 1) if rule.steps is None else ("steps", 2)
    return dataclasses.replace(rule, **{name: value}) if name in own else rule


CASES: dict[str, dict[str, Any]] = {
    **{name: {"transfer": often(make()), "optimizer": ADAM} for name, make in RULES.items()},
    "together": {"transfer": Together((EAGER, TeachRule(), PAPA(steps=2)))},
    "amto": {"transfer": EAGER},
    "amto, unexposed": {"transfer": AMTO(rows="unexposed", min_rows=3), "optimizer": ADAM},
    "stirred": {"transfer": Stirs(), "optimizer": ADAM},
    "stirred, moments reset": {"transfer": Stirs("reset"), "optimizer": ADAM},
    "stirred, momentum": {"transfer": Stirs("reset")},
    "every stage": {"methods": [Averaged()], "transfer": EAGER},
    "methods": {"methods": ["mixup", "label_smoothing"], "optimizer": ADAM},
    "accumulated and clipped": {"accumulate": 3, "clip_norm": 0.5},
    "dropout": {"model": DROPOUT},
    "one cycle": {"scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=EPOCHS + 1)},
    "plateau": {"scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)},
    "float64": {"precision": "float64", "start": "independent"},
    "patience": {"patience": 1, "optimizer": partial(torch.optim.SGD, lr=1e-4)},
    "no fused form": {"optimizer": partial(torch.optim.Rprop, lr=0.01)},
    "one task": {"tasks": 1},
    "averages and soups": {"candidates": ["ema", "swa", "soup", "greedy-soup"], "transfer": EAGER, "optimizer": ADAM},
    "stages cut short": {
        "transfer": Graduates(),
        "epochs": 16,
        "patience": 1,
        "optimizer": partial(torch.optim.SGD, lr=1e-4),
        "scheduler": "linear",
    },
    "stages": {"transfer": Graduates(), "epochs": 8, "scheduler": "linear"},
}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is made of the files that are compared here, and takes longer than the run."""
    monkeypatch.setattr("kinfold.result.write_report", lambda folder: (folder / "report.html").touch())


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(70, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)


def fit(out: Path, **changes: Any) -> kinfold.Result:
    return kinfold.fit(**{"data": rows(), **SMALL, **changes, "out": out})


def stop_at(event: str, period: int) -> Any:
    def listen(told: dict[str, Any]) -> None:
        if (told["event"], told.get("period")) == (event, period):
            raise StoppedError

    return listen


def interrupted(out: Path, event: str, period: int, **changes: Any) -> None:
    with pytest.raises(StoppedError):
        fit(out, listen=stop_at(event, period), **changes)
    assert not (out / "result.json").exists()


def lasting(run: Path) -> set[Path]:
    """What a run leaves: of its checkpoints the last, as those before it may be left out where periods are short."""
    last = {
        max(folder.glob("*.safetensors")) for folder in run.rglob("checkpoints/**") if [*folder.glob("*.safetensors")]
    }
    return {path.relative_to(run) for path in run.rglob("*") if path in last or not path.match("period-*")}


def assert_equal_runs(one: Path, other: Path) -> None:
    """Bit for bit, but for times."""
    assert lasting(one) == lasting(other)
    for name in ("model.safetensors", "splits.safetensors", "model.json", "config.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    said = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    visits = [result.pop("cost")["sample_visits"] for result in said]
    assert said[0] == said[1]
    assert visits[0] == visits[1]
    untimed = [
        [{k: v for k, v in event.items() if k != "seconds"} for event in files.read_json_lines(run / "history.jsonl")]
        for run in (one, other)
    ]
    assert untimed[0] == untimed[1]
    for path in [path for path in lasting(one) if path.match("period-*")]:
        (tensors, values), (others, other_values) = (files.read_tensors(run / path) for run in (one, other))
        assert tensors.keys() == others.keys()
        for name, value in tensors.items():
            same = torch.equal(value.contiguous().view(-1).view(torch.uint8), others[name].view(-1).view(torch.uint8))
            assert same, name
        for saved in (values, other_values):
            times = saved.get("run", saved)  # a student's are its own
            for name in [name for name in times if name.endswith("seconds")]:
                del times[name]
        assert json.dumps(values) == json.dumps(other_values)


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
@pytest.mark.parametrize("name", CASES)
def test_stopped_after_any_period(tmp_path: Path, name: str, engine: str) -> None:
    changes = {**CASES[name], "engine": engine}
    whole = fit(tmp_path / "whole", **changes)
    assert whole.engine == engine
    # The event of a period comes before its checkpoint: period k + 1 is lost, and k is where it goes on.
    every = range(1, whole.epochs_run + 1)
    for period in every if name in ("amto", "every stage") else every[1::2]:
        interrupted(tmp_path / "parts", "period", period, **changes)
        resumed = fit(tmp_path / "parts", resume=True, **changes)
        assert torch.equal(resumed.scores.matrix, whole.scores.matrix)
        assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
        shutil.rmtree(tmp_path / "parts")


def test_stopped_again_and_again(tmp_path: Path) -> None:
    changes = {"transfer": EAGER, "methods": [Averaged()]}
    fit(tmp_path / "whole", **changes)
    interrupted(tmp_path / "parts", "transfer", 1, **changes)
    for event, period in (("period", 2), ("transfer", 2), ("period", 3), ("period", 4)):
        interrupted(tmp_path / "parts", event, period, resume=True, **changes)
    fit(tmp_path / "parts", resume=True, **changes)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


STUDENTS: dict[str, dict[str, Any]] = {
    "all rows": {"transfer": Distil(stages=(0.25, 0.25)), "optimizer": ADAM},
    "taught": {"transfer": Graduates(), "epochs": 8, "model": {"name": "mlp", "hidden": [8], "dropout": 0.4}},
}


@pytest.mark.parametrize("name", STUDENTS)
def test_stopped_while_the_student_trains(tmp_path: Path, name: str) -> None:
    """Before its first checkpoint, after some, and after the last one."""
    changes = STUDENTS[name]
    whole = fit(tmp_path / "whole", **changes)
    assert whole.selected.kind == "distilled"
    periods = [event["period"] for event in whole.history if event["event"] == "student"]
    assert periods == list(range(whole.epochs_run + 1, whole.epochs_run + len(periods) + 1))
    for period in (periods[0], periods[1], periods[-1]):
        folder = tmp_path / str(period)
        interrupted(folder, "student", period, **changes)
        told = files.read_json_lines(folder / "history.jsonl")
        assert told[-1]["period"] == period
        heard: list[dict[str, Any]] = []
        resumed = fit(folder, resume=True, listen=heard.append, **changes)
        assert_equal_runs(tmp_path / "whole", folder)
        assert heard == resumed.history  # of what is kept, the listener hears again, once
        assert resumed.cost["sample_visits"] == whole.cost["sample_visits"]
        seconds = sum(event["seconds"] for event in resumed.history if "seconds" in event)
        assert resumed.cost["wall_seconds"] > seconds
        assert 0 < resumed.cost["train_seconds"] <= seconds
        for model in (resumed.model, kinfold.load(folder).model):
            for key, value in whole.model.state_dict().items():
                assert torch.equal(model.state_dict()[key], value)


def test_stopped_again_and_again_through_stages_and_student(tmp_path: Path) -> None:
    changes = STUDENTS["taught"]
    whole = fit(tmp_path / "whole", **changes)
    assert whole.epochs_run == 4
    interrupted(tmp_path / "parts", "period", 2, **changes)
    stops = [("period", 3), ("transfer", 3), ("period", 4), ("note", 5), ("student", 5), ("student", 7), ("student", 9)]
    for event, period in stops:
        interrupted(tmp_path / "parts", event, period, resume=True, **changes)
    fit(tmp_path / "parts", resume=True, **changes)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_killed_after_the_last_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / ".period-000005.safetensors.123.part").write_bytes(b"half")
    for name in ("model.safetensors", "model.json", "result.json", "report.html"):
        (tmp_path / "parts" / name).unlink()
    fit(tmp_path / "parts", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_killed_before_the_report(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    fit(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    interrupted(tmp_path / "parts", "period", 4)
    latest = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    assert latest.name <= "period-000003.safetensors"
    latest.with_name("period-000004.safetensors").write_bytes(latest.read_bytes()[:-100])
    fit(tmp_path / "parts", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "result.json").unlink()
    for checkpoint in (tmp_path / "parts" / "checkpoints").iterdir():
        checkpoint.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        fit(tmp_path / "parts", resume=True)


def test_the_last_of_the_tasks_is_damaged_while_the_student_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's own are then of no use until the tasks are where it began: it begins anew."""
    monkeypatch.setattr(Checkpoints, "due", lambda self: self.wait() is None)
    changes = STUDENTS["taught"]
    whole = fit(tmp_path / "whole", **changes)
    for name, message in (("", "period-000003.safetensors"), ("student", "begins anew")):
        parts, heard = tmp_path / f"parts{name}", []
        interrupted(parts, "student", whole.epochs_run + 3, **changes)
        for path in (parts / "checkpoints" / name).glob("*.safetensors"):
            if name or path.name == f"period-{whole.epochs_run:06d}.safetensors":
                path.write_bytes(path.read_bytes()[:-8] + bytes(8))
        resumed = fit(parts, resume=True, listen=heard.append, **changes)
        assert_equal_runs(tmp_path / "whole", parts)
        warned = [event for event in heard if event.get("severity") == "warning" and "checkpoint" in event["message"]]
        assert [message in event["message"] for event in warned] == [True]
        assert warned[0] not in resumed.history  # of this the run shows nothing


def test_killed_while_it_finishes(tmp_path: Path) -> None:
    """What was left then, a lock and half a file, goes."""
    fit(tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    for name in (".lock", ".report.html.1.part"):
        (tmp_path / "run" / name).write_bytes(b"half")
    fit(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_with_no_checkpoint_yet_starts(tmp_path: Path) -> None:
    fit(tmp_path / "whole", resume=True)  # and so does one that is absent
    interrupted(tmp_path / "parts", "period", 1)
    assert not (tmp_path / "parts" / "checkpoints").exists()
    fit(tmp_path / "parts", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_loaded(tmp_path: Path) -> None:
    whole = fit(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = fit(tmp_path / "run", resume=True, listen=stop_at("period", 1))
    assert again.to_json() == whole.to_json()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_data_are_known_again_by_their_weights_too() -> None:
    data = read(rows())
    heavier = weighted(data, 1 + np.arange(70) % 2)
    hashes = data.fingerprints()
    assert fingerprint(data, hashes) == fingerprint(read(rows()), hashes)
    assert fingerprint(heavier, hashes) != fingerprint(data, hashes)
    assert fingerprint(heavier, hashes) != fingerprint(weighted(data, 2 - np.arange(70) % 2), hashes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "resume: epochs is 9, and the run in .* has 4; give the same, or another out"),
        ({"seed": 1}, "resume: seed is 1"),
        ({"transfer": "teach"}, "resume: transfer is 'teach'"),
        ({"model": DROPOUT}, "resume: model is"),
        ({"data": rows(seed=1)}, "resume: the data has changed since the run in .* began"),
        ({"data": (rows()[0], 2 - rows()[1])}, "resume: the data has changed"),
        ({"data": (rows()[0][:60], rows()[1][:60])}, "resume: the data has changed"),
        ({"data": (rows()[0] + (np.arange(70) == 5)[:, None], rows()[1])}, "resume: the data has changed"),
        ({"data": (rows()[0][:, :3], rows()[1])}, "resume: the data has changed"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    interrupted(tmp_path / "run", "period", 3)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        fit(tmp_path / "run", resume=True, **changes)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_auto_stays_what_it_was(tmp_path: Path) -> None:
    """The engine is recorded, and kept on resuming."""
    interrupted(tmp_path / "run", "period", 2, engine="auto")
    _, values = files.read_tensors(tmp_path / "run" / "checkpoints" / "period-000001.safetensors")
    assert values["engine_name"] == "vectorised"
    assert fit(tmp_path / "run", resume=True, engine="auto").engine == "vectorised"
