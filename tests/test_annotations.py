from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kinfold.annotations import misfit, parameters_of, schema_of, takes_names, words

ANNOTATIONS = [
    int,
    float | int,
    bool,
    str | None,
    Literal["copy", "blend"],
    Literal["auto"] | int,
    tuple[float | torch.Tensor, float | torch.Tensor],
    tuple[Literal["a", "b"], ...],
    Sequence[int],
    list[int] | None,
    dict[str, int] | str,
    Path,
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from(["a", "copy", "auto", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("annotation", ANNOTATIONS)
@settings(max_examples=40, deadline=None)
@given(value=VALUES)
def test_what_fits_is_what_the_schema_says(annotation, value):
    """What is refused when a run starts is what an editor marks."""
    schema = schema_of(annotation)
    whole = isinstance(value, float) and value.is_integer()  # to JSON schema, 1.0 is a whole number
    if not whole and "1.0" not in repr(value) and "2.0" not in repr(value) and "0.0" not in repr(value):
        assert (misfit("key", schema, value) is None) == jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "annotation", [Any, nn.Module, torch.Tensor | None, Callable[[int], int], type[nn.Module], Any | int]
)
def test_of_other_classes_nothing_is_said(annotation):
    assert schema_of(annotation) == {}
    assert misfit("key", schema_of(annotation), [object()]) is None
    assert words(schema_of(annotation)) == "anything"


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (float | int, "fast", "key: is 'fast'; give a number."),
        (int, True, "key: is True; give a whole number."),
        (tuple[float, float], [1.0], "key: is [1.0]; give a list of 2: a number, a number."),
        (tuple[float, float], [1.0, "b"], "key[1]: is 'b'; give a number."),
        (tuple[Literal["copy", "blend"], ...], ["copi"], "key[0]: unknown name 'copi', did you mean 'copy'? Known: "),
        (Literal["auto"] | int | None, 0.5, "key: is 0.5; give a whole number, auto or null."),
        (Literal[1, 2], 3, "key: is 3; give 1 or 2."),
        (list[int] | None, ["x"], "key[0]: is 'x'; give a whole number."),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(annotation, value, message):
    assert str(misfit("key", schema_of(annotation), value)).startswith(message)


def test_numbers_of_numpy_are_numbers():
    assert misfit("key", schema_of(int), np.int64(3)) is None
    assert misfit("key", schema_of(float), np.float32(3)) is None


def test_annotations_that_cannot_be_evaluated_say_nothing():
    def maker(a: "Absent", b: int = 1):
        return a, b

    parameters = parameters_of(maker)
    assert schema_of(parameters["a"].annotation) == {}
    assert parameters_of(type) is None
    assert takes_names("Callable[[int], Absent] | None")
    assert not takes_names("str")
