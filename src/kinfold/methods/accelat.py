"""AccelAT: the learning rate falls when the accuracy has stopped to rise.

Nikfam, Marchisio, Martina, Shafique, *AccelAT: A Framework for Accelerating the Adversarial Training of Deep Neural
Networks Through Accuracy Gradient* (IEEE Access, 2022), and its code (farzadnikfam/AccelAT).

Legend: W periods, V = W + 1.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State


@final
@dataclass(frozen=True)
class AccelAT(Method):
    """After each period, the mean of the last `window` scores is taken; where it gained too little, the rate falls.

    The factor on the schedule's learning rate starts at 1 and becomes max(factor · k, floor), so with a constant
    schedule this is the paper's. Scores are the task's own, on its validation rows, and what is known of them stays
    with the task in a transfer. It costs nothing.

    Attributes:
        k: what the rate is multiplied by.
        threshold: the gain of the mean from one period to the next under which it falls, in units of the metric.
        window: periods in the mean, W.
        quiet: periods from one fall to the next, at least.
        floor: the least factor.

    Raises:
        InputError: one of them is out of range.

    Example:
        >>> AccelAT().k
        0.8
    """

    k: float | int = 0.8
    threshold: float | int = 0.005
    window: int = 5
    quiet: int = 5
    floor: float | int = 0.001

    def __post_init__(self) -> None:
        for argument in ("k", "floor"):
            if not 0.0 < getattr(self, argument) <= 1.0:
                raise InputError(f"accelat: {argument} is {getattr(self, argument)!r}; give a number up to 1, above 0.")
        for argument, least in (("window", 1), ("quiet", 0)):
            if getattr(self, argument) < least:
                raise InputError(f"accelat: {argument} is {getattr(self, argument)!r}; give {least} or more periods.")
        if not -torch.inf < self.threshold < torch.inf:
            raise InputError(f"accelat: threshold is {self.threshold!r}; give a number.")

    def start(self, params: Params, context: Context) -> State:
        del context
        like = next(iter(params.values()))
        return {
            "own/factor": like.new_ones(()),
            "own/scores": like.new_zeros(self.window + 1),
            "own/periods": like.new_zeros(()),
            "own/since": like.new_zeros(()) + self.quiet,
        }

    def rate(self, state: State) -> Float[Tensor, ""]:
        return state["own/factor"]

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        scores = torch.cat([state["own/scores"][1:], score[:1]])
        periods, since = state["own/periods"] + 1, state["own/since"] + 1
        # The mean before this one must be of W periods, too, and so must have been the one before that.
        falls = (periods > self.window + 1) & (since > self.quiet) & (gain(scores) < self.threshold)
        factor = torch.where(falls, (self.k * state["own/factor"]).clamp_min(self.floor), state["own/factor"])
        since = torch.where(falls, torch.ones_like(since), since)
        return params, {"own/factor": factor, "own/scores": scores, "own/periods": periods, "own/since": since}


def gain(scores: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Returns by how much the mean of the last W scores is above that of the W before, which overlap in all but one.

    Example:
        >>> gain(torch.tensor([0.0, 2.0, 4.0]))
        tensor(2.)
    """
    return scores[1:].mean() - scores[:-1].mean()
