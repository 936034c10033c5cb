"""Exchange: the worst tasks go on from the best, as in population based training.

Jaderberg et al., *Population Based Training of Neural Networks* (2017, arXiv:1711.09846), with its truncation
selection; the tasks here differ by their rows, and in their options only where these are perturbed.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold.errors import InputError, unknown
from kinfold.transfer.base import Plan, Rule, State, View
from kinfold.transfer.changes import Change, Mix, Tune


@final
@dataclass(frozen=True)
class Exchange(Rule):
    """The worst k tasks become copies of uniformly drawn ones of the best k, k = max(1, ⌊truncation · T⌋).

    Tasks are ranked by their metric, ties by the lower loss; a task without finite scores is worse than every
    other, and is never copied. Optimizer state and buffers follow (*exploit*). Then (*explore*) each option h that
    is named in `perturb` becomes h_t ← f · h_s for the task t that copied s, f drawn uniformly from `factors`.
    For `lr`, h_s is the donor's present rate (of one that is at another period, in an asynchronous run, what that is
    where t is), and t's schedule goes on from there in proportion. An option that is 0 stays 0. Nothing is tried: the
    copy is accepted unseen.

    Attributes:
        truncation: share of the tasks that copy, and as many may be copied; at most a half: no task is both.
        perturb: options of the optimizer to perturb, such as `("lr", "weight_decay")`.
        factors: what a perturbed option is multiplied by; the paper has 0.8 and 1.2.
        period: periods between transfer points. A copy must have time to become a task of its own, which is what
            the paper's *ready* waits for: at every period, one task's copies would soon be all there is.
        until: share of the schedule after which there are no transfers.

    Raises:
        InputError: from `plan`, where the optimizer has no option of that name that is a number.

    Example:
        >>> rule = Exchange(truncation=0.5, perturb=("lr",), period=2)
        >>> [period for period in range(1, 10) if rule.due(period, epochs=10)]
        [2, 4, 6, 8]
    """

    name = "exchange"
    truncation: float | int = 0.25
    perturb: tuple[str, ...] = ()
    factors: tuple[float | int, ...] = (0.8, 1.2)
    period: int = 5
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        if not 0.0 < self.truncation <= 0.5:
            raise InputError(f"exchange: truncation is {self.truncation!r}; give a number above 0, and at most 0.5.")
        if not self.factors or not all(0.0 < factor < math.inf for factor in self.factors):
            raise InputError(f"exchange: factors is {self.factors!r}; give one or more numbers above 0.")

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        for option in self.perturb:
            if option not in view.options:
                raise unknown("exchange: perturb", option, view.options)
        T = len(view.metric)
        # Every number is drawn whether it is used or not: the stream then does not hang on the scores.
        which = torch.rand(T, dtype=torch.float64, generator=generator)
        factor = torch.rand(len(self.perturb), T, dtype=torch.float64, generator=generator)
        order = ranked(view.metric, view.loss)
        count = max(1, int(self.truncation * T))
        best, worst = order[:count], order[T - count :]
        best = best[view.metric[best].isfinite() & view.loss[best].isfinite()]
        if not len(best):
            return None, state
        donor = best[(which[worst] * len(best)).long()]
        weights = torch.eye(T, dtype=torch.float64)
        weights[worst] = weights[donor]
        changes: tuple[Change, ...] = (Mix(weights),)
        if self.perturb:
            factors = torch.tensor(self.factors, dtype=torch.float64)
            values = {}
            for option, drawn in zip(self.perturb, factor, strict=True):
                values[option] = torch.full((T,), torch.nan, dtype=torch.float64)
                values[option][worst] = view.options[option][donor] * factors[(drawn[worst] * len(factors)).long()]
            changes = (*changes, Tune(values))
        return Plan(changes), state


def ranked(metric: Float[Tensor, " T"], loss: Float[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """Returns the tasks from best to worst: by higher metric, then lower loss, then number; without scores last.

    Args:
        metric: [T] higher is better.
        loss: [T] lower is better.

    Example:
        >>> ranked(torch.tensor([0.5, torch.nan, 0.5, 0.9]), torch.tensor([1.0, 0.1, 0.8, 2.0]))
        tensor([3, 2, 0, 1])
    """
    sound = metric.isfinite() & loss.isfinite()
    by_loss = torch.where(sound, loss, torch.inf).argsort(stable=True)
    by_metric = torch.where(sound, metric, -torch.inf)[by_loss].argsort(descending=True, stable=True)
    return by_loss[by_metric]
