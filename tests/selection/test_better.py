import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.selection import better

NAN = math.nan
SCORES = st.tuples(st.sampled_from([0.0, 0.5, 1.0, NAN]), st.sampled_from([0.1, 0.2, NAN, math.inf]))


def one(a: tuple[float, float], b: tuple[float, float], by: str = "metric") -> bool:
    return bool(better(*(torch.tensor(value, dtype=torch.float64) for value in (*a, *b)), by=by))


@pytest.mark.parametrize(
    ("a", "b", "by_metric", "by_loss"),
    [
        ((0.9, 0.5), (0.8, 0.4), True, False),
        ((0.8, 0.4), (0.8, 0.5), True, True),
        ((0.9, 0.4), (0.8, 0.4), True, True),
        ((0.8, 0.4), (0.8, 0.4), False, False),
        ((0.1, 9.0), (NAN, 0.1), True, True),
        ((0.1, 9.0), (1.0, NAN), True, True),
        ((NAN, 0.1), (0.1, 9.0), False, False),
        ((1.0, NAN), (0.1, 9.0), False, False),
        ((NAN, 0.1), (0.9, NAN), False, False),
        ((-math.inf, math.inf), (NAN, NAN), True, True),
    ],
)
def test_what_is_better(a, b, by_metric, by_loss):
    assert one(a, b) is by_metric
    assert one(a, b, by="loss") is by_loss


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(SCORES, min_size=3, max_size=3), by=st.sampled_from(["metric", "loss"]))
def test_better_is_a_strict_weak_order(scores, by):
    a, b, c = scores
    assert not one(a, a, by)
    assert not (one(a, b, by) and one(b, a, by))
    if one(a, b, by):
        assert one(a, c, by) or one(c, b, by)  # "neither is better" is transitive, so a best one exists


def test_it_works_over_any_shape_and_under_vmap():
    metric, loss = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    assert better(metric, loss, metric.flip(1), loss).tolist() == [[True, False]]
    assert torch.vmap(better)(metric, loss, metric.flip(1), loss).tolist() == [[True, False]]


def test_an_unknown_order_is_refused():
    with pytest.raises(InputError, match="better: unknown name 'los', did you mean 'loss'"):
        one((0, 0), (0, 0), by="los")
