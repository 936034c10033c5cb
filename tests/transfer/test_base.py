from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.transfer import AMTO, Cross, Median, Mix, Move, Nothing, Plan, Restart, Rule, Teach, Tune

YES = torch.ones(3, dtype=torch.bool)


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


def test_what_a_rule_is_that_says_nothing_of_itself():
    class Quiet(Rule):
        def plan(self, view, state, generator):
            return None, state

    rule = Quiet()
    assert (rule.steps, rule.period, rule.until, rule.stages) == (None, 1, 0.9, (1.0,))
    assert rule.moves
    assert not rule.needs
    assert not rule.student
