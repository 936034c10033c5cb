from typing import Any, NamedTuple

import numpy as np
import pytest

Json = dict[str, Any]


class Run(NamedTuple):
    """What a run leaves for its report."""

    result: Json
    history: list[Json]
    config: Json


@pytest.fixture(scope="session")
def make_run():
    """A run with made-up numbers, in the form of docs/contracts.md."""
    return _make_run


def _make_run(tasks: int = 3, periods: int = 4, metric: str = "accuracy", holdout: bool = True) -> Run:
    rng = np.random.default_rng(0)
    history: list[Json] = []
    for period in range(1, periods + 1):
        history.append(
            {
                "event": "period",
                "period": period,
                "train_loss": (2.0 / period + rng.random(tasks)).tolist(),
                "metric": rng.random(tasks).tolist(),
                "loss": rng.random(tasks).tolist(),
                "improved": [period <= 2] * tasks,
                "seconds": 0.5,
                "lr": [0.05] * tasks,
            }
        )
        if tasks > 1:
            pairs = [(t, (t + period) % tasks) for t in range(tasks) if period % tasks]
            amto = [
                {
                    "recipient": t,
                    "donor": s,
                    "form": "copy",
                    "before": [0.5, 1],
                    "after": [0.6, 1],
                    "accepted": t == 0,
                }
                for t, s in pairs
            ]
            lesson = {"recipient": 1, "donor": None, "form": "teach", "weight": 0.5, "accepted": True}
            history.append({"event": "transfer", "period": period, "rule": "amto", "transfers": amto})
            history.append({"event": "transfer", "period": period, "rule": "teach", "transfers": [lesson]})
    finding = {
        "kind": "duplicates",
        "severity": "warning",
        "message": "2 rows are equal",
        "tasks": [0],
        "count": 2,
    }
    history += [{"event": "finding", **finding}, {"event": "note", "message": "engine: vectorised is fastest"}]
    exposed = 0.8 * (1 - np.eye(tasks))
    by_pair = np.zeros((tasks, tasks), int)
    by_pair[0, tasks - 1] = 3 * (tasks > 1)
    matrix = 0.9 + 0.1 * rng.random((tasks, tasks))
    matrix[0] = 0.97
    estimate = {
        "metric": metric,
        "value": 0.9543,
        "low": 0.9121,
        "high": 0.9789,
        "level": 0.95,
        "rows": 180,
        "clean": True,
        "details": {
            "loss": 0.1357,
            "calibration_error": 0.0246,
            "per_class": [{"label": "yes", "precision": 0.8642, "recall": 0.9753, "support": 17}],
        },
    }
    result = {
        "version": "0.1.0",
        "data": "digits",
        "model": "mlp",
        "seed": 0,
        "engine": "vectorised",
        "device": "cpu",
        "precision": "float32",
        "tasks": tasks,
        "epochs_run": periods,
        "stopped": "patience",
        "selected": {"kind": "task", "task": 0, "criterion": "mean", "score": 0.97},
        "contenders": [
            {
                "kind": "task",
                "name": "task",
                "members": [t],
                "score": 0.97 if t == 0 else 0.9,
                "exposed": 0.8 + 0.01 * t,
            }
            for t in range(tasks)
        ],
        "scores": {
            "metric": metric,
            "matrix": matrix.tolist(),
            "loss_matrix": matrix.tolist(),
            "own": matrix.diagonal().tolist(),
            "exposed": exposed.tolist(),
        },
        "estimate": estimate if holdout else None,
        "diagnostics": _diagnostics(metric, holdout),
        "transfers": {"proposed": 9, "accepted": 3, "by_pair": by_pair.tolist()},
        "cost": {
            "wall_seconds": 31.25,
            "train_seconds": 4000.0,
            "transfer_seconds": 8000.0,
            "sample_visits": 412000,
            "samples_per_second": 17123.4,
            "peak_memory_bytes": 412 * 2**20,
        },
    }
    config = {
        "data": "digits",
        "model": "mlp",
        "tasks": tasks,
        "epochs": periods,
        "transfer": "amto",
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
    }
    return Run(result, history, config)


def _diagnostics(metric: str, holdout: bool) -> Json:
    """Of 180 rows and three classes; or, where the metric is no accuracy, of values."""
    about = {
        "source": "sealed" if holdout else "validation",
        "rows": 180,
        "seen": 0.0 if holdout else 0.25,
        "data": "f",
    }
    if metric != "accuracy":
        points = [[row, row / 10, row / 10 + (-1) ** row] for row in range(180)]
        hardest = [{"row": 7, "target": 0.7, "predicted": -0.3, "loss": 1.0}]
        none = dict.fromkeys(("labels", "confusion", "calibration"))
        return {**about, **none, "points": points, "hardest": hardest}
    bins = [{"low": 0.4, "high": 0.6, "rows": 30, "confidence": 0.5, "accuracy": 0.7}]
    bins.append({"low": 0.8, "high": 1.0, "rows": 150, "confidence": 0.95, "accuracy": 0.9})
    hardest = [
        {"row": 42, "target": "no", "predicted": "yes", "loss": 5.25, "probability": 0.0052, "confidence": 0.99},
        {"row": 3, "target": "yes", "predicted": "yes", "loss": 0.5, "probability": 0.61, "confidence": 0.61},
    ]
    return {
        **about,
        "labels": ["maybe", "no", "yes"],
        "confusion": [[0, 0, 90], [1, 1, 50], [2, 2, 25], [1, 2, 12], [2, 0, 3]],
        "calibration": bins,
        "points": None,
        "hardest": hardest,
    }
