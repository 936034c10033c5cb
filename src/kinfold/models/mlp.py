"""The multi-layer perceptron."""

import math
from collections.abc import Sequence

from torch import nn

from kinfold.errors import InputError


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: Sequence[int] = (128, 128),
    dropout: float | int = 0.0,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Returns fully connected layers with ReLU between them, over rows of any shape, flattened.

    Args:
        input_shape: the shape of one row, without the batch axis.
        outputs: how many numbers to give per row.
        hidden: the width of each hidden layer; none for a linear model.
        dropout: the share of each hidden layer's values that training drops, from 0 to under 1.
        batch_norm: whether each hidden layer is normalised over the batch before its ReLU.

    Raises:
        InputError: `hidden` is not a list of positive whole numbers, or `dropout` is out of range.

    Example:
        >>> mlp((1, 8, 8), 10, hidden=(32,))
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=64, out_features=32, bias=True)
          (2): ReLU()
          (3): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    if any(type(width) is not int or width < 1 for width in hidden):
        raise InputError(f"model mlp: hidden is {list(hidden)}; give positive whole numbers.")
    if not 0 <= dropout < 1:
        raise InputError(f"model mlp: dropout is {dropout}; give a share from 0 to under 1.")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for next_width in hidden:
        layers.append(nn.Linear(width, next_width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(next_width))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, outputs))
