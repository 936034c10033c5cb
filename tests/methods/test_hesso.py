from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import EMA, HESSO, QuantisedDistillation, Trainer
from kinfold.methods import channel_groups as module_of_groups
from kinfold.methods.chain import Chain
from kinfold.methods.channel_groups import channel_groups, without_zero_channels
from kinfold.methods.hesso import lowest, remaining, saliency
from kinfold.models import build

pytest.importorskip("torch_pruning")


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(make):
    with random.seeded(torch.device("cpu"), "hesso"):
        return make()


def mlp(*sizes):
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_saliency_against_a_loop():
    w, d = rows(3, 4).double(), rows(3, 4, seed=1).double()
    raw = torch.stack(
        [
            torch.stack([one.norm(), one.norm() / 4, F.cosine_similarity(one, other, 0) + 1, (one @ other).abs()])
            for one, other in zip(w, d, strict=True)
        ],
        1,
    )
    raw = torch.cat([raw, (raw[3] ** 2 / 2)[None]])
    expected = sum(0.2 * score / score.norm() for score in raw)
    sums = w.square().sum(1), d.square().sum(1), (w * d).sum(1)
    found = saliency(*sums, torch.full((3,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight, step, product = (value.float() for value in sums)
    short = saliency(weight, 1e-10 * step, 1e-5 * product, torch.full((3,), 4.0))  # a step's length says nothing
    torch.testing.assert_close(short, expected.float(), rtol=1e-2, atol=1e-2)


def test_the_lowest_leave_one_of_each_unit():
    unit = torch.tensor([0, 0, 0, 1, 1, 2])
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 9.0, 0.0])
    picked = [lowest(scores, torch.tensor(count), unit).tolist() for count in (1, 2, 3)]
    assert [sum(one) for one in picked] == [1, 2, 3]
    assert picked[2] == [True, True, False, True, False, False]  # alike ones are told apart; the only one of 2 stays
    first = torch.tensor([False, False, False, False, True, False])
    assert lowest(scores, torch.tensor(2), unit, first).tolist() == [True, False, False, False, True, False]
    both = torch.vmap(lambda s: lowest(s, torch.tensor(3), unit))(torch.stack([scores, -scores]))
    assert both[0].tolist() == picked[2]
    assert int(both[1].sum()) == 3


def test_decay_ends_at_zero():
    left = torch.stack([remaining(torch.tensor(t), torch.tensor(5)) for t in range(5)])
    torch.testing.assert_close(left.cumprod(0), torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]))


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 8, 8)), ("resnet20", (3, 8, 8)), ("fcn", (1, 32))])
def test_taking_out_channels_changes_nothing(name, shape):
    module, x = made(lambda: build(name, shape, 4)), rows(2, *shape)
    groups = channel_groups(module, x)
    assert len(groups.unit) > 50
    named = dict(module.named_parameters())
    with torch.no_grad():
        for parameter, group in groups.rows.items():
            named[parameter][group % 3 == 0] = 0.0
        module.eval()
        before, size = module(x), sum(value.numel() for value in named.values())
        smaller = without_zero_channels(module, x, groups)
        torch.testing.assert_close(smaller(x), before, rtol=0, atol=1e-4 * float(before.abs().max()))
    assert sum(value.numel() for value in smaller.parameters()) < 0.8 * size


def test_what_cannot_be_taken_out_is_left_out():
    """Behind a sigmoid zero is a half; the last layer's channels are the outputs; a unit keeps one at least."""
    module = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    groups = channel_groups(module, rows(2, 4))
    assert set(groups.rows) == {"2.weight", "2.bias"}
    with torch.no_grad():
        module[2].weight.zero_()
        module[2].bias.zero_()
    assert without_zero_channels(module, rows(2, 4), groups)[2].out_features == 1


def trained(method, module, periods=8, seed=0, lr=0.05):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (90,), generator=generator)
    x = F.one_hot(y, 3).float() @ rows(3, 6, seed=9) + 0.3 * rows(90, 6, seed=seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    trainer = Trainer(module, optimizer, [method], x, y, batch_size=10, periods=periods)
    for _ in range(periods):
        for batch in trainer.batches():
            trainer.step(batch)
            state, now = trainer.states[0], dict(module.named_parameters())
            for name in ("0.weight", "2.weight"):  # what is pruned is zero and stays so
                group = state[f"own/group/{name}"]
                assert bool((now[name][state["pruned"][group]] == 0).all())
        trainer.end_period(0.0, 1.0)
    return trainer, x


@pytest.mark.parametrize("cycles", [0, 2])
def test_half_of_the_channels_are_pruned_and_the_rebuilt_network_gives_the_same(cycles):
    trainer, x = trained(HESSO(0.5, cycles=cycles), made(lambda: mlp(6, 12, 8, 3)))
    state = trainer.states[0]
    assert int(state["pruned"].sum()) == 10
    masked, rebuilt = trainer.scored(), trainer.export()
    assert rebuilt[0].out_features + rebuilt[2].out_features == 10
    with torch.no_grad():
        torch.testing.assert_close(masked(x), rebuilt(x), rtol=0, atol=1e-5)


def test_what_is_scored_early_is_pruned_already():
    module = made(lambda: mlp(6, 12, 8, 3))
    method = HESSO(0.5, begin=0.8, finish=1.0)
    trainer, _ = trained(method, module, periods=1)
    scored = trainer.scored()
    assert int((scored[0].weight == 0).all(1).sum() + (scored[2].weight == 0).all(1).sum()) == 10
    assert not bool((module[0].weight == 0).all(1).any())


def test_cric_restores_what_it_tries():
    """Every turn begins again at the weights from before, but for one step."""
    module = made(lambda: mlp(6, 12, 8, 3))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    method = HESSO(0.5, begin=0.0, finish=1.0, cycles=2)
    trainer, _ = trained(method, module, periods=8, lr=0.0)  # so that nothing moves but by the method
    state = trainer.states[0]
    assert int(state["done"]) > 0
    assert int(state["tried"].sum()) >= 10
    kept = ~state["picked"]
    for name in ("0.weight", "2.weight"):
        own = kept[state[f"own/group/{name}"]]
        torch.testing.assert_close(dict(module.named_parameters())[name][own].detach(), before[name][own])
    assert bool((state["rise"] > 0).all())


@pytest.mark.parametrize("methods", [[HESSO(), EMA()], [EMA(), HESSO()]], ids=["hesso first", "ema first"])
def test_an_average_is_pruned_wherever_it_stands(methods):
    x, y = rows(120, 6), torch.arange(120) % 3
    options = {"tasks": 2, "epochs": 4, "batch_size": 16, "holdout": 0, "transfer": "none", "engine": "sequential"}
    model = kinfold.fit(lambda: mlp(6, 12, 8, 3), (x, y), methods=methods, **options).model
    assert model[0].out_features + model[2].out_features == 10


def test_misuse(context, monkeypatch):
    with pytest.raises(InputError, match="HESSO and QuantisedDistillation do not go together"):
        Chain([HESSO(), QuantisedDistillation()])
    for wrong in ({"sparsity": 1.0}, {"begin": 0.7}, {"rounds": 0}, {"cycles": -1}):
        with pytest.raises(InputError, match="hesso: "):
            HESSO(**wrong)
    module = made(lambda: nn.Sequential(nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(InputError, match="too few to prune"):
        Trainer(module, optimizer, [HESSO()], rows(6, 6), torch.arange(6) % 3, batch_size=3)
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(InputError, match=r"pip install 'kinfold\[pruning\]'"):
        module_of_groups.torch_pruning()
