import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, PredefinedSplit, ShuffleSplit, StratifiedKFold

from kinfold.errors import InputError
from kinfold.splits import RowInfo, Wrapped


def test_a_splitter_is_used_as_it_is_with_its_own_number_of_splits():
    info = RowInfo(np.zeros(12), groups=np.arange(12) // 3)
    for splitter in (LeaveOneGroupOut(), GroupKFold(4)):
        splits = Wrapped(splitter).draw(info, tasks=2, holdout=0, seed=0)
        assert splits.tasks == 4
        assert sorted(info.groups[mask].tolist() for mask in splits.validation) == [[g] * 3 for g in range(4)]


def test_the_seed_is_set_on_a_copy_and_a_given_state_is_kept():
    info, free = RowInfo(np.zeros(30)), ShuffleSplit(2, test_size=5)
    one, again, two = (Wrapped(free).draw(info, tasks=1, holdout=0, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.validation, again.validation)
    assert (one.validation != two.validation).any()
    assert free.random_state is None
    state = np.random.RandomState(3)
    before = state.get_state()[1].copy()
    fixed = Wrapped(ShuffleSplit(2, test_size=5, random_state=state))
    one, two = (fixed.draw(info, tasks=1, holdout=0, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.validation, two.validation)
    np.testing.assert_array_equal(state.get_state()[1], before)


def test_any_seed_is_one_that_scikit_learn_takes():
    """Those that it takes are below 2³², and no two of these come to the same."""
    splitter = Wrapped(ShuffleSplit(1, test_size=10))
    drawn = [splitter.draw(RowInfo(np.zeros(30)), tasks=1, holdout=0, seed=seed).validation[0] for seed in range(70)]
    assert len({rows.tobytes() for rows in drawn}) == 70


def test_numpys_global_generator_is_left_alone():
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    Wrapped(ShuffleSplit(2, test_size=5)).draw(RowInfo(np.zeros(30)), tasks=1, holdout=0.1, seed=0)
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert after["pos"] == before["pos"]
    np.testing.assert_array_equal(after["key"], before["key"])


def test_groups_that_a_splitter_does_not_use_are_no_matter():
    assert Wrapped(KFold(3)).draw(RowInfo(np.zeros(6), groups=np.arange(6)), tasks=1, holdout=0, seed=0).tasks == 3


def test_what_scikit_learn_refuses_is_one_line():
    with pytest.raises(InputError, match=r"StratifiedKFold cannot split 4 unsealed rows \(.*n_splits=5"):
        Wrapped(StratifiedKFold(5)).draw(RowInfo(np.array([0, 0, 1, 1]), 2), tasks=1, holdout=0, seed=0)


def test_a_splitter_that_numbers_rows_of_its_own_needs_all_rows():
    splitter = Wrapped(PredefinedSplit(np.arange(20) % 2))
    assert splitter.draw(RowInfo(np.zeros(20)), tasks=1, holdout=0, seed=0).tasks == 2
    for folds, largest in ((np.arange(20) % 2, 19), (np.arange(20) // 18 - 1, 19)):
        with pytest.raises(InputError, match=f"gave row {largest}, but 18 rows are unsealed.*holdout=0"):
            Wrapped(PredefinedSplit(folds)).draw(RowInfo(np.zeros(20)), tasks=1, holdout=0.1, seed=0)
    with pytest.raises(InputError, match="gave row 18, but 18 rows are unsealed"):  # the first row that is not there
        Wrapped(PredefinedSplit(np.arange(19) % 2)).draw(RowInfo(np.zeros(20)), tasks=1, holdout=0.1, seed=0)
