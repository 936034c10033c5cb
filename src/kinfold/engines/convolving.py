"""Convolutions that leave a CPU's vectors mostly empty, in forms that fill them.

A vector of a CPU holds 8 or 16 numbers. OneDNN's convolutions have channels in it, so that the 1 or 6 of a small
network's first layers use little of it. Two things can take the empty places: the four places of a window that pooling
looks at, and the images of a batch.

Legend: B batch, I and O input and output channels, K and L a kernel's height and width, H and W the images', P and
Q the convolution's results', h and w half of these.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kinfold.engines.pooling import divide


def convolve_and_pool(
    x: Float[Tensor, "B I H W"],
    weight: Float[Tensor, "O I K L"],
    bias: Float[Tensor, " O"] | None,
    padding: list[int],
) -> tuple[Float[Tensor, "B O h w"], Float[Tensor, "B 4*O h w"], Float[Tensor, "B 2*O h w"]]:
    """Returns (maxima, and what the backward pass wants: candidates, those of each row's pairs).

    A convolution with 2×2 max pooling after it is one of stride 2 with four times the channels, one for each place of a
    window, and the largest of each four.

    Args:
        x: images.
        weight: of a convolution of stride 1 whose result has an even height and width.
        bias: of each output channel, or None.
        padding: of the height and of the width, by zeros at both sides.

    Example:
        >>> x = torch.arange(16.0).view(1, 1, 4, 4)
        >>> convolve_and_pool(x, torch.ones(1, 1, 1, 1), None, [0, 0])[0]
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    y = torch.convolution(x, _at_all_places(weight), None, [2, 2], padding, [1, 1], False, [0, 0], 1)
    channels = weight.shape[0]
    pairs = torch.maximum(y[:, : 2 * channels], y[:, 2 * channels :])
    maxima = torch.maximum(pairs[:, :channels], pairs[:, channels:])
    return maxima if bias is None else maxima.add_(bias.view(-1, 1, 1)), y, pairs


def convolve_and_pool_backward(
    grad: Float[Tensor, "B O h w"],
    x: Float[Tensor, "B I H W"],
    weight: Float[Tensor, "O I K L"],
    candidates: Float[Tensor, "B 4*O h w"],
    pairs: Float[Tensor, "B 2*O h w"],
    padding: list[int],
) -> tuple[None, Float[Tensor, "O I K L"], Float[Tensor, " O"]]:
    """Returns the gradients with respect to x (None: it is data), weight and bias, as `aten::convolution_backward`.

    Of equal candidates the first in the order of memory is taken for the largest, as torch's pooling does.

    Example:
        >>> x, weight = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
        >>> _, candidates, pairs = convolve_and_pool(x, weight, None, [0, 0])
        >>> convolve_and_pool_backward(torch.ones(1, 1, 2, 2), x, weight, candidates, pairs, [0, 0])
        (None, tensor([[[[40.]]]]), tensor([4.]))
    """
    channels, _, height, width = weight.shape
    of_pairs, of_candidates = torch.empty_like(pairs), torch.empty_like(candidates)
    divide(grad, *pairs.chunk(2, 1), *of_pairs.chunk(2, 1))
    divide(of_pairs, *candidates.chunk(2, 1), *of_candidates.chunk(2, 1))
    spread = candidates.new_empty(()).expand(4 * channels, *weight.shape[1:2], height + 1, width + 1)
    grads = torch.ops.aten.convolution_backward.default(
        of_candidates, x, spread, None, [2, 2], padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )
    places = grads[1].view(2, 2, *weight.shape[:2], height + 1, width + 1)
    of_weight = places[0, 0, ..., :height, :width] + places[0, 1, ..., 1:, :width]
    of_weight += places[1, 0, ..., :height, 1:]
    of_weight += places[1, 1, ..., 1:, 1:]
    return None, of_weight, grad.sum((0, 2, 3))


def convolve_backward(
    grad: Float[Tensor, "B O P Q"], x: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I K L"]
) -> tuple[Float[Tensor, "B I H W"], Float[Tensor, "O I K L"], Float[Tensor, " O"]]:
    """Returns the gradients with respect to x, weight and bias of a convolution of stride 1 without padding.

    The weight's is itself a convolution, of the channels as if they were a batch, and the batch as if it were channels.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> convolve_backward(torch.ones(1, 1, 1, 1), x, torch.ones(1, 1, 2, 2))[1]
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    of_x = torch.ops.aten.convolution_backward.default(
        grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]
    of_weight = torch.convolution(
        x.transpose(0, 1), grad.transpose(0, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    )
    return of_x, of_weight.transpose(0, 1).contiguous(), grad.sum((0, 2, 3))


def _at_all_places(weight: Float[Tensor, "O I K L"]) -> Float[Tensor, "4*O I K+1 L+1"]:
    """The kernels as they meet the four places of a window: of its left column, the upper first, then of its right."""
    channels, inputs, height, width = weight.shape
    spread = weight.new_zeros(2, 2, channels, inputs, height + 1, width + 1)
    for right in (0, 1):
        for lower in (0, 1):
            spread[right, lower, ..., lower : lower + height, right : right + width] = weight
    return spread.view(4 * channels, inputs, height + 1, width + 1)
