"""The check of shapes and types that all tests run under."""

import sys

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from kinfold.selection.better import better

checked = sys.modules["tests.conftest"].checked
PAIRS = torch.zeros(3, 2)


def test_the_package_is_under_it():
    three, four = torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    with pytest.raises(TypeCheckError, match="parameters of kinfold.selection.better.better"):
        better(three, three, three, four)


@pytest.mark.parametrize(
    ("given", "wrong"), [((PAIRS, 1), "return value"), ((PAIRS[0],), "parameters"), ((PAIRS, "x"), "parameters")]
)
def test_what_comes_in_and_what_goes_out(given, wrong):
    @jaxtyped(typechecker=checked)
    def first(pairs: Float[Tensor, "T 2"], more: int = 0) -> Float[Tensor, " T"]:
        return torch.zeros(len(pairs) + more)

    assert first(PAIRS).shape == (3,)
    with pytest.raises(TypeCheckError, match=wrong):
        first(*given)


def test_a_function_within_another_each_time():
    def outer(kind, result):
        @jaxtyped(typechecker=checked)
        def inner(value: kind, pairs: Float[Tensor, "T 2"]) -> str:
            return result

        return inner

    assert outer(int, "a")(1, PAIRS) + outer(float, "b")(0.5, PAIRS) == "ab"
    for kind, result, value, wrong in [(int, 2, 1, "return"), (int, "a", 0.5, "parameters"), (str, "a", 1, "param")]:
        with pytest.raises(TypeCheckError, match=wrong):
            outer(kind, result)(value, PAIRS)
