import math

import pytest
import torch

from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import MergeMedian

THETA = torch.tensor([[1.0, 40.0], [2.0, 10.0], [9.0, 20.0]], dtype=torch.float64)  # three tasks, two parameters


def planned(rule, view):
    return rule.plan(view, {}, torch.Generator())[0]


def merged(plan):
    (change,) = plan.changes
    return moved(change, "weight", THETA, THETA, {"weight": 0}).tolist()


def test_three_tasks_by_hand(make_view):
    view = make_view()
    plan = planned(MergeMedian(), view)
    assert merged(plan) == [[2.0, 20.0]] * 3
    assert torch.equal(plan.trial, view.validation)
    assert (plan.moments, plan.buffers) == ("follow", "follow")
    assert plan.lineage(plan.touched(3)).int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_without_a_trial_all_become_the_median(make_view):
    assert planned(MergeMedian(trial=False), make_view()).trial is None


@pytest.mark.parametrize("score", ["metric", "loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_task_has_no_say_and_is_rescued(make_view, score, bad):
    scores = torch.tensor([0.5, bad, 0.7], dtype=torch.float64)
    plan = planned(MergeMedian(), make_view(**{score: scores}))
    assert merged(plan) == [[5.0, 30.0]] * 3
    assert plan.lineage(plan.touched(3)).int().tolist() == [[0, 0, 1], [1, 0, 1], [1, 0, 0]]


def test_what_is_usual_is_the_default():
    assert (MergeMedian().trial, MergeMedian().period, MergeMedian().until) == (True, 5, 0.9)


def test_there_is_no_median_of_one(make_view):
    scores = torch.tensor([math.nan, math.nan, 0.7], dtype=torch.float64)
    assert planned(MergeMedian(), make_view(metric=scores)) is None


@pytest.mark.parametrize(("options", "message"), [({"period": 0}, "period is 0"), ({"until": -1.0}, "until is -1.0")])
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        MergeMedian(**options)
    assert str(error.value).startswith("merge-median: ")
    assert "\n" not in str(error.value)
