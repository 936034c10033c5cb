"""The logarithm of softmax by rows, against torch's."""

import pytest
import torch
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
