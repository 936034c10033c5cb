"""Densely connected networks for small images.

Huang, Liu, van der Maaten, Weinberger, *Densely connected convolutional networks*, CVPR 2017 (arXiv:1608.06993).
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.models.convolution import conv, start_kaiming
from kinfold.models.shapes import check_dropout, check_sizes, image_shape


@final
class DenseNet(nn.Module):
    """The paper's basic form (section 3), of depth 3n + 4: three blocks of n layers, each of which sees all before it.

    No bottlenecks and no compression; 16 maps go into the first block. At 3×32×32 with 10 outputs, depth 40 and growth
    12 have 1,019,722 parameters, the paper's 1.0 M. The mean over pixels at the end takes any size.

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.
        depth: 3n + 4: 40, 100.
        growth: k, how many maps each layer adds.
        dropout: the share of each layer's new values that training drops (the paper: 0.2 where it augments nothing).

    Raises:
        InputError: rows are not images of that size, the depth is not 3n + 4, or another argument is out of range.

    Example:
        >>> sum(p.numel() for p in DenseNet((3, 32, 32), 10, depth=40).parameters())
        1019722
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, *, depth: int, growth: int = 12, dropout: float | int = 0.0
    ):
        super().__init__()
        channels, _, _ = image_shape(f"densenet{depth}", input_shape, smallest=8)
        if depth < 7 or depth % 3 != 1:
            raise InputError(f"model densenet: depth is {depth}; give 3n + 4, such as 40 or 100.")
        check_sizes(f"densenet{depth}", growth=growth)
        check_dropout(f"densenet{depth}", dropout=dropout)
        layers: list[nn.Module] = [conv(channels, 16)]
        maps = 16
        for block in range(3):
            if block:
                layers += [nn.BatchNorm2d(maps), nn.ReLU(), conv(maps, maps, 1), nn.AvgPool2d(2)]
            for _ in range((depth - 4) // 3):
                layers.append(Layer(maps, growth, dropout))
                maps += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(maps), nn.ReLU())
        self.classifier = nn.Linear(maps, outputs)
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


@final
class Layer(nn.Module):
    """Batch norm, ReLU and a 3×3 convolution, whose maps are added to those that came in."""

    def __init__(self, before: int, growth: int, dropout: float | int):
        super().__init__()
        self.new = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), conv(before, growth), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "B before h w"]) -> Float[Tensor, "B after h w"]:
        """Returns the old maps and the new ones."""
        return torch.cat([x, self.new(x)], dim=1)
