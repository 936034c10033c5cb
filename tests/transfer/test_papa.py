import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import PAPA
from kinfold.transfer.papa import towards_mean

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]], dtype=torch.float64)  # mean (3, 20)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def mix(rule, view):
    plan, state = rule.plan(view, rule.start(3), torch.Generator())
    assert state == {}
    assert (plan.trial, plan.moments, plan.buffers) == (None, "keep", "keep")
    (change,) = plan.changes
    return change


def test_a_pull_by_hand(make_view):
    """Without a schedule, a tenth of the way to (3, 20)."""
    change = mix(PAPA(alpha=0.9), make_view(step=10))
    third = 0.1 / 3
    torch.testing.assert_close(
        change.weights,
        doubles([[0.9 + third, third, third], [third, 0.9 + third, third], [third, third, 0.9 + third]]),
    )
    torch.testing.assert_close(
        moved(change, "weight", THETA, THETA, {"weight": 0}), doubles([[1.2, 11.0], [2.1, 20.0], [5.7, 29.0]])
    )


def test_the_pull_falls_with_each_tasks_learning_rate(make_view):
    options = {"lr": doubles([0.1, 0.05, 0.0]), "initial_lr": doubles([0.1, 0.1, 0.2])}
    change = mix(PAPA(alpha=0.7), make_view(options=options))
    torch.testing.assert_close(
        change.weights, doubles([[0.8, 0.1, 0.1], [0.05, 0.9, 0.05], [0.0, 0.0, 1.0]])
    )  # pulls of 0.3, 0.15 and 0
    assert change.lineage().tolist() == [[False, True, True], [True, False, True], [False, False, False]]
    # An option that no schedule reckons from says nothing.
    alone = mix(PAPA(alpha=0.7), make_view(options={"lr": options["lr"]}))
    torch.testing.assert_close(alone.weights.diagonal(), doubles([0.8, 0.8, 0.8]))


def test_nobody_is_pulled_beyond_the_mean(make_view):
    """A rate that warms up, from nothing or from next to it."""
    options = {"lr": doubles([0.1, 0.1, 0.1]), "initial_lr": doubles([0.0, 0.001, 0.1])}
    change = mix(PAPA(alpha=0.7), make_view(options=options))
    torch.testing.assert_close(change.weights, doubles([[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_task_is_left_alone(make_view, bad):
    change = mix(PAPA(alpha=0.5), make_view(sound=torch.tensor([True, False, True])))
    torch.testing.assert_close(change.weights, doubles([[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]]))
    theta = THETA.clone()
    theta[1] = bad
    result = moved(change, "weight", theta, theta, {"weight": 0})
    torch.testing.assert_close(result[[0, 2]], doubles([[2.25, 15.0], [4.75, 25.0]]))
    plan, _ = PAPA().plan(make_view(sound=torch.tensor([True, False, False])), {}, torch.Generator())
    assert plan is None


def test_no_pull_no_plan(make_view):
    options = {"lr": doubles([0.0] * 3), "initial_lr": doubles([0.1] * 3)}
    assert PAPA().plan(make_view(options=options), {}, torch.Generator())[0] is None
    assert PAPA(alpha=1.0).plan(make_view(), {}, torch.Generator())[0] is None


@settings(deadline=None, max_examples=30)
@given(pull=st.lists(st.floats(0.01, 1), min_size=4, max_size=4), sound=st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_pull_shrinks_the_distance_to_the_mean_by_its_size(pull, sound):
    theta = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-4.0, 8.0], [0.0, 1.0]], dtype=torch.float64)
    pull, sound = doubles(pull), torch.tensor(sound)
    change = towards_mean(pull, sound)
    if int(sound.sum()) < 2:
        assert change is None
        return
    after, mean = moved(change, "weight", theta, theta, {"weight": 0}), theta[sound].mean(0)
    torch.testing.assert_close(after[~sound], theta[~sound])
    torch.testing.assert_close(after[sound] - mean, (1 - pull[sound, None]) * (theta[sound] - mean))


def test_the_papers_values_are_the_default():
    assert (PAPA().alpha, PAPA().steps, PAPA().until) == (0.99, 10, 1.0)


def test_when_it_acts():
    rule = PAPA(until=0.5)
    assert rule.steps == 10
    assert not any(rule.due(period, 10) for period in range(1, 11))
    assert [period for period in range(1, 11) if rule.running(period, 10)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 1.5}, "papa: alpha is 1.5"), ({"steps": 0}, "papa: steps is 0"), ({"until": 2}, "papa: until is 2")],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        PAPA(**options)
    assert "\n" not in str(error.value)
