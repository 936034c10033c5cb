import numpy as np
import pytest

from kinfold.errors import InputError
from kinfold.splits import RowInfo, Splits


def mask(*rows: str) -> np.ndarray:
    return np.array([[sign == "x" for sign in row] for row in rows])


def test_splits_know_their_size():
    splits = Splits(mask("xx..", "x.x."), mask("..x.", ".x.."), mask("...x")[0])
    assert (splits.tasks, len(splits)) == (2, 4)


@pytest.mark.parametrize(
    ("train", "validation", "sealed", "message"),
    [
        (mask("xx."), mask(".xx"), mask("...")[0], "both the training and the validation"),
        (mask("xx."), mask("..x"), mask("..x")[0], "a sealed row"),
        (mask("x..", "..."), mask(".x.", ".x."), mask("...")[0], "task 1 has no training rows"),
        (mask("x..", "x.."), mask("...", ".x."), mask("...")[0], "task 0 has no validation rows"),
        (np.zeros((0, 3), dtype=bool), np.zeros((0, 3), dtype=bool), mask("...")[0], "no task"),
    ],
)
def test_rows_that_stand_where_they_may_not_are_refused(train, validation, sealed, message):
    with pytest.raises(InputError, match=message):
        Splits(train, validation, sealed)


def test_where_there_are_no_rows_a_task_needs_none():
    assert len(Splits(np.zeros((2, 0), dtype=bool), np.zeros((2, 0), dtype=bool), np.zeros(0, dtype=bool))) == 0


def test_taking_rows_takes_all_that_is_known_of_them():
    info = RowInfo(np.array([0, 1, 2]), 3, np.array(["a", "b", "c"]), np.array([9, 8, 7]), ("p", "q", "r"))
    taken = info.take(np.array([2, 0]))
    assert (len(info), len(taken)) == (3, 2)
    assert (taken.y.tolist(), taken.classes, taken.groups.tolist()) == ([2, 0], 3, ["c", "a"])
    assert (taken.times.tolist(), taken.label(2), RowInfo(info.y, 3).label(2)) == ([7, 9], "'r'", "2")


def test_class_counts():
    info = RowInfo(np.array([0, 1, 1]), 3)
    assert info.class_counts(mask("xxx", "..x")).tolist() == [[1, 2, 0], [0, 1, 0]]
    assert RowInfo(np.zeros(3)).class_counts(mask("xxx")).shape == (1, 0)
