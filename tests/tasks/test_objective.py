import math

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from kinfold.errors import InputError
from kinfold.methods import Batch
from kinfold.models import StandardisedMSE
from kinfold.tasks.objective import (
    ClassCrossEntropy,
    Metric,
    Objective,
    accuracy,
    finite_r2,
    make_objective,
    r2,
    resolve_metric,
)

CPU = torch.device("cpu")


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(kind="classification", outputs=3, loss=None, metric=None) -> Objective:
    return make_objective(kind, outputs, loss, metric, CPU, torch.float64)


LOGITS, CLASSES = numbers(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
BATCH = Batch(LOGITS, CLASSES, torch.arange(6), 3)
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))


def identity(x):
    return x


def custom(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize(
    "loss", [None, WEIGHTED, nn.CrossEntropyLoss(label_smoothing=0.2), custom, nn.NLLLoss(WEIGHTED.weight)]
)
def test_row_losses_make_up_the_loss(loss):
    o = objective(loss=loss)
    torch.testing.assert_close(o.row_loss(LOGITS, CLASSES).sum() / o.row_weight(CLASSES).sum(), o.loss(LOGITS, CLASSES))
    lesson = {"soft": torch.full((6, 3), 1 / 3, dtype=torch.float64), "soft_weight": torch.tensor(0.0)}
    expected = o.training_loss(identity, BATCH)
    torch.testing.assert_close(expected, o.loss(LOGITS, CLASSES))
    for labelled in (None, torch.ones(6, dtype=torch.float64)):
        torch.testing.assert_close(o.training_loss(identity, BATCH._replace(labelled=labelled, **lesson)), expected)


def test_softened_targets_have_row_losses_too():
    o, soft = objective(loss=WEIGHTED), torch.softmax(numbers(6, 3, seed=1), 1)
    torch.testing.assert_close(o.row_loss(LOGITS, soft).sum() / o.row_weight(soft).sum(), o.loss(LOGITS, soft))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), lambda o, y: (o - y).abs().mean()])
@pytest.mark.parametrize("columns", [1, 2])
def test_row_losses_of_regression(loss, columns):
    o = objective("regression", columns, loss)
    outputs, y = numbers(5, columns), numbers(5, columns, seed=1)
    torch.testing.assert_close(o.row_loss(outputs, y).mean(), o.loss(outputs, y))


@pytest.mark.parametrize("loss", [None, WEIGHTED])
def test_unlabelled_rows_count_by_their_soft_targets_alone(loss):
    o = objective(loss=loss)
    labelled = torch.tensor([1.0, 1, 0, 1, 0, 0], dtype=torch.float64)
    soft = torch.softmax(numbers(6, 3, seed=2), 1)
    batch = BATCH._replace(labelled=labelled, soft=soft, soft_weight=torch.tensor(0.3, dtype=torch.float64))
    own = o.loss(LOGITS[labelled > 0], CLASSES[labelled > 0]) / 2  # half of the batch
    log = torch.log_softmax(LOGITS / 2.0, 1)
    taught = 2.0**2 * -(soft * log).sum(1).mean()
    torch.testing.assert_close(o.training_loss(identity, batch, temperature=2.0), 0.7 * own + 0.3 * taught)
    # The labels that may not be used make no difference, not even by their class weights.
    other = batch._replace(y=torch.where(labelled > 0, CLASSES, 2 - CLASSES))
    assert torch.equal(o.training_loss(identity, other, 2.0), o.training_loss(identity, batch, 2.0))
    none = batch._replace(labelled=torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(o.training_loss(identity, none, 2.0), 0.3 * taught)


def test_lessons_of_regression_are_measured_by_the_same_loss():
    o = objective("regression", 1, nn.L1Loss())
    outputs, y, soft = numbers(4, 1), numbers(4, seed=1), numbers(4, 1, seed=2)
    weight = torch.tensor(0.25, dtype=torch.float64)
    batch = Batch(outputs, y, torch.arange(4), None, None, soft, weight)
    expected = 0.75 * (outputs[:, 0] - y).abs().mean() + 0.25 * (outputs - soft).abs().mean()
    torch.testing.assert_close(o.training_loss(identity, batch), expected)


def test_class_weights_are_the_loss_modules_own():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    o = objective(loss=loss)
    loss.weight.zero_()  # the objective has a copy, in its own precision
    log = torch.log_softmax(LOGITS, 1)[range(6), CLASSES]
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[CLASSES]
    torch.testing.assert_close(o.loss(LOGITS, CLASSES), -(weights * log).sum() / weights.sum())
    torch.testing.assert_close(o.score(LOGITS, CLASSES)[1], float(o.loss(LOGITS, CLASSES)))


def test_one_output_column_is_aligned_with_the_targets():
    o = objective("regression", 1)
    outputs, y = numbers(5, 1), numbers(5, seed=1)
    squared = float((outputs[:, 0] - y).square().mean())
    assert float(o.training_loss(identity, Batch(outputs, y, torch.arange(5)))) == pytest.approx(squared)
    metric, loss = o.score(outputs, y)
    assert loss == pytest.approx(squared)
    assert metric == pytest.approx(1 - squared * 5 / float((y - y.mean()).square().sum()))


def test_metrics_by_hand():
    assert accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0, 0])) == pytest.approx(
        2 / 3
    )
    y = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    # Column 0: 1 − 2/2 = 0; column 1: 1 − 0/2 = 1.
    assert r2(torch.tensor([[2.0, 0.0], [2.0, 2.0]]), y) == pytest.approx(0.5)
    assert math.isnan(r2(torch.zeros(2), torch.ones(2)))


def test_scores_of_what_diverged_are_nan():
    bad = LOGITS.clone()
    bad[3, 1] = math.inf
    assert all(math.isnan(value) for value in objective().score(bad, CLASSES))


@pytest.mark.parametrize(
    ("metric", "kind", "expected"),
    [
        (
            torchmetrics.classification.MulticlassAccuracy(3, average="micro"),
            "classification",
            accuracy(LOGITS, CLASSES),
        ),
        (torchmetrics.classification.MulticlassF1Score(3, average="macro"), "classification", None),
        (torchmetrics.MeanAbsoluteError(), "regression", None),
        (torchmetrics.R2Score(), "regression", None),
    ],
)
def test_torchmetrics_objects(metric, kind, expected):
    resolved = resolve_metric(metric, kind)
    given = (LOGITS, CLASSES) if kind == "classification" else (numbers(6), numbers(6, seed=1))
    direct = metric.clone()
    direct.update(*given)
    expected = float(direct.compute()) if expected is None else expected
    for _ in range(2):  # no memory of earlier scores
        assert resolved.compute(*given) == pytest.approx(expected)
    assert resolved.name == type(metric).__name__
    assert resolved.higher_is_better == metric.higher_is_better
    assert resolved.oriented(0.5) == (0.5 if metric.higher_is_better else -0.5)
    assert metric.update_count == 0  # the user's own is left alone


def test_other_metrics():
    def half(outputs, targets):
        return 0.5

    named = Metric("mine", half, higher_is_better=False)
    assert resolve_metric(named, "regression") is named
    assert objective(metric=named).score(LOGITS, CLASSES)[0] == -0.5
    assert resolve_metric(half, "classification").name == "half"
    assert resolve_metric(None, "classification").accuracy
    assert resolve_metric(None, "regression").name == "r2"
    with pytest.raises(InputError, match="metric: 3 is not a metric"):
        resolve_metric(3, "classification")
    with pytest.raises(InputError, match="does not say whether higher is better"):
        resolve_metric(torchmetrics.MeanMetric(), "regression")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_cross_entropy_is_torchs_in_fewer_operations(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    outputs = 30 * torch.randn(7, 4, dtype=dtype, generator=draws)
    targets = torch.tensor([0, 1, 2, 3, 3, 3, 0])
    objective = make_objective("classification", 4, nn.CrossEntropyLoss(), None, torch.device("cpu"), dtype)
    assert type(objective.loss) is ClassCrossEntropy
    assert type(objective.score_loss) is nn.CrossEntropyLoss
    ours, theirs = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    values = objective.loss(ours, targets), nn.CrossEntropyLoss()(theirs, targets)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v, x in zip(values, (ours, theirs), strict=True)))
    probabilities = torch.softmax(outputs.flip(0), 1)
    torch.testing.assert_close(objective.loss(outputs, probabilities), nn.CrossEntropyLoss()(outputs, probabilities))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.ones(4)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=2),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
)
def test_another_cross_entropy_is_left_as_it_is(loss: nn.Module) -> None:
    objective = make_objective("classification", 4, loss, None, torch.device("cpu"), torch.float32)
    assert type(objective.loss) is nn.CrossEntropyLoss


COUNTS = torch.tensor([1.0, 3.0, 2.0, 1.0, 2.0, 4.0], dtype=torch.float64)
TWICE = torch.repeat_interleave(torch.arange(6), COUNTS.long())
"""Rows 0 … 5, as often as they count."""


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("loss", [None, WEIGHTED, custom])
@pytest.mark.parametrize("soft_weight", [None, torch.tensor(0.3), torch.linspace(0, 1, 6)])
@pytest.mark.parametrize("labelled", [None, torch.tensor([1.0, 1, 0, 1, 0.5, 0])])
def test_a_weight_is_how_often_a_row_stands_in_the_batch(kind, loss, soft_weight, labelled):
    if kind == "regression":
        loss = {None: None, WEIGHTED: StandardisedMSE(torch.tensor([2.0, 0.5]))}.get(loss, nn.L1Loss())
        o, y, x, classes = objective(kind, 2, loss), numbers(6, 2, seed=4), numbers(6, 2), None
    else:
        o, y, x, classes = objective(loss=loss), CLASSES, LOGITS, 3
    labelled = None if soft_weight is None or labelled is None else labelled.double()
    given = None if soft_weight is None else soft_weight.double()
    soft = None if given is None else torch.softmax(numbers(*x.shape, seed=2), 1)
    batch = Batch(x, y, torch.arange(6), classes, labelled, soft, given)

    def repeated(part):
        return part[TWICE] if isinstance(part, torch.Tensor) and part.ndim else part

    expected = o.training_loss(identity, Batch(*map(repeated, batch)), 2.0)
    torch.testing.assert_close(o.training_loss(identity, batch._replace(weight=COUNTS), 2.0), expected)
    scaled = batch._replace(weight=5.0 * COUNTS)
    torch.testing.assert_close(o.training_loss(identity, scaled, 2.0), expected)
    # One that counts for nothing is as good as absent.
    few = batch._replace(weight=torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    without = Batch(*(part[:3] if isinstance(part, torch.Tensor) and part.ndim else part for part in batch))
    torch.testing.assert_close(o.training_loss(identity, few, 2.0), o.training_loss(identity, without, 2.0))


@pytest.mark.parametrize("loss", [None, WEIGHTED, custom])
def test_weights_go_with_probabilities_too(loss):
    o, soft = objective(loss=loss).of_probabilities(), torch.softmax(numbers(6, 3, seed=1), 1)
    batch = BATCH._replace(y=soft)
    repeated = batch._replace(x=LOGITS[TWICE], y=soft[TWICE], row=TWICE)
    expected = o.training_loss(identity, repeated)
    torch.testing.assert_close(o.training_loss(identity, batch._replace(weight=COUNTS)), expected)


@pytest.mark.parametrize("loss", [WEIGHTED, custom, nn.MultiMarginLoss(), nn.NLLLoss(WEIGHTED.weight)])
def test_row_losses_are_expected_under_probabilities(loss):
    given, soft = objective(loss=loss), torch.softmax(numbers(6, 3, seed=1), 1)
    by_class = torch.stack([given.row_losses(LOGITS, torch.full((6,), c)) for c in range(3)], 1)
    o = given.of_probabilities()
    for each in (o, o.of_probabilities(), o.on(CPU, torch.float64)):
        torch.testing.assert_close(each.row_losses(LOGITS, soft), (soft * by_class).sum(1))
        torch.testing.assert_close(each.loss(LOGITS, soft), o.loss(LOGITS, soft))


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("loss", [None, WEIGHTED])
def test_scores_count_rows_by_their_weights(kind, loss):
    if kind == "regression":
        o, y, x = objective(kind, 2), numbers(6, 2, seed=4), numbers(6, 2)
    else:
        o, y, x = objective(loss=loss), CLASSES, LOGITS
    assert o.score(x, y, COUNTS) == pytest.approx(o.score(x[TWICE], y[TWICE]))
    assert o.score(x, y, COUNTS) != pytest.approx(o.score(x, y))
    plain = objective(kind, o.outputs, metric=lambda outputs, targets: float(len(targets)))
    assert plain.score(x, y, COUNTS)[0] == 6.0  # it knows of no weights


def test_r2_of_equal_targets_may_count_as_nothing():
    y = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    assert finite_r2(torch.zeros(2), torch.ones(2)) == 0.0
    assert finite_r2(y, y) == pytest.approx(0.5)
    assert finite_r2(y[:, 1], y[:, 1]) == r2(y[:, 1], y[:, 1]) == 1.0


@pytest.mark.parametrize("weights", [None, torch.linspace(0.5, 2.0, 7, dtype=torch.float64)])
def test_r2_of_equal_values_whose_mean_is_not_exact(weights):
    y = torch.full((7, 2), 0.1, dtype=torch.float64)
    y[:, 1] = 1e-3 / 3
    assert math.isnan(r2(numbers(7, 2), y, weights))
    assert finite_r2(numbers(7, 2), y, weights) == 0.0
    assert finite_r2(numbers(7), y[:, 0], weights) == 0.0
    y[:, 0] = torch.arange(7)
    assert finite_r2(y, y, weights) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [[7, 7, 7], [300, 299, 1, 513], []])
def test_scores_of_several_tasks_are_those_of_each(rows, dtype):
    generator = torch.Generator().manual_seed(len(rows))
    outputs = [torch.randn(count, 10, generator=generator, dtype=dtype) for count in rows]
    targets = [torch.randint(10, (count,), generator=generator) for count in rows]
    weights = [torch.rand(count, generator=generator, dtype=torch.float64) + 0.1 for count in rows]
    for loss in (None, nn.CrossEntropyLoss(label_smoothing=0.1)):
        lower = Metric("accuracy", accuracy, higher_is_better=False)
        for metric in (None, lower, lambda outputs, y: float((outputs.argmax(1) != y).sum())):
            objective = make_objective("classification", 10, loss, metric, CPU, dtype)
            for counts in (None, weights):
                given = zip(outputs, targets, counts or [None] * len(rows), strict=True)
                assert str(objective.scores(outputs, targets, counts)) == str([objective.score(*one) for one in given])


@pytest.mark.parametrize("classes", [2, 3, 10, 15, 16, 40])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e37])
def test_scores_of_few_and_many_classes_are_torchs(classes, scale):
    generator = torch.Generator().manual_seed(classes)
    outputs = [scale * torch.randn(count, classes, generator=generator) for count in (300, 200)]  # the sum may overflow
    targets = [torch.randint(classes, (len(own),), generator=generator) for own in outputs]
    objective = make_objective("classification", classes, None, None, CPU, torch.float32)
    for (share, loss), own, y in zip(objective.scores(outputs, targets), outputs, targets, strict=True):
        assert share == float((own.argmax(1) == y).double().mean())
        torch.testing.assert_close(torch.tensor(loss), F.cross_entropy(own, y))


def test_the_first_of_equal_classes_counts():
    assert accuracy(torch.ones(3, 4), torch.tensor([0, 1, 0])) == 2 / 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_tasks_scores_are_nan_and_not_the_others(bad):
    outputs, targets = [torch.eye(3), torch.eye(3)], [torch.arange(3)] * 2
    objective = make_objective("classification", 3, None, None, CPU, torch.float32)
    expected = objective.score(outputs[0], targets[0])
    outputs[1][1, 1] = bad
    first, second = objective.scores(outputs, targets)
    assert first == expected
    assert all(map(math.isnan, second))
