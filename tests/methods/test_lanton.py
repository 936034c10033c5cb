import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import LANTON, Trainer
from kinfold.methods.lanton import dual_norm, layer_rates
from kinfold.tasks.muon import MuonWithAdamW

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_the_norm_is_dual_to_that_of_muons_steps(shape):
    gradient, scale = drawn(*shape), max(1.0, shape[0] / shape[1]) ** 0.5
    found = dual_norm(gradient)
    torch.testing.assert_close(found, scale * torch.linalg.matrix_norm(gradient, "nuc"))
    U, _, V = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close((gradient * (scale * U @ V)).sum(), found)  # the step along which the loss falls most
    assert dual_norm(torch.zeros(shape)) == 0
    rank_one = torch.outer(drawn(shape[0]), drawn(shape[1], seed=1)).float()
    torch.testing.assert_close(dual_norm(rank_one), scale * rank_one.norm(), rtol=1e-5, atol=0)


def test_rates_by_hand():
    noises = {"a": torch.tensor(0.0), "b": torch.tensor(3.0), "c": torch.tensor(8.0)}
    alphas = {name: 1.0 / (1.0 + float(noise)) ** 0.5 for name, noise in noises.items()}
    for name, rate in layer_rates(noises, 1.0).items():
        assert float(rate) == pytest.approx((alphas[name] / max(alphas.values())) ** 0.5)
    assert all(float(rate) == pytest.approx(1.0) for rate in layer_rates(noises, 1e4).values())


def network():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def reference(module, x, y, batches, lr, alpha, beta):
    """One Muon a matrix in a plain loop, with learning rates of their own, and AdamW for the biases."""
    weights = [layer.weight for layer in module if isinstance(layer, nn.Linear)]
    biases = [layer.bias for layer in module if isinstance(layer, nn.Linear)]
    muons = [torch.optim.Muon([weight], lr=lr, weight_decay=0.1, momentum=0.95) for weight in weights]
    adamw = torch.optim.AdamW(biases, lr=1e-3, weight_decay=0.1)
    H, last = [0.0, 0.0], [None, None]
    for rows in batches:
        module.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        for i, weight in enumerate(weights):
            if last[i] is not None:
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                noise = float(scale * torch.linalg.matrix_norm(weight.grad - last[i], "nuc")) ** 2
                H[i] = beta * H[i] + (1 - beta) * noise
            last[i] = weight.grad.clone()
        alphas = [alpha / (alpha**2 + h) ** 0.5 for h in H]
        for muon, own in zip(muons, alphas, strict=True):
            muon.param_groups[0]["lr"] = lr * (own / max(alphas)) ** 0.5
            muon.step()
        adamw.step()


def test_a_run_is_that_of_muons_with_their_own_rates():
    x, y = drawn(40, 5), torch.arange(40) % 3
    with random.seeded(torch.device("cpu"), "lanton"):
        module = network()
    other, before = copy.deepcopy(module), copy.deepcopy(module)
    optimizer = MuonWithAdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    trainer = Trainer(module, optimizer, [LANTON(alpha=0.1, beta=0.8)], x, y, batch_size=8)
    batches = list(trainer.batches())
    for rows in batches:
        trainer.step(rows)
    reference(other, x, y, batches, lr=0.05, alpha=0.1, beta=0.8)
    for mine, theirs, first in zip(*(m.parameters() for m in (module, other, before)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(mine, first)
    noises = [float(trainer.states[0][f"noise/{name}.weight"]) for name in ("0", "2")]
    assert min(layer_rates({"a": torch.tensor(noises[0]), "b": torch.tensor(noises[1])}, 0.1).values()) < 0.95


def test_engines_agree():
    def fitted(engine):
        options = {"tasks": 2, "epochs": 2, "seed": 1, "precision": "float64", "transfer": "papa", "batch_size": 256}
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Tanh(), nn.Linear(8, 10))
        return kinfold.fit(model, "digits", engine=engine, optimizer="muon", methods=["lanton"], **options)

    with random.seeded(torch.device("cpu"), "lanton"):
        one = fitted("sequential")
    with random.seeded(torch.device("cpu"), "lanton"):
        other = fitted("vectorised")
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-8, atol=1e-11)


def test_misuse(context):
    for options, message in (({"alpha": 0.0}, "alpha is 0.0"), ({"beta": 1.0}, "beta is 1.0")):
        with pytest.raises(InputError, match=f"lanton: {message}"):
            LANTON(**options)
    with pytest.raises(InputError, match="no parameter of two axes"):
        LANTON().start({"b": torch.zeros(3)}, context)
