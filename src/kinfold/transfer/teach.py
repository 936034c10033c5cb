"""Teach: peers' mean predictions as soft targets, refreshed at every transfer point.

Knowledge moves in function space instead of parameter space: mutual learning (Zhang et al., *Deep Mutual
Learning*, CVPR 2018) in the form of codistillation with stale predictions (Anil et al., ICLR 2018). A task may
also draw its own validation rows, without their labels: the peers that trained on them pass on what they know.
Legend: T tasks, N rows, m of them unsealed, C classes or outputs.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final, get_args

import torch

from kinfold.errors import InputError, unknown
from kinfold.transfer.base import Need, Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Teach

Teachers: TypeAlias = Literal["peers", "out-of-fold"]


@final
@dataclass(frozen=True)
class TeachRule(Rule):
    """Each task is taught by the mean of its peers' predictions.

        target_t(x) = mean of softmax(f_s(x) / τ) over the teachers s ≠ t of row x

    in regression the mean of f_s(x); what a target does to the loss is said of `kinfold.transfer.Teach`.

    Who teaches a row is a choice. `peers`: every sound peer. `out-of-fold`, which is the rule `teach-out-of-fold`:
    only peers that hold the row in validation, so that none passes on a label it was fitted to. A row that no such
    peer holds keeps its label alone, and is not drawn without it. That a teacher has not trained on the row does not
    make it innocent of it: what it was taught by others may come from there, and the ledger says so.

    Attributes:
        weight: w at full strength, the share of the loss that comes from the peers.
        temperature: τ of the soft targets (classification).
        cool: τ at the end of the schedule, to which it goes linearly from `temperature`; None to stay there.
        ramp: share of the schedule over which the weight rises, linearly, from 0 to `weight`.
        teachers: `peers` or `out-of-fold`, see above.
        unlabelled: whether a task also draws its own validation rows, without their labels. The period keeps
            its length, so this costs no further compute.
        period: periods between two refreshes of the soft targets.
        until: share of the schedule after which the soft targets are refreshed no more (they stay in force).

    Example:
        >>> TeachRule(weight=0.7).needs
        frozenset({'predictions'})
        >>> TeachRule(teachers="out-of-fold").name
        'teach-out-of-fold'
    """

    name = "teach"
    moves: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({"predictions"})
    weight: float | int = 0.5
    temperature: float | int = 8.0
    cool: float | int | None = None
    ramp: float | int = 0.6
    teachers: Teachers = "peers"
    unlabelled: bool = True
    period: int = 1
    until: float | int = 1.0

    def __post_init__(self) -> None:
        if self.teachers not in get_args(Teachers):
            raise unknown("teach: teachers", self.teachers, get_args(Teachers))
        if self.teachers == "out-of-fold":
            object.__setattr__(self, "name", "teach-out-of-fold")  # the table has it as a rule of its own
        self.check_cadence()
        check_shares(self.name, weight=self.weight, ramp=self.ramp)
        for argument, value in (("temperature", self.temperature), ("cool", self.cool)):
            if value is not None and not 0.0 < value < math.inf:
                raise InputError(f"{self.name}: {argument} is {value!r}; give a number above 0.")

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        assert view.predict is not None  # `needs` asks for them
        T, N = view.validation.shape
        rows = view.unsealed.nonzero().flatten()
        outputs_TmC, temperature = view.predict(rows), self._temperature(view)
        if view.classes is not None:
            outputs_TmC = torch.softmax(outputs_TmC / temperature, dim=-1)
        # A diverged peer has nothing to teach: it is left out, and a row left with no teacher is not taught.
        teaches_Tm = outputs_TmC.isfinite().flatten(1).all(1)[:, None].expand(-1, len(rows))
        if self.teachers == "out-of-fold":
            teaches_Tm = teaches_Tm & view.validation[:, rows]
        outputs_TmC = torch.where(teaches_Tm[..., None], outputs_TmC, 0.0)
        count_Tm = teaches_Tm.sum(0) - teaches_Tm.long()  # of the others
        mean_TmC = (outputs_TmC.sum(0) - outputs_TmC) / count_Tm.clamp_min(1)[..., None].to(outputs_TmC.dtype)
        targets_TNC = mean_TmC.new_zeros(T, N, mean_TmC.shape[-1])
        targets_TNC[:, rows] = mean_TmC
        taught_TN = torch.zeros(T, N, dtype=torch.bool)
        taught_TN[:, rows] = count_Tm > 0

        unlabelled_TN = view.validation & taught_TN & self.unlabelled
        # A teacher of some row that the task may draw; counted, since [T, T, N] truth values could be too many.
        drawn_Tm = (~view.validation | unlabelled_TN)[:, rows]
        teachers = (drawn_Tm.double() @ teaches_Tm.double().T > 0) & ~torch.eye(T, dtype=torch.bool)
        rise = 1.0 if self.ramp == 0 else min(1.0, view.period / (self.ramp * view.epochs))
        taught = taught_TN if self.teachers == "out-of-fold" else taught_TN.any(1)  # else rows do not differ
        weight = self.weight * rise * taught.double()
        return Plan((Teach(targets_TNC, weight, teachers, unlabelled_TN, temperature),)), state

    def _temperature(self, view: View) -> float:
        if self.cool is None:
            return float(self.temperature)
        return float(self.temperature + (self.cool - self.temperature) * view.period / view.epochs)
