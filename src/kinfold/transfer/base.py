"""Plans, and the protocol of the rules that make them.

A rule sees scores and predictions and returns a `Plan`: data that says what changes, never code that touches
models. Whom each task learns from (its *lineage*) is derived from the plan itself, so that no rule can move
knowledge without the ledger hearing of it. Legend: T tasks, N rows, C classes or outputs, P plans' moves.

The loop around a rule, once a cadence:

```
plan, state = rule.plan(view, state, generator)     # proposes, from scores
outcome     = engine.apply(plan)                    # builds candidates, tries them, keeps the better per task
state       = rule.learn(plan, outcome, state)      # adapts, from what was accepted
```
"""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from kinfold.errors import InputError
from kinfold.transfer.changes import Change, Move, Teach

State: TypeAlias = dict[str, Tensor]
Need: TypeAlias = Literal["predictions", "losses"]
Carry: TypeAlias = Literal["follow", "keep", "reset"]


@dataclass(frozen=True)
class Plan:
    """What changes at one transfer point, all from the state before it.

    Attributes:
        changes: applied in this order; donors are read as they were before the plan.
        trial: [T, N] acceptance rows, or None to accept unseen. With a trial, a task's new parameters are kept
            only if strictly better than its old ones on these rows; `Teach` and `Tune` are not tried.
        moments: whether optimizer state goes with the parameters (same copy, mixture or mask), stays, or restarts.
        buffers: the same for buffers. Whole-number buffers are never averaged, they come from the donor with the
            largest weight; batch-norm statistics of a mixture or crossover are recomputed on the recipient's rows.
        note: what the log should say of this plan, or None.
    """

    changes: tuple[Change, ...]
    trial: Bool[Tensor, "T N"] | None = None
    moments: Carry = "follow"
    buffers: Carry = "follow"
    note: str | None = None

    def touched(self, tasks: int) -> Bool[Tensor, " T"]:
        """[T] whether the plan proposes other parameters for task t."""
        touched = torch.zeros(tasks, dtype=torch.bool)
        for change in self.changes:
            proposed = change.touched()
            if proposed is not None:
                touched |= proposed
        return touched

    def lineage(self, accepted: Bool[Tensor, " T"]) -> Bool[Tensor, "T T"]:
        """[recipient, donor] of the knowledge that moved, given which candidates were accepted."""
        moved = torch.zeros(len(accepted), len(accepted), dtype=torch.bool)
        for change in self.changes:
            lineage = change.lineage()
            if lineage is not None:
                moved |= lineage & accepted[:, None] if change.tried else lineage
        return moved

    def taught_rows(self) -> Bool[Tensor, "T N"] | None:
        """[T, N] rows that a lesson lets a task train on besides its own, or None."""
        rows = [change.unlabelled for change in self.changes if isinstance(change, Teach)]
        return torch.stack(rows).any(0) if rows else None

    def only(self, tasks: Bool[Tensor, " T"], donors: Bool[Tensor, " T"] | None = None) -> "Plan":
        """What is left of the plan where some tasks learn, and the others are left alone.

        Args:
            tasks: [T] who learns.
            donors: [T] whom they can learn from, default all; a change by which a task would learn from another leaves
                it alone.

        Raises:
            RunError: no task's part of it can be carried out without that of others (see `Rule.alone`).

        Example:
            >>> from kinfold.transfer import Mix
            >>> swap = Plan((Mix(torch.tensor([[0.0, 1.0], [1.0, 0.0]])),))
            >>> [(move.recipient, move.donors) for move in swap.only(torch.tensor([True, False])).moves()]
            [(0, (1,))]
        """
        changes = []
        for change in self.changes:
            lineage = change.lineage() if donors is not None else None
            able = tasks if donors is None or lineage is None else tasks & ~(lineage & ~donors).any(1)
            changes.append(change.only(able))
        return replace(self, changes=tuple(changes))

    def moves(self) -> list[Move]:
        """The plan as lines of the transfer log."""
        return [move for change in self.changes for move in change.moves()]


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        accepted: [T] whether task t took its candidate (False where there was none).
        before: [T, 2] metric and loss of the task's own parameters on its acceptance rows; NaN where not tried.
        after: [T, 2] the same for the candidate.
    """

    accepted: Bool[Tensor, " T"]
    before: Float[Tensor, "T 2"]
    after: Float[Tensor, "T 2"]

    @classmethod
    def nothing(cls, tasks: int) -> "Outcome":
        """Returns what becomes of a plan that proposes nothing to T tasks."""
        scores = torch.full((tasks, 2), torch.nan, dtype=torch.float64)
        return cls(torch.zeros(tasks, dtype=torch.bool), scores, scores.clone())


@dataclass(frozen=True)
class View:
    """What a rule may see.

    Attributes:
        period: number of the present period, from 1.
        epochs: the cap, and the length of the schedule; `period / epochs` is the progress.
        metric: [T] of each task on its own validation rows, oriented so that higher is better; inside a period,
            the scores of the period before (NaN before the first).
        loss: [T] likewise.
        train_loss: [T] each task's mean loss over the batches since the last transfer point, or of the period.
        sound: [T] whether a task's parameters and training loss are finite; a diverged one has nothing to pass on.
        improved: [T] whether this period improved the task's best score; all False inside a period.
        validation: [T, N] the tasks' validation rows.
        exposed: [T, N] the ledger: rows that the task, or anything it learned from, has trained on.
        unsealed: [N] the rows that may be used at all.
        options: the optimizers' options, such as `lr` (as scheduled now, also of a task that is at another period),
            `initial_lr` (that schedules reckon from) and `weight_decay` → [T]; those that are numbers.
        step: optimizer steps taken in this period where the transfer point lies inside it, else None.
        targets: [N] class numbers or values; those of sealed rows are blanked (0).
        classes: C, or None for regression.
        predict: returns every task's outputs on the given rows: [m] → [T, m, C] (logits, or values). Only for
            rules whose `needs` has "predictions"; others get None.
        losses: returns every task's loss on each of the given rows: [m] → [T, m]. Only for rules whose `needs`
            has "losses".
    """

    period: int
    epochs: int
    metric: Float[Tensor, " T"]
    loss: Float[Tensor, " T"]
    train_loss: Float[Tensor, " T"]
    sound: Bool[Tensor, " T"]
    improved: Bool[Tensor, " T"]
    validation: Bool[Tensor, "T N"]
    exposed: Bool[Tensor, "T N"]
    unsealed: Bool[Tensor, " N"]
    targets: Shaped[Tensor, "N *K"]
    options: Mapping[str, Float[Tensor, " T"]] = field(default_factory=lambda: MappingProxyType({}))
    step: int | None = None
    classes: int | None = None
    predict: Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m C"]] | None = field(default=None, repr=False)
    losses: Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m"]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Lesson:
    """What the tasks teach a student that starts anew on all unsealed rows, when they have ended.

    Attributes:
        targets: [N, C] probabilities that stand for the labels, or [N, K] values; None for the labels themselves.
        note: what the log should say of it, or None.
    """

    targets: Float[Tensor, "N C"] | None = None
    note: str | None = None


class Rule(abc.ABC):
    """Decides what tasks learn from each other. State is a dictionary of tensors, handed in and out.

    Attributes:
        name: the rule's name, as in `kinfold.transfer.RULES`.
        steps: batches (optimizer steps, unless gradients accumulate) between two transfer points, counted through
            all periods, for a rule that acts inside periods; None for one that acts at their ends.
        period: periods between two transfer points, for a rule that acts at their ends.
        until: share of the schedule after which there are no more transfers.
        needs: what of `View` must be filled in at extra cost.
        moves: whether its plans propose other parameters; of rules that act together, one may.
        alone: whether what a plan proposes to some tasks can be carried out without the rest of it: then tasks may be
            at different points of their training (see docs/cluster.md).
        stages: shares of the run's budget of sample visits that the tasks have, one stage of training with its own
            schedule after another. Where they sum to less than 1, a student is trained on all unsealed rows with
            what is left when the tasks have ended, and is then the model handed back.
    """

    name: ClassVar[str]
    steps: int | None = None
    period: int = 1
    until: float | int = 0.9
    needs: ClassVar[frozenset[Need]] = frozenset()
    moves: ClassVar[bool] = True
    alone: ClassVar[bool] = True
    stages: tuple[float | int, ...] = (1.0,)

    def start(self, tasks: int) -> State:
        """Returns the state before the first transfer."""
        del tasks
        return {}

    @abc.abstractmethod
    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        """Returns what should change now (None for nothing), and the new state."""

    def learn(self, plan: Plan, outcome: Outcome, state: State) -> State:
        """Returns the state after hearing what became of the plan."""
        del plan, outcome
        return state

    def merged(self, before: State, after: State, tasks: Bool[Tensor, " T"]) -> State:
        """Returns the state where a plan was for some of the tasks only.

        Args:
            before: the state that the other tasks stay with.
            after: what `plan` or `learn` gave, which speak of all.
            tasks: [T] whom it was for. They have what is theirs from `after`: of a tensor with T rows, their rows;
                and so is what has another number of rows, which is of nobody in particular.

        Example:
            >>> from kinfold.transfer import Nothing
            >>> Nothing().merged({"tries": torch.zeros(3)}, {"tries": torch.ones(3)}, torch.arange(3) == 1)
            {'tries': tensor([0., 1., 0.])}
        """
        return {name: _rows_from(before.get(name), value, tasks) for name, value in after.items()}

    @property
    def student(self) -> bool:
        """Whether a part of the budget is left for a student."""
        return math.fsum(self.stages) < 1.0 - 1e-9

    def graduate(self, view: View, state: State, last: bool) -> Lesson | None:
        """Returns what a student is taught, at the end of a stage; None where the tasks shall train for another.

        Args:
            view: scores and predictions are those of the tasks' best snapshots.
            state: the rule's state.
            last: whether there is no further stage, and there must be a lesson.
        """
        del view, state, last
        return Lesson()

    def check_cadence(self) -> None:
        """Raises InputError where `steps`, `period` or `until` cannot be followed; for a rule's `__post_init__`."""
        for argument, value, unit in (("steps", self.steps, "steps"), ("period", self.period, "periods")):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{self.name}: {argument} is {value!r}, it counts {unit}; give 1 or more.")
        check_shares(self.name, until=self.until)

    def running(self, period: int, epochs: int) -> bool:
        """Whether there may be transfers in this period (from 1) of `epochs`."""
        return period <= self.until * epochs

    def due(self, period: int, epochs: int) -> bool:
        """Whether there is a transfer point at the end of this period (from 1) of `epochs`."""
        return self.steps is None and period % self.period == 0 and self.running(period, epochs)


def _rows_from(before: Tensor | None, after: Tensor, tasks: Bool[Tensor, " T"]) -> Tensor:
    if before is None or before.shape != after.shape or after.shape[:1] != tasks.shape:
        return after
    return torch.where(tasks.view(-1, *[1] * (after.ndim - 1)), after, before)


def check_shares(name: str, **values: float | int) -> None:
    """Raises InputError naming the rule and the argument where a value is not between 0 and 1.

    Example:
        >>> check_shares("teach", weight=1.5)
        Traceback (most recent call last):
        kinfold.errors.InputError: teach: weight is 1.5; give a number between 0 and 1.
    """
    for argument, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name}: {argument} is {value!r}; give a number between 0 and 1.")
