"""Convolutions in forms that fill vectors, against torch's."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from kinfold import random
from kinfold.engines import simplify_images
from kinfold.engines.convolving import convolve_and_pool, convolve_and_pool_backward, convolve_backward
from kinfold.engines.simplify import simplify

aten = torch.ops.aten


def whole(shape: tuple[int, ...], *names: str) -> Tensor:
    """Whole numbers, so that sums are exact in any order and many of them equal."""
    return torch.randint(-2, 3, shape, generator=random.generator(0, *names)).double()


sizes = st.integers(1, 3)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, sizes, st.sampled_from([(1, 1), (2, 3), (3, 3), (5, 4)]), st.tuples(sizes, sizes), st.data())
def test_pooling_as_channels_is_torchs_among_equals_too(
    images: int, inputs: int, outputs: int, kernel: tuple[int, int], padding: tuple[int, int], data: st.DataObject
) -> None:
    h, w = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    pads = [min(padding[0], kernel[0] - 1), min(padding[1], kernel[1] - 1)]
    height, width = 2 * h + kernel[0] - 1 - 2 * pads[0], 2 * w + kernel[1] - 1 - 2 * pads[1]
    if min(height, width) < 1:
        return
    x, weight = whole((images, inputs, height, width), "x"), whole((outputs, inputs, *kernel), "w").requires_grad_()
    bias, grad = whole((outputs,), "b").requires_grad_(), whole((images, outputs, h, w), "g")
    expected = F.max_pool2d(F.conv2d(x, weight, bias, padding=tuple(pads)), 2)
    of_weight, of_bias = torch.autograd.grad(expected, [weight, bias], grad)
    with torch.no_grad():
        maxima, candidates, pairs = convolve_and_pool(x, weight, bias, pads)
        grads = convolve_and_pool_backward(grad, x, weight, candidates, pairs, pads)
    assert torch.equal(maxima, expected)
    assert grads[0] is None
    assert torch.equal(grads[1], of_weight)
    assert torch.equal(grads[2], of_bias)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes, st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))
def test_gradients_of_a_convolution_are_torchs(
    images: int, inputs: int, outputs: int, height: int, width: int, more: int, wider: int
) -> None:
    x, weight = whole((images, inputs, height + more, width + wider), "x"), whole((outputs, inputs, height, width), "w")
    grad = whole((images, outputs, more + 1, wider + 1), "g")
    form = ([outputs], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True])
    for ours, torchs in zip(
        convolve_backward(grad, x, weight), aten.convolution_backward(grad, x, weight, *form), strict=True
    ):
        assert torch.equal(ours, torchs)


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = random.generator(0, "test")
    return [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]


def recorded(function: Callable[..., list[Tensor]], *given: Tensor) -> tuple[GraphModule, set[object]]:
    module = make_fx(function)(*given)
    simplify(module.graph)
    module.recompile()
    return module, {node.target for node in module.graph.nodes}


def assert_alike(ours: list[Tensor], torchs: list[Tensor]) -> None:
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


CASES: dict[str, tuple[tuple[int, ...], dict[str, object], bool]] = {
    "plain": ((1, 12, 12), {"padding": 2}, True),
    "unbiased": ((3, 12, 12), {"biased": False}, True),
    "not rectified": ((3, 12, 12), {"rectified": False}, True),
    "many inputs": ((4, 12, 12), {}, False),
    "stride": ((1, 23, 23), {"stride": 2}, False),
    "dilation": ((1, 16, 16), {"dilation": 2}, False),
    "groups": ((2, 12, 12), {"groups": 2}, False),
    "odd": ((1, 11, 12), {}, False),
    "float64": ((1, 12, 12), {"dtype": torch.float64}, False),
    "differentiated input": ((1, 12, 12), {"data": False}, False),
    "read by others": ((1, 12, 12), {"read": True}, False),
    "channels last": ((3, 12, 12), {"layout": torch.channels_last}, False),
}


@pytest.mark.parametrize(("row", "options", "taken"), CASES.values(), ids=CASES)
def test_pooling_becomes_channels_where_that_is_the_same_and_faster(
    row: tuple[int, ...], options: dict, taken: bool
) -> None:
    given = dict(options)
    dtype, layout = given.pop("dtype", torch.float32), given.pop("layout", torch.contiguous_format)
    biased, rectified, data, read = (given.pop(k, k != "read") for k in ("biased", "rectified", "data", "read"))
    x, weight, bias = draws((4, *row), (6, row[0] // given.get("groups", 1), 5, 5), (6,), dtype=dtype)
    x = x.to(memory_format=layout)

    def gradients(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        at = [
            value.detach().requires_grad_() for value in ([] if data else [x]) + [weight] + ([bias] if biased else [])
        ]
        images, own = (x, at) if data else (at[0], at[1:])
        y = F.conv2d(images, *own, **given)
        pooled = F.max_pool2d(y.relu() if rectified else y, 2)
        value = pooled.square().sum() + (y.sum() if read else 0)
        return [pooled, *torch.autograd.grad(value, at)]

    module, targets = recorded(gradients, x, weight, bias)
    assert (convolve_and_pool in targets) == taken
    assert (convolve_and_pool_backward in targets) == taken
    assert_alike(module.forward(x, weight, bias), gradients(x, weight, bias))


def test_results_that_fall_out_of_caches_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draws((4, 1, 12, 12), (6, 1, 5, 5))
    size = F.conv2d(x, weight).nbytes
    for largest in (size, size + 1):
        monkeypatch.setattr(simplify_images, "_LARGE", largest)
        _, targets = recorded(lambda x, weight: [F.max_pool2d(F.conv2d(x, weight), 2)], x, weight)
        assert (convolve_and_pool in targets) == (largest > size)


def test_a_convolution_that_only_looks_is_taken_too() -> None:
    x, weight = draws((4, 1, 12, 12), (6, 1, 5, 5))
    module, targets = recorded(lambda x, weight: [F.max_pool2d(F.conv2d(x, weight).relu(), 2)], x, weight)
    assert convolve_and_pool in targets
    assert_alike(module.forward(x, weight), [F.max_pool2d(F.conv2d(x, weight).relu(), 2)])


@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "taken"),
    [
        ((8, 6, 9, 9), 5, 0, True),
        ((8, 6, 9, 9), 5, 1, False),
        ((8, 6, 9, 9), 3, 0, False),
        ((8, 16, 9, 9), 5, 0, False),
        ((65, 2, 7, 7), 5, 0, True),
        ((513, 2, 7, 7), 5, 0, False),
    ],
)
def test_images_take_the_place_of_channels_where_these_are_few(
    shape: tuple[int, ...], kernel: int, padding: int, taken: bool
) -> None:
    given = draws(shape, (4, shape[1], kernel, kernel))

    def gradients(x: Tensor, weight: Tensor) -> list[Tensor]:
        at = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        return list(torch.autograd.grad(F.conv2d(*at, padding=padding).square().sum(), at))

    module, targets = recorded(gradients, *given)
    assert (convolve_backward in targets) == taken
    ours = module.forward(*given)
    assert_alike(ours, gradients(*given))
    assert all(grad.is_contiguous() for grad in ours)  # methods may view them
