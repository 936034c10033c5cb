import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kinfold.cli import main
from kinfold.data import hubs, pictures, read, read_features
from kinfold.errors import InputError

PIXELS = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)


class Items:
    """What torchvision's sets have in common: a length, (picture, label) items, and files that may not be there."""

    def __init__(self, root, train=True, transform=None, download=False):
        self.here = sys.modules["torchvision.datasets"].here
        if download:
            self.here.add(root)
        if root not in self.here:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.pixels = PIXELS if train else PIXELS[:4]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, row):
        return self.pixels[row], row % 2


class Divided(Items):
    def __init__(self, root, split="train", download=False):
        assert split in ("train", "test")
        super().__init__(root, split == "train", download=download)


class Uneven(Items):
    def __getitem__(self, row):
        return self.pixels[row][: 8 - row], row


class Whole(Items):
    def __init__(self, root, download=False):
        raise AssertionError("must not be made")


class Offline(Items):
    def __init__(self, root, train=True, download=False):
        raise OSError("no\nnetwork")


class Wanting(Items):
    def __init__(self, root, more, train=True, download=False):
        raise AssertionError("must not be made")


@pytest.fixture
def torchvision(tmp_path, monkeypatch):
    module = ModuleType("torchvision.datasets")
    module.here = set()
    for each in (Items, Divided, Uneven, Whole, Offline, Wanting):
        setattr(module, each.__name__, each)
    module.__all__ = ("Items", "Divided", "Uneven", "Whole", "Offline", "Wanting")
    package = ModuleType("torchvision")
    package.datasets = module
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    monkeypatch.setenv("KINFOLD_DATA", str(tmp_path))


@pytest.mark.parametrize("name", ["Items", "Divided"])
def test_torchvision(torchvision, tmp_path, name, capsys):
    with pytest.raises(InputError, match=f"torchvision:{name}:test is not here yet; .* kinfold data get torchvision:"):
        read(f"torchvision:{name}:test")
    assert main(["data", "get", f"torchvision:{name}"]) == 0
    assert f"torchvision:{name}: fetched; the terms are those of its makers" in capsys.readouterr().out
    assert sys.modules["torchvision.datasets"].here == {str(tmp_path / "torchvision")}
    train, test = read(f"torchvision:{name}"), read(f"torchvision:{name}:test")
    assert (train.form, len(train), len(test), train.target.values.tolist()) == ("image", 6, 4, [0, 1] * 3)
    assert train.fit(np.arange(6)).input_shape == (3, 8, 8)
    np.testing.assert_array_equal(read_features(f"torchvision:{name}:test"), PIXELS[:4])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Itms", "data: torchvision: unknown name 'Itms', did you mean 'Items'"),
        ("Uneven", r"row 1 has shape \[7, 8, 3\] where row 0 has \[8, 8, 3\]"),
        ("Whole", "is not divided into training and test part"),
        ("Wanting", "cannot be made by name alone"),
        ("Offline", r"torchvision:Offline could not be fetched \(OSError: no network\)"),
    ],
)
def test_bad_torchvision_sets_are_one_line(torchvision, name, message):
    sys.modules["torchvision.datasets"].here.add(str(hubs.cache_root() / "torchvision"))
    with pytest.raises(InputError, match=message) as error:
        hubs.get_hub(f"torchvision:{name}") if name == "Offline" else read(f"torchvision:{name}")
    assert "\n" not in str(error.value)


def test_absurd_sizes_are_refused(torchvision, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    hubs.get_hub("torchvision:Items")
    with pytest.raises(InputError, match="6 pictures like row 0 exceed"):
        read("torchvision:Items")


@pytest.mark.parametrize(("name", "extra"), [("torchvision:CIFAR10", "vision"), ("hf:mnist", "huggingface")])
def test_hubs_that_are_not_installed_are_one_line(monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for function in (read, hubs.get_hub):
        with pytest.raises(InputError, match=rf"{name} needs \w+; install kinfold\[{extra}\]"):
            function(name)


def test_a_hub_that_does_not_import_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\nis missing')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InputError, match="torchvision.datasets cannot be imported .*nms is missing"):
        read("torchvision:CIFAR10")


class Image:
    def __init__(self, mode=None, decode=True):
        self.mode, self.decode = mode, decode


class ClassLabel:
    names = ("cat", "dog")


class Rows:
    """A part of a set of `datasets`: features by column, columns, rows, a table."""

    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __getitem__(self, key):
        if key == slice(None):
            return {
                name: SimpleNamespace(to_pylist=lambda values=values: values) for name, values in self.columns.items()
            }
        return self.columns[key]

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __iter__(self):
        return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))

    @property
    def data(self):
        """Of Arrow, what is looked at: sound, and with all its pictures."""
        return SimpleNamespace(
            table=SimpleNamespace(validate=lambda full: None), column=lambda name: SimpleNamespace(chunks=[])
        )

    def with_format(self, form):
        return self

    def cast_column(self, column, feature):
        """With pictures as they are kept, in files' bytes."""
        assert not feature.decode
        return Rows(
            self.features, {**self.columns, column: [{"path": None, "bytes": png(p)} for p in self.columns[column]]}
        )

    def select_columns(self, names):
        return Rows(self.features, {name: self.columns[name] for name in names})

    def to_pandas(self):
        return pd.DataFrame(self.columns)


def png(pixels):
    from PIL.Image import fromarray

    file = io.BytesIO()
    fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Parts(dict):
    def save_to_disk(self, folder):
        sys.modules["datasets"].saved[folder.rpartition("/")[-1]] = self


LABELS = [0, 1, 0, 1]
HF = {
    "me/pictures": Parts(train=Rows({"i": Image(), "l": ClassLabel()}, {"i": list(PIXELS[:4]), "l": LABELS})),
    "texts": Parts(
        train=Rows({"t": str, "l": ClassLabel()}, {"t": [f"a few words, and {k} more" for k in range(4)], "l": LABELS})
    ),
    "numbers": Parts(
        train=Rows({"x": float, "y": str}, {"x": [1.0, 2.0, 3.0, 4.0], "y": ["u", "v", "u", "v"]}),
        validation=None,
    ),
    "unlabelled": Parts(train=Rows({"x": float, "l": ClassLabel()}, {"x": [1.0, 2.0], "l": [0, -1]})),
}


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = ModuleType("datasets")
    module.Image, module.ClassLabel, module.saved = Image, ClassLabel, {}
    module.Dataset, module.DatasetDict = Rows, Parts
    module.load_dataset = lambda name: HF[name]
    module.load_from_disk = lambda folder: module.saved["fresh"]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setenv("KINFOLD_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "form", "labels", "target"),
    [
        ("me/pictures", "image", ("cat", "dog"), None),
        ("texts", "text", ("cat", "dog"), None),
        ("numbers", "table", ("u", "v"), "y"),
    ],
)
def test_hugging_face(datasets, name, form, labels, target):
    with pytest.raises(InputError, match=f"hf:{name} is not here yet; fetch it with: kinfold data get hf:{name}"):
        read(f"hf:{name}")
    assert hubs.get_hub(f"hf:{name}")
    assert not hubs.get_hub(f"hf:{name}:test")
    dataset = read(f"hf:{name}", target=target)
    assert (dataset.form, len(dataset), dataset.target.labels) == (form, 4, labels)
    assert dataset.target.values.tolist() == LABELS
    assert [path.name for path in (datasets / "hf").iterdir()] == [name.replace("/", "%2F")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numbers:test", "has no part 'test'; it has train, validation"),
        ("numbers", "target: name the column"),
        ("unlabelled", "row 1 has no label"),
    ],
)
def test_bad_hugging_face_sets_are_one_line(datasets, name, message):
    hubs.get_hub(f"hf:{name}")
    with pytest.raises(InputError, match=message):
        read(f"hf:{name}")


def test_hugging_face_offline_leaves_nothing(datasets, capsys):
    assert main(["data", "get", "hf:absent"]) == 2
    err = capsys.readouterr().err
    assert "hf:absent could not be fetched (KeyError: 'absent'); check the name and the network" in err
    assert not list((datasets / "hf").iterdir())


def test_a_damaged_copy_is_one_line(datasets, monkeypatch):
    def damaged(folder):
        raise ValueError("not\narrow")

    hubs.get_hub("hf:texts")
    monkeypatch.setattr(sys.modules["datasets"], "load_from_disk", damaged)
    with pytest.raises(InputError, match=r"hf/texts is damaged \(ValueError: not arrow\); remove it"):
        read("hf:texts")
