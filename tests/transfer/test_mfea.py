import math

import pytest
import torch

from kinfold import random
from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import MFEA, BinaryCross, Cross
from kinfold.transfer.mfea import mated

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64)  # three tasks, two parameters


def planned(rule, view, seed=0):
    return rule.plan(view, {}, torch.Generator().manual_seed(seed))[0]


def child(plan):
    (change,) = plan.changes
    return change, moved(change, "weight", THETA, THETA, {"weight": 0})


def test_three_tasks_by_hand(make_view):
    """Every task has a child with its mate: θ′ = ½ [(1 + β) θ_t + (1 − β) θ_s], β from u at η = 1."""
    view = make_view()
    plan = planned(MFEA(rmp=1, eta=1), view)
    change, children = child(plan)
    assert isinstance(change, BinaryCross)
    for t, s in enumerate(change.source.tolist()):
        assert s in {0, 1, 2} - {t}
        u = random.uniform(random.fold_in(change.keys[t], random.seed_of("weight")), (2,), torch.float64).tolist()
        beta = [math.sqrt(2 * x) if x <= 0.5 else math.sqrt(1 / (2 - 2 * x)) for x in u]
        for i in range(2):
            expected = 0.5 * ((1 + beta[i]) * float(THETA[t, i]) + (1 - beta[i]) * float(THETA[s, i]))
            assert float(children[t, i]) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(plan.trial, view.validation)  # elitist: only what is better on one's own rows stays
    assert (plan.moments, plan.buffers) == ("keep", "follow")


def test_uniform_crossover_takes_numbers_from_either_parent(make_view):
    seen = set()
    for seed in range(60):
        change, children = child(planned(MFEA(rmp=1, form="uniform"), make_view(), seed))
        assert isinstance(change, Cross)
        assert (change.unit, change.rate.tolist()) == ("parameter", [0.5] * 3)
        s = int(change.source[0])
        for i in range(2):
            assert float(children[0, i]) in (float(THETA[0, i]), float(THETA[s, i]))
        seen.add((s, *children[0].tolist()))
    assert len(seen) == 8  # both mates, all four children of each


def test_tasks_mate_at_their_rates_and_mates_are_uniform():
    """Task 0 mates always, task 1 with task 2 alone, task 2 half of the time with 0 and never with 1."""
    rates = torch.tensor([[9.0, 1.0, 1.0], [0.0, 9.0, 1.0], [0.5, 0.0, 9.0]], dtype=torch.float64)
    rows, counts = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 4)
    for seed in range(600):
        plan = mated(rows, rates, "binary", 2, torch.Generator().manual_seed(seed))
        for t, s in enumerate(plan.changes[0].source.tolist()):
            counts[t, s] += 1  # −1, nobody, in the last column
    expected = torch.tensor([[0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.25, 0, 0, 0.75]])
    assert ((counts / 600 - expected).abs() <= 5 * (expected * (1 - expected) / 600).sqrt()).all()


def test_rmp_is_the_share_that_mates(make_view):
    mates = 0
    for seed in range(300):
        plan = planned(MFEA(rmp=0.3), make_view(), seed)
        mates += 0 if plan is None else int(plan.touched(3).sum())
    assert abs(mates / 900 - 0.3) <= 5 * math.sqrt(0.3 * 0.7 / 900)
    assert all(planned(MFEA(rmp=0), make_view(), seed) is None for seed in range(20))


def test_a_mate_does_not_depend_on_the_rates():
    rows = torch.ones(4, 5, dtype=torch.bool)
    always, often = (
        mated(rows, torch.full((4, 4), rate), "binary", 2, torch.Generator().manual_seed(3)).changes[0]
        for rate in (1.0, 0.6)
    )
    assert torch.equal(always.keys, often.keys)
    assert ((often.source == always.source) | (often.source == -1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rmp": 1.5}, "rmp is 1.5"),
        ({"form": "blend"}, "form: unknown name 'blend'"),
        ({"eta": -1}, "eta is -1"),
        ({"eta": math.nan}, "eta is nan"),
        ({"period": 0}, "period is 0"),
        ({"until": 2.0}, "until is 2.0"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    rule = MFEA()
    for name, value in options.items():  # past the checks of types under test, as a value from YAML comes
        object.__setattr__(rule, name, value)
    with pytest.raises(InputError, match=message) as error:
        rule.__post_init__()
    assert str(error.value).startswith("mfea: ")
    assert "\n" not in str(error.value)


def test_what_is_usual_is_the_default():
    rule = MFEA()
    assert (rule.rmp, rule.form, rule.eta, rule.period, rule.until) == (0.3, "binary", 2.0, 1, 0.9)


def test_children_may_lie_as_far_apart_as_they_can(make_view):
    change, _ = child(planned(MFEA(rmp=1, eta=0), make_view()))
    assert change.eta.tolist() == [0.0, 0.0, 0.0]


def test_every_child_has_a_mask_of_its_own(make_view):
    keys = [key for seed in range(20) for key in planned(MFEA(rmp=1), make_view(), seed).changes[0].keys.tolist()]
    assert len(set(keys)) == 60
