import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kinfold
from kinfold.data import read, read_features, read_idx
from kinfold.errors import InputError

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
X = np.random.default_rng(0).integers(0, 256, (12, 8, 9), dtype=np.uint8)
Y = np.arange(12, dtype=np.uint8) % 3


def idx_bytes(array):
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder, images=X, labels=Y, stem="train-", ending=""):
    folder.mkdir(exist_ok=True)
    for what, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        (folder / f"{stem}{what}{ending}").write_bytes(gzip.compress(content) if ending else content)
    return folder / f"{stem}images-idx3-ubyte{ending}"


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from(list(CODES)).map(np.dtype),
        arrays.array_shapes(max_dims=4, max_side=4),
        elements={"allow_nan": False},
    ),
    st.booleans(),
)
def test_every_array_comes_back(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / ("a.idx.gz" if compressed else "a.idx")
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    back = read_idx(path)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_images_find_their_labels(tmp_path, ending):
    path = write(tmp_path / "mnist", ending=ending)
    write(tmp_path / "mnist", X[:3], Y[:3], "t10k-", ending)
    for source in (path, str(path), path.parent):
        dataset = read(source)
        assert (dataset.form, dataset.name, dataset.target.labels) == ("image", "train", (0, 1, 2))
        assert torch.equal(dataset.features[:, 0], torch.from_numpy(X))
        assert dataset.target.values.tolist() == Y.tolist()
        np.testing.assert_array_equal(read_features(source), X)
    test = path.with_name(path.name.replace("train-", "t10k-"))
    assert len(read(test)) == 3
    test.with_name(test.name.replace("images-idx3", "labels-idx1")).unlink()
    np.testing.assert_array_equal(read_features(test), X[:3])  # features need no labels


def test_other_spellings(tmp_path):
    (tmp_path / "emnist-images.idx3-ubyte").write_bytes(idx_bytes(X))
    (tmp_path / "emnist-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(Y)))
    assert read(tmp_path).name == "emnist"  # the only one
    (tmp_path / "emnist-images.idx3-ubyte").rename(tmp_path / "images.idx")
    (tmp_path / "labels.idx").write_bytes(idx_bytes(Y))
    assert len(read(tmp_path / "images.idx")) == 12
    (tmp_path / "my-images-idx.png").write_bytes(b"no idx file, by its name")
    assert len(read(tmp_path)) == 12
    (tmp_path / "other-images.idx").write_bytes(idx_bytes(X))
    with pytest.raises(InputError, match=r"holds images\.idx, other-images\.idx; give one of them"):
        read(tmp_path)


def test_numbers_that_are_no_pixels_are_arrays(tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    dataset = read(write(tmp_path / "set", images=values))
    assert dataset.form == "array"
    np.testing.assert_array_equal(dataset.features, values)


def test_a_file_that_is_not_compressed_is_mapped(tmp_path):
    path = write(tmp_path / "set")
    assert isinstance(read_idx(path).base, np.memmap)


WHOLE = idx_bytes(X)
DAMAGED = {
    "empty": (b"", r"is not an idx file \(it begins with nothing\)"),
    "text": (b"5,0,0,0\n", "is not an idx file"),
    "type": (WHOLE[:2] + b"\x0a" + WHOLE[3:], "is not an idx file"),
    "header": (WHOLE[:9], "is cut short in its header"),
    "cut": (WHOLE[:-1], "is cut short, it has 863 of 864 bytes"),
    "long": (WHOLE + b"\0", "has more than the 864 bytes that its header tells of"),
    "no rows": (idx_bytes(X[:0]), r"holds an array of shape \[0, 8, 9\]"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(tmp_path, case, ending):
    path = write(tmp_path / "set", ending=ending)
    content, message = DAMAGED[case]
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_compression(tmp_path):
    path = write(tmp_path / "set", ending=".gz")
    whole = path.read_bytes()
    for content in (b"", WHOLE, whole[: len(whole) // 2], whole[:30] + b"\0" * 40 + whole[70:], whole[:-8] + b"\0" * 8):
        path.write_bytes(content)
        with pytest.raises(InputError, match="train-images-idx3-ubyte.gz: ") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_small_file_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "set", ending=".gz")
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31)
    path.write_bytes(gzip.compress(header))
    with pytest.raises(InputError, match="claims 9903520314283042199192993792 bytes"):
        read(path)
    path.write_bytes(gzip.compress(WHOLE + bytes(10**6)))  # what is beyond the array is not unpacked
    with pytest.raises(InputError, match="has more than the 864 bytes"):
        read(path)
    path.with_suffix("").write_bytes(header)
    with pytest.raises(InputError, match="is cut short, it has 0 of"):
        read(path.with_suffix(""))
    monkeypatch.setenv("KINFOLD_MAX_BYTES", "100")
    path.write_bytes(gzip.compress(WHOLE))
    assert len(read(path)) == len(X)  # not 20 times its size
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 12, 90, 90) + bytes(12 * 90 * 90)))
    with pytest.raises(InputError, match="claims 97200 bytes; unpack it, or raise KINFOLD_MAX_BYTES"):
        read(path)


def test_labels_that_do_not_fit(tmp_path):
    path = write(tmp_path / "set", labels=Y[:5])
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: holds 5 labels for the 12 rows of train-images"):
        read(path)
    write(tmp_path / "set", labels=X)
    with pytest.raises(InputError, match=r"holds an array of shape \[12, 8, 9\]; labels are one a row"):
        read(path)
    labels = path.with_name("train-labels-idx1-ubyte")
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: is not called"):
        read(labels)
    labels.unlink()
    with pytest.raises(InputError, match=r"has no labels beside it; add train-labels-idx1-ubyte\."):
        read(path)
    with pytest.raises(InputError, match="no such file"):
        read_features(tmp_path / "absent-images-idx3-ubyte")


def test_it_trains_by_its_path_alone(tmp_path):
    y = (np.arange(60) % 2).astype(np.uint8)
    images = np.random.default_rng(0).integers(0, 90, (60, 8, 8), dtype=np.uint8) + y[:, None, None] * 100
    path = write(tmp_path / "set", images=images, labels=y)
    result = kinfold.fit("lenet5", str(path), tasks=2, epochs=3, batch_size=8)
    assert (result.predict(read_features(path)) == y).mean() > 0.9
