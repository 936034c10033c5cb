"""Tasks that diverge: how that is told, that the others see nothing of them, and where they go on from.

A task whose loss is no number any more has diverged; so has one whose training loss and whose validation loss are both
more than `GROWTH` times whatever they were, before training included, and times what knowing nothing costs. Rather
one too many goes on than one that is well is taken for lost. What is looked at is T numbers of each kind; what becomes
of the parameters goes by plans, so every engine does it.
Legend: T tasks, N rows, m of them, C classes or outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.engines import Job
from kinfold.selection.better import better
from kinfold.transfer.base import Plan
from kinfold.transfer.changes import Change, Mix, Restart, Teach, Tune

GROWTH = 10.0
"""By what factor a loss, or the norm of the parameters, is beyond what it was for a task to have exploded."""

CUT = 0.5
"""What the learning rate of a task that starts again is multiplied by."""


_ROUGHLY = 2**20  # numbers from which the loss of who knows nothing is worked out, at most


@dataclass
class Health:
    """How the tasks are, as far as it takes to tell that one has diverged.

    Attributes:
        loss: [T] the largest training loss of a period, or of a stretch of one, that a task had while it was well,
            in absolute terms, lessons apart (see `ease`); NaN before the first.
        validation: [T] likewise the loss on its validation rows; NaN, too, where these give none.
        ease: [T] by how much its present lesson may multiply a training loss, which is divided by it.
        aside: [T] who is set aside: has diverged, and was not started again.
        rescues: [T] how often a task was started again.
    """

    loss: Float[Tensor, " T"]
    validation: Float[Tensor, " T"]
    ease: Float[Tensor, " T"]
    aside: Bool[Tensor, " T"]
    rescues: Int64[Tensor, " T"]

    @classmethod
    def start(cls, tasks: int) -> "Health":
        """Returns that of T tasks before their first period."""
        loss, validation = (torch.full((tasks,), torch.nan, dtype=torch.float64) for _ in range(2))
        zeros = torch.zeros(tasks, dtype=torch.int64)
        return cls(loss, validation, torch.ones(tasks, dtype=torch.float64), zeros.bool(), zeros)

    def begin(self, validation: Float[Tensor, " T"], rough: Float[Tensor, " T"]) -> None:
        """Notes what losses are before training.

        Args:
            validation: of the tasks as they start.
            rough: of those who know nothing (see `rough_losses`).
        """
        # One level for both losses: the rows of either kind may be the harder ones.
        everyone = torch.ones_like(self.aside)
        self.loss = _raised(_raised(self.loss, validation, everyone), rough, everyone)
        # Where there is no score of a sound model, to have none later says nothing: the rows may all weigh 0.
        self.validation = torch.where(validation.isfinite(), self.loss, torch.nan)

    def taught(self, plan: Plan, classes: int | None) -> None:
        """Notes the lessons of a plan, from which on training losses are of another kind.

        With the weight w and the temperature τ they have a part w τ² · cross-entropy, in regression w · the loss.
        """
        for change in plan.changes:
            if isinstance(change, Teach):
                weight = change.weight.detach().cpu().double().flatten(1 if change.weight.ndim > 1 else 0)
                most = weight.amax(1) if weight.ndim > 1 else weight
                self.ease = 1.0 + most * (1.0 if classes is None else change.temperature**2)

    def inside(self, loss: Float[Tensor, " T"], norm: Float[Tensor, " T"]) -> Bool[Tensor, " T"]:
        """Returns [T] who may take part at a transfer point inside a period.

        There are no validation losses there, so the other sign is a norm beyond most of the tasks'.

        Args:
            loss: training losses since the last one.
            norm: of the parameters.
        """
        finite = norm[norm.isfinite()]
        most = finite.median() if len(finite) else norm.new_tensor(torch.nan)
        loss = loss / self.ease
        well = loss.isfinite() & norm.isfinite() & ~self.aside
        well &= ~(exploded(loss, self.loss) & exploded(norm, most.expand(len(norm))))
        self.loss = _raised(self.loss, loss, well)
        return well

    def after_period(self, loss: Float[Tensor, " T"], validation: Float[Tensor, " T"]) -> Bool[Tensor, " T"]:
        """Returns [T] who has diverged in a period, and sets them aside.

        Args:
            loss: mean training losses.
            validation: losses on the validation rows after it.
        """
        loss = loss / self.ease
        # Both: a training loss may have found its way back within the period, a validation loss go up without harm.
        both = exploded(loss, self.loss) & exploded(validation, self.validation)
        diverged = ~loss.isfinite() | (validation.isnan() & ~self.validation.isnan()) | both
        self.loss = _raised(self.loss, loss, ~diverged)
        self.validation = _raised(self.validation, validation, ~diverged)
        self.aside = diverged
        return diverged

    def of(self, tasks: slice) -> "Health":
        """Returns that of some tasks."""
        return Health(**{name: value[tasks] for name, value in vars(self).items()})

    def among(self, tasks: slice, own: "Health") -> "Health":
        """Returns that of all tasks, where some are as `own` says."""
        others = {name: value.clone() for name, value in vars(self).items()}
        for name, value in others.items():
            value[tasks] = getattr(own, name)
        return Health(**others)

    def started_again(self, tasks: Bool[Tensor, " T"]) -> None:
        """Notes that some tasks that were set aside go on."""
        self.aside = self.aside & ~tasks
        self.rescues = self.rescues + tasks


def rough_losses(job: Job) -> Float[Tensor, " T"]:
    """Returns what knowing nothing costs each task: all outputs 0, or the mean of the values that it trains on.

    It is the larger of the losses on its training rows and on its validation rows; of many, on some at equal distances.
    """
    found = []
    for train, validation in zip(job.train, job.validation, strict=True):
        outputs = torch.zeros(job.objective.outputs, dtype=job.dtype)
        if job.objective.classes is None:
            outputs = (outputs + job.targets[train].mean(0).to(job.dtype)).flatten()
        losses = []
        for mask in (train, validation):
            rows = mask.nonzero().flatten()
            rows = rows[:: 1 + len(rows) * len(outputs) // _ROUGHLY]
            weights = None if job.weights is None else job.weights[rows]
            same = outputs.expand(len(rows), -1)
            losses.append(job.objective.mean_loss(same, job.targets[rows], weights))
        found.append(losses)
    return torch.tensor(found, dtype=torch.float64).nan_to_num(0.0, 0.0, 0.0).abs().amax(1)


def exploded(values: Float[Tensor, " T"], level: Float[Tensor, " T"]) -> Bool[Tensor, " T"]:
    """Returns [T] whether a value is more than `GROWTH` times its level; NaN is not, nor is any beyond a level of NaN.

    Args:
        values: what is asked.
        level: what each was at most; NaN where that is not known.

    Example:
        >>> exploded(torch.tensor([19.0, 21.0, 500.0]), torch.tensor([2.0, 2.0, torch.nan]))
        tensor([False,  True, False])
    """
    return values > GROWTH * level


def _raised(level: Float[Tensor, " T"], values: Float[Tensor, " T"], well: Bool[Tensor, " T"]) -> Float[Tensor, " T"]:
    """The levels after further values; an exact 0, as of a task that takes no step in a stretch, says nothing."""
    counts = well & values.isfinite() & (values != 0)
    return torch.where(counts, torch.fmax(level, values.abs().double()), level)


def hidden(
    read: Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m *C"]], aside: Bool[Tensor, " T"]
) -> Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m *C"]]:
    """Returns what reads outputs or losses of all tasks with NaN for those that are set aside.

    Example:
        >>> hidden(lambda rows: torch.ones(2, len(rows)), torch.tensor([False, True]))(torch.arange(2))
        tensor([[1., 1.],
                [nan, nan]])
    """
    if not bool(aside.any()):
        return read

    def rest(rows: Int64[Tensor, " m"]) -> Float[Tensor, "T m *C"]:
        outputs = read(rows)
        return outputs.masked_fill(aside.to(outputs.device).view(-1, *[1] * (outputs.ndim - 1)), torch.nan)

    return rest


def without(plan: Plan, aside: Bool[Tensor, " T"], again: Bool[Tensor, " T"]) -> Plan:
    """Returns a plan in which nobody learns from those set aside; they may learn from others.

    Soft targets are left as they are: nothing of a task that is set aside can be in them (see `hidden`).

    Args:
        plan: what a rule would have.
        aside: who is set aside.
        again: who has just been started again, and is left as that has made them.
    """
    if not bool(aside.any()):
        return plan
    changes = tuple(change.without(aside) for change in plan.changes)
    if bool(again.any()):
        changes = tuple(change.leaving(again) for change in changes)
    return dataclasses.replace(plan, changes=changes)


def donor_of(scores: Float[Tensor, "T 2"], by: str) -> int | None:
    """Returns the task with the best finite (metric, loss), or None where none has one.

    Example:
        >>> donor_of(torch.tensor([[0.5, 1.0], [torch.nan, 1.0], [0.5, 0.9]]), "metric")
        2
    """
    best: int | None = None
    for t in scores.isfinite().all(1).nonzero().flatten().tolist():
        if best is None or bool(better(scores[t, 0], scores[t, 1], scores[best, 0], scores[best, 1], by=by)):
            best = t
    return best


def rescue(tasks: Bool[Tensor, " T"], donor: int | None) -> Plan:
    """Returns the plan by which some tasks start again, as a copy of the donor or from their own best snapshots.

    Their optimizers begin anew: those of tasks may be of different kinds. Their learning rates are cut.

    Args:
        tasks: who starts again.
        donor: what they become copies of; None for what they were at their best.
    """
    restart: Change
    if donor is None:
        restart = Restart(tasks, best=True)
    else:
        weights = torch.eye(len(tasks), dtype=torch.float64)
        weights[tasks] = torch.eye(len(tasks), dtype=torch.float64)[donor]
        restart = Mix(weights)
    cut = torch.where(tasks, CUT, torch.nan).double()
    return Plan((restart, Tune({"lr": cut}, relative=True)), moments="reset")


def told(
    period: int, diverged: Sequence[int], rescued: Sequence[int], donor: int | None, rates: Float[Tensor, " T"]
) -> dict[str, object]:
    """Returns the event that says who has diverged, and what became of them.

    Args:
        period: in which that was.
        diverged: who has, and had not been set aside before.
        rescued: which of them start again.
        donor: from whom, or None for their own best snapshots.
        rates: the learning rates that they had.
    """
    gone = [t for t in diverged if t not in rescued]
    parts = []
    if rescued:
        own = "its own best snapshot" if len(rescued) == 1 else "their own best snapshots"
        where = own if donor is None else f"task {donor}"
        parts.append(f"{_named(rescued)} diverged in period {period}: starting again from {where}, at half the rate")
    if gone:
        parts.append(f"{_named(gone)} diverged in period {period}: set aside, the others see no more of it")
    return {
        "event": "note",
        "severity": "warning",
        "period": period,
        "message": "; ".join(parts),
        "diverged": list(diverged),
        "rescued": [{"task": t, "donor": donor, "lr": CUT * float(rates[t])} for t in rescued],
    }


def _named(tasks: Sequence[int]) -> str:
    *most, last = map(str, tasks)
    return f"tasks {', '.join(most)} and {last}" if most else f"task {last}"
