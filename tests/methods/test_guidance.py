import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, Guidance, Trainer
from kinfold.methods.base import Model
from kinfold.methods.chain import Chain, Network
from kinfold.methods.gradients import by_autograd
from kinfold.methods.guidance import layer_pairs, linear_cka
from kinfold.methods.model import forward

X = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def network():
    with random.seeded(torch.device("cpu"), "guided"):
        layers = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3)]
        return nn.Sequential(*layers).double()


def guide():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))


def cka_by_hand(x, y):
    """With both Gram matrices and the centring matrix written out."""
    x, y, n = x.flatten(1), y.flatten(1), len(x)
    H = torch.eye(n, dtype=x.dtype) - 1 / n
    K, L = H @ x @ x.T @ H, H @ y @ y.T @ H
    return torch.trace(K @ L) / (torch.trace(K @ K) * torch.trace(L @ L)).sqrt()


def test_cka_against_its_definition():
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + X.flatten(1)[:, :3]
    torch.testing.assert_close(linear_cka(X, y), cka_by_hand(X, y))
    torch.testing.assert_close(linear_cka(1e-12 * X, 1e9 * y + 4.0), cka_by_hand(X, y))
    torch.testing.assert_close(linear_cka(X.float(), y), cka_by_hand(X, y).float())
    one, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    linear_cka(one, y).backward()
    cka_by_hand(other, y).backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_a_constant_representation_is_like_none():
    x = torch.ones(4, 2, requires_grad=True)
    value = linear_cka(x, torch.eye(4))
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros(4, 2))


def test_pairs_are_spread_over_depth_and_the_last_of_several_counts():
    with random.seeded(torch.device("cpu"), "pairs"):
        deep, shallow = (nn.Sequential(*[nn.Linear(2, 2) for _ in range(n)]) for n in (8, 4))
    assert layer_pairs(deep, shallow) == {"0": "0", "3": "1", "6": "2"}
    assert layer_pairs(shallow, deep) == {"0": "1", "1": "4", "2": "6"}
    with pytest.raises(InputError, match="the guide has no linear layer"):
        layer_pairs(deep, shallow[3:])


@pytest.mark.parametrize("pairs", [None, {"4": "0"}])
def test_the_loss_and_its_gradient(pairs):
    method = Guidance(guide, pairs, weight=0.7, seed=3)
    module = network().train()
    given = ({n: v.detach() for n, v in module.named_parameters()}, {}, dict(module.named_buffers()))
    batch = Batch(X, Y, torch.arange(7), 3)

    def inner(model, batch):
        return F.cross_entropy(model(batch.x), batch.y)

    net = Network(module, lambda *tensors: forward(module, *tensors))
    value, grads, after = Chain([method]).value_and_grad(net, inner, by_autograd, *given, batch, [{}], random.key(0))
    before = module[2].running_mean.clone()
    theirs = method.network.tapped(X, ["0", "3"])[1]
    h1 = module[1](X.flatten(1))
    h2 = module[4](F.relu(module[2](h1)))
    far = (1 - cka_by_hand(h1, theirs["0"])) + (1 - cka_by_hand(h2, theirs["3"])) if pairs is None else None
    far = 1 - cka_by_hand(h2, theirs["0"]) if far is None else far
    expected = F.cross_entropy(module[5](h2), Y) + 0.7 * far
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, msg=name)
    # Batch norm saw one pass, though the loss without guidance was asked for after the layers.
    torch.testing.assert_close(after["2.running_mean"], module[2].running_mean)
    assert not torch.equal(before, module[2].running_mean)


def test_a_model_that_is_asked_another_thing_passes_it():
    """Other rows, other parameters, evaluation: what was kept is of none of these."""
    method, module = Guidance(guide, weight=0.0), network().train()
    model = Model.of(module)
    asked = {}

    def inner(model, batch):
        asked["same"] = model(batch.x)
        asked["rows"] = model.aside()(batch.x + 1.0)
        asked["mode"] = model.evaluating()(batch.x)
        asked["params"] = model.with_params({"5.bias": model.params["5.bias"] + 1.0})(batch.x)
        return asked["same"].sum()

    method.loss(inner, model, Batch(X, Y, torch.arange(7), 3), {}, random.key(0))
    plain = Model.of(module)
    torch.testing.assert_close(asked["same"], plain.aside()(X))
    torch.testing.assert_close(asked["rows"], plain.aside()(X + 1.0))
    torch.testing.assert_close(asked["params"], plain.aside()(X) + 1.0)
    assert not torch.allclose(asked["mode"], asked["same"])


def test_a_plain_loop_comes_nearer_to_the_guide():
    module = network()
    method = Guidance(guide, {"4": "3"}, weight=5.0)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.1), [method], X, Y, batch_size=7)
    before = linear_cka(Model.of(module).tapped(X, ["4"])[1]["4"], method.network.tapped(X, ["3"])[1]["3"])
    for _ in range(40):
        trainer.step(torch.arange(7))
    after = linear_cka(Model.of(module).tapped(X, ["4"])[1]["4"], method.network.tapped(X, ["3"])[1]["3"])
    assert after > before + 0.05


def test_misuse(context):
    with pytest.raises(InputError, match="guidance: weight is -1"):
        Guidance(guide, weight=-1)
    with pytest.raises(InputError, match="no layer '9'; it has 0, 1"):
        Guidance(guide, {"1": "9"})
    with pytest.raises(InputError, match="no layer '1'"):
        Guidance(guide, {"1": "0"}).start({}, context)
