"""What may be said of arms that were run on the same seeds, or on the same data sets.

Shapes: K seeds, D blocks (data sets, or seeds), A arms. A level is a coverage, such as 0.95. A value that is not
finite (a run that diverged) makes every statistic of its group NaN: a mean of the others would be of other seeds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import stats

from kinfold.errors import InputError

LEVEL = 0.95
"""Coverage of the intervals where nothing else is said."""

_ROUNDING = 1e-9  # a spread below this share of the values is rounding: 0.93 - 0.92 and 0.95 - 0.94 differ


class Interval(NamedTuple):
    """A mean with its interval; the ends are NaN where there is no spread to judge by.

    Attributes:
        mean: the mean.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Differences between two arms on the same seeds, summed up.

    Attributes:
        mean: the mean difference.
        low: lower end of its interval, NaN where the differences have no spread to judge by.
        high: upper end, likewise.
        p: two-sided p-value of "no difference"; NaN where nothing can be said.
        wins: seeds with a difference above 0.
        losses: seeds with a difference below 0.
        ties: seeds with a difference of 0.
        corrected: whether the variance allows for training rows that the seeds share.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int
    corrected: bool


@dataclass(frozen=True)
class Significance:
    """A test's outcome.

    Attributes:
        statistic: the test's statistic.
        p: its p-value.
    """

    statistic: float
    p: float


def interval(values: Float[np.ndarray, " K"], level: float = LEVEL) -> Interval:
    """Returns the mean of independent values with its interval by Student's t.

    Its ends are `mean ± t · s / √K`, s with K − 1, and t the quantile (1 + level) / 2 of Student's t with K − 1
    degrees of freedom. They are NaN for one value and for equal ones: zero width would claim certainty.

    Source: Student, *The probable error of a mean*, Biometrika 6, 1908.

    Args:
        values: one for each seed.
        level: coverage, in (0, 1).

    Raises:
        InputError: there are no values, or the level is not in (0, 1).

    Example:
        >>> [round(x, 3) for x in interval(np.array([1.0, 2.0, 3.0]))]
        [2.0, -0.484, 4.484]
    """
    _check(values, level)
    mean, error = _mean_and_error(values, 1 / len(values))
    half = _quantile(len(values), level) * error
    return Interval(mean, mean - half, mean + half)


def corrected_resampled_t(differences: Float[np.ndarray, " K"], test_share: float, level: float = LEVEL) -> Paired:
    """Returns the paired comparison of two arms over K random re-splits of one data set into labelled and test rows.

    The splits share rows, so the differences are not independent and the plain test finds too much. The corrected
    one is Student's t with the variance of the mean taken as `(1/K + n_test / n_train) s²`, s² with K − 1, where
    n_test / n_train = test_share / (1 − test_share). Training rows are all rows that an arm may learn from,
    its own validation rows included. Without spread see `paired_t`.

    Source: C. Nadeau, Y. Bengio, *Inference for the generalization error*, Machine Learning 52, 2003, section 3.

    Args:
        differences: one for each seed, above 0 where the arm is better.
        test_share: share of the rows that each split keeps for the test, in (0, 1).
        level: coverage of the interval, in (0, 1).

    Raises:
        InputError: there are no differences, or the share or the level is not in (0, 1).

    Example:
        >>> d = np.array([1.0, 2.0, 3.0, 2.0])
        >>> corrected, plain = corrected_resampled_t(d, test_share=0.2), paired_t(d)
        >>> round(corrected.p, 4), round(plain.p, 4), corrected.wins
        (0.0405, 0.0163, 4)
    """
    if not 0 < test_share < 1:
        raise InputError(f"test_share: must be above 0 and below 1, not {test_share!r}.")
    return _paired(differences, test_share / (1 - test_share), level)


def paired_t(differences: Float[np.ndarray, " K"], level: float = LEVEL) -> Paired:
    """Returns the paired comparison of two arms over K seeds of one fixed training and test set.

    Student's t with K − 1 degrees of freedom on the differences. What it says holds for this test set: the seeds are
    the only thing drawn.

    Where the differences have no spread, t is not defined. One seed says nothing (p is NaN). All differences 0 give
    p = 1. All equal but not 0 give the sign test's p = 2^(1 − K), since a spread of 0 would claim certainty. The
    interval's ends are NaN in all three.

    Args:
        differences: one for each seed, above 0 where the arm is better.
        level: coverage of the interval, in (0, 1).

    Raises:
        InputError: there are no differences, or the level is not in (0, 1).

    Example:
        >>> paired_t(np.array([0.5, 0.5, 0.5])).p
        0.25
    """
    return _paired(differences, 0.0, level)


def average_ranks(scores: Float[np.ndarray, "D A"], *, higher_is_better: bool = True) -> Float64[np.ndarray, " A"]:
    """Returns each arm's mean rank over the blocks: 1 is the best, ties share their average rank, NaN comes last.

    Source: J. Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7, 2006, section 3.2.2.

    Args:
        scores: of each arm on each data set, or seed.
        higher_is_better: whether a higher score is better.

    Raises:
        InputError: there are no blocks or no arms.

    Example:
        >>> average_ranks(np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.5]])).tolist()
        [1.5, 1.75, 2.75]
    """
    if not scores.size:
        raise InputError(f"scores: shape {scores.shape} holds nothing to rank; give at least one block and one arm.")
    worse = -scores if higher_is_better else scores
    return np.asarray(stats.rankdata(np.where(np.isnan(worse), np.inf, worse), axis=1).mean(axis=0))


def wilcoxon(x: Float[np.ndarray, " D"], y: Float[np.ndarray, " D"]) -> Significance:
    """Returns Wilcoxon's signed-rank test, two-sided, of two arms over data sets.

    The statistic is the smaller of the rank sums of positive and negative differences; the ranks of data sets
    without a difference are shared out half to each (`zsplit`, Demšar's form). p is exact up to 50 data sets, with ties
    or zeros up to 13, and from the normal approximation beyond.

    Source: F. Wilcoxon, *Individual comparisons by ranking methods*, Biometrics Bulletin 1, 1945; for arms over data
    sets J. Demšar, JMLR 7, 2006, section 3.1.3.

    Args:
        x: one arm's score on each data set.
        y: the other's, on the same data sets in the same order.

    Raises:
        InputError: there are no data sets.

    Example:
        >>> wilcoxon(np.array([3.0, 5.0, 9.0, 4.0, 8.0]), np.array([2.0, 3.0, 5.0, 7.0, 3.0]))
        Significance(statistic=3.0, p=0.3125)
    """
    if not len(x):
        raise InputError("x, y: hold no data sets; give the scores of at least one.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Significance(math.nan, math.nan)
    if (x == y).all():  # every sum of ranks is this one; scipy has no answer for a single data set
        return Significance(len(x) * (len(x) + 1) / 4, 1.0)
    found = stats.wilcoxon(x, y, zero_method="zsplit")
    return Significance(float(found.statistic), float(found.pvalue))


def friedman(scores: Float[np.ndarray, "D A"]) -> Significance:
    """Returns Friedman's test of "all arms are equal" over blocks.

    With mean ranks R_a the statistic is `12 D / (A (A + 1)) · (Σ R_a² − A (A + 1)² / 4)`, corrected for ties, and p
    from χ² with A − 1 degrees of freedom. Where every block is one tie the statistic is 0 and p is 1.

    Source: M. Friedman, *The use of ranks to avoid the assumption of normality*, JASA 32, 1937; J. Demšar, JMLR 7,
    2006, section 3.2.2.

    Args:
        scores: of each arm on each data set, or seed.

    Raises:
        InputError: there are fewer than three arms (use `wilcoxon` for two), or no blocks.

    Example:
        >>> round(friedman(np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0], [9.0, 7.0, 8.0]])).statistic, 4)
        4.6667
    """
    blocks, arms = scores.shape
    if arms < 3 or not blocks:
        raise InputError(f"scores: {blocks} blocks by {arms} arms; give at least one block and three arms.")
    if not np.isfinite(scores).all():
        return Significance(math.nan, math.nan)
    if (scores == scores[:, :1]).all():  # the correction for ties would divide by zero
        return Significance(0.0, 1.0)
    found = stats.friedmanchisquare(*scores.T)
    return Significance(float(found.statistic), float(found.pvalue))


def nemenyi_critical_difference(arms: int, blocks: int, level: float = LEVEL) -> float:
    """Returns how far two of A mean ranks must lie apart to differ significantly, all pairs being compared.

    `CD = q √(A (A + 1) / 6 D)`, with q the quantile `level` of the studentized range of A groups with infinitely many
    degrees of freedom, divided by √2.

    Source: P. B. Nemenyi, *Distribution-free multiple comparisons*, 1963; J. Demšar, JMLR 7, 2006, section 3.2.2,
    whose table 5(a) has the q.

    Args:
        arms: A, at least 2.
        blocks: D, data sets or seeds, at least 1.
        level: one minus the error rate over all pairs, in (0, 1).

    Raises:
        InputError: an argument is out of its range.

    Example:
        >>> round(nemenyi_critical_difference(arms=4, blocks=14), 2)
        1.25
    """
    if arms < 2:
        raise InputError(f"arms: must be at least 2, not {arms}.")
    if blocks < 1:
        raise InputError(f"blocks: must be at least 1, not {blocks}.")
    _check_level(level)
    q = float(stats.studentized_range.ppf(level, arms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(arms * (arms + 1) / (6 * blocks))


def cliques(ranks: Mapping[str, float | int], cd: float | int) -> list[tuple[str, ...]]:
    """Returns the groups of arms that are not significantly different: mean ranks less than `cd` apart.

    Only the largest groups, of two or more arms, each in order of rank, best first. An arm may be in several.

    Source: J. Demšar, JMLR 7, 2006, section 3.2.4 (the thick lines of figure 1).

    Args:
        ranks: each arm's mean rank.
        cd: the critical difference.

    Example:
        >>> cliques({"a": 1.2, "b": 2.0, "c": 2.9, "d": 3.9}, cd=1.0)
        [('a', 'b'), ('b', 'c')]
    """
    arms = sorted(ranks, key=lambda arm: ranks[arm])
    groups: list[tuple[str, ...]] = []
    end = 0
    for start, first in enumerate(arms):
        near = [arm for arm in arms[start:] if ranks[arm] - ranks[first] < cd]
        if len(near) > 1 and start + len(near) > end:
            groups.append(tuple(near))
            end = start + len(near)
    return groups


def holm(p_values: Float[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Returns p-values corrected for m tests made at once: that any is falsely under α has a probability of at most α.

    The i-th smallest (from 0) is multiplied by m − i, is at least as large as the one before it and at most 1. NaN
    stays NaN, and is not counted.

    Source: S. Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6,
    1979.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected


def share_of_ensemble_gain(
    single: float | int, conventional: float | int, ensemble: float | int, *, higher_is_better: bool = True
) -> float:
    """Returns how much of an ensemble's gain over the conventional model a single model keeps.

    `(single − conventional) / (ensemble − conventional)`: 1 where the single model is as good as the ensemble, above
    1 where it is better, below 0 where it is worse than the conventional one; NaN where the ensemble gains nothing.

    Args:
        single: the single model's score.
        conventional: the conventional model's.
        ensemble: the ensemble's.
        higher_is_better: whether a higher score is better.

    Example:
        >>> share_of_ensemble_gain(single=93, conventional=90, ensemble=94)
        0.75
    """
    sign = 1 if higher_is_better else -1
    gain = sign * (ensemble - conventional)
    return sign * (single - conventional) / gain if gain > 0 else math.nan


def _paired(differences: Float[np.ndarray, " K"], overlap: float, level: float) -> Paired:
    """The t test on differences, `overlap` (n_test / n_train, or 0) being added to 1/K."""
    _check(differences, level)
    K = len(differences)
    mean, error = _mean_and_error(differences, 1 / K + overlap)
    half = _quantile(K, level) * error
    if math.isfinite(error):
        p = 2 * float(stats.t.sf(abs(mean) / error, K - 1))
    elif K == 1 or math.isnan(mean):
        p = math.nan
    else:
        p = 2.0 ** (1 - K) if mean else 1.0
    return Paired(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        corrected=overlap > 0,
    )


def _mean_and_error(values: Float[np.ndarray, " K"], factor: float) -> tuple[float, float]:
    """The mean and its error √factor · s: NaN the error where there is no spread, both where a value is not finite."""
    if not np.isfinite(values).all():
        return math.nan, math.nan
    mean = float(values.mean())
    if np.ptp(values) <= _ROUNDING * np.abs(values).max():  # true of one value
        return mean, math.nan
    return mean, math.sqrt(factor) * float(values.std(ddof=1))


def _quantile(K: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, K - 1))


def _check(values: Float[np.ndarray, " K"], level: float) -> None:
    if not len(values):
        raise InputError("values: there are none; give one for each seed, at least one seed.")
    _check_level(level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level: must be above 0 and below 1, not {level!r}.")
