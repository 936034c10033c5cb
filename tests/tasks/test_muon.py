from functools import partial

import pytest
import torch
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.tasks.muon import MuonWithAdamW
from kinfold.tasks.update import Updater


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def drawn():
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (4,), "k": (2, 2, 3, 3)}
    return {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}


def test_matrices_are_stepped_by_muon_and_the_rest_by_adamw():
    ours, theirs = ([nn.Parameter(value[0].clone()) for value in drawn().values()] for _ in range(2))
    optimizer = MuonWithAdamW(ours, lr=0.1, weight_decay=0.01, adamw_lr=0.01)
    apart = [
        torch.optim.Muon(theirs[:1], lr=0.1, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(theirs[1:], lr=0.01, weight_decay=0.01),
    ]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    schedules = [torch.optim.lr_scheduler.StepLR(one, 1, gamma=0.5) for one in apart]
    for step in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            other.grad = one.grad.clone()
        assert optimizer.step(lambda: 3.0) == 3.0
        for one in (*apart, schedule, *schedules):
            one.step()
    assert all(map(torch.equal, ours, theirs))
    assert {name for state in optimizer.state.values() for name in state} == {
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_it_goes_on_from_its_state():
    params = drawn()
    make = partial(MuonWithAdamW, lr=0.1)
    whole, begun, resumed = (
        Updater({name: value.clone() for name, value in params.items()}, make, None, fuse=True) for _ in range(3)
    )
    assert not whole.fused
    for step in range(4):
        grads = {name: torch.sin(value + step) for name, value in params.items()}
        whole.step(grads)
        if step < 2:
            begun.step(grads)
        if step == 2:
            for name, value in begun._params.items():
                resumed._params[name].copy_(value)
            resumed.restore(*begun.state())
        if step >= 2:
            resumed.step(grads)
    assert all(torch.equal(value, resumed._params[name]) for name, value in whole._params.items())
    whole.reset(torch.tensor([True, False]))
    assert [len(slots) > 0 for slots in whole.slots()] == [False, True]


def test_by_name_over_tasks():
    def fitted(engine):
        options = {"tasks": 2, "epochs": 2, "seed": 1, "precision": "float64", "transfer": "amto", "batch_size": 256}
        return kinfold.fit(network, "digits", engine=engine, optimizer={"name": "muon", "lr": 0.05}, **options)

    one, other = fitted("sequential"), fitted("vectorised")
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-8, atol=1e-11)


def test_networks_of_one_kind_and_an_older_torch(monkeypatch):
    with random.seeded(torch.device("cpu"), "muon"):
        conv, linear = nn.Conv1d(1, 1, 1), nn.Linear(2, 2, bias=False)
    assert [group["lr"] for group in MuonWithAdamW(conv.parameters()).param_groups] == [1e-3]
    assert [group["lr"] for group in MuonWithAdamW(linear.parameters()).param_groups] == [0.02]
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match="muon needs PyTorch 2.9"):
        MuonWithAdamW(conv.parameters())
