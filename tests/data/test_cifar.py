import json

import numpy as np
import pytest
import torch
from PIL import Image

import kinfold
from kinfold.data import read, read_features
from kinfold.data.cifar import read_pictures
from kinfold.errors import InputError

X = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
Y = np.arange(20) % 10
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def binary(folder, name="data_batch_1.bin", rows=slice(None), before=None):
    folder.mkdir(exist_ok=True)
    labels = Y[rows, None].astype(np.uint8)
    before = labels if before is None else np.concatenate([before, labels], axis=1)
    records = np.concatenate([before, X[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)], axis=1).astype(np.uint8)
    (folder / name).write_bytes(records.tobytes())
    return folder / name


def pictures(folder):
    folder.mkdir(exist_ok=True)
    for name, rows in (("data_batch_1", slice(0, 12)), ("data_batch_2", slice(12, 20)), ("test_batch", slice(0, 5))):
        Image.fromarray(X[rows].reshape(-1, 1024, 3)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(Y.tolist()))
    (folder / "test_lables.json").write_text(json.dumps(Y[:5].tolist()))
    return folder


def same(features, rows=slice(None)):
    return torch.equal(features, torch.from_numpy(X[rows]).movedim(-1, 1))


def test_binary_batches(tmp_path):
    folder = tmp_path / "cifar"
    path = binary(folder, "data_batch_1.bin", slice(0, 12))
    binary(folder, "data_batch_2.bin", slice(12, 20))
    binary(folder, "test_batch.bin", slice(0, 10))
    whole = read(folder)
    assert (whole.form, whole.name, whole.target.labels) == ("image", "cifar", tuple(range(10)))
    assert same(whole.features)
    assert whole.target.values.tolist() == Y.tolist()
    assert np.array_equal(read_features(folder), X.transpose(0, 3, 1, 2))
    assert same(read(path).features, slice(0, 12))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    assert read(folder).target.labels == tuple(NAMES)
    assert len(read(folder / "test_batch.bin", labels=NAMES)) == 10


def test_batches_count_as_numbers(tmp_path):
    for number in range(1, 11):
        binary(tmp_path, f"data_batch_{number}.bin", slice(2 * number - 2, 2 * number))
    assert same(read(tmp_path).features)  # and not 1, 10, 2 …
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match=r"has no data_batch_3\.bin beside the others"):
        read(tmp_path)


def test_a_hundred_classes(tmp_path):
    coarse = np.full((20, 1), 7, dtype=np.uint8)
    binary(tmp_path, "train.bin", before=coarse)
    binary(tmp_path, "test.bin", slice(0, 10), coarse[:10])
    for source, rows in ((tmp_path, slice(None)), (tmp_path / "test.bin", slice(0, 10))):
        dataset = read(source)
        assert same(dataset.features, rows)
        assert dataset.target.values.tolist() == Y[rows].tolist()


def test_pictures(tmp_path):
    folder = pictures(tmp_path / "cifar")
    assert np.array_equal(read_pictures([folder / "data_batch_2.png", folder / "test_batch.png"])[:8], X[12:])
    whole = read(folder)
    assert same(whole.features)
    assert whole.target.values.tolist() == Y.tolist()
    assert len(read_features(folder)) == 20
    test = read(folder / "test_batch.png", labels=tuple(range(10)))
    assert same(test.features, slice(0, 5))
    assert len(read_features(folder / "test_batch.png")) == 5
    (folder / "train_lables.json").rename(folder / "train_labels.json")
    assert len(read(folder)) == 20
    with pytest.raises(InputError, match=r"data_batch_1\.png: is one batch of several; give the folder"):
        read(folder / "data_batch_1.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (bytes(3072), r"has 3072 bytes, and CIFAR's rows are 3073 each; it is cut short or no CIFAR batch"),
        (bytes(3073) + b"\x0a" + bytes(3072), "row 1 has the label 10, and there are 10 classes"),
    ],
)
def test_damaged_batches(tmp_path, content, message):
    path = binary(tmp_path)
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(InputError, match=message) as error:
            read(source)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_damaged_folders(tmp_path):
    path = binary(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: names 2 classes, and there are 10"):
        read(path)
    (tmp_path / "batches.meta.txt").unlink()
    binary(tmp_path, "data_batch_1b.bin")
    with pytest.raises(InputError, match=r"data_batch_1b\.bin: is not called data_batch_ and a number"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"absent\.bin: no such file"):
        read(tmp_path / "absent.bin")


LABELS = {
    "text": ("no json", "cannot be read as JSON"),
    "object": ('{"a": 1}', "holds no list, and there are 20 images"),
    "short": (json.dumps([1] * 19), "holds 19 labels, and there are 20 images"),
    "large": (json.dumps([0] * 19 + [10]), "row 19 has the label 10; labels are 0 to 9"),
    "name": (json.dumps(["cat"] + [0] * 19), 'row 0 has the label "cat"'),
}


@pytest.mark.parametrize("case", LABELS)
def test_mislabelled_pictures(tmp_path, case):
    folder = pictures(tmp_path)
    content, message = LABELS[case]
    (folder / "train_lables.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read(folder)
    assert "train_lables.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_pictures(tmp_path):
    folder = pictures(tmp_path)
    path = folder / "data_batch_2.png"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"data_batch_2\.png: cannot be read as a picture") as error:
            read(folder)
        assert "\n" not in str(error.value)
    Image.fromarray(X[0]).save(path)
    with pytest.raises(InputError, match=r"data_batch_2\.png: is 32 pixels wide; a CIFAR batch is 1024"):
        read(folder)


def test_it_trains_by_its_path_alone(tmp_path):
    for number in range(1, 4):
        binary(tmp_path, f"data_batch_{number}.bin")
    result = kinfold.fit({"name": "mlp", "hidden": [4]}, tmp_path, tasks=2, epochs=1)
    assert result.predict(read_features(tmp_path)).shape == (60,)
