from dataclasses import dataclass, replace
from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.transfer import (
    AMTO,
    Cross,
    Lesson,
    Median,
    Mix,
    Move,
    Nothing,
    Outcome,
    Plan,
    Restart,
    Rule,
    Teach,
    Tune,
)
from kinfold.transfer.base import check_shares

YES = torch.ones(3, dtype=torch.bool)


@final
@dataclass(frozen=True)
class Quiet(Rule):
    """Proposes nothing, and says nothing of itself but when it would act."""

    name = "quiet"
    steps: int | None = None
    period: int = 1
    until: float | int = 0.9
    stages: tuple[float | int, ...] = (1.0,)

    def __post_init__(self):
        self.check_cadence()

    def plan(self, view, state, generator):
        return None, state


def mix(*rows):
    return Mix(torch.tensor(rows, dtype=torch.float64))


def cross(source, rate=0.25):
    return Cross(torch.tensor(source), torch.full((3,), rate), torch.arange(3))


def teach(teachers, unlabelled):
    targets, weight = torch.zeros(3, 4, 2), torch.tensor([0.5, 0.25, 0.0])
    return Teach(targets, weight, torch.tensor(teachers).bool(), torch.tensor(unlabelled).bool())


MIXED = mix([0, 1, 0], [0.25, 0.5, 0.25], [0, 0, 1])
TAUGHT = teach([[0, 0, 1], [0, 0, 0], [1, 1, 0]], [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])


def test_what_a_plan_touches_and_whom_it_learns_from():
    plan = Plan((MIXED, cross([-1, -1, 0]), TAUGHT, Tune({"lr": torch.ones(3)})))
    assert plan.touched(3).tolist() == [True, True, True]
    assert plan.lineage(YES).int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    # What was refused moved no parameters; a lesson is not tried, and so always counts.
    assert plan.lineage(~YES).int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert plan.lineage(torch.tensor([True, False, False])).int().tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 0]]


def test_what_touches_no_parameters():
    assert not Plan((TAUGHT, Tune({"lr": torch.ones(3)}), mix(*torch.eye(3).tolist()))).touched(3).any()
    restart = Plan((Restart(torch.tensor([False, True, False])),))
    assert restart.touched(3).tolist() == [False, True, False]
    assert not restart.lineage(YES).any()


def test_taught_rows_are_those_without_labels():
    assert Plan((MIXED,)).taught_rows() is None
    assert torch.equal(Plan((MIXED, TAUGHT)).taught_rows(), TAUGHT.unlabelled)


def test_the_lines_of_the_log():
    assert Plan((MIXED, cross([-1, -1, 0]), TAUGHT)).moves() == [
        Move(0, (1,), "copy", 0.0),
        Move(1, (0, 2), "mix", 0.5),
        Move(2, (0,), "crossover-layer", 0.25),
        Move(0, (2,), "teach", 0.5),
        Move(2, (0, 1), "teach", 0.0),
    ]
    assert Plan((mix([0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]),)).moves() == [Move(0, (1,), "blend", 0.75)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=3, max_size=3))
def test_the_rows_of_a_mix_sum_to_one(rows):
    weights = torch.tensor(rows, dtype=torch.float64)
    sums = weights.sum(1)
    if ((sums - 1).abs() <= 1e-6).all():
        assert Mix(weights).lineage().diagonal().sum() == 0
    else:
        with pytest.raises(InputError, match="must sum to 1"):
            Mix(weights)
    normalised = (weights + 1e-3) / (weights + 1e-3).sum(1, keepdim=True)
    assert Mix(normalised).lineage().sum() == 6


def test_a_mix_with_nan_weights_is_refused():
    with pytest.raises(InputError, match="must sum to 1"):
        mix([torch.nan, 1, 0], [0, 1, 0], [0, 0, 1])


def test_when_a_transfer_is_due():
    rule = AMTO(period=2)
    assert [period for period in range(1, 11) if rule.due(period, 10)] == [2, 4, 6, 8]
    assert [period for period in range(1, 11) if AMTO().due(period, 10)] == list(range(1, 10))
    assert AMTO().due(18, 20)
    assert not AMTO().due(19, 20)
    assert not any(Nothing().due(period, 10) for period in range(1, 11))


def test_what_is_left_of_a_plan_for_some_tasks() -> None:
    """Who would learn from somebody else than it can is left alone by that change, and by no other."""
    everyone, pairs = torch.ones(3, dtype=torch.bool), ~torch.eye(3, dtype=torch.bool)
    taught_by_next = torch.tensor([[False, True, False], [False, False, True], [True, False, False]])
    lesson = Teach(torch.zeros(3, 4, 2), torch.full((3,), 0.5), taught_by_next, torch.ones(3, 4, dtype=torch.bool))
    by_row = replace(lesson, weight=torch.full((3, 4), 0.5))
    mix = Mix(torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    tune = Tune({"lr": torch.tensor([1.0, 2.0, 3.0])})
    plan = Plan((mix, lesson, by_row, tune, Median(pairs), Restart(everyone)), trial=torch.ones(3, 4, dtype=torch.bool))
    left = plan.only(torch.tensor([True, True, False]), donors=torch.tensor([True, False, True]))
    found_mix, found, found_by_row, found_tune, median, restart = left.changes
    assert found_mix.weights.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert found.weight.tolist() == [0.0, 0.5, 0.0]
    assert found_by_row.weight.tolist() == [[0.0] * 4, [0.5] * 4, [0.0] * 4]
    assert left.taught_rows().any(1).tolist() == [False, True, False]
    assert found.teachers.any(1).tolist() == [False, True, False]
    assert found_tune.values["lr"].nan_to_num(nan=-1.0).tolist() == [1.0, 2.0, -1.0]
    assert median.touched().tolist() == [False, True, False]
    assert restart.tasks.tolist() == [True, True, False]
    assert torch.equal(left.trial, plan.trial)


def test_a_plan_follows_its_moves_and_is_not_tried_unless_it_says_so():
    plan = Plan((MIXED,))
    assert (plan.trial, plan.moments, plan.buffers, plan.note) == (None, "follow", "follow", None)


def test_who_can_learn_from_nobody_else_is_left_alone():
    """Without donors named, whoever learns may learn from all; with them, by each change for itself."""
    plan = Plan((MIXED, cross([1, 2, 0])))
    assert [change.touched().tolist() for change in plan.only(YES).changes] == [[True, True, False], [True] * 3]
    able = plan.only(YES, donors=torch.tensor([True, True, False])).changes
    assert [change.touched().tolist() for change in able] == [[True, False, False], [True, False, True]]


def test_all_lessons_let_a_task_train_on_rows():
    other = teach([[0, 1, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    rows = Plan((TAUGHT, other)).taught_rows()
    assert rows.int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_what_becomes_of_nothing():
    outcome = Outcome.nothing(3)
    assert outcome.accepted.tolist() == [False, False, False]
    for scores in (outcome.before, outcome.after):
        assert (scores.shape, scores.dtype) == ((3, 2), torch.float64)
        assert scores.isnan().all()
    assert outcome.before.data_ptr() != outcome.after.data_ptr()


def test_a_view_is_told_of_what_costs_nothing(make_view):
    view = make_view()
    assert dict(view.options) == {}
    assert (view.step, view.predict, view.losses) == (None, None, None)
    printed = repr(make_view(predict=lambda rows: rows, losses=lambda rows: rows))
    assert "lambda" not in printed


def test_what_a_rule_does_that_does_nothing_of_its_own(make_view):
    rule, state = Quiet(), {"kept": torch.ones(2)}
    assert rule.start(3) == {}
    assert rule.learn(Plan(()), Outcome.nothing(3), state) is state
    assert rule.graduate(make_view(), state, last=False) == Lesson()  # the labels themselves
    assert (Lesson().targets, Lesson().note) == (None, None)


def test_the_state_of_those_whom_a_plan_was_for():
    """Row by row what is of the tasks; anew what is of nobody in particular, or was not there before."""
    old = {"one": torch.zeros(3), "rows": torch.zeros(3, 2), "cube": torch.zeros(3, 3, 3), "count": torch.zeros(())}
    old |= {"grown": torch.zeros(3, 2), "other": torch.zeros(2, 3)}
    new = {name: torch.ones_like(value) for name, value in old.items()}
    new |= {"grown": torch.ones(3, 4), "fresh": torch.ones(3)}
    left = Quiet().merged(old | {"gone": torch.zeros(3)}, new, torch.tensor([False, True, False]))
    assert left.keys() == new.keys()
    assert left["one"].tolist() == [0.0, 1.0, 0.0]
    assert left["rows"].tolist() == [[0.0] * 2, [1.0] * 2, [0.0] * 2]
    assert left["cube"].flatten(1).tolist() == [[0.0] * 9, [1.0] * 9, [0.0] * 9]
    for name in ("count", "grown", "other", "fresh"):
        assert torch.equal(left[name], new[name])


def test_a_student_has_what_the_stages_leave():
    assert not Quiet(stages=(0.1,) * 10).student  # to rounding
    assert not Quiet(stages=(0.5, 0.5 - 1e-12)).student
    assert Quiet(stages=(0.5, 0.499)).student


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "quiet: steps is 0, it counts steps; give 1 or more"),
        ({"steps": 2.5}, "quiet: steps is 2.5, it counts steps"),
        ({"period": 0}, "quiet: period is 0, it counts periods; give 1 or more"),
        ({"period": 1.5}, "quiet: period is 1.5"),
        ({"until": 1.01}, "quiet: until is 1.01; give a number between 0 and 1"),
        ({"until": -0.01}, "quiet: until is -0.01"),
    ],
)
def test_a_cadence_that_cannot_be_followed_is_refused(options, message):
    rule = Quiet()
    for name, value in options.items():  # past the checks of types under test, as a value from YAML comes
        object.__setattr__(rule, name, value)
    with pytest.raises(InputError, match=message):
        rule.check_cadence()


def test_a_cadence_may_be_as_dense_as_it_can():
    rule = Quiet(steps=1, period=1, until=1)
    assert not rule.due(10, 10)  # it acts inside periods
    assert rule.running(10, 10)
    assert not rule.running(11, 10)
    assert not Quiet(until=0).running(1, 10)
    assert [period for period in range(1, 11) if Quiet(period=3, until=0.6).due(period, 10)] == [3, 6]


def test_shares_are_between_nothing_and_all():
    check_shares("quiet", none=0, all=1, some=0.5)
    for wrong in (-1e-9, 1.0 + 1e-9, torch.nan):
        with pytest.raises(InputError, match=f"quiet: second is {wrong!r}; give a number between 0 and 1"):
            check_shares("quiet", first=0.5, second=wrong)


def test_what_a_rule_is_that_says_nothing_of_itself():
    class Silent(Rule):
        def plan(self, view, state, generator):
            return None, state

    rule = Silent()
    assert (rule.steps, rule.period, rule.until, rule.stages) == (None, 1, 0.9, (1.0,))
    assert rule.moves
    assert rule.alone
    assert not rule.needs
    assert not rule.student
