import math

import pytest
import torch

from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import Shuffle, ShuffleRule

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64)  # three tasks, two parameters


def planned(rule, view, seed=0):
    return rule.plan(view, {}, torch.Generator().manual_seed(seed))[0]


def test_three_tasks_by_hand(make_view):
    """With p = 1 every number is permuted: none is lost, and the mean stays."""
    seen = set()
    for seed in range(30):
        plan = planned(ShuffleRule(p=1, p_last=1), make_view(), seed)
        (change,) = plan.changes
        after = moved(change, "weight", THETA, THETA, {"weight": 0})
        assert torch.equal(after.sort(0).values, THETA)
        seen.add(tuple(after[0].tolist()))
        assert plan.lineage(plan.touched(3)).int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert len(seen) > 5  # the two numbers go their own ways


def test_the_layers_shares(make_view):
    """p (1 − l / (L − 1)) over three layers, by counting what moves of 20,000 numbers."""
    layers = {"a": 0, "b": 1, "c": 2}
    before = torch.arange(3, dtype=torch.float64)[:, None].expand(3, 20_000)
    (change,) = planned(ShuffleRule(p=0.3), make_view()).changes
    for name, rate in (("a", 0.3), ("b", 0.15), ("c", 0.0)):
        expected = rate * 2 / 3  # a number that is drawn stays with its task once in three
        share = float((moved(change, name, before, before, layers)[0] != before[0]).double().mean())
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / 20_000)


@pytest.mark.parametrize("moments", ["keep", "follow"])
def test_what_goes_with_the_numbers(make_view, moments):
    plan = planned(ShuffleRule(moments=moments), make_view())
    assert (plan.moments, plan.buffers, plan.trial) == (moments, "keep", None)


def test_a_task_that_diverges_takes_no_part(make_view):
    sound = torch.tensor([True, False, True])
    (change,) = planned(ShuffleRule(), make_view(sound=sound)).changes
    assert isinstance(change, Shuffle)
    assert change.tasks.tolist() == [True, False, True]
    sound[0] = False
    assert planned(ShuffleRule(), make_view(sound=sound)) is None


def test_every_transfer_point_has_a_key_of_its_own(make_view):
    keys = {planned(ShuffleRule(), make_view(), seed).changes[0].key for seed in range(20)}
    assert len(keys) == 20


def test_what_is_usual_is_the_default(make_view):
    rule = ShuffleRule()
    assert (rule.p, rule.p_last, rule.moments, rule.steps, rule.period, rule.until) == (0.01, 0.0, "keep", 10, 1, 0.9)
    assert not rule.alone  # numbers change places
    (change,) = planned(rule, make_view()).changes
    assert (change.rate, change.last_rate) == (0.01, 0.0)


def test_when_it_acts():
    assert not any(ShuffleRule().due(period, 10) for period in range(1, 11))
    assert ShuffleRule().running(9, 10)
    assert not ShuffleRule().running(10, 10)
    assert [period for period in range(1, 11) if ShuffleRule(steps=None, period=3).due(period, 10)] == [3, 6, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, "p is 1.5"),
        ({"p_last": -0.1}, "p_last is -0.1"),
        ({"moments": "reset"}, "moments: unknown name 'reset'"),
        ({"steps": 0}, "steps is 0"),
        ({"period": 0}, "period is 0"),
        ({"until": 2.0}, "until is 2.0"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    rule = ShuffleRule()
    for name, value in options.items():  # past the checks of types under test, as a value from YAML comes
        object.__setattr__(rule, name, value)
    with pytest.raises(InputError, match=message) as error:
        rule.__post_init__()
    assert str(error.value).startswith("shuffle: ")
    assert "\n" not in str(error.value)
