import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import MTARD, AdversarialTraining, Batch, Trainer
from kinfold.methods.base import Model
from kinfold.methods.chain import Chain
from kinfold.methods.mtard import Losses, balanced, divergence

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def linear(seed):
    with random.seeded(torch.device("cpu"), "mtard", seed):
        return nn.Linear(4, 3).double()


def kl(teacher, student):
    p = teacher.softmax(1)
    return (p * (p / student.softmax(1)).log()).sum(1)


def test_divergence_by_hand():
    one, other = linear(0)(X).detach(), linear(1)(X).detach()
    torch.testing.assert_close(divergence(one, other), kl(one, other).mean())
    counts = torch.arange(6.0, dtype=torch.float64)
    torch.testing.assert_close(divergence(one, other, counts), (kl(one, other) * counts).sum() / 15)


def test_weights_by_the_authors_rule():
    """Stepped as their loop does, for four batches."""
    robust, clean = [2.0, 1.0, 1.5, 0.2], [1.0, 0.9, 0.8, 0.7]
    for beta in (1.0, 0.5):
        expected, weight = 0.5, torch.tensor(0.5, dtype=torch.float64)
        for r, c in zip(robust, clean, strict=True):
            rate_r, rate_c = (r / robust[0]) ** beta, (c / clean[0]) ** beta
            expected = expected - 0.025 * (expected - rate_c / (rate_r + rate_c))
            now, first = (Losses(*map(torch.tensor, pair)) for pair in ((r, c), (robust[0], clean[0])))
            weight = balanced(weight, now, first, beta=beta)
        torch.testing.assert_close(float(weight), expected)
    assert weight > 0.5  # the robust loss fell further, so the clean one counts more


def test_two_steps_by_hand():
    method = MTARD(linear(1), linear(2), epsilon=0.1, steps=2, eta=0.3)
    module = linear(3)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.5), [method], X, Y, batch_size=6)
    assert trainer.states[0]["clean_weight"] == 0.5
    weight, first = 0.5, None
    for _ in range(2):
        mirror = linear(3)
        mirror.load_state_dict(module.state_dict())
        key = random.fold_in(random.fold_in(random.fold_in(random.key(0, "method", 0), 1), trainer._steps), 1)
        batch = Batch(X, Y, torch.arange(6), 3)
        attacked = method._attack().on(Model.of(mirror), batch, trainer.states[0], key)
        losses = kl(linear(1)(attacked), mirror(attacked)).mean(), kl(linear(2)(X), mirror(X)).mean()
        first = first or [float(loss.detach()) for loss in losses]
        robust, clean = (float(loss.detach()) / start for loss, start in zip(losses, first, strict=True))
        weight -= 0.3 * (weight - clean / (robust + clean))
        expected = (1 - weight) * losses[0] + weight * losses[1]
        expected.backward()
        value = trainer.step(torch.arange(6))
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(module.weight.grad, mirror.weight.grad)
        torch.testing.assert_close(float(trainer.states[0]["clean_weight"]), weight)


def test_the_student_comes_near_both_teachers():
    method = MTARD(linear(1), linear(2), epsilon=0.0, steps=0)
    module = linear(3)
    before = F.mse_loss(module(X), (linear(1)(X) + linear(2)(X)) / 2)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=2.0), [method], X, Y, batch_size=6)
    values = [float(trainer.step(torch.arange(6))) for _ in range(60)]
    assert values[-1] < 0.5 * values[0]
    assert F.mse_loss(module(X), (linear(1)(X) + linear(2)(X)) / 2) < before


def test_misuse():
    for arguments in ({"eta": 1.5}, {"beta": -1.0}):
        with pytest.raises(InputError, match="mtard: "):
            MTARD(linear(1), linear(2), **arguments)
    with pytest.raises(InputError, match="attack: epsilon"):
        MTARD(linear(1), linear(2), epsilon=-0.1)
    with pytest.raises(InputError, match="do not go together"):
        Chain([AdversarialTraining(), MTARD(linear(1), linear(2))])
