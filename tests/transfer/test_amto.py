import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kinfold.engines.moves import moved
from kinfold.errors import InputError
from kinfold.transfer import AMTO, Outcome

THETA = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64)  # three tasks, two parameters


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def outcome(accepted):
    nothing = torch.full((3, 2), torch.nan, dtype=torch.float64)
    return Outcome(torch.tensor(accepted), nothing, nothing)


def forced(rule, tries, sources):
    """A state in which the draws are certain: who tries, and (with floor=0) whom."""
    state = rule.start(3)
    state["try"] = doubles(tries)
    state["reward"] = torch.nn.functional.one_hot(torch.tensor(sources), 3).double()
    return state


def drawn(seed):
    """The numbers that a plan draws first from a generator of that seed: (chance, fraction)."""
    return torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def candidate(plan, theta=THETA):
    result = theta
    for change in plan.changes:
        result = moved(change, "weight", theta, result, {"weight": 0})
    return result


def test_the_state_before_the_first_transfer():
    state = AMTO().start(3)
    torch.testing.assert_close(state["try"], doubles([0.375, 0.375, 0.375]))
    for name in ("reward", "reward_form", "reward_other", "reward_self"):
        assert not state[name].any()
    assert state["source"].tolist() == state["form"].tolist() == [-1, -1, -1]  # nobody has tried anything
    assert state["fallbacks"].tolist() == [0, 0, 0]
    assert AMTO(forms=("copy", "blend")).start(4)["reward_form"].shape == (4, 2)
    assert AMTO(p_low=0.5, p_high=1.0).start(2)["try"].tolist() == [0.75, 0.75]
    memory = [value.data_ptr() for value in state.values()]
    assert len(set(memory)) == len(memory)  # a checkpoint keeps each on its own
    torch.testing.assert_close(
        AMTO().source_chances(state["reward"]), doubles([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    )


def test_one_cycle_by_hand(make_view):
    """Tasks 0 and 1 try (from 2 and 0), task 2 does not; task 0's candidate is accepted."""
    rule = AMTO(forms=("copy",), floor=0.0)
    state = forced(rule, tries=[1.0, 1.0, 0.0], sources=[2, 0, 1])
    view = make_view(improved=torch.tensor([True, False, True]))
    plan, planned = rule.plan(view, state, torch.Generator().manual_seed(0))
    assert planned["source"].tolist() == [2, 0, -1]
    assert planned["form"].tolist() == [0, 0, -1]
    torch.testing.assert_close(candidate(plan), THETA[[2, 0, 2]])
    assert torch.equal(plan.trial, view.validation)
    assert plan.touched(3).tolist() == [True, True, False]

    learned = rule.learn(plan, outcome([True, False, False]), planned)
    # r_self = 0.3 · 0 + 0.7 · [improved]; r_ts = 0.3 · 1 + 0.7 · [accepted] where tried.
    torch.testing.assert_close(learned["reward_self"], doubles([0.7, 0.0, 0.7]))
    torch.testing.assert_close(learned["reward"], doubles([[0, 0, 1.0], [0.3, 0, 0], [0, 1.0, 0]]))
    torch.testing.assert_close(learned["reward_form"], doubles([[0.7], [0.0], [0.0]]))
    torch.testing.assert_close(learned["reward_other"], doubles([0.7, 0.0, 0.0]))
    # p = 0.05 + 0.65 · r_other / (r_other + r_self): a half; nothing known, so as at the start; nothing from others.
    torch.testing.assert_close(learned["try"], doubles([0.375, 0.375, 0.05]))

    # A second cycle, in which nobody improved and task 1 alone tries, successfully.
    learned["try"] = doubles([0.0, 1.0, 0.0])
    view = make_view(period=2, improved=torch.tensor([False, False, False]))
    plan, planned = rule.plan(view, learned, torch.Generator().manual_seed(1))
    learned = rule.learn(plan, outcome([False, True, False]), planned)
    torch.testing.assert_close(learned["reward_self"], doubles([0.21, 0.0, 0.21]))
    torch.testing.assert_close(learned["reward"][1], doubles([0.3 * 0.3 + 0.7, 0, 0]))
    torch.testing.assert_close(learned["reward_other"], doubles([0.7, 0.7, 0.0]))
    torch.testing.assert_close(learned["try"], doubles([0.05 + 0.65 * 0.7 / 0.91, 0.7, 0.05]))


def test_source_chances_by_hand():
    # p_min = 0.3 / 2 = 0.15, and 0.7 is shared out as the rewards are.
    q = AMTO().source_chances(doubles([[9.0, 0.1, 0.3], [0, 9.0, 0], [0.2, 0.2, 9.0]]))
    torch.testing.assert_close(q, doubles([[0, 0.325, 0.675], [0.5, 0, 0.5], [0.5, 0.5, 0]]))


def test_the_floor_of_the_forms_is_shared_by_all_that_may_be_tried(make_view):
    """Of 300 tries with a floor of 0.6, each of three forms has a fifth, and the one that was accepted the rest."""
    rule, counts = AMTO(floor=0.6, p_low=1.0, p_high=1.0), torch.zeros(3)
    state = rule.start(3) | {"reward_form": doubles([[0, 0.2, 0]] * 3)}
    for seed in range(100):
        _, planned = rule.plan(make_view(), state, torch.Generator().manual_seed(seed))
        counts += torch.bincount(planned["form"], minlength=3)
    expected = torch.tensor([0.2, 0.6, 0.2])
    assert ((counts / 300 - expected).abs() < 5 * (expected * (1 - expected) / 300).sqrt()).all()


@settings(deadline=None, max_examples=30)
@given(
    tasks=st.integers(2, 6),
    floor=st.floats(0, 1),
    rewards=st.lists(st.floats(0, 1), min_size=36, max_size=36),
)
@example(tasks=2, floor=0.0, rewards=[0.0, 0.0, 3e-307] + [0.0] * 33)
def test_source_chances_are_a_distribution_over_the_others_with_a_floor(tasks, floor, rewards):
    q = AMTO(floor=floor).source_chances(doubles(rewards[: tasks**2]).reshape(tasks, tasks))
    torch.testing.assert_close(q.sum(1), torch.ones(tasks, dtype=torch.float64))
    assert (q.diagonal() == 0).all()
    off = q[~torch.eye(tasks, dtype=torch.bool)]
    assert (off >= floor / (tasks - 1) - 1e-12).all()


def test_forms_adapt_like_sources(make_view):
    rule = AMTO(floor=0.0)
    state = forced(rule, tries=[1.0, 1.0, 1.0], sources=[1, 2, 0])
    state["reward_form"] = doubles([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    plan, planned = rule.plan(make_view(), state, torch.Generator().manual_seed(3))
    assert [move.form for move in plan.moves()] == ["copy", "blend", "crossover-layer"]
    learned = rule.learn(plan, outcome([False, True, False]), planned)
    torch.testing.assert_close(learned["reward_form"].diagonal(), doubles([0.3, 1.0, 0.3]))


def test_a_blend_keeps_the_drawn_share(make_view):
    rule = AMTO(forms=("blend",), floor=0.0)
    plan, _ = rule.plan(make_view(), forced(rule, [1.0, 0.0, 0.0], [1, 0, 0]), torch.Generator().manual_seed(5))
    kept = float(drawn(5)[1, 0])
    torch.testing.assert_close(candidate(plan)[0], doubles([kept * 1 + (1 - kept) * 2, kept * 10 + (1 - kept) * 20]))
    torch.testing.assert_close(candidate(plan)[1:], THETA[1:])
    (move,) = plan.moves()
    assert (move.recipient, move.donors, move.form, move.amount) == (0, (1,), "blend", kept)


def test_what_is_not_crossed_has_no_source_and_what_is_not_mixed_stays(make_view):
    """Task 0 crosses with 2, task 1 copies 0, and task 2 tries nothing."""
    rule = AMTO(forms=("crossover", "copy"), floor=0.0)
    state = forced(rule, tries=[1.0, 1.0, 0.0], sources=[2, 0, 1])
    state["reward_form"] = doubles([[1, 0], [0, 1], [1, 0]])
    mix, cross = rule.plan(make_view(), state, torch.Generator().manual_seed(0))[0].changes
    assert mix.weights.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert cross.source.tolist() == [2, -1, -1]
    assert cross.unit == "layer"


def test_every_transfer_point_draws_masks_of_its_own(make_view):
    rule, keys = AMTO(forms=("crossover",), p_low=1.0, p_high=1.0), []
    for seed in range(20):
        plan, _ = rule.plan(make_view(), rule.start(3), torch.Generator().manual_seed(seed))
        keys += plan.changes[1].keys.tolist()
    assert len(set(keys)) == 60


def test_what_is_drawn_does_not_hang_on_what_was_accepted(make_view):
    """A run that differs in an acceptance draws on as before."""
    ends = []
    for rewards in (torch.zeros(3, 3), torch.eye(3)):
        rule, generator = AMTO(), torch.Generator().manual_seed(3)
        rule.plan(make_view(), rule.start(3) | {"try": rewards[0].double()}, generator)
        ends.append(generator.get_state())
    assert torch.equal(*ends)


@pytest.mark.parametrize("unit", ["layer", "parameter"])
def test_a_crossover_takes_units_whole(make_view, unit):
    rule = AMTO(forms=("crossover",), unit=unit, floor=0.0)
    seen = set()
    for seed in range(40):
        state = forced(rule, [0.0, 1.0, 0.0], [1, 2, 0])
        plan, _ = rule.plan(make_view(), state, torch.Generator().manual_seed(seed))
        assert plan.moves()[0].amount == float(drawn(seed)[1, 1])
        child = candidate(plan)
        torch.testing.assert_close(child[[0, 2]], THETA[[0, 2]])
        seen.add(tuple(child[1].tolist()))
    layer = {(2.0, 20.0), (4.0, 40.0)}
    assert seen == (layer if unit == "layer" else layer | {(2.0, 40.0), (4.0, 20.0)})


def test_p_is_the_share_of_tasks_that_try(make_view):
    rule, tries = AMTO(), torch.zeros(3)
    for seed in range(400):
        _, state = rule.plan(make_view(), rule.start(3), torch.Generator().manual_seed(seed))
        tries += state["source"] >= 0
        assert all(source != t for t, source in enumerate(state["source"].tolist()))
    assert ((tries / 400 - 0.375).abs() < 5 * (0.375 * 0.625 / 400) ** 0.5).all()


def test_a_transfer_point_at_which_nobody_tries_still_teaches_the_tasks_about_themselves(make_view):
    rule = AMTO()
    state = rule.start(3) | {"try": doubles([0.0, 0.0, 0.0]), "reward_other": doubles([0.7, 0.0, 0.0])}
    plan, state = rule.plan(make_view(), state, torch.Generator().manual_seed(0))
    assert plan is None
    torch.testing.assert_close(state["reward_self"], doubles([0.7, 0.0, 0.7]))
    torch.testing.assert_close(state["try"], doubles([0.375, 0.375, 0.05]))


def test_what_is_all_but_forgotten_counts_for_little(make_view):
    """The longer ago that somebody else was of use, the fewer tries, and p stays between its bounds."""
    state = AMTO().start(3) | {"try": doubles([0.0] * 3), "reward_other": doubles([1e-9, 1e-12, 1e-15])}
    view = make_view(improved=torch.zeros(3, dtype=torch.bool))
    long_ago = AMTO().plan(view, state, torch.Generator())[1]["try"].tolist()
    assert 0.7 > long_ago[0] > long_ago[1] > long_ago[2] > 0.05


def test_acceptance_rows(make_view):
    """Tasks 0 and 1 both validate on rows 2 and 3; task 2's validation rows are its own."""
    sources = [1, 0, 0]

    def trial(**options):
        rule = AMTO(forms=("copy",), floor=0.0, **options)
        plan, state = rule.plan(
            make_view(**changes), forced(rule, [1.0] * 3, sources), torch.Generator().manual_seed(0)
        )
        return [row.nonzero().flatten().tolist() for row in plan.trial], int(state["fallbacks"].sum())

    changes = {}
    own = [[0, 1, 2, 3], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert trial(rows="val") == (own, 0)
    assert trial(rows="shared", min_rows=2) == ([[2, 3], [2, 3], own[2]], 1)
    assert trial(rows="shared", min_rows=3) == (own, 3)
    # Nobody has seen its own validation rows so far; those of another are in its training rows.
    assert trial(rows="unexposed", min_rows=1) == ([[2, 3], [2, 3], own[2]], 1)
    exposed = make_view().exposed.clone()
    exposed[1, 2] = True
    changes = {"exposed": exposed}
    assert trial(rows="unexposed", min_rows=1) == ([[3], [3], own[2]], 1)
    assert trial(rows="unexposed", min_rows=2) == (own, 3)
    assert trial(rows="shared", min_rows=2) == ([[2, 3], [2, 3], own[2]], 1)  # whoever has seen them


def test_fallbacks_count_only_tries_and_add_up(make_view):
    rule = AMTO(forms=("copy",), rows="shared", floor=0.0)
    state = forced(rule, [1.0, 0.0, 1.0], [1, 0, 0])
    for total in (2, 4):
        _, state = rule.plan(make_view(), state | {"try": doubles([1.0, 0.0, 1.0])}, torch.Generator().manual_seed(0))
        assert int(state["fallbacks"].sum()) == total


def test_what_is_usual_is_the_default():
    rule = AMTO()
    assert (rule.forms, rule.unit, rule.rows) == (("copy", "blend", "crossover"), "layer", "val")
    assert (rule.alpha, rule.p_low, rule.p_high, rule.floor) == (0.3, 0.05, 0.7, 0.3)
    assert (rule.min_rows, rule.period, rule.until) == (20, 1, 0.9)


def test_what_is_just_possible_is_taken():
    rule = AMTO(forms=("copy",), alpha=0, p_low=0, p_high=0, floor=1, min_rows=1, period=1, until=1)
    assert not rule.start(2)["try"].any()


def test_a_note_says_of_how_many_tasks_the_rows_fell_back(make_view):
    """Tasks 0 and 1 share rows 2 and 3 with each other; nobody shares any with task 2, which tries as well."""
    state = forced(AMTO(), tries=[1.0, 1.0, 1.0], sources=[1, 0, 0])
    for min_rows, note in ((2, "acceptance rows fell back to val for 1 tasks"), (3, "fell back to val for 3 tasks")):
        rule = AMTO(rows="shared", min_rows=min_rows, floor=0.0)
        assert rule.plan(make_view(), state, torch.Generator())[0].note.endswith(note)
    state["try"] = doubles([1.0, 1.0, 0.0])
    assert AMTO(rows="shared", min_rows=2, floor=0.0).plan(make_view(), state, torch.Generator())[0].note is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forms": ()}, "forms"),
        ({"forms": ("copy", "swap")}, "'swap'"),
        ({"unit": "block"}, "unit: unknown name 'block'"),
        ({"rows": "all"}, "rows: unknown name 'all'"),
        ({"min_rows": 0}, "min_rows is 0"),
        ({"min_rows": 1.5}, "min_rows is 1.5"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"floor": -0.1}, "floor is -0.1"),
        ({"p_low": 0.8}, "p_low is 0.8, above p_high"),
        ({"p_high": float("nan")}, "p_high is nan"),
        ({"period": 0}, "period is 0"),
        ({"until": 90}, "until is 90"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    rule = AMTO()
    for name, value in options.items():  # past the checks of types under test, as a value from YAML comes
        object.__setattr__(rule, name, value)
    with pytest.raises(InputError, match=message) as error:
        rule.__post_init__()
    assert str(error.value).startswith("amto: ")
    assert "\n" not in str(error.value)
