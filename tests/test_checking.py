"""The check of shapes and types that all tests run under."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation as WrongParameter
from beartype.roar import BeartypeCallHintReturnViolation as WrongReturn
from jaxtyping import Float, jaxtyped
from torch import Tensor

from kinfold.selection.better import better
from kinfold.selection.ledger import Ledger

PAIRS = torch.zeros(3, 2)


def test_the_package_is_under_it():
    three, four = torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    with pytest.raises(WrongParameter, match=r"selection\.better\.better\(\) parameter loss_b="):
        better(three, three, three, four)


@jaxtyped
def first(pairs: Float[Tensor, "T 2"], more: int = 0) -> Float[Tensor, " T"]:
    return torch.zeros(len(pairs) + more)


@pytest.mark.parametrize(
    ("given", "wrong"), [((PAIRS, 1), WrongReturn), ((PAIRS[0],), WrongParameter), ((PAIRS, "x"), WrongParameter)]
)
def test_what_comes_in_and_what_goes_out(given, wrong):
    @jaxtyped
    def inner(pairs: Float[Tensor, "T 2"], more: int = 0) -> Float[Tensor, " T"]:
        return torch.zeros(len(pairs) + more)

    for function in (first, inner):
        assert function(PAIRS).shape == (3,)
        with pytest.raises(wrong):
            function(*given)


@jaxtyped
def of_each(many: list[Float[Tensor, " T"]], *others: int, last: Float[Tensor, " T"], **names: str) -> str | None:
    return names.get("said", others[0] if others else None)


def test_every_kind_of_argument():
    """Sizes are told in what an annotation holds, too, and are each call's own."""
    one, two = torch.zeros(1), torch.zeros(2)
    for each in (one, two):
        assert of_each([each], last=each) is None
        assert of_each([each], 1, 2, last=each, said="yes") == "yes"
    for given, named in [([two], {"last": one}), ([one], {"last": one, "said": 1}), (one, {"last": one})]:
        with pytest.raises(WrongParameter):
            of_each(given, **named)
    with pytest.raises(WrongParameter):
        of_each([one], "x", last=one)
    with pytest.raises(WrongReturn):
        of_each([one], 1, last=one)
    with pytest.raises(TypeError, match="last"):
        of_each([one])


@jaxtyped
def each_of(pairs: Float[Tensor, "T 2"]) -> Iterator[int]:
    yield from range(len(pairs))


@jaxtyped
class Method:
    @jaxtyped
    def itself(self, other: "Method") -> "Method":
        return other

    @jaxtyped
    def unknown(self, other: "OfNoModule") -> int:
        return other

    @staticmethod
    @jaxtyped
    def twice(value: int) -> int:
        return 2 * value


@jaxtyped
@dataclass(frozen=True)
class Held:
    pairs: Float[Tensor, "T 2"]
    alone: Float[Tensor, " T"]


def test_generators_methods_and_dataclasses():
    assert list(each_of(PAIRS)) == [0, 1, 2]
    assert Method.twice(2) == 4
    method = Method()
    assert method.itself(method) is method
    assert method.unknown(1) == 1  # of such an argument nothing is asked
    assert Held(PAIRS, PAIRS[:, 0]).pairs is PAIRS
    for call in (
        lambda: each_of(PAIRS[0]),
        lambda: Method.twice("x"),
        lambda: method.itself(1),
        lambda: Held(PAIRS, torch.zeros(2)),
        lambda: Ledger(1),
    ):
        with pytest.raises(WrongParameter):
            call()
    with pytest.raises(WrongReturn):
        method.unknown("x")


def test_a_function_within_another_each_time():
    def outer(kind, result):
        @jaxtyped
        def inner(value: kind, pairs: Float[Tensor, "T 2"]) -> str:
            return result

        return inner

    assert outer(int, "a")(1, PAIRS) + outer(float, "b")(0.5, PAIRS) == "ab"
    for kind, result, value, wrong in [
        (int, 2, 1, WrongReturn),
        (int, "a", 0.5, WrongParameter),
        (str, "a", 1, WrongParameter),
        (Float[Tensor, "T 3"], "a", PAIRS, WrongParameter),
    ]:
        with pytest.raises(wrong):
            outer(kind, result)(value, PAIRS)
