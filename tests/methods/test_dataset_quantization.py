import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, DatasetQuantization, Trainer
from kinfold.methods.dataset_quantization import graph_cut_bins, quantized

KEY = random.key("quantized")


def features(rows, seed=0):
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(given, bins):
    """The gain of each row from the whole matrix of similarities, anew for every choice; the first of equal ones."""
    unit = given / given.norm(dim=1, keepdim=True)
    similar = (1 + unit @ unit.T) / 2
    left, result = list(range(len(given))), []
    ends = [round(len(given) * b / bins) for b in range(bins + 1)]
    for begin, end in itertools.pairwise(ends[:-1]):
        pool, chosen = list(left), []
        for _ in range(end - begin):
            gains = [
                round(float(similar[x, pool].sum() - 2 * similar[x, chosen].sum()), 9) if x not in chosen else -1e9
                for x in pool
            ]
            chosen.append(pool[max(range(len(pool)), key=gains.__getitem__)])
        result.append(chosen)
        left = [x for x in left if x not in chosen]
    return [*result, left]


@pytest.mark.parametrize(("rows", "bins"), [(23, 4), (9, 1), (5, 8)])
def test_bins_against_brute_force(rows, bins):
    found = [bin_.tolist() for bin_ in graph_cut_bins(features(rows), bins)]
    assert found == brute_force(features(rows), bins)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_gains_the_first_is_taken(dtype):
    for seed in range(40):  # two rows gain the same, but for rounding, which would fall either way
        *_, first, last = graph_cut_bins(features(2, seed).to(dtype), 2)
        assert (first.tolist(), last.tolist()) == ([0], [1])


def test_features_that_are_not_finite_lose_no_row():
    given = features(9)
    given[[2, 5], 1] = torch.tensor([torch.nan, torch.inf], dtype=torch.float64)
    found = [bin_.tolist() for bin_ in graph_cut_bins(given, 3)]
    assert sorted(itertools.chain.from_iterable(found)) == list(range(9))


@pytest.mark.parametrize("share", [0.1, 0.37, 0.6, 1.0])
def test_the_same_share_of_each_class_and_bin(share):
    given, classes = features(60), torch.arange(60) % 2
    kept = quantized(given, classes, share, 5, KEY)
    for c in (0, 1):
        own = (classes == c).nonzero().flatten()
        assert int(kept[own].sum()) == round(share * 30)
        for bin_ in graph_cut_bins(given[own], 5):
            assert abs(int(kept[own[bin_]].sum()) - share * 6) <= 1
    assert torch.equal(kept, quantized(given, classes, share, 5, KEY))
    if share < 1:
        assert not torch.equal(kept, quantized(given, classes, share, 5, random.key("other")))


def test_no_class_is_lost():
    kept = quantized(features(12), torch.tensor([0] * 11 + [1]), 0.05, 10, KEY)
    assert kept[11]
    assert int(kept.sum()) == 2


def test_a_task_keeps_some_of_its_own_rows_for_good(context):
    own = torch.tensor([1, 2, 3, 5, 8, 9])
    given = features(12).float()
    task = dataclasses.replace(
        context, rows=own, count=12, read=lambda rows: Batch(given[rows], rows % 2, rows, 2), classes=2, batch_size=1
    )
    params = {"w": torch.zeros(1)}
    method = DatasetQuantization(0.5, bins=2)
    state = method.start(params, task)
    order = own[torch.tensor([3, 1, 0, 5, 2, 4])]
    drawn = method.draw(order, state, KEY)
    kept = quantized(given[own].double(), own % 2, 0.5, 2, context.key)
    assert sorted(drawn.tolist()) == own[kept].tolist()
    assert drawn.tolist() == [row for row in order.tolist() if row in drawn]  # in the order that was given
    values = dataclasses.replace(task, classes=None, read=lambda rows: Batch(given[rows], given[rows, 0], rows))
    assert int(method.start(params, values)["own/kept"].sum()) == 3
    # Rows as another network sees them.
    flat = torch.nn.utils.skip_init(nn.Linear, 5, 3, bias=False)
    nn.init.eye_(flat.weight)
    seen = DatasetQuantization(0.5, 2, flat).start(params, task)["own/kept"]
    chosen = quantized(given[own, :3].double(), own % 2, 0.5, 2, context.key)
    assert seen.nonzero().flatten().tolist() == own[chosen].tolist()


def test_in_a_plain_loop():
    x, y = features(40).float(), torch.arange(40) % 2
    module = torch.nn.utils.skip_init(nn.Linear, 5, 2)
    for p in module.parameters():
        nn.init.ones_(p)
    methods = [DatasetQuantization(0.2, 2)]
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.1), methods, x, y, batch_size=4)
    visited = [torch.cat(list(trainer.batches())) for _ in range(2)]
    assert [sorted(rows.tolist()) for rows in visited] == [sorted(visited[0].tolist())] * 2
    assert len(visited[0]) == 8


def test_misuse():
    for arguments in ({"share": 0.0}, {"share": 1.5}, {"bins": 0}):
        with pytest.raises(InputError, match=f"dataset_quantization: {next(iter(arguments))} is"):
            DatasetQuantization(**arguments)


def test_a_student_has_probabilities_for_labels():
    data = (np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3)
    result = kinfold.fit(
        "mlp",
        data,
        tasks=2,
        epochs=5,
        batch_size=8,
        methods=DatasetQuantization(0.5),
        transfer="distil",
    )
    assert result.selected.kind == "distilled"
