import pytest
import torch

from kinfold.engines.moves import pulled
from kinfold.errors import InputError
from kinfold.transfer import ElasticRule

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]], dtype=torch.float64)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def change_of(rule, view):
    plan, state = rule.plan(view, rule.start(3), torch.Generator())
    assert state == {}
    assert (plan.trial, plan.moments, plan.buffers) == (None, "keep", "keep")
    (change,) = plan.changes
    return change


def test_two_pulls_by_hand(make_view):
    """β = 0.6, so α = 0.2; the centre starts as the mean, (3, 20), and there stays until the tasks have moved."""
    change = change_of(ElasticRule(beta=0.6), make_view(step=10))
    torch.testing.assert_close(change.rate, doubles([0.2, 0.2, 0.2]))
    torch.testing.assert_close(change.centre_rate, doubles([0.2, 0.2, 0.2]))
    after, centre = pulled(change, THETA, THETA, None)
    torch.testing.assert_close(after, doubles([[1.4, 12.0], [2.2, 20.0], [5.4, 28.0]]))
    torch.testing.assert_close(centre, doubles([3.0, 20.0]))
    after = after + doubles([[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])  # trained on: (2.4, 12), (2.2, 25), (5.4, 28)
    again, centre = pulled(change, after, after, centre)
    # x ← x − 0.2 (x − x̃), and x̃ ← x̃ + 0.2 Σ (x − x̃) = (3 + 0.2 · 1, 20 + 0.2 · 5), both from before.
    torch.testing.assert_close(again, doubles([[2.52, 13.6], [2.36, 24.0], [4.92, 26.4]]))
    torch.testing.assert_close(centre, doubles([3.2, 21.0]))


def test_with_beta_one_the_centre_is_the_mean(make_view):
    change = change_of(ElasticRule(beta=1.0), make_view())
    _, centre = pulled(change, THETA, THETA, doubles([100.0, -7.0]))
    torch.testing.assert_close(centre, THETA.mean(0))


def test_a_diverged_task_neither_pulls_nor_is_pulled(make_view):
    change = change_of(ElasticRule(), make_view(sound=torch.tensor([False, True, True])))
    torch.testing.assert_close(change.rate, doubles([0.0, 0.3, 0.3]))
    torch.testing.assert_close(change.centre_rate, doubles([0.0, 0.3, 0.3]))
    nobody = make_view(sound=torch.zeros(3, dtype=torch.bool))
    assert ElasticRule().plan(nobody, {}, torch.Generator())[0] is None
    assert ElasticRule(beta=0).plan(make_view(), {}, torch.Generator())[0] is None


def test_the_papers_values_are_the_default():
    assert (ElasticRule().beta, ElasticRule().steps, ElasticRule().until) == (0.9, 10, 1.0)
    assert not ElasticRule().alone  # the centre is everybody's


def test_when_it_acts():
    rule = ElasticRule()
    assert rule.steps == 10
    assert not any(rule.due(period, 10) for period in range(1, 11))
    assert all(rule.running(period, 10) for period in range(1, 11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.1}, "elastic: beta is 1.1"),
        ({"steps": 0}, "elastic: steps is 0"),
        ({"until": 3}, "elastic: until is 3"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        ElasticRule(**options)
    assert "\n" not in str(error.value)
