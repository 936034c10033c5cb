import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, bootstrap
from torchmetrics.functional.classification import multiclass_calibration_error

from kinfold.errors import InputError
from kinfold.files import jsonable
from kinfold.random import seed_of
from kinfold.selection import Estimate, bca, calibration_error, estimate, per_class, wilson
from kinfold.selection.estimate import calibration_bins


def mean(x: torch.Tensor) -> float:
    return float(x.mean())


def skewed(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(n).exponential(size=n))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "rows"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (4999, 5000)])
def test_wilson_is_scipys(successes, rows, level):
    theirs = binomtest(successes, rows).proportion_ci(level, method="wilson")
    assert wilson(successes, rows, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("rows", [30, 100, 180])
def test_wilson_covers(rows):
    """The coverage at each p is a sum over the binomial distribution, so this is exact."""
    ends = np.array([wilson(k, rows) for k in range(rows + 1)])
    coverage = []
    for p in np.linspace(0.05, 0.95, 181):
        inside = (ends[:, 0] <= p) & (p <= ends[:, 1])
        coverage.append(binom.pmf(np.arange(rows + 1), rows, p)[inside].sum())
    assert 0.948 < np.mean(coverage) < 0.96
    assert min(coverage) > 0.92


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "no proportion"),
        ((3, 2), "3 of 2 rows"),
        ((-1, 2), "no proportion"),
        ((1, 2, 0.0), "level: must"),
        ((1, 2, 1.0), "level: must"),
        ((1, 2, 95.0), "level: must"),
    ],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        wilson(*arguments)


@pytest.mark.parametrize("n", [8, 40, 500])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_bca_is_scipys(n, level):
    """Row numbers come off the same generator in the same order, so the resamples are the same."""
    x = skewed(n)
    theirs = bootstrap(
        (x.numpy(),),
        np.mean,
        confidence_level=level,
        n_resamples=600,
        rng=np.random.default_rng(seed_of(3, "bootstrap")),
    ).confidence_interval
    ours = bca(mean, [x], level, resamples=600, seed=3)
    assert ours is not None
    assert ours.method == "bca"
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_bca_draws_paired_rows_keyed_by_the_seed():
    x = skewed(30)

    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max() + a.mean())

    paired, again = (bca(difference, [x, x], resamples=200, seed=1) for _ in range(2))
    assert paired == again == bca(mean, [x], resamples=200, seed=1)
    assert paired != bca(mean, [x], resamples=200, seed=2)


def test_bca_counts_ties_half_as_scipy_does():
    x = torch.tensor([0.0, 0, 0, 1, 1, 2, 2, 10], dtype=torch.float64)  # means of eight whole numbers are exact
    rng = np.random.default_rng(seed_of(0, "bootstrap"))
    theirs = bootstrap((x.numpy(),), np.mean, n_resamples=200, rng=rng).confidence_interval
    ours = bca(mean, [x], resamples=200)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_bca_takes_two_thousand_resamples_of_the_first_seed_unless_told():
    x = skewed(10)
    assert bca(mean, [x]) == bca(mean, [x], 0.95, resamples=2000, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_a_level_is_above_zero_and_below_one(level):
    with pytest.raises(InputError, match=f"level: must be above 0 and below 1, not {level}"):
        bca(mean, [skewed(10)], level)


@pytest.mark.parametrize(("n", "blocks"), [(2, 2), (40, 40), (500, 500), (777, 500)])
def test_the_jackknife_leaves_out_rows_or_five_hundred_blocks(n, blocks):
    rows = []
    bca(lambda x: rows.append(len(x)) or mean(x), [skewed(n)], resamples=10)
    assert rows[:11] == [n] * 11
    assert len(rows) == 11 + blocks
    assert sum(n - left for left in rows[11:]) == n


def test_blocks_stand_in_for_single_rows_in_a_long_jackknife():
    x = skewed(2000)
    theirs = bootstrap(
        (x.numpy(),), np.mean, n_resamples=300, batch=50, rng=np.random.default_rng(seed_of(0, "bootstrap"))
    )
    ours = bca(mean, [x], resamples=300)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * (ours.high - ours.low))


def test_where_the_corrections_are_not_defined_the_ends_are_plain_quantiles():
    x = torch.arange(12.0)

    def flat_but_for_resamples(rows: torch.Tensor) -> float:
        return float(rows.mean()) if len(rows) == 12 else 1.0  # nothing for the jackknife to see

    interval = bca(flat_but_for_resamples, [x], resamples=400)
    assert interval.method == "percentile"
    assert interval.low < 5.5 < interval.high
    assert bca(lambda rows: -float(len(rows.unique())), [x], resamples=400).method == "percentile"


def scripted(value: float, drawn: list[float], left_out: list[float], level: float = 0.95):
    """Returns the interval of a statistic that takes these values: of the rows, the resamples and the jackknife."""
    values = iter([value, *drawn, *left_out])
    return bca(lambda rows: next(values), [torch.zeros(len(left_out))], level, resamples=len(drawn))


def test_a_correction_that_turns_the_distribution_over_is_not_made():
    """With one row that decides the jackknife â is near 1/6, and with θ̂ above nearly all resamples ẑ₀ + z is over 6."""
    drawn = [2.0, *np.linspace(0, 1, 1999).tolist()]
    assert scripted(2.0, drawn, [0.0] + [1.0] * 49, 0.9999).method == "percentile"
    assert scripted(2.0, drawn, [0.0] + [1.0] * 49, 0.9).method == "bca"


def test_a_jackknife_without_a_value_leaves_plain_quantiles():
    drawn = np.linspace(0, 1, 41).tolist()
    interval = scripted(0.5, drawn, [0.4, 0.5, math.nan, 0.6])
    assert (interval.low, interval.high, interval.method) == (pytest.approx(0.025), pytest.approx(0.975), "percentile")


def test_more_than_half_of_the_resamples_have_to_have_a_value():
    left_out = [0.4, 0.5, 0.6]
    assert scripted(0.5, [math.nan] * 5 + [0.1, 0.4, 0.5, 0.6, 0.9], left_out) is None
    assert scripted(0.5, [math.nan] * 4 + [0.1, 0.3, 0.4, 0.6, 0.7, 0.9], left_out) is not None


def test_two_rows_have_an_interval_and_none_have_not():
    interval = bca(mean, [torch.tensor([0.0, 1.0])])
    assert (interval.low, interval.high, interval.method) == (0.0, 1.0, "bca")
    assert bca(lambda rows: 1 / len(rows), [torch.zeros(0)]) is None  # not even asked of no rows


@pytest.mark.parametrize(
    ("statistic", "n"),
    [
        (mean, 1),
        (lambda x: 1.0, 20),
        (lambda x: math.nan, 20),
        (lambda x: math.inf, 20),
        (lambda x: float(len(x.unique())) if len(x.unique()) == 20 else math.nan, 20),
    ],
    ids=["one row", "no spread", "nan", "inf", "nan on resamples"],
)
def test_there_is_no_interval_where_nothing_can_be_said(statistic, n):
    assert bca(statistic, [torch.arange(float(n))], resamples=50) is None


def test_resamples_without_a_value_are_left_out():
    x = torch.cat([torch.zeros(30), torch.ones(2)])
    interval = bca(lambda rows: mean(rows) if rows.any() else math.nan, [x], resamples=400)
    assert 0 < interval.low < 2 / 32 < interval.high


LOGITS = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) * 2
TARGETS = torch.where(
    torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.6, LOGITS.argmax(1), torch.arange(400) % 4
)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_is_torchmetrics(bins):
    theirs = multiclass_calibration_error(LOGITS.softmax(1), TARGETS, num_classes=4, n_bins=bins)
    assert calibration_error(LOGITS, TARGETS, bins) == pytest.approx(float(theirs), abs=1e-6)


def test_fifteen_bins_are_the_default():
    sure = torch.tensor([[50.0, 0.0]])
    assert calibration_bins(sure, torch.tensor([0]))[0]["low"] == 14 / 15
    assert calibration_error(LOGITS, TARGETS) == calibration_error(LOGITS, TARGETS, 15)
    assert calibration_error(LOGITS, TARGETS) != calibration_error(LOGITS, TARGETS, 16)


def test_calibration_error_by_hand():
    # Confidence 0.8 with 3 of 4 right, confidence 1 with 1 of 2 right.
    logits = torch.tensor([[math.log(4.0), 0.0]] * 4 + [[60.0, 0.0]] * 2, dtype=torch.float64)
    targets = torch.tensor([0, 0, 0, 1, 0, 1])
    assert calibration_error(logits, targets) == pytest.approx(4 / 6 * 0.05 + 2 / 6 * 0.5)


def test_bins_are_open_below_and_closed_above():
    """Two bins: a confidence of ½ is the last of the first, ¾ lies in the second."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [60.0, 0.0]], dtype=torch.float64)
    low, high = calibration_bins(logits, torch.tensor([0, 0, 1]), bins=2)
    assert low == {"low": 0.0, "high": 0.5, "rows": 1, "confidence": 0.5, "accuracy": 1.0}
    assert high == {"low": 0.5, "high": 1.0, "rows": 2, "confidence": pytest.approx(0.875), "accuracy": 0.5}


def test_a_row_without_a_number_is_counted_in_some_bin():
    logits = torch.tensor([[math.nan, 0.0], [60.0, 0.0]])
    assert sum(found["rows"] for found in calibration_bins(logits, torch.tensor([0, 0]))) == 2


def test_per_class_by_hand():
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1, 1])]
    assert per_class(logits, torch.tensor([0, 1, 1, 1, 2]), ("p", "q", "r", "s")) == [
        {"label": "p", "recall": 1.0, "precision": 0.5, "support": 1},
        {"label": "q", "recall": 2 / 3, "precision": 2 / 3, "support": 3},
        {"label": "r", "recall": 0.0, "precision": None, "support": 1},
        {"label": "s", "recall": None, "precision": None, "support": 0},
    ]
    assert per_class(logits, torch.tensor([0, 1, 1, 1, 2]))[3]["label"] == 3


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(((outputs - targets) ** 2).mean())


def test_an_accuracy_has_wilsons_interval_and_details():
    e = estimate(
        "accuracy",
        accuracy,
        LOGITS,
        TARGETS,
        level=0.9,
        is_accuracy=True,
        loss_fn=lambda o, t: float(torch.nn.functional.cross_entropy(o, t)),
        labels="abcd",
    )
    assert (e.metric, e.rows, e.level, e.clean) == ("accuracy", 400, 0.9, True)
    assert (e.low, e.high) == wilson(round(400 * e.value), 400, 0.9)
    assert set(e.details) == {"interval", "loss", "per_class", "calibration_error"}
    assert [row["label"] for row in e.details["per_class"]] == list("abcd")
    assert json.dumps(jsonable(e.details))


@pytest.mark.parametrize("columns", [0, 2])
def test_another_metric_has_a_bootstrap_interval(columns):
    predicted = skewed(60).reshape(30, 2) if columns else skewed(60)
    e = estimate("mse", squared_error, predicted, torch.zeros_like(predicted), seed=2, is_accuracy=False)
    assert e.details == {"interval": "bca"}
    interval = bca(squared_error, [predicted, torch.zeros_like(predicted)], seed=2)
    assert (e.low, e.value, e.high) == (interval.low, squared_error(predicted, torch.zeros(1)), interval.high)


def test_the_first_seed_and_clean_rows_are_taken_for_granted():
    predicted = skewed(20)
    e = estimate("mse", squared_error, predicted, torch.zeros_like(predicted), is_accuracy=False)
    interval = bca(squared_error, [predicted, torch.zeros_like(predicted)], 0.95, seed=0)
    assert (e.low, e.high, e.level, e.clean) == (interval.low, interval.high, 0.95, True)
    assert Estimate("mse", 1.0, None, None, 0.95, 20).clean


@pytest.mark.parametrize(("outputs", "targets"), [((6,), torch.int64), ((6, 2), torch.float64)])
def test_only_logits_and_class_numbers_have_details_of_classes(outputs, targets):
    def metric(outputs, targets):
        return float(outputs.sum() - targets.sum())

    e = estimate(
        "x", metric, torch.arange(6.0 * len(outputs)).reshape(outputs), torch.zeros(6, dtype=targets), is_accuracy=False
    )
    assert set(e.details) == {"interval"}


def test_a_perfect_score_of_another_metric_claims_no_interval():
    e = estimate("mse", squared_error, torch.ones(9), torch.ones(9), is_accuracy=False, clean=False)
    assert (e.value, e.low, e.high, e.clean, e.details) == (0.0, None, None, False, {"interval": None})


def test_without_rows_there_is_no_estimate():
    with pytest.raises(InputError, match="holdout: no rows are sealed"):
        estimate("accuracy", accuracy, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), is_accuracy=True)
