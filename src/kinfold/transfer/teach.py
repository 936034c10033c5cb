"""Teach: peers' mean predictions as soft targets, refreshed at every transfer point.

Knowledge moves in function space instead of parameter space: mutual learning (Zhang et al., *Deep Mutual
Learning*, CVPR 2018) in the form of codistillation with stale predictions (Anil et al., ICLR 2018). A task may
also draw its own validation rows, without their labels: the peers that trained on them pass on what they know.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from kinfold.errors import InputError
from kinfold.transfer.base import Need, Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Teach


@final
@dataclass(frozen=True)
class TeachRule(Rule):
    """Each task is taught by the mean of its peers' predictions.

    Attributes:
        weight: w at full strength, the share of the loss that comes from the peers.
        temperature: τ of the soft targets (classification).
        ramp: share of the schedule over which the weight rises, linearly, from 0 to `weight`.
        unlabelled: whether a task also draws its own validation rows, without their labels. The period keeps
            its length, so this costs no further compute.
        period: periods between two refreshes of the soft targets.
        until: share of the schedule after which the soft targets are refreshed no more (they stay in force).

    Example:
        >>> TeachRule(weight=0.7).needs
        frozenset({'predictions'})
    """

    name = "teach"
    moves: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({"predictions"})
    weight: float | int = 0.5
    temperature: float | int = 8.0
    ramp: float | int = 0.6
    unlabelled: bool = True
    period: int = 1
    until: float | int = 1.0

    def __post_init__(self) -> None:
        self.check_cadence()
        check_shares(self.name, weight=self.weight, ramp=self.ramp)
        if not 0.0 < self.temperature < math.inf:
            raise InputError(f"teach: temperature is {self.temperature!r}; give a number above 0.")

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        assert view.predict is not None  # `needs` asks for them
        T, N = view.validation.shape
        rows = view.unsealed.nonzero().flatten()
        outputs_TmC = view.predict(rows)
        if view.classes is not None:
            outputs_TmC = torch.softmax(outputs_TmC / self.temperature, dim=-1)
        # A diverged peer has nothing to teach: it is left out, and a task left with no peer is not taught.
        sound = outputs_TmC.isfinite().flatten(1).all(1)
        outputs_TmC = torch.where(sound[:, None, None], outputs_TmC, 0.0)
        teachers = sound[None, :] & ~torch.eye(T, dtype=torch.bool)
        peers = teachers.sum(1)
        mean_TmC = (outputs_TmC.sum(0) - outputs_TmC) / peers.clamp_min(1)[:, None, None].to(outputs_TmC.dtype)
        targets = mean_TmC.new_zeros(T, N, mean_TmC.shape[-1])
        targets[:, rows] = mean_TmC

        rise = 1.0 if self.ramp == 0 else min(1.0, view.period / (self.ramp * view.epochs))
        weight = self.weight * rise * (peers > 0).to(torch.float64)
        unlabelled = view.validation & (self.unlabelled & (peers > 0))[:, None]
        return Plan((Teach(targets, weight, teachers, unlabelled, self.temperature),)), state
