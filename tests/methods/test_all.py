"""Every method in a run: on each engine, under rules of each kind, resumed, with its promises kept by transfers.

A method that promises something of its tasks has an entry in `HOLDS`, which is checked after a run with transfers.
"""

import dataclasses
import sys
from functools import partial

import pytest
import torch
from torch import nn

from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.methods import METHODS
from kinfold.methods.base import OWN
from kinfold.run import Progress, run
from kinfold.tasks.objective import make_objective
from kinfold.transfer import AMTO, PAPA, TeachRule

N, T = 36, 3
ENGINES = {"sequential": Sequential, "vectorised": Vectorised, "workers": partial(Workers, processes=2)}
RULES = {"amto": AMTO(p_low=1.0, p_high=1.0), "papa": PAPA(steps=2), "teach": TeachRule(cool=2.0)}


def averages_are_near(engine):
    """An average that did not move with its parameters would be as far away as another task."""
    for t in range(T):
        for name, value in engine.stack.params.items():
            own = (engine.states[0][f"average/{name}"][t] - value[t]).norm()
            assert own < 0.5 * value[t].norm() + 0.1, name


def pruned_channels_are_zero(engine):
    (state,) = engine.states
    for t in range(T):
        for name, rows in ((name, rows[t]) for name, rows in state.items() if name.startswith("own/group/")):
            value = engine.stack.params[name.removeprefix("own/group/")][t]
            assert bool((value[(rows >= 0) & state["pruned"][t][rows]] == 0).all()), name


def knows_its_own_rows(engine):
    """What was told by a task's own rows at the start is what a fresh start would tell."""
    for name, value in Sequential(engine.job).states[0].items():
        if name in ("own/kept", "own/low", "own/high"):
            assert torch.equal(engine.states[0][name], value), name


HOLDS = {
    "adversarial": knows_its_own_rows,
    "dataset_quantization": knows_its_own_rows,
    "ema": averages_are_near,
    "hesso": pruned_channels_are_zero,
    "mtard": knows_its_own_rows,
}


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def job():
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(3, (N,), generator=generator)
    x = torch.randn(N, 1, 4, 4, generator=generator) + y.view(-1, 1, 1, 1)
    validation = torch.stack([torch.arange(N) % 4 == t for t in range(T)])
    objective = make_objective("classification", 3, None, None, torch.device("cpu"), torch.float64)
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    return Job(
        *(network, TensorInputs(x), y, ~validation, validation, objective, optimizer, None),
        batch_size=9,
        periods=2,
        precision="float64",
        seed=2,
    )


def trained(kind, job, rule, epochs=2):
    engine, events = kind(job), []
    progress = Progress.start(job, rule)
    everyone = torch.ones(N, dtype=torch.bool)
    run(engine, job, rule, progress, epochs=epochs, patience=None, unsealed=everyone, listen=events.append)
    return engine, progress


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


def assert_alike(one, progress, other, theirs):
    tensors, others = one.state()[0], other.state()[0]
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(value, others[key], rtol=1e-8, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(progress.best, theirs.best)
    assert progress.accepted == theirs.accepted
    other.close()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_on_each_engine(job, method, rule, make):
    job = dataclasses.replace(job, methods=(make(method),))
    engines = {name: trained(engine, job, rule) for name, engine in ENGINES.items()}
    one, progress = engines.pop("sequential")
    for other in engines.values():
        assert_alike(one, progress, *other)
    HOLDS.get(method, lambda engine: None)(one)
    exported = one.export(0)
    rows = torch.arange(5)
    assert exported(job.inputs.rows(rows).double()).shape == (5, 3)


@pytest.fixture(scope="module")
def cluster():
    """Makes engines on a Ray of this process's own; what is defined in tests goes along by value."""
    ray = pytest.importorskip("ray")
    from kinfold.engines.cluster import Cluster

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, **quiet)
    modules = [sys.modules[__name__], *(m for name, m in sys.modules.items() if name.endswith("methods.conftest"))]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    yield partial(Cluster, resources="cpus=1")
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_on_a_cluster(job, method, rule, make, cluster):
    job = dataclasses.replace(job, methods=(make(method),))
    assert_alike(*trained(Sequential, job, rule), *trained(cluster, job, rule))


def test_resumes_to_an_equal_checkpoint(job, method, make):
    rule = RULES["papa"]
    job = dataclasses.replace(job, methods=(make(method),), periods=3)
    whole, _ = trained(Vectorised, job, rule, epochs=3)
    engine, progress = trained(Vectorised, job, rule, epochs=2)
    again = Vectorised(job)
    again.restore(*engine.state())
    everyone = torch.ones(N, dtype=torch.bool)
    run(again, job, rule, progress, epochs=3, patience=None, unsealed=everyone, listen=lambda event: None)
    tensors, others = whole.state()[0], again.state()[0]
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]), key


def test_state_is_shaped_alike_for_all_tasks_and_stays_so(job, method, make):
    """Of tasks with unequal rows; what is a task's own is not named like what moves."""
    train = job.train.clone()
    train[0, :6] = False
    job = dataclasses.replace(job, methods=(make(method),), train=train)
    (before,) = Sequential(job).states
    engine, _ = trained(Sequential, job, RULES["amto"])
    (after,) = engine.states
    assert {n: (v.shape, v.dtype) for n, v in before.items()} == {n: (v.shape, v.dtype) for n, v in after.items()}
    by_rows = [name for name, value in after.items() if value.ndim > 1 and value.shape[1] == N]
    assert all(name.startswith(OWN) for name in by_rows), by_rows
