import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import Exchange, Mix, Tune, View
from kinfold.transfer.exchange import ranked

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64)  # three tasks, two parameters


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def planned(rule, view, seed=0):
    plan, state = rule.plan(view, {}, torch.Generator().manual_seed(seed))
    assert state == {}
    return plan


def scores(make_view, metric, loss=None, **changes):
    tasks = len(metric)
    return make_view(
        metric=doubles(*metric),
        loss=doubles(*(loss or [1.0] * tasks)),
        train_loss=torch.ones(tasks, dtype=torch.float64),
        sound=torch.ones(tasks, dtype=torch.bool),
        improved=torch.zeros(tasks, dtype=torch.bool),
        validation=torch.ones(tasks, 12, dtype=torch.bool),
        exposed=torch.zeros(tasks, 12, dtype=torch.bool),
        **changes,
    )


def donors_of(plan):
    """Recipient → donor."""
    return {move.recipient: move.donors[0] for move in plan.moves()}


def test_three_tasks_by_hand(make_view):
    """Task 1 is the best, task 0 the worst: a third of three copies, and all of it follows."""
    plan = planned(Exchange(), scores(make_view, [0.5, 0.9, 0.7]))
    (change,) = plan.changes
    torch.testing.assert_close(moved(change, "weight", THETA, THETA, {"weight": 0}), THETA[[1, 1, 2]])
    assert (plan.trial, plan.moments, plan.buffers) == (None, "follow", "follow")
    assert plan.touched(3).tolist() == [True, False, False]
    assert plan.lineage(plan.touched(3)).int().tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [(move.form, move.donors) for move in plan.moves()] == [("copy", (1,))]


def test_ties_go_by_loss_and_then_by_number():
    assert ranked(doubles(0.5, 0.5, 0.9, 0.5), doubles(0.3, 0.2, 5.0, 0.3)).tolist() == [2, 1, 0, 3]


def test_many_ties_go_by_loss_and_then_by_number():
    draws = torch.Generator().manual_seed(0)
    metric, loss = (torch.randint(4, (2000,), generator=draws).double() / 4 for _ in range(2))
    by_hand = sorted(range(2000), key=lambda t: (-float(metric[t]), float(loss[t]), t))
    assert ranked(metric, loss).tolist() == by_hand
    no_scores = torch.full((2000,), math.nan)
    assert ranked(no_scores, no_scores).tolist() == list(range(2000))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_without_finite_scores_a_task_is_the_worst(bad):
    assert ranked(doubles(bad, 0.1, 0.2), doubles(0.0, 9.0, 9.0)).tolist() == [2, 1, 0]
    assert ranked(doubles(0.9, 0.1, 0.2), doubles(bad, 9.0, 9.0)).tolist() == [2, 1, 0]


def test_a_diverged_task_copies_and_is_never_copied(make_view):
    nan = math.nan
    view = scores(make_view, [nan, nan, 0.2, nan], [1.0, 0.1, 3.0, 0.1])
    for seed in range(20):
        assert donors_of(planned(Exchange(truncation=0.5), view, seed)) == {1: 2, 3: 2}
    assert planned(Exchange(), scores(make_view, [nan, nan, nan])) is None


@pytest.mark.parametrize(("truncation", "tasks", "count"), [(0.25, 8, 2), (0.25, 3, 1), (0.2, 5, 1), (0.5, 7, 3)])
def test_how_many_copy_and_may_be_copied(make_view, truncation, tasks, count):
    view, seen = scores(make_view, [t / 10 for t in range(tasks)]), set()
    for seed in range(40):
        donors = donors_of(planned(Exchange(truncation=truncation), view, seed))
        assert donors.keys() == set(range(count))
        seen |= set(donors.values())
    assert seen == set(range(tasks - count, tasks))


def test_donors_are_drawn_uniformly_and_apart(make_view):
    view, counts = scores(make_view, [0.1, 0.2, 0.3, 0.4]), torch.zeros(2, 2)
    for seed in range(400):
        donors = donors_of(planned(Exchange(truncation=0.5), view, seed))
        counts[donors[0] - 2, donors[1] - 2] += 1
    assert (counts - 100).abs().max() <= 5 * math.sqrt(400 * 0.25 * 0.75)


def test_perturbed_options_are_those_of_the_donor_times_a_factor(make_view):
    options = {"lr": doubles(0.1, 0.2, 0.4, 0.8), "weight_decay": doubles(0.0, 0.0, 0.01, 0.0), "momentum": doubles(1)}
    view, seen = scores(make_view, [0.1, 0.2, 0.3, 0.4], options=options), set()
    rule = Exchange(truncation=0.5, perturb=("lr", "weight_decay"), factors=(0.5, 2, 3.0))
    for seed in range(60):
        mix, tune = planned(rule, view, seed).changes
        assert isinstance(mix, Mix)
        assert isinstance(tune, Tune)
        assert tune.values.keys() == {"lr", "weight_decay"}
        for t, donor in donors_of(planned(rule, view, seed)).items():
            factors = float(tune.values["lr"][t] / options["lr"][donor])
            decay = float(tune.values["weight_decay"][t])
            assert decay in (0.005, 0.02, 0.03) if donor == 2 else decay == 0.0
            seen.add((round(factors, 9), round(decay / 0.01, 9)))
        assert all(values[[2, 3]].isnan().all() for values in tune.values.values())  # the best keep theirs
    assert seen == {(a, b) for a in (0.5, 2.0, 3.0) for b in (0.0, 0.5, 2.0, 3.0)}  # drawn apart


def test_a_perturbation_changes_nothing_else_of_the_plan(make_view):
    view = scores(make_view, [0.1, 0.2, 0.3, 0.4], options={"lr": doubles(0.1, 0.1, 0.1, 0.1)})
    for seed in range(10):
        plain, perturbed = (planned(Exchange(0.5, perturb), view, seed).changes for perturb in ((), ("lr",)))
        assert len(plain) == 1
        assert torch.equal(plain[0].weights, perturbed[0].weights)


def test_an_option_that_is_not_there_is_named(make_view):
    view = scores(make_view, [0.1, 0.2], options={"lr": doubles(0.1, 0.1), "weight_decay": doubles(0.1, 0.1)})
    with pytest.raises(InputError, match="exchange: perturb: unknown name 'weight_decy', did you mean 'weight_decay'"):
        planned(Exchange(perturb=("weight_decy",)), view)


@settings(deadline=None, max_examples=40)
@given(
    metric=st.lists(st.floats(0, 1) | st.just(math.nan), min_size=2, max_size=9),
    truncation=st.floats(0.01, 0.5),
    seed=st.integers(0, 1000),
)
def test_nobody_copies_and_is_copied_and_no_copy_is_of_a_worse_task(metric, truncation, seed):
    T = len(metric)
    none, rows = torch.zeros(T, dtype=torch.bool), torch.ones(T, 4, dtype=torch.bool)
    view = View(
        period=1,
        epochs=10,
        metric=doubles(*metric),
        loss=torch.ones(T, dtype=torch.float64),
        train_loss=torch.ones(T, dtype=torch.float64),
        sound=torch.ones(T, dtype=torch.bool),
        improved=none,
        validation=rows,
        exposed=~rows,
        unsealed=rows[0],
        targets=torch.zeros(4, dtype=torch.int64),
    )
    plan = planned(Exchange(truncation=truncation), view, seed)
    if plan is None:
        assert all(map(math.isnan, metric))
        return
    donors = donors_of(plan)
    assert len(donors) == max(1, int(truncation * T))
    assert not donors.keys() & set(donors.values())
    for t, s in donors.items():
        assert metric[s] >= metric[t] or math.isnan(metric[t])


def test_what_is_usual_is_the_default():
    rule = Exchange()
    assert (rule.truncation, rule.perturb, rule.factors, rule.period, rule.until) == (0.25, (), (0.8, 1.2), 5, 0.9)


def test_what_is_drawn_does_not_hang_on_the_scores(make_view):
    ends = []
    for metric in ([0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.1, math.nan], [math.nan] * 4):
        generator = torch.Generator().manual_seed(1)
        view = scores(make_view, metric, options={"lr": doubles(0.1, 0.1, 0.1, 0.1)})
        Exchange(perturb=("lr",)).plan(view, {}, generator)
        ends.append(generator.get_state())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": 0.0}, "truncation is 0.0"),
        ({"truncation": 0.6}, "truncation is 0.6"),
        ({"truncation": math.nan}, "truncation is nan"),
        ({"factors": ()}, r"factors is \(\)"),
        ({"factors": (0.8, 0.0)}, "factors is"),
        ({"factors": (math.inf,)}, "factors is"),
        ({"period": 0}, "period is 0"),
        ({"until": 2.0}, "until is 2.0"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        Exchange(**options)
    assert str(error.value).startswith("exchange: ")
    assert "\n" not in str(error.value)
