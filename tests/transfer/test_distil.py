import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.transfer import RULES, Distil, Lesson, TeachRule, Together
from kinfold.transfer.distil import RATES, SCALES, true_classes


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def predictor(outputs):
    """Outputs [T, N, C] by row number; remembers which rows were asked for."""
    asked = []

    def predict(rows):
        asked.append(rows.tolist())
        return outputs[:, rows].clone()

    return predict, asked


def reference(outputs, labels, held_out):
    """Posterior, expected rate and its upper bound, number by number; pairs (s, η) of next to no weight stay out."""
    T, m, C = outputs.shape
    known = [i for i in range(m) if held_out[:, i].any()]
    weights, posteriors = {}, {}
    for s in SCALES:
        p = {i: sum(torch.softmax(outputs[t, i] / s, 0) for t in range(T) if held_out[t, i]) for i in known}
        p = {i: (row / held_out[:, i].sum()).tolist() for i, row in p.items()}
        for eta in RATES:
            log_likelihood = 0.0
            for i in known:
                of_label = p[i][labels[i]]
                log_likelihood += math.log(max((1 - eta) * of_label + eta * (1 - of_label) / (C - 1), 1e-12))
                q = [p[i][c] * (1 - eta if c == labels[i] else eta / (C - 1)) for c in range(C)]
                posteriors[s, eta, i] = [one / sum(q) for one in q]
            weights[s, eta] = log_likelihood
    total = sum(math.exp(weight - max(weights.values())) for weight in weights.values())
    weights = {pair: math.exp(weight - max(weights.values())) / total for pair, weight in weights.items()}
    found = torch.nn.functional.one_hot(labels, C).double()
    counted = {pair: weight for pair, weight in weights.items() if weight > 1e-4}
    for i in known:
        mean = [sum(weight * posteriors[(*pair, i)][c] for pair, weight in counted.items()) for c in range(C)]
        found[i] = doubles(mean) / sum(mean)
    rate = sum(weight * eta for (_, eta), weight in weights.items())
    below = 0.0
    for eta in RATES:
        below += sum(weights[s, eta] for s in SCALES)
        if below >= 0.975:
            return found, rate, eta
    raise AssertionError


def noisy(C, rate, rows=4000, seed=0, sharpness=4.0, teachers=2):
    """Labels of which a share are wrong, and tasks that are as sure as they may be; and the true classes.

    Task t holds out every row but those with i % (teachers + 1) == t.
    """
    draws = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(rows, C, generator=draws, dtype=torch.float64)
    truth = torch.multinomial(torch.softmax(logits, 1), 1, generator=draws)[:, 0]
    wrong = torch.rand(rows, generator=draws) < rate
    labels = torch.where(wrong, (truth + torch.randint(1, C, (rows,), generator=draws)) % C, truth)
    held_out = torch.stack([torch.arange(rows) % (teachers + 1) != t for t in range(teachers)])
    return logits.expand(teachers, -1, -1), labels, held_out, truth


def test_temperatures_are_evenly_spread_over_a_logarithmic_grid():
    """Else those that lie closely together would count for more than others, before anything is seen."""
    steps = [later / earlier for earlier, later in itertools.pairwise(SCALES)]
    assert steps == pytest.approx([math.sqrt(2.0)] * 7, rel=0.02)
    assert 1.0 in SCALES


@settings(deadline=None, max_examples=8)
@given(C=st.integers(2, 4), rows=st.integers(1, 8), shared=st.floats(0.2, 1), seed=st.integers(0, 999))
def test_beliefs_by_the_book(C, rows, shared, seed):
    draws = torch.Generator().manual_seed(seed)
    outputs = 3.0 * torch.randn(3, rows, C, generator=draws, dtype=torch.float64)
    labels = torch.randint(C, (rows,), generator=draws)
    held_out = torch.rand(3, rows, generator=draws) < shared
    held_out[0, 0] = True
    belief = true_classes(outputs, labels, held_out)
    posterior, rate, upper = reference(outputs, labels, held_out)
    torch.testing.assert_close(belief.posterior, posterior)
    assert belief.rate == pytest.approx(rate)
    assert belief.upper == upper


@pytest.mark.parametrize("C", [2, 5])
def test_the_posterior_by_hand(C):
    """With as many rows the temperature and the rate are known: q(c) ∝ p(c) (0.8 for the label, 0.2 / (C − 1) else)."""
    outputs, labels, held_out, _ = noisy(C, 0.2, rows=8000)
    belief = true_classes(outputs, labels, held_out)
    assert belief.rate == pytest.approx(0.2, abs=0.02)
    p = torch.softmax(outputs[0], 1)
    for i in range(0, 40):
        q = [float(p[i, c]) * (0.8 if c == int(labels[i]) else 0.2 / (C - 1)) for c in range(C)]
        torch.testing.assert_close(belief.posterior[i], doubles(q) / sum(q), rtol=0, atol=0.03)


def test_a_row_is_judged_by_the_mean_of_those_that_held_it_out():
    """Probabilities are averaged, not logits; and who trained on the row has no say."""
    outputs, labels, held_out, _ = noisy(2, 0.2, rows=8000)
    outputs, held_out = outputs.clone(), held_out.clone()
    outputs[:, 0], labels[0] = doubles([[math.log(9.0), 0.0], [0.0, 0.0]]), 0
    for judges, p in (([True, True], 0.7), ([True, False], 0.9), ([False, True], 0.5)):
        held_out[:, 0] = torch.tensor(judges)
        belief = true_classes(outputs, labels, held_out).posterior[0, 0]
        assert float(belief) == pytest.approx(0.8 * p / (0.8 * p + 0.2 * (1 - p)), abs=0.02)


@pytest.mark.parametrize("C", [2, 5])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.3])
def test_the_rate_of_noise_is_found(C, rate):
    outputs, labels, held_out, truth = noisy(C, rate)
    belief = true_classes(outputs, labels, held_out)
    assert abs(belief.rate - rate) <= 0.03
    assert belief.rate - 0.001 < belief.upper <= rate + 0.06
    if rate:
        right = (belief.posterior.argmax(1) == truth).double().mean()
        assert right > (labels == truth).double().mean() + rate / 3


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 4.0])
def test_tasks_may_be_too_sure_or_too_modest(times):
    """The temperature makes up for it: what is believed is what is believed of well-measured predictions."""
    outputs, labels, held_out, _ = noisy(5, 0.1, sharpness=2.0)
    belief, same = true_classes(times * outputs, labels, held_out), true_classes(outputs, labels, held_out)
    torch.testing.assert_close(belief.posterior, same.posterior, rtol=0, atol=0.02)
    assert belief.rate == pytest.approx(same.rate, abs=0.005)


def test_few_rows_say_little():
    """The bound is far above what is expected, and comes down to it with the rows."""
    bounds = []
    for rows in (20, 200, 4000):
        outputs, labels, held_out, _ = noisy(3, 0.1, rows=rows)
        belief = true_classes(outputs, labels, held_out)
        bounds.append(belief.upper - belief.rate)
    assert bounds[0] > 0.15
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[2] < 0.05


def test_a_row_that_nobody_held_out_keeps_its_label():
    outputs, labels, held_out, _ = noisy(3, 0.3, rows=600)
    held_out[:, :5] = False
    belief = true_classes(outputs, labels, held_out)
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    assert torch.equal(belief.posterior[:5], one_hot[:5])
    again = true_classes(outputs[:, 5:], labels[5:], held_out[:, 5:])  # and says nothing of the rate
    torch.testing.assert_close(belief.posterior[5:], again.posterior)
    assert (belief.rate, belief.upper) == (again.rate, again.upper)
    nobody = true_classes(outputs, labels, torch.zeros_like(held_out))
    assert torch.equal(nobody.posterior, one_hot)
    assert (nobody.rate, nobody.upper) == (0.0, 1.0)  # there is nothing to be sure by


def test_what_cannot_be_keeps_the_label():
    """One label of very many that the tasks rule out altogether: no noise is seen, and nothing is there to divide."""
    rows = 20000
    outputs = doubles([1e5, 0.0]).expand(1, rows, 2).clone()
    outputs[0, -1] = doubles([-1e5, 0.0])
    belief = true_classes(outputs, torch.zeros(rows, dtype=torch.int64), torch.ones(1, rows).bool())
    assert belief.rate == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(belief.posterior, doubles([1.0, 0.0]).expand(rows, 2))


@settings(deadline=None, max_examples=25)
@given(
    C=st.integers(2, 5),
    rows=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1.0, 50.0, 1e6]),
    shared=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_posteriors_are_probabilities(C, rows, scale, shared, seed):
    draws = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(3, rows, C, generator=draws, dtype=torch.float64)
    labels = torch.randint(C, (rows,), generator=draws)
    belief = true_classes(outputs, labels, torch.rand(3, rows, generator=draws) < shared)
    torch.testing.assert_close(belief.posterior.sum(1), torch.ones(rows, dtype=torch.float64))
    assert bool((belief.posterior >= 0).all())
    assert 0.0 <= belief.rate <= max(RATES)


ROWS = 240


def large_view(make_view, outputs, **changes):
    """Each task holds a third of the rows out, the first 220 in all; the last ten are sealed."""
    number = torch.arange(ROWS)
    validation = torch.stack([(number % 3 == t) & (number < 220) for t in range(3)])
    predict, asked = predictor(outputs)
    view = make_view(
        predict=predict,
        validation=validation,
        exposed=(number < 230) & ~validation,
        unsealed=number < 230,
        targets=number % 2 * (number < 230),
        **changes,
    )
    return view, asked


def sure_of(wrong):
    """Outputs of three tasks that are sure of the labels but for one in `wrong`, and which these are."""
    number = torch.arange(ROWS)
    otherwise = number % wrong == 0 if wrong else torch.zeros(ROWS, dtype=torch.bool)
    classes = torch.where(otherwise, 1 - number % 2, number % 2)
    return 30.0 * torch.nn.functional.one_hot(classes, 2).double().expand(3, -1, -1), classes


def test_labels_that_can_be_believed_are_the_lesson(make_view):
    """At most one or two of 220 may be wrong."""
    outputs, _ = sure_of(wrong=0)
    view, asked = large_view(make_view, outputs)
    for last in (False, True):
        lesson = Distil().graduate(view, {}, last)
        assert lesson.targets is None
        assert lesson.note.startswith("labels: ")
        assert lesson.note.endswith("the student learns from the labels as they are")
    assert asked == [list(range(230))] * 2  # never a sealed row


def test_labels_that_cannot_be_believed_want_another_stage(make_view):
    outputs, classes = sure_of(wrong=5)
    view, _ = large_view(make_view, outputs)
    assert Distil().graduate(view, {}, last=False) is None
    lesson = Distil().graduate(view, {}, last=True)
    said = float(lesson.note.split()[1])
    assert said == pytest.approx(20, abs=2)
    assert lesson.note.endswith("the student learns from what the tasks make of them")
    assert torch.equal(lesson.targets[:220].argmax(1), classes[:220])
    labels = torch.nn.functional.one_hot(torch.arange(ROWS) % 2, 2).double()
    assert torch.equal(lesson.targets[220:230], labels[220:230])  # in nobody's validation
    assert not lesson.targets[230:].any()  # sealed: nothing
    assert Distil(clean=0.5).graduate(view, {}, last=False).targets is None


def test_what_is_not_sure_wants_another_stage(make_view):
    """Three wrong labels in a hundred may be more; what is expected decides in the end."""
    outputs, _ = sure_of(wrong=35)
    view, _ = large_view(make_view, outputs)
    rule = Distil(clean=0.04)
    assert rule.graduate(view, {}, last=False) is None
    assert rule.graduate(view, {}, last=True).targets is None


def test_labels_are_clean_below_the_rate_that_is_asked_for_and_not_at_it(make_view):
    outputs, _ = sure_of(wrong=35)
    view, _ = large_view(make_view, outputs)
    belief = true_classes(outputs[:, :230], view.targets[:230], view.validation[:, :230])
    assert Distil(clean=belief.upper).graduate(view, {}, last=False) is None
    assert Distil(clean=belief.upper + 1e-9).graduate(view, {}, last=False).targets is None
    assert Distil(clean=belief.rate).graduate(view, {}, last=True).targets is not None
    assert Distil(clean=belief.rate + 1e-9).graduate(view, {}, last=True).targets is None


def test_a_sealed_row_has_no_part_in_it(make_view):
    outputs, _ = sure_of(wrong=5)
    other = outputs.clone()
    other[:, 230:] = math.nan
    lessons = [Distil().graduate(large_view(make_view, given)[0], {}, last=True) for given in (outputs, other)]
    assert torch.equal(lessons[0].targets, lessons[1].targets)
    assert lessons[0].note == lessons[1].note


def test_a_diverged_task_is_left_out(make_view):
    """The rows that it alone held out keep their labels."""
    outputs, classes = sure_of(wrong=5)
    outputs = outputs.clone()
    outputs[2, 0] = math.nan  # and this one it has trained on
    lesson = Distil().graduate(large_view(make_view, outputs)[0], {}, last=True)
    number = torch.arange(ROWS)
    alone = (number % 3 == 2) & (number < 220)
    assert torch.equal(lesson.targets[alone], torch.nn.functional.one_hot(number % 2, 2).double()[alone])
    others = ~alone & (number < 220)
    assert torch.equal(lesson.targets[others].argmax(1), classes[others])
    outputs[:] = math.nan
    nobody = large_view(make_view, outputs)[0]
    assert Distil().graduate(nobody, {}, last=False).targets is None


def test_who_has_heard_of_a_label_does_not_judge_it(make_view):
    """Beside another rule, through which task 2 has learned from those that train on what it holds out."""
    outputs, classes = sure_of(wrong=5)
    number = torch.arange(ROWS)
    view, _ = large_view(make_view, outputs)
    exposed = view.exposed.clone()
    exposed[2] = view.unsealed
    lesson = Distil().graduate(dataclasses.replace(view, exposed=exposed), {}, last=True)
    heard = (number % 3 == 2) & (number < 220)
    assert torch.equal(lesson.targets[heard], torch.nn.functional.one_hot(number % 2, 2).double()[heard])
    others = ~heard & (number < 220)
    assert torch.equal(lesson.targets[others].argmax(1), classes[others])
    everyone = dataclasses.replace(view, exposed=view.unsealed.expand(3, -1))
    for last in (False, True):
        lesson = Distil().graduate(everyone, {}, last)
        assert lesson.targets is None
        assert "no task is left that has not heard of them" in lesson.note


def test_regression_learns_from_the_values(make_view):
    view = make_view(classes=None, targets=torch.arange(12.0), predict=None)
    assert Distil().graduate(view, {}, last=False) == Lesson()


def test_tasks_train_alone(make_view):
    rule = Distil()
    assert rule.plan(make_view(), rule.start(3), torch.Generator()) == (None, {})
    assert not any(rule.due(period, 10) or rule.running(period, 10) for period in range(1, 11))
    assert rule.student
    assert [name for name, make in RULES.items() if make().student] == ["distil"]


def test_several_rules_with_one_student():
    rule = Distil(stages=(0.25, 0.5))
    together = Together((TeachRule(), rule))
    assert (together.stages, together.student) == (rule.stages, True)
    with pytest.raises(InputError, match="'distil' and 'distil' are of one kind"):
        Together((rule, rule))


def test_together_the_one_with_a_student_has_the_lesson(make_view):
    rule, (outputs, _) = Together((TeachRule(), Distil())), sure_of(wrong=0)
    view, _ = large_view(make_view, outputs)
    assert rule.graduate(view, rule.start(3), last=False) == Distil().graduate(view, {}, last=False)


def test_what_is_usual_is_the_default():
    assert (Distil().stages, Distil().clean, Distil().until) == ((0.1, 0.6), 0.04, 0.0)
    assert not Distil().moves


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ()}, r"distil: stages is \(\); give shares above 0 that leave something for the student"),
        ({"stages": (0.0, 0.5)}, "distil: stages is"),
        ({"stages": (0.5, 0.5)}, r"distil: stages is \(0.5, 0.5\)"),
        ({"clean": 1.5}, "distil: clean is 1.5"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        Distil(**options)
    assert "\n" not in str(error.value)
