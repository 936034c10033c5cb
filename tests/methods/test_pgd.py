import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import AdversarialTraining, Batch, Trainer
from kinfold.methods.base import Model
from kinfold.methods.pgd import Attack, accuracy_under_attack, pgd, reach

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(6, 2, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
KEY = random.key("pgd")
STATE = {"own/low": torch.zeros(2, 1, dtype=torch.float64), "own/high": torch.ones(2, 1, dtype=torch.float64)}


def network():
    with random.seeded(torch.device("cpu"), "attacked"):
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


def by_hand(module, x, y, epsilon, step, steps):
    """The attack of the papers' own code: backward, sign, clip, with ordinary autograd."""
    start = 2 * random.uniform(KEY, x.shape, x.dtype) - 1
    attacked = (x + epsilon * start).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        F.cross_entropy(module(attacked), y).backward()
        attacked = attacked + step * attacked.grad.sign()
        attacked = torch.min(torch.max(attacked, x - epsilon), x + epsilon).clamp(0, 1)
    return attacked.detach()


def test_the_attack_by_hand():
    module = network().eval()
    expected = by_hand(module, X, Y, 0.1, 0.03, 5)
    module.zero_grad()
    bounds = {"low": torch.tensor(0.0, dtype=X.dtype), "high": torch.tensor(1.0, dtype=X.dtype)}
    attacked = pgd(lambda x: F.cross_entropy(module(x), Y), X, KEY, epsilon=0.1, step=0.03, steps=5, **bounds)
    torch.testing.assert_close(attacked, expected)
    assert not attacked.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert (attacked - X).abs().max() <= 0.1 + 1e-12
    batch = Batch(X, Y, torch.arange(6), 3)
    same = Attack(0.1, 5, 0.03).on(Model.of(module.train()), batch, STATE, KEY)
    torch.testing.assert_close(same, expected)  # evaluated, though the network is training


def test_under_vmap_and_inside_a_gradient():
    module = network().eval()
    params = {name: value.detach() for name, value in module.named_parameters()}
    model, keys = Model.of(module), torch.stack([random.key("pgd", t) for t in range(3)])
    method = AdversarialTraining(0.1, steps=3)

    def inner(model, batch):
        return F.cross_entropy(model.evaluating()(batch.x), batch.y)

    def loss(params, x, key):
        own = dataclasses.replace(model, params=params)
        return method.loss(inner, own, Batch(x, Y, torch.arange(6), 3), STATE, key)

    many = {name: torch.stack([value * (1 + t) for t in range(3)]) for name, value in params.items()}
    xs = torch.stack([X, X.flip(0), X / 2])
    grads = torch.vmap(torch.func.grad(loss))(many, xs, keys)
    for t in range(3):
        leaves = {name: value[t].clone().requires_grad_() for name, value in many.items()}
        loss(leaves, xs[t], keys[t]).backward()
        for name, leaf in leaves.items():
            torch.testing.assert_close(grads[name][t], leaf.grad)


def test_labels_that_may_not_be_used_do_not_guide_the_attack():
    model = Model.of(network())
    labelled = torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64)
    batch = Batch(X, Y, torch.arange(6), 3, labelled)
    other = batch._replace(y=torch.where(labelled > 0, Y, (Y + 1) % 3))
    one, two = (Attack(0.1, 2).on(model, b, STATE, KEY) for b in (batch, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, Attack(0.1, 2).on(model, batch._replace(labelled=None), STATE, KEY))


def test_the_range_is_that_of_the_training_rows(context):
    images = torch.stack([torch.full((2, 4, 4), float(i)) + torch.tensor([0.0, 10.0]).view(2, 1, 1) for i in range(4)])
    images[2, 1, 3, 3] = -7.0
    own = dataclasses.replace(
        context, read=lambda rows: Batch(images[rows], rows % 3, rows, 3), rows=torch.tensor([0, 2, 3]), batch_size=1
    )
    found = reach(own)
    assert found["own/low"].flatten().tolist() == [0.0, -7.0]
    assert found["own/high"].flatten().tolist() == [3.0, 13.0]
    assert found["own/low"].shape == (2, 1, 1)
    table = dataclasses.replace(context, read=lambda rows: Batch(images[rows, :, 0, 0], rows % 3, rows, 3))
    assert reach(table)["own/high"].tolist() == [3.0, 13.0]


def test_trained_against_attacks_it_withstands_them():
    """Two features: one that tells surely but by little, one that tells less often but by much."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(2, (400,), generator=generator)
    sign = (2.0 * y - 1).double()
    often = torch.where(torch.rand(400, generator=generator) < 0.9, sign, -sign)
    x = torch.stack([0.05 * sign, often], 1)
    scores = {}
    for name, methods in {"plain": [], "adversarial": [AdversarialTraining(0.3, steps=3)]}.items():
        module = torch.nn.utils.skip_init(nn.Linear, 2, 2).double()
        for p in module.parameters():
            nn.init.zeros_(p)
        optimizer = torch.optim.SGD(module.parameters(), lr=20.0)
        trainer = Trainer(module, optimizer, methods, x, y, batch_size=100)
        for _ in range(20):
            for rows in trainer.batches():
                trainer.step(rows)
        scores[name] = accuracy_under_attack(module, x, y, epsilon=0.3, step=0.1)
    assert scores["plain"] < 0.5
    assert scores["adversarial"] > 0.8


def test_misuse(context):
    for arguments in ({"epsilon": -1}, {"step": -1.0}, {"steps": -1}):
        with pytest.raises(InputError, match="attack: "):
            AdversarialTraining(**arguments)
    with pytest.raises(InputError, match="one tensor of floating-point"):
        reach(dataclasses.replace(context, read=lambda rows: Batch(rows[:, None], rows % 3, rows, 3)))
    with pytest.raises(InputError, match="for classification"):
        reach(dataclasses.replace(context, classes=None))
