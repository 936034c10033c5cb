"""The logarithm of softmax by rows, against torch's."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold.engines.few_classes import log_softmax, log_softmax_backward
from kinfold.engines.simplify import simplify


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 30 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 3, 4, 5), (1, 1)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...]) -> None:
    x = rows(*shape).requires_grad_()
    expected = torch.log_softmax(x, -1)
    grad = rows(*shape).flip(0)
    torch.testing.assert_close(log_softmax(x.detach()), expected, rtol=1e-12, atol=1e-12)
    (of_x,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(log_softmax_backward(grad, expected.detach()), of_x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "replaced"),
    [
        ((256, 10), -1, torch.float32, True),
        ((4, 64, 10), -1, torch.float32, True),
        ((4, 64, 7), 2, torch.float64, True),
        ((256, 5), -1, torch.float32, True),
        ((256, 4), -1, torch.float32, False),
        ((4, 64, 8), 2, torch.float64, False),
        ((256, 16), -1, torch.float32, False),
        ((255, 10), -1, torch.float32, False),
        ((10, 256), 0, torch.float32, False),
        ((256,), -1, torch.float32, False),
    ],
)
def test_it_is_taken_for_many_rows_of_few_classes(
    shape: tuple[int, ...], axis: int, dtype: torch.dtype, replaced: bool
) -> None:
    def losses(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        y = torch.log_softmax(x, axis)
        return [y, *torch.autograd.grad((y * y).sum(), [x])]

    x = rows(*shape, dtype=dtype) / 30
    module = make_fx(losses)(x)
    simplify(module.graph)
    module.recompile()
    taken = {node.target for node in module.graph.nodes}
    assert (log_softmax in taken, log_softmax_backward in taken) == (replaced, replaced)
    for ours, theirs in zip(module.forward(x), losses(x), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous()


Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

T, B, C, WIDTH = 4, 64, 7, 20


def step(
    loss: Loss, bias: bool = True, rectify: Callable[[Tensor], Tensor] = torch.relu
) -> Callable[..., list[Tensor]]:
    """A step of a stacked model of two layers, as engines record it: losses, gradients and the batch's own."""

    def of_one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        hidden = rectify(nn.functional.linear(x, params["first"]))
        return loss(nn.functional.linear(hidden, params["last"], params.get("bias")), y)

    def call(x: Tensor, y: Tensor, *values: Tensor) -> list[Tensor]:
        params = dict(zip(["first", "last", "bias"][: 2 + bias], values, strict=False))
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        losses = torch.vmap(of_one)(leaves, x, y)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), list(leaves.values()))]

    return call


def given() -> list[Tensor]:
    y = torch.arange(T * B).view(T, B) % C
    return [rows(T, B, 12), y, rows(T, WIDTH, 12) / 90, rows(T, C, WIDTH) / 90, rows(T, C)]


def recorded(function: Callable[..., list[Tensor]], arguments: list[Tensor]) -> GraphModule:
    module = make_fx(function)(*arguments)
    simplify(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def smoothed(scores: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, y, label_smoothing=0.1)


def squared(scores: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, y) + scores.square().mean()


def plain(scores: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(scores, 1).gather(1, y[:, None]).mean()


def weighted(scores: Tensor, y: Tensor) -> Tensor:
    return -(torch.log_softmax(scores, 1).gather(1, y[:, None])[:, 0] * torch.linspace(0, 1, B)).sum()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("loss", "rectify", "turned"),
    [
        (plain, torch.relu, True),
        (nn.functional.cross_entropy, torch.relu, True),
        (weighted, torch.relu, True),
        (smoothed, torch.relu, False),  # which reads the logarithms of all classes
        (squared, torch.relu, False),  # which reads the scores, too
        (plain, torch.relu_, False),  # as where a model writes to what it is given
    ],
    ids=["plain", "torch's", "weighted", "smoothed", "squared", "in place"],
)
def test_the_last_product_of_a_stack_is_turned(
    loss: Loss, rectify: Callable[[Tensor], Tensor], turned: bool, bias: bool
) -> None:
    call, arguments = step(loss, bias, rectify), given()[: 4 + bias]
    module = recorded(call, arguments)
    logs = [node for node in module.graph.nodes if node.target in (torch._log_softmax, log_softmax)]
    assert [node.target is torch._log_softmax and node.args[1:] == (1, False) for node in logs] == [turned]
    for ours, torchs in zip(module.forward(*arguments), call(*arguments), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)
        assert ours.is_contiguous()


def test_what_is_turned_copies_nothing_but_once() -> None:
    module = recorded(step(plain), given())
    assert not any(node.target is torch.ops.aten.clone.default for node in module.graph.nodes)
    assert all(node.users or node.op in ("output", "placeholder") for node in module.graph.nodes)


class Prior(nn.Module):
    """Its scores are of a plain tensor and of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.utils.skip_init(nn.Linear, 12, C, bias=False, dtype=torch.float64)
        self.prior = rows(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.prior + self.last(x)


def picked(count: int) -> Callable[..., list[Tensor]]:
    """Picks so many classes of each row, before the gradient's own and after."""

    def call(x: Tensor, index: Tensor, weight: Tensor) -> list[Tensor]:
        logs = torch.log_softmax(torch.bmm(x, weight), 2)
        last = logs.detach().gather(2, index[..., :count])
        return [last.flatten(1) + 1, logs.gather(2, index[..., :1]).sum((1, 2))]

    return call


@pytest.mark.parametrize("count", [1, 2])
def test_classes_may_be_picked_twice(count: int) -> None:
    index = torch.arange(T * B * 2).view(T, B, 2) % C
    arguments = [rows(T, B, 12), index, rows(T, 12, C) / 90]
    module = recorded(picked(count), arguments)
    for ours, torchs in zip(module.forward(*arguments), picked(count)(*arguments), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)


def test_scores_may_be_of_a_plain_tensor_and_a_product() -> None:
    model = Prior()
    weight = rows(T, C, 12) / 90

    def call(x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
        def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return plain(torch.func.functional_call(model, {"last.weight": weight}, (x,)), y)

        at = weight.detach().requires_grad_()
        losses = torch.vmap(loss)(at, x, y)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), [at])]

    arguments = [*given()[:2], weight]
    for ours, torchs in zip(recorded(call, arguments).forward(*arguments), call(*arguments), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [[1], [2], [1, 2], [-1]])
def test_axes_that_are_taken_away_are_not_kept(axes: list[int]) -> None:
    x = rows(3, 4, 5)
    shape = x.sum(axes).shape
    module = recorded(lambda x: [x.sum(axes, keepdim=True).view(shape)], [x])
    assert [node.target for node in module.graph.nodes if node.op.startswith("call")] == [torch.sum]
    assert torch.equal(module.forward(x)[0], x.sum(axes))


def test_a_sum_stays_before_what_is_written_to_its_terms() -> None:
    def written(x: Tensor) -> list[Tensor]:
        y = x * 1.0
        total = y.sum(1, keepdim=True)
        y.clamp_(max=0)
        return [total.view(len(x)), y]

    x = -torch.ones(3, 4)
    module = recorded(written, [x])
    for given in (x, -x):
        assert torch.equal(module.forward(given)[0], given.sum(1))


def test_a_sum_of_no_axes_is_one_of_all() -> None:
    x = rows(1, 4)
    module = recorded(lambda x: [x.sum([], keepdim=True).expand(1, 4), x.sum([], keepdim=True).view(1, 1)], [x])
    for ours in module.forward(x):
        torch.testing.assert_close(ours, x.sum().expand_as(ours))


def test_axes_stay_where_others_are_taken_away() -> None:
    x = rows(3, 4, 5)
    module = recorded(lambda x: [x.sum([1], keepdim=True).view(5, 3)], [x])
    assert torch.equal(module.forward(x)[0], x.sum(1, keepdim=True).view(5, 3))
