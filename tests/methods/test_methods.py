"""What every method must do, by itself."""

import pytest
import torch
from torch import nn

from kinfold import random
from kinfold.engines.lift import looped, stacked
from kinfold.errors import InputError
from kinfold.methods import METHODS, Batch, Context, Method
from kinfold.methods.base import STAGES, Model, ValueAndGrad, overrides, probabilities
from kinfold.methods.chain import Chain, Network, check_state
from kinfold.methods.gradients import by_autograd
from kinfold.methods.model import forward

MODULE = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
NETWORK = Network(MODULE, lambda *given: forward(MODULE, *given))


@pytest.fixture(params=sorted(METHODS))
def method(request, make):
    return make(request.param)


def inner(model, batch):
    share = 1.0 if batch.labelled is None else batch.labelled
    logits = torch.log_softmax(model(batch.x), 1)
    loss = -(share * (probabilities(batch, logits.dtype) * logits).sum(1)).mean()
    return loss if batch.soft is None else loss - (batch.soft * logits).mean()


def rows_of(T):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, 6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (T, 6), generator=generator)
    soft = torch.softmax(torch.randn(T, 6, 3, generator=generator, dtype=torch.float64), 2)
    labelled = (torch.rand(T, 6, generator=generator) < 0.7).double()
    return x, y, soft, labelled


def states_of(method, params, x, y):
    """Each task's state at the start, stacked."""
    T, states = len(x), []
    for t in range(T):
        own = {name: value[t] for name, value in params.items()}
        model = Model.of(MODULE).with_params(own)

        def read(rows, t=t):
            return Batch(x[t][rows], y[t][rows], rows, 3)

        context = Context(model, torch.arange(6), 6, read, inner, 3, 2, 1, 6, random.key("start", t))
        states.append(check_state(method, method.start(own, context)))
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def step(method, differentiate):
    """One task's step by hand, with every stage that knows tensors only: → a tree of tensors."""
    chain = Chain([method])

    def of_one(params, state, x, y, soft, labelled, key):
        batch = Batch(x, y, torch.arange(len(y)), 3, labelled, soft, torch.tensor(0.5, dtype=x.dtype))
        value, grads, passed = chain.value_and_grad(NETWORK, inner, differentiate, params, {}, {}, batch, [state], key)
        state = state | {name.removeprefix("/0/"): new for name, new in passed.items()}
        grads, state = method.before_step(params, grads, state)
        after = {name: value - 0.1 * grads[name] for name, value in params.items()}
        after, state = method.update(params, after, state)
        after, state = method.after_step(after, state)
        after, state = method.period_end(after, state, torch.zeros(2, dtype=x.dtype))
        after, state = method.after_transfer(after, state)
        scored = chain.evaluation(after, [state])
        return value, grads, after, method.export(scored, state), state

    return of_one


def by_func(loss, at):
    grads, (value, passed) = torch.func.grad_and_value(loss, has_aux=True)(at)
    return value, grads, passed


def test_loop_and_stack_agree(method):
    x, y, soft, labelled = rows_of(3)
    params = {
        name: torch.stack([value.detach() * (1 + t) for t in range(3)]) for name, value in MODULE.named_parameters()
    }
    keys = torch.stack([random.key("task", t) for t in range(3)])
    state = states_of(method, params, x, y)
    args = (params, state, x, y, soft, labelled, keys)
    one, other = looped(step(method, by_autograd))(*args), stacked(step(method, by_func))(*args)
    # A first step of Adam's magnifies the rounding of a gradient that cancels by its rate over 1e-8, so by 1e5.
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_nothing_that_is_given_is_changed_in_place(method):
    x, y, soft, labelled = (part[0] for part in rows_of(1))
    params = {name: value.detach() for name, value in MODULE.named_parameters()}
    state = {
        name: value[0]
        for name, value in states_of(method, {n: v[None] for n, v in params.items()}, x[None], y[None]).items()
    }
    given = (params, state, x, y, soft, labelled)
    before = [part.clone() for part in torch.utils._pytree.tree_leaves(given)]
    first = step(method, by_autograd)(*given, random.key("task", 0))
    assert all(map(torch.equal, before, torch.utils._pytree.tree_leaves(given)))
    torch.testing.assert_close(first, step(method, by_autograd)(*given, random.key("task", 0)), rtol=0, atol=0)


def test_engines_skip_what_a_method_does_not_do(method):
    assert any(overrides(method, stage) for stage in STAGES)
    assert not any(overrides(Method(), stage) for stage in STAGES)


def test_the_default_stages_do_nothing(context):
    method, params, key = Method(), {"w": torch.ones(2)}, random.key(0)
    order, score = torch.arange(3), torch.zeros(2)
    batch = Batch(torch.ones(1, 2), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    module = MODULE
    assert method.start(params, context) == {}
    assert method.draw(order, {}, key) is order
    assert method.rate({}) == 1
    assert method.batch(batch, {}, key) is batch
    assert method.weights(params, {}) is params
    assert method.backward_weights(params, {}) == {}
    assert method.loss(lambda model, batch: torch.tensor(2.0), Model.of(module), batch, {}, key) == 2
    plain = ValueAndGrad(lambda at: (at["w"].sum(), {}), by_autograd, module)
    assert method.gradients(plain, params, {}, key)[0] == 2
    assert method.before_step(params, params, {}) == (params, {})
    assert method.update(params, params, {}) == (params, {})
    assert method.after_step(params, {}) == (params, {})
    assert method.evaluation(params, {}) is params
    assert method.row_losses(order, torch.zeros(3), {}) == {}
    assert method.period_end(params, {}, score) == (params, {})
    assert method.after_transfer(params, {}) == (params, {})
    assert method.export(params, {}) is params
    assert method.rebuild(module, {}) is module


def test_the_pseudocode_and_the_guide_have_every_stage():
    import kinfold.methods.base as base

    for stage in STAGES:
        assert stage.upper() in (base.__doc__ or ""), stage


class Conflicting(Method):
    conflicts = frozenset({"Mixup"})


class LooksBack(Method):
    def backward_weights(self, params, state):
        return {}


def test_methods_that_do_not_go_together():
    for pair in ([METHODS["mixup"](), Conflicting()], [Conflicting(), METHODS["mixup"]()]):
        with pytest.raises(InputError, match="Mixup.*do not go together"):
            Chain(pair)
    with pytest.raises(InputError, match="both choose the weights of the backward pass"):
        Chain([LooksBack(), LooksBack()])
    Chain([Conflicting(), Conflicting(), METHODS["sam"]()])


def test_trainable_state_needs_a_place_for_its_gradient():
    with pytest.raises(InputError, match="needs 'grad/a' of the same shape"):
        check_state(Method(), {"train/a": torch.zeros(2), "grad/a": torch.zeros(3)})


def test_start_may_read_its_own_rows_only(context):
    assert torch.equal(context.batch(torch.tensor([2, 0])).y, torch.tensor([2, 0]))
    assert [len(batch.y) for batch in context.batches(3)] == [3, 1]
    with pytest.raises(InputError, match="rows that its task does not train on"):
        context.batch(torch.tensor([0, 4]))
