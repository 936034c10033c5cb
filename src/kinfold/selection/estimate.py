"""The one number a user may quote: a score on the sealed rows, with an interval that covers.

Nothing trained on these rows and nothing was selected by them. Shapes: n sealed rows, C classes; outputs are what
the model gives, for classes the logits (before any softmax).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from scipy.special import ndtr, ndtri
from torch import Tensor

from kinfold.errors import InputError
from kinfold.random import seed_of

Metric: TypeAlias = Callable[[Tensor, Tensor], float]
"""(outputs, targets) to a number."""

_JACKKNIFE = 500  # blocks at most; the acceleration then errs by about 0.4 / blocks


@dataclass(frozen=True)
class Interval:
    """An interval, and how it was come by.

    Attributes:
        low: lower end.
        high: upper end.
        method: `wilson`, `bca`, or `percentile` where the corrections of BCa are not defined.
    """

    low: float
    high: float
    method: Literal["wilson", "bca", "percentile"]


@dataclass(frozen=True)
class Estimate:
    """A score on sealed rows.

    Attributes:
        metric: name of the metric.
        value: its value on the rows.
        low: lower end of the interval, or None where there is none (see `estimate`).
        high: upper end, or None.
        level: coverage that the interval is made for, such as 0.95.
        rows: how many rows were scored.
        clean: whether nothing trained on the rows and nothing was selected by them.
        details: JSON values: `interval` (its method, or None), `loss` if it was asked for, and for classes
            `per_class` and `calibration_error`.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    level: float
    rows: int
    clean: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


def wilson(successes: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval for the probability behind `successes` in `rows` independent trials.

    With p̂ = successes / rows and z the normal quantile of (1 + level) / 2, its ends are
    `(p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n)`: the p that a score test does not reject. Its
    coverage is close to `level` on average over p, and it has width at p̂ = 0 and 1.

    Source: E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22, 1927.

    Raises:
        InputError: there are no rows, successes are not among them, or the level is not in (0, 1).

    Example:
        >>> [round(end, 3) for end in wilson(45, 50)]
        [0.786, 0.957]
    """
    _check_level(level)
    if not 0 <= successes <= rows or rows < 1:
        raise InputError(f"successes: {successes} of {rows} rows is no proportion; give 0 to rows of at least one row.")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    p = successes / rows
    centre = p + z2 / (2 * rows)
    half = math.sqrt(z2 * (p * (1 - p) / rows + z2 / (4 * rows**2)))
    scale = 1 + z2 / rows
    low = 0.0 if successes == 0 else (centre - half) / scale  # the ends are exact there, rounding is not
    high = 1.0 if successes == rows else (centre + half) / scale
    return low, high


def bca(
    statistic: Callable[..., float],
    arrays: Sequence[Shaped[Tensor, "n ..."]],
    level: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Returns the bias-corrected and accelerated bootstrap interval of a statistic of rows.

    Rows are drawn with replacement, the same ones from every array. With G the distribution function of the
    resampled statistic, ẑ₀ = Φ⁻¹(G(θ̂)) (ties count half) and â = Σdᵢ³ / 6(Σdᵢ²)^{3/2} from the jackknife
    dᵢ = mean(θ₍·₎) − θ₍ᵢ₎, its ends are the quantiles of G at `Φ(ẑ₀ + (ẑ₀ ± z) / (1 − â(ẑ₀ ± z)))`. Over 500 rows
    the jackknife leaves out 500 blocks of rows in turn and not single rows, which â does not notice.

    Where ẑ₀ or â is not defined (θ̂ outside all resamples, no spread in the jackknife) the ends are the plain
    quantiles, and the interval's `method` says so. Resamples on which the statistic is NaN are left out. Where
    nothing can be said there is no interval: fewer than two rows, θ̂ not a finite number, half or more of the
    resamples NaN, or all of them equal (zero width would claim certainty).

    Source: B. Efron, *Better bootstrap confidence intervals*, JASA 82, 1987.

    Args:
        statistic: takes the arrays, of any number of rows, and returns a number.
        arrays: tensors with n rows each, paired by row.
        level: coverage, in (0, 1).
        resamples: bootstrap resamples.
        seed: the seed that the resamples are keyed by.

    Raises:
        InputError: the level is not in (0, 1).

    Example:
        >>> interval = bca(lambda x: float(x.mean()), [torch.arange(20.0)])
        >>> 6.0 < interval.low < 9.5 < interval.high < 13.0, interval.method
        (True, 'bca')
    """
    _check_level(level)
    n = len(arrays[0])
    if n < 2:
        return None

    def of(rows: Int64[np.ndarray, " rows"]) -> float:
        index = torch.from_numpy(rows).to(arrays[0].device)
        return statistic(*(array[index] for array in arrays))

    value = of(np.arange(n))
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    drawn = np.array([of(rng.integers(0, n, n)) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or 2 * len(drawn) <= resamples or np.ptp(drawn) == 0:
        return None
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    corrected = _bca_levels(tails, value, drawn, _jackknife(of, n))
    low, high = np.quantile(drawn, tails if corrected is None else corrected)
    return Interval(float(low), float(high), "percentile" if corrected is None else "bca")


def _jackknife(of: Callable[[np.ndarray], float], n: int) -> Float64[np.ndarray, " blocks"]:
    """Returns the statistic with each row (over 500 rows: each of 500 blocks of rows) left out in turn."""
    blocks = np.array_split(np.arange(n), min(n, _JACKKNIFE))
    return np.array([of(np.delete(np.arange(n), block)) for block in blocks])


def _bca_levels(
    tails: Float64[np.ndarray, "2"],
    value: float,
    drawn: Float64[np.ndarray, " resamples"],
    left_out: Float64[np.ndarray, " blocks"],
) -> Float64[np.ndarray, "2"] | None:
    """Returns the quantiles to take in place of `tails`, or None where the corrections are not defined."""
    z0 = ndtri(((drawn < value).mean() + (drawn <= value).mean()) / 2)
    d = left_out.mean() - left_out
    spread = (d**2).sum() ** 1.5
    if not math.isfinite(z0) or not spread > 0:  # a NaN left out makes the spread NaN
        return None
    a = (d**3).sum() / (6 * spread)
    shifted = z0 + ndtri(tails)
    if (1 - a * shifted <= 0).any():
        return None
    return np.asarray(ndtr(z0 + shifted / (1 - a * shifted)))


def calibration_error(outputs: Float[Tensor, "n C"], targets: Int64[Tensor, " n"], bins: int = 15) -> float:
    """Returns the expected calibration error: how far confidence is from accuracy, averaged over the rows.

    ECE = Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|, over the bins of `calibration_bins`.

    Source: C. Guo et al., *On calibration of modern neural networks*, ICML 2017, eq. 3.

    Example:
        >>> calibration_error(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]))
        0.5
    """
    found = calibration_bins(outputs, targets, bins)
    return sum(each["rows"] * abs(each["accuracy"] - each["confidence"]) for each in found) / len(targets)


def calibration_bins(
    outputs: Float[Tensor, "n C"], targets: Int64[Tensor, " n"], bins: int = 15
) -> list[dict[str, float | int]]:
    """Returns how often the model was right at each level of confidence: the reliability diagram in numbers.

    Rows are binned by confidence (the largest softmax of the outputs) into `bins` intervals of equal width, open
    below and closed above. Of each bin that has rows: its `low` and `high` end, how many `rows`, their mean
    `confidence`, and the `accuracy` on them.

    Example:
        >>> calibration_bins(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]), bins=2)
        [{'low': 0.5, 'high': 1.0, 'rows': 2, 'confidence': 1.0, 'accuracy': 0.5}]
    """
    confidence, predicted = outputs.to(torch.float64).softmax(dim=1).max(dim=1)
    place = ((confidence * bins).ceil().to(torch.int64) - 1).clamp(0, bins - 1)
    each = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets).to(torch.float64)], dim=1)
    sums = torch.zeros(bins, 3, dtype=torch.float64, device=each.device).index_add(0, place, each).tolist()
    return [
        {"low": b / bins, "high": (b + 1) / bins, "rows": int(n), "confidence": sure / n, "accuracy": right / n}
        for b, (n, sure, right) in enumerate(sums)
        if n
    ]


def per_class(
    outputs: Float[Tensor, "n C"], targets: Int64[Tensor, " n"], labels: Sequence[object] | None = None
) -> list[dict[str, Any]]:
    """Returns for each class its label, recall, precision and support (rows of the class).

    Recall is None for a class without rows, precision for one that is never predicted.

    Args:
        outputs: [n, C] logits; the largest is the prediction.
        targets: [n] class numbers.
        labels: class c as the user wrote it; the class numbers if None.

    Example:
        >>> per_class(torch.eye(2), torch.tensor([0, 0]), ["no", "yes"])[0]
        {'label': 'no', 'recall': 0.5, 'precision': 1.0, 'support': 2}
    """
    C = outputs.shape[1]
    predicted = outputs.argmax(dim=1)
    hits = torch.bincount(targets[predicted == targets], minlength=C).tolist()
    support = torch.bincount(targets, minlength=C).tolist()
    claims = torch.bincount(predicted, minlength=C).tolist()
    return [
        {
            "label": c if labels is None else labels[c],
            "recall": hits[c] / support[c] if support[c] else None,
            "precision": hits[c] / claims[c] if claims[c] else None,
            "support": support[c],
        }
        for c in range(C)
    ]


def estimate(
    metric_name: str,
    metric_fn: Metric,
    outputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    level: float = 0.95,
    seed: int = 0,
    is_accuracy: bool,
    loss_fn: Metric | None = None,
    labels: Sequence[object] | None = None,
    clean: bool = True,
) -> Estimate:
    """Returns a model's score on the sealed rows, with an interval and what stands beside it.

    The interval is Wilson's for an accuracy, for any other metric the BCa bootstrap over rows; it has no ends
    where `bca` gives none. It takes rows as drawn independently: with sealed groups it is too narrow.

    Args:
        metric_name: for the record.
        metric_fn: the metric; NaN where it is not defined on some rows.
        outputs: [n, C] logits, or [n] or [n, K] predicted values.
        targets: [n] class numbers, or [n] or [n, K] values.
        level: coverage of the interval, in (0, 1).
        seed: the seed that the bootstrap is keyed by.
        is_accuracy: whether the metric is a share of rows that are right.
        loss_fn: the mean loss, to be put beside the metric.
        labels: class c as the user wrote it.
        clean: whether nothing trained on the rows and nothing was selected by them.

    Raises:
        InputError: there are no rows, or the level is not in (0, 1).

    Example:
        >>> logits, targets = torch.eye(3)[torch.tensor([0, 1, 2, 2])], torch.tensor([0, 1, 2, 0])
        >>> accuracy = lambda outputs, targets: float((outputs.argmax(1) == targets).double().mean())
        >>> e = estimate("accuracy", accuracy, logits, targets, is_accuracy=True)
        >>> e.value, round(e.low, 3), round(e.high, 3), e.details["interval"]
        (0.75, 0.301, 0.954, 'wilson')
    """
    rows = len(targets)
    if not rows:
        raise InputError("holdout: no rows are sealed, so there is nothing to estimate from; raise holdout.")
    value = float(metric_fn(outputs, targets))
    if is_accuracy:
        interval: Interval | None = Interval(*wilson(round(value * rows), rows, level), "wilson")
    else:
        interval = bca(metric_fn, (outputs, targets), level, seed=seed)
    low, high, method = (None, None, None) if interval is None else astuple(interval)
    details: dict[str, Any] = {"interval": method}
    if loss_fn is not None:
        details["loss"] = float(loss_fn(outputs, targets))
    if outputs.ndim == 2 and not targets.is_floating_point():
        details["per_class"] = per_class(outputs, targets, labels)
        details["calibration_error"] = calibration_error(outputs, targets)
    return Estimate(metric_name, value, low, high, level, rows, clean, details)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level: must be above 0 and below 1, not {level!r}.")
