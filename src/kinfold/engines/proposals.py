"""What a plan proposes to some neighbouring tasks, and where what their donors have is read from.

Legend: T tasks, k some of them, side by side, N rows.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from kinfold.engines.moves import Part, blended, donors_of, medians_of, mixture_of, moved, pulled
from kinfold.tasks.update import Slots
from kinfold.transfer.base import Carry, Plan
from kinfold.transfer.changes import Elastic, Median, Mix, Restart


@final
@dataclass(frozen=True)
class Proposal:
    """A plan as it concerns some of the tasks.

    Attributes:
        tasks: which.
        changes: in order. What `Elastic` and `Restart` say of tasks is cut to these, other changes speak of all.
        touched: [k] whether other parameters are proposed to a task.
        trial: [k, N] acceptance rows, or None.
        moments: see `Plan`.
        buffers: see `Plan`.
        origin: [k] the task whose indivisible state each candidate takes.
        restarted: [k] whether a task starts anew.
        blended: [k] whether a candidate is a mixture, whose batch-norm statistics nobody has measured.
    """

    tasks: slice
    changes: tuple[Part, ...]
    touched: Bool[Tensor, " k"]
    trial: Bool[Tensor, "k N"] | None
    moments: Carry
    buffers: Carry
    origin: Int64[Tensor, " k"]
    restarted: Bool[Tensor, " k"]
    blended: Bool[Tensor, " k"]

    @classmethod
    def of(cls, plan: Plan, tasks: int) -> "Proposal":
        """Returns what a plan proposes to all T tasks."""
        everyone, restarted = torch.arange(tasks), torch.zeros(tasks, dtype=torch.bool)
        origin, mixtures = everyone, torch.zeros(tasks, dtype=torch.bool)
        for change in plan.changes:
            mixtures |= blended(change, tasks)
            if isinstance(change, Restart):
                restarted |= change.tasks
            elif isinstance(change, Mix):
                donors = donors_of(change)
                origin = torch.where(donors != everyone, donors, origin)
        touched = plan.touched(tasks)
        return cls(
            slice(0, tasks),
            plan.changes,
            touched,
            plan.trial,
            plan.moments,
            plan.buffers,
            origin,
            restarted,
            mixtures,
        )

    def to(self, tasks: slice, changes: Sequence[Part]) -> "Proposal":
        """Returns what is proposed to some of the tasks, with these changes in the place of its own."""
        return Proposal(
            tasks,
            tuple(_cut(change, tasks) for change in changes),
            self.touched[tasks],
            None if self.trial is None else self.trial[tasks],
            self.moments,
            self.buffers,
            self.origin[tasks],
            self.restarted[tasks],
            self.blended[tasks],
        )


class Donors(abc.ABC):
    """Where what the donors of a proposal had before it is read from. A subclass says who holds it.

    A field is one tensor of a task's state, such as `params/0.weight`; each goes with a parameter or buffer, by whose
    name its numbers are drawn.

    Attributes:
        count: changes there are.
        slots: what donors' optimizers remember besides moments, where these donors are not the engine's own tasks.
        place: task → its number among the engine's tasks followed by those of `slots`.
        moving: (name, slot) of the moments of all tasks there are, or None where they are all the engine's.
    """

    count: int
    slots: Sequence[Slots]
    place: Mapping[int, int]
    moving: frozenset[tuple[str, str]] | None

    @abc.abstractmethod
    def moved(
        self,
        number: int,
        field: str,
        name: str,
        before: Shaped[Tensor, "k *shape"],
        candidate: Shaped[Tensor, "k *shape"],
    ) -> Shaped[Tensor, "k *shape"]:
        """Returns a field of the engine's tasks after one of the changes, by its number (see `moves.moved`)."""

    @abc.abstractmethod
    def pulled(
        self,
        number: int,
        name: str,
        before: Shaped[Tensor, "k *shape"],
        candidate: Shaped[Tensor, "k *shape"],
        centre: Shaped[Tensor, "*shape"] | None,
    ) -> tuple[Shaped[Tensor, "k *shape"], Shaped[Tensor, "*shape"]]:
        """Returns a parameter of the tasks, and its centre, after an elastic pull (see `moves.pulled`)."""

    @abc.abstractmethod
    def origins(self, field: str, before: Shaped[Tensor, "k *shape"]) -> Shaped[Tensor, "k *shape"]:
        """Returns a field that cannot be divided, of the donors from whom the tasks take it."""

    def after(self, field: str, name: str, before: Shaped[Tensor, "k *shape"]) -> Shaped[Tensor, "k *shape"]:
        """Returns a field of the tasks after all changes."""
        after = before
        for number in range(self.count):
            after = self.moved(number, field, name, before, after)
        return after


@final
class Here(Donors):
    """All tasks are the engine's.

    Args:
        proposal: to all of them.
        layers: see `moves.layers_of`.
    """

    def __init__(self, proposal: Proposal, layers: dict[str, int]):
        self._changes = [_by_rows(change, proposal.tasks.stop) for change in proposal.changes]
        self._origin, self._layers = proposal.origin, layers
        self.count, self.slots, self.moving = len(proposal.changes), (), None
        self.place = {t: t for t in range(proposal.tasks.stop)}

    def moved(
        self,
        number: int,
        field: str,
        name: str,
        before: Shaped[Tensor, "T *shape"],
        candidate: Shaped[Tensor, "T *shape"],
    ) -> Shaped[Tensor, "T *shape"]:
        return moved(self._changes[number], name, before, candidate, self._layers)

    def pulled(
        self,
        number: int,
        name: str,
        before: Shaped[Tensor, "T *shape"],
        candidate: Shaped[Tensor, "T *shape"],
        centre: Shaped[Tensor, "*shape"] | None,
    ) -> tuple[Shaped[Tensor, "T *shape"], Shaped[Tensor, "*shape"]]:
        change = self._changes[number]
        assert isinstance(change, Elastic)
        return pulled(change, before, candidate, centre)

    def origins(self, field: str, before: Shaped[Tensor, "T *shape"]) -> Shaped[Tensor, "T *shape"]:
        return before[self._origin.to(before.device)]


def _by_rows(change: Part, tasks: int) -> Part:
    """What `moved` would make of a change anew for every tensor."""
    if isinstance(change, Mix) and not bool((change.weights != 0).all()):
        return mixture_of(change, range(tasks))
    return medians_of(change, range(tasks)) if isinstance(change, Median) else change


def _cut(change: Part, tasks: slice) -> Part:
    if isinstance(change, Elastic):
        return Elastic(change.rate[tasks], change.centre_rate[tasks])
    if isinstance(change, Restart):
        return dataclasses.replace(change, tasks=change.tasks[tasks])
    return change
