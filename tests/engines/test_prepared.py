"""Prepared steps: bit for bit those that are looked up each time, and none where more has a part in a step."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from kinfold import random
from kinfold.data.image_files import HeldPixels
from kinfold.data.images import ImageInputs, Units
from kinfold.data.series import MaskedInputs
from kinfold.engines import local
from kinfold.engines.local import LocalEngine
from kinfold.engines.prepared import Prepared
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.methods import EMA, SAM, LabelSmoothing, Mixup
from kinfold.tasks.order import Segment
from kinfold.transfer.changes import Teach

pytestmark = pytest.mark.usefixtures("recorded")

ENGINES = (Sequential, Vectorised)
PERIODS = 3


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))


class Partly(nn.Module):
    """Has a frozen layer, and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.linear = nn.Linear(5, 6).requires_grad_(False), nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.frozen(x)))


class Masked(nn.Module):
    """Reads series of unequal lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear((x * mask[:, None]).flatten(1))


def series() -> MaskedInputs:
    return MaskedInputs(torch.randn(64, 2, 2, generator=random.generator(0, "series")), torch.arange(64) % 2 + 1)


def pictures() -> ImageInputs:
    pixels = torch.randint(0, 256, (64, 1, 2, 3), dtype=torch.uint8, generator=random.generator(0, "pictures"))
    return ImageInputs(HeldPixels(pixels), Units([0.5], [0.25]))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tasks that take a prepared step."""
    steps: list[int] = []
    called = Prepared.__call__

    def counted(self: Prepared, keys: Tensor) -> Tensor:
        losses = called(self, keys)
        steps.append(losses.numel())
        return losses

    monkeypatch.setattr(Prepared, "__call__", counted)
    return steps


def trained(engine: LocalEngine, prepared: bool, teach: Teach | None = None, reset: bool = False) -> LocalEngine:
    if not prepared:
        engine._prepared = lambda *_: False  # type: ignore[method-assign]
    if teach is not None:
        engine.learn(teach)
    for period in range(1, PERIODS + 1):
        losses = engine.train(Segment(period))
        engine.end_period(torch.stack([losses, losses], 1))
        if reset:
            engine.updater.reset(torch.arange(engine.job.tasks) == 1)
    return engine


def assert_same(one: LocalEngine, other: LocalEngine) -> None:
    (tensors, values), (expected, wanted) = one.state(), other.state()
    torch.testing.assert_close(tensors, expected, rtol=0.0, atol=0.0)
    assert values == wanted


CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": partial(Adam, lr=0.01, amsgrad=True)},
    "adamw": {"optimizer": partial(AdamW, lr=0.01)},
    "groups": {"optimizer": lambda params: SGD([{"params": [p], "lr": 0.1 / (1 + p.ndim)} for p in params])},
    "batch norm and dropout": {"model": dropping},
    "parts that are not trained": {"model": Partly},
    "other sizes": {"sizes": (44, 31, 44)},
    "weighted rows": {"weights": torch.linspace(0.5, 2.0, 64, dtype=torch.float64)},
    "methods": {"methods": (LabelSmoothing(), Mixup())},
    "two passes": {"methods": (SAM(),)},
    "two passes that do not reach all": {"methods": (SAM(),), "model": Partly},
    "one task": {"tasks": 1},
    "several inputs": {"inputs": series(), "model": Masked},
    "pixels": {"inputs": pictures(), "model": lambda: nn.Sequential(nn.Conv2d(1, 3, (2, 3)), nn.Flatten())},
    "images": {"model": lambda: nn.Sequential(nn.Unflatten(1, (1, 5, 1)), nn.Conv2d(1, 3, (5, 1)), nn.Flatten())},
}


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_they_are_the_same_steps(lab: SimpleNamespace, taken: list[int], make: Any, name: str) -> None:
    job = lab.make_job(**CASES[name])
    swift = trained(make(job), prepared=True)
    assert taken
    assert_same(swift, trained(make(job), prepared=False))


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("unlabelled", [lambda job: torch.zeros_like(job.train), lambda job: job.validation])
def test_so_they_are_where_other_tasks_teach(
    lab: SimpleNamespace, taken: list[int], make: Any, unlabelled: Any
) -> None:
    job = lab.make_job()
    soft, teachers = torch.full((3, 64, 3), 1 / 3, dtype=torch.float64), ~torch.eye(3, dtype=torch.bool)
    lesson = Teach(soft, torch.tensor([0.2, 0.5, 0.0], dtype=torch.float64), teachers, unlabelled(job))
    swift = trained(make(job), prepared=True, teach=lesson)
    assert taken
    assert_same(swift, trained(make(job), prepared=False, teach=lesson))


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01)])
def test_so_they_are_where_each_task_has_an_optimizer(lab: SimpleNamespace, taken: list[int], optimizer: Any) -> None:
    job = lab.make_job(optimizer=optimizer)
    swift = trained(Vectorised(job), prepared=True, reset=True)
    assert not swift.updater.fused
    assert len(taken) > PERIODS  # after the reset, too
    assert_same(swift, trained(Vectorised(job), prepared=False, reset=True))


@pytest.mark.usefixtures("narrow")
def test_so_they_are_in_lanes(lab: SimpleNamespace, taken: list[int]) -> None:
    job = lab.make_job(tasks=5)
    swift = trained(Vectorised(job), prepared=True)
    assert set(taken) == {1, 2}
    assert_same(swift, trained(Vectorised(job), prepared=False))


def hooked(params: Any) -> SGD:
    optimizer = SGD(params, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 1.0},
        {"accumulate": 2},
        {"methods": (EMA(),)},
        {"optimizer": hooked},
        {"optimizer": partial(RMSprop, lr=0.01)},
        {"optimizer": partial(SGD, lr=0.1, foreach=True)},
        {"loss": lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)},
    ],
    ids=["clipped", "accumulated", "a method around the step", "a hook", "another optimizer", "another form", "a loss"],
)
def test_there_are_none_where_more_has_a_part(
    lab: SimpleNamespace, taken: list[int], make: Any, changes: dict[str, Any]
) -> None:
    trained(make(lab.make_job(**changes)), prepared=True)
    assert not taken


def test_there_are_none_before_steps_are_recorded(
    lab: SimpleNamespace, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "UNRECORDED", 1000)
    trained(Vectorised(lab.make_job()), prepared=True)
    assert not taken


def test_all_steps_are_prepared_once_there_is_a_recording(lab: SimpleNamespace, taken: list[int]) -> None:
    engine = Vectorised(lab.make_job())
    engine.train(Segment(1))  # optimizers' first step is torch's own, and its kernel takes over from the second on
    steps = int(engine.steps(1).max())
    assert len(taken) < steps
    taken.clear()
    engine.train(Segment(2))
    assert len(taken) == steps
