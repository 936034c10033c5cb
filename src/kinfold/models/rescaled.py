"""A regression model whose last step is from standard units to the target's own."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


@final
class Rescaled(nn.Module):
    """output = module(x) · scale + mean.

    With squared error in units of `scale` (`StandardisedMSE`), the gradients that the module gets are those of a
    standardised target, whatever the target's unit; what comes out is in that unit.

    Args:
        module: gives [B, K].
        mean: [K] of the targets that may be trained on.
        scale: [K] their standard deviation.

    Example:
        >>> Rescaled(nn.Identity(), torch.tensor([100.0]), torch.tensor([10.0]))(torch.tensor([[0.5]]))
        tensor([[105.]])
    """

    def __init__(self, module: nn.Module, mean: Float[Tensor, " K"], scale: Float[Tensor, " K"]):
        super().__init__()
        self.module = module
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, *x: Tensor) -> Tensor:
        output: Tensor = self.module(*x)
        return output * self.get_buffer("scale") + self.get_buffer("mean")


@final
class StandardisedMSE(nn.Module):
    """Squared error in units of the targets' variance: 1 is what predicting their mean would cost.

    Args:
        scale: [K] standard deviation of each target.

    Example:
        >>> float(StandardisedMSE(torch.tensor([10.0]))(torch.tensor([105.0]), torch.tensor([100.0])))
        0.25
    """

    def __init__(self, scale: Float[Tensor, " K"]):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.reduction = "mean"  # or "none", as of torch's losses

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scale = self.get_buffer("scale")
        scale = scale[0] if outputs.ndim == 1 else scale
        return nn.functional.mse_loss(outputs / scale, targets / scale, reduction=self.reduction)


def moments(targets: Float[Tensor, "N *K"]) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Returns (mean, standard deviation) of each target column, in float32; 1 for a column that is constant."""
    columns = targets.double().reshape(len(targets), -1)
    scale = columns.std(0, unbiased=False)
    return columns.mean(0).float(), torch.where(scale > 0, scale, 1.0).float()
