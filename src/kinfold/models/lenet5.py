"""LeNet-5: LeCun, Bottou, Bengio, Haffner, *Gradient-based learning applied to document recognition*, 1998."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import unknown
from kinfold.models.shapes import image_shape

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class LeNet5(nn.Module):
    """LeNet-5 in its modern form.

    Two 5×5 convolutions (6 and 16 maps), each followed by max pooling; dense layers of 120, 84 and the outputs. All
    of the second layer's maps see all of the first's, pooling has no parameters, and the outputs are plain logits.

    Sized to the image, each axis by itself: the first convolution is padded by 2 where the side is under 32 pixels
    (as the paper pads 28 to 32), the second by 2 where the side is under 16, so that two pixels a side or more reach
    the dense layers. With one channel and 10 outputs that is 61,706 parameters at 28×28 and at 32×32 alike. (The
    44,426 one also meets belong to 28×28 without padding.)

    Args:
        input_shape: (channels, height, width), 8 pixels a side or more.
        outputs: how many numbers to give per image.
        activation: `relu`, or `tanh` as in the paper.

    Raises:
        InputError: rows are not images of that size, or the activation is unknown.

    Example:
        >>> sum(p.numel() for p in LeNet5((1, 28, 28), 10).parameters())
        61706
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, activation: Literal["relu", "tanh"] = "relu"):
        super().__init__()
        channels, height, width = image_shape("lenet5", input_shape, smallest=8)
        if activation not in _ACTIVATIONS:
            raise unknown("model lenet5: activation", activation, _ACTIVATIONS)
        active = _ACTIVATIONS[activation]
        first = (_padding(height, 32), _padding(width, 32))
        second = (_padding(height, 16), _padding(width, 16))
        pixels = _final_side(height) * _final_side(width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            active(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=second),
            active(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * pixels, 120),
            active(),
            nn.Linear(120, 84),
            active(),
            nn.Linear(84, outputs),
        )

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _padding(side: int, enough: int) -> int:
    return 2 if side < enough else 0


def _final_side(side: int) -> int:
    """Returns the height or width that reaches the dense layers: two times (convolve by 5, halve)."""
    pooled = (side + 2 * _padding(side, 32) - 4) // 2
    return (pooled + 2 * _padding(side, 16) - 4) // 2
