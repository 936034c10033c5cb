"""Small jobs, and whole runs of them on any engine."""

import dataclasses
import gc
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from kinfold.data.base import TensorInputs
from kinfold.engines import Engine, Job, local, recording, vectorised
from kinfold.engines.captured import Graph, Pass
from kinfold.run import Progress, run
from kinfold.tasks.objective import make_objective
from kinfold.transfer import Mix, Nothing, Plan, Rule, View

N, FEATURES, CLASSES = 64, 5, 3


def network(batch_norm: bool = False) -> nn.Module:
    """No bias before batch norm: its gradient is only rounding, which adaptive optimizers blow up."""
    if batch_norm:
        return nn.Sequential(nn.Linear(FEATURES, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES))
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def make_job(tasks: int = 3, regression: bool = False, sizes: tuple[int, ...] | None = None, **changes: Any) -> Job:
    """A job of `tasks` tasks in float64 on 64 rows, the last four of them sealed; `sizes` are the training rows."""
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(N, FEATURES, dtype=torch.float64, generator=draws)
    noisy = x @ torch.randn(FEATURES, CLASSES, dtype=torch.float64, generator=draws)
    noisy = noisy + 0.5 * torch.randn(N, CLASSES, dtype=torch.float64, generator=draws)
    targets = noisy[:, :2] if regression else noisy.argmax(1)
    train, validation = torch.zeros(tasks, N, dtype=torch.bool), torch.zeros(tasks, N, dtype=torch.bool)
    for t in range(tasks):
        rows = torch.randperm(N - 4, generator=torch.Generator().manual_seed(t))
        train[t, rows[: 44 if sizes is None else sizes[t]]] = True
        validation[t, rows[46:]] = True
    kind, outputs = ("regression", 2) if regression else ("classification", CLASSES)
    device, dtype = torch.device("cpu"), torch.float64
    objective = make_objective(kind, outputs, changes.pop("loss", None), changes.pop("metric", None), device, dtype)
    job = Job(
        model=network,
        inputs=TensorInputs(x.float()),
        targets=targets,
        train=train,
        validation=validation,
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
        batch_size=10,
        seed=3,
        precision="float64",
    )
    return dataclasses.replace(job, **changes)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded from the first on; and although, under test, checking types draws from Python's generator."""
    monkeypatch.setattr(local, "UNRECORDED", 0)
    monkeypatch.setattr(recording, "_python_state", lambda: None)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that hold two tasks."""
    monkeypatch.setattr(vectorised, "_CACHED", 0)
    monkeypatch.setattr(vectorised, "_FEWEST", 2)


@dataclass
class Trained:
    """An engine after a run, where the run stands, and what was told of it."""

    engine: Engine
    progress: Progress
    events: list[dict[str, Any]]


def train(
    make: Callable[[Job], Engine], job: Job, rule: Rule | None = None, epochs: int = 4, rescues: int = 0
) -> Trained:
    rule = Nothing() if rule is None else rule
    engine, events = make(job), []
    progress = Progress.start(job, rule)
    unsealed = torch.arange(N) < N - 4
    given = {"epochs": epochs, "patience": None, "rescues": rescues, "unsealed": unsealed}
    run(engine, job, rule, progress, listen=events.append, **given)
    return Trained(engine, progress, events)


@dataclass(frozen=True)
class Planting(Rule):
    """Blows up some tasks, through a plan like any other, so that every engine does it in its own way."""

    name = "planting"
    until = 1.0
    blown: tuple[int, ...] = (3,)

    def plan(self, view: View, state: Any, generator: torch.Generator) -> Any:
        if view.period != 1:
            return None, state
        weights = torch.eye(len(view.sound), dtype=torch.float64)
        weights[list(self.blown), :2] += torch.tensor([1e12, -1e12], dtype=torch.float64)  # in sum they are still 1
        return Plan((Mix(weights),), moments="keep"), state


def assert_close(a: Any, b: Any, where: str = "") -> None:
    """Trees are equal, their numbers to rounding in float64."""
    if isinstance(a, Tensor):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True, msg=lambda m: f"{where}: {m}")
        else:
            assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_close(one, other, f"{where}/{i}")
    elif isinstance(a, float):
        assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b)), (where, a, b)
    else:
        assert a == b, (where, a, b)


def assert_agree(one: Trained, other: Trained) -> None:
    """Two engines ended in the same place, by the same way."""
    (tensors, values), (other_tensors, other_values) = one.engine.state(), other.engine.state()
    for optimizer in (*values["optimizers"], *other_values["optimizers"]):
        del optimizer["fused"]  # the form of the step is the one thing in which they may differ
    for chosen in ("recordable", "channels_last", "threads", "together"):  # likewise
        del values[chosen], other_values[chosen]
    assert_close((tensors, values), (other_tensors, other_values), "state")
    for name in ("best", "stale", "best_exposed", "by_pair", "rule", "proposed", "accepted"):
        assert_close(getattr(one.progress, name), getattr(other.progress, name), name)
    assert torch.equal(one.progress.ledger.exposed, other.progress.ledger.exposed)
    untimed = [[{k: v for k, v in e.items() if k != "seconds"} for e in run.events] for run in (one, other)]
    assert_close(*untimed, "events")
    rows = torch.arange(7)
    assert_close(one.engine.predict(rows, best=True), other.engine.predict(rows, best=True), "predictions")
    for t in range(len(one.progress.stale)):
        assert_close(one.engine.export(t).state_dict(), other.engine.export(t).state_dict(), f"export {t}")


class Replaying(Graph):
    """What a GPU would do: rehearse, capture without computing, and compute in the same memory at every replay."""

    made = 0
    """By the test that runs."""

    def __init__(self, like: Graph | None) -> None:
        Replaying.made += 1
        self.like = like

    def capture(self, function: Callable[[], Pass]) -> Pass:
        for _ in range(2):
            function()
        self._function = function
        self._results = tree_map(lambda value: torch.full_like(value, torch.nan), function())
        return self._results

    def replay(self) -> None:
        for own, new in zip(tree_leaves(self._results), tree_leaves(self._function()), strict=True):
            own.copy_(new)


@pytest.fixture
def lab() -> Any:
    """The functions above (test modules cannot import each other)."""
    from types import SimpleNamespace

    Replaying.made = 0
    return SimpleNamespace(
        N=N,
        network=network,
        make_job=make_job,
        train=train,
        Planting=Planting,
        assert_agree=assert_agree,
        assert_close=assert_close,
        Replaying=Replaying,
    )


@pytest.fixture(scope="module")
def cpus() -> Iterator[None]:
    """A Ray of this process's own, with two CPUs."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
    gc.collect()  # what says that it still runs, says so here


@pytest.fixture
def own_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is defined in tests goes along by value: actors of Ray cannot import it."""
    ray = pytest.importorskip("ray")
    modules = [request.module, sys.modules[__name__]]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)
