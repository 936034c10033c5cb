"""What stands behind a score: which classes are taken for which, how sure the model was, which rows it finds hardest.

Numbers and labels of rows only, never the rows themselves, so that a run directory can be shown around. Legend: n rows,
C classes, K targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from kinfold.data.base import Label
from kinfold.selection.estimate import calibration_bins

HARDEST = 16
"""How many of the rows with the highest losses are kept."""

_MOST_CELLS = 4096  # of a confusion matrix; so many rows are kept for 64 classes in full
_MOST_POINTS = 400


@dataclass(frozen=True)
class Diagnostics:
    """One model's outputs on some rows, in figures. All fields are JSON values.

    Attributes:
        source: `sealed` rows; or, where none were sealed, the `validation` rows by which the model was chosen.
        rows: n.
        seen: share of these rows that the model, or anything it learned from, has trained on.
        data: fingerprint of the data that the rows are of (`kinfold.data.fingerprint`).
        labels: class c as the user wrote it; None for regression, as are `confusion` and `calibration`.
        confusion: [true class, predicted class, rows], the most frequent first, at most 4,096 of them.
        calibration: `calibration_bins` of the outputs.
        points: [row, targets, predictions] of 400 rows at most, evenly spread over n; None for classes.
        hardest: `row`, `target`, `predicted` and `loss` of the rows with the highest loss, the worst first; for
            classes also `probability` of the true and `confidence` in the predicted class. The loss is −ln of the
            true class's probability, or the squared error, over the targets' variance where there are several.
    """

    source: Literal["sealed", "validation"]
    rows: int
    seen: float
    data: str
    labels: Sequence[Label] | None
    confusion: Sequence[Sequence[int]] | None
    calibration: Sequence[Mapping[str, Any]] | None
    points: Sequence[Sequence[Any]] | None
    hardest: Sequence[Mapping[str, Any]]


def diagnose(
    outputs: Float[Tensor, "n C"],
    targets: Shaped[Tensor, "n *K"],
    rows: Int64[Tensor, " n"],
    *,
    source: Literal["sealed", "validation"],
    seen: float,
    data: str,
    labels: Sequence[Label] | None,
) -> Diagnostics:
    """Returns what there is to be said of a model's outputs on rows.

    Args:
        outputs: logits, or predicted values.
        targets: class numbers, or [n] or [n, K] values.
        rows: the rows' numbers in the data.
        source: which rows these are.
        seen: share of them that the model, or anything it learned from, has trained on.
        data: the data's fingerprint.
        labels: class c as the user wrote it; None for regression.

    Example:
        >>> logits, targets = torch.eye(2)[torch.tensor([0, 1, 1])], torch.tensor([0, 1, 0])
        >>> about = {"source": "sealed", "seen": 0.0, "data": "", "labels": ["no", "yes"]}
        >>> found = diagnose(logits, targets, torch.tensor([5, 7, 9]), **about)
        >>> found.confusion, found.hardest[0]["row"], found.hardest[0]["target"], found.hardest[0]["predicted"]
        ([[0, 0, 1], [0, 1, 1], [1, 1, 1]], 9, 'no', 'yes')
    """
    outputs = outputs.double().cpu()
    if labels is None:
        confusion, calibration = None, None
        points, hardest = _values(outputs, targets.double().reshape(len(targets), -1), rows)
    else:
        points = None
        confusion, calibration = _confusion(outputs, targets), calibration_bins(outputs, targets)
        hardest = _classes(outputs, targets, rows, labels)
    kept = None if labels is None else list(labels)
    return Diagnostics(source, len(rows), seen, data, kept, confusion, calibration, points, hardest)


def _confusion(outputs: Float64[Tensor, "n C"], targets: Int64[Tensor, " n"]) -> list[list[int]]:
    C = outputs.shape[1]
    pairs, counts = torch.unique(targets * C + outputs.argmax(1), return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:_MOST_CELLS]
    return [[pair // C, pair % C, count] for pair, count in torch.stack([pairs, counts], 1)[order].tolist()]


def _classes(
    outputs: Float64[Tensor, "n C"], targets: Int64[Tensor, " n"], rows: Int64[Tensor, " n"], labels: Sequence[Label]
) -> list[dict[str, Any]]:
    likelihood = outputs.log_softmax(1)
    losses = -likelihood.gather(1, targets[:, None])[:, 0]
    confidence, predicted = likelihood.exp().max(1)
    return [
        {
            "row": int(rows[i]),
            "target": labels[int(targets[i])],
            "predicted": labels[int(predicted[i])],
            "loss": float(losses[i]),
            "probability": float((-losses[i]).exp()),
            "confidence": float(confidence[i]),
        }
        for i in _worst(losses)
    ]


def _values(
    outputs: Float64[Tensor, "n K"], targets: Float64[Tensor, "n K"], rows: Int64[Tensor, " n"]
) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Points of some rows, and the hardest."""
    K = targets.shape[1]

    def written(values: Float64[Tensor, " K"]) -> float | list[float]:
        return float(values) if K == 1 else values.tolist()

    errors = (outputs - targets).square()
    if K > 1:
        spread = targets.var(0, correction=0)
        errors = errors / torch.where(spread > 0, spread, 1.0)
    losses = errors.mean(1)
    some = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_POINTS)).round().astype(int).tolist()
    points = [[int(rows[i]), written(targets[i]), written(outputs[i])] for i in some]
    hardest = [
        {
            "row": int(rows[i]),
            "target": written(targets[i]),
            "predicted": written(outputs[i]),
            "loss": float(losses[i]),
        }
        for i in _worst(losses)
    ]
    return points, hardest


def _worst(losses: Float64[Tensor, " n"]) -> list[int]:
    order = torch.where(losses.isnan(), torch.inf, losses).argsort(descending=True, stable=True)
    return [int(i) for i in order[:HARDEST]]
