"""PAPA, population parameter averaging: every few steps, each task moves a little towards the mean of all.

Jolicoeur-Martineau, Gervais, Fatras, Zhang, Lacoste-Julien, *PopulAtion Parameter Averaging (PAPA)*, TMLR 2024
(arXiv:2304.03094). Legend: T tasks.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinfold.transfer.base import Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Mix


@final
@dataclass(frozen=True)
class PAPA(Rule):
    """Every `steps` optimizer steps, the tasks are pulled to their mean, by less as the learning rate falls.

        θ_t ← (1 − p_t) θ_t + p_t · mean_s θ_s,    p_t = (1 − α) · lr_t / lr_t⁰

    with lr_t⁰ the rate that the schedule reckons from; without a schedule p_t = 1 − α. Optimizer state and
    batch-norm statistics stay each task's own, since the pull is small. A task whose training loss is not finite
    takes no part: it enters no mean, and a pull would not make it sound.

    The paper's values are the defaults: α = 0.99 every 10 steps (more generally α = 0.999^steps).

    Attributes:
        alpha: α, the share that a task keeps at the initial learning rate.
        steps: optimizer steps between two pulls.
        until: share of the schedule after which there are no pulls.

    Example:
        >>> PAPA(alpha=0.98).steps
        10
    """

    name = "papa"
    alpha: float | int = 0.99
    steps: int = 10
    until: float | int = 1.0

    def __post_init__(self) -> None:
        self.check_cadence()
        check_shares(self.name, alpha=self.alpha)

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        pull = torch.full((len(view.sound),), 1.0 - self.alpha, dtype=torch.float64)
        if "initial_lr" in view.options:  # there is a schedule
            rate, initial = view.options["lr"], view.options["initial_lr"]
            # Schedules that warm up rise far above what they reckon from; nobody is pulled beyond the mean.
            pull = torch.where(initial > 0, pull * rate / initial, pull).clamp(max=1.0)
        mix = towards_mean(pull, view.sound)
        return (None if mix is None else Plan((mix,), moments="keep", buffers="keep")), state


def towards_mean(pull: Float[Tensor, " T"], sound: Bool[Tensor, " T"]) -> Mix | None:
    """Returns θ_t ← (1 − p_t) θ_t + p_t · mean_s θ_s over the sound tasks, or None where that moves nothing.

    Args:
        pull: [T] p, between 0 and 1.
        sound: [T] whether a task takes part; the others are left alone, and enter no mean.

    Example:
        >>> towards_mean(torch.tensor([0.5, 1.0, 1.0]), torch.tensor([True, True, False])).weights
        tensor([[0.7500, 0.2500, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    pull = torch.where(sound, pull.double(), 0.0)
    if int(sound.sum()) < 2 or not bool(pull.any()):
        return None
    mean = sound.double() / sound.sum()
    return Mix(torch.diag(1.0 - pull) + pull[:, None] * mean)
