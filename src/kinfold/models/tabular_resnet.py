"""The residual network for tables.

Gorishniy, Rubachev, Khrulkov, Babenko, *Revisiting deep learning models for tabular data*, NeurIPS 2021
(arXiv:2106.11959), section 3.2.
"""

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinfold.models.shapes import check_dropout, check_sizes, table_shape


@final
class TabularResNet(nn.Module):
    """A linear layer, blocks x + drop(linear(drop(ReLU(linear(norm(x)))))), and linear(ReLU(norm(x))).

    Args:
        input_shape: (columns,), as the table's encoder gives them.
        outputs: how many numbers to give per row.
        width: of x.
        hidden: the width inside a block; default twice that of x.
        blocks: how many.
        dropout: the share of values that training drops inside a block.
        residual_dropout: the share that it drops of what a block adds.

    Raises:
        InputError: rows are not those of a table, or an argument is out of range.

    Example:
        >>> sum(p.numel() for p in TabularResNet((16,), 26).parameters())
        305498
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        width: int = 192,
        hidden: int | None = None,
        blocks: int = 2,
        dropout: float | int = 0.15,
        residual_dropout: float | int = 0.0,
    ):
        super().__init__()
        columns = table_shape("tabular-resnet", input_shape)
        inner = 2 * width if hidden is None else hidden
        check_sizes("tabular-resnet", width=width, hidden=inner, blocks=blocks)
        check_dropout("tabular-resnet", dropout=dropout, residual_dropout=residual_dropout)
        self.first = nn.Linear(columns, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width),
                nn.Linear(width, inner),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(inner, width),
                nn.Dropout(residual_dropout),
            )
            for _ in range(blocks)
        )
        self.norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "B columns"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of rows."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.classifier(F.relu(self.norm(x)))
        return logits
