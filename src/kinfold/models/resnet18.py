"""The residual network of 18 layers.

He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, CVPR 2016 (arXiv:1512.03385), section 4.1.
"""

from itertools import pairwise
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.models.convolution import conv, conv_norm_relu, start_kaiming
from kinfold.models.shapes import SMALL_IMAGE, image_shape


@final
class ResNet18(nn.Module):
    """Four stages of two blocks with 64, 128, 256 and 512 maps; shortcuts that change shape are 1×1 convolutions.

    Images of 64 pixels a side or more meet the paper's stem, a 7×7 convolution and a max pool that quarter the side:
    11,689,512 parameters at 3×224×224 with 1000 outputs. Smaller ones meet a 3×3 convolution that keeps it:
    11,173,962 at 3×32×32 with 10 outputs.

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.

    Raises:
        InputError: rows are not images of that size.

    Example:
        >>> sum(p.numel() for p in ResNet18((3, 32, 32), 10).parameters())
        11173962
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int):
        super().__init__()
        channels, height, width = image_shape("resnet18", input_shape, smallest=8)
        if min(height, width) < SMALL_IMAGE:
            self.stem = conv_norm_relu(channels, 64)
        else:
            self.stem = nn.Sequential(conv_norm_relu(channels, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Block(before, after), Block(after, after))
                for before, after in pairwise((64, 64, 128, 256, 512))
            )
        )
        self.classifier = nn.Linear(512, outputs)
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))
        return logits


@final
class Block(nn.Module):
    """Two 3×3 convolutions and the shortcut around them; halves the image where the number of maps grows."""

    def __init__(self, before: int, after: int):
        super().__init__()
        stride = 1 if before == after else 2
        self.residual = nn.Sequential(
            *conv_norm_relu(before, after, 3, stride), conv(after, after), nn.BatchNorm2d(after)
        )
        same = before == after
        self.shortcut = nn.Identity() if same else nn.Sequential(conv(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Float[Tensor, "B before h w"]) -> Float[Tensor, "B after h2 w2"]:
        """Returns the block's maps."""
        return F.relu(self.residual(x) + self.shortcut(x))
