"""Merge-median: now and then all tasks become their coordinate-wise median.

Averaging all tasks every few periods is PAPA-all (Jolicoeur-Martineau et al., *PopulAtion Parameter Averaging*,
TMLR 2024, arXiv:2304.03094); the coordinate-wise median in place of the mean is that of robust distributed
learning (Yin et al., *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018,
arXiv:1803.01498). The combination is ours.
"""

from dataclasses import dataclass
from typing import final

import torch

from kinfold.transfer.base import Plan, Rule, State, View
from kinfold.transfer.changes import Median


@final
@dataclass(frozen=True)
class MergeMedian(Rule):
    """θ′_t = median_s θ_s, number by number (of an even count, the mean of the middle two).

    The median is over the tasks with finite scores; the others may become it, but have no say in it. Optimizer
    state follows, as the median of the tasks' own, and batch-norm statistics are measured anew.

    Attributes:
        trial: whether a task takes the median only if it is better on the task's own validation rows. Tasks from
            independent starts lie in different basins, and what lies between is then refused instead of wrecking
            all of them at once. The median knows every task's training rows, so this test flatters it.
        period: periods between transfer points. Where the median is taken, tasks start again from one point, and
            need time to part; PAPA-all averages every few periods for the same reason.
        until: share of the schedule after which there are no transfers.

    Example:
        >>> MergeMedian(period=2, trial=False).due(period=2, epochs=10)
        True
    """

    name = "merge-median"
    trial: bool = True
    period: int = 5
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        sound = view.metric.isfinite() & view.loss.isfinite()
        if int(sound.sum()) < 2:
            return None, state
        members = sound.repeat(len(sound), 1)
        return Plan((Median(members),), trial=view.validation if self.trial else None), state
