"""Shares of the tasks that go on each by itself, and learn from what the others have published last.

At the end of a period a share publishes a copy of each of its tasks: the model, and what the optimizer remembers. It
lies where the share is. A plan is carried out for one share, whose tasks learn from such copies; the others are not
asked, and go on meanwhile.

Legend: T tasks, k those of one share, A shares, m rows asked for, C classes or outputs.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias, final

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.engines import parcels
from kinfold.engines.base import Engine
from kinfold.engines.compression import Codec
from kinfold.engines.exchange import Handle, Transport, told
from kinfold.engines.local import LocalEngine
from kinfold.engines.parcels import Arrival, Errand, Scope
from kinfold.engines.proposals import Proposal
from kinfold.engines.routes import alone
from kinfold.transfer.base import Plan

Moving: TypeAlias = frozenset[tuple[str, str]]
"""Which slots of optimizers hold a number for each of a parameter's: (parameter, slot)."""


@final
@dataclass(frozen=True)
class Shown:
    """What a share tells of its tasks as they stand, besides their models.

    Attributes:
        sound: whether a task's parameters are all finite.
        options: of the optimizers, such as `lr`.
        moving: slots that move with parameters.
        outputs: for the rows that were asked for, or None.
    """

    sound: Bool[Tensor, " k"]
    options: dict[str, Float[Tensor, " k"]]
    moving: Moving
    outputs: Float[Tensor, "k m C"] | None


def show(engine: LocalEngine, rows: Int64[Tensor, " m"] | None) -> Shown:
    """Returns what there is to be told of a share's tasks, with their outputs for some rows if these are given."""
    outputs = None if rows is None else engine.predict(rows)
    return Shown(engine.sound(), engine.options(), engine.updater.moments(), outputs)


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a share has published of a task.

    Attributes:
        model: where the model lies, with what methods keep beside it.
        moments: where that lies which its optimizer remembers.
        moving: slots in it that move with parameters.
    """

    model: Handle
    moments: Handle
    moving: Moving


@final
class Apart:
    """Shares that are asked each for itself.

    What comes back of a question is a handle; `transport.first` waits for whichever is answered first. A share answers
    in the order in which it is asked.

    Args:
        tasks: those of each share.
        transport: reaches them.
        codec: of models, as in `kinfold.engines.exchange.carry_out`.

    Attributes:
        period: periods that all of them have ended, when they last met.
    """

    def __init__(self, tasks: Sequence[slice], transport: Transport, codec: Codec | None = None):
        self.tasks, self.transport, self._codec = tasks, transport, codec
        self.period = 0

    def publish(self, share: int, moving: Moving) -> dict[int, Snapshot]:
        """Has a share publish its tasks as they stand; returns the copies by the tasks' numbers."""

        def packed(number: int, scope: Scope, kind: str) -> Handle:
            return self.transport.ask(share, parcels.model, scope, number, kind=kind)

        model, moments = Scope(codec=self._codec), Scope(moving=moving)
        own = self.tasks[share]
        return {
            own.start + i: Snapshot(packed(i, model, "models"), packed(i, moments, "moments models"), moving)
            for i in range(own.stop - own.start)
        }

    def consider(self, share: int, plan: Plan, period: int, donors: Mapping[int, Snapshot]) -> Handle | None:
        """Has a share's tasks try what a plan proposes to them; the answer is an `Outcome` of theirs.

        Args:
            share: its number.
            plan: of which only what is proposed to them is left (see `Plan.only`).
            period: of the share.
            donors: what has been published of the tasks that the plan learns from.

        Returns:
            None if nothing is proposed.
        """
        own, proposal = self.tasks[share], Proposal.of(plan, self.tasks[-1].stop)
        if not bool(proposal.touched[own].any()):
            return None
        changes, others = alone(plan.changes, own, proposal.touched, proposal.origin)
        errand = Errand(
            proposal.to(own, changes),
            _learners(own, proposal.touched),
            Scope(buffers=plan.buffers == "follow", codec=self._codec),
            tuple(Arrival("model", donor) for donor in others),
            period,
        )
        return self.transport.ask(share, parcels.consider, errand, *(donors[donor].model for donor in others))

    def follow(
        self,
        share: int,
        plan: Plan,
        period: int,
        donors: Mapping[int, Snapshot],
        accepted: Bool[Tensor, " T"],
        moving: Moving,
    ) -> list[Handle]:
        """Has a share do the rest of a plan: optimizers' state follows what was accepted, lessons are learned.

        Where a donor's optimizer remembers other things than the share's, there is nothing that could follow, and the
        recipients' begin anew.

        Args:
            share: as in `consider`.
            plan: likewise.
            period: likewise.
            donors: likewise.
            accepted: what became of it.
            moving: slots of the share's own optimizers that move with parameters.
        """
        own, proposal = self.tasks[share], Proposal.of(plan, self.tasks[-1].stop)
        asked: list[Handle] = []
        concerned = accepted & proposal.restarted if plan.moments == "keep" else accepted
        if bool(concerned[own].any()):
            learn = accepted & ~proposal.restarted & (plan.moments == "follow")
            changes, others = alone(plan.changes, own, learn, proposal.origin)
            if any(donors[donor].moving != moving for donor in others):
                proposal, others = dataclasses.replace(proposal, moments="reset"), ()
            errand = Errand(
                proposal.to(own, changes),
                _learners(own, learn),
                Scope(moving=moving),
                tuple(Arrival("model", donor) for donor in others),
                period,
            )
            given = (donors[donor].moments for donor in others)
            asked.append(self.transport.ask(share, parcels.follow, errand, accepted[own], *given))
        for function, arguments in told(plan, self.tasks):
            asked.append(self.transport.ask(share, function, *arguments[share]))
        return asked


class Uneven(Engine, abc.ABC):
    """An engine of shares that may be at different points of their training."""

    @abc.abstractmethod
    def apart(self) -> AbstractContextManager[Apart]:
        """Within, shares go on each by itself, and the engine may be asked for what all have only where they meet.

        They must have met when it is left.
        """


def _learners(own: slice, learn: Bool[Tensor, " T"]) -> tuple[int, ...]:
    return tuple(t for t in range(own.start, own.stop) if bool(learn[t]))
