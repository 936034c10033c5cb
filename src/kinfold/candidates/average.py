"""Weight averages along each task's own way: exponential (Polyak, Ruppert) and stochastic (SWA).

The trackers only watch; they change nothing of how a task trains. A transfer moves an average with the parameters,
by the same copy, mixture or mask.
"""

import copy
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinfold.candidates.base import Built, Candidate, Finished, measure_batch_norm
from kinfold.engines import Job
from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State
from kinfold.methods.ema import check_decay, exponential_step, start_average, towards


@final
@dataclass(frozen=True)
class ExponentialAverage(Candidate):
    """a ← d a + (1 − d) θ after every step, with d = min(decay, (1 + k) / (10 + k)) at step k, from each task's start.

    The warm-up of d is that of TensorFlow's `ExponentialMovingAverage` (`num_updates`); the average of the iterates
    is Polyak and Juditsky's (*Acceleration of Stochastic Approximation by Averaging*, 1992).

    Attributes:
        decay: d, at most.

    Example:
        >>> ExponentialAverage(decay=0.9).name
        'ema'
    """

    name = "ema"
    decay: float | int = 0.99

    def __post_init__(self) -> None:
        check_decay("ema", self.decay)

    def tracker(self, epochs: int) -> Method:
        del epochs
        return _Exponential(self.decay)

    def build(self, finished: Finished, watched: State) -> list[Built]:
        return _averages(finished, watched)


@final
@dataclass(frozen=True)
class StochasticAverage(Candidate):
    """The mean of a task's parameters at the ends of its last periods.

    Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, UAI 2018
    (arXiv:1803.05407), algorithm 1, with the run's own schedule in place of their cyclic or constant rate.

    Attributes:
        last: share of the schedule whose periods enter the mean.

    Example:
        >>> StochasticAverage(last=0.5).name
        'swa'
    """

    name = "swa"
    last: float | int = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.last <= 1.0:
            raise InputError(f"swa: last is {self.last!r}; give a number above 0, and at most 1.")

    def tracker(self, epochs: int) -> Method:
        counted = math.ceil(round(self.last * epochs, 9))  # 0.07 · 100 is a little more than 7
        return _Stochastic(first=max(1, epochs - counted + 1))

    def build(self, finished: Finished, watched: State) -> list[Built]:
        return _averages(finished, watched)


@final
@dataclass(frozen=True)
class _Exponential(Method):
    decay: float | int

    def start(self, params: Params, context: Context) -> State:
        del context
        return start_average(params)

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, exponential_step(params, state, self.decay)


@final
@dataclass(frozen=True)
class _Stochastic(Method):
    first: int

    def start(self, params: Params, context: Context) -> State:
        del context
        zero = next(iter(params.values())).new_zeros(())
        return {"period": zero, **start_average(params)}

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        del score
        period = state["period"] + 1
        counts = (period >= self.first).to(period.dtype)
        count = state["count"] + counts
        # Before the first that counts, the average is the present parameters: a run may stop by patience.
        share = torch.where(counts > 0, 1 / count.clamp_min(1), 1.0)
        return params, {"period": period, "count": count, **towards(params, state, share)}


def averaged_model(
    model: nn.Module, watched: State, t: int, job: Job, rows: Bool[Tensor, " N"], words: tuple[int | str, ...]
) -> nn.Module | None:
    """Returns a copy of a task's model that holds the average, batch norm measured anew; None if it diverged.

    Args:
        model: the task's model, for all that is not averaged.
        watched: state [T, …] of a tracker.
        t: the task.
        job: the inputs, batch size, device and seed.
        rows: [N] rows to measure batch-norm statistics on.
        words: what the order of these rows is keyed by, besides the seed.
    """
    averages = {name.partition("/")[2]: value[t].cpu() for name, value in watched.items() if "/" in name}
    if not all(bool(value.isfinite().all()) for value in averages.values()):
        return None
    result = copy.deepcopy(model)
    own = dict(result.named_parameters())
    with torch.no_grad():
        for name, value in averages.items():
            own[name].copy_(value)
    measure_batch_norm(result, job, rows, words=words)
    return result.cpu()


def _averages(finished: Finished, watched: State) -> list[Built]:
    job, built = finished.job, []
    for t, member in enumerate(finished.members):
        if finished.progress.health.aside[t]:  # what it diverged to is in its average
            continue
        model = averaged_model(member, watched, t, job, job.train[t], ("average", t))
        if model is not None:
            built.append(Built("average", model, finished.progress.ledger.exposed[t], (t,)))
    return built
