import inspect

import pytest

from kinfold.assembling import BY_RECIPE
from kinfold.cli.sources import constant_in, defaults_in
from kinfold.comparing import ARMS, compare
from kinfold.fitting import fit


@pytest.mark.parametrize(("module", "function"), [("kinfold.fitting", fit), ("kinfold.comparing.comparison", compare)])
def test_defaults_are_those_of_the_signature(module, function):
    parameters = inspect.signature(function).parameters.values()
    assert defaults_in(module, function.__name__) == {p.name: p.default for p in parameters if p.default is not p.empty}


def test_constants_are_those_of_the_module():
    assert constant_in("kinfold.assembling", "BY_RECIPE") == BY_RECIPE
    assert constant_in("kinfold.comparing.comparison", "ARMS") == ARMS  # one of them is imported there
    with pytest.raises(LookupError, match="no constant NOTHING"):
        constant_in("kinfold.assembling", "NOTHING")
