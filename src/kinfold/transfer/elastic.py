"""Elastic averaging (EASGD): tasks and a centre pull on each other.

Zhang, Choromanska, LeCun, *Deep learning with Elastic Averaging SGD*, NeurIPS 2015 (arXiv:1412.6651), in its
synchronous form; with a momentum optimizer it is their EAMSGD.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from kinfold.transfer.base import Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Elastic


@final
@dataclass(frozen=True)
class ElasticRule(Rule):
    """Every `steps` optimizer steps τ, T tasks x_i and a centre x̃ move towards each other.

        x_i ← x_i − α (x_i − x̃),    x̃ ← x̃ + α Σ_i (x_i − x̃),    α = β / T

    all from the state before. The centre starts as the tasks' mean. The weaker the pull and the rarer, the further
    the tasks may explore; β is the share of its way to the tasks' mean that the centre goes. Optimizer state and
    batch-norm statistics stay each task's own. A task whose training loss is not finite takes no part.

    The defaults are values of the paper's experiments.

    Attributes:
        beta: β, between 0 and 1.
        steps: τ, optimizer steps between two pulls.
        until: share of the schedule after which there are no pulls.

    Example:
        >>> ElasticRule(beta=0.8).name
        'elastic'
    """

    name = "elastic"
    alone: ClassVar[bool] = False
    beta: float | int = 0.9
    steps: int = 10
    until: float | int = 1.0

    def __post_init__(self) -> None:
        self.check_cadence()
        check_shares(self.name, beta=self.beta)

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del generator
        sound = view.sound
        rate = sound.double() * (self.beta / len(sound))
        if not bool(rate.any()):
            return None, state
        return Plan((Elastic(rate, rate),), moments="keep", buffers="keep"), state
