"""Shapes and types are checked over the whole package while it is tested."""

import os
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

from beartype import beartype
from jaxtyping import install_import_hook

_CHECKED = {}


def checked(function):
    """What jaxtyping asks of a type checker: given a signature without a body, a function that checks it.

    It asks twice for each function: to check what comes in, and to check that again with what goes out. Here the second
    checks what goes out alone, by the sizes that the first has noted.

    A function within another is given at every call of that other, and to make its check takes longer than most calls.
    So one that has the same name and annotations as one before it has its check, too.
    """
    returned = function.__annotations__.get("return", Any)
    if returned is not Any:
        function.__annotations__ = {"return": returned}
    elif function.__defaults__ or function.__kwdefaults__:  # a check has them in itself
        return beartype(function)
    names = function.__code__.co_varnames, function.__code__.co_kwonlyargcount
    key = (function.__module__, function.__qualname__, names, *function.__annotations__.items())
    try:
        return _CHECKED[key]
    except KeyError:
        return _CHECKED.setdefault(key, beartype(function))
    except TypeError:  # an annotation that cannot be looked up
        return beartype(function)


install_import_hook("kinfold", f"{__name__}.checked")

import numpy as np
import pandas as pd
import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are small, and pytest-xdist has the other core


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone():
    """Nothing may read or move the global random state of the caller."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was used"


@pytest.fixture
def context():
    """What a method's start is told, of a task with four rows of three classes."""
    from kinfold.methods import Batch, Context
    from kinfold.methods.base import Model

    y = torch.tensor([0, 1, 2, 1])
    module = torch.nn.Module()
    return Context(
        model=Model.of(module),
        rows=torch.arange(4),
        count=4,
        read=lambda rows: Batch(torch.ones(len(rows), 2), y[rows], rows, 3),
        loss=lambda model, batch: torch.zeros(()),
        classes=3,
        periods=2,
        steps=1,
        batch_size=4,
        key=torch.tensor(0),
    )


@pytest.fixture
def measurements():
    """Writes the tables that the documentation speaks of, with and without the column to predict."""

    def write(folder):
        rng = np.random.default_rng(0)
        size = rng.normal(size=80)
        frame = pd.DataFrame(
            {"size": size, "site": rng.choice(["a", "b"], 80), "species": np.where(size > 0, "oak", "ash")}
        )
        for name in ("measurements.csv", "more.csv"):
            frame.to_csv(folder / name, index=False)
        frame.drop(columns="species").to_csv(folder / "new.csv", index=False)

    return write


@pytest.fixture
def belongings(measurements):
    """Writes all that the documentation takes for a reader's own: tables, pictures, modules."""

    def write(folder):
        measurements(folder)
        rng = np.random.default_rng(1)
        a, b, price = rng.normal(size=(3, 80))
        pd.DataFrame({"a": a, "b": b, "y": np.where(a > 0, "high", "low")}).to_csv(folder / "table.csv", index=False)
        reviews = [" ".join(words) for words in rng.choice(["good", "poor", "film", "plot", "the", "music"], (80, 5))]
        stars = ["many" if "good" in review else "few" for review in reviews]
        pd.DataFrame({"review": reviews, "price": price, "stars": stars}).to_csv(folder / "reviews.csv", index=False)
        (folder / "mine.py").write_text(_MINE)
        (folder / "my_package").mkdir()
        (folder / "my_package" / "my_module.py").write_text(_MY_MODULE)
        if find_spec("PIL") is None:
            return
        from PIL import Image

        for name in ("cats", "dogs"):
            (folder / "photos" / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")

    return write


_MINE = """
from torch import nn

import kinfold


def rows():
    return kinfold.data.read("table.csv", target="y")


def net():
    return nn.Linear(2, 2)
"""

_MY_MODULE = """
from torch import nn


def factory():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
