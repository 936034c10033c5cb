"""Max pooling by rows, against torch's."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold.engines.pooling import max_pool, max_pool_backward
from kinfold.engines.simplify import simplify

aten = torch.ops.aten


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-1e300, -1.0, 0.0, 0.5, 2.0, 1e300]), min_size=16, max_size=16))
def test_values_and_gradients_are_torchs_among_equals_too(numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float64).view(2, 1, 2, 4)
    grad = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]], dtype=torch.float64)
    values, indices = aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
    expected = aten.max_pool2d_with_indices_backward(grad, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    maxima, pairs = max_pool(x)
    assert torch.equal(maxima, values)
    assert torch.equal(max_pool_backward(grad, x, pairs), expected)


@pytest.mark.parametrize(
    ("shape", "options", "replaced"),
    [
        ((3, 2, 6, 4), {}, True),
        ((3, 2, 6, 4), {"stride": 2, "padding": 0}, True),
        ((3, 2, 7, 4), {}, False),
        ((3, 2, 6, 4), {"padding": 1}, False),
        ((3, 2, 6, 4), {"stride": 1}, False),
        ((3, 2, 8, 8), {"dilation": 2}, False),
    ],
)
def test_pooling_is_replaced_where_it_is_the_same(shape: tuple[int, ...], options: dict, replaced: bool) -> None:
    def pooled(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        y = torch.nn.functional.max_pool2d(x.relu(), 2, **options)
        return [y, *torch.autograd.grad(y.square().sum(), [x])]

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module = make_fx(pooled)(x)
    simplify(module.graph)
    module.recompile()
    assert any(node.target is max_pool for node in module.graph.nodes) == replaced
    assert any(node.target is torch.relu for node in module.graph.nodes) != replaced  # comes after pooling, in place
    for ours, theirs in zip(module.forward(x), pooled(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "use", [lambda r, p: p.sum() + r.sum(), lambda r, p: (p * r[..., ::2, ::2]).sum()], ids=["sum", "product"]
)
def test_what_is_rectified_for_others_too_stays_before_pooling(use: Callable[..., torch.Tensor]) -> None:
    def pooled(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        rectified = x.relu()
        return list(torch.autograd.grad(use(rectified, torch.nn.functional.max_pool2d(rectified, 2)), [x]))

    x = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    module = make_fx(pooled)(x)
    simplify(module.graph)
    module.recompile()
    assert torch.equal(module.forward(x)[0], pooled(x)[0])


def test_pooling_without_a_gradient_comes_first_too() -> None:
    x = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    module = make_fx(lambda x: torch.nn.functional.max_pool2d(x.relu(), 2))(x)
    simplify(module.graph)
    module.recompile()
    assert torch.relu not in {node.target for node in module.graph.nodes}
    assert torch.equal(module.forward(x), torch.nn.functional.max_pool2d(x.relu(), 2))
