import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
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


@pytest.mark.parametrize("holdout", [-0.1, 1])
def test_a_holdout_is_a_share(holdout):
    with pytest.raises(InputError, match="holdout: must be at least 0 and below 1"):
        seal(RowInfo(np.zeros(9)), holdout)


def test_two_rows_stay_whatever_is_asked():
    assert int(seal(RowInfo(np.zeros(4)), 0.5).sum()) == 2
    assert int(seal(RowInfo(np.zeros(3)), 0.01).sum()) == 1
    times = RowInfo(np.zeros(4), times=np.arange(4))
    assert seal(times, 0.9, ordered=True).tolist() == [False, False, True, True]
    for info, holdout, ordered in (
        (RowInfo(np.zeros(4)), 0.75, False),
        (RowInfo(np.zeros(2)), 0.1, False),
        (RowInfo(np.zeros(4), times=np.zeros(4)), 0.1, True),
        (RowInfo(np.zeros(3), times=np.array([0, 1, 1])), 0.1, True),
        (RowInfo(np.arange(4), 4), 0.1, False),
        (RowInfo(np.zeros(0, dtype=np.int64), 2), 0.1, False),
    ):
        with pytest.raises(InputError, match=f"holdout: {holdout} of {len(info)} rows cannot be sealed and leave rows"):
            seal(info, holdout, ordered=ordered)


def test_sealed_rows_are_drawn_by_the_seed_which_is_0_unless_given():
    info = RowInfo(np.zeros(40))
    drawn = [tuple(seal(info, 0.5, seed).tolist()) for seed in range(5)]
    assert len(set(drawn)) == 5
    assert tuple(seal(info, 0.5).tolist()) == drawn[0]


def test_the_latest_rows_are_sealed_only_where_that_is_asked():
    info = RowInfo(np.zeros(40), times=np.arange(40))
    assert seal(info, 0.5, ordered=True).tolist() == [False] * 20 + [True] * 20
    assert seal(info, 0.5).tolist() == seal(RowInfo(np.zeros(40)), 0.5).tolist()


def test_the_latest_rows_are_sealed_cut_between_two_times():
    times = np.array([3, 3, 3, 1, 1, 1, 2, 2, 2, 2])
    sealed = seal(RowInfo(np.zeros(10), times=times), 0.2, ordered=True)
    assert sealed.tolist() == [True] * 3 + [False] * 7
