import pytest
import torch
from torch import nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import SAM
from kinfold.methods.base import ValueAndGrad
from kinfold.methods.gradients import by_autograd

PARAMS = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64), "b": torch.tensor(0.5, dtype=torch.float64)}


def loss(params):
    return (params["w"] ** 4).sum() + 3 * params["b"] ** 2, {}


def gradient(w, b):
    return {"w": 4 * w**3, "b": 6 * b}


@pytest.mark.parametrize("adaptive", [False, True])
def test_by_hand(adaptive):
    value, grads = SAM(0.2, adaptive, eta=0.1).gradients(
        ValueAndGrad(loss, by_autograd, nn.Identity()), PARAMS, {}, random.key(0)
    )
    assert float(value) == 1 + 16 + 0.75  # the loss at θ, not at θ + ε
    g = gradient(**PARAMS)
    t = {name: value.abs() + 0.1 if adaptive else torch.ones_like(value) for name, value in PARAMS.items()}
    norm = (sum((t[name] * g[name]).square().sum() for name in g)) ** 0.5
    near = {name: PARAMS[name] + 0.2 * t[name] ** 2 * g[name] / norm for name in g}
    torch.testing.assert_close(grads, gradient(**near))


def test_the_adaptive_form_does_not_change_with_the_scale_of_layers():
    """f(a, b) = (a b − 1)²: scaling a up and b down moves to the same place in the function."""

    def product(params):
        return (params["a"] * params["b"] - 1).square(), {}

    def reached(scale, adaptive):
        at = {"a": torch.tensor(2.0 * scale), "b": torch.tensor(3.0 / scale)}
        method, step = SAM(0.1, adaptive, eta=0), ValueAndGrad(product, by_autograd, nn.Identity())
        seen = []

        def watching(loss, params):
            seen.append(float(params["a"] * params["b"]))
            return by_autograd(loss, params)

        step = ValueAndGrad(product, watching, nn.Identity())
        method.gradients(step, at, {}, random.key(0))
        return seen[-1]

    assert reached(1.0, True) == pytest.approx(reached(10.0, True), rel=1e-5)
    assert reached(1.0, False) != pytest.approx(reached(10.0, False), rel=1e-2)


def test_a_gradient_of_zero_stays_where_it_is():
    still = {"w": torch.zeros(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    _, grads = SAM().gradients(ValueAndGrad(loss, by_autograd, nn.Identity()), still, {}, random.key(0))
    assert all(bool((grad == 0).all()) for grad in grads.values())


@pytest.mark.parametrize("name", ["rho", "eta"])
def test_arguments_are_checked(name):
    with pytest.raises(InputError, match=f"sam: {name} is -1"):
        SAM(**{name: -1})
