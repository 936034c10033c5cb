import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kinfold.comparing.statistics import (
    Significance,
    average_ranks,
    cliques,
    corrected_resampled_t,
    friedman,
    holm,
    interval,
    nemenyi_critical_difference,
    paired_t,
    share_of_ensemble_gain,
    wilcoxon,
)
from kinfold.errors import InputError

few = settings(max_examples=30, deadline=None)
samples = arrays(np.float64, st.integers(2, 12), elements=st.integers(-50, 50).map(float))
probabilities = arrays(np.float64, st.integers(0, 8), elements=st.floats(0, 1))
tables = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(3, 6)), elements=st.integers(0, 4).map(float))


def test_interval_by_hand():
    # mean 3, s = sqrt(10 / 4), t(0.975, 4) = 2.776445
    found = interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert found == pytest.approx((3.0, 3 - half, 3 + half), rel=1e-6)
    assert found.mean == 3.0


@few
@given(samples)
def test_a_higher_level_is_a_wider_interval(values):
    narrow, wide = interval(values, 0.8), interval(values, 0.99)
    if np.ptp(values):
        assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    else:
        assert math.isnan(narrow.low)
        assert math.isnan(wide.high)


@pytest.mark.parametrize("values", [[4.0], [0.1 + 0.2, 0.3, 0.3], [2.0, 2.0]])
def test_without_spread_there_is_a_mean_and_no_interval(values):
    found = interval(np.array(values))
    assert found.mean == pytest.approx(values[0])
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_nothing_to_say(bad):
    values = np.array([1.0, bad, 3.0])
    assert all(math.isnan(x) for x in interval(values))
    paired = paired_t(values)
    assert all(math.isnan(x) for x in (paired.mean, paired.low, paired.high, paired.p))
    assert math.isnan(wilcoxon(values, np.ones(3)).p)
    assert math.isnan(friedman(np.array([[1.0, 2.0, bad]])).p)


def test_paired_t_by_hand():
    # mean 2, s = 1, t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2), t(0.975, 2) = 4.302653
    found = paired_t(np.array([1.0, 2.0, 3.0]))
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert (found.wins, found.losses, found.ties, found.corrected) == (3, 0, 0, False)


def test_corrected_t_by_hand():
    # a fifth of the rows tested on: n_test / n_train = 1/4, variance (1/3 + 1/4) s^2
    found = corrected_resampled_t(np.array([1.0, 2.0, 3.0]), test_share=0.2)
    error = math.sqrt(1 / 3 + 1 / 4)
    t = 2 / error
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 * error, 2 + 4.302653 * error))
    assert found.corrected


@few
@given(samples, st.floats(0.01, 0.99))
def test_the_interval_says_what_p_says(differences, share):
    plain, corrected = paired_t(differences), corrected_resampled_t(differences, share)
    assert plain.wins + plain.losses + plain.ties == len(differences)
    if not np.ptp(differences):
        assert plain.p == corrected.p
        return
    for found in (plain, corrected):
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
    assert corrected.p >= plain.p
    assert corrected.low < plain.low


@few
@given(samples)
def test_the_other_way_round_is_the_mirror_image(differences):
    one, other = paired_t(differences), paired_t(-differences)
    assert (other.wins, other.losses, other.ties) == (one.losses, one.wins, one.ties)
    assert (other.mean, other.low, other.high, other.p) == pytest.approx(
        (-one.mean, -one.high, -one.low, one.p), nan_ok=True
    )


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1.5], math.nan), ([0.0], math.nan), ([0.0, 0.0], 1.0), ([-0.5] * 5, 1 / 16), ([0.93 - 0.92, 0.95 - 0.94], 0.5)],
)
def test_differences_without_spread(differences, p):
    for found in (paired_t(np.array(differences)), corrected_resampled_t(np.array(differences), 0.5)):
        assert found.p == pytest.approx(p, nan_ok=True)
        assert found.mean == pytest.approx(differences[0])
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_ranks_by_hand():
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 1.0], [math.nan, 0.0, 0.0]])
    assert average_ranks(scores).tolist() == pytest.approx([(1 + 1.5 + 3) / 3, (3 + 1.5 + 1.5) / 3, (2 + 3 + 1.5) / 3])
    lower = average_ranks(scores, higher_is_better=False)
    assert lower.tolist() == pytest.approx([(3 + 2.5 + 3) / 3, (1 + 2.5 + 1.5) / 3, (2 + 1 + 1.5) / 3])


@few
@given(tables)
def test_ranks_add_up_and_know_only_order(scores):
    ranks = average_ranks(scores)
    A = scores.shape[1]
    assert ranks.sum() == pytest.approx(A * (A + 1) / 2)
    assert np.allclose(ranks, average_ranks(np.exp(scores)))
    assert np.allclose(ranks, average_ranks(-scores, higher_is_better=False))


def test_wilcoxon_by_hand():
    # ranks of |d| = 1, 2, 4, 3, 5 with one negative of rank 3; 5 of the 32 sign patterns have a rank sum <= 3
    found = wilcoxon(np.array([3.0, 5.0, 9.0, 4.0, 8.0]), np.array([2.0, 3.0, 5.0, 7.0, 3.0]))
    assert found == Significance(3.0, 10 / 32)


def test_wilcoxon_shares_out_zeros():
    # |d| = 0, 0, 1, 2, 3 rank 1.5, 1.5, 3, 4, 5: the smaller sum is half of the zeros' 3, as far out as 2 of 8 patterns
    found = wilcoxon(np.array([1.0, 1.0, 2.0, 3.0, 4.0]), np.ones(5))
    assert found == Significance(1.5, 0.25)
    assert wilcoxon(np.ones(4), np.ones(4)) == Significance(5.0, 1.0)
    assert wilcoxon(np.ones(1), np.ones(1)).p == wilcoxon(np.ones(1), np.zeros(1)).p == 1.0


@settings(max_examples=10, deadline=None)
@given(arrays(np.float64, st.integers(1, 6), elements=st.integers(-5, 5).map(float)))
def test_wilcoxon_is_symmetric(x):
    y = np.zeros(len(x))
    assert wilcoxon(x, y).p == pytest.approx(wilcoxon(y, x).p)


def test_friedman_by_hand():
    # mean ranks 1, 7/3, 8/3 over 3 blocks: 12 * 3 / 12 * (1 + 49/9 + 64/9 - 12) = 14/3; chi2 with 2 df: p = exp(-x/2)
    found = friedman(np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0], [9.0, 7.0, 8.0]]))
    assert found.statistic == pytest.approx(14 / 3)
    assert found.p == pytest.approx(math.exp(-7 / 3))


@few
@given(tables)
def test_friedman_is_defined_for_any_ties(scores):
    found = friedman(scores)
    assert found.statistic >= -1e-9
    assert 0 <= found.p <= 1
    assert friedman(np.zeros(scores.shape)) == Significance(0.0, 1.0)


@pytest.mark.parametrize(
    ("arms", "level", "q"),
    [(2, 0.95, 1.960), (3, 0.95, 2.343), (4, 0.95, 2.569), (10, 0.95, 3.164), (2, 0.9, 1.645), (5, 0.9, 2.459)],
)
def test_critical_difference_has_the_published_q(arms, level, q):
    # Demšar 2006, table 5(a)
    expected = q * math.sqrt(arms * (arms + 1) / (6 * 14))
    assert nemenyi_critical_difference(arms, 14, level) == pytest.approx(expected, rel=5e-4)


def test_cliques_by_hand():
    # Demšar 2006, section 3.2.4's example, at CD = 1.25: nothing is apart from its neighbours, the ends are
    ranks = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert cliques(ranks, 1.25) == [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]
    assert cliques(ranks, 1.1) == [("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5")]
    assert cliques({"a": 1.0, "b": 2.0}, 1.0) == []


@few
@given(st.lists(st.floats(1, 6), min_size=2, max_size=6), st.floats(0.1, 6))
def test_cliques_join_just_the_pairs_that_are_near(ranks, cd):
    named = {str(i): rank for i, rank in enumerate(ranks)}
    groups = cliques(named, cd)
    joined = {frozenset((a, b)) for group in groups for a in group for b in group if a != b}
    near = {frozenset((a, b)) for a in named for b in named if a != b and abs(named[a] - named[b]) < cd}
    assert joined == near
    assert not any(set(one) < set(other) for one in groups for other in groups)


def test_holm_by_hand():
    found = holm(np.array([0.04, 0.01, math.nan, 0.03, 0.9]))
    assert found.tolist() == pytest.approx([0.09, 0.04, math.nan, 0.09, 0.9], nan_ok=True)
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


@few
@given(probabilities)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p):
    found = holm(p)
    assert (found >= p).all()
    assert (found <= np.minimum(1, len(p) * p)).all()
    assert (np.diff(found[np.argsort(p)]) >= 0).all()


def test_share_of_ensemble_gain():
    assert share_of_ensemble_gain(93.0, 90.0, 94.0) == 0.75
    assert share_of_ensemble_gain(89, 90, 94) == -0.25
    assert share_of_ensemble_gain(0.7, 1.0, 0.6, higher_is_better=False) == pytest.approx(0.75)
    assert math.isnan(share_of_ensemble_gain(93.0, 90.0, 90.0))
    assert math.isnan(share_of_ensemble_gain(93.0, 90.0, 89.0))
    assert math.isnan(share_of_ensemble_gain(93.0, math.nan, 95.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(np.array([])), "values: there are none"),
        (lambda: interval(np.ones(3), 1.0), "level: must be above 0 and below 1, not 1.0"),
        (lambda: paired_t(np.array([])), "values: there are none"),
        (lambda: corrected_resampled_t(np.ones(3), 1.0), "test_share: must be above 0 and below 1, not 1.0"),
        (lambda: average_ranks(np.ones((0, 3))), r"scores: shape \(0, 3\)"),
        (lambda: wilcoxon(np.array([]), np.array([])), "x, y: hold no data sets"),
        (lambda: friedman(np.ones((4, 2))), "scores: 4 blocks by 2 arms"),
        (lambda: nemenyi_critical_difference(1, 5), "arms: must be at least 2, not 1"),
        (lambda: nemenyi_critical_difference(2, 0), "blocks: must be at least 1, not 0"),
        (lambda: nemenyi_critical_difference(2, 5, 0.0), "level: must be above 0"),
    ],
)
def test_what_cannot_be_said_names_its_cause(call, message):
    with pytest.raises(InputError, match=message):
        call()
