import copy
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from kinfold.errors import InputError
from kinfold.methods.model import forward
from kinfold.random import seeded_everywhere
from kinfold.tasks.state import Some, build_starts, export_module, materialise, stack_models

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two layers of one weight, a frozen scale, batch norm and a buffer that the forward pass replaces."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.rand(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls = self.calls + 1
        return self.scale * self.norm(self.two(self.one(x)))


def x(rows=6, columns=3):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stacked(tasks=3, shared=False, model=Tied):
    return stack_models(build_starts(model, tasks, shared, seed=0), tasks, CPU, torch.float64)


def row(part, t):
    return {name: value[t] for name, value in part.items()}


def test_starts_are_keyed_by_seed_task_and_generation():
    def weights(**changes):
        starts = build_starts(**{"model": Tied, "tasks": 3, "shared": False, "seed": 0, **changes})
        return [start.one.weight.detach() for start in starts]

    first = weights()
    assert len({tuple(w.flatten().tolist()) for w in first}) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, weights(tasks=5)[:3], strict=True))
    assert not torch.equal(first[0], weights(seed=1)[0])
    assert not torch.equal(first[0], weights(generation=1)[0])
    assert all(torch.equal(first[0], w) for w in weights(shared=True))


def test_factories_may_draw_from_any_generator():
    """Wherever a start is built it is the same, and what is drawn after it too."""

    def factory():
        model = nn.Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(np.random.rand(2, 2)))  # noqa: NPY002
            model.bias.fill_(random.random())
        return model

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    (one,) = build_starts(factory, 1, True, seed=0)
    assert (before == np.random.get_state()[1]).all()  # noqa: NPY002
    with seeded_everywhere("elsewhere"):
        (other,) = build_starts(factory, 1, True, seed=0)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_a_module_is_everyones_start_and_is_left_alone():
    with torch.random.fork_rng():
        model = Tied()
    stack = stack_models(build_starts(model, 2, False, seed=0), 2, CPU, torch.float64)
    stack.params["one.weight"].zero_()
    assert model.one.weight.abs().sum() > 0
    assert model.one.weight.dtype == torch.float32


@pytest.mark.parametrize("shared", [False, True])
def test_names_and_shapes(shared):
    stack = stacked(shared=shared)
    assert stack.tasks == 3
    # A tied parameter stands once; a frozen one is common, unless the tasks started apart.
    assert set(stack.params) == {"one.weight", "one.bias", "two.bias", "norm.weight", "norm.bias"}
    assert set(stack.frozen) == ({"scale"} if shared else set())
    counted = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "calls"}
    assert set(stack.buffers) == (counted if shared else counted | {"scale"})
    assert stack.buffers["norm.num_batches_tracked"].dtype == torch.int64
    for part in (stack.params, stack.frozen, stack.buffers):
        for value in part.values():
            assert value.shape[0] == 3
            assert not value.requires_grad
    if shared:
        assert all(torch.equal(value[0], value[2]) for value in stack.params.values())
        stack.params["one.weight"][0] += 1  # and yet each has its own memory
        assert not torch.equal(stack.params["one.weight"][0], stack.params["one.weight"][1])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_forward_is_the_modules_own_and_changes_nothing_handed_in(shared, training):
    stack = stacked(shared=shared)
    stack.module.train(training)
    for t in range(3):
        alone = export_module(stack, t).train(training)
        parts = [row(part, t) for part in (stack.params, stack.frozen, stack.buffers)]
        kept = copy.deepcopy(parts)
        output, buffers = forward(stack.module, *parts, x())
        torch.testing.assert_close(output, alone(x()), rtol=0, atol=0)
        for name, value in alone.named_buffers():
            torch.testing.assert_close(buffers[name], value, rtol=0, atol=0)
        for part, before in zip(parts, kept, strict=True):
            assert all(torch.equal(part[name], before[name]) for name in before)
        assert float(buffers["calls"]) == 1  # replaced by the module, not written into


def test_forward_under_vmap_counts_batches_for_each_task():
    stack = stacked()
    stack.module.train()
    parts = (stack.params, stack.frozen, stack.buffers)
    rows = x()
    outputs, buffers = torch.vmap(lambda p, f, b: forward(stack.module, p, f, b, rows))(*parts)
    for t in range(3):
        alone = export_module(stack, t).train()
        torch.testing.assert_close(outputs[t], alone(rows), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffers["norm.running_var"][t], alone.norm.running_var, rtol=1e-12, atol=1e-12)
    assert buffers["norm.num_batches_tracked"].tolist() == [1, 1, 1]
    assert buffers["calls"].tolist() == [1, 1, 1]


def test_tied_parameters_get_the_gradient_of_both_uses():
    stack = stacked()
    own = {name: value[1].clone().requires_grad_() for name, value in stack.params.items()}
    output, _ = forward(stack.module, own, row(stack.frozen, 1), row(stack.buffers, 1), x())
    (mine,) = torch.autograd.grad(output.square().sum(), own["one.weight"])
    alone = export_module(stack, 1).train()
    (theirs,) = torch.autograd.grad(alone(x()).square().sum(), alone.one.weight)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_an_exported_module_is_on_its_own(shared):
    stack = stacked(shared=shared)
    stack.module.train()
    for name, value in stack.params.items():
        value.copy_(torch.arange(3.0).view(-1, *[1] * (value.ndim - 1)).expand_as(value) + len(name))
    module = export_module(stack, 2)
    assert not module.training
    assert not module.norm.training
    assert module.one.weight is module.two.weight
    assert not module.scale.requires_grad
    assert module.one.weight.requires_grad
    for name, value in {**stack.params, **stack.frozen, **stack.buffers}.items():
        assert torch.equal(dict([*module.named_parameters(), *module.named_buffers()])[name], value[2])
    module.one.weight.data.zero_()
    assert stack.params["one.weight"][2].abs().sum() > 0
    assert stack.module.training


def test_take_put_and_clone():
    stack = stacked()
    view = nn.Parameter(stack.params["one.bias"][2])
    copied, taken = stack.clone(), stack.take(torch.tensor([0, 1]))
    assert taken.tasks == 2
    stack.put(torch.tensor([2, 0]), taken)
    assert torch.equal(stack.params["one.bias"][2], copied.params["one.bias"][0])
    assert torch.equal(stack.buffers["scale"][0], copied.buffers["scale"][1])
    assert torch.equal(view, stack.params["one.bias"][2])  # a row view still shares the memory
    assert not torch.equal(copied.params["one.bias"][2], stack.params["one.bias"][2])


def test_a_frozen_part_that_the_user_keeps_is_not_the_stacks():
    backbone = nn.utils.skip_init(nn.Linear, 2, 2).requires_grad_(False)
    backbone.weight.zero_()
    backbone.bias.zero_()
    starts = list(build_starts(lambda: nn.Sequential(backbone, nn.Linear(2, 2)), 3, True, seed=0))
    stack = stack_models(starts, 3, CPU, torch.float32)
    assert stack_models(starts, 3, CPU, torch.float64).frozen["0.weight"].dtype == torch.float64
    backbone.weight.add_(1)
    assert torch.equal(stack.frozen["0.weight"], torch.zeros(3, 2, 2))


@pytest.mark.parametrize(
    ("dtype", "complex_dtype"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)]
)
def test_complex_numbers_stay_complex(dtype, complex_dtype):
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.tensor([1j, 2.0]))
            self.register_buffer("phase", torch.tensor([1j]))

    stack = stack_models(build_starts(Turns, 2, False, seed=0), 2, CPU, dtype)
    for value in (stack.params["by"], stack.buffers["phase"], stack.module.by, stack.module.phase):
        assert value.dtype == complex_dtype
    assert torch.equal(stack.params["by"].imag, torch.tensor([[1.0, 0.0]] * 2, dtype=dtype))


def test_lazy_layers_are_sized_alike_whatever_comes_first():
    def lazy():
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout(), nn.Linear(4, 2))

    def weight(shared=False):
        starts = list(build_starts(lazy, 3, shared, seed=0))
        for t, start in enumerate(starts):
            materialise(start, torch.zeros(2, 5), seed=0, task=0 if shared else t)
        return stack_models(starts, 3, CPU, torch.float32).params["0.weight"]

    apart, same = weight(), weight(shared=True)
    assert apart.shape == (3, 4, 5)
    assert not torch.equal(apart[0], apart[1])
    assert torch.equal(weight(), apart)
    assert torch.equal(same[0], same[2])
    assert torch.equal(same[0], apart[0])


def test_starts_are_let_go_of_one_by_one():
    alive, most = weakref.WeakSet(), 0

    def factory():
        nonlocal most
        model = Tied()
        alive.add(model)
        most = max(most, len(alive))
        return model

    stack = stack_models(build_starts(factory, 9, False, seed=0), 9, CPU, torch.float32)
    assert stack.tasks == 9
    assert most == 3  # the first, by which the others are judged; the one before; and the one that was made


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_not_trained_is_one_copy_unless_it_was_drawn_apart(apart):
    def factory():
        return nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 2))

    one = stack_models(build_starts(factory, 3, True, seed=0), 3, CPU, torch.float64, apart)
    several = stack_models(build_starts(factory, 3, False, seed=0), 3, CPU, torch.float64, apart)
    assert set(several.buffers) == {"0.weight", "0.bias"} == set(one.buffers if apart else one.frozen)
    assert len({tuple(value.flatten().tolist()) for value in several.buffers["0.weight"]}) == 3
    fixed = {**one.frozen, **one.buffers}["0.weight"]
    assert torch.equal(fixed, several.buffers["0.weight"][:1].expand(3, 2, 3))
    assert (fixed.stride(0) == 0) is not apart


def test_what_cannot_be_stacked():
    def fails():
        raise RuntimeError("two\nlines")

    widths = iter([2, 3])
    cases = [
        (fails, "model: the factory failed (RuntimeError: two lines)"),
        (lambda: 3, "the factory returned int"),
        (lambda: nn.Linear(2, next(widths)), "differ in structure"),
        (nn.ReLU, "no trainable parameters"),
    ]
    for model, message in cases:
        with pytest.raises(InputError) as error:
            stack_models(build_starts(model, 2, False, seed=0), 2, CPU, torch.float32)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    (start,) = build_starts(lambda: nn.Sequential(nn.LazyLinear(2), nn.Linear(3, 1)), 1, False, seed=0)
    with pytest.raises(InputError, match="sizes its lazy layers failed"):
        materialise(start, torch.zeros(2, 4), seed=0)


@pytest.mark.parametrize("tasks", [[0, 1, 2], [1, 2], [2], [0, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_numbers_are_added_as_one_after_another(tasks, dtype):
    some = Some(tasks, stacked())
    numbers = torch.randn(50, len(tasks), dtype=dtype, generator=torch.Generator().manual_seed(2)).exp()
    one, other = (torch.full((3,), 0.1, dtype=torch.float64) for _ in range(2))
    for number in numbers:
        some.add(one, number)
    some.add_each(other, numbers.squeeze(1).unbind(0))
    assert torch.equal(one, other)
    some.add_each(other, [])
    assert torch.equal(one, other)
