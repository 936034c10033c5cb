"""What every rule must do."""

import pytest
import torch

from kinfold import files
from kinfold.transfer import AMTO, RULES, Cross, Mix, Outcome, Plan, Restart, Teach


def predict(rows):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(3, len(rows), 2, generator=generator)


def copied(tree):
    return {name: value.clone() for name, value in tree.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tensors_of(plan):
    """Everything in a plan that is a tensor, in order."""
    if plan is None:
        return []
    found = [] if plan.trial is None else [plan.trial]
    for change in plan.changes:
        found += [value for value in vars(change).values() if isinstance(value, torch.Tensor)]
    return found


def cycle(rule, view, state, seed):
    plan, state = rule.plan(view, state, torch.Generator().manual_seed(seed))
    if plan is not None:
        scores = torch.zeros(3, 2, dtype=torch.float64)
        accepted = plan.touched(3) & torch.tensor([True, False, True])
        state = rule.learn(plan, Outcome(accepted, scores, scores), state)
    return plan, state


@pytest.fixture(params=sorted(RULES))
def rule(request):
    return RULES[request.param]()


@pytest.fixture
def view(make_view, rule):
    return make_view(predict=predict if "predictions" in rule.needs else None)


def test_the_name_is_that_of_the_table(rule):
    assert RULES[rule.name] is type(rule)
    assert rule == type(rule)()


def test_state_is_tensors_of_their_own_and_survives_a_checkpoint(rule, view, tmp_path):
    state = rule.start(3)
    for seed in range(3):
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        files.write_tensors(tmp_path / "state", state)
        read, _ = files.read_tensors(tmp_path / "state")
        assert same(read, state)
        _, state = cycle(rule, view, read, seed)
    assert state.keys() == rule.start(3).keys()


def test_plans_follow_from_the_generator_alone(rule, view):
    for seed in range(10):
        plan_a, state_a = cycle(rule, view, rule.start(3), seed)
        plan_b, state_b = cycle(rule, view, rule.start(3), seed)
        assert same(state_a, state_b)
        assert (plan_a is None) == (plan_b is None)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(plan_a), tensors_of(plan_b), strict=True))


def test_nothing_handed_in_is_changed(rule, view):
    state = rule.start(3)
    for seed in range(10):
        given, seen = copied(state), copied({k: v for k, v in vars(view).items() if isinstance(v, torch.Tensor)})
        plan, planned = rule.plan(view, state, torch.Generator().manual_seed(seed))
        assert same(state, given)
        assert same({k: v for k, v in vars(view).items() if isinstance(v, torch.Tensor)}, seen)
        if plan is not None:
            kept, held = copied(planned), [value.clone() for value in tensors_of(plan)]
            scores = torch.zeros(3, 2, dtype=torch.float64)
            state = rule.learn(plan, Outcome(plan.touched(3), scores, scores), planned)
            assert same(planned, kept)
            assert all(torch.equal(a, b) for a, b in zip(tensors_of(plan), held, strict=True))


def test_lineage_names_every_donor(rule, view):
    """By hand from what each change reads, not from the changes' own lineage."""
    for seed in range(20):
        plan, _ = cycle(rule, view, rule.start(3), seed)
        if plan is None:
            continue
        lineage = plan.lineage(torch.ones(3, dtype=torch.bool))
        for t in range(3):
            donors = set()
            for change in plan.changes:
                if isinstance(change, Mix):
                    donors |= {s for s in range(3) if float(change.weights[t, s]) != 0}
                elif isinstance(change, Cross) and int(change.source[t]) >= 0:
                    donors.add(int(change.source[t]))
                elif isinstance(change, Teach) and float(change.weight[t]) > 0:
                    donors |= {s for s in range(3) if bool(change.teachers[t, s])}
            assert donors - {t} == set(lineage[t].nonzero().flatten().tolist())
        # Only unsealed rows may be trained on or decide.
        for rows in (plan.trial, plan.taught_rows()):
            assert rows is None or not (rows & ~view.unsealed).any()


def test_some_rule_of_each_kind_does_something(make_view):
    """The tests above must not pass because nothing is ever planned."""
    plans = {name: cycle(RULES[name](), make_view(predict=predict), RULES[name]().start(3), 1)[0] for name in RULES}
    assert plans["none"] is None
    assert plans["teach"].taught_rows().any()
    tried = [cycle(AMTO(), make_view(), AMTO().start(3), seed)[0] for seed in range(20)]
    assert any(plan is not None and plan.touched(3).any() for plan in tried)
    assert Plan((Restart(torch.ones(3, dtype=torch.bool)),)).touched(3).all()
