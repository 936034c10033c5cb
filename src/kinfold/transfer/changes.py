"""What a plan may change: data, from which the engine's moves, the ledger's lineage and the log all follow.

Legend: T tasks, N rows, C classes or outputs.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError, RunError

Unit: TypeAlias = Literal["layer", "parameter"]


@dataclass(frozen=True)
class Move:
    """One line of the transfer log: who learns from whom, and how.

    Attributes:
        recipient: the task that learns.
        donors: the tasks it learns from.
        form: `copy`, `blend`, `mix`, `crossover-layer`, `crossover-parameter`, `crossover-binary`, `median`,
            `elastic`, `shuffle` or `teach`.
        amount: λ of a blend (the share that stays), the rate of a crossover, a pull or a shuffle, the greatest
            weight of a lesson.
    """

    recipient: int
    donors: tuple[int, ...]
    form: str
    amount: float


class Change(abc.ABC):
    """One thing that a plan changes.

    Attributes:
        tried: whether it proposes other parameters, which a trial may refuse; else it is carried out in any case.
    """

    tried: ClassVar[bool] = True

    @abc.abstractmethod
    def lineage(self) -> Bool[Tensor, "T T"] | None:
        """Returns [recipient, donor] of the knowledge that moves, a task's own left out; None where none can."""

    def without(self, aside: Bool[Tensor, " T"]) -> "Change":
        """Returns the change with nothing read of those tasks' parameters for others."""
        del aside
        return self

    def leaving(self, tasks: Bool[Tensor, " T"]) -> "Change":
        """Returns the change with the parameters and options of those tasks left as they are."""
        return self.only(~tasks)

    def touched(self) -> Bool[Tensor, " T"] | None:
        """Returns [T] whether it proposes other parameters for a task; None where it never does."""
        lineage = self.lineage()
        return lineage.any(1) if self.tried and lineage is not None else None

    def only(self, tasks: Bool[Tensor, " T"]) -> "Change":
        """Returns what is left of it where some tasks learn, and the others are left alone.

        Raises:
            RunError: what it changes of one task, it changes of others at the same moment.
        """
        del tasks
        raise RunError(
            f"transfer: {type(self).__name__} changes tasks at one moment, and asynchronous ones are at different "
            "points; choose another rule, or leave asynchronous out."
        )

    def form(self, recipient: int) -> tuple[str, float]:
        """Returns the log's (form, amount) for a task that learns."""
        raise NotImplementedError(f"{type(self).__name__} moves knowledge and must name its form")

    def moves(self) -> list[Move]:
        """Returns the change as lines of the transfer log."""
        lineage = self.lineage()
        if lineage is None:
            return []
        return [
            Move(t, tuple(lineage[t].nonzero().flatten().tolist()), *self.form(t))
            for t in lineage.any(1).nonzero().flatten().tolist()
        ]


@final
@dataclass(frozen=True)
class Mix(Change):
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
        return _others(self.weights != 0)

    def only(self, tasks: Bool[Tensor, " T"]) -> "Mix":
        return Mix(torch.where(tasks[:, None], self.weights, torch.eye(len(tasks), dtype=self.weights.dtype)))

    def without(self, aside: Bool[Tensor, " T"]) -> "Mix":
        cut = (self.lineage() & aside).any(1)
        weights = torch.where(_others(aside.expand(len(aside), -1)), 0.0, self.weights)
        total = weights.sum(1, keepdim=True)
        rest = torch.where(total > 0, weights / total, torch.eye(len(aside), dtype=weights.dtype))
        return Mix(torch.where(cut[:, None], rest, self.weights))

    def form(self, recipient: int) -> tuple[str, float]:
        kept = float(self.weights[recipient, recipient])
        if int(self.lineage()[recipient].sum()) > 1:
            return "mix", kept
        return ("copy" if kept == 0 else "blend"), kept


@final
@dataclass(frozen=True)
class Cross(Change):
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
        return one_hot(self.source)

    def only(self, tasks: Bool[Tensor, " T"]) -> "Cross":
        return replace(self, source=torch.where(tasks, self.source, -1))

    def without(self, aside: Bool[Tensor, " T"]) -> "Cross":
        return replace(self, source=_left(self.source, aside))

    def form(self, recipient: int) -> tuple[str, float]:
        return f"crossover-{self.unit}", float(self.rate[recipient])


@final
@dataclass(frozen=True)
class BinaryCross(Change):
    """Simulated binary crossover: θ′ = ½ [(1 + β) θ_t + (1 − β) θ_s], β drawn anew for every number.

    With u ~ U(0, 1): β = (2u)^(1/(η+1)) where u ≤ ½, else (1 / (2 − 2u))^(1/(η+1)) (Deb, Agrawal, *Simulated Binary
    Crossover for Continuous Search Space*, Complex Systems 9, 1995).

    Attributes:
        source: [T] donor of each task; −1 leaves the task alone.
        eta: [T] η, the distribution index: the larger, the closer a child stays to its parent.
        keys: [T] keys of the draws.
    """

    source: Int64[Tensor, " T"]
    eta: Float[Tensor, " T"]
    keys: Int64[Tensor, " T"]

    def lineage(self) -> Bool[Tensor, "T T"]:
        return one_hot(self.source)

    def only(self, tasks: Bool[Tensor, " T"]) -> "BinaryCross":
        return replace(self, source=torch.where(tasks, self.source, -1))

    def without(self, aside: Bool[Tensor, " T"]) -> "BinaryCross":
        return replace(self, source=_left(self.source, aside))

    def form(self, recipient: int) -> tuple[str, float]:
        return "crossover-binary", float(self.eta[recipient])


@final
@dataclass(frozen=True)
class Median(Change):
    """Every number becomes the median of the members' numbers (of an even count, the mean of the middle two).

    Attributes:
        members: [T, T] whose numbers enter a task's median; a row without others leaves its task alone.
    """

    members: Bool[Tensor, "T T"]

    def lineage(self) -> Bool[Tensor, "T T"]:
        return _others(self.members)

    def only(self, tasks: Bool[Tensor, " T"]) -> "Median":
        return Median(self.members & tasks[:, None])

    def without(self, aside: Bool[Tensor, " T"]) -> "Median":
        return Median(self.members & ~_others(aside.expand(len(aside), -1)))

    def form(self, recipient: int) -> tuple[str, float]:
        return "median", float(self.members[recipient, recipient])


@final
@dataclass(frozen=True)
class Elastic(Change):
    """Pulls tasks and a centre c towards each other: θ′_t = θ_t − a_t (θ_t − c), c′ = c + Σ_t b_t (θ_t − c).

    The engine keeps the centre from one plan to the next; it starts as the mean of the tasks with b_t > 0. Since
    the centre remembers all that ever pulled on it, a task that is pulled is taken to learn from every other.

    Attributes:
        rate: [T] a; 0 leaves a task alone.
        centre_rate: [T] b.
    """

    rate: Float[Tensor, " T"]
    centre_rate: Float[Tensor, " T"]

    def lineage(self) -> Bool[Tensor, "T T"]:
        return _others((self.rate > 0)[:, None].expand(-1, len(self.rate)))

    def without(self, aside: Bool[Tensor, " T"]) -> "Elastic":
        return Elastic(torch.where(aside, 0.0, self.rate), torch.where(aside, 0.0, self.centre_rate))

    def leaving(self, tasks: Bool[Tensor, " T"]) -> "Elastic":
        return replace(self, rate=torch.where(tasks, 0.0, self.rate))

    def form(self, recipient: int) -> tuple[str, float]:
        return "elastic", float(self.rate[recipient])


@final
@dataclass(frozen=True)
class Shuffle(Change):
    """A small random share of the numbers change places between the tasks.

    A number of layer l (from 0, of L) is drawn with probability p_l = p + (p_last − p) l / (L − 1), and where it
    is, the tasks' values of it are permuted at random.

    Attributes:
        tasks: [T] who takes part.
        rate: p, of the first layer.
        last_rate: p_last, of the last layer.
        key: of the draws.
    """

    tasks: Bool[Tensor, " T"]
    rate: float
    last_rate: float
    key: int

    def lineage(self) -> Bool[Tensor, "T T"]:
        return _others(self.tasks[:, None] & self.tasks[None, :])

    def without(self, aside: Bool[Tensor, " T"]) -> "Shuffle":
        return replace(self, tasks=self.tasks & ~aside)

    def leaving(self, tasks: Bool[Tensor, " T"]) -> "Shuffle":
        return replace(self, tasks=self.tasks & ~tasks)

    def form(self, recipient: int) -> tuple[str, float]:
        return "shuffle", self.rate


@final
@dataclass(frozen=True)
class Teach(Change):
    """Soft targets for rows. Moves no parameters, but exposes: the pupil inherits its teachers' lineage.

    The lesson holds until the next one: a task's loss on a row becomes
    (1 − w) · its own loss + w · τ² · cross-entropy(target, softmax(output / τ)), in regression
    (1 − w) · its own loss + w · the same loss against the target; on a row that is taught without its label, the
    last part alone, with the weight w (Hinton, Vinyals, Dean, arXiv:1503.02531, for τ²).

    Attributes:
        targets: [T, N, C] probabilities at temperature τ, or regression values.
        weight: [T] w, between 0 and 1, or [T, N] where rows differ; 0 on a row without a target.
        teachers: [T, S] whether task t is taught by task s; T = S, but where a share of the tasks is told of it.
        unlabelled: [T, N] rows that t may draw for their inputs and soft targets only, without their labels.
        temperature: τ.
    """

    tried: ClassVar[bool] = False
    targets: Float[Tensor, "T N C"]
    weight: Float[Tensor, "T *N"]
    teachers: Bool[Tensor, "T S"]
    unlabelled: Bool[Tensor, "T N"]
    temperature: float = 1.0

    def lineage(self) -> Bool[Tensor, "T T"]:
        return self.teachers

    def leaving(self, tasks: Bool[Tensor, " T"]) -> "Teach":
        del tasks  # a lesson is no parameter
        return self

    def only(self, tasks: Bool[Tensor, " T"]) -> "Teach":
        mine = tasks[:, None]
        weight = torch.where(tasks.view(-1, *[1] * (self.weight.ndim - 1)), self.weight, 0.0)
        return replace(self, weight=weight, teachers=self.teachers & mine, unlabelled=self.unlabelled & mine)

    def form(self, recipient: int) -> tuple[str, float]:
        return "teach", float(self.weight[recipient].max())


@final
@dataclass(frozen=True)
class Tune(Change):
    """New values for an option of the optimizer, per task.

    Attributes:
        values: option → [T] values, such as `{"lr": …}`; NaN leaves a task's option as it is.
        relative: whether these are factors, by which the option of every parameter group is multiplied.
    """

    tried: ClassVar[bool] = False
    values: Mapping[str, Float[Tensor, " T"]]
    relative: bool = False

    def lineage(self) -> None:
        return None

    def only(self, tasks: Bool[Tensor, " T"]) -> "Tune":
        return replace(self, values={name: torch.where(tasks, value, torch.nan) for name, value in self.values.items()})


@final
@dataclass(frozen=True)
class Restart(Change):
    """Fresh parameters, or those of the task's best snapshot, and a fresh optimizer state for some tasks.

    Attributes:
        tasks: [T] whether task t starts anew. What it had been exposed to stays on the ledger.
        key: makes the new start differ from earlier ones.
        best: whether tasks go back to their best snapshots, or where they have none yet, to their start.
    """

    tasks: Bool[Tensor, " T"]
    key: int = 0
    best: bool = False

    def lineage(self) -> None:
        return None

    def touched(self) -> Bool[Tensor, " T"]:
        return self.tasks

    def only(self, tasks: Bool[Tensor, " T"]) -> "Restart":
        return replace(self, tasks=self.tasks & tasks)


def one_hot(source: Int64[Tensor, " T"]) -> Bool[Tensor, "T T"]:
    """Returns [recipient, donor], with no donor where `source` is −1."""
    return source[:, None] == torch.arange(len(source))


def _left(source: Int64[Tensor, " T"], aside: Bool[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """The sources but for those that are set aside."""
    return torch.where((source >= 0) & aside[source.clamp_min(0)], -1, source)


def _others(pairs: Bool[Tensor, "T T"]) -> Bool[Tensor, "T T"]:
    return pairs & ~torch.eye(len(pairs), dtype=torch.bool)
