"""What is left out of a recorded step, and what must not be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold import random
from kinfold.engines.simplify import simplify

X = torch.arange(6.0).view(2, 3)


def simplified(function: Callable[..., object], *given: Tensor) -> GraphModule:
    module = make_fx(function)(*given)
    simplify(module.graph)
    module.recompile()
    return module


def operations(module: GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op in ("call_function", "call_method")]


def test_what_does_not_hang_on_numbers_is_computed_once() -> None:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad((x * x).mean(), x)
        return grad

    module = simplified(gradient, X)
    assert not any("ones" in name or "div" in name or "expand" in name for name in operations(module))
    for x in (X, X.flip(1)):
        assert torch.equal(module.forward(x), gradient(x))


@pytest.mark.parametrize(
    "ones",
    [
        torch.ones_like,
        lambda x: torch.ones_like(x).view(3, 2),
        lambda x: torch.ops.aten._unsafe_view(torch.ones_like(x).unsqueeze(0), [6]),
        lambda x: torch.ones_like(x).neg().neg(),
    ],
)
def test_what_is_handed_out_is_computed_anew(ones: Callable[[Tensor], Tensor]) -> None:
    module = simplified(lambda x: [ones(x), x + torch.zeros_like(x)], X)
    first, _ = module.forward(X)
    first += 1
    assert bool((module.forward(X)[0] == 1).all())


def test_draws_are_no_constants() -> None:
    with random.seeded(torch.device("cpu"), "test"):
        module = simplified(lambda x: x * torch.rand_like(torch.ones_like(x)), X)
        first = module.forward(X)
        assert not torch.equal(first, module.forward(X))


def test_large_results_are_not_kept() -> None:
    module = simplified(lambda x: x.sum() + torch.ones_like(x), torch.ones(600, 600))
    assert not list(module.buffers())
    assert torch.equal(module.forward(torch.ones(600, 600)), torch.full((600, 600), 360_001.0))


def test_nothing_is_kept_where_an_operation_writes_to_what_it_is_given() -> None:
    module = simplified(lambda x: x + torch.zeros_like(x).add_(x), X)
    for _ in range(2):
        assert torch.equal(module.forward(X), 2 * X)


@pytest.mark.parametrize(("function", "shape"), [(lambda x: x.t(), (2, 3)), (lambda x: x.transpose(1, 2), (4, 2, 3))])
def test_transposing_twice_is_left_out(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    module = simplified(lambda x: function(function(x)) + 1, x)
    assert operations(module) == ["add"]
    assert torch.equal(module.forward(x), x + 1)


def test_one_of_two_transposes_stays_where_others_read_it() -> None:
    module = simplified(lambda x: [x.t() * 2, x.t().t() + 1], X)
    turned, twice = module.forward(X)
    assert torch.equal(turned, 2 * X.t())
    assert torch.equal(twice, X + 1)


def test_a_view_goes_with_how_a_product_lies() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        turned = torch.bmm(a, b).mT  # is made as it is asked for, and so lies side by side
        return torch.relu(turned).mT.view(8, 5)

    draw = random.generator(0, "test")
    given = [torch.randn(2, 4, 3, generator=draw), torch.randn(2, 3, 5, generator=draw)]
    assert torch.allclose(simplified(function, *given).forward(*given), function(*given))


@pytest.mark.parametrize(
    "combined",
    [
        lambda product, other: torch.ops.aten.threshold_backward(product, other, 0),
        lambda product, other: other + product,
    ],
)
def test_what_lies_otherwise_is_not_written_over(combined: Callable[[Tensor, Tensor], Tensor]) -> None:
    def function(a: Tensor, b: Tensor, other: Tensor) -> Tensor:
        y = combined(torch.bmm(a, b), other.permute(1, 0, 2))
        total = torch.zeros(2).add_(y.sum((1, 2)))  # an operation that writes, so that views stay views
        return y.permute(1, 0, 2).view(4, 10) * total.sum()

    draw = random.generator(0, "test")
    given = [torch.randn(shape, generator=draw) for shape in ((2, 4, 3), (2, 3, 5), (4, 2, 5))]
    assert torch.allclose(simplified(function, *given).forward(*given), function(*given))


def layer(bias: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return torch.relu(torch.addmm(bias, x, weight.t()))


def test_a_layer_takes_its_weight_as_it_lies() -> None:
    draw = random.generator(0, "test")
    given = [torch.randn(shape, generator=draw) for shape in ((4,), (4, 3), (5, 3))]
    module = simplified(layer, *given)
    assert operations(module) == ["addmm", "relu"]
    assert torch.equal(module.forward(*given), layer(*given))


@pytest.mark.parametrize(
    "other",
    [
        lambda bias, weight, x: [layer(bias, weight, x), weight.t() + 1],
        lambda bias, weight, x: torch.addmm(bias, x, weight.t(), beta=0.5),
        lambda bias, weight, x: torch.addmm(bias.expand(5, 4), x, weight.t()),
        lambda bias, weight, x: torch.addmm(bias, x, weight.t()).relu() + torch.addmm(bias, x, weight.t()),
    ],
)
def test_what_is_like_a_layer_stays_the_same(other: Callable[..., object]) -> None:
    draw = random.generator(0, "test")
    given = [torch.randn(shape, generator=draw) for shape in ((4,), (4, 3), (5, 3))]
    torch.testing.assert_close(simplified(other, *given).forward(*given), other(*given), rtol=0, atol=0)


def test_what_another_reads_is_not_written_over() -> None:
    def function(bias: Tensor, weight: Tensor, x: Tensor) -> list[Tensor]:
        before = torch.addmm(bias, x, weight.t())
        grad = torch.mm(x, weight.t())
        return [before.relu(), before * 2, torch.ops.aten.threshold_backward(grad, before, 0), grad * 3]

    draw = random.generator(0, "test")
    given = [torch.randn(shape, generator=draw) for shape in ((4,), (4, 3), (5, 3))]
    torch.testing.assert_close(simplified(function, *given).forward(*given), function(*given), rtol=0, atol=0)


def mean_loss(logs: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(logs, 1).gather(1, y[:, None]).mean()


def test_the_mean_of_picked_classes_is_one_operation() -> None:
    draw = random.generator(0, "test")
    scores, y = torch.randn(6, 3, generator=draw, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2])
    module = simplified(mean_loss, scores, y)
    assert operations(module) == ["_log_softmax", "nll_loss_nd"]
    torch.testing.assert_close(module.forward(scores, y), mean_loss(scores, y))


@pytest.mark.parametrize(
    "other",
    [
        lambda scores, y: -scores.gather(0, y[None, :3]).mean(),
        lambda scores, y: -scores.gather(1, torch.stack([y, y], 1)).mean(),
        lambda scores, y: -scores.gather(1, y[:3, None]).mean(),
        lambda scores, y: -scores.gather(1, y[:, None]).mean(0),
        lambda scores, y: [-(mean := scores.gather(1, y[:, None]).mean()), mean * 2],
        lambda scores, y: -scores.gather(1, y[:, None]).sum(),
    ],
)
def test_what_is_like_a_mean_of_picked_classes_stays_the_same(other: Callable[..., object]) -> None:
    scores, y = torch.randn(6, 3, generator=random.generator(0, "test")), torch.tensor([0, 2, 1, 1, 0, 2])
    module = simplified(other, scores, y)
    assert not any("nll" in name for name in operations(module))
    torch.testing.assert_close(module.forward(scores, y), other(scores, y), rtol=0, atol=0)
