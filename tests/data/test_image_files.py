import json
import multiprocessing
import struct
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import kinfold
from kinfold.cli import main
from kinfold.data import from_image_folder, read, read_features, streamed
from kinfold.data import image_files as files
from kinfold.data.image_files import FilePixels, HeldPixels, ImageFiles
from kinfold.data.images import image_features
from kinfold.errors import InputError

COLOURS = {"blue": (40, 60, 200), "green": (60, 190, 60), "red": (200, 50, 40)}


def noise(height=8, width=8, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three classes of 30 pictures, told apart by their colour."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(30):
            values = np.clip(np.array(colour) + rng.normal(0, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
            save(tmp_path / "photos" / name / f"{number:02}.png", values)
    return tmp_path / "photos"


@pytest.fixture
def cli(capsys):
    def call(*argv):
        capsys.readouterr()
        status = main([str(each) for each in argv])
        return status, *capsys.readouterr()

    return call


def test_a_folder_has_a_class_for_each_sub_folder(photos):
    save(photos / "red" / "more" / "deep.PNG", noise())
    (photos / "red" / "notes.txt").write_text("passed over")
    (photos / ".cache").mkdir()
    (photos / "red" / ".hidden.png").write_text("passed over")
    dataset = read(photos)
    assert (dataset.form, dataset.name, len(dataset)) == ("image", "photos", 91)
    assert dataset.target.labels == ("blue", "green", "red")
    names = [str(path.relative_to(photos)) for path in dataset.features.paths]
    assert names == sorted(names)
    assert names[-1] == "red/more/deep.PNG"
    assert dataset.target.values.bincount().tolist() == [30, 30, 31]
    encoder = dataset.fit(np.arange(60))
    assert encoder.input_shape == (3, 8, 8)
    expected = np.asarray(Image.open(photos / "green" / "07.png")).transpose(2, 0, 1) / 255
    mean, std = (np.array(each)[:, None, None] for each in (encoder.mean, encoder.std))
    row = encoder.encode(dataset.features).rows(torch.tensor(37))
    np.testing.assert_allclose(row, (expected - mean) / std, atol=1e-5)


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_a_folder_trains_by_its_path_alone(photos, engine):
    model = {"name": "mlp", "hidden": [8]}
    result = kinfold.fit(model, "photos", tasks=2, epochs=4, batch_size=8, engine=engine)
    assert result.estimate.value > 0.7
    assert set(result.predict(read_features("photos"))) == set(COLOURS)


def test_the_command_line_trains_evaluates_and_predicts(photos, cli):
    model = "{name: mlp, hidden: [8]}"
    status, _, err = cli("train", "photos", "--model", model, "--tasks", 2, "--epochs", 10, "--out", "run")
    assert status == 0, err
    assert cli("evaluate", "run", "photos", "--json")[0] == 0
    flat = [save(photos.parent / "new" / f"{seed}.png", noise(12, 9, seed=seed)) for seed in range(3)]
    status, _, err = cli("predict", "run", "new", "--out", "new.csv")
    assert status == 0, err
    predicted = pd.read_csv("new.csv")
    assert len(predicted) == 3
    assert list(predicted.columns) == ["row", "file", "prediction", *(f"probability_{name}" for name in COLOURS)]
    assert list(predicted.file) == [f"new/{seed}.png" for seed in range(3)]
    assert cli("predict", "run", flat[1], "--out", "one.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv("one.csv").iloc[0, 3:].astype(float), predicted.iloc[1, 3:].astype(float))
    assert cli("predict", "run", "photos", "--out", "all.csv")[0] == 0
    assert (pd.read_csv("all.csv")["prediction"].to_numpy() == np.repeat(list(COLOURS), 30)).mean() > 0.8


def test_a_table_of_paths(photos, cli):
    rows = [(f"photos/{name}/{number:02}.png", name, number) for number in range(30) for name in COLOURS]
    pd.DataFrame(rows, columns=["file", "colour", "series"]).to_csv("list.csv", index=False)
    pd.DataFrame(rows, columns=["file", "colour", "series"]).to_parquet("list.parquet")
    for source in ("list.csv", photos.parent / "list.parquet"):
        dataset = read(source, target="colour", groups="series")
        assert (dataset.form, dataset.name, dataset.target.name) == ("image", "list", "colour")
        assert dataset.features.paths[2] == dataset.features.paths[2].parent / "00.png"
        assert dataset.groups.tolist() == [row[2] for row in rows]
    frame = pd.read_csv("list.csv")  # relative to the working directory
    assert read((frame[["file"]], frame["colour"])).form == "image"
    assert read(frame, target="colour").form == "table"  # two features: the path and a number
    model = "{name: mlp, hidden: [8]}"
    flags = ("--target", "colour", "--groups", "series", "--tasks", 2, "--epochs", 2)
    status, _, err = cli("train", "list.csv", "--model", model, "--out", "run", *flags)
    assert status == 0, err
    assert cli("evaluate", "run", "list.csv", "--json")[0] == 0  # other columns are passed over
    assert cli("predict", "run", "list.csv", "--out", "a.csv")[0] == 0
    assert cli("predict", "run", "photos", "--out", "b.csv")[0] == 0
    a, b = pd.read_csv("a.csv"), pd.read_csv("b.csv")
    np.testing.assert_allclose(a["probability_red"][2::3], b["probability_red"][60:], rtol=1e-6)
    frame[["colour"]].to_csv("without.csv", index=False)
    status, _, err = cli("predict", "run", "without.csv", "--out", "c.csv")
    assert (status, "has no column 'file', which the model was trained on" in err) == (2, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("photos/red/99.png", r"list\.csv: column 'file', row 1 names 'photos/red/99\.png', and there is no file"),
        ("photos/red", r"row 1 names 'photos/red', and there is no file"),
        ("notes.txt", r"notes\.txt: cannot be read as a picture"),
        ("", r"column 'file', row 1 holds nan; give the path of a file"),
    ],
)
def test_a_wrong_entry_among_paths_is_named(photos, entry, message):
    (photos.parent / "notes.txt").write_text("no picture")
    entries = ["photos/red/00.png", entry, "photos/blue/00.png", "photos/blue/01.png"]
    pd.DataFrame({"file": entries, "y": list("aabb")}).to_csv("list.csv", index=False)
    with pytest.raises(InputError, match=message) as error:
        read("list.csv", target="y")
    assert "\n" not in str(error.value)


def test_a_model_of_arrays_takes_no_table(photos):
    encoder = kinfold.data.from_pixels(noise(8, 8, 8), [0, 1] * 4).fit(np.arange(8))
    with pytest.raises(InputError, match="is a table, and the model was trained on images"):
        encoder.encode(pd.DataFrame({"file": ["photos/red/00.png"]}))
    assert len(encoder.encode(image_features(photos))) == 90  # brought to its one channel of 8 by 8
    four = kinfold.data.from_pixels(noise(8, 8, 8)[..., None].repeat(4, 3), [0, 1] * 4).fit(np.arange(8))
    with pytest.raises(InputError, match="trained on images of 4 channels"):
        four.encode(image_features(photos))


def damage(path, whole):
    return {
        "empty": (b"", "the file is empty"),
        "text": (b"no picture at all", "UnidentifiedImageError"),
        "cut": (whole[: len(whole) * 2 // 3], "cannot be read as a picture"),
        "header": (whole[:20], "cannot be read as a picture"),
    }


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"])
@pytest.mark.parametrize("case", ["empty", "text", "cut", "header"])
def test_damaged_pictures_are_named(tmp_path, ending, case):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(tmp_path / name, noise(32, 32))
    path = save(tmp_path / "b" / f"bad.{ending}", noise(32, 32))
    assert len(read(tmp_path).fingerprints()) == 4
    content, message = damage(path, path.read_bytes())[case]
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"b/bad\.{ending}: cannot be read as a picture") as error:
        read(tmp_path).fingerprints()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_picture_stops_a_run_before_it_begins(photos, cli):
    bad = photos / "green" / "03.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    status, out, err = cli("train", "photos", "--tasks", 2, "--epochs", 1, "--out", "run")
    assert (status, out) == (2, "")
    assert err.startswith("kinfold: photos/green/03.png: cannot be read as a picture")
    assert err.count("\n") == 1
    assert not (photos.parent / "run").exists()


@pytest.mark.parametrize("case", ["empty", "stray", "one", "parts", "bare", "no class"])
def test_folders_that_are_no_data(tmp_path, case):
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name, noise())
    if case == "empty":
        (tmp_path / "c").mkdir()
        message = f"{tmp_path / 'c'}: holds no file ending"
    elif case == "stray":
        save(tmp_path / "x.png", noise())
        message = f"{tmp_path / 'x.png'}: lies outside any class"
    elif case == "one":
        (tmp_path / "b" / "1.png").unlink()
        (tmp_path / "b").rmdir()
        message = "has sub-folders for ['a']; give one for each of two or more"
    elif case == "parts":
        (tmp_path / "a").rename(tmp_path / "test")
        (tmp_path / "b").rename(tmp_path / "Train")
        message = f"holds the parts Train, test and not classes; give {tmp_path / 'Train'}."
    elif case == "bare":
        for name in ("a/1.png", "b/1.png"):
            (tmp_path / name).unlink()
        message = f"the folder {tmp_path} holds nothing that is known; give one that holds"
    else:
        message = f"{tmp_path / 'b'}: names a class that is not known; the labels are a, c."
    with pytest.raises(InputError) as error:
        read(tmp_path, labels=("a", "c") if case == "no class" else None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_class_is_enough_to_evaluate(tmp_path):
    save(tmp_path / "b" / "1.png", noise())
    assert read(tmp_path, labels=("a", "b")).target.values.tolist() == [1]


def test_one_picture_is_no_training_set(tmp_path):
    with pytest.raises(InputError, match=r"1\.png is one picture; give a folder"):
        read(save(tmp_path / "1.png", noise()))
    with pytest.raises(InputError, match=r"absent\.png: no such file"):
        read_features(tmp_path / "absent.png")


def test_a_link_that_leads_up_is_followed_once(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name, noise())
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    assert len(read(tmp_path)) == 2


def test_channels_are_decided_over_all(tmp_path):
    grey = save(tmp_path / "1.png", noise(channels=1))
    colour = save(tmp_path / "2.png", noise())
    assert ImageFiles([grey]).shape == (1, 8, 8)
    assert ImageFiles([grey, colour]).shape == (3, 8, 8)
    index = torch.tensor([0])
    planes = ImageFiles([grey, colour]).pixels((3, 8, 8)).take(index)[0]
    assert torch.equal(planes, torch.from_numpy(noise(channels=1)).expand(3, 8, 8))
    expected = np.asarray(Image.open(colour).convert("L"))
    assert np.array_equal(ImageFiles([colour]).pixels((1, 8, 8)).take(index)[0, 0], expected)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_modes(tmp_path, mode):
    path = tmp_path / ("1.tif" if mode == "CMYK" else "1.png")
    Image.fromarray(noise()).convert(mode).save(path)
    taken = ImageFiles([path]).pixels((3, 8, 8)).take(torch.tensor([0]))[0]
    expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(taken, expected)
    assert ImageFiles([path]).shape[0] == (1 if mode in ("1", "LA") else 3)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    values = np.array([[0, 255, 256], [511, 40_000, 65_535]], dtype=np.uint16)
    path = save(tmp_path / "1.png", values)
    assert ImageFiles([path]).pixels((1, 2, 3)).take(torch.tensor([0])).tolist() == [[[[0, 0, 1], [1, 156, 255]]]]
    path = save(tmp_path / "1.tif", values.astype(np.float32))
    with pytest.raises(InputError, match=r"1\.tif: cannot be read.*more than 16 bits"):
        ImageFiles([path]).pixels((1, 2, 3))


def test_pictures_are_turned_upright(tmp_path):
    values = np.repeat(noise(16, 8, seed=1), 2, axis=1)[:, :8]
    paths = []
    for orientation in (1, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = {1: values, 6: np.rot90(values, 1), 8: np.rot90(values, -1)}[orientation]
        paths.append(save(tmp_path / f"{orientation}.png", np.ascontiguousarray(turned), exif=exif))
    images = ImageFiles(paths)
    assert images.shape == (3, 16, 8)
    taken = images.pixels(images.shape).take(torch.arange(3))
    for each in taken:
        assert np.array_equal(each, values.transpose(2, 0, 1))


def test_sizes(tmp_path):
    sizes = [(10, 20), (12, 20), (30, 26)]
    paths = [save(tmp_path / f"{number}.png", noise(*size)) for number, size in enumerate(sizes)]
    assert ImageFiles(paths[:1]).shape == (3, 10, 20)
    assert ImageFiles(paths).shape == (3, 12, 20)  # the medians
    assert ImageFiles(paths, size=(7, 9)).shape == (3, 7, 9)
    large = save(tmp_path / "large.png", noise(300, 600))
    assert ImageFiles([large]).shape == (3, 112, 224)
    pixels = ImageFiles(paths).pixels((3, 12, 20))
    assert np.array_equal(pixels.take(torch.tensor(1)), noise(12, 20).transpose(2, 0, 1))  # its own size: untouched
    expected = Image.open(paths[2]).resize((20, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels.take(torch.tensor(2)), np.asarray(expected).transpose(2, 0, 1))
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / "set" / name, noise())
    assert from_image_folder(tmp_path / "set", size=(5, 6)).fit(np.arange(2)).input_shape == (3, 5, 6)


def test_a_large_jpeg_is_decoded_in_part_and_alike(tmp_path):
    smooth = np.linspace(0, 255, 512, dtype=np.uint8)[None, :, None].repeat(256, 0).repeat(3, 2)
    path = save(tmp_path / "1.jpg", smooth, quality=95)
    taken = ImageFiles([path], size=(16, 32)).pixels((3, 16, 32)).take(torch.tensor(0))
    expected = np.asarray(Image.open(path).resize((32, 16), Image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.abs(taken.numpy().astype(int) - expected).max() <= 4


def test_files_that_do_not_fit_in_memory_are_decoded_as_needed(photos, monkeypatch):
    held = read(photos)
    hashes, encoder = held.fingerprints(), held.fit(np.arange(50))
    assert isinstance(held.features.pixels((3, 8, 8)), HeldPixels)
    monkeypatch.setattr(files, "HELD_BYTES", 10 * 3 * 8 * 8)
    lazy = read(photos)
    assert isinstance(lazy.features.pixels((3, 8, 8)), FilePixels)
    assert np.array_equal(lazy.fingerprints(), hashes)
    assert lazy.fit(np.arange(50)) == encoder
    index = torch.tensor([[3, 80, 3], [7, 3, 81]])
    expected = encoder.encode(held.features).rows(index)
    inputs = encoder.encode(lazy.features).to(torch.device("cpu"), torch.float32)
    decoded = []
    original = ImageFiles.decode
    monkeypatch.setattr(
        ImageFiles, "decode", lambda self, row, shape: decoded.append(row) or original(self, row, shape)
    )
    assert torch.equal(inputs.rows(index), expected)
    assert sorted(decoded) == [3, 7, 80, 81]  # each once for all of a batch
    assert torch.equal(inputs.rows(torch.tensor(80)), expected[0, 1])
    (photos / "blue" / "05.png").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"blue/05\.png: cannot be read"):
        inputs.rows(torch.tensor([5]))
    model = {"name": "mlp", "hidden": [4]}
    with pytest.raises(InputError, match=r"blue/05\.png: cannot be read"):
        kinfold.fit(model, lazy, tasks=2, epochs=1)


@pytest.mark.parametrize("engine", ["sequential", "vectorised", "workers"])
def test_pictures_that_are_read_as_needed_train_like_those_in_memory(photos, monkeypatch, engine):
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 4)
    given = {"tasks": 3, "epochs": 3, "batch_size": 8, "engine": engine, "precision": "float64", "transfer": "amto"}
    model = {"name": "mlp", "hidden": [8], "dropout": 0.2}
    held, read = (
        kinfold.fit(model, from_image_folder(photos, in_memory=in_memory, num_workers=2), **given)
        for in_memory in (True, False)
    )
    for name, value in held.model.state_dict().items():
        assert torch.equal(value, read.model.state_dict()[name])
    assert torch.equal(held.scores.loss_matrix, read.scores.loss_matrix)
    assert held.estimate == read.estimate
    assert np.array_equal(held.predict(read_features(photos)), read.predict(read_features(photos)))
    assert not multiprocessing.active_children()


def bomb(width, height):
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8192, 8193), (10_000, 10_000), (60_000, 60_000)])
def test_pictures_that_claim_too_much_are_refused(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(width, height))
    with pytest.raises(InputError, match=r"bomb\.png: (has \d+ × \d+ pixels|cannot be read)") as error:
        ImageFiles([path])
    assert "\n" not in str(error.value)


def test_without_pillow_it_says_what_to_install(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"data: pictures need Pillow; install kinfold\[images\]"):
        read(photos)


def test_the_encoder_survives_json(photos):
    dataset = read(photos)
    encoder = dataset.fit(np.arange(40))
    again = kinfold.data.encoder_from_spec(json.loads(json.dumps(encoder.spec())))
    assert again == encoder


@pytest.mark.parametrize(("in_memory", "kind"), [(None, FilePixels), (False, FilePixels), (True, None)])
def test_pictures_that_do_not_fit_stay_in_their_files(photos, monkeypatch, in_memory, kind):
    paths = sorted(photos.rglob("*.png"))
    size = 3 * 8 * 8 * len(paths)
    for name in ("kinfold.data.image_files.free_bytes", "kinfold.processes.free_bytes"):
        monkeypatch.setattr(name, lambda: size - 1.0)
    pictures = ImageFiles(paths, in_memory=in_memory)
    if kind is None:
        with pytest.raises(InputError, match="90 pictures take at least .*in_memory=False"):
            pictures.pixels((3, 8, 8))
    else:
        assert isinstance(pictures.pixels((3, 8, 8)), kind)
    monkeypatch.undo()
    assert isinstance(ImageFiles(paths).pixels((3, 8, 8)), HeldPixels)
