"""What every method must do."""

import pytest
import torch

from kinfold import random
from kinfold.engines.lift import looped, stacked
from kinfold.methods import METHODS, Batch, Method
from kinfold.methods.base import overrides, probabilities

STAGES = (
    "start",
    "draw",
    "batch",
    "loss",
    "gradients",
    "before_step",
    "after_step",
    "evaluation",
    "period_end",
    "export",
)


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return METHODS[request.param]()


def step(method):
    """One task's step by hand, with every stage that knows tensors only: → a tree of tensors."""

    def of_one(params, x, y, soft, labelled, key):
        state = method.start(params)
        batch = Batch(x, y, torch.arange(len(y)), 3, labelled, soft, torch.tensor(0.5, dtype=x.dtype))
        batch = method.batch(batch, state, random.fold_in(key, 0))

        def model(rows):
            return rows.flatten(1) @ params["weight"]

        def inner(model, batch):
            share = 1.0 if batch.labelled is None else batch.labelled
            logits = torch.log_softmax(model(batch.x), 1)
            return -(share * (probabilities(batch, x.dtype) * logits).sum(1)).mean() - (batch.soft * logits).mean()

        loss = method.loss(inner, model, batch, state, random.fold_in(key, 1))
        value, grads = method.gradients(lambda p: (loss, p), params, state, key)
        grads, state = method.before_step(params, grads, state)
        after, state = method.after_step(params, state)
        after, state = method.period_end(method.evaluation(after, state), state, torch.zeros(2, dtype=x.dtype))
        return batch.x, batch.y, batch.soft, value, grads, method.export(after, state), state

    return of_one


def test_loop_and_stack_agree(method):
    T, generator = 3, torch.Generator().manual_seed(0)
    x = torch.randn(T, 6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (T, 6), generator=generator)
    soft = torch.softmax(torch.randn(T, 6, 3, generator=generator, dtype=torch.float64), 2)
    labelled = (torch.rand(T, 6, generator=generator) < 0.7).double()
    params = {"weight": torch.randn(T, 16, 3, generator=generator, dtype=torch.float64)}
    keys = torch.stack([random.key("task", t) for t in range(T)])
    args = (params, x, y, soft, labelled, keys)
    torch.testing.assert_close(looped(step(method))(*args), stacked(step(method))(*args), rtol=1e-12, atol=1e-12)


def test_a_method_changes_something_and_only_what_it_is_given(method, images):
    before = images._replace(x=images.x.clone(), y=images.y.clone())
    changed = method.batch(images, method.start({}), random.key(1))
    assert torch.equal(images.x, before.x)
    assert torch.equal(images.y, before.y)
    assert changed.y.shape[0] == 5
    assert changed.x.shape == images.x.shape
    assert changed.x.dtype == images.x.dtype
    assert changed.y.shape != images.y.shape or not torch.equal(changed.x, images.x)
    again = method.batch(images, method.start({}), random.key(1))
    assert torch.equal(again.x, changed.x)
    assert torch.equal(again.y, changed.y)


def test_engines_skip_what_a_method_does_not_do(method):
    assert overrides(method, "batch")
    assert not any(overrides(Method(), stage) for stage in STAGES)


def test_the_default_stages_do_nothing():
    method, params, key = Method(), {"w": torch.ones(2)}, random.key(0)
    order, score = torch.arange(3), torch.zeros(2)
    batch = Batch(torch.ones(1, 2), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert method.start(params) == {}
    assert method.draw(order, {}, key) is order
    assert method.batch(batch, {}, key) is batch
    assert method.loss(lambda model, batch: torch.tensor(2.0), lambda x: x, batch, {}, key) == 2
    assert method.gradients(lambda p: (score[0], p), params, {}, key)[1] is params
    assert method.before_step(params, params, {}) == (params, {})
    assert method.after_step(params, {}) == (params, {})
    assert method.evaluation(params, {}) is params
    assert method.period_end(params, {}, score) == (params, {})
    assert method.export(params, {}) is params
