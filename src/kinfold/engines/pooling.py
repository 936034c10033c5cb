"""Max pooling of 2×2 in contiguous memory on a CPU, by comparing whole rows.

Of finite numbers, values and gradients are torch's bit for bit: of equal ones the first in the order of memory is taken
for the largest. Legend: B batch (and tasks), C channels, H height and W width, h and w half of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def max_pool(
    x: Float[Tensor, "B C H W"],
) -> tuple[Float[Tensor, "B C H//2 W//2"], Float[Tensor, "B C H W//2"]]:
    """Returns (maxima, those of each row's pairs, which the backward pass wants).

    Args:
        x: images of an even height and width.

    Example:
        >>> max_pool(torch.arange(8.0).view(1, 1, 2, 4))[0]
        tensor([[[[5., 7.]]]])
    """
    pairs = torch.maximum(x[..., ::2], x[..., 1::2])
    return torch.maximum(pairs[..., ::2, :], pairs[..., 1::2, :]), pairs


def max_pool_backward(
    grad: Float[Tensor, "B C h w"], x: Float[Tensor, "B C H W"], pairs: Float[Tensor, "B C H w"]
) -> Float[Tensor, "B C H W"]:
    """Returns the gradient with respect to `x`.

    Example:
        >>> x = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]])
        >>> max_pool_backward(torch.ones(1, 1, 1, 1), x, max_pool(x)[1])
        tensor([[[[1., 0.],
                  [0., 0.]]]])
    """
    of_pairs, of_x = torch.empty_like(pairs), torch.empty_like(x)
    divide(grad, pairs[..., ::2, :], pairs[..., 1::2, :], of_pairs[..., ::2, :], of_pairs[..., 1::2, :])
    divide(of_pairs, x[..., ::2], x[..., 1::2], of_x[..., ::2], of_x[..., 1::2])
    return of_x


def divide(grad: Tensor, first: Tensor, second: Tensor, to_first: Tensor, to_second: Tensor) -> None:
    """Gives the gradient of each maximum to the second where that is larger, else to the first.

    Args:
        grad: with respect to the maxima.
        first: of those compared.
        second: the others.
        to_first: is written.
        to_second: is written.

    Example:
        >>> first, second = torch.empty(1, 2), torch.empty(1, 2)
        >>> divide(torch.ones(1, 2), torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), first, second)
        >>> first, second
        (tensor([[0., 1.]]), tensor([[1., 0.]]))
    """
    # The kernel that passes on what is positive is slow to write to every other number or row.
    whole = to_second[0].is_contiguous()
    second_has = torch.sub(second, first, out=to_second) if whole else second - first
    torch.ops.aten.threshold_backward.grad_input(grad, second_has, 0, grad_input=second_has)
    if not whole:
        to_second.copy_(second_has)
    torch.sub(grad, second_has, out=to_first)
