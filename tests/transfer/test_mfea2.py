import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.transfer import MFEA2
from kinfold.transfer.mfea2 import likeliest_rate

LOSSES = st.lists(st.tuples(st.floats(0, 8), st.floats(0, 8)), min_size=1, max_size=12)


def logs(*ratios):
    return torch.tensor(ratios, dtype=torch.float64).log()


def likelihood(rate, own, other):
    """Σ log[(1 − w) g_t + w g_s] with the probabilities themselves."""
    w = rate / 2
    return sum(math.log((1 - w) * math.exp(-a) + w * math.exp(-b)) for a, b in zip(own, other, strict=True))


def with_losses(make_view, table, **changes):
    """A view in which task t has the loss table[t][i] on row i of the twelve."""
    table = torch.tensor(table, dtype=torch.float64)
    return make_view(losses=lambda rows: table[:, rows], **changes)


def learned(rule, view, seed=0):
    plan, state = rule.plan(view, rule.start(3), torch.Generator().manual_seed(seed))
    return plan, state["rmp"]


def test_rates_by_hand():
    # One row that s explains three times better, one that it explains four times worse: the slope
    # 2 / (1 + 2w) − ¾ / (1 − ¾w) is 0 at w = 5/12.
    assert likeliest_rate(logs(3.0, 0.25)) == pytest.approx(10 / 12, abs=1e-9)
    assert likeliest_rate(logs(2.0, 3.0)) == 1.0  # better everywhere
    assert likeliest_rate(logs(0.5, 0.9)) == 0.0  # worse everywhere
    assert likeliest_rate(logs(2.0, 0.5)) == pytest.approx(1.0)  # as good on the whole: half of each is best
    assert likeliest_rate(logs(1.0, 1.0)) == 0.0  # the same: there is nothing to be had
    assert likeliest_rate(torch.full((1000,), 1e-13)) == 0.0  # nor by rounding, on however many rows
    assert likeliest_rate(torch.tensor([800.0, -900.0])) == pytest.approx(1.0)  # no overflow
    for bad in (math.nan, math.inf, -math.inf):  # however much better the other is elsewhere
        assert likeliest_rate(torch.tensor([bad, 1.0, 1.0])) == likeliest_rate(torch.tensor([bad])) == 0.0


@settings(deadline=None, max_examples=60)
@given(LOSSES)
def test_a_rate_is_the_likeliest_on_a_grid(losses):
    own, other = zip(*losses, strict=True)
    rate = likeliest_rate(torch.tensor(own, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64))
    best = max(likelihood(point / 50, own, other) for point in range(51))
    assert likelihood(rate, own, other) >= best - 1e-9


@settings(deadline=None, max_examples=40)
@given(LOSSES)
def test_rows_of_both_always_say_one(losses):
    """What the docstring warns of: with each row in both sums, no rate is likelier than 1."""
    own, other = zip(*losses, strict=True)
    both = [likelihood(rate / 20, own + other, other + own) for rate in range(21)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(both))
    assert both[-1] == pytest.approx(max(both))


def apart(make_view, gain):
    """Tasks that validate on rows 0 and 1, 4 and 5, 8 and 9; on those of t, model s is gain[t][s] times likelier."""
    validation, table = torch.zeros(3, 12, dtype=torch.bool), [[math.nan] * 12 for _ in range(3)]
    for t in range(3):
        for row in (4 * t, 4 * t + 1):
            validation[t, row] = True
            for s in range(3):
                table[s][row] = 2.0 - math.log(gain[t][s])
    return with_losses(make_view, table, validation=validation)


GAIN = [[1, 3, 0.5], [0.25, 1, 2], [0.5, 3, 1]]


def test_three_tasks_by_hand(make_view):
    """0 and 1: likelier three times and ¼ times, so 10/12 as above; 0 and 2: less likely both; 1 and 2: likelier."""
    plan, rmp = learned(MFEA2(directed=False), apart(make_view, GAIN))
    expected = torch.tensor([[0, 10 / 12, 0], [10 / 12, 0, 1], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(rmp, expected, rtol=0, atol=1e-9)
    assert torch.equal(plan.trial, apart(make_view, GAIN).validation)


def test_directed_rates_by_hand(make_view):
    _, rmp = learned(MFEA2(directed=True), apart(make_view, GAIN))
    assert rmp.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_rows_that_one_has_seen_are_left_out_where_enough_remain(make_view):
    """Tasks 0 and 1 share rows 2 and 3, which neither trains on; task 1 flatters itself on rows 0 and 1."""
    table = [[1.0] * 12 for _ in range(3)]
    for row in (0, 1):
        table[1][row] = 0.0
    for row in (2, 3):
        table[1][row] = 2.0
    view = with_losses(make_view, table)

    def rate(**options):
        return float(learned(MFEA2(directed=True, **options), view)[1][0, 1])

    assert rate(min_rows=2) == 0.0  # by rows 2 and 3 alone
    assert rate(min_rows=3) == pytest.approx(likeliest_rate(torch.tensor([1.0, 1.0, -1.0, -1.0])))
    assert rate(min_rows=3) > 0.5
    exposed = view.exposed.clone()
    exposed[0, 3] = True  # what it was copied from had trained on it
    seen = with_losses(make_view, table, exposed=exposed)
    assert float(learned(MFEA2(directed=True, min_rows=2), seen)[1][0, 1]) > 0.5


def test_what_was_learned_on_seen_rows_is_logged(make_view):
    table = [[1.0 + 0.1 * t] * 12 for t in range(3)]

    def note(min_rows):
        for seed in range(30):
            plan, _ = learned(MFEA2(min_rows=min_rows), with_losses(make_view, table), seed)
            if plan is not None:
                return plan.note
        raise AssertionError

    assert note(min_rows=3) == "rates of 6 pairs were learned on rows that one had seen"
    assert note(min_rows=2) == "rates of 4 pairs were learned on rows that one had seen"
    unseen = torch.zeros(3, 12, dtype=torch.bool)
    plans = [learned(MFEA2(min_rows=1), with_losses(make_view, table, exposed=unseen), s)[0] for s in range(30)]
    assert {plan.note for plan in plans if plan is not None} == {None}


def test_a_diverged_task_mates_with_nobody(make_view):
    view = apart(make_view, [[1, math.inf, 2], [1, 1, 1], [2, math.inf, 1]])
    _, rmp = learned(MFEA2(), view)
    assert rmp.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_losses_are_asked_for_once_and_of_validation_rows_alone(make_view):
    asked = []

    def losses(rows):
        asked.append(rows.tolist())
        return torch.rand(3, len(rows), generator=torch.Generator().manual_seed(0))

    learned(MFEA2(), make_view(losses=losses))
    assert asked == [list(range(10))]


def test_tasks_mate_at_the_rates_learned(make_view):
    """Task 2 has nothing to do with the others; 0 and 1 mate whenever they draw each other."""
    view, sources = apart(make_view, [[1, 2, 0.1], [2, 1, 0.1], [0.1, 0.1, 1]]), set()
    for seed in range(40):
        plan, rmp = learned(MFEA2(), view, seed)
        assert rmp.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
        if plan is not None:
            sources.add(tuple(plan.changes[0].source.tolist()))
            assert plan.moments == "keep"
    assert sources == {(1, 0, -1), (1, -1, -1), (-1, 0, -1)}


def test_the_same_numbers_are_drawn_whatever_was_learned(make_view):
    ends = []
    for gain in (GAIN, [[1] * 3] * 3):
        generator = torch.Generator().manual_seed(2)
        MFEA2().plan(apart(make_view, gain), MFEA2().start(3), generator)
        ends.append(generator.get_state())
    assert torch.equal(*ends)


def test_what_is_usual_is_the_default():
    rule = MFEA2()
    assert rule.directed
    assert (rule.form, rule.eta, rule.min_rows, rule.period, rule.until) == ("binary", 2.0, 20, 1, 0.9)


def test_nobody_mates_before_something_is_learned():
    assert MFEA2(min_rows=1, eta=0).start(2)["rmp"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "blend"}, "form: unknown name 'blend'"),
        ({"eta": math.inf}, "eta is inf"),
        ({"min_rows": 0}, "min_rows is 0"),
        ({"min_rows": 2.5}, "min_rows is 2.5"),
        ({"period": 0}, "period is 0"),
        ({"until": 2.0}, "until is 2.0"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    rule = MFEA2()
    for name, value in options.items():  # past the checks of types under test, as a value from YAML comes
        object.__setattr__(rule, name, value)
    with pytest.raises(InputError, match=message) as error:
        rule.__post_init__()
    assert str(error.value).startswith("mfea-2: ")
    assert "\n" not in str(error.value)
