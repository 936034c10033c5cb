"""Wide residual networks for small images.

Zagoruyko, Komodakis, *Wide residual networks*, BMVC 2016 (arXiv:1605.07146).
"""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.models.convolution import conv, start_kaiming
from kinfold.models.shapes import check_dropout, check_sizes, image_shape


@final
class WideResNet(nn.Module):
    """WRN-d-k: three stages of n = (d − 4) / 6 blocks with 16k, 32k and 64k maps, batch norm and ReLU first.

    At 3×32×32 with 10 outputs, WRN-16-4 has 2,748,890 parameters (the paper's table 4: 2.7 M). Each of the last two
    stages halves the image; the mean over pixels at the end takes any size.

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.
        depth: d = 6n + 4: 16, 22, 28, 40.
        widen: k.
        dropout: the share of values that training drops between a block's two convolutions.

    Raises:
        InputError: rows are not images of that size, the depth is not 6n + 4, or another argument is out of range.

    Example:
        >>> sum(p.numel() for p in WideResNet((3, 32, 32), 10, depth=16, widen=4).parameters())
        2748890
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, *, depth: int, widen: int, dropout: float | int = 0.0
    ):
        super().__init__()
        channels, _, _ = image_shape(f"wide-resnet-{depth}-{widen}", input_shape, smallest=8)
        if depth < 10 or depth % 6 != 4:
            raise InputError(f"model wide-resnet: depth is {depth}; give 6n + 4, such as 16 or 28.")
        check_sizes("wide-resnet", widen=widen)
        check_dropout("wide-resnet", dropout=dropout)
        blocks: list[nn.Module] = []
        before = 16
        for stage in range(3):
            after = 16 * widen * 2**stage
            for block in range((depth - 4) // 6):
                blocks.append(Block(before, after, 2 if stage and not block else 1, dropout))
                before = after
        self.features = nn.Sequential(conv(channels, 16), *blocks, nn.BatchNorm2d(before), nn.ReLU())
        self.classifier = nn.Linear(before, outputs)
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


@final
class Block(nn.Module):
    """Two times batch norm, ReLU and a 3×3 convolution, and the shortcut around them.

    Where the shape changes, the shortcut is a 1×1 convolution of the first ReLU's output, as in the authors' code.
    """

    def __init__(self, before: int, after: int, stride: int, dropout: float | int):
        super().__init__()
        self.active = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.residual = nn.Sequential(
            conv(before, after, 3, stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Dropout(dropout),
            conv(after, after),
        )
        self.shortcut = None if before == after and stride == 1 else conv(before, after, 1, stride)

    def forward(self, x: Float[Tensor, "B before h w"]) -> Float[Tensor, "B after h2 w2"]:
        """Returns the block's maps."""
        active = self.active(x)
        around: Tensor = x if self.shortcut is None else self.shortcut(active)
        maps: Tensor = self.residual(active)
        return maps + around
