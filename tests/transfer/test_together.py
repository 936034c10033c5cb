import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch

from kinfold import files
from kinfold.errors import InputError
from kinfold.transfer import (
    AMTO,
    PAPA,
    ElasticRule,
    Lesson,
    Mix,
    Outcome,
    PAPAAll,
    Plan,
    Rule,
    Teach,
    TeachRule,
    Together,
)

EAGER = AMTO(p_low=1.0, p_high=1.0)


@final
@dataclass(frozen=True)
class Noted(Rule):
    """Says in its note what it drew, changes nothing, and counts what it planned and heard of."""

    name = "noted"
    moves: ClassVar[bool] = False
    steps: int | None = None
    period: int = 1
    stages: tuple[float | int, ...] = (1.0,)

    def start(self, tasks):
        return {"planned": torch.zeros(()), "heard": torch.zeros(())}

    def plan(self, view, state, generator):
        note = f"drew {int(torch.randint(1000, (), generator=generator))}"
        return Plan((), note=note), state | {"planned": state["planned"] + 1}

    def learn(self, plan, outcome, state):
        return state | {"heard": state["heard"] + len(plan.changes)}

    def graduate(self, view, state, last):
        return Lesson(note=f"{int(state['planned'])} {last}")


@final
@dataclass(frozen=True)
class Graduates(Rule):
    """Plans nothing, and has a student."""

    name = "graduates"
    moves: ClassVar[bool] = False
    stages: tuple[float | int, ...] = (0.5,)

    def plan(self, view, state, generator):
        return None, state


def predict(rows):
    return torch.randn(3, len(rows), 2, generator=torch.Generator().manual_seed(7))


def cycle(rule, view, state, seed=0):
    plan, state = rule.plan(view, state, torch.Generator().manual_seed(seed))
    if plan is not None:
        scores = torch.zeros(3, 2, dtype=torch.float64)
        state = rule.learn(plan, Outcome(plan.touched(3), scores, scores), state)
    return plan, state


def kinds(plan):
    return [] if plan is None else [type(change) for change in plan.changes]


def test_what_the_parts_say_together():
    rule = Together((TeachRule(until=0.7), PAPA(steps=5, until=0.4)))
    assert (rule.name, rule.steps, rule.until, rule.moves, rule.student) == ("teach+papa", 5, 0.7, True, False)
    assert rule.stages == (1.0,)
    assert rule.start(3)["planned"].tolist() == [False, False]
    assert rule.needs == {"predictions"}
    assert [period for period in range(1, 11) if rule.due(period, 10)] == [1, 2, 3, 4, 5, 6, 7]
    assert [period for period in range(1, 11) if rule.running(period, 10)] == [1, 2, 3, 4, 5, 6, 7]
    ends = Together((EAGER, TeachRule(period=3)))
    assert ends.steps is None
    assert [period for period in range(1, 11) if ends.due(period, 10)] == list(range(1, 10))
    assert dataclasses.replace(rule, rules=ends.rules) == ends
    assert ends.name == "amto+teach"
    assert not Together((TeachRule(), Noted())).moves


def test_tasks_may_be_apart_where_every_part_allows_it():
    assert Together((TeachRule(), PAPA())).alone
    for parts in ((TeachRule(), ElasticRule()), (ElasticRule(), TeachRule())):
        assert not Together(parts).alone


def test_the_state_of_some_tasks_is_merged_part_by_part():
    rule = Together((EAGER, Noted()))
    before = rule.start(3)
    after = {name: value + 1 for name, value in before.items() if name != "planned"}
    after["planned"] = torch.tensor([True, False])
    left = rule.merged(before, after, torch.tensor([False, True, False]))
    assert left.keys() == before.keys()
    assert left["0/try"].tolist() == [1.0, 2.0, 1.0]
    assert left["0/reward"].tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]
    assert int(left["1/heard"]) == 1  # nobody's in particular
    assert left["planned"].tolist() == [True, False]


def test_the_log_has_what_every_part_says(make_view):
    rule = Together((Noted(), dataclasses.replace(EAGER, rows="shared")))
    note = cycle(rule, make_view(), rule.start(3))[0].note
    drew, fell_back = note.split("; ")
    assert drew.startswith("drew ")
    assert fell_back == "acceptance rows fell back to val for 3 tasks"


def test_each_part_acts_at_its_own_points(make_view):
    rule = Together((TeachRule(period=2), PAPA(until=0.5)))
    state = rule.start(3)
    points = {(1, None): [], (1, 10): [Mix], (2, None): [Teach], (5, 20): [Mix], (6, 20): [], (6, None): [Teach]}
    for (period, step), wanted in points.items():
        view = make_view(period=period, step=step, predict=predict)
        plan, state = cycle(rule, view, state)
        assert kinds(plan) == wanted
        assert (plan is None) == (not wanted)


def test_plans_made_at_one_point_are_one(make_view):
    view = make_view(predict=predict)
    apart = [EAGER.plan(view, EAGER.start(3), torch.Generator())[0], TeachRule().plan(view, {}, torch.Generator())[0]]
    for parts in ((EAGER, TeachRule()), (TeachRule(), EAGER)):
        plan, _ = cycle(Together(parts), view, Together(parts).start(3))
        assert sorted(map(str, kinds(plan))) == sorted(map(str, kinds(apart[0]) + kinds(apart[1])))
        assert torch.equal(plan.trial, view.validation)  # that of the part that proposes parameters
        assert torch.equal(plan.taught_rows(), apart[1].taught_rows())
    plan, _ = cycle(Together((TeachRule(), PAPAAll(moments="reset", period=1))), view, {"planned": torch.zeros(2)})
    assert (plan.trial, plan.moments, plan.buffers) == (None, "reset", "follow")
    plan, _ = cycle(Together((Noted(), PAPA())), make_view(step=3), Together((Noted(), PAPA())).start(3))
    assert (plan.moments, plan.buffers, plan.note) == ("keep", "keep", None)


def test_by_hand(make_view):
    """teach+papa inside a period: three tasks, two parameters, halfway to the mean."""
    rule = Together((TeachRule(), PAPA(alpha=0.5)))
    plan, _ = cycle(rule, make_view(step=10), rule.start(3))
    theta = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, 15.0], [2.5, 20.0], [4.5, 25.0]], dtype=torch.float64)
    torch.testing.assert_close(plan.changes[0].weights @ theta, expected)
    assert plan.lineage(torch.ones(3, dtype=torch.bool)).sum() == 6


def test_only_those_that_planned_hear_of_it(make_view):
    rule = Together((Noted(period=2), EAGER))
    state = rule.start(3)
    assert set(state) == {"0/planned", "0/heard", "planned"} | {f"1/{name}" for name in EAGER.start(3)}
    _, state = cycle(rule, make_view(period=1), state)
    assert (int(state["0/planned"]), int(state["0/heard"])) == (0, 0)
    assert state["planned"].tolist() == [False, True]
    assert state["1/reward_other"].any()
    kept = {name: value.clone() for name, value in state.items() if name.startswith("1/")}
    quiet = state | {"1/try": torch.zeros(3, dtype=torch.float64)}  # now the other plans nothing
    _, state = cycle(rule, make_view(period=2, improved=torch.zeros(3, dtype=torch.bool)), quiet)
    assert state["planned"].tolist() == [True, False]
    assert int(state["0/planned"]) == 1
    assert torch.equal(state["1/reward"], kept["1/reward"])
    plan, state = cycle(rule, make_view(period=4), state | {"1/try": torch.ones(3, dtype=torch.float64)})
    assert int(state["0/heard"]) == len(plan.changes) == 2  # it is told of the whole plan


def test_a_part_more_changes_no_draws(make_view):
    view, plans = make_view(predict=predict), []
    for parts in ((TeachRule(), EAGER), (EAGER, TeachRule()), (Noted(), TeachRule(), EAGER), (EAGER, Noted())):
        plan, _ = cycle(Together(parts), view, Together(parts).start(3), seed=5)
        plans.append(next(change for change in plan.changes if isinstance(change, Mix)))
    assert all(torch.equal(plan.weights, plans[0].weights) for plan in plans)
    rule = Together((EAGER, Noted()))
    assert len({cycle(rule, view, rule.start(3), seed)[0].note for seed in range(5)}) > 1


def test_state_survives_a_checkpoint(make_view, tmp_path):
    rule = Together((EAGER, TeachRule(), PAPA()))
    state = rule.start(3)
    for period in (1, 2):
        files.write_tensors(tmp_path / "state", state)
        read, _ = files.read_tensors(tmp_path / "state")
        _, state = cycle(rule, make_view(period=period, predict=predict), read)
    assert state.keys() == rule.start(3).keys()


def test_one_part_may_have_a_student(make_view):
    rule = Together((TeachRule(), Noted(stages=(0.25, 0.5)), PAPA()))
    assert rule.stages == (0.25, 0.5)
    assert rule.student
    _, state = cycle(rule, make_view(predict=predict), rule.start(3))
    assert rule.graduate(make_view(), state, last=False).note == "1 False"
    assert Together((TeachRule(), Noted())).graduate(make_view(), {}, last=True) is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "rules has 0; give two or more"),
        ((PAPA(),), "rules has 1"),
        ((TeachRule(), PAPA(), AMTO(), PAPAAll()), "'amto' and 'papa-all' both propose parameters at the ends"),
        ((PAPA(), ElasticRule()), "'papa' and 'elastic' both propose parameters inside periods"),
        ((PAPA(steps=5), ElasticRule()), "'papa' and 'elastic' act every 5 and every 10 steps; give the same"),
        ((PAPA(), TeachRule(), PAPA(alpha=0.5)), "'papa' and 'papa' are of one kind"),
        ((TeachRule(), TeachRule(teachers="out-of-fold")), "'teach' and 'teach-out-of-fold' are of one kind"),
        ((AMTO(), Together((TeachRule(), PAPA()))), "'teach\\+papa' is itself several rules"),
        ((Noted(stages=(0.8,)), TeachRule(), Graduates()), "'noted' and 'graduates' both end with a student"),
    ],
)
def test_what_cannot_act_together_is_said_in_one_line(parts, message):
    with pytest.raises(InputError, match=message) as error:
        Together(parts)
    assert str(error.value).startswith("together: ")
    assert "\n" not in str(error.value)
