"""The plain loop is the loop of a run: the same numbers, stage by stage."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.engines.sequential import Sequential
from kinfold.errors import InputError
from kinfold.methods import EMA, METHODS, SAM, LabelSmoothing, Method, Mixup, Trainer
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import Segment

N = 24


def data(images):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *((1, 4, 4) if images else (4,)), generator=generator, dtype=torch.float64)
    return x, torch.arange(N) % 3


def start(images):
    with torch.random.fork_rng([]):
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)] if images else [nn.Linear(4, 3)]
    module = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return module


class Tracks(Method):
    """What the other parts of the loop hand over, made visible in the parameters."""

    def start(self, params, context):
        rows = torch.zeros(context.count, dtype=torch.float64)
        return {"own/losses": rows, "rate": torch.tensor(0.5, dtype=torch.float64)}

    def draw(self, order, state, key):
        return order[state["own/losses"][order].argsort(stable=True)][: N - 4]

    def rate(self, state):
        return state["rate"]

    def row_losses(self, rows, losses, state):
        return state | {"own/losses": state["own/losses"].index_put((rows,), losses)}

    def period_end(self, params, state, score):
        return params, state | {"rate": state["rate"] * (1 + score[1] / 100)}

    def update(self, before, params, state):
        return {name: before[name] + 0.9 * (value - before[name]) for name, value in params.items()}, state


CHAINS = {"several": (Mixup(), LabelSmoothing(), SAM(), EMA()), "tracks": (Tracks(), EMA(0.5))}


@pytest.mark.parametrize("method", [*METHODS, *CHAINS])
def test_the_plain_loop_is_the_run_of_one_task(make, method):
    chain = CHAINS[method] if method in CHAINS else (make(method),)
    x, y = data(True)
    everyone = torch.ones(1, N, dtype=torch.bool)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    objective = make_objective("classification", 3, None, None, torch.device("cpu"), torch.float64)
    job = Job(start(True), TensorInputs(x), y, everyone, everyone, objective, sgd, None, chain, 8, periods=2, seed=4)
    engine = Sequential(dataclasses.replace(job, precision="float64"))
    own = start(True)
    trainer = Trainer(own, sgd(own.parameters()), chain, x, y, batch_size=8, periods=2, seed=4)
    for period in (1, 2):
        engine.train(Segment(period))
        metric, loss = engine.score()[0].tolist()
        for rows in trainer.batches():
            trainer.step(rows)
        scored = trainer.scored()
        torch.testing.assert_close(nn.functional.cross_entropy(scored(x), y).item(), loss)
        engine.end_period(torch.tensor([[metric, loss]], dtype=torch.float64))
        trainer.end_period(metric, loss)
    engine.snapshot(torch.ones(1, dtype=torch.bool))
    torch.testing.assert_close(trainer.export().state_dict(), engine.export(0).state_dict(), rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(trainer.states, engine.states, strict=True):
        torch.testing.assert_close(mine, {name: value[0] for name, value in theirs.items()}, rtol=1e-9, atol=1e-12)


def test_regression_and_a_schedule_of_the_callers_own():
    module = start(False).float()[0]
    module.weight = nn.Parameter(module.weight.detach()[:1])
    module.bias = nn.Parameter(module.bias.detach()[:1])
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
    trainer = Trainer(module, optimizer, [SAM(0.01)], x, y, batch_size=10, periods=30)
    losses = []
    for _ in range(30):
        losses += [float(trainer.step(rows)) for rows in trainer.batches()]
        trainer.end_period(metric=0.0, loss=losses[-1])
        schedule.step()
    assert losses[-1] < 0.01 * losses[0]


def test_an_optimizer_of_other_parameters():
    module, other = start(False), start(False)
    with pytest.raises(InputError, match="steps no parameter of the module"):
        Trainer(module, torch.optim.SGD(other.parameters(), lr=0.1), [], *data(False))
