"""The logarithm of softmax over few classes in contiguous memory on a CPU, by vectors of rows.

Torch's kernel takes the classes of a row as a vector. Where they do not fill one, it goes number by number.

Legend: B rows (and tasks), C classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def log_softmax(x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    """Returns the logarithm of softmax over the last axis.

    Args:
        x: of two axes or more.

    Example:
        >>> log_softmax(torch.zeros(3, 2)).exp()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    return torch._log_softmax(x.mT.contiguous(), x.ndim - 2, False).mT.contiguous()


def log_softmax_backward(grad: Float[Tensor, "*B C"], output: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    """Returns the gradient with respect to the input of `log_softmax`, which gave `output`.

    Example:
        >>> log_softmax_backward(torch.tensor([[1.0, 0.0]]), log_softmax(torch.zeros(1, 2)))
        tensor([[ 0.5000, -0.5000]])
    """
    axis = output.ndim - 2
    turned = torch._log_softmax_backward_data(grad.mT.contiguous(), output.mT.contiguous(), axis, output.dtype)
    return turned.mT.contiguous()
