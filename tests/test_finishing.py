"""What comes after the tasks: candidates by their scores, the pick among them, the student, the estimate."""

import copy
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kinfold
from kinfold import random
from kinfold.candidates import Built, Candidate, ExponentialAverage, Finished, StochasticAverage
from kinfold.methods.base import State
from kinfold.transfer import Lesson, Plan, Rule, View

SMALL: dict[str, Any] = {"tasks": 3, "epochs": 4, "batch_size": 16, "engine": "sequential"}
MLP = {"name": "mlp", "hidden": [4]}


def rows(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)


class Knows(nn.Module):
    """The two rules that made the rows' classes, or neither of them."""

    def __init__(self, knows: bool):
        super().__init__()
        self.knows = nn.Parameter(torch.tensor(100.0 if knows else -100.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.knows * nn.functional.one_hot((x[:, 0] > 0).long() + (x[:, 1] > 0), 3)


@final
@dataclass(frozen=True)
class Brings(Candidate):
    """Hands in models of its own, and keeps what it was told of the run."""

    name: ClassVar[str] = "brings"
    built: tuple[Built, ...] = ()
    told: list[Finished] = field(default_factory=list, hash=False, compare=False)

    def build(self, finished: Finished, watched: State) -> list[Built]:
        self.told.append(finished)
        assert watched == {}
        return list(self.built)


def built(knows: bool, exposed: Any = (), members: tuple[int, ...] = (0, 2), kind: Any = "soup") -> Built:
    mask = torch.zeros(80, dtype=torch.bool)
    mask[list(exposed)] = True
    return Built(kind, Knows(knows).eval(), mask, members)


def fit(**changes: Any) -> kinfold.Result:
    return kinfold.fit(**{"model": MLP, "data": rows(), "transfer": "none", **SMALL, **changes})


def test_a_candidate_that_is_better_is_handed_back() -> None:
    plain = fit()
    seen = np.flatnonzero(~plain.splits.sealed)[:18].tolist()
    result = fit(candidates=Brings((built(False), built(True, exposed=seen))))
    assert isinstance(result.model, Knows)
    assert result.model.knows > 0
    assert (result.selected.kind, result.selected.task, result.selected.score) == ("soup", None, 1.0)
    assert [(one.kind, one.name, one.members) for one in result.contenders[3:]] == [("soup", "brings", (0, 2))] * 2
    assert [one.score for one in result.contenders[3:]] == [0.0, 1.0]
    assert [one.exposed for one in result.contenders[3:]] == pytest.approx([0.0, 18 / 72])
    assert result.contenders[:3] == plain.contenders
    assert torch.equal(result.scores.matrix, plain.scores.matrix)  # that of the tasks, as ever
    assert result.estimate is not None
    assert (result.estimate.value, result.estimate.clean) == (1.0, True)


def test_a_candidate_that_is_worse_is_not() -> None:
    plain, result = fit(), fit(candidates=Brings((built(False),)))
    assert result.selected == plain.selected
    assert all(torch.equal(value, result.model.state_dict()[name]) for name, value in plain.model.state_dict().items())


def test_an_average_is_of_a_task() -> None:
    result = fit(candidates=Brings((built(True, members=(2,), kind="average"),)))
    assert (result.selected.kind, result.selected.task) == ("average", 2)


def test_an_estimate_says_what_its_model_was_exposed_to() -> None:
    sealed = np.flatnonzero(fit().splits.sealed)
    estimates = [fit(candidates=Brings((built(True, exposed=seen),))).estimate for seen in ([], sealed[:1])]
    assert [estimate is not None and estimate.clean for estimate in estimates] == [True, False]


def test_a_model_that_gives_nan_is_never_picked() -> None:
    sick = Built("soup", nn.Sequential(Knows(True), nn.Threshold(1e9, math.nan)).eval(), torch.zeros(80).bool(), (0, 1))
    result = fit(candidates=Brings((sick,)))
    assert result.selected.kind == "task"
    assert math.isnan(result.contenders[3].score)
    said = result.to_json()["contenders"][3]
    assert said == {"kind": "soup", "name": "brings", "members": [0, 1], "score": None, "exposed": 0.0}


def test_what_a_candidate_is_told_of() -> None:
    brings = Brings()
    result = fit(candidates=brings)
    (finished,) = brings.told
    assert (finished.job.tasks, finished.progress.period) == (3, 4)
    assert torch.equal(finished.unsealed, torch.from_numpy(~result.splits.sealed))
    x, y = rows()
    for t, member in enumerate(finished.members):
        with torch.no_grad():
            right = member(torch.from_numpy(x)).argmax(1).numpy() == y
        shares = [right[validation].mean() for validation in result.splits.validation]
        assert shares == pytest.approx(result.scores.matrix[t].tolist())
        assert finished.overall(member) == pytest.approx(np.mean(shares))


ERROR = kinfold.Metric("error", lambda o, t: float((o.argmax(1) != t).double().mean()), higher_is_better=False)


@pytest.mark.parametrize(
    ("changes", "by_hand"),
    [
        ({"criterion": "worst"}, lambda metric, loss: metric.amin(1)),
        ({"criterion": "rank"}, lambda metric, loss: metric.mean(1)),  # one alone has no rank
        ({"better": "loss"}, lambda metric, loss: -loss.mean(1)),
        ({"better": "loss", "criterion": "worst"}, lambda metric, loss: -loss.amax(1)),
        ({"metric": ERROR}, lambda metric, loss: -metric.mean(1)),
    ],
)
def test_what_a_candidate_may_go_by(changes: dict[str, Any], by_hand: Any) -> None:
    brings = Brings()
    result = fit(candidates=brings, **changes)
    expected = by_hand(result.scores.matrix, result.scores.loss_matrix)
    found = [brings.told[0].overall(member) for member in brings.told[0].members]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_ranks_are_among_all_contenders(tmp_path: Path) -> None:
    """The one that knows all is first on every set, and the one that knows nothing is last."""
    result = fit(criterion="rank", candidates=Brings((built(False), built(True))), out=tmp_path / "run")
    scores = [one.score for one in result.contenders]
    assert scores[3:] == [5.0, 1.0]
    assert sum(scores) == pytest.approx(15.0)
    assert (result.selected.kind, result.selected.score) == ("soup", 1.0)
    matrix = result.scores.matrix
    for t in range(3):
        ranks = [
            1
            + sum(
                float(1 if matrix[s, j] > matrix[t, j] else 0.5 * (matrix[s, j] == matrix[t, j]))
                for s in {0, 1, 2} - {t}
            )
            + 1
            for j in range(3)
        ]
        assert scores[t] == pytest.approx(np.mean(ranks))
    loaded = kinfold.load(tmp_path / "run", Knows(False))
    assert (loaded.selected, loaded.contenders) == (result.selected, result.contenders)


def test_scores_are_in_the_metrics_own_direction() -> None:
    result = fit(metric=ERROR, candidates=Brings((built(False), built(True))))
    assert [one.score for one in result.contenders[3:]] == [1.0, 0.0]
    assert (result.selected.kind, result.selected.score) == ("soup", 0.0)
    assert [one.score for one in result.contenders[:3]] == pytest.approx(result.scores.matrix.mean(1).tolist())


def test_each_candidate_has_the_state_of_its_own_tracker() -> None:
    """Beside others, in any order and with methods before them, as by itself."""
    ema, swa = ExponentialAverage(0.5), StochasticAverage(0.5)
    smoothing: dict[str, Any] = {"methods": ["label_smoothing"]}
    alone = {one.name: fit(candidates=one, **smoothing).contenders[3:] for one in (ema, swa)}
    together = fit(candidates=[Brings(), swa, "soup", ema], **smoothing).contenders
    assert tuple(one for one in together if one.name == "swa") == alone["swa"]
    assert tuple(one for one in together if one.name == "ema") == alone["ema"]
    assert alone["swa"] != alone["ema"]


@final
@dataclass(frozen=True)
class Teaches(Rule):
    """Tasks train for two stages, the second if they must; then a student is taught what is given."""

    name = "teaches"
    until = 0.0
    stages = (0.25, 0.25)
    second: bool = True
    lesson: Lesson = field(default_factory=Lesson, hash=False)
    seen: list[View] = field(default_factory=list, hash=False, compare=False)

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        return None, state

    def graduate(self, view: View, state: State, last: bool) -> Lesson | None:
        self.seen.append(view)
        return None if self.second and not last else self.lesson


def test_stages_end_where_the_rule_says() -> None:
    """Each has its own schedule to its end, and what is left of the budget is the student's."""
    for second, periods in ((False, 5), (True, 10)):
        rule = Teaches(second)
        result = fit(transfer=rule, epochs=20)
        told = [event for event in result.history if event["event"] == "period"]
        assert [event["period"] for event in told] == list(range(1, periods + 1))
        assert {event["epochs"] for event in told} == {20}
        cosine = [0.05 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)]
        assert [event["lr"][0] for event in told] == pytest.approx(cosine * (periods // 5))
        assert (result.epochs_run, result.stopped) == (periods, "epochs")
        assert [view.period for view in rule.seen] == list(range(5, periods + 1, 5))
        students = [event for event in result.history if event["event"] == "student"]
        visits = 3 * 48 * (20 - periods)  # three tasks of 57 training rows, less those of a short batch
        assert len(students) == visits // 64  # of 72 rows
        cosine = [0.05 * (1 + math.cos(math.pi * i / len(students))) / 2 for i in range(len(students))]
        assert [event["lr"] for event in students] == pytest.approx(cosine)
        assert result.cost["sample_visits"] == 3 * 48 * periods + 64 * len(students)


def test_a_rule_sees_the_best_snapshots_at_the_end_of_a_stage() -> None:
    rule = Teaches()
    result = fit(transfer=rule, epochs=20)
    last = rule.seen[-1]
    torch.testing.assert_close(last.metric, result.scores.own)
    torch.testing.assert_close(last.loss, result.scores.loss_matrix.diagonal())
    sealed = torch.from_numpy(result.splits.sealed)
    assert torch.equal(last.unsealed, ~sealed)
    assert not last.targets[sealed].any()
    assert torch.equal(last.exposed, torch.from_numpy(result.splits.train))
    assert (last.predict, last.losses) == (None, None)  # it asked for neither


def test_a_student_learns_what_it_is_taught() -> None:
    """The opposite of the labels, and it is handed back whatever its scores."""
    x, y = rows()
    opposite = torch.from_numpy(np.eye(3)[2 - y])
    result = fit(transfer=Teaches(lesson=Lesson(opposite, note="upside down")), epochs=80)
    assert result.selected.kind == "distilled"
    assert (result.predict(x) == 2 - y).mean() > 0.8
    assert result.selected.score < min(one.score for one in result.contenders[:3])
    (student,) = [one for one in result.contenders if one.kind == "distilled"]
    assert (student.members, student.exposed, student.name) == ((0, 1, 2), 1.0, "distilled")
    (note,) = [event for event in result.history if event["event"] == "note"]
    assert note == {"event": "note", "period": 41, "message": "upside down"}
    assert result.estimate is not None
    assert result.estimate.clean


def test_a_student_of_the_labels_has_nothing_of_the_tasks() -> None:
    result = fit(transfer=Teaches(), epochs=8, criterion="rank")
    student = result.contenders[-1]
    assert (student.kind, student.members) == ("distilled", ())
    assert math.isnan(student.score)  # the others have their ranks among themselves
    assert sum(one.score for one in result.contenders[:3]) == pytest.approx(6.0)
    assert result.to_json()["selected"]["score"] is None


def test_a_student_starts_anew_and_a_module_where_the_tasks_did() -> None:
    with random.seeded(torch.device("cpu"), 0):
        start = nn.Linear(4, 3)
    before = copy.deepcopy(start.state_dict())
    still = partial(torch.optim.SGD, lr=0.0)
    result = fit(model=start, transfer=Teaches(), optimizer=still)
    assert result.selected.kind == "distilled"
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
    drawn = fit(model=partial(nn.Linear, 4, 3), transfer=Teaches(), optimizer=still)
    task = fit(model=partial(nn.Linear, 4, 3), optimizer=still)
    assert not torch.equal(drawn.model.weight, task.model.weight)


def test_patience_leaves_the_student_more() -> None:
    """Tasks that stand still stop after two periods, of each stage anew."""
    moving, still = (partial(torch.optim.SGD, lr=lr) for lr in (0.05, 0.0))
    result = fit(transfer=Teaches(), epochs=20, optimizer=[still] * 3, patience=1)
    assert (result.epochs_run, result.stopped, result.selected.kind) == (4, "patience", "distilled")
    students = [event for event in result.history if event["event"] == "student"]
    assert len(students) == 3 * 48 * 16 // 64
    assert fit(transfer=Teaches(), epochs=20, optimizer=moving).epochs_run == 10
