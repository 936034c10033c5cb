"""What a method is given to work with: models that can be looked into, and losses with more than one gradient."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, FrozenNetwork, Method
from kinfold.methods.base import Model, State, ValueAndGrad, linear_layers, straight_through
from kinfold.methods.chain import Chain, Network
from kinfold.methods.gradients import by_autograd
from kinfold.methods.model import forward


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network():
    with random.seeded(torch.device("cpu"), "seam"):
        module = nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(3 * 3 * 4, 4),
        )
    return module.double()


X = rows(5, 2, 6, 6)
Y = torch.tensor([0, 1, 2, 3, 1])


def parts(module):
    return {n: v.detach() for n, v in module.named_parameters()}, dict(module.named_buffers())


def chain_of(*methods):
    module = network()
    params, buffers = parts(module)
    chain, states = Chain(methods), [method.first for method in methods]

    def inner(model, batch):
        return F.cross_entropy(model(batch.x), batch.y)

    def run(differentiate=by_autograd):
        return chain.value_and_grad(
            Network(module, lambda *given: forward(module, *given)),
            *(inner, differentiate, params, {}, buffers, Batch(X, Y, torch.arange(5), 4), states, random.key(0)),
        )

    return module, params, run


def test_tapped_gives_what_layers_gave():
    module = network().eval()
    output, inside = Model.of(module).evaluating().tapped(X, ["0", "1", "2"])
    assert torch.equal(output, module(X))
    assert torch.equal(inside["0"], module[0](X))
    assert torch.equal(inside["1"], module[1](module[0](X)))  # before the layer after it worked in place
    assert not any(layer._forward_hooks for layer in module.modules())
    with pytest.raises(InputError, match="no layer '7'; it has 0, 1"):
        Model.of(module).tapped(X, ["7"])


def test_only_the_model_itself_moves_statistics():
    module = network().train()
    model, before = Model.of(module), module[1].running_mean.clone()
    moved = model(X)
    assert not torch.equal(model.passed.buffers["1.running_mean"], before)
    after = model.passed.buffers["1.running_mean"].clone()
    assert torch.equal(model.aside()(X), moved)
    assert torch.equal(model.with_params({})(X), moved)
    assert not torch.allclose(model.evaluating()(X), moved)
    assert torch.equal(model.passed.buffers["1.running_mean"], after)
    assert torch.equal(module[1].running_mean, before)
    assert module[1].track_running_stats
    assert all(layer.training for layer in module.modules())


def test_other_parameters():
    module = network()
    other = {"4.bias": torch.ones(4, dtype=torch.float64)}
    model = Model.of(module)
    expected = model.aside()(X) - module[4].bias + 1.0
    torch.testing.assert_close(model.with_params(other)(X), expected.detach())


def test_mean_inputs_and_output_gradients_against_unfolding():
    module, params, _ = chain_of()
    _, buffers = parts(module)

    def loss(at):
        return Chain([]).loss(
            Network(module, lambda *given: forward(module, *given)),
            lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
            *(at, {}, buffers, Batch(X, Y, torch.arange(5), 4), [], random.key(0)),
        )

    value, grads, means = ValueAndGrad(loss, by_autograd, module).layers(params, ["0", "4"])
    plain, same, _ = by_autograd(loss, params)
    assert torch.equal(value, plain)
    torch.testing.assert_close(grads, same)
    # The layers' biases are added where the virtual ones are, so that their gradients are the same.
    torch.testing.assert_close(means["0"].output_grads, same["0.bias"])
    torch.testing.assert_close(means["4"].output_grads, same["4.bias"])
    patches = F.unfold(F.pad(X, (0, 0, 1, 1)), (3, 2), dilation=(1, 2), stride=(2, 1))
    torch.testing.assert_close(means["0"].inputs, patches.mean((0, 2)))
    hidden = Model.of(module).aside().tapped(X, ["3"])[1]["3"]
    torch.testing.assert_close(means["4"].inputs, hidden.mean(0))
    assert list(linear_layers(module)) == ["0", "4"]
    with pytest.raises(InputError, match="'1' is no linear layer"):
        ValueAndGrad(loss, by_autograd, module).layers(params, ["1"])


class Zeroth(Method):
    """Forward differences of the last bias."""

    first: ClassVar[State] = {}

    def gradients(self, value_and_grad, params, state, key):
        many = params["4.bias"] + 1e-6 * torch.eye(4, dtype=torch.float64)
        at = value_and_grad.value(params, keep=True)
        losses = value_and_grad.values(params, {"4.bias": many}, chunk=3)
        grads = {name: torch.zeros_like(value) for name, value in params.items()}
        return at, grads | {"4.bias": (losses - at) / 1e-6}


def test_losses_at_many_parameters_at_once():
    module, _, plain = chain_of()
    value, grads, passed = plain()
    zeroth, found, also = chain_of(Zeroth())[2]()
    torch.testing.assert_close(zeroth, value)
    torch.testing.assert_close(found["4.bias"], grads["4.bias"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(also, passed)  # statistics went on by one pass, in spite of five
    assert not torch.equal(passed["1.running_mean"], module[1].running_mean)


class Counts(Method):
    """New state from the loss and from the gradients."""

    first: ClassVar[State] = {"seen": torch.tensor(3.0), "norm": torch.tensor(0.0)}

    def loss(self, inner, model, batch, state, key):
        return inner(model, batch), {"seen": state["seen"] + len(batch.y)}

    def gradients(self, value_and_grad, params, state, key):
        value, grads = value_and_grad(params)
        return value, grads, {"norm": grads["4.bias"].norm()}


def test_state_from_the_loss_and_the_gradients():
    _, grads, passed = chain_of(Nothing(), Counts())[2]()
    assert passed["/1/seen"] == 8
    assert passed["/1/norm"] == grads["4.bias"].norm()


class Nothing(Method):
    first: ClassVar[State] = {}


class Steps(Method):
    """The last bias as the forward pass sees it is one of two trainable points."""

    first: ClassVar[State] = {
        "train/points": torch.tensor([-0.5, 0.25], dtype=torch.float64),
        "grad/points": torch.zeros(2, dtype=torch.float64),
    }

    def weights(self, params, state):
        points = state["train/points"]
        nearest = (params["4.bias"][:, None] - points.detach()).abs().argmin(1)
        return params | {"4.bias": points[nearest] + straight_through(torch.zeros(4).double(), params["4.bias"])}


def test_trainable_state_gets_its_gradient():
    _, params, run = chain_of(Steps())
    _, grads, passed = run()
    assert set(grads) == set(params)
    nearest = (params["4.bias"][:, None] - Steps.first["train/points"]).abs().argmin(1)
    by_hand = torch.stack([grads["4.bias"][nearest == j].sum() for j in range(2)])
    torch.testing.assert_close(passed["/0/grad/points"], by_hand)

    def by_func(loss, at):
        found, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(at)
        return value, found, after

    torch.testing.assert_close(run(by_func), run())


class Halves(Method):
    """Sees half the weights forward, and twice them backward."""

    first: ClassVar[State] = {}

    def weights(self, params, state):
        return {name: straight_through(value / 2, value) for name, value in params.items()}

    def backward_weights(self, params, state):
        return {"4.weight": 2 * params["4.weight"], "0.weight": 2 * params["0.weight"]}


def test_weights_of_the_two_passes_by_hand():
    module, params, run = chain_of(Halves())
    value, grads, _ = run()
    half = {name: value / 2 for name, value in params.items()}
    plain = Model(module, lambda *given: forward(module, *given), half, {}, Model.of(module).passed)
    output, inside = plain.tapped(X, ["2", "3"])
    assert torch.equal(value, F.cross_entropy(output, Y))
    g = torch.autograd.functional.jacobian(lambda o: F.cross_entropy(o, Y), output)
    torch.testing.assert_close(grads["4.weight"], g.T @ inside["3"])  # dense, straight through
    torch.testing.assert_close(grads["4.bias"], g.sum(0))
    # Back to the layers before by other weights: the gradient to the batch norm's shift is a sum of that.
    back = (g @ (2 * params["4.weight"])).reshape(inside["2"].shape) * (inside["2"] > 0)
    torch.testing.assert_close(grads["1.bias"], back.sum((0, 2, 3)))


def test_weights_of_the_two_passes_under_vmap():
    _, _, run = chain_of(Halves())

    def by_func(loss, at):
        found, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(at)
        return value, found, after

    torch.testing.assert_close(run(by_func), run())


def test_straight_through_is_exact():
    x = rows(50).requires_grad_()
    through = straight_through(x.round() / 3, x)
    assert torch.equal(through, x.round() / 3)
    through.sum().backward()
    assert torch.equal(x.grad, torch.ones(50, dtype=torch.float64))


def test_a_frozen_network_is_the_same_wherever_it_is_called():
    made = [FrozenNetwork(lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout()), seed=seed) for seed in (1, 1, 2)]
    x = rows(4, 3)
    one, same, other = (network(x) for network in made)
    assert one.dtype == torch.float64
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    leaf = x.clone().requires_grad_()
    made[0](leaf).sum().backward()  # gradients go through to the rows, and none to the network
    assert leaf.grad is not None
    assert not any(p.requires_grad for p in made[0].parameters())
    assert torch.equal(made[0].tapped(x, ["0"])[1]["0"], one)
