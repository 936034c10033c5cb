"""Recurrent networks for series and text: LSTM and GRU.

Hochreiter, Schmidhuber, *Long short-term memory*, Neural Computation 1997, with the forget gates of Gers et al. 2000;
Cho et al., *Learning phrase representations using RNN encoder–decoder*, EMNLP 2014 (arXiv:1406.1078).
"""

from typing import Literal, final

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from kinfold.models.sequences import SeriesSteps, TokenSteps, mean_over_steps
from kinfold.models.shapes import check_dropout, check_sizes, series_shape, text_shape

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


@final
class Recurrent(nn.Module):
    """Recurrent layers over the steps, the mean of the last layer's states, and a linear layer.

    The mean, and not the last state alone, so that what was seen early in a long row still counts. The layers run
    forward only, so padding, which follows the steps, changes nothing.

    Args:
        input_shape: (channels, steps) of a series, or (steps,) of token ids.
        outputs: how many numbers to give per row.
        cell: `lstm` or `gru`.
        vocabulary: how many token ids there are; None for series.
        width: of the state, and of a token's vector.
        layers: how many, one above the other.
        dropout: the share of the mean state's values that training drops.

    Raises:
        InputError: rows are neither series nor token ids, or an argument is out of range.

    Example:
        >>> import torch
        >>> Recurrent((3, 20), 5, cell="gru", width=8)(torch.zeros(4, 3, 20), torch.ones(4, 20)).shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        cell: Literal["lstm", "gru"],
        vocabulary: int | None = None,
        width: int = 128,
        layers: int = 1,
        dropout: float | int = 0.0,
    ):
        super().__init__()
        check_sizes(cell, width=width, layers=layers)
        check_dropout(cell, dropout=dropout)
        if vocabulary is None:
            features, _ = series_shape(cell, input_shape)
            self.steps: TokenSteps | SeriesSteps = SeriesSteps()
        else:
            _, known = text_shape(cell, input_shape, vocabulary)
            features, self.steps = width, TokenSteps(known, width)
        self.cell = _CELLS[cell](features, width, layers, batch_first=True)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(
        self, x: Shaped[Tensor, "B *row"], mask: Float[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of series [B, C, L], with a mask where lengths differ, or of ids [B, L]."""
        steps, mask = self.steps(x, mask)
        states, _ = self.cell(steps)
        logits: Tensor = self.classifier(mean_over_steps(states, mask))
        return logits
