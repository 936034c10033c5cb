import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.splits.base import RowInfo
from kinfold.splits.pick import (
    allot,
    by_turns,
    check_share,
    check_whole,
    nearest_count,
    nearest_places,
    rows_by_class,
    time_order,
    validation_count,
    whole_groups,
)

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1)


@pytest.mark.parametrize(("zero", "least", "refused"), [(False, "above", [0, 0.0]), (True, "at least", [])])
def test_a_share_is_below_one_and_zero_only_where_that_is_said(zero, least, refused):
    check_share("holdout", 0.5, zero=zero)
    check_share("holdout", 0, zero=True)
    for value in (-0.1, 1, 1.0, 2, math.nan, "0.5", None, *refused):
        with pytest.raises(InputError, match=re.escape(f"holdout: must be {least} 0 and below 1, not {value!r}")):
            check_share("holdout", value, zero=zero)
    with pytest.raises(InputError, match="above 0"):
        check_share("holdout", 0)


def test_a_count_is_whole_and_no_less_than_the_least():
    check_whole("tasks", 2, 2)
    check_whole("tasks", 3, 2)
    for value in (1, -3, 3.0, "3", None):
        with pytest.raises(InputError, match=f"tasks: must be a whole number of at least 2, not {value!r}"):
            check_whole("tasks", value, 2)
    with pytest.raises(InputError, match="not True"):
        check_whole("tasks", True, 1)


@pytest.mark.parametrize(("share", "n", "rows"), [(0.5, 5, 3), (0.25, 2, 1), (0.2, 7, 1), (0.2, 8, 2), (0, 9, 0)])
def test_the_nearest_count_takes_halves_upwards(share, n, rows):
    assert nearest_count(share, n) == rows


def test_a_task_validates_on_a_row_and_trains_on_one():
    assert validation_count(0.5, 2) == 1
    assert validation_count(0.8, 5) == 4
    with pytest.raises(InputError, match="0.1 of 4 unsealed rows leaves no validation rows; raise val_fraction"):
        validation_count(0.1, 4)
    with pytest.raises(InputError, match="0.9 of 5 unsealed rows leaves no training rows; lower val_fraction"):
        validation_count(0.9, 5)


def test_rows_by_class_gives_all_but_one_of_a_single_class_and_none_to_absent_classes():
    rng = np.random.default_rng(0)
    assert [len(rows_by_class(np.zeros(4, dtype=np.int64), count, rng)) for count in (2, 3, 4, 9)] == [2, 3, 3, 3]
    rare = np.array([0, 1, 3, 3, 3, 3])  # the places that 0 and 1 cannot use go to 3, and not to 2
    for _ in range(20):
        assert rare[rows_by_class(rare, 3, rng)].tolist() == [3, 3, 3]
    assert not len(rows_by_class(np.zeros(0, dtype=np.int64), 1, rng))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_places_are_given_by_share_within_a_row_and_under_caps(sizes, share, seed):
    sizes = np.array(sizes)
    caps = np.maximum(sizes - 1, 0)
    total = int(share * (sizes.sum() - 1))
    places = allot(total, sizes, caps, np.random.default_rng(seed))
    assert places.sum() == min(total, caps.sum())
    assert (places <= caps).all()
    assert (places >= total * sizes // sizes.sum()).all()
    if (caps >= np.ceil(total * sizes / sizes.sum())).all():
        assert (places <= np.ceil(total * sizes / sizes.sum())).all()


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, count=st.integers(0, 60), seed=st.integers(0, 9))
def test_rows_by_class_are_different_rows_and_leave_one_of_each_class(sizes, count, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = rows_by_class(y, count, rng)
    assert len(set(rows.tolist())) == len(rows) == min(count, sum(max(size - 1, 0) for size in sizes))
    assert set(np.delete(y, rows).tolist()) == set(y.tolist())


def test_every_row_of_a_class_may_be_drawn():
    y = np.repeat([0, 1], 5)
    rng = np.random.default_rng(0)
    assert {int(row) for _ in range(50) for row in rows_by_class(y, 2, rng)} == set(range(10))


@settings(max_examples=40, deadline=None)
@given(held_out=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_turns_are_all_rows_the_least_held_out_first(held_out, seed):
    held_out = np.array(held_out)
    order = by_turns(held_out, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(held_out)))
    assert (np.diff(held_out[order]) >= 0).all()


def test_turns_are_random_among_equals():
    orders = [by_turns(np.array([0, 1, 0, 1]), np.random.default_rng(seed)).tolist() for seed in range(40)]
    assert {tuple(order) for order in orders} == {
        (a, b, c, d) for a, b in ((0, 2), (2, 0)) for c, d in ((1, 3), (3, 1))
    }


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, count=st.integers(1, 60), held_out=st.integers(0, 9), seed=st.integers(0, 9))
def test_within_a_class_who_was_held_out_least_often_comes_first(sizes, count, held_out, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    held_out = np.random.default_rng(held_out).integers(0, 4, len(y))
    picked = np.zeros(len(y), dtype=bool)
    picked[rows_by_class(y, count, rng, held_out)] = True
    for number in range(len(sizes)):
        mine, others = held_out[picked & (y == number)], held_out[~picked & (y == number)]
        assert not len(mine) or not len(others) or mine.max() <= others.min()


def test_groups_never_take_the_last_rows_of_a_class():
    """Neither a group that holds a class alone, nor two that hold one between them."""
    groups = np.repeat(np.arange(6), 4)
    y = np.where(groups == 0, 2, np.where((groups <= 2) & (np.arange(24) % 4 == 0), 1, 0))
    taken = []
    for seed in range(40):
        rows = whole_groups(RowInfo(y, 3, groups=groups), 12, leave=1, rng=np.random.default_rng(seed))
        assert set(np.delete(y, rows).tolist()) == {0, 1, 2}
        taken += sorted(set(groups[rows].tolist()))
    assert set(taken) == {1, 2, 3, 4, 5}  # each of the two, where the other stays


def test_values_have_no_last_rows():
    groups = np.repeat(np.arange(4), 3)
    info = RowInfo(np.linspace(0, 1, 12), None, groups=groups)
    taken = {
        frozenset(groups[whole_groups(info, 6, leave=1, rng=np.random.default_rng(seed))].tolist())
        for seed in range(60)
    }
    assert taken == {frozenset((a, b)) for a in range(4) for b in range(a)}


def grouped(sizes: list[int], count: int, *, leave: int = 1, seed: int = 0, y: list[int] | None = None) -> list[int]:
    """Returns the groups of these sizes that are taken, having seen that they are whole."""
    groups = np.random.default_rng(99).permutation(np.repeat(np.arange(len(sizes)), sizes))
    info = RowInfo(np.zeros(len(groups)), groups=groups)
    if y is not None:
        info = RowInfo(np.array(y)[groups], max(y) + 1, groups=groups)
    rows = whole_groups(info, count, leave=leave, rng=np.random.default_rng(seed))
    taken = sorted(set(groups[rows].tolist()))
    assert sorted(rows.tolist()) == np.flatnonzero(np.isin(groups, taken)).tolist()
    return taken


def test_groups_are_taken_while_that_brings_their_rows_closer():
    for seed in range(20):
        assert len(grouped([2] * 9, 6, seed=seed)) == 3
        assert len(grouped([2] * 9, 5, seed=seed)) == 2  # 6 rows are as far from 5 as 4 are
        assert grouped([4, 3, 4], 2, seed=seed) == [1]
        assert grouped([9, 5, 8], 2, seed=seed) == [1]  # none brings it closer: the smallest


@pytest.mark.parametrize("leave", [1, 2])
def test_groups_that_are_to_stay_do(leave):
    assert len(grouped([2] * 5, 100, leave=leave)) == 5 - leave
    assert len(grouped([2] * (leave + 1), 2, leave=leave)) == 1
    with pytest.raises(InputError, match=f"groups: {leave} among {2 * leave} rows are too few, at least {leave + 1}"):
        grouped([2] * leave, 2, leave=leave)


def test_a_group_that_holds_a_class_stays_even_if_it_is_the_smallest():
    for seed in range(20):
        assert grouped([1, 3, 4, 4], 1, seed=seed, y=[2, 0, 0, 0]) == [1]  # no row is of class 1
        assert 0 not in grouped([1, 2, 2, 2, 2], 5, seed=seed, y=[2, 0, 0, 0, 0])
    with pytest.raises(InputError, match="groups: each group holds all rows of some class"):
        grouped([2, 3, 4], 2, y=[0, 1, 2])


def test_groups_and_times_have_to_be_known():
    with pytest.raises(InputError, match="'grouped' needs groups"):
        whole_groups(RowInfo(np.zeros(4)), 1, leave=1, rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="'ordered' needs times"):
        time_order(None)


def test_time_is_cut_where_a_new_one_begins():
    order, cuts = time_order(np.array([3, 1, 2, 1, 3, 2]))
    assert order.tolist() == [1, 3, 2, 5, 0, 4]
    assert cuts.tolist() == [2, 4]
    assert time_order(np.zeros(3))[1].tolist() == []


def test_the_nearest_places_are_each_named_once_and_may_be_none():
    assert nearest_places(np.array([2, 5, 9]), np.array([9.0, 3.4, 1.0, 3.6])).tolist() == [2, 5, 9]
    assert nearest_places(np.array([4]), np.array([9.0, 1.0])).tolist() == [4]
    assert nearest_places(np.zeros(0, dtype=np.int64), np.array([1.0])).tolist() == []
