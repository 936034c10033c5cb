import sys
from types import ModuleType

import pytest
from torch import nn

from kinfold.errors import InputError
from kinfold.models import factory


def create(name, in_chans, num_classes, pretrained=False):
    if name != "tiny":
        raise RuntimeError(f"Unknown model\n({name})")
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    model.given = (in_chans, pretrained)
    return model


@pytest.fixture
def hubs(monkeypatch):
    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")
    timm.create_model = create
    models.list_models = lambda module: ["tiny"] if module is models else ["tiny", "fcn"]
    models.get_model = lambda name, num_classes, weights=None: create(name, 3, num_classes, weights)
    torchvision.models = models
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("spec", "shape", "given"),
    [
        ("timm:tiny", (1, 8, 8), (1, False)),
        ({"name": "timm:tiny", "pretrained": True}, (3, 8, 8), (3, True)),
        ("torchvision:tiny", (3, 8, 8), (3, None)),
        ({"name": "torchvision:tiny", "weights": "DEFAULT"}, (3, 8, 8), (3, "DEFAULT")),
    ],
)
def test_models_are_sized_to_the_images(hubs, spec, shape, given):
    make = factory(spec, shape, 5, {"vocabulary": 3})
    model = make()
    assert model is not make()
    assert (model[1].out_features, model.given) == (5, given)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("timm:huge", (3, 8, 8), r"model: timm:huge cannot be built \(RuntimeError: Unknown model \(huge\)\)"),
        ({"name": "timm:tiny", "wide": 2}, (3, 8, 8), r"timm:tiny, wide=2 cannot be built \(TypeError"),
        ("timm:tiny", (64,), r"timm:tiny needs images of shape \[channels, height, width\]"),
        ("torchvision:tiny", (1, 8, 8), "needs images of 3 channels, and these have 1"),
        ("torchvision:fcn", (3, 8, 8), "torchvision:fcn is no network that classifies images"),
    ],
)
def test_what_a_hub_cannot_give(hubs, spec, shape, message):
    with pytest.raises(InputError, match=message) as error:
        factory(spec, shape, 5)()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_hub_that_is_not_installed_is_told_before_anything_is_built(monkeypatch, name):
    for module in (name, f"{name}.models"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"model: {name} cannot be imported .*install kinfold\[vision\]"):
        factory(f"{name}:tiny", (3, 8, 8), 5)
