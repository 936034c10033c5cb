"""No transfer: the tasks train alone. The control that every other rule is compared with."""

from dataclasses import dataclass
from typing import final

import torch

from kinfold.transfer.base import Plan, Rule, State, View


@final
@dataclass(frozen=True)
class Nothing(Rule):
    """The rule that proposes nothing.

    Example:
        >>> Nothing().due(period=1, epochs=10)
        False
    """

    name = "none"
    until = 0.0

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del view, generator
        return None, state
