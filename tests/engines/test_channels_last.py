"""Convolutions whose weights lie with their channels innermost: the same training, and they stay so."""

import copy
import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.engines.devices import Devices
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.tasks.order import Segment
from kinfold.tasks.update import Updater
from kinfold.transfer import AMTO

EAGER = AMTO(p_low=1.0, p_high=1.0)
KERNEL = "0.weight"

pytestmark = pytest.mark.usefixtures("recorded")


def network(frozen: bool = False) -> nn.Module:
    first = nn.Conv2d(2, 4, 2, bias=False).requires_grad_(not frozen)
    last = nn.Conv2d(4, 3, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), last, nn.Flatten(), nn.Linear(48, 3))


def images(lab: SimpleNamespace, **changes: Any) -> Job:
    rows = lab.make_job().inputs.values
    square = TensorInputs(torch.stack([rows[:, :, None] * rows[:, None, :], rows[:, :, None] + rows[:, None, :]], 1))
    given = {"model": network, "inputs": square, "optimizer": partial(torch.optim.AdamW, lr=0.01), "shared_start": True}
    return lab.make_job(**(given | changes))


def lies_last(value: torch.Tensor) -> bool:
    return all(row.is_contiguous(memory_format=torch.channels_last) for row in value) and not value.is_contiguous()


def layouts(engine: LocalEngine) -> list[bool]:
    """Whether the first convolution's weights, best snapshots and moments lie with their channels last."""
    updater: Updater = engine.updater
    owners = updater._stacks if updater.fused else updater._rows
    moments = [
        value if updater.fused else value[None]
        for optimizer, named in zip(updater._optimizers, owners, strict=True)
        for slot, value in optimizer.state[named[KERNEL]].items()
        if slot.startswith("exp_avg")
    ]
    assert moments
    return [lies_last(value) for value in (engine.stack.params[KERNEL], engine.best.params[KERNEL], *moments)]


@pytest.mark.parametrize("make", [Sequential, Vectorised])
def test_the_run_is_the_same(lab: SimpleNamespace, make: Any) -> None:
    job = images(lab, sizes=(44, 44, 33))
    one = lab.train(make, job, EAGER, epochs=3)
    other = lab.train(make, dataclasses.replace(job, channels_last=True), EAGER, epochs=3)
    lab.assert_agree(one, other)
    assert other.progress.proposed > 0
    assert not any(layouts(one.engine))
    assert all(layouts(other.engine))


@pytest.mark.parametrize("make", [Sequential, Vectorised])
def test_they_stay_so_in_a_checkpoint(lab: SimpleNamespace, make: Any) -> None:
    job = dataclasses.replace(images(lab), channels_last=True)
    saved = lab.train(make, job, epochs=1).engine
    tensors, values = copy.deepcopy(saved.state())
    engine = make(job)
    engine.restore({name: value.contiguous() for name, value in tensors.items()}, values)  # as files give them
    assert all(layouts(engine))
    lab.assert_close(saved.train(Segment(2)), engine.train(Segment(2)))
    assert all(torch.equal(value, engine.state()[0][name]) for name, value in saved.state()[0].items())


def test_they_lie_so_on_every_device_and_where_they_are_frozen(lab: SimpleNamespace) -> None:
    job = dataclasses.replace(images(lab), channels_last=True)
    engine = Devices(job, [torch.device("cpu")] * 2)
    engine.train(Segment(1))
    assert all(all(layouts(own)) for own in engine._engines)
    frozen = dataclasses.replace(images(lab, model=partial(network, True)), channels_last=True)
    kernels = Vectorised(frozen).stack.frozen[KERNEL]
    assert lies_last(kernels)
    assert kernels.stride(0) == 0  # one copy for all
