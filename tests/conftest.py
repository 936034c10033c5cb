"""Shapes and types are checked over the whole package while it is tested."""

import functools
import inspect
import os
from dataclasses import is_dataclass
from importlib.util import find_spec
from types import FunctionType, SimpleNamespace
from typing import Any, ForwardRef, Literal, get_args, get_origin, get_type_hints

os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping
from beartype import beartype

_SIZES = jaxtyping.jaxtyped("context")  # within it a name of a size stands for one size
_CHECKS = {}


def jaxtyped(given=None, *, typechecker=None):
    """Stands in for jaxtyping's decorator, which its import hook gives to every function and dataclass of the package.

    It checks the same in a small part of the time. jaxtyping's own binds the arguments of every call to the signature,
    to have them for a message; it checks them once more with the result; it keeps sizes also for what has none; and a
    function within another, which is made at every call of that other, has its checks made anew each time.
    """
    if given is None:
        return jaxtyped
    if isinstance(given, type):
        if is_dataclass(given) and type(vars(given).get("__init__")) is FunctionType:
            given.__init__ = jaxtyped(given.__init__)
        return given
    hints = given.__annotations__
    if hasattr(given, "__wrapped__") or all(hint is Any for hint in hints.values()):
        return given
    parts = [part for hint in hints.values() for part in _parts(hint)]
    by_name = any(isinstance(part, str | ForwardRef) for part in parts)
    if "<locals>" in given.__qualname__ or by_name or inspect.isgeneratorfunction(given):
        checks = []

        @functools.wraps(given)
        def apart(*args, **kwargs):
            if not checks:  # by now there are the classes that are named
                checks.extend(_checks(given))
            comes_in, goes_out = checks
            with _SIZES:
                comes_in(*args, **kwargs)
                return goes_out(given(*args, **kwargs))

        return apart
    whole = beartype(given)
    if given.__name__ != "__init__" and not any(hasattr(part, "dim_str") for part in parts):
        return whole

    @functools.wraps(given)
    def function(*args, **kwargs):
        if hasattr(function, "__no_type_check__"):  # which a constructor may be told after it is made
            return given(*args, **kwargs)
        with _SIZES:
            return whole(*args, **kwargs)

    return function


def _checks(function):
    """What takes the arguments that a function takes, and what takes its result, and checks them.

    Functions that have their code, annotations and defaults in common share them.
    """
    defaults = *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()
    key = (function.__code__, *((name, _spelled(hint)) for name, hint in function.__annotations__.items()), *defaults)
    try:
        if all(value is None or type(value) in (bool, int, float, str) for value in defaults):
            return _CHECKS[key]
    except KeyError:
        return _CHECKS.setdefault(key, _made(function))
    except TypeError:  # an annotation that cannot be looked up
        pass
    return _made(function)


def _made(function):
    hints = {name: _meant(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    returned = hints.pop("return", Any)
    parameters = [
        one.replace(annotation=one.empty, default=one.default if one.default is one.empty else None)
        for one in inspect.signature(function).parameters.values()
    ]
    scope = {}
    exec(f"def comes_in{inspect.Signature(parameters)}: pass\ndef goes_out(result): return result", scope)
    comes_in, goes_out = scope["comes_in"], scope["goes_out"]
    comes_in.__defaults__, comes_in.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    comes_in.__annotations__, goes_out.__annotations__ = hints, {"return": returned}
    for one in (comes_in, goes_out):
        one.__module__, one.__name__, one.__qualname__ = function.__module__, function.__name__, function.__qualname__
    return beartype(comes_in), beartype(goes_out)


def _meant(hint, names):
    """The annotation with what it has as a string; anything, where that is imported for type checkers alone."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), names, include_extras=True)["hint"]
    except NameError:
        return Any


def _parts(hint):
    """An annotation and all that it is made of."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in hint if isinstance(hint, list) else get_args(hint):
            yield from _parts(part)


def _spelled(hint):
    """The annotation, such that equal ones are equal: jaxtyping's are a new class each time."""
    if isinstance(hint, list):
        return tuple(map(_spelled, hint))
    if hasattr(hint, "dim_str"):
        return hint.dtype, hint.array_type, hint.dim_str
    return (get_origin(hint), *map(_spelled, get_args(hint))) if get_args(hint) else hint


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("kinfold", None)

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
