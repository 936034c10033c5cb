import math

import pytest
import torch

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, Mixup

KEY = random.key("mixup", 3)


def mixture(batch, alpha=1.0, key=KEY):
    """The mixed batch and the W [B, B] that made it, read off one-hot inputs."""
    rows = len(batch.row)
    method = Mixup(alpha)
    eye = batch._replace(x=torch.eye(rows, dtype=torch.float64), labelled=None, soft=None)
    return method.batch(batch, {}, key), method.batch(eye, {}, key).x


def test_rows_and_targets_are_mixed_alike(images):
    soft = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixed, W = mixture(images._replace(soft=soft))
    lam = W.diagonal()[W.diagonal() < 1]
    assert lam.unique().numel() == 1  # one λ a batch
    assert ((W > 0).sum(1) <= 2).all()
    torch.testing.assert_close(W.sum(0), torch.ones(5, dtype=torch.float64))  # another row is used just once
    torch.testing.assert_close(mixed.x, torch.einsum("bc,c...->b...", W, images.x))
    onehot = torch.nn.functional.one_hot(images.y, 3).double()
    torch.testing.assert_close(mixed.y.double(), W @ onehot, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed.soft, W @ soft)
    assert mixed.labelled is None
    torch.testing.assert_close(mixed.x.mean(0), images.x.mean(0))


def test_soft_targets_that_rows_weigh_apart(images):
    """A mixture's soft target is that of its rows by their weights, and its weight theirs by their shares."""
    soft = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.tensor([0.5, 0.0, 0.2, 0.0, 0.9], dtype=torch.float64)
    mixed, W = mixture(images._replace(soft=soft, soft_weight=weight))
    torch.testing.assert_close(mixed.soft_weight, W @ weight)
    torch.testing.assert_close(mixed.soft * mixed.soft_weight[:, None], W @ (soft * weight[:, None]))


def test_regression_targets_and_several_inputs():
    generator = torch.Generator().manual_seed(2)
    x = tuple(torch.rand(4, *shape, generator=generator, dtype=torch.float64) for shape in [(2,), (3, 2)])
    y = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    mixed, W = mixture(Batch(x, y, torch.arange(4)))
    torch.testing.assert_close(mixed.y, W @ y)
    for new, old in zip(mixed.x, x, strict=True):
        torch.testing.assert_close(new, torch.einsum("bc,c...->b...", W, old))


@pytest.mark.parametrize("classes", [3, None])
def test_a_label_that_may_not_be_used_does_not_seep_in(images, classes):
    labelled = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    y = images.y if classes else torch.linspace(0, 1, 5, dtype=torch.float64)
    batch = images._replace(y=y, classes=classes, labelled=labelled)
    mixed, W = mixture(batch)
    torch.testing.assert_close(mixed.labelled, W @ labelled)

    hidden = (y + 1) % 3 if classes else y + 100.0
    other = Mixup(1.0).batch(batch._replace(y=torch.where(labelled > 0, y, hidden)), {}, KEY)
    assert torch.equal(other.y, mixed.y)
    # What is left is the mean of the labels that may be used, by their shares.
    values = torch.nn.functional.one_hot(images.y, 3).double() if classes else y[:, None]
    share = W * labelled
    expected = share @ values / share.sum(1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(mixed.y.double().reshape(5, -1), expected, rtol=1e-6, atol=1e-6)
    assert mixed.y.isfinite().all()


def test_rows_that_count_apart_bring_their_targets_by_their_weights(images):
    """So that Σ weight · cross-entropy is that of the mixture's two rows, each with its own target and weight."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    soft = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    onehot = torch.nn.functional.one_hot(images.y, 3).double()
    batch = images._replace(weight=weight, soft=soft)
    for soft_weight, labelled in (
        (torch.tensor(0.5, dtype=torch.float64), None),
        (torch.rand(5, generator=generator, dtype=torch.float64), torch.tensor([1.0, 0, 1, 0, 0], dtype=torch.float64)),
    ):
        mixed, W = mixture(batch._replace(soft_weight=soft_weight, labelled=labelled))
        if labelled is not None:  # `mixture` reads W off without it
            mixed = Mixup(1.0).batch(batch._replace(soft_weight=soft_weight, labelled=labelled), {}, KEY)
        usable = torch.ones(5, dtype=torch.float64) if labelled is None else labelled
        torch.testing.assert_close(mixed.weight, W @ weight)
        share = mixed.weight if labelled is None else mixed.weight * mixed.labelled
        torch.testing.assert_close(share, W @ (weight * usable))
        torch.testing.assert_close(
            mixed.y.double() * share[:, None], W @ (onehot * (weight * usable)[:, None]), rtol=1e-6, atol=1e-6
        )
        own = soft_weight.expand(5)
        torch.testing.assert_close(mixed.weight * mixed.soft_weight, W @ (weight * own))
        expected = W @ (soft * (weight * own)[:, None])
        torch.testing.assert_close(mixed.soft * (mixed.weight * mixed.soft_weight)[:, None], expected)


def test_lambda_follows_beta(images):
    lam = torch.stack([mixture(images, 0.4, random.key("lambda", i))[1].diagonal().min() for i in range(500)])
    moved = lam[lam < 1]  # a permutation may leave all in place
    assert abs(float(moved.mean()) - 0.5) < 5 * math.sqrt(0.25 / 1.8 / 500)


def test_misuse(images):
    with pytest.raises(InputError, match="whole numbers"):
        Mixup().batch(images._replace(x=torch.zeros(5, 3, dtype=torch.int64)), {}, KEY)
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="mixup: alpha is"):
            Mixup(alpha)
    tiny = Mixup(1e-3).batch(images, {}, KEY)
    assert tiny.x.isfinite().all()
    assert tiny.y.isfinite().all()
