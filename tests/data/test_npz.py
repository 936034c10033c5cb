import numpy as np
import pytest

from kinfold.data import from_npz
from kinfold.data.npz import npz_features
from kinfold.errors import InputError

X = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    ("features", "targets"), [("X", "y"), ("x", "labels"), ("features", "target"), ("data", "targets")]
)
def test_names_of_the_arrays(tmp_path, features, targets):
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, **{features: X, targets: np.array(["a", "b", "a", "b"])}, groups=[1, 1, 2, 2])
    dataset = from_npz(path)
    assert dataset.name == "rows"
    assert dataset.features.tolist() == X.tolist()
    assert dataset.target.labels == ("a", "b")
    assert dataset.groups.tolist() == [1, 1, 2, 2]
    assert dataset.times is None
    np.testing.assert_array_equal(npz_features(path), X)


def test_features_alone(tmp_path):
    np.savez(tmp_path / "rows.npz", X=X)
    np.testing.assert_array_equal(npz_features(tmp_path / "rows.npz"), X)
    with pytest.raises(InputError, match="no array called y or labels or targets or target; it holds X"):
        from_npz(tmp_path / "rows.npz")


def test_damaged_archives(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, X=X, y=np.arange(4))
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:150] + bytes(200 - each % 100 for each in whole[150:200]) + whole[200:],
        "empty": b"",
        "text": b"a,b\n1,2\n",
    }
    for content in damaged.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as \.npz") as error:
            from_npz(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        from_npz(tmp_path / "absent.npz")


def test_pickled_objects_and_single_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", X=X, y=np.array(["a", 1, None, 2], dtype=object))
    with pytest.raises(InputError, match=r"cannot be read as \.npz of plain arrays"):
        from_npz(tmp_path / "rows.npz")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(InputError, match=r"cannot be read as \.npz of plain arrays"):
        from_npz(tmp_path / "one.npz")
