"""Label smoothing (Szegedy et al., *Rethinking the Inception Architecture*, CVPR 2016, section 7)."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Int64
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State, probabilities


@final
@dataclass(frozen=True)
class LabelSmoothing(Method):
    """Targets become (1 − ε) · target + ε / C.

    Attributes:
        epsilon: ε, the share of the target that is spread over all classes.

    Example:
        >>> import torch
        >>> batch = Batch(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0]), classes=2)
        >>> LabelSmoothing(0.1).batch(batch, {}, torch.tensor(0)).y
        tensor([[0.0500, 0.9500]])
    """

    epsilon: float | int = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 1.0:
            raise InputError(f"label_smoothing: epsilon is {self.epsilon!r}; give a number between 0 and 1.")

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        del state, key
        y = probabilities(batch)
        return batch._replace(y=(1.0 - self.epsilon) * y + self.epsilon / y.shape[1])
