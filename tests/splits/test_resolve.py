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


def test_three_rows_of_three_classes_cannot_be_learned():
    with pytest.raises(InputError, match="each of the 3 rows has a label of its own"):
        draw_splits(RowInfo(np.arange(3), classes=3), "shuffle", tasks=1, val_fraction=0.3, holdout=0, seed=0)
