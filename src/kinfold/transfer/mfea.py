"""MFEA: tasks mate at random, and a child replaces its parent if it is better.

Gupta, Ong, Feng, *Multifactorial Evolution: Toward Evolutionary Multitasking* (IEEE TEVC 20(3), 2016). There every
task has a subpopulation, and mutates and mates within it as well; here a task has one model, and its own training
stands where those do.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinfold.errors import InputError, unknown
from kinfold.transfer.base import Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import BinaryCross, Cross

Form: TypeAlias = Literal["binary", "uniform"]


@final
@dataclass(frozen=True)
class MFEA(Rule):
    """Task t draws a mate s ≠ t uniformly, and with probability rmp the two have a child (*assortative mating*).

    The child is θ′ = ½ [(1 + β) θ_t + (1 − β) θ_s] with β drawn for every number by simulated binary crossover
    (`kinfold.transfer.BinaryCross`), or takes every number from either parent with probability ½ (`uniform`). It
    replaces θ_t only if strictly better on t's validation rows (*elitist selection*). Optimizer state stays.

    Attributes:
        rmp: random mating probability; the paper has 0.3.
        form: `binary` or `uniform` crossover.
        eta: η of the binary crossover: the larger, the closer a child stays to a parent. 2 is usual in MFEA.
        period: periods between transfer points, the generations of the paper.
        until: share of the schedule after which there are no transfers.

    Example:
        >>> MFEA(rmp=0.5, form="uniform").due(period=1, epochs=10)
        True
    """

    name = "mfea"
    rmp: float | int = 0.3
    form: Form = "binary"
    eta: float | int = 2.0
    period: int = 1
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        check_shares(self.name, rmp=self.rmp)
        check_crossover(self.name, self.form, self.eta)

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        T = len(view.metric)
        rates = torch.full((T, T), float(self.rmp), dtype=torch.float64)
        return mated(view.validation, rates, self.form, self.eta, generator), state


def mated(
    validation: Bool[Tensor, "T N"],
    rates: Float[Tensor, "T T"],
    form: Form,
    eta: float | int,
    generator: torch.Generator,
) -> Plan | None:
    """Returns the plan of one generation, or None where no two tasks mate.

    Args:
        validation: [T, N] the rows that decide whether a task's child replaces it; T ≥ 2.
        rates: [T, T] with what probability task t mates with s, once s is drawn; the diagonal has no effect.
        form: `binary` or `uniform` crossover.
        eta: η of the binary crossover.
        generator: of the draws.

    Example:
        >>> plan = mated(torch.ones(2, 5).bool(), torch.ones(2, 2), "uniform", 2, torch.Generator())
        >>> [(move.recipient, move.donors) for move in plan.moves()]
        [(0, (1,)), (1, (0,))]
    """
    T = len(rates)
    # Every number is drawn whether it is used or not: the stream then does not hang on the rates.
    chance = torch.rand(T, dtype=torch.float64, generator=generator)
    mate = (torch.arange(T) + 1 + torch.randint(T - 1, (T,), generator=generator)) % T
    keys = torch.randint(2**62, (T,), generator=generator)
    mates = chance < rates[torch.arange(T), mate]
    if not bool(mates.any()):
        return None
    source = torch.where(mates, mate, -1)
    change: BinaryCross | Cross
    if form == "binary":
        change = BinaryCross(source, torch.full((T,), float(eta), dtype=torch.float64), keys)
    else:
        change = Cross(source, torch.full((T,), 0.5, dtype=torch.float64), keys, "parameter")
    # A child's numbers are new; and crossed like them, Adam's second moments could come out negative.
    return Plan((change,), trial=validation, moments="keep")


def check_crossover(name: str, form: str, eta: float | int) -> None:
    """Raises InputError naming the rule where its crossover cannot be carried out.

    Example:
        >>> check_crossover("mfea", "uniform", -1)
        Traceback (most recent call last):
        kinfold.errors.InputError: mfea: eta is -1; give a number of 0 or more.
    """
    if form not in get_args(Form):
        raise unknown(f"{name}: form", form, get_args(Form))
    if not 0.0 <= eta < math.inf:
        raise InputError(f"{name}: eta is {eta!r}; give a number of 0 or more.")
