from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, QuantisedDistillation, Trainer
from kinfold.methods.base import Model
from kinfold.methods.quantised_distillation import distillation, quantile_points, quantise, uniform_points


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(*sizes):
    with random.seeded(torch.device("cpu"), "quantised"):
        return nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes))).double()


def one_by_one(weight, points, bucket):
    """Each weight by itself: → (its value, the point that it has, the scale of its bucket)."""
    flat, parts = weight.flatten(), []
    size = len(flat) if bucket is None else bucket
    for start in range(0, len(flat), size):
        own = flat[start : start + size]
        low, scale = own.min(), own.max() - own.min()
        which = (((own - low) / scale)[:, None] - points).abs().argmin(1)
        parts.append((low + scale * points[which], which, scale.expand(len(own))))
    return (torch.cat(part).view(weight.shape) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("bucket", [None, 7, 100])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_and_gradients_against_one_by_one(bucket, bits):
    weight = rows(5, 8).requires_grad_()
    points = torch.rand(2**bits, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    upstream = rows(5, 8, seed=2)
    value, which, scale = one_by_one(weight.detach(), points.detach(), bucket)
    quantised = quantise(weight, points, bucket)
    torch.testing.assert_close(quantised.detach(), value)
    (quantised * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, upstream)  # straight through
    expected = torch.stack([(scale * upstream)[which == j].sum() for j in range(2**bits)])
    torch.testing.assert_close(points.grad, expected)
    stacked = torch.vmap(lambda w, p: quantise(w, p, bucket))(torch.stack([weight, -weight]), torch.stack([points] * 2))
    torch.testing.assert_close(stacked[0], quantised)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 99))
def test_a_bucket_has_no_more_values_than_points(bits, bucket, seed):
    weight = rows(3, 6, seed=seed)
    for points in (uniform_points(bits, torch.float64), quantile_points(weight, bits, bucket)):
        for own in quantise(weight, points, bucket).flatten().split(bucket):
            assert len(own.unique()) <= 2**bits


def test_uniform_points_round_to_the_nearest_step():
    weight = rows(40)
    step = (weight.max() - weight.min()) / 15
    by_hand = weight.min() + ((weight - weight.min()) / step).round() * step
    torch.testing.assert_close(quantise(weight, uniform_points(4, torch.float64), None), by_hand)
    alike = torch.full((3,), 2.5)
    assert torch.equal(quantise(alike, uniform_points(2)), alike)


def test_quantiles_are_used_alike():
    weight = rows(64) ** 3
    points = quantile_points(weight, 2, None)
    place = (weight - weight.min()) / (weight.max() - weight.min())
    share = torch.arange(1, 5, dtype=torch.float64) / 4 - 0.125
    torch.testing.assert_close(points, torch.quantile(place, share))


def test_the_loss_is_that_of_teacher_and_labels():
    student, teacher = network(4, 3), network(4, 6, 3)
    x, y = rows(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        mine, theirs = student(x), teacher(x)
    soft = (theirs / 3).softmax(1)
    kl = (soft * (soft.log() - (mine / 3).log_softmax(1))).sum(1).mean() * 9
    torch.testing.assert_close(distillation(mine, theirs, 3), kl)
    method = QuantisedDistillation(8, teacher, share=0.25, temperature=3, bucket=None, points="uniform")
    trainer = Trainer(student, torch.optim.SGD(student.parameters(), lr=0.1), [method], x, y, batch_size=5)
    with torch.no_grad():
        seen = trainer.scored()(x)
    expected = 0.75 * F.cross_entropy(seen, y) + 0.25 * distillation(seen, theirs, 3)
    torch.testing.assert_close(trainer.step(torch.arange(5)), expected)


def test_a_weight_is_how_often_a_row_stands_in_the_batch():
    student, teacher, x, y = network(4, 3), network(4, 3), rows(4, 4), torch.tensor([0, 1, 2, 0])
    with random.seeded(torch.device("cpu"), "another"):
        teacher[0].reset_parameters()
    method, twice = QuantisedDistillation(2, teacher, share=0.6), torch.tensor([0, 1, 1, 1, 2])
    counts = torch.tensor([1.0, 3.0, 1.0, 0.0], dtype=torch.float64)

    def inner(model, batch):
        return torch.zeros((), dtype=torch.float64)

    def loss(batch):
        return method.loss(inner, Model.of(student), batch, {}, random.key(0))

    weighted = loss(Batch(x, y, torch.arange(4), 3, weight=counts))
    torch.testing.assert_close(weighted, loss(Batch(x[twice], y[twice], twice, 3)))
    assert not weighted.isclose(loss(Batch(x, y, torch.arange(4), 3)))


def test_engines_agree_with_a_teacher():
    x, y = rows(60, 4), torch.arange(60) % 3
    options = {"tasks": 2, "epochs": 2, "batch_size": 16, "holdout": 0, "transfer": "none", "precision": "float64"}

    def fitted(engine):
        methods = [QuantisedDistillation(2, network(4, 3), bucket=None)]
        return kinfold.fit(lambda: nn.Linear(4, 3), (x, y), methods=methods, engine=engine, **options)

    one, other = fitted("sequential"), fitted("vectorised")
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-8, atol=1e-11)
    assert len(one.model.weight.unique()) <= 4  # of a model that is one layer


def test_float_weights_and_points_step_by_the_gradients_at_the_quantised_weights():
    student = network(6, 3)
    x, y, start = rows(5, 6), torch.tensor([0, 1, 2, 0, 1]), student[0].weight.detach().clone()
    method = QuantisedDistillation(2, bucket=9, points_lr=0.01)
    trainer = Trainer(student, torch.optim.SGD(student.parameters(), lr=0.1), [method], x, y, batch_size=5)
    points = trainer.states[0]["train/points/0.weight"].clone().requires_grad_()
    seen = quantise(start, points.detach(), 9).requires_grad_()
    loss = F.cross_entropy(F.linear(x, seen, student[0].bias), y)
    (grad,) = torch.autograd.grad(loss, seen)
    (grad_points,) = torch.autograd.grad((quantise(start, points, 9) * grad).sum(), points)
    torch.testing.assert_close(trainer.step(torch.arange(5)), loss.detach())
    torch.testing.assert_close(student[0].weight.detach(), start - 0.1 * grad)
    torch.testing.assert_close(trainer.states[0]["grad/points/0.weight"], grad_points)
    adam = torch.optim.Adam([points], lr=0.01)
    for _ in range(3):
        points.grad = trainer.states[0]["grad/points/0.weight"].clone()
        adam.step()
        torch.testing.assert_close(trainer.states[0]["train/points/0.weight"], points.detach(), rtol=1e-6, atol=1e-8)
        trainer.step(torch.arange(5))


@pytest.mark.parametrize("points", ["learned", "uniform"])
def test_what_is_handed_back_has_few_values(points):
    module = network(8, 12, 3)
    x, y = rows(30, 8), torch.arange(30) % 3
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    method = QuantisedDistillation(2, network(8, 3), points=points, bucket=16)
    trainer = Trainer(module, optimizer, [method], x, y, batch_size=10, periods=2)
    for _ in range(2):
        for batch in trainer.batches():
            trainer.step(batch)
        trainer.end_period(0.5, 1.0)
    exported = trainer.export()
    for layer, own in zip(exported, module, strict=True):
        for bucket in layer.weight.flatten().split(16):
            assert len(bucket.unique()) <= 4
        assert torch.equal(layer.bias, own.bias)
        assert len(own.weight.unique()) == own.weight.numel()  # the float weights are kept for training


def test_misuse(context):
    for wrong in ({"bits": 0}, {"bits": 9}, {"share": 1.5}, {"temperature": 0}, {"points_lr": -1}, {"bucket": 1}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"quantised_distillation: {name} is"):
            QuantisedDistillation(**wrong)
    with pytest.raises(InputError, match="trains no linear layer"):
        QuantisedDistillation().start({}, context)
    with pytest.raises(InputError, match="'nine' is no linear layer"):
        QuantisedDistillation(layers=["nine"]).start({}, context)
    student, x, y = network(4, 3), rows(5, 4), torch.tensor([0, 1, 2, 0, 1])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(InputError, match="the task is a regression; leave teacher out"):
        Trainer(student, optimizer, [QuantisedDistillation(2, network(4, 3))], x, rows(5, 3))
    with pytest.raises(InputError, match="the teacher gives 5 outputs and the model 3"):
        Trainer(student, optimizer, [QuantisedDistillation(2, network(4, 5))], x, y).step(torch.arange(5))
