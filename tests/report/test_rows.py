import base64
import struct
import wave
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset

from kinfold.data import from_image_folder, from_recordings, from_series, from_torch, read
from kinfold.data.base import fingerprint
from kinfold.errors import InputError
from kinfold.report.rows import png, rows_to_show

LABELS = np.array(["a", "b", "a", "b"])


def shown(source, row=1, **config):
    dataset = read(source, target=config.get("target"), texts=config.get("texts"))
    return rows_to_show(source, config, fingerprint(dataset, dataset.fingerprints()), [row])[row]


def pixels_of(content: bytes) -> tuple[int, int, bytes]:
    """A PNG's width, height and lines, its checksums checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind], at = body, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return width, height, zlib.decompress(chunks[b"IDAT"])


def test_a_png_holds_its_pixels():
    grey = np.array([[0, 128, 255], [1, 2, 3]], np.uint8)
    assert pixels_of(png(grey)) == (3, 2, b"\0\x00\x80\xff\0\x01\x02\x03")
    colours = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    assert pixels_of(png(colours)) == (4, 1, b"\0" + bytes(range(12)))


def test_pictures_in_memory():
    X = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    uri, width, height = shown((X, LABELS)).image
    assert uri.startswith("data:image/png;base64,")
    assert (width, height) == (6, 5)
    large = np.zeros((4, 400, 300), np.uint8)
    large[0] = 1
    assert max(shown((large, LABELS)).image[1:]) <= 160


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_channels(channels):
    X = np.random.default_rng(0).integers(0, 256, (4, 5, 6, channels)).astype(np.uint8)
    uri, *size = shown((X, LABELS)).image
    assert size == [6, 5]
    _, _, lines = pixels_of(base64.b64decode(uri.split(",")[1]))
    expected = X[1, :, :, :3].reshape(5, -1)
    assert lines == b"".join(b"\0" + line.tobytes() for line in expected)


def test_pictures_in_files(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in "ab":
        (tmp_path / label).mkdir()
        for k in range(2):
            image.new("RGB", (7, 5), (10, 20 * k, 30)).save(tmp_path / label / f"<{k}>.png")
    found = shown(from_image_folder(tmp_path))
    assert found.image[1:] == (7, 5)
    assert found.text == "<1>.png"


def test_texts():
    found = shown((["one two three"] * 3 + ["<b> four five"], LABELS), row=3)
    assert (found.text, found.more) == ("<b> four five", None)
    long = shown((["w " * 400] * 4, LABELS))
    assert (len(long.text), long.more) == (600, "200 more letters")


def test_tables():
    frame = pd.DataFrame({"size": [1.5, 2.25, None, 4.0], "town": ["x", "<y>", "x", "x"], "kind": LABELS})
    assert shown(frame, target="kind").values == (("size", "2.25"), ("town", "<y>"))


def test_a_table_of_one_column_that_was_said_to_hold_no_texts():
    frame = pd.DataFrame({"note": ["a b c d", "e f g h", "i j k l", "m n o p"], "kind": LABELS})
    assert shown(frame, target="kind", texts=[]).values == (("note", "e f g h"),)
    assert shown(frame, target="kind").text == "e f g h"


def test_arrays_by_their_shape():
    rng = np.random.default_rng(0)
    assert shown((rng.random((4, 30)), LABELS)).more == "6 more values"
    assert shown((rng.random((4, 1, 8, 8)), LABELS)).image[1:] == (8, 8)
    assert shown((rng.random((4, 9, 9)), LABELS)).image[1:] == (9, 9)
    assert "<path" in shown((rng.random((4, 2, 40)), LABELS)).chart


def test_series():
    series = [np.arange(10.0, dtype=np.float32)[None] + k for k in range(4)]
    found = shown(from_series([np.repeat(each, 5, axis=0) for each in series], LABELS))
    assert found.chart.count("<path") == 3
    assert found.more == "2 more channels"


def test_recordings(tmp_path):
    paths = []
    for k in range(4):
        paths.append(tmp_path / f"{k}.wav")
        with wave.open(str(paths[-1]), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            tone = 9_000 * np.sin(np.arange(4_000) * (k + 1) / 9)
            file.writeframes(tone.astype("<i2").tobytes())
    found = shown(from_recordings(paths, LABELS))
    assert found.text == "1.wav"
    assert found.image[2] == 64  # bands


class Items(TorchDataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return torch.full((3,), float(row)), row % 2


def test_items_that_stay_where_they_are():
    assert shown(from_torch(Items(), in_memory=False)).values == (("0", "1"), ("1", "1"), ("2", "1"))


def test_other_data_are_refused():
    X = np.random.default_rng(0).random((4, 3))
    dataset = read((X, LABELS))
    known = fingerprint(dataset, dataset.fingerprints())
    for other in ((X[::-1].copy(), LABELS), (X, LABELS[::-1].copy())):
        with pytest.raises(InputError, match=r"rows: arrays is not the data of the run, which were digits, or has"):
            rows_to_show(other, {"data": "digits"}, known, [0])
