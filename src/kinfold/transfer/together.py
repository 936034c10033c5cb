"""Several rules as one: soft targets at the periods' ends and a pull inside them, say.

Parts that act at the same transfer point see the same view, and what they change goes into one plan.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.transfer.base import Lesson, Outcome, Plan, Rule, State, View


@final
@dataclass(frozen=True)
class Together(Rule):
    """Two or more rules, each at its own transfer points and with its own state.

    Of the parts that act inside periods, and of those that act at their ends, one each may propose parameters;
    its trial, and what it does with optimizer state and buffers, are the plan's. One may keep a share of the budget
    for a student. Every part draws from a generator of its own, so that a part more or less changes no other's
    draws. Written `teach+papa`, or as a list.

    Attributes:
        rules: the parts, of different kinds.

    Raises:
        InputError: fewer than two parts, a part that is itself several, two of a kind, two that propose parameters
            at the same points, two that act inside periods at different steps, or two with a student.

    Example:
        >>> from kinfold.transfer import AMTO, PAPA, TeachRule
        >>> rule = Together((TeachRule(), PAPA(steps=5)))
        >>> rule.name, rule.steps, sorted(rule.needs)
        ('teach+papa', 5, ['predictions'])
        >>> Together((AMTO(), TeachRule())).steps is None
        True
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        _check_parts(self.rules)
        stepping = [rule.steps for rule in self.rules if rule.steps is not None]
        said = {
            "name": "+".join(rule.name for rule in self.rules),
            "steps": stepping[0] if stepping else None,
            "until": max(rule.until for rule in self.rules),
            "needs": frozenset(need for rule in self.rules for need in rule.needs),
            "alone": all(rule.alone for rule in self.rules),
            "moves": any(rule.moves for rule in self.rules),
            "stages": next((rule.stages for rule in self.rules if rule.student), (1.0,)),
        }
        for name, value in said.items():  # what a rule says of its class, this one says of its parts
            object.__setattr__(self, name, value)

    def start(self, tasks: int) -> State:
        states = [rule.start(tasks) for rule in self.rules]
        return _joined(states) | {"planned": torch.zeros(len(self.rules), dtype=torch.bool)}

    def running(self, period: int, epochs: int) -> bool:
        return any(rule.running(period, epochs) for rule in self.rules)

    def due(self, period: int, epochs: int) -> bool:
        return any(rule.due(period, epochs) for rule in self.rules)

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        seed = int(torch.randint(2**62, (), generator=generator))
        states = self._parts_of(state)
        plans: list[Plan | None] = [None] * len(self.rules)
        for i, rule in enumerate(self.rules):
            if _acts(rule, view):
                draws = random.generator(seed, rule.name)
                plans[i], states[i] = rule.plan(view, states[i], draws)
        planned = torch.tensor([plan is not None for plan in plans])
        return self._merged(plans), _joined(states) | {"planned": planned}

    def learn(self, plan: Plan, outcome: Outcome, state: State) -> State:
        states = self._parts_of(state)
        for i in state["planned"].nonzero().flatten().tolist():
            states[i] = self.rules[i].learn(plan, outcome, states[i])
        return _joined(states) | {"planned": state["planned"]}

    def merged(self, before: State, after: State, tasks: Bool[Tensor, " T"]) -> State:
        olds, news = self._parts_of(before), self._parts_of(after)
        states = [rule.merged(old, new, tasks) for rule, old, new in zip(self.rules, olds, news, strict=True)]
        return _joined(states) | {"planned": after["planned"]}

    def graduate(self, view: View, state: State, last: bool) -> Lesson | None:
        for rule, own in zip(self.rules, self._parts_of(state), strict=True):
            if rule.student:
                return rule.graduate(view, own, last)
        return None

    def _parts_of(self, state: State) -> list[State]:
        """Each part's own state."""
        states: list[State] = [{} for _ in self.rules]
        for key, value in state.items():
            part, _, name = key.partition("/")
            if name:
                states[int(part)][name] = value
        return states

    def _merged(self, plans: list[Plan | None]) -> Plan | None:
        """The parts' plans as one."""
        made = [(rule, plan) for rule, plan in zip(self.rules, plans, strict=True) if plan is not None]
        if not made:
            return None
        leading = next((plan for rule, plan in made if rule.moves), made[0][1])
        notes = [plan.note for _, plan in made if plan.note is not None]
        return Plan(
            tuple(change for _, plan in made for change in plan.changes),
            trial=leading.trial,
            moments=leading.moments,
            buffers=leading.buffers,
            note="; ".join(notes) or None,
        )


def _acts(rule: Rule, view: View) -> bool:
    """Whether a part has a transfer point where this view was taken."""
    if view.step is None:
        return rule.due(view.period, view.epochs)
    return rule.steps is not None and rule.running(view.period, view.epochs)


def _joined(states: list[State]) -> State:
    return {f"{i}/{name}": value for i, state in enumerate(states) for name, value in state.items()}


def _check_parts(rules: tuple[Rule, ...]) -> None:
    if len(rules) < 2:
        raise InputError(f"together: rules has {len(rules)}; give two or more.")
    for i, rule in enumerate(rules):
        if isinstance(rule, Together):
            raise InputError(f"together: {rule.name!r} is itself several rules; give its parts.")
        for other in rules[:i]:
            names = f"{other.name!r} and {rule.name!r}"
            if type(rule) is type(other):
                raise InputError(f"together: {names} are of one kind; give one of them.")
            if rule.student and other.student:
                raise InputError(f"together: {names} both end with a student; give one of them.")
            if (rule.steps is None) != (other.steps is None):
                continue
            if rule.steps != other.steps:
                raise InputError(
                    f"together: {names} act every {other.steps} and every {rule.steps} steps; give the same steps."
                )
            if rule.moves and other.moves:
                where = "at the ends of periods" if rule.steps is None else "inside periods"
                raise InputError(f"together: {names} both propose parameters {where}; give one of them.")
