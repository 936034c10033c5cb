"""VGG with batch normalisation.

Simonyan, Zisserman, *Very deep convolutional networks for large-scale image recognition*, ICLR 2015
(arXiv:1409.1556), configurations A (11 layers) and D (16 layers); a batch norm after every convolution, as has become
usual (Ioffe, Szegedy 2015).
"""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import unknown
from kinfold.models.convolution import start_kaiming
from kinfold.models.shapes import SMALL_IMAGE, check_dropout, image_shape

_STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


@final
class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ended by a max pool that halves the image.

    Images of 64 pixels a side or more meet the paper's three dense layers (4096, 4096, outputs) on 7×7 pixels:
    132,868,840 parameters for 11 layers and 138,365,992 for 16, at 3×224×224 with 1000 outputs. Smaller ones meet one
    dense layer on the mean over what pixels are left: 9,231,114 and 14,728,266 at 3×32×32 with 10 outputs. There
    the pools round sides up, so that images of fewer than 32 pixels a side reach the end.

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.
        depth: 11 or 16.
        dropout: the share of the two hidden dense layers' values that training drops; without effect on small images.

    Raises:
        InputError: rows are not images of that size, an unknown depth, or `dropout` is out of range.

    Example:
        >>> sum(p.numel() for p in VGG((3, 32, 32), 10, depth=16).parameters())
        14728266
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, depth: int, dropout: float | int = 0.5):
        super().__init__()
        channels, height, width = image_shape(f"vgg{depth}-bn", input_shape, smallest=8)
        if depth not in _STAGES:
            raise unknown("model vgg: depth", depth, map(str, _STAGES))
        check_dropout(f"vgg{depth}-bn", dropout=dropout)
        small = min(height, width) < SMALL_IMAGE
        layers: list[nn.Module] = []
        for stage in _STAGES[depth]:
            for maps in stage:
                layers += [nn.Conv2d(channels, maps, 3, padding=1), nn.BatchNorm2d(maps), nn.ReLU()]
                channels = maps
            layers.append(nn.MaxPool2d(2, ceil_mode=small))
        self.features = nn.Sequential(*layers)
        if small:
            self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs))
        else:
            self.classifier = nn.Sequential(
                nn.AdaptiveAvgPool2d(7),
                nn.Flatten(),
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(4096, outputs),
            )
        start_kaiming(self)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
