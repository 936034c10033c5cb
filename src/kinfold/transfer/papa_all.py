"""PAPA-all: every few periods, all tasks become their mean.

Jolicoeur-Martineau, Gervais, Fatras, Zhang, Lacoste-Julien, *PopulAtion Parameter Averaging (PAPA)*, TMLR 2024
(arXiv:2304.03094).
"""

from dataclasses import dataclass
from typing import final, get_args

import torch

from kinfold.errors import unknown
from kinfold.transfer.base import Carry, Plan, Rule, State, View
from kinfold.transfer.papa import towards_mean


@final
@dataclass(frozen=True)
class PAPAAll(Rule):
    """Every `period` periods, θ_t ← mean_s θ_s for every task, with batch-norm statistics measured anew.

    Between two averagings the tasks part again, by what they train on. A task whose loss is not finite takes no
    part: it enters no mean, and the mean would not cure its optimizer state.

    The paper averages every 5 to 10 epochs on small data sets, and every epoch on ImageNet.

    Attributes:
        moments: what becomes of the optimizer's state: each task's own (`keep`), fresh (`reset`), or averaged like
            the parameters (`follow`).
        period: periods between two averagings.
        until: share of the schedule after which there are none, so that tasks end apart and can be chosen from.

    Example:
        >>> [period for period in range(1, 21) if PAPAAll().due(period, epochs=20)]
        [5, 10, 15]
    """

    name = "papa-all"
    moments: Carry = "keep"
    period: int = 5
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        if self.moments not in get_args(Carry):
            raise unknown("papa-all: moments", self.moments, get_args(Carry))

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        sound = view.sound & view.loss.isfinite()
        mix = towards_mean(torch.ones(len(sound)), sound)
        return (None if mix is None else Plan((mix,), moments=self.moments)), state
