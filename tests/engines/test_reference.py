"""A task trains exactly as a plain PyTorch loop does, whatever stands beside it."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinfold import random
from kinfold.engines import choose_engine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.tasks.order import row_orders


def plain_loop(job: Any, epochs: int) -> tuple[nn.Module, list[tuple[float, float]]]:
    """What a user would write for task 0, over the same rows in the same order."""
    with random.seeded(torch.device("cpu"), job.seed, "start", 0, 0):
        model = job.model().double()
    optimizer = job.optimizer(model.parameters())
    scheduler = job.scheduler(optimizer)
    x, y, scores = job.inputs.values.double(), job.targets, []
    for epoch in range(1, epochs + 1):
        model.train()
        (rows,) = row_orders(job.seed, epoch, job.train[:1])
        steps = max(1, len(rows) // job.batch_size)
        for step in range(steps):
            batch = rows[step * job.batch_size : (step + 1) * job.batch_size]
            (weighted_loss(model(x[batch]), y[batch], job, batch) / job.accumulate).backward()
            if (step + 1) % job.accumulate == 0 or step + 1 == steps:
                if job.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), job.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            outputs, own = model(x[job.validation[0]]), y[job.validation[0]]
            loss = float(weighted_loss(outputs, own, job, job.validation[0]))
            counts = torch.ones(len(own)).double() if job.weights is None else job.weights[job.validation[0]]
            scores.append((float((outputs.argmax(1) == own).double() @ counts / counts.sum()), loss))
        scheduler.step()
    return model, scores


def weighted_loss(outputs: torch.Tensor, y: torch.Tensor, job: Any, rows: torch.Tensor) -> torch.Tensor:
    if job.weights is None:
        return nn.functional.cross_entropy(outputs, y)
    return (nn.functional.cross_entropy(outputs, y, reduction="none") * job.weights[rows]).sum() / job.weights[
        rows
    ].sum()


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False)},
        {"optimizer": partial(torch.optim.AdamW, lr=0.01, fused=True)},
        {},
        {"accumulate": 2},
        {"clip_norm": 0.2},
        {"weights": torch.linspace(0.1, 3, 64, dtype=torch.float64)},
    ],
    ids=["plain", "one kernel", "no form", "accumulated", "clipped", "weighted"],
)
def test_sequential_is_a_plain_loop(lab: SimpleNamespace, tasks: int, changes: dict[str, Any]) -> None:
    job = dataclasses.replace(lab.make_job(tasks=tasks), model=lambda: lab.network(batch_norm=True), **changes)
    trained = lab.train(Sequential, job, epochs=4)
    model, scores = plain_loop(job, epochs=4)
    state = trained.engine.stack.params | trained.engine.stack.buffers
    for name, value in model.state_dict().items():
        if "optimizer" not in changes:  # one kernel for the plain loop's many; its loss, and not the gradient, divided
            torch.testing.assert_close(state[name][0], value, rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(state[name][0], value), name
    told = [(event["metric"][0], event["loss"][0]) for event in trained.events]
    lab.assert_close(told, scores)


def test_vectorised_is_a_plain_loop(lab: SimpleNamespace) -> None:
    job = dataclasses.replace(lab.make_job(), model=lambda: lab.network(batch_norm=True))
    trained = lab.train(Vectorised, job, epochs=4)
    model, _ = plain_loop(job, epochs=4)
    state = trained.engine.stack.params | trained.engine.stack.buffers
    lab.assert_close({name: value[0] for name, value in state.items()}, dict(model.state_dict()))


def test_dropout_of_a_task_does_not_hang_on_the_others(lab: SimpleNamespace) -> None:
    """Keyed by task, epoch and seed: two tasks or four, task 1 drops the same units."""
    job = lab.make_job(tasks=4, model=lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    fewer = dataclasses.replace(job, train=job.train[:2], validation=job.validation[:2])
    four, two = lab.train(Sequential, job), lab.train(Sequential, fewer)
    for name, value in four.engine.stack.params.items():
        assert torch.equal(value[:2], two.engine.stack.params[name])
        assert not torch.equal(value[0], value[1])


def test_dropout_is_off_when_scoring(lab: SimpleNamespace) -> None:
    job = lab.make_job(model=lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    for make in (Sequential, Vectorised):
        engine = lab.train(make, job, epochs=1).engine
        assert torch.equal(engine.predict(torch.arange(5)), engine.predict(torch.arange(5)))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bf16_keeps_parameters_in_float32(lab: SimpleNamespace, batch_norm: bool) -> None:
    job = lab.make_job(model=lambda: lab.network(batch_norm), precision="bf16")
    # Stacked batch norm refuses bf16 on a CPU, and `choose_engine` then falls back.
    for make in (Sequential, lambda job: choose_engine("auto", job)[0] if batch_norm else Vectorised(job)):
        trained = lab.train(make, job)
        assert trained.engine.stack.params["0.weight"].dtype == torch.float32
        assert trained.events[-1]["train_loss"][0] < trained.events[0]["train_loss"][0]
