"""The parts that torch brings, by name: optimizers, schedules, losses; and the metrics that need no library."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from kinfold.config import resolve
from kinfold.data.base import Kind
from kinfold.errors import InputError
from kinfold.tasks.muon import MuonWithAdamW
from kinfold.tasks.objective import Metric, finite_r2, resolve_metric
from kinfold.tasks.update import MakeOptimizer, MakeScheduler, stretched

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "muon": MuonWithAdamW,
}
SCHEDULERS: Mapping[str, Callable[[int], MakeScheduler]] = {
    "cosine": lambda epochs: partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    "linear": lambda epochs: partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=1.0 / epochs, total_iters=epochs
    ),
    "constant": lambda epochs: partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0),
}
LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
    "l1": nn.L1Loss,
    "huber": nn.HuberLoss,
}
KIND_OF_LOSS: Mapping[Any, Kind] = {
    "cross_entropy": "classification",
    "mse": "regression",
    "l1": "regression",
    "huber": "regression",
}
METRICS: Mapping[str, Callable[[], Metric]] = {
    "accuracy": partial(resolve_metric, None, "classification"),
    "r2": partial(resolve_metric, None, "regression"),
    "finite_r2": partial(Metric, "r2", finite_r2, weighted=finite_r2),
}
KIND_OF_METRIC: Mapping[Any, Kind] = {"accuracy": "classification", "r2": "regression"}


def optimizer_maker(spec: Any) -> MakeOptimizer | Sequence[MakeOptimizer]:
    """Returns what makes an optimizer of parameters, or one such a task.

    Args:
        spec: None (`sgd`, with lr 0.05 and momentum 0.9), a name of `OPTIMIZERS`, a mapping (see `kinfold.config`),
            a callable, or a list of these.

    Raises:
        InputError: it is none of these.

    Example:
        >>> optimizer_maker({"name": "adam", "lr": 0.001})([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"]
        0.001
    """
    if spec is None:
        return OPTIMIZERS["sgd"]
    if isinstance(spec, (list, tuple)):
        example = "partial(torch.optim.AdamW, lr=1e-3)"
        return [_maker(f"optimizer[{i}]", one, OPTIMIZERS, example) for i, one in enumerate(spec)]
    return _maker("optimizer", spec, OPTIMIZERS, "partial(torch.optim.AdamW, lr=1e-3)")


def scheduler_maker(spec: Any, epochs: int, length: int | None = None) -> MakeScheduler | None:
    """Returns what makes a schedule of an optimizer, or None for none.

    Args:
        spec: None, a name of `SCHEDULERS`, a mapping (see `kinfold.config`), or a callable.
        epochs: for how many epochs it is.
        length: the number of epochs that a callable was written for, where that is another; it is then run through
            in `epochs` all the same.

    Raises:
        InputError: it is none of these.
    """
    if spec is None:
        return None
    named = {name: make(epochs) for name, make in SCHEDULERS.items()}
    made = _maker("scheduler", spec, named, "partial(torch.optim.lr_scheduler.StepLR, step_size=10)")
    by_name = spec in SCHEDULERS if isinstance(spec, str) else isinstance(spec, Mapping) and "name" in spec
    return made if by_name or length in (None, epochs) else partial(stretched, made, length, epochs)


def _maker(argument: str, spec: Any, table: Mapping[str, Callable[..., Any]], example: str) -> Callable[..., Any]:
    made = resolve(argument, spec, table, bind=True)
    if not callable(made):
        raise InputError(f"{argument}: is a {type(made).__name__}; give a function, such as {example}, or a name.")
    return made  # type: ignore[no-any-return]  # narrowed by callable() to a type that mypy cannot write
