"""The feature tokenizer and transformer for tables.

Gorishniy, Rubachev, Khrulkov, Babenko, *Revisiting deep learning models for tabular data*, NeurIPS 2021
(arXiv:2106.11959), section 3.3 and appendix E, with the default sizes given there.

Legend: B batch, K columns of the table, N numbers that encode them, D features of a token.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.models.attention import EncoderLayer, check_heads
from kinfold.models.shapes import check_dropout, check_sizes, table_shape


@final
class FTTransformer(nn.Module):
    """A token for each column of the table, encoder layers over them, and what a [CLS] token gathers.

    Args:
        input_shape: (numbers,), as the table's encoder gives them.
        outputs: how many numbers to give per row.
        widths: how many of the numbers belong to each of the table's columns, in order; default one to each.
        width: of a token.
        heads: of each attention; they divide the width.
        layers: how many, one above the other.
        attention_dropout: the share of attention weights that training drops.
        dropout: the share of values that training drops inside a layer's feed-forward part.
        residual_dropout: the share that it drops of what a layer adds.

    Raises:
        InputError: rows are not those of a table, or an argument is out of range.

    Example:
        >>> FTTransformer((5,), 3, widths=[1, 4], width=16)(torch.zeros(2, 5)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        widths: Sequence[int] | None = None,
        width: int = 192,
        heads: int = 8,
        layers: int = 3,
        attention_dropout: float | int = 0.2,
        dropout: float | int = 0.1,
        residual_dropout: float | int = 0.0,
    ):
        super().__init__()
        numbers = table_shape("ft-transformer", input_shape)
        check_heads("ft-transformer", width, heads)
        check_sizes("ft-transformer", layers=layers)
        check_dropout(
            "ft-transformer", attention_dropout=attention_dropout, dropout=dropout, residual_dropout=residual_dropout
        )
        self.tokens = FeatureTokenizer([1] * numbers if widths is None else widths, numbers, width)
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                heads,
                ReGLU(width, width * 4 // 3, dropout),
                attention_dropout=attention_dropout,
                residual_dropout=residual_dropout,
                first_norm=number > 0,  # the very first one is left out, as in the paper
            )
            for number in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of rows."""
        tokens = self.tokens(x)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.classifier(F.relu(self.norm(tokens[:, 0])))
        return logits


@final
class FeatureTokenizer(nn.Module):
    """A column's token is b + x W, x being the numbers that encode it (section 3.3, eq. for T_j).

    For a one-hot column x W is the row of W that belongs to its value, the paper's embedding; a value that was not
    seen has all zeros, and so the token b.
    """

    def __init__(self, widths: Sequence[int], numbers: int, width: int):
        super().__init__()
        if sum(widths) != numbers or min(widths) < 1:
            raise InputError(
                f"model ft-transformer: widths are {list(widths)}, and a row has {numbers} numbers; "
                "give positive whole numbers of that sum."
            )
        self.widths = list(widths)
        # Both start uniform in ±1/√D, as in the authors' code; so does [CLS], the first token.
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(numbers, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1 + len(widths), width).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B tokens D"]:
        """Returns [CLS] and the columns' tokens."""
        blocks = zip(torch.split(x, self.widths, 1), torch.split(self.weight, self.widths), strict=True)
        columns = torch.stack([block @ weight for block, weight in blocks], dim=1)
        return F.pad(columns, (0, 0, 1, 0)) + self.bias


@final
class ReGLU(nn.Module):
    """linear(drop(a · ReLU(b))), (a, b) = linear(x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, dropout: float | int):
        super().__init__()
        self.widen = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Returns each token's new features."""
        value, gate = self.widen(x).chunk(2, dim=-1)
        features: Tensor = self.narrow(self.dropout(value * F.relu(gate)))
        return features
