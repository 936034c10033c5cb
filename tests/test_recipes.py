import inspect
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.config import resolve
from kinfold.fitting import fit
from kinfold.methods import METHODS
from kinfold.models import factory
from kinfold.parts import OPTIMIZERS, SCHEDULERS
from kinfold.recipes import Recipe, recipe

DOCS = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")

KINDS = ("classification", "regression")
SHAPES = {
    "array": st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    "table": st.tuples(st.integers(1, 200)),
    "image": st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 256), st.integers(1, 256)),
    "series": st.tuples(st.integers(1, 12), st.integers(1, 2_000)),
    "text": st.tuples(st.integers(1, 256)),
}


@pytest.mark.parametrize("form", SHAPES)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_recipe_can_be_followed(form, data):
    import torch

    shape = data.draw(SHAPES[form])
    chosen = recipe(form, data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 10**7)), shape)
    with torch.device("meta"):
        factory(chosen.model, shape, 3, {"vocabulary": 100})()
    resolve("optimizer", chosen.optimizer, OPTIMIZERS, bind=True)
    for method in chosen.methods:
        resolve("methods", method, METHODS)
    assert chosen.scheduler in SCHEDULERS
    assert chosen.batch_size >= 1
    assert 5 <= chosen.epochs <= 200


def test_a_recipe_has_the_names_of_fit():
    names = set(inspect.signature(Recipe).parameters)
    assert names <= set(inspect.signature(fit).parameters)


@pytest.mark.parametrize(
    ("form", "rows", "shape", "model"),
    [
        ("array", 1797, (1, 8, 8), "mlp"),
        ("image", 60_000, (1, 28, 28), "lenet5"),
        ("image", 60_000, (1, 33, 28), "resnet20"),
        ("image", 50_000, (3, 32, 32), "resnet20"),
        ("image", 500, (1, 64, 300), "resnet20"),
        ("image", 500, (3, 128, 160), "resnet18"),
        ("image", 500, (3, 4, 4), "mlp"),
        ("series", 270, (12, 26), "inception-time"),
        ("series", 3601, (1, 500), "fcn"),
        ("text", 5574, (64,), "textcnn"),
        ("table", 1999, (10,), "mlp"),
        ("table", 2000, (10,), "tabular-resnet"),
    ],
)
def test_the_network_goes_by_form_and_size(form, rows, shape, model):
    chosen = recipe(form, "classification", rows, shape)
    assert chosen.model["name"] == model
    assert f"`{model}`" in DOCS


def test_only_pictures_of_the_world_are_shifted_and_mirrored():
    assert recipe("image", "classification", 50_000, (3, 32, 32)).methods == (
        {"name": "crop_flip_cutout", "padding": 4},
    )
    assert recipe("image", "classification", 50_000, (1, 28, 28)).methods == ()
    assert recipe("image", "classification", 500, (1, 64, 300)).methods == ()


def test_small_data_get_more_epochs_and_regression_short_steps():
    few, many = (recipe("table", "classification", rows, (10,)).epochs for rows in (300, 1_000_000))
    assert few > many
    assert recipe("image", "regression", 100, (1, 28, 28)).clip_norm == 1.0
    assert recipe("image", "classification", 100, (1, 28, 28)).clip_norm is None
