"""CutMix (Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers*, ICCV 2019, eqs. 1 and 2)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State, image
from kinfold.methods.mixing import mixed


@final
@dataclass(frozen=True)
class CutMix(Method):
    """A box of each image is another image's of the batch, and the target is that one's by the share of the box.

    The box is the same for all images of a batch: its sides are √(1 − λ) of the image's, λ ~ Beta(α, α), and its centre
    is uniform over the image, so that it may be cut off at the edge. The share is that of the pixels that are left.

    Attributes:
        alpha: α; 1, as in the paper, draws the area uniformly.
        probability: of a batch to be cut at all (1 on ImageNet, 0.5 on CIFAR in the paper).

    Example:
        >>> batch = Batch(torch.eye(2).view(2, 2, 1, 1).expand(2, 2, 4, 4), torch.arange(2), torch.arange(2), classes=2)
        >>> cut = CutMix().batch(batch, {}, random.key(0))
        >>> torch.allclose(cut.x.mean((2, 3)), cut.y)
        True
    """

    alpha: float | int = 1.0
    probability: float | int = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"cutmix: alpha is {self.alpha!r}; give a number above 0.")
        if not 0.0 <= self.probability <= 1.0:
            raise InputError(f"cutmix: probability is {self.probability!r}; give a number between 0 and 1.")

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        del state
        x = image(batch.x)
        lam = random.beta(random.fold_in(key, 0), self.alpha, self.alpha)
        other = random.permutation(random.fold_in(key, 1), batch.row.shape[0]).to(batch.row.device)
        cuts = random.uniform(random.fold_in(key, 2), ()) < self.probability
        centre = random.uniform(random.fold_in(key, 3), (2,), torch.float64)
        half = (1.0 - lam.to(torch.float64)).sqrt() / 2.0
        inside = []
        for axis, size in enumerate(x.shape[2:]):
            # Whole pixels, as in the paper: the box covers those whose centres lie in it.
            places = (torch.arange(size, device=x.device) + 0.5) / size
            inside.append((places - centre[axis].to(x.device)).abs() < half.to(x.device))
        box = inside[0][:, None] & inside[1][None, :] & cuts.to(x.device)
        share = 1.0 - box.to(x.dtype).mean()
        return mixed(batch, torch.where(box, x[other], x), share, other)
