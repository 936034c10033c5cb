"""Which engine runs a job: the one asked for, or the fastest that can, with a word about why."""

from collections.abc import Callable

import torch
from torch.nn.modules.conv import _ConvNd

from kinfold.engines.base import Engine, Job
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.engines.workers import Workers
from kinfold.errors import InputError, unknown

ENGINES: dict[str, Callable[[Job], Engine]] = {
    "sequential": Sequential,
    "vectorised": Vectorised,
    "workers": Workers,
}


def choose_engine(name: str, job: Job) -> tuple[Engine, str | None]:
    """Returns (a started engine, a line to tell the user or None).

    The stacked form is probed with one training and one scoring step. A model that cannot be stacked (recurrent
    cells, data-dependent control flow, embedding bags) runs one task after another instead. Each of `workers` runs
    its tasks stacked where they can be and do not convolve: on one CPU's thread, stacked convolutions gain nothing.

    Args:
        name: `auto`, or an entry of `ENGINES`.
        job: what to train.

    Raises:
        InputError: the name is unknown, or the model cannot be trained in any way; then with its own message.
    """
    if name not in ("auto", *ENGINES):
        raise unknown("engine", name, ["auto", *ENGINES])
    try:
        plain = Sequential(job)
    except InputError:
        raise
    except Exception as error:  # the user's factory, optimizer, scheduler or methods, which may raise anything
        raise InputError(f"model, optimizer or scheduler: cannot be set up ({_line(error)}); correct it.") from error
    try:
        plain.probe()
    except InputError:
        raise
    except Exception as error:
        row = job.inputs.rows(job.train[0].nonzero()[0, 0])
        shape = " and ".join(str(tuple(part.shape)) for part in (row if isinstance(row, tuple) else (row,)))
        raise InputError(
            f"model: a training step on rows of shape {shape} failed ({_line(error)}); "
            "check the model's input and output shapes, the loss and the methods."
        ) from error
    if name == "sequential" or (name == "auto" and job.tasks == 1):
        return plain, None
    convolves = any(isinstance(layer, _ConvNd) for layer in plain.stack.module.modules())
    del plain
    if name == "workers":
        stacks = not convolves and isinstance(_stacked(job), Vectorised)
        return Workers(job, kind=Vectorised if stacks else Sequential), None
    together = _stacked(job)
    if isinstance(together, Vectorised):
        return together, None
    return Sequential(job), f"engine: sequential, since {together}."


def _stacked(job: Job) -> Vectorised | str:
    """Returns an engine of the stacked form, or why there can be none."""
    try:
        together = Vectorised(job)
        together.probe()
    except torch.OutOfMemoryError:
        return f"{job.tasks} tasks do not fit in memory together"
    except Exception as error:
        return f"this model cannot be stacked ({_line(error)})"
    return together


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:200] + "…"
    return f"{type(error).__name__}: {text}".rstrip(".")
