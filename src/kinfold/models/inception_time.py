"""The Inception network for series.

Fawaz et al., *InceptionTime: finding AlexNet for time series classification*, Data Mining and Knowledge Discovery 2020
(arXiv:1909.04939). InceptionTime is an ensemble of five such networks; this is one of them.
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.models.convolution import conv_series
from kinfold.models.sequences import masked, mean_over_steps
from kinfold.models.shapes import check_sizes, series_shape

_MAPS = 32  # of each branch
_LENGTHS = (40, 20, 10)
_SHORTCUT_EVERY = 3


@final
class InceptionTime(nn.Module):
    """Inception modules (figure 2), a shortcut around every three of them, and the mean over the steps.

    For one channel it has 420,192 parameters before the last layer, as the authors' code. Padding is set to zero before
    each module and takes no part in the mean, so once trained a row's logits do not depend on how far it is padded.

    Args:
        input_shape: (channels, steps).
        outputs: how many numbers to give per series.
        depth: how many modules.

    Raises:
        InputError: rows are not series, or the depth is not a positive whole number.

    Example:
        >>> sum(p.numel() for p in InceptionTime((1, 500), 2).parameters())
        420450
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, depth: int = 6):
        super().__init__()
        channels, _ = series_shape("inception-time", input_shape)
        check_sizes("inception-time", depth=depth)
        width = 4 * _MAPS
        self.stages = nn.ModuleList(Module(width if i else channels) for i in range(depth))
        self.shortcuts = nn.ModuleList(
            nn.Sequential(conv_series(width if i else channels, width, 1), nn.BatchNorm1d(width))
            for i in range(depth // _SHORTCUT_EVERY)
        )
        self.classifier = nn.Linear(width, outputs)

    def forward(
        self, x: Float[Tensor, "B C L"], mask: Float[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of series, with a mask where lengths differ."""
        x = before = masked(x, mask)
        for number, stage in enumerate(self.stages, 1):
            x = stage(x)
            if number % _SHORTCUT_EVERY == 0:
                x = before = F.relu(x + self.shortcuts[number // _SHORTCUT_EVERY - 1](before))
            x = masked(x, mask)
        logits: Tensor = self.classifier(mean_over_steps(x.transpose(1, 2), mask))
        return logits


@final
class Module(nn.Module):
    """Convolutions of three lengths after a bottleneck, beside a max pool; batch norm and ReLU over all."""

    def __init__(self, channels: int):
        super().__init__()
        self.bottleneck = nn.Identity() if channels == 1 else conv_series(channels, _MAPS, 1)
        narrow = 1 if channels == 1 else _MAPS
        self.branches = nn.ModuleList(conv_series(narrow, _MAPS, length) for length in _LENGTHS)
        self.pooled = conv_series(channels, _MAPS, 1)
        self.norm = nn.BatchNorm1d(4 * _MAPS)

    def forward(self, x: Float[Tensor, "B C L"]) -> Float[Tensor, "B maps L"]:
        """Returns the module's maps."""
        narrow = self.bottleneck(x)
        pool = F.max_pool1d(F.pad(x, (1, 1)), 3, stride=1)  # zeros at the ends, as the padding of a short series is
        maps = torch.cat([*(branch(narrow) for branch in self.branches), self.pooled(pool)], dim=1)
        return F.relu(self.norm(maps))
