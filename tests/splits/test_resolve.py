import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from kinfold.errors import InputError
from kinfold.splits import (
    SPLITTERS,
    Grouped,
    Ordered,
    RepeatedStratifiedKFold,
    RowInfo,
    Saved,
    Shuffle,
    Splits,
    Stratified,
    Wrapped,
    draw_splits,
    resolve,
)

CLASSES = RowInfo(np.array([0, 1]), 2)
NUMBERS = RowInfo(np.array([0.0, 1.0]))
KFOLD = KFold(3)
SPLITS = Splits(np.array([[True, False]]), np.array([[False, True]]), np.array([False, False]))
COLUMN = np.array([1, 2])


@pytest.mark.parametrize(
    ("spec", "info", "expected"),
    [
        (None, CLASSES, Stratified(0.3)),
        (None, NUMBERS, Shuffle(0.3)),
        (None, RowInfo(CLASSES.y, 2, groups=COLUMN), Grouped(0.3)),
        (None, RowInfo(CLASSES.y, 2, times=COLUMN), Ordered(0.3)),
        (None, RowInfo(CLASSES.y, 2, groups=COLUMN, times=COLUMN), Grouped(0.3)),
        ("random", CLASSES, Shuffle(0.3)),
        ("kfold", CLASSES, RepeatedStratifiedKFold(5, 2)),
        ({"name": "kfold", "folds": 3}, CLASSES, RepeatedStratifiedKFold(3, 2)),
        ({"name": "shuffle", "val_fraction": 0.4}, CLASSES, Shuffle(0.4)),
        ({"name": "ordered", "first": 0.2}, CLASSES, Ordered(0.3, 0.2)),
        ("a/b.safetensors", CLASSES, Saved("a/b.safetensors")),
        (Path("b.safetensors"), CLASSES, Saved(Path("b.safetensors"))),
        (SPLITS, CLASSES, Saved(SPLITS)),
        (Shuffle(0.1), CLASSES, Shuffle(0.1)),
        (KFOLD, CLASSES, Wrapped(KFOLD)),
    ],
)
def test_what_a_spec_means(spec, info, expected):
    assert resolve(spec, val_fraction=0.3, info=info) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stratifed", "splits: unknown name 'stratifed', did you mean 'stratified'"),
        ("splits.json", r"unknown name 'splits.json'.*FILE\.safetensors"),
        (5, "splits: unknown name 5"),
        (KFold, "splits: unknown name"),
        ({"folds": 3}, "splits: unknown name None"),
        ({"name": "kfold", "fold": 3}, "splits.fold: unknown name 'fold', did you mean 'folds'"),
        ({"name": "shuffle", "val_fraction": 0}, "val_fraction: must be above 0"),
        ({"name": "ordered", "first": 1.5}, "first: must be above 0"),
        ({"name": "kfold", "folds": 1}, "folds: must be a whole number of at least 2, not 1"),
        ({"name": "kfold", "repeats": 0}, "repeats: must be a whole number of at least 1"),
    ],
)
def test_what_means_nothing(spec, message):
    with pytest.raises(InputError, match=message):
        resolve(spec, val_fraction=0.3, info=CLASSES)


def test_every_name_makes_a_splitter():
    for name, splitter in SPLITTERS.items():
        assert type(resolve(name, val_fraction=0.3, info=CLASSES)) is splitter


MAKERS = """
from sklearn.model_selection import KFold

def a_class():
    return KFold

class Plain:
    pass
"""


@pytest.fixture
def makers(tmp_path, monkeypatch):
    (tmp_path / "splitter_makers.py").write_text(MAKERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "splitter_makers"
    sys.modules.pop("splitter_makers", None)


def test_a_class_that_is_named_makes_the_splitter(makers):
    specs = ["kinfold.splits:Grouped", {"class_path": "kinfold.splits:Shuffle", "init_args": {"val_fraction": 0.4}}]
    assert [resolve(spec, val_fraction=0.3, info=CLASSES) for spec in specs] == [Grouped(), Shuffle(0.4)]
    wrapped = resolve("sklearn.model_selection:KFold", val_fraction=0.3, info=CLASSES)
    assert isinstance(wrapped, Wrapped)
    assert isinstance(wrapped.splitter, KFold)


@pytest.mark.parametrize(
    ("spec", "kind"), [("{}:Plain", "Plain"), ("{}:a_class", "function"), ({"class_path": "{}:a_class"}, "ABCMeta")]
)
def test_what_is_named_and_makes_no_splitter_is_refused(makers, spec, kind):
    spec = {key: path.format(makers) for key, path in spec.items()} if isinstance(spec, dict) else spec.format(makers)
    with pytest.raises(InputError, match=f"splits: .*{makers}:.* makes a {kind}; name a splitter's class"):
        resolve(spec, val_fraction=0.3, info=CLASSES)


def draw(info, spec, **arguments):
    return draw_splits(info, spec, **{"tasks": 2, "val_fraction": 0.5, "holdout": 0, "seed": 0} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": 0}, "tasks: must be a whole number of at least 1, not 0"),
        ({"val_fraction": 0}, "val_fraction: must be above 0 and below 1, not 0"),
        ({"holdout": 1}, "holdout: must be at least 0 and below 1, not 1"),
    ],
)
def test_arguments_are_checked_whatever_the_splitter_makes_of_them(arguments, message):
    with pytest.raises(InputError, match=message):
        draw(CLASSES, SPLITS, **arguments)


def test_one_task_without_sealed_rows_is_enough():
    assert draw(NUMBERS, "shuffle", tasks=1).tasks == 1


def test_a_label_a_row_is_refused_from_three_rows_on():
    with pytest.raises(InputError, match="each of the 3 rows has a label of its own"):
        draw(RowInfo(np.arange(3), classes=3), "shuffle")
    with pytest.raises(InputError, match="task 0 validates on class"):
        draw(CLASSES, "shuffle")


@pytest.mark.parametrize("argument", ["groups", "times"])
def test_every_row_has_a_group_and_a_time_where_any_has(argument):
    info = RowInfo(np.zeros(4), **{argument: np.array([1.0, 2.0, np.nan, 4.0])})
    with pytest.raises(InputError, match=f"{argument}: row 2 has none; fill it in or drop the row"):
        draw(info, None)


def test_a_task_trains_on_the_classes_that_it_validates_on():
    info = RowInfo(np.array([0, 0, 1, 2, 2]), 4, labels=("p", "q", "r", "not there"))
    train, validation = (np.array([[sign == kind for sign in task] for task in ("tvtvt", "tvv.v")]) for kind in "tv")
    message = "splits: task 1 validates on class 'q' and has no training row of it; use 'stratified'"
    with pytest.raises(InputError, match=message):  # and on 'r' too, which is not the first
        draw(info, Splits(train, validation, np.zeros(5, dtype=bool)))
    train[1, [2, 3]], validation[1, [2, 4]] = True, False
    assert draw(info, Splits(train, validation, np.zeros(5, dtype=bool))).tasks == 2
