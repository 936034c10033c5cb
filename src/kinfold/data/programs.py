"""Preprocessing as tensor programs: what a fitted encoder does to a row, in a form that leaves Python behind.

Of every encoder, what can be done to numbers is a module that is exported with the model; what cannot (finding files,
resizing pictures, dividing texts into words) stands in the description beside it.

Legend: N rows, C channels, L steps, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn


@dataclass(frozen=True)
class Port:
    """One input of an exported program.

    Attributes:
        name: what it is called.
        shape: of one row, without the batch axis.
        dtype: of its numbers.
        what: it holds, in words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    what: str


@dataclass(frozen=True)
class Program:
    """What a fitted encoder does, from numbers to what a model is called with.

    Attributes:
        ports: its inputs, in order.
        module: called with a tensor [N, *shape] for each port; gives one tensor, or several for the model.
        tensors: from raw features to the ports' tensors.
        about: how to come from raw features to the ports' tensors, as JSON values.
    """

    ports: tuple[Port, ...]
    module: nn.Module
    tensors: Callable[[Any], tuple[Tensor, ...]]
    about: Mapping[str, Any]


@final
class FromPixels(nn.Module):
    """(pixel / 255 − mean) / std of each channel.

    Args:
        mean: [C] of pixel / 255.
        std: [C] likewise.

    Example:
        >>> FromPixels([0.5], [0.5])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-1.,  1.]]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, levels in (("centre", mean), ("scale", std)):
            self.register_buffer(name, torch.tensor([255 * level for level in levels])[:, None, None])

    def forward(self, pixels: UInt8[Tensor, "N C H W"]) -> Float32[Tensor, "N C H W"]:
        """Returns the images in standard units."""
        return (pixels.to(torch.float32) - self.get_buffer("centre")) / self.get_buffer("scale")


@final
class FromSeries(nn.Module):
    """(x − shift) / scale, 0 where x is missing (NaN); and, where asked for, a mask of the steps that are there.

    A step is there if it, or one after it, has a value in some channel: NaN in all channels at the end is padding.

    Args:
        shift: of each channel, in a shape that spreads over a row.
        scale: likewise.
        masked: whether to give (x, mask [N, L]).

    Example:
        >>> program = FromSeries(torch.tensor([[1.0]]), torch.tensor([[2.0]]), masked=True)
        >>> program(torch.tensor([[[3.0, torch.nan, 1.0, torch.nan]]]))
        (tensor([[[1., 0., 0., 0.]]]), tensor([[1., 1., 1., 0.]]))
    """

    def __init__(self, shift: Float[Tensor, "*row"], scale: Float[Tensor, "*row"], masked: bool = False):
        super().__init__()
        self.register_buffer("shift", shift.double())
        self.register_buffer("scale", scale.double())
        self.masked = masked

    def forward(self, x: Float32[Tensor, "N *row"]) -> Float32[Tensor, "N *row"] | tuple[Tensor, Tensor]:
        """Returns the series in standard units."""
        missing = x.isnan()
        known = torch.where(missing, 0.0, x).double()
        scaled = torch.where(missing, 0.0, ((known - self.get_buffer("shift")) / self.get_buffer("scale")).float())
        if not self.masked:
            return scaled
        number = torch.arange(1, x.shape[-1] + 1, device=x.device)
        length = torch.where(missing.all(dim=1), 0, number).amax(dim=1, keepdim=True)
        return scaled, (number <= length).to(torch.float32)


def padded(rows: Sequence[Tensor], shape: tuple[int, ...]) -> Float32[Tensor, "N *row"]:
    """Returns rows of different lengths as one tensor, cut or padded with NaN at the end of their last axis.

    Example:
        >>> padded([torch.ones(1, 1), torch.zeros(1, 3)], (1, 2))
        tensor([[[1., nan]],
        <BLANKLINE>
                [[0., 0.]]])
    """
    whole = torch.full((len(rows), *shape), torch.nan)
    for place, row in zip(whole, rows, strict=True):
        length = min(row.shape[-1], shape[-1])
        place[..., :length] = row[..., :length]
    return whole
