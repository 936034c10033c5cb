"""A look at the splits before training: rows that leak, classes that are missing, groups and time that are broken.

Shapes: T tasks, n rows, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64, Shaped, UInt64

from kinfold.splits.base import RowInfo, Splits

Severity: TypeAlias = Literal["warning", "note"]
_SHOWN = 5  # rows and classes named in a finding


@dataclass(frozen=True)
class Finding:
    """One thing found, over all tasks in which it was. Plain values, so `dataclasses.asdict` of it is JSON.

    Attributes:
        kind: what was found: see `audit`, and `kinfold.assembling.column_findings`.
        severity: `warning` where scores are not to be trusted as they stand, else `note`.
        message: one line for the user.
        tasks: the tasks concerned; empty where it concerns the sealed rows and not a single task.
        count: how many different rows are concerned (for a `class-…` kind: how many classes).
        rows: the first few of these rows; empty for a `class-…` kind.
    """

    kind: str
    severity: Severity
    message: str
    tasks: tuple[int, ...]
    count: int
    rows: tuple[int, ...] = ()


def audit(splits: Splits, info: RowInfo, fingerprints: UInt64[np.ndarray, " n"]) -> list[Finding]:
    """Returns what a user should know of the splits before training on them, warnings first, one a kind.

    | kind | severity | found where |
    |---|---|---|
    | `duplicate-validation` | warning | a validation row has the features of a row its task trains on |
    | `duplicate-sealed` | warning | a sealed row has the features of a row that some task uses |
    | `conflict-validation`, `conflict-sealed` | note | … of such a row with another target |
    | `group-validation` | warning | a validation row's group is trained on by its task |
    | `group-sealed` | warning | a sealed row's group is used by some task |
    | `time-validation` | warning | a training row is later than a validation row of its task |
    | `time-sealed` | warning | a row that some task trains on is later than a sealed row |
    | `class-untrained` | warning | a class is in a task's validation rows and not in its training rows |
    | `class-training` | warning | a class is in neither |
    | `class-validation` | note | a class is in a task's training rows and not in its validation rows |
    | `class-sealed` | note | a class is not in the sealed rows |

    Args:
        splits: the splits.
        info: what is known of the rows; the checks of groups and times need them.
        fingerprints: [n] a hash of each row's features, equal for equal features.

    Example:
        >>> splits = Splits(np.array([[True, False]]), np.array([[False, True]]), np.array([False, False]))
        >>> twins = np.array([7, 7], dtype=np.uint64)
        >>> [finding.kind for finding in audit(splits, RowInfo(np.array([0.5, 0.5])), twins)]
        ['duplicate-validation']
    """
    findings = [
        *_duplicates(splits, info, fingerprints),
        *_groups(splits, info),
        *_times(splits, info),
        *_classes(splits, info),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "warning")


def _duplicates(splits: Splits, info: RowInfo, fingerprints: UInt64[np.ndarray, " n"]) -> list[Finding]:
    _, codes, counts = np.unique(fingerprints, return_inverse=True, return_counts=True)
    twins = np.flatnonzero(counts[codes] > 1)  # the rest is as good as never there: most rows have no twin
    features = _codes(codes[twins])
    # A pair is one (features, target), as one number; pair_features says which features it has.
    numbers = features * len(twins) + _codes(info.y[twins])
    _, first, pairs = np.unique(numbers, return_index=True, return_inverse=True)
    pair_features = features[first]

    def meets(
        known: Bool[np.ndarray, " n"], asked: Bool[np.ndarray, " n"]
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Returns which of the rows `asked` have a twin in `known`, and which have one with another target."""
        seen = np.zeros(len(first), dtype=bool)
        seen[pairs[known[twins]]] = True
        targets = np.bincount(pair_features[seen], minlength=len(twins))[features]
        equal, conflict = np.zeros((2, len(info)), dtype=bool)
        equal[twins] = asked[twins] & (targets > 0)
        conflict[twins] = asked[twins] & (targets > seen[pairs])
        return equal, conflict

    equal, conflict = _per_task(meets, splits)
    sealed_equal, sealed_conflict = meets(_used(splits), splits.sealed)
    return [
        *_rows("duplicate-validation", "warning", equal, "validation rows equal to a row their task trains on"),
        *_rows("duplicate-sealed", "warning", sealed_equal, "sealed rows equal to a row that tasks use"),
        *_rows(
            "conflict-validation",
            "note",
            conflict,
            "validation rows equal to a row their task trains on that has another target",
        ),
        *_rows(
            "conflict-sealed",
            "note",
            sealed_conflict,
            "sealed rows equal to a row that tasks use that has another target",
        ),
    ]


def _groups(splits: Splits, info: RowInfo) -> list[Finding]:
    if info.groups is None:
        return []
    groups = _codes(info.groups)

    def meets(known: Bool[np.ndarray, " n"], asked: Bool[np.ndarray, " n"]) -> tuple[Bool[np.ndarray, " n"]]:
        seen = np.zeros(len(info), dtype=bool)
        seen[groups[known]] = True
        return (asked & seen[groups],)

    (divided,) = _per_task(meets, splits)
    (sealed,) = meets(_used(splits), splits.sealed)
    return [
        *_rows("group-validation", "warning", divided, "validation rows of a group their task trains on"),
        *_rows("group-sealed", "warning", sealed, "sealed rows of a group that tasks use"),
    ]


def _times(splits: Splits, info: RowInfo) -> list[Finding]:
    if info.times is None:
        return []
    times = np.unique(info.times, return_inverse=True)[1]

    def later(known: Bool[np.ndarray, " n"], asked: Bool[np.ndarray, " n"]) -> tuple[Bool[np.ndarray, " n"]]:
        return (known & (times > times[asked].min(initial=len(info))),)

    (late,) = _per_task(later, splits)
    (sealed_late,) = later(np.asarray(splits.train.any(axis=0)), splits.sealed)
    return [
        *_rows("time-validation", "warning", late, "training rows later than a validation row of their task"),
        *_rows("time-sealed", "warning", sealed_late, "training rows later than a sealed row"),
    ]


def _classes(splits: Splits, info: RowInfo) -> list[Finding]:
    trained, validated = info.class_counts(splits.train) > 0, info.class_counts(splits.validation) > 0
    sealed = (info.class_counts(splits.sealed[None]) > 0)[0]
    return [
        *_missing("class-untrained", "warning", ~trained & validated, info, "validation rows but no training rows"),
        *_missing("class-training", "warning", ~trained & ~validated, info, "no training and no validation rows"),
        *_missing("class-validation", "note", trained & ~validated, info, "no validation rows"),
        *(_missing("class-sealed", "note", ~sealed, info, "no sealed rows") if sealed.any() else []),
    ]


def _used(splits: Splits) -> Bool[np.ndarray, " n"]:
    return np.asarray((splits.train | splits.validation).any(axis=0))


def _codes(values: Shaped[np.ndarray, "m *K"]) -> Int64[np.ndarray, " m"]:
    """Returns a number for each value, equal for equal ones, counted from 0."""
    if values.ndim == 1:
        return pd.factorize(values)[0].astype(np.int64)
    return np.unique(values, axis=0, return_inverse=True)[1].ravel()


def _per_task(
    check: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]], splits: Splits
) -> list[Bool[np.ndarray, "T n"]]:
    """Returns each result of a check of (training rows, validation rows), for all tasks."""
    results = [check(train, validation) for train, validation in zip(splits.train, splits.validation, strict=True)]
    return [np.stack(result) for result in zip(*results, strict=True)]


def _rows(kind: str, severity: Severity, hit: Bool[np.ndarray, "*T n"], text: str) -> list[Finding]:
    """Returns the finding that the rows in `hit` make, if any: [T, n] for tasks, [n] for sealed rows."""
    if not hit.any():
        return []
    by_task = np.atleast_2d(hit)
    rows = np.flatnonzero(by_task.any(axis=0))
    most = int(by_task.sum(axis=1).max())
    tasks = _tasks_of(hit)
    where = f" over {_spans(tasks, len(hit))}, at most {most} in one" if tasks else ""
    shown = _listed([str(row) for row in rows[:_SHOWN]], len(rows))
    message = f"{text}: {len(rows)}{where} (rows {shown})."
    return [Finding(kind, severity, message, tasks, len(rows), tuple(rows[:_SHOWN].tolist()))]


def _missing(kind: str, severity: Severity, hit: Bool[np.ndarray, "*T C"], info: RowInfo, text: str) -> list[Finding]:
    """Returns the finding that the classes in `hit` make, if any: [T, C] for tasks, [C] for sealed rows."""
    if not hit.any():
        return []
    numbers = np.flatnonzero(np.atleast_2d(hit).any(axis=0))
    tasks = _tasks_of(hit)
    where = f" in {_spans(tasks, len(hit))}" if tasks else ""
    shown = _listed([info.label(int(number)) for number in numbers[:_SHOWN]], len(numbers))
    message = f"classes with {text}{where}: {len(numbers)} of {info.classes} ({shown})."
    return [Finding(kind, severity, message, tasks, len(numbers))]


def _tasks_of(hit: Bool[np.ndarray, "*T m"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(hit.any(axis=1)).tolist()) if hit.ndim == 2 else ()


def _listed(names: Sequence[str], total: int) -> str:
    return ", ".join(names) + (", …" if total > len(names) else "")


def _spans(tasks: Sequence[int], total: int) -> str:
    """Returns task numbers in words, neighbours drawn together.

    Example:
        >>> _spans([0, 1, 2, 5], 8), _spans([3], 8), _spans([0, 1], 2)
        ('tasks 0-2, 5', 'task 3', 'every task')
    """
    if len(tasks) == total:
        return "every task"
    breaks = np.flatnonzero(np.diff(tasks) > 1) + 1
    spans = [f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in np.split(tasks, breaks)]
    return f"task{'s' if len(tasks) > 1 else ''} {', '.join(spans)}"
