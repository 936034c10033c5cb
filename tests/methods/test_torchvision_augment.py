"""Augmentation by torchvision, with a stand-in for the parts of it that are used; and with itself where it is there."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import kinfold
from kinfold import random
from kinfold.data import from_pixels
from kinfold.errors import InputError
from kinfold.methods import CropFlipCutout, TorchvisionAugment, best_augmentation


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomHorizontalFlip:
    def __call__(self, image):
        return image.flip(-1) if torch.rand(1).item() < 0.5 else image


class RandomAffine:
    def __init__(self, degrees, translate, scale, interpolation):
        assert (interpolation, scale) == ("bilinear", (0.9, 1.1))
        self.translate = translate

    def __call__(self, image):
        return image.roll(int(torch.randint(0, 3, (1,))), dims=-2) if self.translate[0] else image


class RandomErasing:
    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        return torch.zeros_like(image) if torch.rand(1).item() < self.p else image


@pytest.fixture
def v2(monkeypatch):
    module = ModuleType("torchvision.transforms.v2")
    for each in (Compose, RandomHorizontalFlip, RandomAffine, RandomErasing):
        setattr(module, each.__name__, each)
    module.InterpolationMode = SimpleNamespace(BILINEAR="bilinear")
    for name in ("torchvision", "torchvision.transforms"):
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", module)


def test_draws_follow_from_the_key_alone_and_under_vmap(v2, images):
    method, keys = TorchvisionAugment(), torch.stack([random.key("augment", t) for t in range(4)])
    alone = torch.stack([method.batch(images, {}, key).x for key in keys])
    assert torch.equal(alone, torch.stack([method.batch(images, {}, key).x for key in keys]))
    assert torch.equal(torch.vmap(lambda key: method.batch(images, {}, key).x)(keys), alone)
    stacked = images.x.expand(4, *images.x.shape)
    both = torch.vmap(lambda x, key: method.batch(images._replace(x=x), {}, key).x)(stacked, keys)
    assert torch.equal(both, alone)
    assert not torch.equal(alone[0], alone[1])
    erased = (alone == 0).flatten(2).all(2).double().mean()
    assert 0 < erased < 1
    assert torch.equal(TorchvisionAugment(shift=0, flip=False, erase=0).batch(images, {}, keys[0]).x, images.x)


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_it_trains_the_same_on_every_engine(v2, engine):
    pixels = torch.randint(0, 256, (40, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    dataset = from_pixels(pixels, torch.arange(40) % 2)
    arguments = {"tasks": 2, "epochs": 1, "methods": "augment", "precision": "float64", "transfer": "none"}
    result = kinfold.fit({"name": "mlp", "hidden": [4]}, dataset, engine=engine, **arguments)
    assert (result.engine, result.config["methods"]) == (engine, "augment")
    reference = kinfold.fit({"name": "mlp", "hidden": [4]}, dataset, engine="sequential", **arguments)
    torch.testing.assert_close(result.scores.loss_matrix, reference.scores.loss_matrix, rtol=1e-9, atol=1e-12)


def test_the_built_in_set_stands_in(monkeypatch, v2):
    assert best_augmentation() == TorchvisionAugment()
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    assert best_augmentation(padding=2) == CropFlipCutout(padding=2)
    with pytest.raises(InputError, match=r"install it by: pip install 'kinfold\[vision\]', or choose crop_flip_cutout"):
        TorchvisionAugment()


@pytest.mark.parametrize(("name", "value"), [("degrees", 200), ("zoom", 0.95), ("erase", -0.1), ("shift", 1.5)])
def test_shares_are_shares(v2, name, value):
    with pytest.raises(InputError, match=f"augment: {name} is {value}"):
        TorchvisionAugment(**{name: value})


def test_the_package_itself(images):
    try:
        import torchvision.transforms.v2  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported here ({type(error).__name__})")
    found = TorchvisionAugment().batch(images, {}, random.key(0)).x
    assert found.shape == images.x.shape
    assert not torch.equal(found, images.x)
