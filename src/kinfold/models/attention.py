"""What the transformers share: self-attention, and the layer around it.

Vaswani et al., *Attention is all you need*, NeurIPS 2017 (arXiv:1706.03762); norms come first, as in Xiong et al., *On
layer normalization in the transformer architecture*, ICML 2020 (arXiv:2002.04745).

Legend: B batch, L steps, D features of a step.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.models.shapes import check_sizes

_NEVER = -1e9  # finite, so that a row without any step gives numbers


@final
class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in several heads (eq. 1 and section 3.2.2).

    Written out: `scaled_dot_product_attention` has no batching rule on the CPU, so a model that calls it cannot be
    stacked.

    Args:
        width: D.
        heads: how many attend side by side, on D / heads features each.
        dropout: the share of attention weights that training drops.
    """

    def __init__(self, width: int, heads: int, dropout: float | int):
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.dropout = nn.Dropout(dropout)
        self.combine = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B L D"], mask: Float[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Returns what each step gathers from the steps that are there."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores + torch.where(mask > 0, 0.0, _NEVER).to(scores.dtype)[:, None, None]
        gathered = self.dropout(scores.softmax(-1)) @ value
        combined: Tensor = self.combine(gathered.transpose(1, 2).flatten(-2))
        return combined


@final
class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)).

    Args:
        width: D.
        heads: of the attention.
        feedforward: from D features to D, of each step by itself.
        attention_dropout: the share of attention weights that training drops.
        residual_dropout: the share of what is added to x that training drops.
        first_norm: whether x is normalised before the attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: nn.Module,
        *,
        attention_dropout: float | int,
        residual_dropout: float | int,
        first_norm: bool = True,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width) if first_norm else nn.Identity()
        self.attention = SelfAttention(width, heads, attention_dropout)
        self.feedforward = nn.Sequential(nn.LayerNorm(width), feedforward, nn.Dropout(residual_dropout))
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, x: Float[Tensor, "B L D"], mask: Float[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Returns the steps after the layer."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        after: Tensor = x + self.feedforward(x)
        return after


def check_heads(name: str, width: int, heads: int) -> None:
    """Checks that the heads can share the features.

    Args:
        name: the structure, for the message.
        width: features of a step.
        heads: of the attention.

    Raises:
        InputError: one is not a positive whole number, or the heads do not divide the width.
    """
    check_sizes(name, width=width, heads=heads)
    if width % heads:
        raise InputError(f"model {name}: width {width} cannot be shared by {heads} heads; give a multiple of them.")
