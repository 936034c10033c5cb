from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import DeepZero, Trainer
from kinfold.methods.deepzero import coordinate_gradient, layer_densities, zo_grasp

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))


def made(make, dtype=F64):
    with random.seeded(torch.device("cpu"), "deepzero"):
        return make().to(dtype)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(72, 10)
    )


def trainer_of(module, method, seed=0, **options):
    x, y = drawn(24, 1, 8, 8, seed=3).to(next(module.parameters()).dtype), torch.arange(24) % 10
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    return Trainer(module, optimizer, [method], x, y, batch_size=24, seed=seed, **options), x, y


def cosine(one, other):
    flat = [torch.cat([part[name].flatten() for name in one]) for part in (one, other)]
    return float(F.cosine_similarity(*flat, dim=0))


def test_differences_against_a_loop_over_coordinates():
    w, mu = drawn(3, 4), 1e-2

    def loss(value):
        return (value.sin() * drawn(3, 4, seed=1)).sum() ** 2

    chosen = torch.tensor([0, 3, 5, 11])
    found = coordinate_gradient(lambda many: torch.stack([loss(one) for one in many]), w, chosen, mu, together=3)
    expected = torch.zeros(12, dtype=F64)
    for i in chosen.tolist():
        moved = w.clone().flatten()
        moved[i] += mu
        expected[i] = (loss(moved.view(3, 4)) - loss(w)) / mu
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_gradient_of_all_coordinates_is_the_true_one(dtype):
    module = made(network, dtype)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    trainer, x, y = trainer_of(module, DeepZero(density=1.0))
    F.cross_entropy(module(x), y).backward()
    true = {name: value.grad.clone() for name, value in module.named_parameters()}
    trainer.step(torch.arange(24))
    stepped = {name: (before[name] - value.detach()) / 0.05 for name, value in module.named_parameters()}
    assert cosine(stepped, true) > 0.9999


def test_what_a_network_draws_is_the_same_in_both_terms_of_a_difference():
    """Dropout at 0.3: had θ and θ + μ e other masks, differences would be of the size of losses over μ."""
    module = made(convolutional)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    trainer, _, _ = trainer_of(module, DeepZero(density=1.0, mu=1e-4))
    with random.seeded(torch.device("cpu"), "dropout"):
        trainer.step(torch.arange(24))
    size = max(float((value.detach() - before[name]).abs().max()) for name, value in module.named_parameters())
    assert size < 0.05 * 5  # of rate 0.05
    assert int(module[1].num_batches_tracked) == 1  # in spite of all the evaluations


def test_a_sparse_gradient_is_the_dense_one_at_its_coordinates():
    steps = []
    for density in (1.0, 0.25):
        module = made(network)
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        trainer, _, _ = trainer_of(module, DeepZero(density=density, queries=8))
        trainer.step(torch.arange(24))
        steps.append({name: before[name] - value.detach() for name, value in module.named_parameters()})
    dense, sparse = steps
    for name in dense:
        share = 0.25 if name.endswith("weight") else 1.0
        chosen = trainer.states[0][f"own/coordinates/{name}"]
        assert len(chosen) == round(share * dense[name].numel())
        expected = torch.zeros(dense[name].numel(), dtype=F64).scatter(0, chosen, dense[name].flatten()[chosen])
        torch.testing.assert_close(sparse[name].flatten(), expected, rtol=1e-9, atol=1e-12)


class Watched(nn.Linear):
    """Notes over how many dimensions of lifting its output goes."""

    def forward(self, x):
        output = super().forward(x)
        self.seen.append(torch._C._functorch.is_batchedtensor(output))
        return output


def test_layers_before_the_perturbed_one_are_evaluated_once():
    module = made(lambda: nn.Sequential(nn.Flatten(), Watched(64, 4), nn.Tanh(), nn.Linear(4, 10)))
    module[1].seen = []
    trainer, _, _ = trainer_of(module, DeepZero(density=1.0))
    trainer.step(torch.arange(24))
    # Perturbed itself, 256 weights in two calls and the bias in one; then those of the last layer; then the loss alone.
    assert module[1].seen == [True, True, True, False, False, False]


def test_scores_are_those_of_a_quadratic():
    """With all directions of a basis, g is the gradient and H g its change, which a quadratic has exactly."""
    square = drawn(5, 5, seed=2)
    H = square @ square.T
    theta = {"w": drawn(5, seed=3)}

    def losses(many):
        return 0.5 * torch.einsum("mi,ij,mj->m", many["w"], H, many["w"])

    scores = zo_grasp(losses, theta, torch.Generator().manual_seed(0), queries=40_000, mu=1e-3)["w"]
    expected = (theta["w"] * (H @ H @ theta["w"])).abs() / 25  # E[u uᵀ] = 1 / 5, twice
    torch.testing.assert_close(scores, expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_densities_of_layers_from_scores():
    scores = {"a": torch.arange(10.0), "b": torch.arange(8.0, 18.0)}
    assert layer_densities(scores, 0.5) == {"a": 0.1, "b": 0.9}  # 9, and 9 to 17
    method = DeepZero(density={"1.weight": 0.5}, queries=4)
    trainer, _, _ = trainer_of(made(network), method)
    assert len(trainer.states[0]["own/coordinates/1.weight"]) == 192
    assert len(trainer.states[0]["own/coordinates/3.weight"]) == 60


def test_engines_agree_and_coordinates_are_drawn_anew():
    def fitted(engine):
        method = DeepZero(density=0.2, shuffle=1, queries=8, together=50)
        options = {"tasks": 2, "epochs": 2, "seed": 1, "precision": "float64", "transfer": "amto", "batch_size": 256}
        return kinfold.fit(network, "digits", engine=engine, methods=[method], **options)

    one, other = fitted("sequential"), fitted("vectorised")
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-8, atol=1e-11)
    trainer, _, _ = trainer_of(made(network), DeepZero(density=0.2, shuffle=2, queries=8))
    before = trainer.states[0]["own/coordinates/1.weight"]
    trainer.end_period(0.0, 1.0)
    assert torch.equal(trainer.states[0]["own/coordinates/1.weight"], before)
    trainer.end_period(0.0, 1.0)
    after = trainer.states[0]["own/coordinates/1.weight"]
    assert not torch.equal(after, before)
    assert len(after.unique()) == len(before)


class Cut(nn.Module):
    """A network in which derivatives end before the last layer, if they are cut."""

    def __init__(self, cut):
        super().__init__()
        self.first, self.last, self.cut = nn.Linear(4, 5), nn.Linear(5, 2), cut

    def forward(self, x):
        inner = torch.tanh(self.first(x))
        return self.last(inner.detach() if self.cut else inner)


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_what_no_derivative_reaches_is_trained_alike(engine):
    x, y = drawn(60, 4, seed=5), torch.arange(60) % 2

    def fitted(loss, cut=False, mu=0.005):
        options = {"tasks": 2, "epochs": 2, "batch_size": 16, "holdout": 0, "precision": "float64", "transfer": "none"}
        methods = [DeepZero(density=1.0, mu=mu)]
        result = kinfold.fit(partial(Cut, cut), (x, y), methods=methods, loss=loss, engine=engine, **options)
        return dict(result.model.named_parameters())

    usual = fitted(lambda outputs, targets: F.cross_entropy(outputs, targets))
    for other in (
        fitted(lambda outputs, targets: F.cross_entropy(outputs.detach(), targets)),
        fitted(lambda outputs, targets: F.cross_entropy(outputs, targets), cut=True),
    ):
        assert all(torch.equal(value, other[name]) for name, value in usual.items())
    wrong = fitted(lambda outputs, targets: (outputs.argmax(1) != targets).double().mean(), mu=0.5)
    assert all(bool((value != 0).any() and value.isfinite().all()) for value in wrong.values())


def test_the_function_in_a_loop_of_ones_own():
    module, x, y = made(network), drawn(16, 64), torch.arange(16) % 10
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss(name, value):
        return F.cross_entropy(functional_call(module, {**params, name: value}, x), y)

    name = "3.bias"
    found = coordinate_gradient(torch.vmap(partial(loss, name)), params[name], torch.arange(10), mu=1e-6)
    F.cross_entropy(module(x), y).backward()
    torch.testing.assert_close(found, module[3].bias.grad, rtol=1e-4, atol=1e-6)


def test_misuse():
    for options, message in (
        ({"mu": 0.0}, "mu is 0.0"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": {"w": -1}}, "density is -1"),
        ({"shuffle": -1}, "shuffle is -1"),
        ({"queries": 0}, "queries is 0"),
        ({"together": 0}, "together is 0"),
    ):
        with pytest.raises(InputError, match=f"deepzero: {message}"):
            DeepZero(**options)
    with pytest.raises(InputError, match="density names '1.bias'; give weights of 1.weight, 3.weight"):
        trainer_of(made(network), DeepZero(density={"1.bias": 0.5}))
