"""The one meaning of better: for snapshots, acceptance, patience and selection."""

from jaxtyping import Bool, Shaped
from torch import Tensor

from kinfold.errors import unknown

BETTER = ("metric", "loss")
"""What may be compared first; the other breaks ties."""


def better(
    metric_a: Shaped[Tensor, "*shape"],
    loss_a: Shaped[Tensor, "*shape"],
    metric_b: Shaped[Tensor, "*shape"],
    loss_b: Shaped[Tensor, "*shape"],
    by: str = "metric",
) -> Bool[Tensor, "*shape"]:
    """Returns where a is strictly better than b: a higher metric, ties broken by a lower loss.

    A score with NaN in either part is worse than every other, and no better than another such.

    Args:
        metric_a: metric of a, turned so that higher is better.
        loss_a: loss of a.
        metric_b: metric of b, turned likewise.
        loss_b: loss of b.
        by: `"metric"`, or `"loss"` for a lower loss, ties broken by a higher metric.

    Raises:
        InputError: `by` is neither.

    Example:
        >>> import torch
        >>> metric, loss = torch.tensor([0.9, 0.8, 0.8]), torch.tensor([0.5, 0.5, 0.2])
        >>> better(metric, loss, torch.full((3,), 0.8), torch.full((3,), 0.4))
        tensor([ True, False,  True])
    """
    if by not in BETTER:
        raise unknown("better", by, BETTER)
    known_a, known_b = (~(metric.isnan() | loss.isnan()) for metric, loss in ((metric_a, loss_a), (metric_b, loss_b)))
    higher, level = metric_a > metric_b, metric_a == metric_b
    lower, even = loss_a < loss_b, loss_a == loss_b
    wins = higher | (level & lower) if by == "metric" else lower | (even & higher)
    return known_a & (wins | ~known_b)
