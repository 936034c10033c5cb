"""What candidates share: the table, and batch-norm statistics measured anew."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kinfold import random
from kinfold.candidates import CANDIDATES
from kinfold.candidates.base import measure_batch_norm


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_name_is_that_of_the_table(name: str) -> None:
    candidate = CANDIDATES[name]()
    assert candidate.name == name
    assert candidate == CANDIDATES[name]()


def network() -> nn.Sequential:
    with random.seeded(torch.device("cpu"), 0):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))
    model = model.double()
    model[1].running_mean.fill_(torch.nan)  # of a task that diverged, say
    return model


def test_statistics_are_plain_means_over_batches(lab: Any) -> None:
    """By hand: the order is keyed, the last short batch is dropped, dropout is off, and variances are unbiased."""
    job, model = lab.make_job(), network()
    rows = torch.arange(lab.N) < 13
    before = copy.deepcopy(model)
    model.train()
    measure_batch_norm(model, job, rows, words=("soup", 1))
    order = torch.arange(13)[random.permutation(random.key(job.seed, "soup", 1), 13)]
    hidden = [before[0](job.inputs.rows(batch).double()) for batch in (order[:5], order[5:10])]
    torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert int(model[1].num_batches_tracked) == 2
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())
    for name, value in before.named_parameters():
        assert torch.equal(model.get_parameter(name), value)


def test_the_second_layer_sees_the_first_as_it_is_in_training(lab: Any) -> None:
    """Fewer rows than a batch are one batch: then each layer's statistics are those of that batch."""
    job = lab.make_job()
    with random.seeded(torch.device("cpu"), 0):
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2)).double()
    rows = torch.arange(lab.N) < 4
    measure_batch_norm(model, job, rows, words=("soup",))
    x = job.inputs.rows(rows.nonzero().flatten()).double()
    hidden = model[1]((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
    torch.testing.assert_close(model[2].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[2].running_var, hidden.var(0))


def test_nothing_to_measure_nothing_done(lab: Any) -> None:
    job = lab.make_job()
    with random.seeded(torch.device("cpu"), 0):
        without, untracked = nn.Linear(4, 3), nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))
    for model in (without, untracked):
        before = copy.deepcopy(model.state_dict())
        measure_batch_norm(model, job, torch.ones(lab.N, dtype=torch.bool), words=())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
