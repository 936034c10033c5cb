import json
import resource
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kinfold
from kinfold.data import encoder_from_spec, from_pixels, read
from kinfold.data import image_files as files_module
from kinfold.data.images import images_or_arrays
from kinfold.errors import InputError

CPU = torch.device("cpu")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "axes"), [((6, 5, 4), (0, 1, 2)), ((6, 5, 7, 3), (0, 3, 1, 2)), ((6, 3, 5, 7), (0, 1, 2, 3))]
)
def test_layouts_become_channels_first_and_standard(shape, axes):
    X = draw(*shape)
    planes = X.transpose(axes).astype(np.float64) / 255
    planes = planes[:, None] if planes.ndim == 3 else planes
    for source in (X, torch.from_numpy(X)):
        dataset = from_pixels(source, [0, 1, 0, 1, 0, 1])
        assert (dataset.form, dataset.features.dtype) == ("image", torch.uint8)
        encoder = dataset.fit(np.arange(4))
        assert encoder.input_shape == planes.shape[1:]
        mean, std = planes[:4].mean((0, 2, 3)), planes[:4].std((0, 2, 3))
        np.testing.assert_allclose(encoder.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(encoder.std, std, rtol=1e-12)
        expected = (planes - mean[:, None, None]) / std[:, None, None]
        inputs = encoder.encode(source).to(CPU, torch.float64)
        index = torch.tensor([[0, 5], [3, 3]])
        rows = inputs.rows(index)
        assert rows.is_contiguous()
        np.testing.assert_allclose(rows.numpy(), expected[index.numpy()], rtol=1e-12, atol=1e-12)
        single = encoder.encode(source).rows(index)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single.numpy(), expected[index.numpy()], atol=1e-5)
        assert inputs.rows(torch.tensor(2)).shape == planes.shape[1:]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_only_the_given_rows_are_learned_from(values):
    X = np.array(values, dtype=np.uint8).reshape(4, 1, 1)
    encoder = from_pixels(X, [0, 1, 0, 1]).fit(np.array([0, 2]))
    known = X[[0, 2]] / 255
    assert encoder.mean[0] == pytest.approx(known.mean())
    assert encoder.std[0] == pytest.approx(known.std() or 1.0)


def test_the_spec_is_json_and_exact():
    dataset = from_pixels(draw(5, 3, 4, 3), ["a", "b", "a", "b", "a"])
    encoder = dataset.fit(np.array([0, 3, 4]))
    again = encoder_from_spec(json.loads(json.dumps(encoder.spec())))
    assert again == encoder
    index = torch.arange(5)
    assert torch.equal(again.encode(dataset.features).rows(index), encoder.encode(dataset.features).rows(index))


def test_a_constant_channel_is_centred_only():
    X = np.full((3, 2, 2), 17, dtype=np.uint8)
    encoder = from_pixels(X, [0, 1, 0]).fit(np.arange(3))
    assert encoder.std == (1.0,)
    assert encoder.encode(X).rows(torch.arange(3)).abs().max() < 1e-6


def test_memory_is_shared_where_it_can_be():
    X = draw(4, 6, 6, 3)
    dataset = from_pixels(X, [0, 1, 0, 1])
    assert dataset.features.data_ptr() == X.ctypes.data
    for other in (X[::-1], np.broadcast_to(X[0], X.shape)):  # which torch could not share
        assert torch.equal(from_pixels(other, [0, 1, 0, 1]).features, torch.from_numpy(other.copy()).movedim(-1, 1))


def test_fingerprints_are_of_pixels():
    X = draw(4, 5, 5, 3)
    X[3] = X[1]
    hashes = from_pixels(X, [0, 1, 0, 1]).fingerprints()
    assert hashes[3] == hashes[1]
    assert len(set(hashes.tolist())) == 3
    assert np.array_equal(from_pixels(X.transpose(0, 3, 1, 2), [0, 1, 0, 1]).fingerprints(), hashes)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((4, 5, 5)), "X: holds float64 where images are needed; give an array of uint8"),
        ([[[1]]], "X: holds list where images are needed"),
        (draw(4, 5), r"X: has shape \[4, 5\]; give images as"),
        (draw(4, 5, 5, 2), "of 1, 3 or 4 channels"),
        (draw(4, 0, 5), "one image of one pixel at least"),
        (draw(3, 5, 5), "y: has 4 targets for 3 images"),
        (np.broadcast_to(np.uint8(0), (4, 2**14, 2**14)), "at most 67108864 pixels"),
    ],
)
def test_what_are_no_images(X, message, monkeypatch):
    monkeypatch.setattr(
        "kinfold.data.images._shared", lambda array: torch.zeros(1, dtype=torch.uint8).expand(array.shape)
    )
    with pytest.raises(InputError, match=message) as error:
        from_pixels(X, [0, 1, 0, 1])
    assert "\n" not in str(error.value)


def test_new_images_must_fit():
    encoder = from_pixels(draw(4, 5, 6), [0, 1, 0, 1]).fit(np.arange(4))
    assert len(encoder.encode(draw(2, 5, 6, 1))) == 2
    with pytest.raises(InputError, match=r"images have shape \[3, 5, 6\].*give images of shape \[1, 5, 6\]"):
        encoder.encode(draw(2, 5, 6, 3))
    with pytest.raises(InputError, match="holds float32 where images are needed"):
        encoder.encode(np.zeros((2, 5, 6), dtype=np.float32))


def test_arrays_of_uint8_and_an_images_shape_are_images(tmp_path):
    y = [0, 1, 0, 1]
    for shape, form in (((4, 5, 5), "image"), ((4, 5, 5, 3), "image"), ((4, 25), "array"), ((4, 5, 5, 2), "array")):
        X = draw(*shape)
        assert images_or_arrays(X, y).form == form
        assert read((X, y)).form == read((torch.from_numpy(X), y)).form == form
        assert images_or_arrays(X.astype(np.float32), y).form == "array"
        np.savez(tmp_path / "rows.npz", X=X, y=y, groups=y)
        dataset = read(tmp_path / "rows.npz")
        assert (dataset.form, dataset.groups.tolist()) == (form, y)


def test_npy_files_are_mapped(tmp_path):
    X, y = draw(6, 8, 8), np.array([0, 1, 0, 1, 0, 1])
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "times.npy", np.arange(6))
    for source in (tmp_path, tmp_path / "X.npy"):
        dataset = read(source)
        assert (dataset.form, dataset.name, dataset.times.tolist()) == ("image", tmp_path.name, list(range(6)))
        assert torch.equal(dataset.features[:, 0], torch.from_numpy(X))
    np.save(tmp_path / "other.npy", X[:2])
    assert torch.equal(kinfold.data.read_features(tmp_path / "other.npy"), torch.from_numpy(X[:2]))
    with pytest.raises(InputError, match=r"other\.npy: has no targets; call it X\.npy"):
        read(tmp_path / "other.npy")
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    np.save(tmp_path / "X.npy", rows)
    assert torch.equal(read(tmp_path).features, torch.from_numpy(rows))
    np.save(tmp_path / "X.npy", rows.astype(">f8"))
    np.testing.assert_allclose(read(tmp_path).features, rows)
    (tmp_path / "y.npy").unlink()
    with pytest.raises(InputError, match=r"X\.npy: has no targets; put y\.npy beside it"):
        read(tmp_path)


def test_damaged_npy_files(tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, draw(6, 8, 8))
    np.save(tmp_path / "y.npy", np.arange(6))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-1], whole[:60], whole[:6] + b"\x09" + whole[7:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"X\.npy: cannot be read as \.npy") as error:
            read(path)
        assert "\n" not in str(error.value)
    np.save(path, np.array([None, 1], dtype=object))
    with pytest.raises(InputError, match="cannot be read as .npy"):
        read(path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.npy")


def test_arrow_tables_and_streams(tmp_path):
    import pyarrow as pa
    from pyarrow import feather, ipc

    table = pa.table({"x": [1.0, 2.0, 3.0], "y": ["a", "b", "a"]})
    feather.write_feather(table, tmp_path / "rows.feather")
    with ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    with ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.feather", "rows.arrow", "stream.arrow"):
        assert read(tmp_path / name, target="y").target.labels == ("a", "b")
        whole = (tmp_path / name).read_bytes()
        for content in (b"", b"text", whole[: len(whole) // 2]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match="cannot be read as Arrow") as error:
                read(tmp_path / name, target="y")
            assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is counted in another unit")
def test_sixty_thousand_images_stay_small():
    """The largest set that must fit: what is gathered is converted, and nothing else."""
    X = np.zeros((60_000, 28, 28), dtype=np.uint8)
    X[::2, 5:20, 5:20] = 200
    dataset = from_pixels(X, np.arange(60_000) % 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset.fingerprints()
    inputs = dataset.fit(np.arange(54_000)).encode(dataset.features).to(CPU, torch.float32)
    for start in range(0, 60_000, 4 * 512):
        inputs.rows(torch.arange(start, min(start + 4 * 512, 60_000)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 250_000  # KiB; the rows as float32 would be 184,000, twice that with a copy
    assert inputs.rows(torch.tensor([0])).data_ptr() != dataset.features.data_ptr()


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_arrays_of_pixels_train(engine):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.integers(0, 80, (60, 8, 8, 3), dtype=np.uint8) + (y[:, None, None, None] * 120).astype(np.uint8)
    result = kinfold.fit(
        {"name": "mlp", "hidden": [8]}, (X, y), tasks=2, epochs=3, batch_size=8, engine=engine, precision="float64"
    )
    assert (result.predict(X) == y).mean() > 0.9
    assert files_module.HELD_BYTES == 2**30
