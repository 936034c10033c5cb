import pytest
import torch

from kinfold.engines.moves import blended, moved
from kinfold.errors import InputError
from kinfold.transfer import PAPAAll

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]], dtype=torch.float64)


def plan_of(rule, view):
    plan, state = rule.plan(view, rule.start(3), torch.Generator())
    assert state == {}
    return plan


@pytest.mark.parametrize("moments", ["keep", "reset", "follow"])
def test_all_become_the_mean(make_view, moments):
    plan = plan_of(PAPAAll(moments=moments), make_view())
    assert (plan.trial, plan.moments, plan.buffers) == (None, moments, "follow")
    (change,) = plan.changes
    after = moved(change, "weight", THETA, THETA, {"weight": 0})
    torch.testing.assert_close(after, torch.tensor([[3.0, 20.0]] * 3, dtype=torch.float64))
    assert blended(change, 3).all()  # so that batch norm is measured anew


@pytest.mark.parametrize(
    ("which", "two", "none"),
    [
        ("sound", torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)),
        ("loss", torch.tensor([0.9, 0.8, torch.nan]).double(), torch.full((3,), torch.nan).double()),
    ],
)
def test_a_diverged_task_is_left_alone(make_view, which, two, none):
    view = make_view(**{which: two})
    (change,) = plan_of(PAPAAll(), view).changes
    assert change.weights.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert plan_of(PAPAAll(), make_view(**{which: none})) is None


def test_what_is_usual_is_the_default():
    assert (PAPAAll().moments, PAPAAll().period, PAPAAll().until) == ("keep", 5, 0.9)


def test_when_it_acts():
    assert [period for period in range(1, 31) if PAPAAll(period=10).due(period, 30)] == [10, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"period": 0}, "papa-all: period is 0"), ({"until": -1}, "papa-all: until is -1")],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        PAPAAll(**options)
    assert "\n" not in str(error.value)


def test_unknown_moments_are_refused():
    rule = PAPAAll()
    object.__setattr__(rule, "moments", "drop")  # past the checks of types under test, as a value from YAML comes
    with pytest.raises(InputError, match="papa-all: moments: unknown name 'drop'"):
        rule.__post_init__()
