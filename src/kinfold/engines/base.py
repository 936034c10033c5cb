"""What an engine is: it knows T and devices, and no mathematics of transfer.

Legend: T tasks, N rows, C classes or outputs.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from kinfold.data.base import Inputs
from kinfold.methods.base import Method
from kinfold.methods.chain import check_chain
from kinfold.tasks.objective import Objective
from kinfold.tasks.order import Segment
from kinfold.tasks.update import MakeOptimizer, MakeScheduler
from kinfold.transfer.base import Outcome, Plan

_CPU = torch.device("cpu")

Precision: TypeAlias = Literal["float32", "bf16", "float64"]


@dataclass(frozen=True)
class Job:
    """What an engine is to train.

    Attributes:
        model: a module (every task's start) or a factory.
        inputs: encoded rows, N.
        targets: [N] class numbers, or float values.
        train: [T, N] the tasks' training rows.
        validation: [T, N] their validation rows.
        objective: loss and metric.
        optimizer: one maker, or T.
        scheduler: maker of a schedule stepped once a period, or None.
        methods: chain of training methods, in order.
        batch_size: B.
        accumulate: batches whose mean gradient makes one optimizer step.
        clip_norm: greatest gradient norm of a task, or None.
        shared_start: whether a factory is called once for all tasks.
        better: what decides first, `metric` or `loss`.
        seed: of everything random.
        device: where the tasks live.
        precision: `bf16` keeps parameters in float32 and computes the forward pass under autocast.
        weights: [N] how much each row counts in losses and scores, or None where all count alike.
        periods: that each task is to take at most, for methods that plan ahead.
        channels_last: whether the weights of convolutions over images lie with their channels innermost: from there
            on, convolutions give outputs that do. The numbers are the same, to rounding.
    """

    model: nn.Module | Callable[[], nn.Module]
    inputs: Inputs
    targets: Shaped[Tensor, "N *K"]
    train: Bool[Tensor, "T N"]
    validation: Bool[Tensor, "T N"]
    objective: Objective
    optimizer: MakeOptimizer | Sequence[MakeOptimizer]
    scheduler: MakeScheduler | None
    methods: tuple[Method, ...] = ()
    batch_size: int = 64
    accumulate: int = 1
    clip_norm: float | int | None = None
    shared_start: bool = False
    better: Literal["metric", "loss"] = "metric"
    seed: int = 0
    device: torch.device = _CPU
    precision: Precision = "float32"
    weights: Float[Tensor, " N"] | None = None
    periods: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_chain(self.methods)

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.train)

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def on(self, device: torch.device) -> "Job":
        """Returns the same job for another device, its loss included."""
        return dataclasses.replace(self, device=device, objective=self.objective.on(device, self.dtype))

    def score(self, outputs: Float[Tensor, "m C"], rows: Int64[Tensor, " m"]) -> tuple[float, float]:
        """Returns (metric, higher is better; loss) of one model's outputs on some rows, by their weights."""
        weights = None if self.weights is None else self.weights[rows]
        return self.objective.score(outputs, self.targets[rows], weights)

    def scores(
        self, outputs: Sequence[Float[Tensor, "_ C"]], rows: Sequence[Int64[Tensor, " _"]]
    ) -> Float[Tensor, "k 2"]:
        """Returns `score` of k models, each on rows of its own, in float64."""
        weights = None if self.weights is None else [self.weights[own] for own in rows]
        lengths = [len(own) for own in rows]
        targets = torch.split(self.targets[torch.cat(list(rows))], lengths) if lengths else []
        pairs = self.objective.scores(outputs, targets, weights)
        return torch.tensor(pairs, dtype=torch.float64)


class Engine(abc.ABC):
    """Trains, scores and changes T tasks. One subclass is one way of running them."""

    name: str

    @abc.abstractmethod
    def train(self, segment: Segment) -> Float[Tensor, " T"]:
        """Trains every task over a stretch of a period; returns each task's mean loss over its batches."""

    @abc.abstractmethod
    def steps(self, period: int) -> Int64[Tensor, " T"]:
        """Returns how many batches each task trains on in a period."""

    @abc.abstractmethod
    def score(self) -> Float[Tensor, "T 2"]:
        """Returns each task's (metric, higher is better; loss) on its own validation rows, in float64."""

    @abc.abstractmethod
    def predict(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m C"]:
        """Returns all tasks' outputs on the same rows, on the CPU; of the best snapshots if `best`."""

    @abc.abstractmethod
    def losses(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m"]:
        """Returns all tasks' losses on each of the same rows, on the CPU; of the best snapshots if `best`."""

    @abc.abstractmethod
    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        """Keeps some tasks' present parameters as their best."""

    @abc.abstractmethod
    def apply(self, plan: Plan, period: int) -> Outcome:
        """Carries out a plan, trial included."""

    @abc.abstractmethod
    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        """Steps the schedules, and tells the methods that a period ended with these scores."""

    @abc.abstractmethod
    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        """Begins a new schedule of the learning rates, for a further stage of training."""

    @abc.abstractmethod
    def export(self, task: int) -> nn.Module:
        """Returns the best snapshot of a task as a module in eval mode on the CPU."""

    @abc.abstractmethod
    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        """Returns the norm of each task's parameters, or of those of its best snapshot, on the CPU.

        It is finite where all of them are, and their squares can be summed.
        """

    def sound(self, best: bool = False) -> Bool[Tensor, " T"]:
        """Returns [T] whether a task's parameters, or those of its best snapshot, are all finite."""
        return self.norms(best).isfinite()

    @abc.abstractmethod
    def method_states(self) -> list[dict[str, Tensor]]:
        """Returns the state [T, …] of each of the job's methods."""

    @abc.abstractmethod
    def options(self) -> dict[str, Float[Tensor, " T"]]:
        """Returns the optimizers' options that are numbers, such as `lr`, of the first group of each task."""

    @abc.abstractmethod
    def visits(self) -> int:
        """Returns how many rows the tasks have trained on so far, counted with repetition."""

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns (tensors, JSON values): everything that `restore` needs to go on bit for bit."""

    @abc.abstractmethod
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Puts back what `state` returned, in an engine started on the same job."""

    def trained_on(self) -> torch.device | None:
        """Returns the kind of device that the tasks are trained on where that is not the job's own; else None."""
        return None

    def notes(self) -> list[str]:
        """Returns what the user is to be told of since it was last asked: what had to change, or was made again."""
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what runs beside this process.

        Nothing can be trained after that. What was learned can be read where it lies in this process's machine, which
        is where all engines have it but `cluster`.
        """
