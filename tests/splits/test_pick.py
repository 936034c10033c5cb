import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.splits.pick import allot, rows_by_class

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
