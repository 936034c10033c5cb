import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.splits import RowInfo, Splits, audit, draw_splits


def split(*tasks: str) -> Splits:
    """Returns splits from one string a task: t(raining), v(alidation), s(ealed) or . (unused) for each row."""
    signs = np.array([list(task) for task in tasks])
    return Splits(signs == "t", signs == "v", (signs == "s").any(axis=0))


def found(splits: Splits, info: RowInfo, prints: list[int] | None = None) -> dict[str, tuple]:
    prints = list(range(len(info))) if prints is None else prints
    findings = audit(splits, info, np.array(prints, dtype=np.uint64))
    json.dumps([asdict(finding) for finding in findings])  # raises where a value is not plain
    return {f.kind: (f.severity, f.tasks, f.count, f.rows) for f in findings}


NUMBERS = RowInfo(np.array([0.0, 1.0, 0.0, 1.0, 2.0]))
TWINS = [7, 1, 7, 2, 7]


def test_nothing_is_found_where_nothing_is_wrong():
    assert audit(split("ttvvs", "tvtvs"), NUMBERS, np.arange(5, dtype=np.uint64)) == []


def test_duplicates_and_conflicts():
    # Rows 0, 2 and 4 have equal features, of which row 4 has another target.
    assert found(split("ttvv.", "ttttv"), NUMBERS, TWINS) == {
        "duplicate-validation": ("warning", (0, 1), 2, (2, 4)),
        "conflict-validation": ("note", (1,), 1, (4,)),
    }
    assert found(split("ttvvs", "vttts"), NUMBERS, TWINS) == {
        "duplicate-validation": ("warning", (0, 1), 2, (0, 2)),
        "duplicate-sealed": ("warning", (), 1, (4,)),
        "conflict-sealed": ("note", (), 1, (4,)),
    }


def brute_force(splits: Splits, y: np.ndarray, prints: list[int]) -> dict[str, set[int]]:
    equal, conflict = set(), set()
    for train, validation in zip(splits.train, splits.validation, strict=True):
        for row in np.flatnonzero(validation).tolist():
            twins = [other for other in np.flatnonzero(train) if prints[other] == prints[row]]
            equal |= {row} if twins else set()
            conflict |= {row} if any(np.any(y[other] != y[row]) for other in twins) else set()
    return {"duplicate-validation": equal, "conflict-validation": conflict}


@settings(max_examples=40, deadline=None)
@given(
    prints=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    targets=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    columns=st.sampled_from([0, 2]),
    seed=st.integers(0, 99),
)
def test_duplicates_against_brute_force(prints, targets, columns, seed):
    y = np.array(targets, dtype=float)
    y = np.stack([y] * columns, axis=1) if columns else y
    splits = draw_splits(RowInfo(y), "shuffle", tasks=2, val_fraction=0.3, holdout=0, seed=seed)
    result = found(splits, RowInfo(y), prints)
    for kind, rows in brute_force(splits, y, prints).items():
        assert result.get(kind, ("", (), 0, ()))[2:] == (len(rows), tuple(sorted(rows)[:5]))


def test_a_twin_of_a_sealed_row_in_one_task_alone_is_found():
    """Tasks need not use every row: here row 0 is in the first alone, to train on or to validate on."""
    for one, other in (("tvs.", ".vst"), ("vts.", ".vst")):
        assert found(split(one, other), RowInfo(np.zeros(4)), [7, 1, 7, 2])["duplicate-sealed"] == (
            "warning",
            (),
            1,
            (2,),
        )


def test_groups_of_any_type():
    groups = np.array(["b", 1, "b", 2.5], dtype=object)
    assert found(split("tvvs"), RowInfo(np.zeros(4), groups=groups)) == {
        "group-validation": ("warning", (0,), 1, (2,)),
    }


def test_groups():
    info = RowInfo(np.zeros(5), groups=np.array(["a", "a", "b", "b", "a"]))
    assert found(split("ttvvs", "tvtts"), info) == {
        "group-validation": ("warning", (1,), 1, (1,)),
        "group-sealed": ("warning", (), 1, (4,)),
    }


def test_times():
    info = RowInfo(np.zeros(5), times=np.array([1, 2, 3, 3, 2]))
    assert found(split("ttvvs", "tvtts"), info) == {
        "time-validation": ("warning", (1,), 2, (2, 3)),
        "time-sealed": ("warning", (), 2, (2, 3)),
    }
    assert found(split("t.vv.", "ttvv."), info) == {}


def test_classes():
    info = RowInfo(np.array([0, 0, 1, 1, 2]), 4, labels=("p", "q", "r", "never"))
    assert found(split("ttvvs", "tvtvs"), info) == {
        "class-untrained": ("warning", (0,), 1, ()),
        "class-training": ("warning", (0, 1), 2, ()),
        "class-validation": ("note", (0,), 1, ()),
        "class-sealed": ("note", (), 3, ()),
    }


def test_a_class_of_one_row_counts():
    info = RowInfo(np.array([0, 0, 0, 1, 1, 1]), 2)
    assert found(split("tvstvs"), info) == {}
    assert found(split("tvs.vs"), info) == {"class-untrained": ("warning", (0,), 1, ())}
    assert found(split("tvst.s"), info) == {"class-validation": ("note", (0,), 1, ())}
    assert found(split("tvstv."), info) == {"class-sealed": ("note", (), 1, ())}


def test_no_class_is_missed_among_sealed_rows_where_none_are_sealed():
    assert found(split("tvtv"), RowInfo(np.array([0, 0, 1, 1]), 2)) == {}


def test_messages_say_how_many_in_how_many_tasks():
    info = RowInfo(np.zeros(8))
    equal = audit(split("tvvvvvvv", "tvv.....", "ttvvvvvv"), info, np.array([7] * 7 + [1], dtype=np.uint64))[0]
    assert equal.message == (
        "validation rows equal to a row their task trains on: 6 over every task, at most 6 in one "
        "(rows 1, 2, 3, 4, 5, …)."
    )
    assert (equal.count, equal.rows) == (6, (1, 2, 3, 4, 5))
    some = audit(split("tvt", "ttv", "ttv"), RowInfo(np.zeros(3)), np.array([7, 1, 7], dtype=np.uint64))
    assert [finding.message for finding in some] == [
        "validation rows equal to a row their task trains on: 1 over tasks 1-2, at most 1 in one (rows 2)."
    ]


def test_messages_draw_neighbouring_tasks_together():
    tasks = ["tvt" if task in (0, 2, 3, 6) else "ttv" for task in range(7)]
    (finding,) = audit(split(*tasks), RowInfo(np.zeros(3)), np.array([7, 7, 1], dtype=np.uint64))
    assert finding.message.endswith(": 1 over tasks 0, 2-3, 6, at most 1 in one (rows 1).")
    assert finding.tasks == (0, 2, 3, 6)


def test_messages_name_the_first_classes_that_are_missing():
    info = RowInfo(np.arange(14) // 2, 7, labels=tuple("abcdefg"))
    all_seven, without = "tv" * 7, "tv" + "t" * 12
    by_task = audit(split(all_seven, without), info, np.arange(14, dtype=np.uint64))
    assert [finding.message for finding in by_task] == [
        "classes with no validation rows in task 1: 6 of 7 ('b', 'c', 'd', 'e', 'f', …)."
    ]
    assert (by_task[0].tasks, by_task[0].count) == ((1,), 6)


def test_messages_are_short_and_name_rows_classes_and_tasks():
    info = RowInfo(np.zeros(40, dtype=int), 2, labels=("p", "q"))
    splits = draw_splits(info, "shuffle", tasks=8, val_fraction=0.5, holdout=0.1, seed=0)
    findings = audit(splits, info, np.zeros(40, dtype=np.uint64))
    assert [finding.severity for finding in findings] == ["warning"] * 3 + ["note"]
    first, sealed, untrained, unsealed = (finding.message for finding in findings)
    assert first.startswith(
        "validation rows equal to a row their task trains on: 36 over every task, at most 18 in one (rows "
    )
    assert first.endswith(", …).")
    assert sealed.startswith("sealed rows equal to a row that tasks use: 4 (rows ")
    assert untrained == "classes with no training and no validation rows in every task: 1 of 2 ('q')."
    assert unsealed == "classes with no sealed rows: 1 of 2 ('q')."


@pytest.mark.parametrize("kind", ["grouped", "ordered", "stratified"])
def test_what_a_splitter_promises_is_not_found_broken(kind):
    info = RowInfo(np.arange(80) % 2, 2, groups=np.arange(80) % 20, times=np.arange(80) // 2)
    result = found(draw_splits(info, kind, tasks=4, val_fraction=0.2, holdout=0.1, seed=0), info)
    promised = {"grouped": "group-", "ordered": "time-", "stratified": "class-"}[kind]
    assert not [kind for kind in result if kind.startswith(promised)]
