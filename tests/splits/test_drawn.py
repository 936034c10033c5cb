"""Every splitter, over data that it can split: the promises that all of them make."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedShuffleSplit
from sklearn.model_selection import RepeatedStratifiedKFold as SklearnRepeatedStratifiedKFold

from kinfold.errors import InputError
from kinfold.splits import (
    SPLITTERS,
    Grouped,
    Ordered,
    RepeatedStratifiedKFold,
    RowInfo,
    Shuffle,
    Splits,
    Stratified,
    draw_splits,
)

SPECS = [
    *SPLITTERS,
    {"name": "kfold", "folds": 3, "repeats": 1},
    KFold(3, shuffle=True),
    ShuffleSplit(4, test_size=0.3),
]
CLASS_SPECS = [StratifiedShuffleSplit(3, test_size=0.4), SklearnRepeatedStratifiedKFold(n_splits=2, n_repeats=2)]
OWN_COUNT = [name for name in SPLITTERS if name != "ordered"]  # these do not let split t depend on T
UNEVEN = [{"name": "shuffle", "even": False}, {"name": "stratified", "even": False}]


def rows(n: int, classes: int | None = 3) -> RowInfo:
    rng = np.random.default_rng(n)
    y = np.arange(n) % classes if classes else rng.normal(size=n)
    return RowInfo(rng.permutation(y), classes, groups=np.arange(n) % 11, times=rng.permutation(n) // 2)


def drawn(spec: object, info: RowInfo, *, tasks: int = 4, holdout: float | int = 0.1, seed: int = 0) -> Splits:
    return draw_splits(info, spec, tasks=tasks, val_fraction=0.2, holdout=holdout, seed=seed)


def assert_partition(splits: Splits) -> None:
    """Training and validation rows of each task are the unsealed rows, once each."""
    stands = splits.train.astype(int) + splits.validation + splits.sealed
    assert (stands == 1).all()


@pytest.mark.parametrize("spec", [*SPECS, *CLASS_SPECS], ids=str)
@settings(max_examples=8, deadline=None)
@given(n=st.integers(60, 90), holdout=st.sampled_from([0, 0.1, 0.3]), seed=st.integers(0, 2**31))
def test_splits_partition_the_unsealed_rows(spec, n, holdout, seed):
    info = rows(n, None if spec not in (*CLASS_SPECS, "stratified") else 3)
    splits = drawn(spec, info, holdout=holdout, seed=seed)
    assert splits.sealed.any() == (holdout > 0)
    assert splits.validation.any(axis=1).all()
    if spec == "ordered":  # the rows after a task's window are the future, and not its
        stands = splits.train.astype(int) + splits.validation + splits.sealed
        assert (stands <= 1).all()
    else:
        assert_partition(splits)


@pytest.mark.parametrize("spec", [*OWN_COUNT, *UNEVEN], ids=str)
def test_split_t_does_not_depend_on_the_number_of_tasks(spec):
    few, many = (drawn(spec, rows(80), tasks=tasks) for tasks in (2, 7))
    shared = min(few.tasks, many.tasks)
    np.testing.assert_array_equal(few.validation[:shared], many.validation[:shared])
    np.testing.assert_array_equal(few.sealed, many.sealed)


@pytest.mark.parametrize("spec", [*OWN_COUNT, *SPECS[-2:]], ids=str)
def test_draws_follow_the_seed_and_tasks_differ(spec):
    first, again, other = (drawn(spec, rows(80), seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.validation, again.validation)
    assert (first.validation != other.validation).any()
    assert len(np.unique(first.validation, axis=0)) > 1


@pytest.mark.parametrize("spec", ["shuffle", "stratified"])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_validation_share_is_as_asked(spec, classes):
    splits = drawn(spec, rows(100, classes))
    unsealed = int((~splits.sealed).sum())
    assert (splits.validation.sum(axis=1) == round(0.2 * unsealed)).all()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(5, 40), share=st.floats(0.1, 0.9, exclude_max=True), tasks=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_shuffle_holds_rows_out_equally_often(n, share, tasks, seed):
    spec = {"name": "shuffle", "val_fraction": share}
    held_out = drawn(spec, RowInfo(np.zeros(n)), tasks=tasks, holdout=0, seed=seed).validation.sum(axis=0)
    assert np.ptp(held_out) <= 1


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 3),
    share=st.floats(0.2, 0.8),
    tasks=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_stratified_holds_rows_of_a_class_out_equally_often(sizes, share, tasks, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    spec = {"name": "stratified", "val_fraction": share}
    held_out = drawn(spec, RowInfo(y, len(sizes)), tasks=tasks, holdout=0, seed=seed).validation.sum(axis=0)
    for number, size in enumerate(sizes):
        assert np.ptp(held_out[y == number]) <= 1
        assert size > 1 or not held_out[y == number].any()


@pytest.mark.parametrize("spec", ["shuffle", "stratified", *UNEVEN], ids=str)
def test_each_tasks_validation_rows_are_uniform(spec):
    """By the seed: of 400, about 80 hold a row out (sd 8); also in the fourth task, which comes after others' turns."""
    info = RowInfo(np.arange(20) % 2, 2)
    splits = [drawn(spec, info, holdout=0, seed=seed).validation for seed in range(400)]
    for task in (0, 3):
        times = np.sum([validation[task] for validation in splits], axis=0)
        assert times.sum() == 400 * 4
        assert (abs(times - 80) < 4.5 * 8).all()
        assert ((times - 80) ** 2).sum() / (400 * 0.2 * 0.8) < 44  # chi-squared with 19 degrees of freedom: p < 0.001


@pytest.mark.parametrize("kind", ["shuffle", "stratified"])
def test_tasks_take_turns_or_are_independent(kind):
    """Half of the rows each: by turns the second task has the other half; on their own they share half of theirs."""
    info = RowInfo(np.arange(20) % 2, 2)

    def shared(even):
        spec = {"name": kind, "val_fraction": 0.5, "even": even}
        splits = [drawn(spec, info, tasks=2, holdout=0, seed=seed).validation for seed in range(200)]
        return np.array([(one & other).sum() for one, other in splits])

    assert not shared(even=True).any()
    overlaps = shared(even=False)
    assert abs(overlaps.mean() - 5) < 0.5
    assert len(set(overlaps.tolist())) > 3


@settings(max_examples=30, deadline=None)
@given(y=st.lists(st.integers(0, 5), min_size=12, max_size=40), seed=st.integers(0, 99))
def test_stratified_trains_on_every_class_and_validates_by_share(y, seed):
    y = np.array([*y, 0, 0])
    info = RowInfo(y, classes=6)
    splits = drawn("stratified", info, seed=seed)
    unsealed = info.class_counts(~splits.sealed[None])
    np.testing.assert_array_equal(info.class_counts(splits.train) > 0, (unsealed > 0).repeat(4, axis=0))
    ideal = unsealed * splits.validation.sum(axis=1)[0] / unsealed.sum()
    counts = info.class_counts(splits.validation)
    assert (counts >= np.floor(ideal)).all()
    if (unsealed != 1).all():
        assert (counts <= np.ceil(ideal)).all()


def test_stratified_lets_rare_classes_take_turns():
    info = RowInfo(np.repeat(np.arange(20), 3), classes=20)
    validation = info.class_counts(drawn("stratified", info, tasks=30, holdout=0).validation)
    assert (validation.sum(axis=0) > 0).all()  # each class's share is 0.6 rows


def test_kfold_validates_on_each_row_once_a_repeat_and_spreads_classes():
    info = RowInfo(np.array([0] * 11 + [1] * 7 + [2] * 2 + [3]), classes=4)
    splits = draw_splits(
        info, {"name": "kfold", "folds": 3, "repeats": 2}, tasks=1, val_fraction=0.2, holdout=0, seed=1
    )
    assert splits.tasks == 6
    times = splits.validation.reshape(2, 3, -1).sum(axis=1)
    assert (times[:, :-1] == 1).all()
    assert (times[:, -1] == 0).all()  # the only row of its class is always trained on
    counts = info.class_counts(splits.validation)
    assert (np.ptp(counts.reshape(2, 3, 4), axis=1) <= 1).all()
    assert np.ptp(splits.validation.sum(axis=1)) <= 1
    assert (splits.validation[:3] != splits.validation[3:]).any()


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(0, 9), min_size=20, max_size=40), seed=st.integers(0, 99))
def test_grouped_never_divides_a_group(groups, seed):
    groups = np.array([*groups, *range(10)]).astype(str)
    info = RowInfo(np.zeros(len(groups)), groups=groups)
    splits = drawn("grouped", info, seed=seed)
    assert not set(groups[splits.sealed]) & set(groups[~splits.sealed])
    for train, validation in zip(splits.train, splits.validation, strict=True):
        assert not set(groups[train]) & set(groups[validation])


def test_grouped_comes_close_to_the_share_and_passes_over_a_group_that_holds_a_class():
    groups = np.repeat(np.arange(50), 4)
    y = np.arange(200) % 2
    y[groups == 7] = 2
    splits = drawn("grouped", RowInfo(y, 3, groups=groups), tasks=20)
    assert int(splits.sealed.sum()) == 20
    assert (splits.validation.sum(axis=1) == 36).all()
    assert splits.train[:, groups == 7].all()


@settings(max_examples=20, deadline=None)
@given(times=st.lists(st.integers(0, 30), min_size=60, max_size=80), tasks=st.integers(1, 3))
def test_ordered_trains_on_what_is_earlier_and_seals_the_latest(times, tasks):
    times = np.array([*times, *range(31)]).astype("datetime64[D]")
    splits = drawn("ordered", RowInfo(np.zeros(len(times)), times=times), tasks=tasks)
    assert times[splits.sealed].min() > times[~splits.sealed].max()
    for train, validation in zip(splits.train, splits.validation, strict=True):
        assert times[train].max() < times[validation].min()
        assert (train == (times < times[validation].min())).all()
    assert (splits.train.sum(axis=1)[1:] > splits.train.sum(axis=1)[:-1]).all()  # the window expands


def test_ordered_cuts_evenly():
    splits = draw_splits(
        RowInfo(np.zeros(100), times=np.arange(100)), "ordered", tasks=3, val_fraction=0.2, holdout=0, seed=0
    )
    assert splits.train.sum(axis=1).tolist() == [40, 60, 80]
    assert (splits.validation.sum(axis=1) == 20).all()


def test_what_splitters_do_unless_told():
    fifths = [Shuffle(), Stratified(), Grouped(), Ordered()]
    assert [splitter.val_fraction for splitter in fifths] == [0.2] * 4
    assert Shuffle().even
    assert Stratified().even
    assert Ordered().first == 0.5
    assert RepeatedStratifiedKFold() == RepeatedStratifiedKFold(folds=5, repeats=2)


@pytest.mark.parametrize("splitter", [Shuffle, Stratified, Grouped, Ordered])
def test_a_splitter_of_no_rows_or_all_cannot_be_made(splitter):
    for share in (0, 1):
        with pytest.raises(InputError, match=f"val_fraction: must be above 0 and below 1, not {share}"):
            splitter(share)


def test_other_splitters_that_cannot_be_made():
    for first in (0, 1):
        with pytest.raises(InputError, match=f"first: must be above 0 and below 1, not {first}"):
            Ordered(first=first)
    with pytest.raises(InputError, match="folds: must be a whole number of at least 2, not 1"):
        RepeatedStratifiedKFold(folds=1)
    with pytest.raises(InputError, match="repeats: must be a whole number of at least 1, not 0"):
        RepeatedStratifiedKFold(repeats=0)
    assert RepeatedStratifiedKFold(2, 1).draw(RowInfo(np.zeros(2)), tasks=1, holdout=0, seed=0).tasks == 2


def test_of_two_groups_one_is_validated_on():
    splits = drawn("grouped", RowInfo(np.zeros(6), groups=np.array([0, 0, 1, 0, 0, 0])), tasks=2, holdout=0)
    assert splits.validation.tolist() == [[False, False, True, False, False, False]] * 2


@pytest.mark.parametrize(
    ("info", "spec", "arguments", "message"),
    [
        (rows(40), None, {"tasks": 0}, "tasks: must be a whole number of at least 1, not 0"),
        (rows(40), None, {"val_fraction": 1.0}, "val_fraction: must be above 0 and below 1, not 1.0"),
        (rows(40), "kfold", {"val_fraction": float("nan")}, "val_fraction: must be above 0"),
        (rows(40), None, {"holdout": 1.0}, "holdout: must be at least 0 and below 1, not 1.0"),
        (rows(40), None, {"holdout": -0.1}, "holdout: must be at least 0"),
        (rows(40), "shuffle", {"val_fraction": 0.01}, "val_fraction: 0.01 of .* no validation rows; raise"),
        (RowInfo(np.zeros(5)), "shuffle", {"val_fraction": 0.95}, "no training rows; lower"),
        (RowInfo(np.zeros(2)), None, {}, "holdout: 0.1 of 2 rows cannot be sealed"),
        (RowInfo(np.zeros(40)), "stratified", {}, "'stratified' needs classes .* use 'shuffle'"),
        (RowInfo(np.arange(9), 9), None, {}, "each of the 9 rows has a label of its own"),
        (RowInfo(np.arange(8) // 2, 4), None, {"holdout": 0.5}, "every class has one unsealed row"),
        (RowInfo(np.zeros(4)), "kfold", {"holdout": 0}, "folds: 5 folds .* 4 are unsealed"),
        (RowInfo(np.zeros(40)), "grouped", {}, "'grouped' needs groups"),
        (RowInfo(np.zeros(40), groups=np.arange(40) % 2), None, {}, "groups: 2 among 40 rows"),
        (RowInfo(np.arange(40) % 4, 4, groups=np.arange(40) % 4), None, {}, "each group holds all rows of some"),
        (RowInfo(np.zeros(40)), "ordered", {}, "'ordered' needs times"),
        (RowInfo(np.zeros(40), times=np.arange(40) // 10), None, {}, "tasks: 4 ordered splits need .* 36|30"),
        (RowInfo(np.zeros(40), times=np.zeros(40)), None, {}, "holdout: .* cannot be sealed"),
        (RowInfo(np.zeros(40), times=np.zeros(40)), None, {"holdout": 0}, "40 unsealed rows give 0"),
        (RowInfo(np.zeros(3), times=np.array([1.0, np.nan, 2.0])), None, {}, "times: row 1 has none"),
        (RowInfo(np.zeros(3), groups=np.array(["a", "b", None])), None, {}, "groups: row 2 has none"),
        (
            RowInfo(np.repeat([0, 1], 20), 2, times=np.arange(40), labels=("no", "yes")),
            "ordered",
            {"holdout": 0},
            "task 0 validates on class 'yes' and has no training row of it",
        ),
    ],
)
def test_what_cannot_be_split_says_so_in_one_line(info, spec, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        draw_splits(info, spec, **{"tasks": 4, "val_fraction": 0.2, "holdout": 0.1, "seed": 0, **arguments})
    assert "\n" not in str(caught.value)
