"""Residual networks for small images.

He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, CVPR 2016 (arXiv:1512.03385), section 4.2.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.models.convolution import conv, conv_norm_relu, start_kaiming
from kinfold.models.shapes import image_shape


class ResNet(nn.Module):
    """The paper's CIFAR network of 6n + 2 layers: three stages of n blocks with 16, 32 and 64 maps.

    Shortcuts between stages take every second pixel and pad the new maps with zeros (option A), so they have no
    parameters. Convolutions start as in He et al. 2015. At 3×32×32 with 10 outputs, depth 20 has 269,722
    parameters. Each of the last two stages halves the image; the mean over pixels at the end takes any size.

    Args:
        input_shape: (channels, height, width), 4 pixels a side or more.
        outputs: how many numbers to give per image.
        depth: 6n + 2: 20, 32, 44, 56, 110.

    Raises:
        InputError: rows are not images of that size, or the depth is not 6n + 2.

    Example:
        >>> sum(p.numel() for p in ResNet((3, 32, 32), 10, depth=20).parameters())
        269722
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, depth: int):
        super().__init__()
        channels, _, _ = image_shape(f"resnet{depth}", input_shape, smallest=4)
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"model resnet: depth is {depth}; give 6n + 2, such as 20, 32 or 56.")
        blocks = depth // 6
        self.stem = conv_norm_relu(channels, 16)
        self.stages = nn.Sequential(_stage(16, 16, blocks), _stage(16, 32, blocks), _stage(32, 64, blocks))
        self.classifier = nn.Linear(64, outputs)
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """Two 3×3 convolutions and the shortcut around them; halves the image where the number of maps grows."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride = 1 if before == after else 2
        self.new_maps = after - before
        self.residual = nn.Sequential(
            *conv_norm_relu(before, after, 3, self.stride), conv(after, after), nn.BatchNorm2d(after)
        )

    def forward(self, x: Float[Tensor, "B before h w"]) -> Float[Tensor, "B after h2 w2"]:
        """Returns the block's maps."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        half = self.new_maps // 2  # zeros on both sides of the maps there are
        shortcut = F.pad(shortcut, (0, 0, 0, 0, half, self.new_maps - half))
        return F.relu(self.residual(x) + shortcut)


def _stage(before: int, after: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(blocks - 1)))
