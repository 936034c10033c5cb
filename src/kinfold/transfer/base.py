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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError

State: TypeAlias = dict[str, Tensor]
Need: TypeAlias = Literal["predictions"]
Carry: TypeAlias = Literal["follow", "keep", "reset"]
Unit: TypeAlias = Literal["layer", "parameter"]


@dataclass(frozen=True)
class Mix:
    """θ′ = W θ over the tasks' parameters: copies (one-hot rows), blends, averages, gossip.

    Zero weights are skipped, never multiplied, since 0 · NaN would spread one task's divergence to all.

    Attributes:
        weights: W [T, T], rows summing to one; an identity row leaves its task alone.
    """

    weights: Float[Tensor, "T T"]

    def __post_init__(self) -> None:
        sums = self.weights.double().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
            raise InputError(f"Mix: rows of the weights must sum to 1, and they sum to {sums.tolist()}.")

    def lineage(self) -> Bool[Tensor, "T T"]:
        """[recipient, donor] with a weight, but for the task itself."""
        return (self.weights != 0) & ~torch.eye(len(self.weights), dtype=torch.bool)


@dataclass(frozen=True)
class Cross:
    """Crossover: each unit of the recipient is taken from its source with probability `rate`.

    Attributes:
        source: [T] donor of each task; −1 leaves the task alone.
        rate: [T] probability CR with which a unit is taken.
        keys: [T] keys of the draws (`kinfold.random`), so that every engine draws the same mask.
        unit: `layer` takes a module's own parameters and buffers together; `parameter` draws for every number.
    """

    source: Int64[Tensor, " T"]
    rate: Float[Tensor, " T"]
    keys: Int64[Tensor, " T"]
    unit: Unit = "layer"

    def lineage(self) -> Bool[Tensor, "T T"]:
        """[recipient, donor]."""
        return one_hot(self.source)


@dataclass(frozen=True)
class Teach:
    """Soft targets for rows. Moves no parameters, but exposes: the pupil inherits its teachers' lineage.

    The lesson holds until the next one: a task's loss on a row becomes
    (1 − w) · its own loss + w · τ² · cross-entropy(target, softmax(output / τ)), in regression
    (1 − w) · its own loss + w · the same loss against the target; on a row that is taught without its label, the
    last part alone, with the weight w (Hinton, Vinyals, Dean, arXiv:1503.02531, for τ²).

    Attributes:
        targets: [T, N, C] probabilities at temperature τ, or regression values.
        weight: [T] w, between 0 and 1.
        teachers: [T, T] whether task t is taught by task s.
        unlabelled: [T, N] rows that t may draw for their inputs and soft targets only, without their labels.
        temperature: τ.
    """

    targets: Float[Tensor, "T N C"]
    weight: Float[Tensor, " T"]
    teachers: Bool[Tensor, "T T"]
    unlabelled: Bool[Tensor, "T N"]
    temperature: float = 1.0

    def lineage(self) -> Bool[Tensor, "T T"]:
        """[pupil, teacher]."""
        return self.teachers


@dataclass(frozen=True)
class Tune:
    """New values for an option of the optimizer, per task.

    Attributes:
        values: option → [T] values, such as `{"lr": …}`; NaN leaves a task's option as it is.
    """

    values: Mapping[str, Float[Tensor, " T"]]


@dataclass(frozen=True)
class Restart:
    """Fresh parameters and optimizer state for some tasks.

    Attributes:
        tasks: [T] whether task t starts anew. What it had been exposed to stays on the ledger.
        key: makes the new start differ from earlier ones.
    """

    tasks: Bool[Tensor, " T"]
    key: int = 0


Change: TypeAlias = Mix | Cross | Teach | Tune | Restart


@dataclass(frozen=True)
class Move:
    """One line of the transfer log: who learns from whom, and how.

    Attributes:
        recipient: the task that learns.
        donors: the tasks it learns from.
        form: `copy`, `blend`, `mix`, `crossover-layer`, `crossover-parameter` or `teach`.
        amount: λ of a blend (the share that stays), the rate of a crossover, the weight of a lesson.
    """

    recipient: int
    donors: tuple[int, ...]
    form: str
    amount: float


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
            if isinstance(change, (Mix, Cross)):
                touched |= change.lineage().any(1)
            elif isinstance(change, Restart):
                touched |= change.tasks
        return touched

    def lineage(self, accepted: Bool[Tensor, " T"]) -> Bool[Tensor, "T T"]:
        """[recipient, donor] of the knowledge that moved, given which candidates were accepted."""
        moved = torch.zeros(len(accepted), len(accepted), dtype=torch.bool)
        for change in self.changes:
            if isinstance(change, (Mix, Cross)):
                moved |= change.lineage() & accepted[:, None]
            elif isinstance(change, Teach):
                moved |= change.lineage()
        return moved

    def taught_rows(self) -> Bool[Tensor, "T N"] | None:
        """[T, N] rows that a lesson lets a task train on besides its own, or None."""
        rows = [change.unlabelled for change in self.changes if isinstance(change, Teach)]
        return torch.stack(rows).any(0) if rows else None

    def moves(self) -> list[Move]:
        """The plan as lines of the transfer log."""
        moves = []
        for change in self.changes:
            if isinstance(change, Mix):
                for t in change.lineage().any(1).nonzero().flatten().tolist():
                    weights = change.weights[t]
                    donors = tuple(change.lineage()[t].nonzero().flatten().tolist())
                    kept = float(weights[t])
                    form = ("copy" if kept == 0 else "blend") if len(donors) == 1 else "mix"
                    moves.append(Move(t, donors, form, kept))
            elif isinstance(change, Cross):
                for t in (change.source >= 0).nonzero().flatten().tolist():
                    donor, rate = int(change.source[t]), float(change.rate[t])
                    moves.append(Move(t, (donor,), f"crossover-{change.unit}", rate))
            elif isinstance(change, Teach):
                for t in change.teachers.any(1).nonzero().flatten().tolist():
                    donors = tuple(change.teachers[t].nonzero().flatten().tolist())
                    moves.append(Move(t, donors, "teach", float(change.weight[t])))
        return moves


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


@dataclass(frozen=True)
class View:
    """What a rule may see.

    Attributes:
        period: number of this transfer point, from 1.
        epochs: the cap, and the length of the schedule; `period / epochs` is the progress.
        metric: [T] of each task on its own validation rows, oriented so that higher is better.
        loss: [T] likewise.
        improved: [T] whether this period improved the task's best score.
        validation: [T, N] the tasks' validation rows.
        exposed: [T, N] the ledger: rows that the task, or anything it learned from, has trained on.
        unsealed: [N] the rows that may be used at all.
        classes: C, or None for regression.
        predict: returns every task's outputs on the given rows: [m] → [T, m, C] (logits, or values). Only for
            rules whose `needs` has "predictions"; others get None.
    """

    period: int
    epochs: int
    metric: Float[Tensor, " T"]
    loss: Float[Tensor, " T"]
    improved: Bool[Tensor, " T"]
    validation: Bool[Tensor, "T N"]
    exposed: Bool[Tensor, "T N"]
    unsealed: Bool[Tensor, " N"]
    classes: int | None = None
    predict: Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m C"]] | None = field(default=None, repr=False)


class Rule(abc.ABC):
    """Decides what tasks learn from each other. State is a dictionary of tensors, handed in and out.

    Attributes:
        name: the rule's name, as in `kinfold.transfer.RULES`.
        period: periods between two transfer points.
        until: share of the schedule after which there are no more transfers.
        needs: what of `View` must be filled in at extra cost.
    """

    name: ClassVar[str]
    period: int = 1
    until: float | int = 0.9
    needs: ClassVar[frozenset[Need]] = frozenset()

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

    def check_cadence(self) -> None:
        """Raises InputError where `period` or `until` cannot be followed; for a rule's `__post_init__`."""
        if not isinstance(self.period, int) or self.period < 1:
            raise InputError(f"{self.name}: period is {self.period!r}, it counts periods; give 1 or more.")
        check_shares(self.name, until=self.until)

    def due(self, period: int, epochs: int) -> bool:
        """Whether there is a transfer point after this period (from 1) of `epochs`."""
        return period % self.period == 0 and period <= self.until * epochs


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


def one_hot(source: Int64[Tensor, " T"]) -> Bool[Tensor, "T T"]:
    """Returns [recipient, donor], with no donor where `source` is −1."""
    return source[:, None] == torch.arange(len(source))
