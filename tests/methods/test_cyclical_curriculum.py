import itertools

import pytest
import torch
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import CyclicalCurriculum, Trainer
from kinfold.methods.cyclical_curriculum import periods_worth, shares, weighted_sample

PARAMS = {"w": torch.zeros(2, dtype=torch.float64)}
SCORE = torch.zeros(2, dtype=torch.float64)


def reference(low, high, alpha, epochs):
    """The authors' loop, until as many rows are visited as in so many epochs."""
    sizes, n, t = [low], low, 0
    while sum(sizes) < epochs:
        n = min(n / alpha, high) if n == low or (sizes[t - 1] < sizes[t] and n != high) else max(n * alpha, low)
        sizes.append(n)
        t += 1
    return sizes


@pytest.mark.parametrize("given", [(0.25, 1.0, 0.5), (0.25, 1.0, 0.25), (0.3, 0.9, 0.7), (0.1, 1.0, 0.45)])
def test_shares_are_the_authors(given):
    expected = reference(*given, 20)
    assert list(itertools.islice(shares(*given), len(expected))) == pytest.approx(expected)
    assert periods_worth(20, *given) == len(expected)
    assert list(itertools.islice(shares(0.5, 0.5, 0.5), 3)) == [0.5] * 3


def test_rows_are_drawn_as_one_after_another():
    """Which pair of four comes is distributed as in drawing without replacement by p."""
    weight, counts = torch.tensor([4.0, 3.0, 2.0, 1.0]), {}
    for i in range(3000):
        pair = tuple(weighted_sample(weight, 2, random.uniform(random.key("pair", i), (4,), torch.float64)).tolist())
        counts[pair] = counts.get(pair, 0) + 1
    p = weight / weight.sum()
    for a, b in itertools.combinations(range(4), 2):
        expected = float(p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]))
        assert counts[a, b] / 3000 == pytest.approx(expected, abs=5 * (expected / 3000) ** 0.5), (a, b)


def test_a_draw_follows_the_cycle_and_prefers_easy_rows(context):
    difficulty = torch.tensor([1.0, 1e-6, 1e6, 1e-6])
    method = CyclicalCurriculum(0.5, 1.0, 0.5, difficulty)
    state, order = method.start(PARAMS, context), torch.tensor([2, 0, 3, 1])
    drawn = []
    for period in range(3):
        drawn.append(method.draw(order, state, random.key(period)).tolist())
        _, state = method.period_end(PARAMS, state, SCORE)
    assert drawn == [[3, 1], [2, 0, 3, 1], [3, 1]]  # in the order that was given
    assert method.row_losses(order, torch.ones(4), state) is state


def test_a_rows_luck_does_not_depend_on_its_place(context):
    method = CyclicalCurriculum(0.5)
    state, key = method.start(PARAMS, context), random.key("luck")
    one, other = (method.draw(order, state, key) for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])))
    assert sorted(one.tolist()) == sorted(other.tolist())


def test_difficulty_by_its_own_losses(context):
    method = CyclicalCurriculum(0.5)
    state = method.row_losses(torch.tensor([0, 3]), torch.tensor([0.0, 2.0]), method.start(PARAMS, context))
    assert state["own/difficulty"].tolist() == [torch.finfo(torch.float64).eps, 1.0, 1.0, 2.0]
    bad = method.row_losses(torch.tensor([1]), torch.tensor([float("nan")]), state)
    assert bad["own/difficulty"][1] > 1e15  # so that it is drawn last
    assert method.draw(torch.tensor([1, 2]), bad, random.key(0)).tolist() == [2]


def test_in_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.arange(40) % 2
    module = torch.nn.utils.skip_init(nn.Linear, 3, 2)
    for p in module.parameters():
        nn.init.ones_(p)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.1), [CyclicalCurriculum()], x, y, batch_size=5)
    steps = []
    for _ in range(4):
        steps.append(len([trainer.step(rows) for rows in trainer.batches()]))
        trainer.end_period(0.5, 1.0)
    assert steps == [2, 4, 8, 4]
    assert trainer.states[0]["own/difficulty"].unique().numel() > 30


def hinge(outputs, targets):
    return (1 + outputs - outputs.gather(1, targets[:, None])).relu().mean()


@pytest.mark.parametrize("loss", [hinge, nn.NLLLoss()], ids=["function", "module"])
def test_a_student_of_probabilities_has_a_loss_that_takes_classes_alone(loss):
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    options = {"tasks": 2, "epochs": 2, "batch_size": 16, "holdout": 0, "engine": "sequential", "transfer": "distil"}

    def network():
        return nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))

    result = kinfold.fit(network, (x, y), methods=[CyclicalCurriculum()], loss=loss, **options)
    assert all(bool(value.isfinite().all()) for value in result.model.parameters())


def test_misuse(context):
    for given in ((0.0, 1.0, 0.5), (0.5, 0.4, 0.5), (0.5, 1.1, 0.5), (0.5, 1.0, 1.0)):
        with pytest.raises(InputError, match="cyclical_curriculum: "):
            CyclicalCurriculum(*given)
    with pytest.raises(InputError, match="not above 0"):
        CyclicalCurriculum(difficulty=torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="has 3 rows, and the data has 4"):
        CyclicalCurriculum(difficulty=torch.ones(3)).start(PARAMS, context)
