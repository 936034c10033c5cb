"""What every rule must do."""

import dataclasses

import pytest
import torch

from kinfold import files
from kinfold.transfer import (
    RULES,
    BinaryCross,
    Cross,
    Elastic,
    Median,
    Mix,
    Outcome,
    Plan,
    Restart,
    Shuffle,
    Teach,
    Tune,
)

OPTIONS = {
    name: torch.tensor(values, dtype=torch.float64)
    for name, values in {
        "lr": [0.1, 0.2, 0.4],
        "initial_lr": [0.4] * 3,
        "weight_decay": [0.0, 0.01, 0.02],
    }.items()
}


def predict(rows):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(3, len(rows), 2, generator=generator)


def losses(rows):
    return torch.rand(3, len(rows), generator=torch.Generator().manual_seed(8))


def view_for(rule, make_view):
    """Everything that the rule asks for, and no more: what others compute at extra cost is not there."""
    return make_view(
        predict=predict if "predictions" in rule.needs else None,
        losses=losses if "losses" in rule.needs else None,
        options=OPTIONS,
        step=None if rule.steps is None else rule.steps,
    )


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
    return view_for(rule, make_view)


def test_the_name_is_that_of_the_table(rule):
    assert RULES[rule.name]() == rule


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
        given, seen = (
            copied(state),
            copied({k: v for k, v in vars(view).items() if isinstance(v, torch.Tensor)}),
        )
        plan, planned = rule.plan(view, state, torch.Generator().manual_seed(seed))
        assert same(state, given)
        assert same({k: v for k, v in vars(view).items() if isinstance(v, torch.Tensor)}, seen)
        if plan is not None:
            kept, held = copied(planned), [value.clone() for value in tensors_of(plan)]
            scores = torch.zeros(3, 2, dtype=torch.float64)
            state = rule.learn(plan, Outcome(plan.touched(3), scores, scores), planned)
            assert same(planned, kept)
            assert all(torch.equal(a, b) for a, b in zip(tensors_of(plan), held, strict=True))


def read_by(change, t):
    """Whose knowledge a change puts into task t, by hand from what each kind reads."""
    if isinstance(change, Mix):
        return {s for s in range(3) if float(change.weights[t, s]) != 0}
    if isinstance(change, (Cross, BinaryCross)):
        return {int(change.source[t])} - {-1}
    if isinstance(change, Median):
        return {s for s in range(3) if bool(change.members[t, s])}
    if isinstance(change, Elastic):
        return {0, 1, 2} if float(change.rate[t]) > 0 else set()  # through the centre
    if isinstance(change, Shuffle):
        return {s for s in range(3) if bool(change.tasks[s])} if bool(change.tasks[t]) else set()
    if isinstance(change, Teach):
        return {s for s in range(3) if bool(change.teachers[t, s])} if float(change.weight[t].max()) > 0 else set()
    assert isinstance(change, (Tune, Restart))  # these move no knowledge
    return set()


YES, HALF = torch.tensor([True, False, True]), torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
CHANGES = [
    Mix(torch.tensor([[0, 1, 0], [0, 1, 0], [0.25, 0.5, 0.25]], dtype=torch.float64)),
    Cross(torch.tensor([2, -1, 0]), HALF, torch.arange(3)),
    BinaryCross(torch.tensor([2, -1, 0]), HALF, torch.arange(3)),
    Median(torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)),
    Elastic(HALF, HALF),
    Shuffle(YES, 0.5, 0.0, 1),
    Teach(torch.zeros(3, 4, 2), HALF, YES[:, None] & ~torch.eye(3, dtype=torch.bool), torch.zeros(3, 4).bool()),
    Tune({"lr": HALF}),
    Restart(YES),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_each_kind_of_change_names_its_donors(change):
    """Also the kinds, and the tasks left alone, that no rule's plan happens to have."""
    lineage, accepted = (
        Plan((change,)).lineage(torch.ones(3, dtype=torch.bool)),
        torch.tensor([True, True, False]),
    )
    for t in range(3):
        donors = set(lineage[t].nonzero().flatten().tolist())
        assert donors == read_by(change, t) - {t}
        assert (t == 1) == (not donors) or isinstance(change, (Tune, Restart))
    refused = Plan((change,)).lineage(accepted)[2]
    assert torch.equal(refused, lineage[2] & (not change.tried))
    assert {move.recipient for move in Plan((change,)).moves()} == set(lineage.any(1).nonzero().flatten().tolist())


def test_lineage_names_every_donor(rule, view):
    """By hand from what each change reads, not from the changes' own lineage."""
    for seed in range(20):
        plan, _ = cycle(rule, view, rule.start(3), seed)
        if plan is None:
            continue
        lineage = plan.lineage(torch.ones(3, dtype=torch.bool))
        for t in range(3):
            donors = set().union(*(read_by(change, t) for change in plan.changes))
            assert donors - {t} == set(lineage[t].nonzero().flatten().tolist())
        # Only unsealed rows may be trained on or decide.
        for rows in (plan.trial, plan.taught_rows()):
            assert rows is None or not (rows & ~view.unsealed).any()


def test_every_rule_does_something(rule, view):
    """The tests above must not pass because nothing is ever planned."""
    plans = [cycle(rule, view, rule.start(3), seed)[0] for seed in range(20)]
    if rule.until == 0:
        assert plans == [None] * 20
    elif rule.moves:
        assert any(plan is not None and plan.touched(3).any() for plan in plans)
    else:
        assert all(plan.taught_rows().any() for plan in plans)


def test_a_diverged_task_is_passed_on_by_no_plan_that_is_not_tried(rule, view):
    """Task 1's NaN would go into whoever learned from it."""
    nan = {
        name: torch.where(torch.arange(3) == 1, torch.nan, getattr(view, name))
        for name in ("metric", "loss", "train_loss")
    }

    def spoilt(outputs):
        return (
            None
            if outputs is None
            else lambda rows: torch.cat([outputs(rows)[:1], outputs(rows)[1:2] * torch.nan, outputs(rows)[2:]])
        )

    nan["sound"] = torch.arange(3) != 1
    view = dataclasses.replace(view, **nan, predict=spoilt(view.predict), losses=spoilt(view.losses))
    for seed in range(20):
        plan, _ = cycle(rule, view, rule.start(3), seed)
        if plan is not None and plan.trial is None:
            assert not plan.lineage(torch.ones(3, dtype=torch.bool))[[0, 2], 1].any() or any(
                isinstance(change, Elastic)
                for change in plan.changes  # whose centre remembers better days
            )
