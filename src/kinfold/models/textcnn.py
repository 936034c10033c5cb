"""The convolutional network for sentences.

Kim, *Convolutional neural networks for sentence classification*, EMNLP 2014 (arXiv:1408.5882), the form CNN-rand.
"""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kinfold.models.sequences import TokenSteps
from kinfold.models.shapes import check_dropout, check_sizes, text_shape


@final
class TextCNN(nn.Module):
    """Convolutions of several lengths over the tokens' vectors, the greatest value of each map, and a linear layer.

    The paper's limit on the norm of the last layer's weights is left out. Each text is padded on both sides by as much
    as a convolution is long, so every one meets nothing but padding somewhere, and the logits do not depend on how far
    the text is padded.

    Args:
        input_shape: (steps,) of token ids.
        outputs: how many numbers to give per text.
        vocabulary: how many token ids there are, 0 (padding) included.
        width: of a token's vector.
        lengths: of the convolutions, in tokens.
        maps: how many each length has.
        dropout: the share of the greatest values that training drops.

    Raises:
        InputError: rows are not token ids, or an argument is out of range.

    Example:
        >>> sum(p.numel() for p in TextCNN((64,), 2, vocabulary=1000).parameters())
        660902
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        vocabulary: int | None = None,
        width: int = 300,
        lengths: Sequence[int] = (3, 4, 5),
        maps: int = 100,
        dropout: float | int = 0.5,
    ):
        super().__init__()
        _, known = text_shape("textcnn", input_shape, vocabulary)
        check_sizes("textcnn", width=width, maps=maps, lengths=min(lengths, default=0))
        check_dropout("textcnn", dropout=dropout)
        self.steps = TokenSteps(known, width)
        self.branches = nn.ModuleList(nn.Conv1d(width, maps, length, padding=length) for length in lengths)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(maps * len(lengths), outputs))

    def forward(self, x: Int64[Tensor, "B L"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of texts."""
        vectors = self.steps(x)[0].transpose(1, 2)
        greatest = torch.cat([branch(vectors).amax(-1) for branch in self.branches], dim=1)
        logits: Tensor = self.classifier(F.relu(greatest))
        return logits
