"""MobileNetV2.

Sandler, Howard, Zhu, Zhmoginov, Chen, *MobileNetV2: inverted residuals and linear bottlenecks*, CVPR 2018
(arXiv:1801.04381), table 2, with width multiplier 1.
"""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from kinfold.models.convolution import conv, start_kaiming
from kinfold.models.shapes import SMALL_IMAGE, check_dropout, image_shape

# expansion t, maps c, blocks n, stride s of a stage's first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_LAST = 1280


@final
class MobileNetV2(nn.Module):
    """Inverted residual blocks: widen by a 1×1 convolution, convolve each map by itself, narrow without ReLU.

    At 3×224×224 with 1000 outputs it has 3,504,872 parameters. Images under 64 pixels a side are not halved by the
    first convolution and the second stage, which leaves the parameters as they are (2,236,682 with 10 outputs).
    The paper's ReLU6, made for fixed-point arithmetic, is kept.

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.
        dropout: the share of the last 1280 values that training drops; 0.2 in the authors' code.

    Raises:
        InputError: rows are not images of that size, or `dropout` is out of range.

    Example:
        >>> sum(p.numel() for p in MobileNetV2((3, 224, 224), 1000).parameters())
        3504872
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, dropout: float | int = 0.2):
        super().__init__()
        channels, height, width = image_shape("mobilenetv2", input_shape, smallest=8)
        check_dropout("mobilenetv2", dropout=dropout)
        small = min(height, width) < SMALL_IMAGE
        layers: list[nn.Module] = [_conv_norm_relu6(channels, 32, 3, 1 if small else 2)]
        before = 32
        for number, (expansion, maps, blocks, stride) in enumerate(_STAGES):
            for block in range(blocks):
                first = 1 if block or (small and number == 1) else stride
                layers.append(Block(before, maps, expansion, first))
                before = maps
        self.features = nn.Sequential(*layers, _conv_norm_relu6(before, _LAST, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_LAST, outputs))
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


@final
class Block(nn.Module):
    """An inverted residual; the shortcut goes around it where neither size nor number of maps changes."""

    def __init__(self, before: int, after: int, expansion: int, stride: int):
        super().__init__()
        wide = before * expansion
        widen = [_conv_norm_relu6(before, wide, 1)] if expansion > 1 else []
        self.residual = nn.Sequential(
            *widen, _conv_norm_relu6(wide, wide, 3, stride, groups=wide), conv(wide, after, 1), nn.BatchNorm2d(after)
        )
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Float[Tensor, "B before h w"]) -> Float[Tensor, "B after h2 w2"]:
        """Returns the block's maps."""
        maps: Tensor = self.residual(x)
        return x + maps if self.shortcut else maps


def _conv_norm_relu6(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(before, after, size, stride, groups), nn.BatchNorm2d(after), nn.ReLU6())
