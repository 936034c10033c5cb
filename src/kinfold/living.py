"""A period of an asynchronous run, as a share of the tasks goes through it: what it is asked for, and what it tells.

Legend: k tasks of one share, m rows asked for.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.diverging import Health
from kinfold.engines.apart import Shown, show
from kinfold.engines.local import LocalEngine
from kinfold.run import judged
from kinfold.selection.better import better
from kinfold.tasks.order import Segment


@final
@dataclass(frozen=True)
class Lived:
    """What a share tells of a period that it has trained for.

    Attributes:
        train_loss: each task's mean loss.
        scores: (metric, higher is better; loss) on each task's own validation rows; NaN where it has diverged.
        improved: whether a best snapshot was taken of a task.
        rates: learning rates of the period.
        steps: batches, of the task with most.
        notes: what the user is to be told.
        health: of the tasks at its end, or None where nobody looks at it.
        diverged: who has diverged in it, and was well before.
        shown: the tasks at its end.
    """

    train_loss: Float[Tensor, " k"]
    scores: Float[Tensor, "k 2"]
    improved: Bool[Tensor, " k"]
    rates: Float[Tensor, " k"]
    steps: int
    notes: list[str]
    health: Health | None
    diverged: Bool[Tensor, " k"]
    shown: Shown


def live(
    engine: LocalEngine,
    period: int,
    best: Float[Tensor, "k 2"],
    health: Health | None,
    rows: Int64[Tensor, " m"] | None,
) -> Lived:
    """Trains a share's tasks for a period, scores them, and keeps snapshots of those that are better than ever.

    Args:
        engine: the share's.
        period: its number.
        best: (metric, loss) of the best snapshots so far, NaN where there is none.
        health: of the tasks before it, or None if nobody is to be looked at.
        rows: as in `show`.
    """
    rates = engine.options()["lr"]
    losses = engine.train(Segment(period))
    scores = engine.score()
    known, diverged = scores, torch.zeros(len(losses), dtype=torch.bool)
    if health is not None:
        before = health.aside
        known = judged(health, losses, scores)
        diverged = health.aside & ~before
    improved = better(known[:, 0], known[:, 1], best[:, 0], best[:, 1], by=engine.job.better)
    engine.snapshot(improved)
    engine.end_period(scores)
    steps, shown = int(engine.steps(period).max()), show(engine, rows)
    return Lived(losses, known, improved, rates, steps, engine.notes(), health, diverged, shown)
