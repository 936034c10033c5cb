import dataclasses
import math

import pytest
import torch

from kinfold.errors import InputError
from kinfold.transfer import Teach, TeachRule

LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(9.0)], [0.0, -math.log(9.0)]], dtype=torch.float64)


def predictor(outputs):
    """Each task gives its own constant outputs [T, C] on every row; remembers which rows were asked for."""
    asked = []

    def predict(rows):
        asked.append(rows)
        return outputs[:, None].expand(-1, len(rows), -1).clone()

    return predict, asked


def lesson(rule, view):
    plan, state = rule.plan(view, rule.start(3), torch.Generator())
    assert state == {}
    assert plan.trial is None
    (change,) = plan.changes
    assert isinstance(change, Teach)
    return change


def test_peer_means_by_hand(make_view):
    predict, asked = predictor(LOGITS)
    change = lesson(TeachRule(temperature=2.0), make_view(predict=predict))
    # softmax(z / 2): odds √9 = 3, so (1/2, 1/2), (1/4, 3/4), (3/4, 1/4); the means are of the other two.
    expected = torch.tensor([[0.5, 0.5], [0.625, 0.375], [0.375, 0.625]], dtype=torch.float64)
    torch.testing.assert_close(change.targets[:, :11], expected[:, None].expand(3, 11, 2))
    assert not change.targets[:, 11].any()  # the sealed row
    assert asked[0].tolist() == list(range(11))
    assert change.temperature == 2.0
    assert torch.equal(change.teachers, ~torch.eye(3, dtype=torch.bool))


def test_the_weight_rises_to_its_full_strength(make_view):
    predict, _ = predictor(LOGITS)
    rule = TeachRule(weight=0.6, ramp=0.4)
    weights = [float(lesson(rule, make_view(period=p, predict=predict)).weight[0]) for p in (1, 2, 4, 5, 10)]
    assert weights == pytest.approx([0.15, 0.3, 0.6, 0.6, 0.6])
    assert float(lesson(TeachRule(weight=0.6, ramp=0), make_view(predict=predict)).weight[0]) == 0.6


def test_own_validation_rows_are_drawn_without_labels(make_view):
    predict, _ = predictor(LOGITS)
    view = make_view(predict=predict)
    assert torch.equal(lesson(TeachRule(), view).unlabelled, view.validation)
    assert not lesson(TeachRule(unlabelled=False), view).unlabelled.any()


def test_a_diverged_peer_is_left_out(make_view):
    outputs = LOGITS.clone()
    outputs[1, 0] = math.nan
    predict, _ = predictor(outputs)
    change = lesson(TeachRule(temperature=2.0), make_view(predict=predict))
    assert change.teachers.tolist() == [[False, False, True], [True, False, True], [True, False, False]]
    expected = torch.tensor([[0.75, 0.25], [0.625, 0.375], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(change.targets[:, 0], expected)
    assert (change.weight > 0).all()

    outputs[2] = math.inf  # now task 0 has no sound peer, and is left to itself
    predict, _ = predictor(outputs)
    change = lesson(TeachRule(temperature=2.0), make_view(predict=predict))
    assert change.weight[0] == 0
    assert not change.unlabelled[0].any()
    assert not change.teachers[0].any()
    assert change.teachers[1:, 0].all()
    assert change.targets.isfinite().all()


def test_regression_teaches_the_mean_value(make_view):
    predict, _ = predictor(torch.tensor([[1.0], [2.0], [6.0]]))
    change = lesson(TeachRule(), make_view(predict=predict, classes=None))
    assert change.targets[:, 3].tolist() == [[4.0], [3.5], [1.5]]


def test_what_is_usual_is_the_default():
    rule = TeachRule()
    assert (rule.weight, rule.temperature, rule.cool, rule.ramp) == (0.5, 8.0, None, 0.6)
    assert (rule.teachers, rule.unlabelled, rule.period, rule.until) == ("peers", True, 1, 1.0)
    assert not rule.moves


def test_temperatures_below_one_are_sharp(make_view):
    """softmax(z / ½) has odds 9² where softmax(z) has 9."""
    predict, _ = predictor(LOGITS)
    change = lesson(TeachRule(temperature=0.5, cool=0.5), make_view(predict=predict))
    expected = torch.tensor([(1 / 2 + 1 / 82) / 2, (1 / 2 + 81 / 82) / 2], dtype=torch.float64)
    torch.testing.assert_close(change.targets[2, 0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "teach: weight is 1.5"),
        ({"temperature": 0.0}, "teach: temperature is 0.0"),
        ({"temperature": math.inf}, "teach: temperature is inf"),
        ({"cool": -1.0}, "teach: cool is -1.0"),
        ({"weight": 2, "teachers": "out-of-fold"}, "teach-out-of-fold: weight is 2"),
        ({"ramp": -0.1}, "teach: ramp is -0.1"),
        ({"period": 0}, "teach: period is 0"),
        ({"until": 2}, "teach: until is 2"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        TeachRule(**options)
    assert "\n" not in str(error.value)


def test_the_temperature_may_cool(make_view):
    """From 8 at the beginning to 2 at the end: softmax(z / τ) has odds 9^(1/τ)."""
    predict, _ = predictor(LOGITS)
    rule = TeachRule(cool=2.0)
    lessons = [lesson(rule, make_view(period=p, predict=predict)) for p in (1, 5, 10)]
    assert [change.temperature for change in lessons] == pytest.approx([7.4, 5.0, 2.0])
    odds = 9.0 ** (1 / 5.0)  # of task 1; task 2 has the inverse
    expected = torch.tensor([(1 / 2 + 1 / (1 + odds)) / 2, (1 / 2 + odds / (1 + odds)) / 2], dtype=torch.float64)
    torch.testing.assert_close(lessons[1].targets[2, 0], expected)


PROBABLY = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]], dtype=torch.float64)  # LOGITS at temperature 2
OUT_OF_FOLD = TeachRule(weight=0.6, ramp=0, temperature=2.0, teachers="out-of-fold")


def test_out_of_fold_teachers_by_hand(make_view):
    """Tasks validate on rows 0-3, 2-5 and 6-9; row 10 is in nobody's validation, row 11 is sealed."""
    predict, _ = predictor(LOGITS)
    view = make_view(predict=predict)
    change = lesson(OUT_OF_FOLD, view)
    teachers_of = {  # (task, row) → who teaches it; the others have no teacher
        0: {row: [1] for row in (2, 3, 4, 5)} | {row: [2] for row in (6, 7, 8, 9)},
        1: {row: [0] for row in (0, 1, 2, 3)} | {row: [2] for row in (6, 7, 8, 9)},
        2: {0: [0], 1: [0], 2: [0, 1], 3: [0, 1], 4: [1], 5: [1]},
    }
    for t, taught in teachers_of.items():
        for row in range(12):
            assert float(change.weight[t, row]) == (0.6 if row in taught else 0.0)
            expected = PROBABLY[taught[row]].mean(0) if row in taught else torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(change.targets[t, row], expected)
    # Of its own validation rows a task draws those that a peer holds, too.
    assert [rows.nonzero().flatten().tolist() for rows in change.unlabelled] == [[2, 3], [2, 3], []]
    assert torch.equal(change.teachers, ~torch.eye(3, dtype=torch.bool))
    rising = lesson(dataclasses.replace(OUT_OF_FOLD, ramp=0.5), view)
    torch.testing.assert_close(rising.weight, 0.2 * change.weight)


def test_who_shares_only_undrawn_rows_is_no_teacher(make_view):
    """Tasks 0 and 1 validate on the same rows, and nobody draws his own."""
    predict, _ = predictor(LOGITS)
    validation = make_view().validation.clone()
    validation[1] = validation[0]
    view = make_view(predict=predict, validation=validation)
    change = lesson(dataclasses.replace(OUT_OF_FOLD, unlabelled=False), view)
    assert not change.unlabelled.any()
    assert change.teachers.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert lesson(OUT_OF_FOLD, view).teachers[0].tolist() == [False, True, True]


def test_a_peer_that_is_not_finite_on_one_row_teaches_none(make_view):
    def predict(rows):
        outputs = LOGITS[:, None].repeat(1, len(rows), 1)
        outputs[1, rows == 8] = math.nan
        return outputs

    for rule in (TeachRule(), OUT_OF_FOLD):
        change = lesson(rule, make_view(predict=predict))
        assert not change.teachers[:, 1].any()
        assert change.targets.isfinite().all()


def test_who_teaches_one_row_is_a_teacher(make_view):
    """Task 1 holds row 4 alone, and draws nothing of its own."""
    predict, _ = predictor(LOGITS)
    validation = make_view().validation.clone()
    validation[1] = torch.arange(12) == 4
    change = lesson(OUT_OF_FOLD, make_view(predict=predict, validation=validation))
    assert change.weight[0].nonzero().flatten().tolist() == [4, 6, 7, 8, 9]
    assert change.teachers[0].tolist() == [False, True, True]


def test_a_diverged_peer_teaches_no_row(make_view):
    outputs = LOGITS.clone()
    outputs[1, 0] = math.nan
    predict, _ = predictor(outputs)
    change = lesson(OUT_OF_FOLD, make_view(predict=predict))
    assert change.weight[0].nonzero().flatten().tolist() == [6, 7, 8, 9]
    assert not change.unlabelled[0].any()
    assert change.teachers.tolist() == [[False, False, True], [True, False, True], [True, False, False]]
    assert change.targets.isfinite().all()


def test_out_of_fold_regression(make_view):
    predict, _ = predictor(torch.tensor([[1.0], [2.0], [6.0]]))
    change = lesson(OUT_OF_FOLD, make_view(predict=predict, classes=None))
    assert change.targets[:, 3].tolist() == [[2.0], [1.0], [1.5]]


def test_unknown_teachers_are_refused():
    rule = TeachRule()
    object.__setattr__(rule, "teachers", "everyone")  # past the checks of types under test
    with pytest.raises(InputError, match="teach: teachers: unknown name 'everyone'"):
        rule.__post_init__()
