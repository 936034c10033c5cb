"""The cost model against cases worked out by hand, and the pages that are made of it."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "scaling"))

from calibrate import dense_job, line, parameters
from model import (
    PLANS,
    RULES,
    Cadence,
    Machine,
    Setting,
    Volume,
    amto,
    compute_seconds,
    copy,
    crossover,
    depth,
    exchange_seconds,
    mean,
    median,
    mixture,
    rule_seconds,
    shuffle,
    teach,
)
from shared import Shared
from simulate import first_above, page, said
from validate import counted, drawn, predicted, started

from kinfold.tasks.order import Segment

FOUR = Setting(tasks=4, actors=2, parameters=100, tries=1.0, accepted=0.0)  # M = 400 bytes, two tasks a share
MACHINE = Machine(store=1e3, network=1e2, latency=1.0, driver=1e4, step=0.5, rate=1e4, actors_per_node=2)


def test_shares_are_those_of_the_engines():
    assert Setting(8, 3, 1).shares == [3, 2, 3]
    assert Setting(4, 4, 1).shares == [1, 1, 1, 1]
    assert sum(Setting(4096, 37, 1).shares) == 4096


@pytest.mark.parametrize(("actors", "models"), [(1, 0), (2, 2), (3, 4), (8, 14)])
def test_a_mean_goes_up_a_tree_and_to_all_shares(actors, models):
    assert mean(Setting(8, actors, parameters=100)).between == models * 400


def test_copies_by_hand():
    """T = 4 in two shares, each task takes one of three others: of the two outside, each is needed by 1 − (2/3)²."""
    assert copy(FOUR).between == pytest.approx(2 * 2 * (1 - (2 / 3) ** 2) * 400)
    everyone_apart = Setting(4, 4, 100, tries=0.5, accepted=0.0)  # 4 · 3 · (½ / 3) models
    assert copy(everyone_apart).between == pytest.approx(2 * 400)


def test_moments_follow_what_is_accepted():
    """As many numbers again for each slot, of the tries that are accepted, however models are coded."""
    apart = Setting(4, 4, 100, tries=0.5, accepted=0.25, slots=2, number_bytes=1.0)
    assert copy(apart).between == pytest.approx(2 * 100 + 0.25 * 2 * 2 * 400)


def test_crossovers_by_hand():
    """Half the layers of one other, needed by one of two tasks with probability 1/6 each: 1 − (5/6)² of the numbers."""
    found = crossover(Setting(4, 2, 100, tries=1.0, accepted=0.0, number_bytes=1.0))
    assert found.between == pytest.approx(2 * 2 * (1 - (5 / 6) ** 2) * 400)  # they go as they are
    accepted = crossover(Setting(4, 4, 100, tries=1.0, accepted=1.0, slots=1))
    assert accepted.between == pytest.approx(2 * 4 * 3 * (1 / 6) * 400)


def test_amto_by_enumeration():
    """Of what each of two tasks may do alone, every pair: what the other share must send of one of its models."""
    of = Setting(4, 2, 100, tries=0.6, accepted=0.0)
    # A task takes this donor whole, one of two halves of it, or nothing; a crossover takes each half with 1/2.
    chances = {"whole": 0.4 / 3, "first": 0.2 / 3 / 4, "second": 0.2 / 3 / 4, "both": 0.2 / 3 / 4}
    chances["nothing"] = 1 - sum(chances.values())
    taken = {"whole": {1, 2}, "first": {1}, "second": {2}, "both": {1, 2}, "nothing": set()}
    expected = sum(
        chances[one] * chances[two] * len(taken[one] | taken[two]) / 2
        for one, two in itertools.product(chances, repeat=2)
    )
    assert amto(of).between == pytest.approx(2 * 2 * expected * 400)


def test_mixtures_send_the_fewer_of_donors_and_combinations():
    """With all others as donors: two models of each share, or one combination for each of two tasks."""
    assert mixture(Setting(4, 2, 100, donors=3)).between == pytest.approx(2 * 2 * 400)
    uneven = mixture(Setting(5, 2, 100, donors=4))  # 2 and 3 tasks: two models one way, two combinations the other
    assert uneven.between == pytest.approx(4 * 400)
    assert mixture(Setting(4, 4, 100, donors=1)).between == pytest.approx(4 * 400)


def test_shuffles_by_hand():
    """A tenth of the numbers of four tasks, each of which comes from the other share with probability ½."""
    assert shuffle(Setting(4, 2, 100, shuffled=0.1)).between == pytest.approx(4 * 0.1 * 0.5 * 400)


def test_medians_by_hand():
    """Two shares: each is sent half the numbers of two models, and half a model of medians; shipping takes four."""
    assert median(Setting(4, 2, 100, slots=0)).between == pytest.approx((2 * 2 * 0.5 + 2 * 0.5) * 400)
    assert median(Setting(2, 2, 100, slots=0)).between == pytest.approx(2 * 400)
    followed = median(Setting(4, 4, 100, slots=1, accepted=0.5))  # by slices (4 + k) ¾, k = 4 shares, and 2 expected
    assert followed.between == pytest.approx((6 + 4.5) * 400)


def test_teaching_goes_by_the_driver_and_nothing_else_does():
    of = Setting(4, 2, 100, rows=50, outputs=3)
    assert teach(of) == Volume(driver=2 * 4 * 50 * 3 * 4, hops=2)
    assert all(plan(of).driver == 0 for name, plan in PLANS.items() if name != "teach")


@pytest.mark.parametrize("name", [name for name in PLANS if name != "teach"])
def test_one_actor_exchanges_nothing_and_a_codec_never_costs_more(name):
    assert PLANS[name](Setting(8, 1, 100)).between == pytest.approx(0)
    assert PLANS[name](Setting(1, 1, 100)).between == 0
    coded, plain = (PLANS[name](Setting(8, 4, 100, number_bytes=size)).between for size in (1.0, 4.0))
    assert plain / 4 <= coded <= plain


def test_depth_of_a_tree():
    assert [depth(count) for count in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]


def test_seconds_by_hand():
    of = Setting(tasks=8, actors=4, parameters=100)
    assert compute_seconds(of, MACHINE, steps=10, batch=20) == pytest.approx(2 * 10 * (0.5 + 100 * 20 / 1e4))
    # A tree of four over nodes of two: a hop within and one between, up and down, of 400 bytes each.
    assert exchange_seconds(mean(of), of, MACHINE) == pytest.approx(4 * 1.0 + 400 * (2 / 1e3 + 2 / 1e2))
    # 300 bytes to each actor, a third from its own node, the rest for two actors by one network.
    spread = Volume(between=1200, hops=2)
    assert exchange_seconds(spread, of, MACHINE) == pytest.approx(2 * 1.0 + 100 / 1e3 + 2 * 200 / 1e2)
    assert exchange_seconds(Volume(driver=5e4, hops=1), of, MACHINE) == pytest.approx(1.0 + 5.0)
    alone = Setting(tasks=8, actors=1, parameters=100)
    assert exchange_seconds(mean(alone), alone, MACHINE) == 0


def test_rules_act_at_their_cadence():
    of = Setting(tasks=8, actors=4, parameters=100)
    each = exchange_seconds(mean(of), of, MACHINE)
    assert rule_seconds("papa", of, MACHINE, steps=50) == pytest.approx(5 * each)
    assert rule_seconds("papa-all", of, MACHINE, steps=50) == pytest.approx(each / 5)
    assert Cadence("mean").per_period(50) == 1


def test_cadences_are_the_rules_defaults():
    from kinfold import transfer

    for name, cadence in RULES.items():
        rule = transfer.RULES[name]()
        assert (rule.steps, rule.period) == (cadence.steps, cadence.periods), name


@pytest.mark.parametrize("kind", ["mean", "elastic", "median", "restart"])
@pytest.mark.parametrize(("tasks", "actors"), [(4, 2), (5, 3)])
def test_the_exchange_counts_what_the_model_says(kind, tasks, actors):
    job = dense_job(8, tasks)
    expected = predicted(kind, job, actors)
    with started("shared", job, actors) as (running, moved):
        assert counted(kind, job, actors, running, moved) == pytest.approx(expected, rel=0.01)


def test_shares_in_one_process_train_and_count():
    job = dense_job(8, 3)
    engine = Shared(job, 3)
    assert engine.train(Segment(1, 0, 2)).shape == (3,)
    engine.apply(drawn("mean", 3, torch.Generator()), 1)
    assert sum(engine.moved.values()) == 2 * 2 * 4 * parameters(job)
    assert engine.plans == 1


def test_a_line_is_found_again():
    assert line([1e3, 1e5, 1e7], [0.001 + size / 2e6 for size in (1e3, 1e5, 1e7)]) == pytest.approx((0.001, 5e-7))


def test_the_page_of_the_simulation():
    text = page()
    assert "| papa |" in text
    assert "T = 4,096" in text
    assert said(0.0123) == "1.2 %"
    assert first_above(0.5, lambda T: T / 100) == 64
    assert first_above(1e9, lambda T: T) is None
