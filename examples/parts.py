"""Parts of one's own, as the configurations beside this file name them: a network on frozen layers, and a loss."""

import torch
from torch import Tensor, nn


def digit_features(width: int = 64) -> nn.Module:
    """Returns layers for 8 x 8 pictures that stand for a pretrained network: a fixed bank of random filters.

    With a network of torchvision or timm, load its weights here, and take its last layer off.
    """
    filters = nn.Conv2d(1, width, kernel_size=3, padding=1)
    with torch.no_grad():
        filters.weight.copy_(torch.randn(filters.weight.shape, generator=torch.Generator().manual_seed(0)) / 3)
        filters.bias.zero_()
    return nn.Sequential(filters, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


class FrozenFeatures(nn.Module):
    """Trains one linear layer on what other layers give; these stay as they are.

    Args:
        features: gives a row of numbers for each picture.
        inputs: how many numbers.
        classes: how many classes there are.
        activation: what comes before the linear layer; a class.
    """

    def __init__(self, features: nn.Module, inputs: int, classes: int, activation: type[nn.Module] = nn.Identity):
        super().__init__()
        self.features = features.requires_grad_(False)
        self.head = nn.Sequential(activation(), nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Returns one score for each class."""
        scores: Tensor = self.head(self.features(x))
        return scores


def focal_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the focal loss with γ = 2, in which rows that are easy count little (Lin et al., ICCV 2017, eq. 4)."""
    log_p = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2 * log_p).mean()
