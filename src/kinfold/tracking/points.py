"""From events to curves, and from a result to figures: the same for every tracker. Pure, but for `Curves`.

Legend: T tasks.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

from kinfold.tracking.base import Ending, Event, Move, Point, task_name

Leaf: TypeAlias = bool | int | float | str

MAX_PAIRED = 16
"""Tasks, up to which each pair of them has curves of its own; the table in the end has all pairs."""

_SYSTEM = {
    "cpu_percent": ("system/cpu_utilization_percentage", 1.0),
    "memory_percent": ("system/system_memory_usage_percentage", 1.0),
    "process_bytes": ("system/process_memory_megabytes", 1e-6),
    "gpu_bytes": ("system/gpu_memory_allocated_megabytes", 1e-6),
}
"""Figures of the machine under the names that MLflow knows such by."""

_FILES = ("config.yaml", "result.json", "report.html", "history.jsonl", "model.safetensors", "model.json")


def clean_name(text: str) -> str:
    """Returns a text as trackers take names.

    Example:
        >>> clean_name("F1 (macro)")
        'F1 -macro-'
    """
    return re.sub(r"[^\w\-./ ]", "-", text, flags=re.ASCII)[:200]


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Leaf]:
    """Returns a configuration's leaves by dotted key; lists as JSON, and nothing for null.

    Example:
        >>> flattened({"tasks": 8, "optimizer": {"name": "sgd", "lr": 0.1}, "methods": ["mixup"], "loss": None})
        {'tasks': 8, 'optimizer.name': 'sgd', 'optimizer.lr': 0.1, 'methods': '["mixup"]'}
    """
    leaves: dict[str, Leaf] = {}
    for name, value in config.items():
        key = clean_name(f"{prefix}{name}")
        if isinstance(value, Mapping) and value:
            leaves |= flattened(value, f"{key}.")
        elif isinstance(value, (bool, int, float, str)):
            leaves[key] = value
        elif value is not None:
            leaves[key] = json.dumps(value, default=str)
    return leaves


@final
class Curves:
    """Turns a run's events into points, told of all of them in order.

    Of a period there may be several events of transfers, and their counts are points once the next period, or a
    student's epoch, says that there are no more: so no curve has two points at one place.

    Args:
        tasks: T.
        score: the name of the curves of scores.
    """

    def __init__(self, tasks: int, score: str):
        self._tasks, self._score = tasks, score
        self._proposed: dict[tuple[int, int], int] = {}
        self._accepted: dict[tuple[int, int], int] = {}
        self._offers, self._taken = [0] * tasks, [0] * tasks
        self._changed: set[tuple[int, int]] = set()
        self._told = 0
        self.period = 0

    def points(self, event: Event) -> tuple[Point, ...]:
        """Returns the points that an event brings."""
        kind = event["event"]
        if kind == "transfer":
            self._count(event)
            return ()
        if kind == "system":
            found = ((_SYSTEM[name], value) for name, value in event.items() if name in _SYSTEM)
            return tuple(Point(None, name, event["period"], scale * value) for (name, scale), value in found)
        if kind not in ("period", "student"):
            return ()
        before = self.rest()
        self.period = period = int(event["period"])
        if kind == "student":
            names = {"train_loss": "student/train_loss", "lr": "student/lr"}
            values = [Point(None, name, period, float(event[key])) for key, name in names.items() if _is(event[key])]
            return (*before, *values)
        return (*before, *self._of_period(event))

    def rest(self) -> tuple[Point, ...]:
        """Returns the counts of transfers that have not been given yet."""
        return tuple(self._of_transfers())

    def moves(self) -> tuple[Move, ...]:
        """Returns the transfers by pair."""
        return tuple(Move(*pair, self._proposed[pair], self._accepted[pair]) for pair in sorted(self._proposed))

    def _of_period(self, event: Event) -> Iterator[Point]:
        period = int(event["period"])
        curves = {
            "train/loss": event["train_loss"],
            "validation/loss": event["loss"],
            self._score: event["metric"],
            "lr": event["lr"],
        }
        for name, values in curves.items():
            known = [float(value) for value in values if _is(value)]
            yield from (Point(t, name, period, float(value)) for t, value in enumerate(values) if _is(value))
            if len(known) == self._tasks:  # a mean of some of them would be of others than the one before
                yield Point(None, name, period, math.fsum(known) / len(known))
        yield Point(None, "period_seconds", period, float(event["seconds"]))

    def _count(self, event: Event) -> None:
        for move in event["transfers"]:
            times, recipient = move.get("times", 1), move["recipient"]
            taken = times * bool(move["accepted"])
            self._offers[recipient] += times
            self._taken[recipient] += taken
            for donor in move["donors"]:
                pair = (recipient, donor)
                self._proposed[pair] = self._proposed.get(pair, 0) + times
                self._accepted[pair] = self._accepted.get(pair, 0) + taken
                self._changed.add(pair)

    def _of_transfers(self) -> Iterator[Point]:
        total = sum(self._offers)
        if total == self._told:
            return
        self._told, changed, self._changed = total, sorted(self._changed), set()
        for t, (offers, taken) in enumerate(zip(self._offers, self._taken, strict=True)):
            if offers:
                yield Point(t, "transfers/proposed", self.period, float(offers))
                yield Point(t, "transfers/accepted", self.period, float(taken))
        yield Point(None, "transfers/proposed", self.period, float(total))
        yield Point(None, "transfers/accepted", self.period, float(sum(self._taken)))
        for t, donor in changed if self._tasks <= MAX_PAIRED else ():
            name = task_name(donor, self._tasks)
            yield Point(t, f"transfers/proposed_from_{name}", self.period, float(self._proposed[t, donor]))
            yield Point(t, f"transfers/accepted_from_{name}", self.period, float(self._accepted[t, donor]))


def ending_of(result: Mapping[str, Any], curves: Curves, folder: Path) -> Ending:
    """Returns a run's result as trackers are told of it.

    Args:
        result: what `result.json` holds.
        curves: told of every event.
        folder: with the run's files.
    """
    estimate, scores = result["estimate"] or {}, result["scores"]
    values = {
        **{f"estimate/{name}": estimate.get(name) for name in ("value", "low", "high", "rows", "clean")},
        "selected/score": result["selected"]["score"],
        "epochs_run": result["epochs_run"],
        **{f"cost/{name}": value for name, value in result["cost"].items()},
    }
    columns = {
        "final/own_score": scores["own"],
        "final/own_loss": [row[t] for t, row in enumerate(scores["loss_matrix"])],
        "final/mean_score": [_mean(row) for row in scores["matrix"]],
        "final/exposed_share": [_mean(row) for row in scores["exposed"]],
    }
    return Ending(
        result=result,
        values=_finite(values),
        task_values=tuple(
            _finite({name: column[t] for name, column in columns.items()}) for t in range(result["tasks"])
        ),
        moves=curves.moves(),
        period=curves.period,
        files=tuple(path for name in _FILES if (path := folder / name).exists()),
    )


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _finite(values: Mapping[str, float | int | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and _is(value)}


def _is(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)
