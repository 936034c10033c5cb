"""What the convolutional networks share."""

from torch import nn


def conv(before: int, after: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a convolution without bias (a batch norm follows), padded so that stride 1 keeps the image's size."""
    return nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False)


def conv_norm_relu(before: int, after: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Returns `conv`, batch norm and ReLU."""
    return nn.Sequential(conv(before, after, size, stride, groups), nn.BatchNorm2d(after), nn.ReLU())


def conv_series(before: int, after: int, length: int) -> nn.Sequential:
    """Returns a convolution over steps without bias (a batch norm follows), padded so that it keeps their number."""
    # Not `padding="same"`, which warns of even lengths.
    padding = nn.ConstantPad1d(((length - 1) // 2, length // 2), 0.0)
    return nn.Sequential(padding, nn.Conv1d(before, after, length, bias=False))


def start_kaiming(model: nn.Module) -> None:
    """Draws all convolutions anew from N(0, 2 / fan out), in place (He et al. 2015, arXiv:1502.01852, section 2.2)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
