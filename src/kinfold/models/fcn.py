"""The fully convolutional network for series.

Wang, Yan, Oates, *Time series classification from scratch with deep neural networks: a strong baseline*, IJCNN 2017
(arXiv:1611.06455), section II-B.
"""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from kinfold.models.convolution import conv_series
from kinfold.models.sequences import masked, mean_over_steps
from kinfold.models.shapes import series_shape


@final
class FCN(nn.Module):
    """Three convolutions of 128, 256 and 128 maps and lengths 8, 5 and 3, and the mean over the steps.

    Each is followed by batch norm and ReLU. The convolutions have no bias, which the norm would cancel: 264,192
    parameters before the last layer for one channel, where the authors' code has 512 more. Padding is set to zero
    before each of them and takes no part in the mean, so once trained a row's logits do not depend on how far it is
    padded.

    Args:
        input_shape: (channels, steps).
        outputs: how many numbers to give per series.

    Raises:
        InputError: rows are not series.

    Example:
        >>> sum(p.numel() for p in FCN((1, 500), 2).parameters())
        264450
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int):
        super().__init__()
        channels, _ = series_shape("fcn", input_shape)
        self.blocks = nn.ModuleList([_block(channels, 128, 8), _block(128, 256, 5), _block(256, 128, 3)])
        self.classifier = nn.Linear(128, outputs)

    def forward(
        self, x: Float[Tensor, "B C L"], mask: Float[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of series, with a mask where lengths differ."""
        for block in self.blocks:
            x = block(masked(x, mask))
        logits: Tensor = self.classifier(mean_over_steps(x.transpose(1, 2), mask))
        return logits


def _block(before: int, after: int, length: int) -> nn.Sequential:
    return nn.Sequential(conv_series(before, after, length), nn.BatchNorm1d(after), nn.ReLU())
