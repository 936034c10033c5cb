"""A small transformer encoder for series and text.

Vaswani et al., *Attention is all you need*, NeurIPS 2017 (arXiv:1706.03762), section 3, the encoder alone; norms come
first, as in Xiong et al., ICML 2020 (arXiv:2002.04745).
"""

from typing import Literal, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from kinfold.errors import unknown
from kinfold.models.attention import EncoderLayer, check_heads
from kinfold.models.sequences import SeriesSteps, TokenSteps, mean_over_steps, sinusoids
from kinfold.models.shapes import check_dropout, check_sizes, series_shape, text_shape


@final
class Transformer(nn.Module):
    """Steps as vectors with their position, encoder layers, and the mean over the steps that are there.

    Args:
        input_shape: (channels, steps) of a series, or (steps,) of token ids.
        outputs: how many numbers to give per row.
        vocabulary: how many token ids there are; None for series.
        width: of a step's vector.
        heads: of each attention; they divide the width.
        layers: how many, one above the other. The feed-forward part of each is four times as wide as a step.
        dropout: the share of values that training drops, of attention weights and of what each layer adds.
        positions: `sinusoidal`, or `learned` for a vector a step.

    Raises:
        InputError: rows are neither series nor token ids, or an argument is out of range.

    Example:
        >>> Transformer((32,), 3, vocabulary=100, width=16)(torch.ones(2, 32, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        vocabulary: int | None = None,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        dropout: float | int = 0.1,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
    ):
        super().__init__()
        check_heads("transformer", width, heads)
        check_sizes("transformer", layers=layers)
        check_dropout("transformer", dropout=dropout)
        if positions not in ("sinusoidal", "learned"):
            raise unknown("model transformer: positions", positions, ("sinusoidal", "learned"))
        if vocabulary is None:
            channels, steps = series_shape("transformer", input_shape)
            self.steps: TokenSteps | SeriesSteps = SeriesSteps()
            self.project: nn.Module = nn.Linear(channels, width)
        else:
            steps, known = text_shape("transformer", input_shape, vocabulary)
            self.steps, self.project = TokenSteps(known, width), nn.Identity()
        learned = positions == "learned"
        self.positions = nn.Parameter(0.02 * torch.randn(steps, width)) if learned else None
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                heads,
                nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)),
                attention_dropout=dropout,
                residual_dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, outputs)

    def forward(
        self, x: Shaped[Tensor, "B *row"], mask: Float[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of series [B, C, L], with a mask where lengths differ, or of ids [B, L]."""
        steps, mask = self.steps(x, mask)
        steps = self.project(steps)
        steps = steps + (sinusoids(steps) if self.positions is None else self.positions)
        for layer in self.layers:
            steps = layer(steps, mask)
        logits: Tensor = self.classifier(mean_over_steps(self.norm(steps), mask))
        return logits
