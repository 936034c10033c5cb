"""What the networks for series and text share: rows as steps, and means over the steps that are there.

A series is float [B, C, L]; where lengths differ it comes with a mask [B, L], 1 for a step and 0 for padding. A text is
token ids, int64 [B, L], 0 for padding. Padding follows the steps.

Legend: B batch, C channels, L steps, D features of a step.
"""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@final
class TokenSteps(nn.Module):
    """A learned vector for each token id; the zero vector for padding.

    Args:
        vocabulary: how many ids there are, 0 (padding) included.
        width: D.

    Example:
        >>> steps, mask = TokenSteps(10, 4)(torch.tensor([[3, 7, 0]]))
        >>> steps.shape, mask.tolist()
        (torch.Size([1, 3, 4]), [[1.0, 1.0, 0.0]])
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        # No padding_idx: under `torch.vmap` the gradient would ignore it. The mask does the same everywhere.
        self.table = nn.Embedding(vocabulary, width)

    def forward(
        self, ids: Int64[Tensor, "B L"], mask: Float[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L"]]:
        """Returns (steps, mask); the ids say themselves which of them are padding, a mask given is not looked at."""
        del mask
        vectors = self.table(ids)
        shown = (ids != 0).to(vectors.dtype)
        return vectors * shown[:, :, None], shown


@final
class SeriesSteps(nn.Module):
    """The channels of each step of a series, zeros for padding.

    Example:
        >>> SeriesSteps()(torch.ones(1, 2, 3), torch.tensor([[1.0, 1.0, 0.0]]))[0].tolist()
        [[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]
    """

    def forward(
        self, x: Float[Tensor, "B C L"], mask: Float[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B L"] | None]:
        """Returns (steps, mask)."""
        return masked(x, mask).transpose(1, 2), mask


def masked(x: Float[Tensor, "B C L"], mask: Float[Tensor, "B L"] | None) -> Float[Tensor, "B C L"]:
    """Returns `x` with zeros at the steps that are padding."""
    return x if mask is None else x * mask[:, None]


def mean_over_steps(x: Float[Tensor, "B L D"], mask: Float[Tensor, "B L"] | None) -> Float[Tensor, "B D"]:
    """Returns the mean over the steps that are there; zeros where none is.

    Example:
        >>> mean_over_steps(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([[2.]])
    """
    if mask is None:
        return x.mean(1)
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0)


def sinusoids(like: Float[Tensor, "B L D"]) -> Float[Tensor, "L D"]:
    """Returns sin and cos of the step's number at wavelengths from 2π to 20,000π (Vaswani et al. 2017, section 3.5).

    Feature 2i of step p is sin(p / 10000^(2i / D)), and feature 2i + 1 the cosine of the same.

    Args:
        like: whose steps and features to number, on whose device.

    Example:
        >>> sinusoids(torch.zeros(1, 2, 4))[0]
        tensor([0., 1., 0., 1.])
    """
    steps, width = like.shape[1:]
    dtype = torch.promote_types(like.dtype, torch.float32)  # bf16 cannot count the steps
    step = torch.arange(steps, device=like.device, dtype=dtype)
    even = torch.arange(0, width, 2, device=like.device, dtype=dtype)
    angle = step[:, None] * 10_000.0 ** (-even / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
