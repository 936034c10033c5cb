"""Recorded steps: the same training as without, and none where a recording could go wrong."""

import random as python_random
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold.engines import local
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.simplify import simplify
from kinfold.engines.vectorised import Vectorised
from kinfold.methods.base import Method, Params, State, ValueAndGrad
from kinfold.models import factory
from kinfold.tasks.order import Segment

ENGINES = (Sequential, Vectorised)


pytestmark = pytest.mark.usefixtures("recorded")


class Sharpened(Method):
    """Gradients at a point a little uphill, from two passes."""

    def gradients(self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Tensor) -> Any:
        _, grads = value_and_grad(params)
        return value_and_grad({name: value + 0.05 * grads[name] for name, value in params.items()})


class Images(nn.Module):
    """A small convolution with batch norm and dropout over rows taken for images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 3, 3, padding=1, bias=False)
        self.norm, self.drop, self.linear = nn.BatchNorm1d(3), nn.Dropout(0.25), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(F.relu(self.norm(self.convolution(x[:, None])))).flatten(1))


class Recurrent(nn.Module):
    """Cannot be stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.linear = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.cell(x[:, :, None])[0][:, -1])


CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "adam": {"optimizer": partial(torch.optim.Adam, lr=0.01)},
    "images": {"model": Images},
    "batch norm": {"model": factory({"name": "mlp", "hidden": [8, 6], "batch_norm": True}, (5,), 3)},
    "table": {"model": factory({"name": "tabular-resnet", "width": 8, "blocks": 2}, (5,), 3)},
    "recurrent": {"model": Recurrent},
    "two passes": {"methods": (Sharpened(),)},
    "other sizes": {"sizes": (44, 31, 30)},
    "accumulated": {"accumulate": 3, "clip_norm": 0.5},
    "class weights": {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))},
    "a loss of torch": {"loss": partial(F.cross_entropy, label_smoothing=0.1)},
}


def unrecorded(make: Any, job: Any) -> LocalEngine:
    engine: LocalEngine = make(job)
    engine._recorder.possible = False
    return engine


@pytest.mark.parametrize(
    ("make", "name"), [(e, n) for e in ENGINES for n in CASES if (e, n) != (Vectorised, "recurrent")]
)
def test_a_recorded_run_is_the_same_run(lab: SimpleNamespace, make: Any, name: str) -> None:
    job = lab.make_job(**CASES[name])
    recorded, called = lab.train(make, job), lab.train(partial(unrecorded, make), job)
    assert recorded.engine._recorder._programs
    lab.assert_agree(recorded, called)


def test_a_recurrent_layer_is_recorded_in_single_precision_too(lab: SimpleNamespace) -> None:
    """OneDNN's kernel, which keeps for the backward pass what it needs only where gradients may be asked for."""
    job = lab.make_job(model=Recurrent, precision="float32")
    recorded, called = lab.train(Sequential, job), lab.train(partial(unrecorded, Sequential), job)
    assert recorded.engine._recorder._programs
    for name, value in called.engine.stack.params.items():
        torch.testing.assert_close(recorded.engine.stack.params[name], value)
        assert not recorded.engine.stack.params[name].requires_grad


@pytest.mark.parametrize("make", ENGINES)
def test_a_recording_draws_anew_at_every_step(lab: SimpleNamespace, make: Any) -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * torch.rand(len(x), 3, dtype=x.dtype)

    engine = make(lab.make_job(model=Noise, optimizer=partial(torch.optim.SGD, lr=0.0)))
    losses = torch.stack([engine.train(Segment(1, step, step + 1)) for step in range(4)])
    assert engine._recorder._programs
    assert len(losses.flatten().unique()) == losses.numel()


def test_no_state_of_random_generators_is_moved(lab: SimpleNamespace) -> None:
    engine = Vectorised(lab.make_job(model=Images))
    before = torch.get_rng_state()
    engine.train(Segment(1))
    assert engine._recorder._programs
    assert torch.equal(torch.get_rng_state(), before)


class Counting(nn.Module):
    """Its output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(5, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) / self.calls


class Listing(Counting):
    """Keeps what it did in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.linear(x)


class DrawsInPython(Counting):
    """Drops its output at random, by Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (python_random.random() < 0.5)


class DrawsInNumPy(Counting):
    """The same, by NumPy's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(np.random.rand())  # noqa: NPY002


class Branching(Counting):
    """Its control flow depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Masking(Counting):
    """The size of what it works on depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[x[:, 0] > 0]
        return self.linear(x) + (kept.mean() if len(kept) else 0.0)


class DrawsByItsOwn(Counting):
    """Drops its output at random, by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(self.generator.random() < 0.5)


class Configured(Counting):
    """Reads an object of which it cannot be seen whether it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.config.scale


class OwnLoss(nn.Module):
    """May change as it likes."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class Caching(nn.Module):
    """Makes a table in its first pass, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(5, 3), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(5.0, dtype=torch.float64)
        return self.linear(x + self.table)


def hooked() -> nn.Module:
    model = nn.Linear(5, 3)
    model.register_forward_hook(lambda *_: None)
    return model


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Counting},
        {"model": Listing},
        {"model": DrawsInPython},
        {"model": DrawsInNumPy},
        {"model": Branching},
        {"model": Masking},
        {"model": DrawsByItsOwn},
        {"model": Configured},
        {"model": hooked},
        {"loss": own_loss},
        {"loss": OwnLoss()},
    ],
    ids=lambda changes: getattr(next(iter(changes.values())), "__name__", "OwnLoss"),
)
def test_what_could_go_wrong_is_not_recorded(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(local, "UNRECORDED", 0)
    engine = Sequential(lab.make_job(**changes))
    python, numbers = python_random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        engine.train(Segment(1))
    finally:
        python_random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
    assert not engine._recorder.possible
    assert not engine._recorder._programs


def test_a_changed_attribute_is_recorded_anew(lab: SimpleNamespace) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.linear(x)

    engines = Vectorised(lab.make_job(model=Scaled)), unrecorded(Vectorised, lab.make_job(model=Scaled))
    for period in (1, 2):
        for engine in engines:
            engine.stack.module.scale = 1.0 / period
            engine.train(Segment(period))
    assert engines[0]._recorder._programs
    lab.assert_close(*(engine.stack.params for engine in engines))


@pytest.mark.parametrize("make", ENGINES)
def test_what_a_first_pass_makes_is_no_obstacle(lab: SimpleNamespace, make: Any) -> None:
    """An engine of a run that goes on has not been probed: its first step may be a recorded one."""
    engine = make(lab.make_job(model=Caching))
    engine.train(Segment(2))
    assert engine._recorder._programs


def test_short_stretches_of_a_period_are_not_recorded(lab: SimpleNamespace) -> None:
    sizes = (44, *range(43, 11, -1))
    engine = Vectorised(lab.make_job(tasks=len(sizes), sizes=sizes, batch_size=1))
    engine.train(Segment(1))
    assert len(engine._recorder._programs) == 1


@pytest.mark.parametrize("cut", [1, 3])
def test_what_is_recorded_does_not_hang_on_where_a_period_is_cut(lab: SimpleNamespace, cut: int) -> None:
    job = lab.make_job(sizes=(44, 31, 30), accumulate=2)
    whole, parts = Vectorised(job), Vectorised(job)
    whole.train(Segment(1))
    parts.train(Segment(1, 0, cut))
    parts.train(Segment(1, cut))
    assert set(whole._recorder._programs) == set(parts._recorder._programs)


def test_a_verdict_survives_a_checkpoint(lab: SimpleNamespace) -> None:
    one, other = Sequential(lab.make_job(model=Counting)), Sequential(lab.make_job(model=Counting))
    one.train(Segment(1))
    other.restore(*one.state())
    assert not other._recorder.possible


def test_gradients_of_stacked_layers_lie_as_their_weights(lab: SimpleNamespace) -> None:
    engine = Vectorised(lab.make_job())
    index = torch.arange(10).expand(3, 10)
    batch = engine._batch(torch.arange(3), index)
    for record in (False, True):
        _, grads, _ = engine._value_and_grads(engine.stack, batch, [], engine._keys, record)
        as_they_are = [grads[name].stride() == value.stride() for name, value in engine.stack.params.items()]
        assert all(as_they_are) == record


def test_a_product_that_is_read_twice_is_not_written_over() -> None:
    def both(a: Tensor, b: Tensor, bias: Tensor) -> list[Tensor]:
        product = torch.bmm(a, b)
        total = product + bias
        return [(bias + product).relu(), product * 2.0, total, total.relu(), torch.bmm(a, b).mT]

    draws = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draws) for shape in ((2, 3, 4), (2, 4, 5), (2, 1, 5))]
    module = make_fx(both)(*given)
    expected = both(*given)
    simplify(module.graph)
    module.recompile()
    for one, other in zip(expected, module.forward(*given), strict=True):
        torch.testing.assert_close(one, other)
