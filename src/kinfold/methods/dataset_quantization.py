"""Dataset quantization: a task trains on a part of its rows that represents them all.

Zhou, Wang, Gu, Peng, Lian, Zhang, You, Feng, *Dataset Quantization* (ICCV 2023, arXiv:2308.10524, section 3), and its
code (magic-research/Dataset_Quantization). Of its two steps, the choice of rows is here, and not that of pixels.

Legend: n rows, D features, m rows of one class, k of one bin, N rows of the data.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, Rows, State
from kinfold.methods.networks import FrozenNetwork


@final
@dataclass(frozen=True)
class DatasetQuantization(Method):
    """Rows are dealt into bins by how much they stand for, and the same share of each bin is kept, for the whole run.

    Each class has bins of its own. What is chosen follows from the task's own training rows alone, and stays with the
    task in a transfer. Before the start it takes the products of all features of a class with each other; training
    then costs `share` of what it did.

    Attributes:
        share: of the rows that is kept.
        bins: in each class.
        features: a module, or a factory of one without arguments, from rows to [B, …]; default the rows themselves.
            The authors' is a network trained on other data.

    Raises:
        InputError: one of them is out of range.

    Example:
        >>> DatasetQuantization(0.2).bins
        10
    """

    share: float | int = 0.6
    bins: int = 10
    features: nn.Module | Callable[[], nn.Module] | None = None
    network: FrozenNetwork | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise InputError(f"dataset_quantization: share is {self.share!r}; give a number up to 1, above 0.")
        if self.bins < 1:
            raise InputError(f"dataset_quantization: bins is {self.bins!r}; give 1 or more.")
        network = None if self.features is None else FrozenNetwork(self.features)
        object.__setattr__(self, "network", network)

    def start(self, params: Params, context: Context) -> State:
        like = next(iter(params.values()))
        batches = list(context.batches())
        features = torch.cat([self._features(batch.x) for batch in batches])
        y = torch.cat([batch.y for batch in batches]).cpu()
        if context.classes is None:
            classes = torch.zeros(len(y), dtype=torch.int64)
        else:  # a student of several tasks has probabilities
            classes = y.argmax(1) if y.is_floating_point() else y
        kept = quantized(features, classes, self.share, self.bins, context.key.cpu())
        mask = torch.zeros(context.count, dtype=like.dtype)
        mask[context.rows.cpu()] = kept.to(like.dtype)
        return {"own/kept": mask.to(like.device)}

    def draw(self, order: Int64[Tensor, " n"], state: State, key: Int64[Tensor, ""]) -> Int64[Tensor, " m"]:
        del key
        return order[state["own/kept"][order] > 0]

    def _features(self, x: Rows) -> Float64[Tensor, "B D"]:
        """On the host and in double precision, so that every engine chooses the same rows."""
        if self.network is not None:
            with torch.no_grad():
                x = self.network(*x if isinstance(x, tuple) else (x,))
        parts = x if isinstance(x, tuple) else (x,)
        return torch.cat([part.detach().cpu().double().flatten(1) for part in parts], 1)


def quantized(
    features: Float[Tensor, "n D"], classes: Int64[Tensor, " n"], share: float | int, bins: int, key: Int64[Tensor, ""]
) -> Bool[Tensor, " n"]:
    """Returns which rows to keep: of each class `share`, and of each of its bins `share`, drawn uniformly.

    Where a share of a bin is no whole number, those of the bins so far add up to the nearest one.

    Args:
        features: of the rows.
        classes: of the rows.
        share: to keep; of each class at least one row.
        bins: in each class.
        key: of the draws.

    Example:
        >>> kept = quantized(torch.eye(6), torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, 2, random.key(0))
        >>> int(kept[:4].sum()), int(kept[4:].sum())
        (2, 1)
    """
    kept = torch.zeros(len(features), dtype=torch.bool)
    for c in sorted(set(classes.tolist())):
        own = (classes == c).nonzero().flatten()
        seen = taken = 0
        for b, bin_ in enumerate(graph_cut_bins(features[own], bins)):
            seen += len(bin_)
            wanted = max(int(seen == len(own)), round(share * seen)) - taken
            drawn = random.permutation(random.fold_in(random.fold_in(key, c), b), len(bin_))[: max(0, wanted)]
            kept[own[bin_[drawn]]] = True
            taken += len(drawn)
    return kept


def graph_cut_bins(features: Float[Tensor, "m D"], bins: int) -> list[Int64[Tensor, " k"]]:
    """Returns disjoint bins of rows, in the order chosen; the first has the rows that stand for the most others.

    A bin grows by the row x of greatest gain Σ_{p of those left at its beginning} s(x, p) − 2 Σ_{p in it} s(x, p), with
    s(x, p) = (1 + cos(x, p)) / 2: like the many, unlike those chosen. The next bin is of the rows that are left. Of
    gains that are equal but for rounding, as the last two rows' always are, the first row's is taken on any processor.

    Args:
        features: of the rows.
        bins: how many, of equal size up to rounding; the last has what is left.

    Example:
        >>> [bin_.tolist() for bin_ in graph_cut_bins(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 3)]
        [[1], [0], [2]]
    """
    unit = features / features.norm(dim=1, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)
    left, result = torch.arange(len(unit)), []
    ends = [round(len(unit) * b / bins) for b in range(bins + 1)]
    for begin, end in itertools.pairwise(ends[:-1]):
        pool = unit[left]
        gain = len(pool) / 2 + pool @ pool.sum(0) / 2  # the sum over all of s, without their matrix
        rounding = 64 * torch.finfo(gain.dtype).eps * len(pool)
        chosen = []
        for _ in range(end - begin):
            known = gain.nan_to_num(nan=torch.inf, neginf=-torch.inf)  # of features that are not finite
            best = int((known >= known.max() - rounding).nonzero()[0])
            chosen.append(best)
            gain -= 1.0 + pool @ pool[best]
            gain[best] = -torch.inf
        result.append(left[chosen])
        others = torch.ones(len(left), dtype=torch.bool)
        others[chosen] = False
        left = left[others]
    return [*result, left]
