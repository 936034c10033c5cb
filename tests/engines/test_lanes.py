"""Stacked tasks that step in lanes, so that each fits a processor's caches, train as all together do."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinfold.engines import Job
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, Together

EVERYTHING = Together((AMTO(p_low=1.0, p_high=1.0), PAPA(steps=3)))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("changes", "fused"),
    [
        ({}, True),
        ({"optimizer": partial(torch.optim.AdamW, lr=0.01)}, True),
        ({"accumulate": 2, "clip_norm": 0.5}, True),
        ({"sizes": (44, 44, 31, 31, 20)}, True),  # whole lanes of as many steps
        ({"sizes": (44, 31, 44, 31, 44)}, False),
    ],
    ids=["plain", "adam", "accumulated", "lanes apart", "within a lane"],
)
def test_lanes_are_another_order_of_the_same_steps(lab: SimpleNamespace, changes: dict[str, Any], fused: bool) -> None:
    job = lab.make_job(tasks=5, **changes)
    lanes, alone = lab.train(Vectorised, job), lab.train(Sequential, job)
    assert lanes.engine._lanes() == [[0, 1], [2, 3], [4]]
    assert lanes.engine.updater.fused == fused
    lab.assert_agree(lanes, alone)


@pytest.mark.usefixtures("narrow")
def test_knowledge_crosses_lanes(lab: SimpleNamespace) -> None:
    job = lab.make_job(tasks=5, model=lambda: lab.network(batch_norm=True))
    lab.assert_agree(lab.train(Vectorised, job, EVERYTHING), lab.train(Sequential, job, EVERYTHING))


@pytest.mark.usefixtures("narrow", "recorded")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_lanes_go_on_bit_for_bit(lab: SimpleNamespace, optimizer: Any) -> None:
    job = lab.make_job(tasks=5, sizes=(44, 44, 31, 31, 20), optimizer=partial(optimizer, lr=0.01))
    whole, stopped = Vectorised(job), Vectorised(job)
    for engine in (whole, stopped):
        engine.train(Segment(1))
        engine.train(Segment(2, 0, 2))
    resumed = Vectorised(job)
    resumed.restore(*copy.deepcopy(stopped.state()))
    assert resumed.updater.fused
    for engine in (whole, resumed):
        engine.train(Segment(2, 2))
    (tensors, values), (other_tensors, other_values) = whole.state(), resumed.state()
    assert values == other_values
    assert all(torch.equal(value, other_tensors[name]) for name, value in tensors.items())


@pytest.mark.parametrize(("width", "lanes"), [(16, 1), (384, 2), (1024, 2)])
def test_how_many_go_abreast(lab: SimpleNamespace, width: int, lanes: int) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3))

    job: Job = lab.make_job(tasks=6, model=network, precision="float32")
    assert len(Vectorised(job)._lanes()) == lanes


@pytest.mark.usefixtures("narrow")
def test_where_memory_is_shorter_still_it_decides(lab: SimpleNamespace) -> None:
    engine = Vectorised(lab.make_job(tasks=5))
    engine.shrink("as told")
    assert engine._lanes() == [[0, 1], [2, 3], [4]]
    engine.shrink("as told")
    engine.shrink("as told")
    assert engine._lanes() == [[0], [1], [2], [3], [4]]
