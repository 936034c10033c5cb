"""Uniform and greedy soups, by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kinfold import random
from kinfold.candidates import GreedySoup, Soup
from kinfold.candidates.base import measure_batch_norm
from kinfold.candidates.soup import averaged

UNWATCHED: dict[str, torch.Tensor] = {}
APART = torch.stack([torch.arange(30) // 5 == t for t in range(4)])  # each task has been exposed to rows of its own


def scalar(weight: float) -> nn.Module:
    model = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model.eval()  # as engines export it


def near(target: float, tried: list[float] | None = None) -> Callable[[nn.Module], float]:
    """Scores a model by how near its weight is to the target, and writes down what it was asked for."""

    def overall(model: nn.Module) -> float:
        weight = model.weight.item()
        if tried is not None:
            tried.append(weight)
        return -((weight - target) ** 2)

    return overall


class Counting(nn.Module):
    """Has a parameter under two names, a floating buffer and a whole number."""

    def __init__(self, value: float, steps: int):
        super().__init__()
        self.first = nn.Parameter(torch.full((2,), value))
        self.second = self.first
        self.register_buffer("moving", torch.tensor(2 * value))
        self.register_buffer("steps", torch.tensor(steps))


def test_averaged_by_hand() -> None:
    models = [Counting(1.0, 3), Counting(2.0, 5), Counting(6.0, 7)]
    mean = averaged(models)
    assert mean.first.tolist() == [3.0, 3.0]
    assert mean.second is mean.first
    assert float(mean.moving) == 6.0
    assert int(mean.steps) == 3  # the first one's
    assert [model.first.tolist()[0] for model in models] == [1.0, 2.0, 6.0]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5))
def test_an_average_lies_among_its_members_whatever_their_order(weights: list[float]) -> None:
    mean = averaged([scalar(w) for w in weights]).weight.item()
    assert min(weights) <= mean <= max(weights)
    assert mean == pytest.approx(averaged([scalar(w) for w in reversed(weights)]).weight.item(), rel=1e-6, abs=1e-6)


def test_the_uniform_soup(lab: Any) -> None:
    job = lab.make_job()
    best_exposed = torch.zeros(3, lab.N, dtype=torch.bool)
    best_exposed[0, 2], best_exposed[1, 4], best_exposed[2, 4:7] = True, True, True
    finished = lab.make_finished(job, [scalar(1.0), scalar(2.0), scalar(6.0)], best_exposed=best_exposed)
    (soup,) = Soup().build(finished, UNWATCHED)
    assert (soup.kind, soup.members, soup.model.weight.item()) == ("soup", (0, 1, 2), 3.0)
    assert soup.exposed.nonzero().flatten().tolist() == [2, 4, 5, 6]
    assert not soup.model.training


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_task_without_a_score_stays_out(lab: Any, bad: float) -> None:
    """Also one whose parameters are finite: its snapshot is its start."""
    members = [scalar(1.0), scalar(bad), scalar(6.0)]
    finished = lab.make_finished(lab.make_job(), members, unscored=[1], best_exposed=APART[:3])
    (soup,) = Soup().build(finished, UNWATCHED)
    assert (soup.members, soup.model.weight.item()) == ((0, 2), 3.5)
    assert torch.equal(soup.exposed, APART[0] | APART[2])
    assert Soup().build(lab.make_finished(lab.make_job(), members, unscored=[0, 1]), UNWATCHED) == []


def test_greedily_best_first_and_nothing_that_makes_it_worse(lab: Any) -> None:
    """To 3: 4 is the nearest; with 5 it is farther off, with 0 as near, and a draw is taken; with 10 farther again."""
    tried: list[float] = []
    members = [scalar(w) for w in (0.0, 4.0, 10.0, 5.0)]
    finished = lab.make_finished(lab.make_job(tasks=4), members, overall=near(3.0, tried), best_exposed=APART)
    (soup,) = GreedySoup().build(finished, UNWATCHED)
    assert tried == pytest.approx([0.0, 4.0, 10.0, 5.0, 4.5, 2.0, 14 / 3])
    assert (soup.kind, soup.members, soup.model.weight.item()) == ("soup", (0, 1), 2.0)
    assert torch.equal(soup.exposed, APART[0] | APART[1])


def test_greedily_alone_is_no_soup(lab: Any) -> None:
    job = lab.make_job()
    alone = lab.make_finished(job, [scalar(w) for w in (3.0, 9.0, -9.5)], overall=near(3.0))
    assert GreedySoup().build(alone, UNWATCHED) == []
    sick = lab.make_finished(job, [scalar(w) for w in (3.0, math.nan, math.nan)], overall=near(3.0))
    assert GreedySoup().build(sick, UNWATCHED) == []


def test_greedily_a_task_without_a_score_stays_out(lab: Any) -> None:
    members = [scalar(w) for w in (2.0, math.nan, 4.0)]
    (soup,) = GreedySoup().build(lab.make_finished(lab.make_job(), members, overall=near(3.0)), UNWATCHED)
    assert (soup.members, soup.model.weight.item()) == ((0, 2), 3.0)


@pytest.mark.parametrize("candidate", [Soup(), GreedySoup()])
def test_batch_norm_is_measured_anew_on_what_the_members_were_exposed_to(lab: Any, candidate: Any) -> None:
    job = lab.make_job(tasks=2)
    with random.seeded(torch.device("cpu"), 0):
        members = [job.model().double().eval() for _ in range(2)]
    exposed = torch.zeros(2, lab.N, dtype=torch.bool)
    exposed[0, :12], exposed[1, 6:20] = True, True
    before = [copy.deepcopy(member.state_dict()) for member in members]
    (soup,) = candidate.build(lab.make_finished(job, members, best_exposed=exposed), UNWATCHED)
    expected = averaged(members)
    measure_batch_norm(expected, job, torch.arange(lab.N) < 20, words=("soup",))
    for name, value in expected.state_dict().items():
        assert torch.equal(soup.model.state_dict()[name], value), name
    assert not torch.allclose(soup.model[1].running_mean, torch.stack([m[1].running_mean for m in members]).mean(0))
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in member.state_dict().items())


def test_sealed_rows_do_not_reach_a_soup(lab: Any) -> None:
    """Not even through a ledger that had them."""
    job = lab.make_job(tasks=2)
    with random.seeded(torch.device("cpu"), 0):
        members = [job.model().double().eval() for _ in range(2)]
    every = torch.ones(2, lab.N, dtype=torch.bool)
    (soup,) = Soup().build(lab.make_finished(job, members, best_exposed=every), UNWATCHED)
    expected = averaged(members)
    measure_batch_norm(expected, job, torch.arange(lab.N) < lab.N - 3, words=("soup",))
    assert torch.equal(soup.model[1].running_mean, expected[1].running_mean)
    assert bool(soup.exposed.all())
