"""Shuffle: a small random share of the parameters changes places between the tasks, while they train.

Fournier et al., *WASH: Train your Ensemble with Communication-Efficient Weight Shuffling, then Average* (2024,
arXiv:2405.17517).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final, get_args

import torch

from kinfold.errors import unknown
from kinfold.transfer.base import Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Shuffle

Moments: TypeAlias = Literal["follow", "keep"]


@final
@dataclass(frozen=True)
class ShuffleRule(Rule):
    """Each number of layer l (from 0, of L) is drawn with probability p_l, and permuted over the tasks where it is.

        p_l = p + (p_last − p) l / (L − 1),  with p_last = 0 the paper's p (1 − l / (L − 1))

    No number is lost: neither the tasks' mean nor their spread about it changes, and yet tasks that must do with
    each other's numbers stay where their mean is a good model. A task whose training loss is not finite takes no
    part. Buffers stay: so few numbers move that running statistics follow by themselves, and measuring them anew
    would cost more than the steps between.

    Attributes:
        p: share of the first layer's numbers that is permuted at a transfer point.
        p_last: that of the last layer.
        moments: `keep` is WASH; with `follow` the optimizer state of a number moves with it, which is WASH+Opt.
        steps: optimizer steps between transfer points; None to act at the ends of periods. The paper shuffles at
            every step. A transfer point costs a pass over all parameters, so by default ten times as many numbers
            move every tenth step: as many in all as with p = 0.001 at every step.
        period: periods between transfer points where `steps` is None.
        until: share of the schedule after which there are no transfers.

    Example:
        >>> ShuffleRule(p=0.001, steps=1, moments="follow").due(period=1, epochs=10)  # it acts inside periods
        False
    """

    name = "shuffle"
    alone: ClassVar[bool] = False
    p: float | int = 0.01
    p_last: float | int = 0.0
    moments: Moments = "keep"
    steps: int | None = 10
    period: int = 1
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        check_shares(self.name, p=self.p, p_last=self.p_last)
        if self.moments not in get_args(Moments):
            raise unknown("shuffle: moments", self.moments, get_args(Moments))

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        key = int(torch.randint(2**62, (), generator=generator))
        tasks = view.sound
        if int(tasks.sum()) < 2:
            return None, state
        shuffle = Shuffle(tasks, float(self.p), float(self.p_last), key)
        return Plan((shuffle,), moments=self.moments, buffers="keep"), state
