"""Trains one more model of the run's structure on given rows, to the end of its schedule: no validation, no choice.

What distillation ends with, and the control that it has to beat: a single run on all rows.
Legend: N rows, C classes or outputs.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from kinfold import random
from kinfold.checkpoint import Checkpoints
from kinfold.engines import Job
from kinfold.engines.sequential import Sequential
from kinfold.engines.timing import best_threads
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Method
from kinfold.run import Listener
from kinfold.tasks.order import Segment, steps_in
from kinfold.tasks.update import MakeScheduler


@dataclass(frozen=True)
class Student:
    """A model trained to the end.

    Attributes:
        model: in eval mode, on the CPU.
        watched: the state [1, …] of each method that watched.
        visits: rows visited, counted with repetition.
        train_loss: mean loss over the last epoch's batches.
        seconds: spent training.
        earlier_seconds: of these, spent before the run was resumed.
    """

    model: nn.Module
    watched: tuple[dict[str, Tensor], ...]
    visits: int
    train_loss: float
    seconds: float
    earlier_seconds: float


def train_student(
    job: Job,
    rows: Bool[Tensor, " N"],
    *,
    epochs: int,
    scheduler: MakeScheduler | None,
    targets: Shaped[Tensor, "N *C"] | None = None,
    watching: Sequence[Method] = (),
    model: nn.Module | Callable[[], nn.Module] | None = None,
    words: tuple[int | str, ...] = ("student",),
    after: int = 0,
    listen: Listener | None = None,
    checkpoints: Checkpoints | None = None,
) -> Student:
    """Trains one model on the rows, with the job's optimizer, methods and batches, and returns its last parameters.

    Args:
        job: whose structure, data and way of training are used; its splits are not.
        rows: [N] rows to train on.
        epochs: passes over the rows.
        scheduler: of that many epochs, or None.
        targets: what stands for the rows' targets, such as probabilities; None for the job's own.
        watching: methods that watch, such as weight averages.
        model: another start; default the job's structure, drawn anew.
        words: key its draws, with the job's seed, apart from those of other models.
        after: number of the last period before its first epoch, for the log.
        listen: is told of every epoch.
        checkpoints: its own, from which it goes on, or None.

    Raises:
        RunError: training diverged.
    """
    engine = Sequential(
        dataclasses.replace(
            job,
            model=job.model if model is None else model,
            targets=job.targets if targets is None else targets,
            objective=job.objective if targets is None else job.objective.of_probabilities(),
            train=rows[None],
            validation=torch.zeros_like(rows[None]),
            optimizer=job.optimizer if callable(job.optimizer) else job.optimizer[0],
            scheduler=scheduler,
            periods=epochs,
            methods=(*job.methods, *watching),
            seed=random.seed_of(job.seed, *words),
        )
    )
    engine.threads = best_threads(engine.job, epochs * int(engine.steps(1)[0]))
    saved = None if checkpoints is None else checkpoints.latest()
    done, seconds, train_loss = 0, 0.0, float("nan")
    if saved is not None:
        tensors, values = saved
        engine.restore(tensors, values["engine"])
        done, seconds, train_loss = values["epochs"], values["seconds"], values["train_loss"]
    earlier = seconds
    with contextlib.closing(engine), contextlib.nullcontext() if checkpoints is None else checkpoints:
        for epoch in range(done + 1, epochs + 1):
            began = time.perf_counter()
            rate = float(engine.options()["lr"][0])
            train_loss = float(engine.train(Segment(epoch))[0])
            # Schedules that follow a score have the training loss to go by.
            engine.end_period(torch.tensor([[float("nan"), train_loss]], dtype=torch.float64))
            seconds += time.perf_counter() - began
            if listen is not None:
                event: dict[str, Any] = {"event": "student", "period": after + epoch, "epoch": epoch, "epochs": epochs}
                listen({**event, "train_loss": train_loss, "lr": rate, "seconds": time.perf_counter() - began})
            if checkpoints is not None and (epoch == epochs or checkpoints.due()):
                tensors, state = engine.state()
                stands = {"after": after, "epochs": epoch, "seconds": seconds, "train_loss": train_loss}
                checkpoints.save(epoch, tensors, {**stands, "engine": state})
    if not (math.isfinite(train_loss) and bool(engine.sound().all())):
        raise RunError("the model that is trained on all rows diverged; lower the learning rate, or set clip_norm.")
    engine.snapshot(torch.ones(1, dtype=torch.bool))
    watched = tuple(engine.method_states()[len(job.methods) :])
    return Student(engine.export(0), watched, engine.visits(), train_loss, seconds, earlier)


def epochs_done(checkpoints: Checkpoints | None) -> int:
    """Returns how many epochs of a student its checkpoints hold."""
    saved = None if checkpoints is None else checkpoints.latest()
    return 0 if saved is None else int(saved[1]["epochs"])


def keep_student(checkpoints: Checkpoints, after: int, tell: Callable[[str], None]) -> None:
    """Clears a student's checkpoints away unless they can be gone on from: it then begins anew.

    Args:
        checkpoints: the student's.
        after: the period at which the run stands. A student that began after another one has to wait until the tasks
            are there again; these have gone back to a checkpoint before their last, since that is damaged.
        tell: is told of damaged ones, in a line for the user.
    """
    try:
        saved = checkpoints.latest(tell)
    except InputError as error:
        tell(f"{error} The student begins anew.")
        checkpoints.clear()
        return
    if saved is not None and saved[1].get("after", after) != after:
        checkpoints.clear()


def epochs_within(visits: int, rows: int, batch_size: int) -> int:
    """Returns how many whole epochs over the rows a budget of sample visits allows, at least one.

    Example:
        >>> epochs_within(visits=1000, rows=130, batch_size=32)  # four batches, 128 visits an epoch
        7
    """
    return max(1, visits // (steps_in(rows, batch_size) * min(batch_size, rows)))
