"""Which engine runs, and what is said where a model cannot be run as asked."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold import random
from kinfold.engines import choose_engine
from kinfold.errors import InputError
from kinfold.methods.base import Method, Params, State
from kinfold.tasks.order import Segment


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bag((x > 0).long()))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.mean() > 0 else self.other(x)


def cumulative() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3))


class BranchingStage(Method):
    """Runs in a loop only: the step itself can be stacked, this stage cannot."""

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return {name: value if value.sum() > 0 else 0.9 * value for name, value in params.items()}, state


@pytest.mark.parametrize("model", [Recurrent, Bag, Branching, cumulative])
@pytest.mark.parametrize("asked", ["auto", "vectorised"])
def test_what_cannot_be_stacked_runs_one_by_one(lab: SimpleNamespace, model: Any, asked: str) -> None:
    job = lab.make_job(model=model)
    engine, line = choose_engine(asked, job)
    assert engine.name == "sequential"
    assert line is not None
    assert line.startswith("engine: sequential, since this model cannot be stacked (")
    assert "\n" not in line
    trained = lab.train(lambda job: engine, job, epochs=2)
    assert all(map(torch.Tensor.isfinite, trained.progress.best.flatten()))


def test_a_method_that_cannot_be_stacked_is_found_before_the_run(lab: SimpleNamespace) -> None:
    job = lab.make_job(methods=(BranchingStage(),))
    engine, line = choose_engine("auto", job)
    assert engine.name == "sequential"
    assert line is not None
    lab.train(lambda job: engine, job, epochs=1)


def test_what_can_be_stacked_is(lab: SimpleNamespace) -> None:
    for asked, name in (("auto", "vectorised"), ("vectorised", "vectorised"), ("sequential", "sequential")):
        engine, line = choose_engine(asked, lab.make_job())
        assert (engine.name, line) == (name, None)
    assert choose_engine("auto", lab.make_job(tasks=1))[0].name == "sequential"


class Skipping(nn.Module):
    """Leaves a block out of half of its steps, so that the block has no gradient there (stochastic depth)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        kept = not self.training or bool(torch.rand(()) > 0.5)
        return self.last(x + self.block(x).relu() if kept else x)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_may_be_left_out_by_chance(lab: SimpleNamespace, seed: int) -> None:
    engine, _ = choose_engine("sequential", lab.make_job(model=Skipping, seed=seed))
    assert bool(engine.train(Segment(1)).isfinite().all())


def test_a_probe_keeps_nothing(lab: SimpleNamespace) -> None:
    """A probed engine trains as one that never was."""
    job = lab.make_job(model=lambda: lab.network(batch_norm=True))
    for name in ("sequential", "vectorised"):
        engine, _ = choose_engine(name, job)
        lab.assert_agree(lab.train(lambda job, engine=engine: engine, job), lab.train(type(engine), job))


def fails() -> nn.Module:
    raise KeyError("no such layer")


def margin(outputs: Tensor, targets: Tensor) -> float:
    raise ValueError("three classes\nare too many")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda: nn.Linear(7, 3)}, r"model: a training step on rows of shape \(5,\) failed"),
        ({"model": lambda: nn.Linear(5, 4)}, "model: it gives 4 numbers a row, and the data has 3 classes; make its"),
        ({"model": lambda: nn.Unflatten(1, (1, 5))}, "no trainable parameters"),
        ({"model": lambda: nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)))}, r"output has shape \(10, 2, 3\)"),
        ({"model": fails}, "no such layer"),
        ({"model": lambda: 3}, "factory"),
        ({"optimizer": lambda params: torch.optim.SGD(params, lr=-1.0)}, "optimizer.*learning rate"),
        ({"optimizer": [torch.optim.SGD] * 2}, "2 given for 3 tasks"),
        ({"scheduler": lambda optimizer: optimizer.nothing}, "cannot be set up"),
        ({"metric": margin}, "metric: margin"),
        ({"loss": lambda outputs, targets: outputs.nothing}, "failed|fails"),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "sequential", "vectorised"])
def test_what_cannot_train_at_all(lab: SimpleNamespace, asked: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        choose_engine(asked, lab.make_job(**changes))
    assert "\n" not in str(caught.value)


def test_an_unknown_engine(lab: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="engine: unknown name 'vectorized', did you mean 'vectorised'"):
        choose_engine("vectorized", lab.make_job())


def test_a_model_that_draws_while_scored_leaves_the_global_state_alone(lab: SimpleNamespace) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(x.shape[0], 3, dtype=x.dtype)

    job = lab.make_job(model=lambda: Noisy(5, 3))
    with random.seeded(torch.device("cpu"), "outside"):
        before = torch.random.get_rng_state()
        engine, _ = choose_engine("auto", job)
        lab.train(lambda job: engine, job, epochs=1)
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("argument", "value"), [("resources", "cpus=1"), ("compression", "bf16")])
def test_what_is_for_the_cluster_is_refused_elsewhere(lab, argument, value):
    with pytest.raises(
        InputError, match=f"^{argument}: '{value}' is for the engine cluster, and engine is 'vectorised'"
    ):
        choose_engine("vectorised", lab.make_job(), **{argument: value})


@pytest.mark.parametrize("engine", ["cluster", "sequential"])
def test_optimizers_are_counted_before_anything_starts(lab: SimpleNamespace, engine: str) -> None:
    job = lab.make_job(tasks=3)
    job = dataclasses.replace(job, optimizer=[job.optimizer] * 2)
    with pytest.raises(InputError, match=r"^optimizer: 2 given for 3 tasks; give one, or one a task"):
        choose_engine(engine, job)
