"""AMTO, adaptive multi-task optimization: tasks learn how related they are and accept what generalizes better.

The framework is that of Zhang, Qin, Pan, Sellis (arXiv:2007.01016), which names the algorithm and its aims but
publishes neither the form of a transfer nor the adaptation; those are ours, with the adaptation formulas of
AEMTO (Xu, Qin, Xia, *Evolutionary Multi-Task Optimization with Adaptive Knowledge Transfer*, IEEE TEVC 2022).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError, unknown
from kinfold.transfer.base import Outcome, Plan, Rule, State, View, check_shares
from kinfold.transfer.changes import Cross, Mix, Unit

Form: TypeAlias = Literal["copy", "blend", "crossover"]
AcceptanceRows: TypeAlias = Literal["val", "shared", "unexposed"]


@final
@dataclass(frozen=True)
class AMTO(Rule):
    """At a transfer point task t tries, with probability p_t, something of a source s drawn with probability q_ts.

    The candidate is a copy of θ_s, a blend λθ_t + (1 − λ)θ_s with λ ~ U(0, 1), or a crossover that takes each
    unit from θ_s with rate CR ~ U(0, 1). It is accepted only if strictly better than θ_t on the acceptance rows.
    Then, with x = [accepted] (for r_self: [own training improved the best score]):

        r ← α r + (1 − α) x                                                    for r_ts, r_other, r_self
        q_ts = p_min + (1 − (T − 1) p_min) r_ts / Σ_j r_tj,  p_min = 0.3 / (T − 1), uniform while the sum is 0
        p_t = p_low + (p_high − p_low) r_other / (r_other + r_self + ε)

    and each task's choice among the forms adapts like q.

    Attributes:
        forms: what may be tried.
        unit: what a crossover takes whole: `layer`, or every number for itself (`parameter`).
        rows: acceptance rows: `val` (the recipient's validation rows), `shared` (rows in both tasks' validation
            rows), or `unexposed` (validation rows that neither side has seen, by the ledger). The last two fall
            back to `val` where fewer than `min_rows` are left.
        min_rows: see `rows`.
        alpha: α, the memory of the averages.
        p_low: least probability of a try, so that a task can find out that others became useful.
        p_high: greatest probability of a try; p_t starts half-way between.
        floor: share of q that is spread evenly.
        period: periods between transfer points.
        until: share of the schedule after which there are no transfers.

    Example:
        >>> rule = AMTO(forms=("copy",), period=2)
        >>> rule.start(tasks=3)["try"]
        tensor([0.3750, 0.3750, 0.3750], dtype=torch.float64)
    """

    name = "amto"
    forms: tuple[Form, ...] = ("copy", "blend", "crossover")
    unit: Unit = "layer"
    rows: AcceptanceRows = "val"
    min_rows: int = 20
    alpha: float | int = 0.3
    p_low: float | int = 0.05
    p_high: float | int = 0.7
    floor: float | int = 0.3
    period: int = 1
    until: float | int = 0.9

    def __post_init__(self) -> None:
        self.check_cadence()
        if not self.forms:
            raise InputError(f"amto: forms is {self.forms!r}; give some of {', '.join(get_args(Form))}.")
        for argument, values, known in (
            ("forms", self.forms, Form),
            ("unit", [self.unit], Unit),
            ("rows", [self.rows], AcceptanceRows),
        ):
            for value in values:
                if value not in get_args(known):
                    raise unknown(f"amto: {argument}", value, get_args(known))
        check_shares(self.name, alpha=self.alpha, p_low=self.p_low, p_high=self.p_high, floor=self.floor)
        if self.p_low > self.p_high:
            raise InputError(f"amto: p_low is {self.p_low!r}, above p_high, {self.p_high!r}; give one no higher.")
        if not isinstance(self.min_rows, int) or self.min_rows < 1:
            raise InputError(f"amto: min_rows is {self.min_rows!r}, it counts rows; give 1 or more.")

    def start(self, tasks: int) -> State:
        return {
            "reward": torch.zeros(tasks, tasks, dtype=torch.float64),
            "reward_form": torch.zeros(tasks, len(self.forms), dtype=torch.float64),
            "reward_other": torch.zeros(tasks, dtype=torch.float64),
            "reward_self": torch.zeros(tasks, dtype=torch.float64),
            "try": torch.full((tasks,), (self.p_low + self.p_high) / 2, dtype=torch.float64),
            "source": torch.full((tasks,), -1),
            "form": torch.full((tasks,), -1),
            "fallbacks": torch.zeros(tasks, dtype=torch.int64),
        }

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        T = len(view.metric)
        reward_self = self._average(state["reward_self"], view.improved)
        # Every number is drawn whether it is used or not: the stream then does not hang on what was accepted.
        chance, fraction = torch.rand(2, T, dtype=torch.float64, generator=generator)
        drawn = torch.multinomial(self.source_chances(state["reward"]), 1, generator=generator).flatten()
        form = torch.multinomial(_chances(state["reward_form"], self.floor), 1, generator=generator).flatten()
        keys = torch.randint(2**62, (T,), generator=generator)

        tries = chance < state["try"]
        source = torch.where(tries, drawn, -1)
        form = torch.where(tries, form, -1)
        trial, short = self._trial(view, source)
        state = state | {"reward_self": reward_self, "source": source, "form": form}
        state["fallbacks"] = state["fallbacks"] + short
        if not bool(tries.any()):
            return None, state | {"try": self._try_chances(state["reward_other"], reward_self)}

        weights = torch.eye(T, dtype=torch.float64)
        crossed = torch.full((T,), -1)
        for t in tries.nonzero().flatten().tolist():
            name, s = self.forms[int(form[t])], int(source[t])
            if name == "crossover":
                crossed[t] = s
            else:
                kept = 0.0 if name == "copy" else float(fraction[t])
                weights[t, t], weights[t, s] = kept, 1.0 - kept
        changes = (Mix(weights), Cross(crossed, fraction, keys, self.unit))
        fallbacks = int(short.sum())
        note = f"acceptance rows fell back to val for {fallbacks} tasks" if fallbacks else None
        return Plan(changes, trial=trial, note=note), state

    def learn(self, plan: Plan, outcome: Outcome, state: State) -> State:
        del plan
        tried = state["source"] >= 0
        source, form = state["source"].clamp_min(0), state["form"].clamp_min(0)
        reward, reward_form = state["reward"].clone(), state["reward_form"].clone()
        for table, column in ((reward, source), (reward_form, form)):
            old = table.gather(1, column[:, None]).flatten()
            new = torch.where(tried, self._average(old, outcome.accepted), old)
            table.scatter_(1, column[:, None], new[:, None])
        other = torch.where(tried, self._average(state["reward_other"], outcome.accepted), state["reward_other"])
        return state | {
            "reward": reward,
            "reward_form": reward_form,
            "reward_other": other,
            "try": self._try_chances(other, state["reward_self"]),
        }

    def source_chances(self, reward: Float[Tensor, "T T"]) -> Float[Tensor, "T T"]:
        """Returns q [T, T]: with what probability task t draws source s; zero on the diagonal."""
        T = len(reward)
        off_diagonal = reward.masked_select(~torch.eye(T, dtype=torch.bool)).reshape(T, T - 1)
        q = torch.zeros(T, T, dtype=torch.float64)
        q[~torch.eye(T, dtype=torch.bool)] = _chances(off_diagonal, self.floor).flatten()
        return q

    def _try_chances(self, other: Float[Tensor, " T"], own: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Returns p [T]: with what probability each task tries a transfer next."""
        # Before anything was accepted or improved there is nothing to weigh, and p stays where it started.
        known = other + own
        return self.p_low + (self.p_high - self.p_low) * torch.where(known > 0, other / (known + 1e-12), 0.5)

    def _average(self, old: Float[Tensor, " T"], event: Bool[Tensor, " T"]) -> Float[Tensor, " T"]:
        return self.alpha * old + (1.0 - self.alpha) * event.to(old.dtype)

    def _trial(self, view: View, source: Int64[Tensor, " T"]) -> tuple[Bool[Tensor, "T N"], Bool[Tensor, " T"]]:
        """The acceptance rows of each task, and whether they fell back to `val`."""
        if self.rows == "val":
            return view.validation, torch.zeros_like(source, dtype=torch.bool)
        donor = source.clamp_min(0)
        if self.rows == "shared":
            rows = view.validation & view.validation[donor]
        else:
            rows = view.validation & ~view.exposed & ~view.exposed[donor]
        short = (rows.sum(1) < self.min_rows) & (source >= 0)
        return torch.where(short[:, None], view.validation, rows), short


def _chances(reward: Float[Tensor, "T K"], floor: float | int) -> Float[Tensor, "T K"]:
    """Returns row-wise probabilities: `floor` spread evenly, the rest in proportion to the reward."""
    K = reward.shape[1]
    # Relative to the largest: after hundreds of rejections a reward is still above 0, and too small to be divided by.
    largest = reward.amax(1, keepdim=True)
    relative = torch.where(largest > 0, reward / largest, 1.0)
    share = relative / relative.sum(1, keepdim=True)
    return floor / K + (1.0 - floor) * share
