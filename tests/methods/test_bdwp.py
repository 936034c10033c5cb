import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import BDWP, Method
from kinfold.methods.bdwp import both_ways, nm_mask
from kinfold.methods.plain import Trainer


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(*layers):
    """A network in float64 of what the functions make."""
    with random.seeded(torch.device("cpu"), "bdwp"):
        return nn.Sequential(*(make() for make in layers)).double()


def kept_by_sorting(weight, n, m, dim):
    """The mask, group by group."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    others = [range(size) for axis, size in enumerate(weight.shape) if axis != dim]
    for rest in itertools.product(*others):
        place = list(rest)
        for start in range(0, weight.shape[dim], m):
            group = range(start, min(start + m, weight.shape[dim]))
            at = [(*place[:dim], i, *place[dim:]) for i in group]
            for index in sorted(at, key=lambda i: -float(weight[i].abs()))[:n]:
                mask[index] = True
    return mask


def holds(weight, n, m, dim):
    """Whether at most n of each m consecutive weights are not zero."""
    groups = (weight != 0).movedim(dim, -1).split(m, -1)
    return all(bool((group.sum(-1) <= n).all()) for group in groups)


@pytest.mark.parametrize(("shape", "n", "m"), [((6, 8), 2, 4), ((5, 11), 2, 8), ((9, 3, 2, 3), 1, 4), ((1, 1), 1, 2)])
@pytest.mark.parametrize("dim", [0, 1])
def test_the_mask_against_sorting(shape, n, m, dim):
    for weight in (rows(*shape), rows(*shape).round()):  # the second has ties
        mask = nm_mask(weight, n, m, dim)
        assert torch.equal(mask, kept_by_sorting(weight, n, m, dim))
        stacked = torch.vmap(lambda one: nm_mask(one, n, m, dim))(torch.stack([weight, weight.flip(1)]))
        assert torch.equal(stacked, torch.stack([mask, nm_mask(weight.flip(1), n, m, dim)]))


def test_what_is_not_finite_stays_seen():
    for place in range(4):
        weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        weight[0, place] = float("nan")
        assert both_ways(weight, 1, 4)[0].isnan().any()


def test_both_passes_by_hand():
    """y = W̃_F x + b, ∂L/∂x = W̃_Bᵀ ∂L/∂y and ∂L/∂W = ∂L/∂y xᵀ with every weight, through two layers."""
    module = network(lambda: nn.Linear(8, 6), lambda: nn.Linear(6, 4))
    x, y = rows(3, 8), torch.tensor([0, 3, 1])
    first, second = (layer.weight.detach().clone() for layer in module)
    biases = [layer.bias.detach().clone() for layer in module]
    trainer = Trainer(
        module, torch.optim.SGD(module.parameters(), lr=1.0), [BDWP(1, 4, ["0", "1"])], x, y, batch_size=3
    )
    trainer.step(torch.arange(3))
    hidden = x @ (first * nm_mask(first, 1, 4, 1)).T + biases[0]
    output = hidden @ (second * nm_mask(second, 1, 4, 1)).T + biases[1]
    above = (output.softmax(1) - F.one_hot(y, 4)) / 3
    below = above @ (second * nm_mask(second, 1, 4, 0))
    torch.testing.assert_close(module[1].weight.detach(), second - above.T @ hidden)
    torch.testing.assert_close(module[0].weight.detach(), first - below.T @ x)
    torch.testing.assert_close(module[0].bias.detach(), biases[0] - below.sum(0))


def test_a_convolution_is_grouped_along_channels():
    weight = rows(8, 8, 3, 3)
    forward, backward = both_ways(weight, 2, 8)
    assert holds(forward, 2, 8, 1)
    assert holds(backward, 2, 8, 0)
    assert int((forward != 0).sum()) == int((backward != 0).sum()) == weight.numel() // 4


class Watched(Method):
    """Looks at the weights of every pass, after the method before it."""

    seen: list

    def __init__(self):
        self.seen = []

    def weights(self, params, state):
        self.seen.append({name: value.detach().clone() for name, value in params.items()})
        return params


def test_both_masks_hold_at_every_step():
    module = network(lambda: nn.Conv2d(4, 8, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(32, 8))
    x, y = rows(12, 4, 4, 4), torch.arange(12) % 8
    method, watched = BDWP(2, 8, ["0", "3"]), Watched()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    trainer = Trainer(module, optimizer, [method, watched], x, y, batch_size=4, periods=2)
    masks = []
    for _ in range(2):
        for batch in trainer.batches():
            trainer.step(batch)
            backward = method.backward_weights(dict(module.named_parameters()), trainer.states[0])
            assert all(holds(weight, 2, 8, 0) for weight in backward.values())
        trainer.end_period(0.0, 1.0)
    assert len(watched.seen) >= 6
    for seen in watched.seen:
        masks.append(seen["3.weight"] != 0)
        assert all(holds(seen[name], 2, 8, 1) for name in ("0.weight", "3.weight"))
    assert not torch.equal(masks[0], masks[-1])  # another may come to be kept
    assert bool((module[3].weight != 0).all())  # the master weights are dense
    assert holds(trainer.export()[3].weight, 2, 8, 1)


def test_engines_agree_and_hand_back_sparse_weights():
    given = {"tasks": 2, "epochs": 2, "precision": "float64", "transfer": "papa"}
    results = [
        kinfold.fit({"name": "mlp", "hidden": [8]}, "iris", methods=[BDWP(1, 4)], engine=engine, **given)
        for engine in ("sequential", "vectorised")
    ]
    layers = [[layer for layer in result.model.modules() if isinstance(layer, nn.Linear)] for result in results]
    assert holds(layers[0][0].weight, 1, 4, 1)
    assert not holds(layers[0][1].weight, 1, 4, 1)  # the last stays dense unless it is named
    for one, other in zip(*layers, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-12)


def test_a_model_that_is_one_layer():
    options = {"tasks": 2, "epochs": 1, "holdout": 0, "transfer": "none", "engine": "vectorised"}
    data = rows(40, 8).float(), torch.arange(40) % 3
    result = kinfold.fit(lambda: nn.Linear(8, 3), data, methods=[BDWP(1, 4)], **options)
    assert holds(result.model.weight, 1, 4, 1)


def test_misuse(context):
    for n, m in [(0, 4), (5, 4)]:
        with pytest.raises(InputError, match="1 ≤ n ≤ m"):
            BDWP(n, m)
    with pytest.raises(InputError, match="'nine' is no linear layer"):
        BDWP(layers=["nine"]).start({}, context)
    with pytest.raises(InputError, match="trains no linear layer"):
        BDWP().start({}, context)
