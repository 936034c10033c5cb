"""Finished runs made by hand: members, scores and exposures as a test wants them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinfold.candidates import Finished
from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.run import Progress
from kinfold.selection import Ledger
from kinfold.tasks.objective import make_objective
from kinfold.transfer import Nothing

N, FEATURES, CLASSES, SEALED = 30, 4, 3, 3


def make_job(tasks: int = 3, **changes: Any) -> Job:
    """A job in float64 on 30 rows, the last three sealed; task t validates on the nine rows from 9 t."""
    draws = torch.Generator().manual_seed(1)
    unsealed = torch.arange(N) < N - SEALED
    validation = torch.stack([(torch.arange(N) // 9 == t) & unsealed for t in range(tasks)])
    given = {
        "model": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)),
        "inputs": TensorInputs(torch.randn(N, FEATURES, generator=draws)),
        "targets": torch.randint(CLASSES, (N,), generator=draws),
        "train": unsealed & ~validation,
        "validation": validation,
        "objective": make_objective("classification", CLASSES, None, None, torch.device("cpu"), torch.float64),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "scheduler": None,
        "batch_size": 5,
        "seed": 2,
        "precision": "float64",
    }
    return Job(**{**given, **changes})


def make_finished(
    job: Job,
    members: Sequence[nn.Module],
    *,
    overall: Callable[[nn.Module], float] = lambda model: 0.0,
    unscored: Sequence[int] = (),
    best_exposed: Tensor | None = None,
    exposed: Tensor | None = None,
) -> Finished:
    """A run of these members; `unscored` ones never had a finite score."""
    progress = Progress.start(job, Nothing())
    progress.best[:] = 0.5
    progress.best[list(unscored)] = torch.nan
    if best_exposed is not None:
        progress.best_exposed = best_exposed
    if exposed is not None:
        progress.ledger = Ledger(exposed)
    return Finished(job, progress, torch.arange(N) < N - SEALED, tuple(members), overall)


@pytest.fixture
def lab() -> Any:
    """The functions above (test modules cannot import each other)."""
    from types import SimpleNamespace

    return SimpleNamespace(N=N, make_job=make_job, make_finished=make_finished)
