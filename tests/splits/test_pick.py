import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.splits.base import RowInfo
from kinfold.splits.pick import allot, by_turns, rows_by_class, whole_groups

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1)


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
