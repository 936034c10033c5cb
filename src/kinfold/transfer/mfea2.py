"""MFEA-II: tasks mate at rates that are learned, pair by pair, from how well one's model explains another's rows.

Bali, Ong, Gupta, Tan, *Multifactorial Evolutionary Algorithm With Online Transfer Parameter Estimation: MFEA-II*
(IEEE TEVC 24(1), 2020). There g_t is a probabilistic model fitted to the subpopulation of task t, and the rates
maximise the likelihood of the subpopulations under mixtures of these models. Here a task has one model and no
population, so the reading is ours: g_t(row) = exp(−loss of model t on that row), and the sample of task t is its
validation rows.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinfold.errors import InputError
from kinfold.transfer.base import Need, Plan, Rule, State, View
from kinfold.transfer.mfea import Form, check_crossover, mated

_HALVINGS = 40  # of the interval in which a rate lies; more than a probability needs


@final
@dataclass(frozen=True)
class MFEA2(Rule):
    """MFEA (`kinfold.transfer.MFEA`) with a rate for each pair of tasks in place of one rmp.

    A child of t and s takes half of its numbers from s, so with rate rmp_ts the children of t are, by g,

        g_t^c = (1 − ½ rmp_ts) g_t + ½ rmp_ts g_s,

    and rmp_ts = rmp_st in [0, 1] is what maximises Σ log g_t^c over t's rows plus Σ log g_s^c over s's rows. The
    sum is concave in the rate; its greatest value is found by bisection. (The paper's ½ is (T − 1) / 2T, since
    its parents may meet within one task.) A pair of which one has a loss that is not finite has rate 0.

    Model s may have trained on rows that t validates on, which flatters it. So a pair's rows are those that by the
    ledger neither has seen, where these are at least `min_rows`, and all of the validation rows otherwise.

    Rows that both tasks hold out are in both sums, and there the sum of a row's two terms never falls as the rate
    rises: log g_t^c + log g_s^c = log of a product whose factors have the fixed sum g_t + g_s, and are nearest to
    each other at rate 1. A pair that is judged by shared rows alone therefore always has rate 1. With `directed`
    the two sums are maximised apart, and rmp_ts is what t's own rows say of s.

    Attributes:
        directed: whether rmp_ts and rmp_st are learned apart, instead of one rate for both as in the paper.
        form: `binary` or `uniform` crossover.
        eta: η of the binary crossover: the larger, the closer a child stays to a parent.
        min_rows: unseen validation rows that are enough to learn a rate from.
        period: periods between transfer points; the rates are learned anew at each.
        until: share of the schedule after which there are no transfers.

    Example:
        >>> sorted(MFEA2().start(tasks=2)), MFEA2.needs
        (['rmp'], frozenset({'losses'}))
    """

    name = "mfea-2"
    needs: ClassVar[frozenset[Need]] = frozenset({"losses"})
    directed: bool = True
    form: Form = "binary"
    eta: float | int = 2.0
    min_rows: int = 20
    period: int = 1
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        check_crossover(self.name, self.form, self.eta)
        if not isinstance(self.min_rows, int) or self.min_rows < 1:
            raise InputError(f"mfea-2: min_rows is {self.min_rows!r}, it counts rows; give 1 or more.")

    def start(self, tasks: int) -> State:
        return {"rmp": torch.zeros(tasks, tasks, dtype=torch.float64)}

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        assert view.losses is not None  # `needs` asks for them
        rows = view.validation.any(0).nonzero().flatten()
        losses = torch.full(view.validation.shape, torch.nan, dtype=torch.float64)
        losses[:, rows] = view.losses(rows).double()
        rmp, seen = self._learned(losses, view)
        plan = mated(view.validation, rmp, self.form, self.eta, generator)
        if plan is not None and seen:
            plan = dataclasses.replace(plan, note=f"rates of {seen} pairs were learned on rows that one had seen")
        return plan, state | {"rmp": rmp}

    def _learned(self, losses: Float[Tensor, "T N"], view: View) -> tuple[Float[Tensor, "T T"], int]:
        """The rates, and for how many pairs (t, s) too few rows of t's were unseen."""
        T = len(losses)
        rmp, seen = torch.zeros(T, T, dtype=torch.float64), 0
        for t in range(T):
            for s in range(t):
                gains = []
                for one, other in ((t, s), (s, t)):
                    rows, unseen = self._rows(view, one, other)
                    gains.append(losses[one, rows] - losses[other, rows])
                    seen += not unseen
                if self.directed:
                    rmp[t, s], rmp[s, t] = (likeliest_rate(gain) for gain in gains)
                else:
                    rmp[t, s] = rmp[s, t] = likeliest_rate(torch.cat(gains))
        return rmp, seen

    def _rows(self, view: View, t: int, s: int) -> tuple[Bool[Tensor, " N"], bool]:
        """Validation rows of t by which t and s are compared, and whether neither has seen them."""
        rows = view.validation[t] & ~view.exposed[t] & ~view.exposed[s]
        unseen = int(rows.sum()) >= self.min_rows
        return rows if unseen else view.validation[t], unseen


def likeliest_rate(gain: Float[Tensor, " m"]) -> float:
    """Returns the rate in [0, 1] that maximises Σ_i log[(1 − w) e^(−own_i) + w e^(−other_i)], w = rate / 2.

    The slope of the sum has the sign of Σ_i (ρ_i − w), with ρ_i the share of the other in the i-th term (the
    fixed point of expectation maximisation), and that crosses 0 at most once.

    Args:
        gain: [m] own_i − other_i, by how much the other's loss is lower; a rate of 0 where one is not finite.

    Example:
        >>> ratios = [0.5, 0.5], [2.0, 2.0], [3.0, 0.25]
        >>> [round(likeliest_rate(torch.tensor(ratio).log()), 3) for ratio in ratios]
        [0.0, 1.0, 0.833]
    """
    if not bool(gain.isfinite().all()):
        return 0.0
    gain = gain.double()
    low, high = torch.zeros((), dtype=torch.float64), torch.full((), 0.5, dtype=torch.float64)
    for _ in range(_HALVINGS):
        w = (low + high) / 2
        rising = (torch.sigmoid(gain + torch.logit(w)) - w).mean() > 1e-12  # equal models: rounding is no gain
        low, high = torch.where(rising, w, low), torch.where(rising, high, w)
    return 2.0 * float(high if bool(high == 0.5) else low)
