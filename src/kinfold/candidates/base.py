"""What a candidate is: a way to make further models from a finished run, one of which may be handed back.

Legend: T tasks, K candidates, N rows, m some of them, C classes or outputs.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kinfold import random
from kinfold.engines import Job
from kinfold.methods.base import Method, State
from kinfold.run import Progress

Kind: TypeAlias = Literal["task", "soup", "average", "distilled"]
"""What a model that is handed back may be: one task's own, or put together from several."""

_MEASURING_BATCHES = 64  # batches that batch-norm statistics are the mean of; the rows of small sets all take part


@dataclass(frozen=True)
class Finished:
    """A run whose tasks have ended, and what a candidate may need of it.

    Attributes:
        job: what was trained.
        progress: where the run stands.
        unsealed: [N] rows that may be used.
        members: every task's best snapshot, T of them.
        overall: from a model to the one number that the run selects by, higher is better; NaN where undefined.
    """

    job: Job
    progress: Progress
    unsealed: Bool[Tensor, " N"]
    members: tuple[nn.Module, ...]
    overall: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Built:
    """One model put together from the tasks' own.

    Attributes:
        kind: what it is.
        model: in eval mode, on the CPU.
        exposed: [N] rows that it, or anything it learned from, has trained on.
        members: the tasks that entered it; the one of an average.
    """

    kind: Kind
    model: nn.Module
    exposed: Bool[Tensor, " N"]
    members: tuple[int, ...]


class Candidate(abc.ABC):
    """Makes models from a finished run.

    Attributes:
        name: as in `kinfold.candidates.CANDIDATES`.
    """

    name: ClassVar[str]

    def tracker(self, epochs: int) -> Method | None:
        """Returns a method that watches every task while it trains for so many periods, or None."""
        del epochs
        return None

    @abc.abstractmethod
    def build(self, finished: Finished, watched: State) -> list[Built]:
        """Returns the models.

        Args:
            finished: the run.
            watched: the state [T, …] of its tracker.
        """


def measure_batch_norm(model: nn.Module, job: Job, rows: Bool[Tensor, " N"], *, words: tuple[int | str, ...]) -> None:
    """Measures a model's batch-norm statistics anew as plain means over batches of the rows, in place.

    Args:
        model: whose parameters were put together, so that nobody has measured its statistics.
        job: the inputs, batch size, device and seed.
        rows: [N] rows to measure on.
        words: what the order of the rows is keyed by, besides the seed.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    order = rows.nonzero().flatten()
    order = order[random.permutation(random.key(job.seed, *words), len(order))].to(job.device)
    inputs = job.inputs.to(job.device, job.dtype)
    momenta = [layer.momentum for layer in layers]
    model.to(job.device, job.dtype).eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    size = min(job.batch_size, len(order))
    batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    with torch.no_grad(), random.seeded(job.device, job.seed, *words):
        for x in inputs.batches(batches[:_MEASURING_BATCHES]):
            model(*x) if isinstance(x, tuple) else model(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
