"""The loop and what it writes down, with engines and rules made for the purpose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from kinfold.data.base import TensorInputs
from kinfold.engines import Engine, Job
from kinfold.errors import RunError
from kinfold.files import read_json_lines
from kinfold.run import Progress, run
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import Segment
from kinfold.tracking.history import HistoryFile
from kinfold.transfer import Mix, Nothing, Outcome, Plan, Rule, Tune, View

NAN = float("nan")


class Scripted(Engine):
    """Scores as it is told, accepts as it is told, and writes down what it is asked to do."""

    name = "scripted"

    def __init__(self, scores: list[list[tuple[float, float]]], accepted: list[bool]):
        self.scores, self.accepted, self.calls, self.period = scores, accepted, [], 0

    def train(self, segment: Segment) -> Tensor:
        self.period = segment.period
        part = "" if segment.last is None else f" {segment.first}-{segment.last}"
        self.calls.append(f"train {segment.period}{part}")
        return torch.zeros(len(self.accepted), dtype=torch.float64)

    def score(self) -> Tensor:
        return torch.tensor(self.scores[self.period - 1], dtype=torch.float64)

    def predict(self, rows: Tensor, best: bool = False) -> Tensor:
        self.calls.append("predict")
        return torch.zeros(len(self.accepted), len(rows), 2)

    def snapshot(self, tasks: Tensor) -> None:
        self.calls.append(f"snapshot {tasks.nonzero().flatten().tolist()}")

    def apply(self, plan: Plan, period: int) -> Outcome:
        self.calls.append(f"apply {period}")
        before = torch.tensor([[0.5, 1.0]] * len(self.accepted), dtype=torch.float64)
        return Outcome(torch.tensor(self.accepted), before, before + 0.25)

    def end_period(self, scores: Tensor) -> None:
        self.calls.append("end")

    def reschedule(self, scheduler: Any) -> None:
        self.calls.append("reschedule")

    def export(self, task: int) -> nn.Module:
        return nn.Identity()

    def options(self) -> dict[str, Tensor]:
        return {"lr": torch.full((len(self.accepted),), 0.1, dtype=torch.float64)}

    def steps(self, period: int) -> Tensor:
        return torch.full((len(self.accepted),), 4)

    def norms(self, best: bool = False) -> Tensor:
        return torch.ones(len(self.accepted))

    def method_states(self) -> list[dict[str, Tensor]]:
        return []

    def losses(self, rows: Tensor, best: bool = False) -> Tensor:
        self.calls.append("losses")
        return torch.zeros(len(self.accepted), len(rows))

    def visits(self) -> int:
        return 0

    def close(self) -> None:
        self.calls.append("close")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        return


@final
@dataclass(frozen=True)
class Copies(Rule):
    """Task 0 copies task 1, and task 1 copies task 2, at once; two further tasks blend both."""

    name = "copies"
    period: int = 1
    until: float = 0.9

    def plan(self, view: View, state: dict[str, Tensor], generator: torch.Generator) -> tuple[Plan | None, Any]:
        assert view.predict is None
        weights = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.float64)
        return Plan((Mix(weights), Tune({"lr": torch.full((3,), NAN, dtype=torch.float64)}))), state


def job(tasks: int = 3, better: Any = "metric") -> Job:
    n = 4 * tasks
    train, validation = torch.zeros(tasks, n, dtype=torch.bool), torch.zeros(tasks, n, dtype=torch.bool)
    for t in range(tasks):
        train[t, 4 * t : 4 * t + 2], validation[t, 4 * t + 2 : 4 * t + 4] = True, True
    objective = make_objective("classification", 2, None, None, torch.device("cpu"), torch.float32)
    inputs = TensorInputs(torch.zeros(n, 1))
    targets = torch.arange(n) % 2
    optimizer: Any = torch.optim.SGD
    return Job(nn.Identity, inputs, targets, train, validation, objective, optimizer, None, better=better)


def go(engine: Engine, rule: Rule | None = None, tasks: int = 3, **options: Any) -> tuple[str, Progress, list[Any]]:
    given, heard = job(tasks, options.pop("better", "metric")), []
    rule = Nothing() if rule is None else rule
    progress = Progress.start(given, rule)
    unsealed = torch.ones(4 * tasks, dtype=torch.bool)
    options = {"epochs": 3, "patience": None, **options}
    why = run(engine, given, rule, progress, unsealed=unsealed, listen=heard.append, **options)
    return why, progress, heard


def test_best_snapshots_ties_and_nan() -> None:
    scores = [
        [(0.5, 1.0), (NAN, 1.0), (0.5, 1.0)],
        [(0.5, 0.9), (0.1, 9.0), (0.4, 0.1)],
        [(0.5, 0.9), (NAN, NAN), (0.6, 5.0)],
    ]
    engine = Scripted(scores, [False] * 3)
    _, progress, heard = go(engine)
    assert [event["improved"] for event in heard] == [[True, False, True], [True, True, False], [False, False, True]]
    assert progress.best.tolist() == [[0.5, 0.9], [0.1, 9.0], [0.6, 5.0]]
    assert progress.stale.tolist() == [1, 1, 0]
    assert engine.calls[:3] == ["train 1", "snapshot [0, 2]", "end"]


def test_better_by_loss() -> None:
    scores = [[(0.5, 1.0)] * 3, [(0.9, 1.1), (0.1, 0.9), (0.6, 1.0)]]
    _, _, heard = go(Scripted(scores, [False] * 3), epochs=2, better="loss")
    assert heard[1]["improved"] == [False, True, True]


def test_patience_waits_for_every_task() -> None:
    better_late = [[(0.5, 1.0)] * 3] * 2 + [[(0.5, 1.0), (0.5, 1.0), (0.6, 1.0)]] + [[(0.1, 1.0)] * 3] * 9
    why, progress, _ = go(Scripted(better_late, [False] * 3), epochs=9, patience=2)
    assert (why, progress.period) == ("patience", 5)
    assert go(Scripted(better_late, [False] * 3), epochs=5, patience=2)[0] == "epochs"


def test_transfers_are_logged_and_the_ledger_follows() -> None:
    scores = [[(0.1 * period, 1.0)] * 3 for period in range(1, 5)]
    engine = Scripted(scores, [True, False, False])
    _, progress, heard = go(engine, Copies(), epochs=4)
    transfers = [event for event in heard if event["event"] == "transfer"]
    assert [event["period"] for event in transfers] == [1, 2, 3]  # not after the last, nor in the last tenth
    assert transfers[0]["transfers"][0] == {
        "recipient": 0,
        "donors": (1,),
        "donor": 1,
        "form": "copy",
        "amount": 0.0,
        "before": [0.5, 1.0],
        "after": [0.75, 1.25],
        "accepted": True,
    }
    assert [move["accepted"] for move in transfers[0]["transfers"]] == [True, False]
    assert (progress.proposed, progress.accepted) == (6, 3)
    assert progress.by_pair.tolist() == [[0, 3, 0], [0, 0, 0], [0, 0, 0]]
    given = job()
    assert torch.equal(progress.ledger.exposed[0], given.train[0] | given.train[1])
    assert torch.equal(progress.ledger.exposed[1:], given.train[1:])
    assert torch.equal(progress.best_exposed, progress.ledger.exposed)


def test_a_snapshot_is_exposed_to_what_came_before_it() -> None:
    scores = [[(0.9, 1.0)] * 3, [(0.1, 1.0)] * 3]
    _, progress, _ = go(Scripted(scores, [True, True, False]), Copies(until=1.0), epochs=2)
    assert torch.equal(progress.best_exposed, job().train)
    assert not torch.equal(progress.ledger.exposed, job().train)


def test_all_recipients_inherit_at_once() -> None:
    scores = [[(0.1, 1.0)] * 3, [(0.2, 1.0)] * 3]
    _, progress, _ = go(Scripted(scores, [True, True, False]), Copies(), epochs=2)
    train = job().train
    assert torch.equal(progress.ledger.exposed[0], train[0] | train[1])  # not what task 1 received in the same plan
    assert torch.equal(progress.ledger.exposed[1], train[1] | train[2])


def test_the_cadence() -> None:
    scores = [[(0.1, 1.0)] * 3] * 10
    engine = Scripted(scores, [False] * 3)
    go(engine, Copies(period=3), epochs=10)
    assert [call for call in engine.calls if call.startswith("apply")] == ["apply 3", "apply 6", "apply 9"]


def test_one_task_transfers_nothing() -> None:
    engine = Scripted([[(0.1, 1.0)]] * 3, [False])
    go(engine, Copies(), tasks=1)
    assert not [call for call in engine.calls if call.startswith("apply")]


def test_nothing_but_nan() -> None:
    with pytest.raises(RunError, match="no task ever had a finite score"):
        go(Scripted([[(NAN, NAN)] * 3] * 3, [False] * 3))


def test_a_history_is_written_as_it_happens(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"event": "left over"}\n')
    history = HistoryFile(path)
    for event in ({"event": "finding"}, {"event": "period", "period": 1}, {"event": "transfer", "period": 1}):
        history(event)
    history({"event": "period", "period": 2, "loss": [NAN, 1.0]})
    lines = read_json_lines(path)
    assert [line["event"] for line in lines] == ["finding", "period", "transfer", "period"]
    assert lines[-1]["loss"] == [None, 1.0]
    with path.open("a") as file:
        file.write('{"event": "per')  # killed while writing
    again = HistoryFile(path, through=1)
    assert again.kept == lines[:3] == read_json_lines(path)
    again({"event": "period", "period": 2})
    assert len(read_json_lines(path)) == 4


def test_notes_of_an_engine_are_of_a_period(tmp_path: Path) -> None:
    """Those of periods that run again are taken out with them."""
    engine, path = Scripted([[(0.5, 1.0)] * 3] * 3, [True] * 3), tmp_path / "history.jsonl"
    engine.notes = lambda: [f"after {len(engine.calls)} calls"]
    _, _, heard = go(engine, epochs=3)
    notes = [event for event in heard if event["event"] == "note"]
    assert [note["period"] for note in notes] == [1, 2, 3]
    file = HistoryFile(path)
    for event in heard:
        file(event)
    assert [event for event in HistoryFile(path, through=2).kept if event["event"] == "note"] == notes[:2]


@final
@dataclass(frozen=True)
class Steps(Rule):
    """Task 0 takes half of task 1 every three steps."""

    name = "steps"
    steps: int | None = 3
    until: float = 0.8

    def plan(self, view: View, state: dict[str, Tensor], generator: torch.Generator) -> tuple[Plan | None, Any]:
        assert view.step is not None
        assert not view.improved.any()
        assert view.options["lr"].tolist() == [0.1] * 3
        weights = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        return Plan((Mix(weights),)), state


def test_steps_are_counted_through_all_periods() -> None:
    """Four steps a period: after the third, the sixth, the ninth and the twelfth; none in the last period."""
    engine = Scripted([[(0.5, 1.0)] * 3] * 4, accepted=[True, False, False])
    _, progress, heard = go(engine, Steps(), epochs=4)
    trained = [call for call in engine.calls if call.startswith(("train", "apply"))]
    assert trained == [
        *("train 1 0-3", "apply 1", "train 1 3-4"),
        *("train 2 0-2", "apply 2", "train 2 2-4"),
        *("train 3 0-1", "apply 3", "train 3 1-4", "apply 3"),
        "train 4",
    ]
    assert progress.steps == 16
    lines = [
        (event["period"], line["times"])
        for event in heard
        if event["event"] == "transfer"
        for line in event["transfers"]
    ]
    assert lines == [(1, 1), (2, 1), (3, 2)]
    assert progress.proposed == progress.accepted == int(progress.by_pair[0, 1]) == 4
    assert [event["event"] for event in heard if event["period"] == 1] == ["period", "transfer"]
