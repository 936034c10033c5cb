import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.splits import RowInfo, seal


def test_a_tenth_is_sealed_and_no_holdout_seals_none():
    info = RowInfo(np.zeros(50))
    assert int(seal(info).sum()) == 5
    assert not seal(info, 0).any()


@settings(max_examples=40, deadline=None)
@given(
    y=st.lists(st.integers(0, 9), min_size=10, max_size=60),
    holdout=st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_every_class_keeps_a_row_outside(y, holdout, seed):
    y = np.array([*y, 0, 0, 1])
    sealed = seal(RowInfo(y, classes=10), holdout, seed)
    assert set(y[~sealed].tolist()) == set(y.tolist())
    most = len(y) - len(set(y.tolist()))
    assert int(sealed.sum()) == min(most, max(1, int(holdout * len(y) + 0.5)))


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_classes_are_sealed_by_their_shares(classes):
    info = RowInfo(np.arange(200) % classes, classes)
    assert info.class_counts(seal(info, 0.25)[None]).tolist() == [[50 // classes] * classes]


def test_whole_groups_are_sealed_and_two_stay():
    groups = np.repeat(["a", "b", "c", "d"], [40, 3, 4, 3])
    for seed in range(10):
        sealed = seal(RowInfo(np.zeros(50), groups=groups), 0.1, seed)
        assert set(groups[sealed]) in ({"b"}, {"c"}, {"d"}, {"b", "d"})  # 3, 4 or 6 rows are near 5; 40 are not
        most = seal(RowInfo(np.zeros(50), groups=groups), 0.95, seed)
        assert len(set(groups[~most])) == 2


def test_where_all_groups_are_too_large_the_smallest_is_sealed():
    groups = np.repeat(["a", "b", "c"], [20, 12, 18])
    assert set(groups[seal(RowInfo(np.zeros(50), groups=groups), 0.02)]) == {"b"}


def test_the_latest_rows_are_sealed_cut_between_two_times():
    times = np.array([3, 3, 3, 1, 1, 1, 2, 2, 2, 2])
    sealed = seal(RowInfo(np.zeros(10), times=times), 0.2, ordered=True)
    assert sealed.tolist() == [True] * 3 + [False] * 7
