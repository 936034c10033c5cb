import numpy as np
import pytest
import torch
from torch import nn

from kinfold.errors import InputError
from kinfold.methods import AccelAT, Trainer

PARAMS = {"w": torch.zeros(2, dtype=torch.float64)}


def reference(scores, k, threshold, window, quiet, floor):
    """As the authors' callback does it, list by list; a slice that begins before the list is the whole list."""
    seen, means, factor, since, factors = [], [], 1.0, quiet, []
    for score in scores:
        seen.append(score)
        mean = np.mean(seen[max(0, len(seen) - window) :])
        since += 1
        if len(means) > window and since > quiet and mean - means[-1] < threshold:
            factor, since = factor * k, 1
        factor = max(factor, floor)
        means.append(mean)
        factors.append(factor)
    return factors


@pytest.mark.parametrize(("window", "quiet", "floor"), [(5, 5, 0.001), (2, 0, 0.3), (3, 1, 0.5), (1, 4, 0.001)])
def test_against_the_authors_rule(context, window, quiet, floor):
    draws = np.random.default_rng(window)
    scores = np.concatenate([1 - np.exp(-np.arange(25) / 5), np.full(15, 1.0)]) + 0.02 * draws.normal(size=40)
    method = AccelAT(0.7, 0.01, window, quiet, floor)
    state, factors = method.start(PARAMS, context), []
    for score in scores:
        params, state = method.period_end(PARAMS, state, torch.tensor([score, 0.0], dtype=torch.float64))
        assert params is PARAMS
        factors.append(float(method.rate(state)))
    expected = reference(scores, 0.7, 0.01, window, quiet, floor)
    assert factors == pytest.approx(expected)
    assert min(factors) < 1


def test_a_plain_loop_steps_by_it():
    module = torch.nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    nn.init.zeros_(module.weight)
    method = AccelAT(k=0.5, window=1, quiet=0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    trainer = Trainer(module, optimizer, [method], torch.ones(2, 1), torch.ones(2, 1))
    moved = []
    for _ in range(4):
        before = module.weight.item()
        loss = trainer.step(torch.arange(2))
        moved.append((module.weight.item() - before) / float(loss) ** 0.5)
        trainer.end_period(0.5, float(loss))
    assert moved == pytest.approx([0.2, 0.2, 0.2, 0.1])
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "arguments", [{"k": 0.0}, {"k": 1.5}, {"floor": 0.0}, {"window": 0}, {"quiet": -1}, {"threshold": float("nan")}]
)
def test_misuse(arguments):
    with pytest.raises(InputError, match=f"accelat: {next(iter(arguments))} is"):
        AccelAT(**arguments)
