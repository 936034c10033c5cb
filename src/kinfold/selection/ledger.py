"""The exposure ledger: which rows each task, or anything that it learned from, has trained on.

It follows from what rules state and engines accept, so no rule can forget to report. Shapes: T tasks, n rows, K
candidate models.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ledger:
    """Which rows each task has been exposed to. It only grows.

    Attributes:
        exposed: [T, n] whether row i has been trained on by task t, or by what task t learned from.

    Example:
        >>> ledger = Ledger.start(torch.eye(3, dtype=torch.bool))
        >>> lineage = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
        >>> ledger.after(lineage, torch.tensor([True, True, True])).exposed.int()
        tensor([[1, 1, 0],
                [0, 1, 1],
                [0, 0, 1]], dtype=torch.int32)
    """

    exposed: Bool[Tensor, "T n"]

    @classmethod
    def start(cls, train: Bool[Tensor, "T n"]) -> "Ledger":
        """Returns the ledger before any transfer: each task is exposed to its training rows."""
        return cls(train.clone())

    def after(
        self,
        lineage: Bool[Tensor, "T T"],
        accepted: Bool[Tensor, " T"],
        rows: Bool[Tensor, "T n"] | None = None,
    ) -> "Ledger":
        """Returns the ledger after one plan: recipients inherit what their donors were exposed to before it.

        All recipients inherit at once, from the state before: what a donor itself receives in the same plan does
        not pass on.

        Args:
            lineage: [T, T] whether the recipient (row) learned from the donor (column).
            accepted: [T] whether the recipient took it; others are left as they are.
            rows: [T, n] rows that the recipient learned from directly, such as those of its soft targets.
        """
        everyone = self.exposed.any(0)
        if rows is None and bool((self.exposed == everyone)[accepted & lineage.any(1)].all()):
            return self  # who learns has nothing left to be exposed to, as after a rule has mixed all tasks once
        exposed = self.exposed.clone()
        # Donor by donor: a matrix product would need [T, n] numbers wide enough not to wrap, in place of bits.
        for recipient in accepted.nonzero().flatten().tolist():
            for donor in lineage[recipient].nonzero().flatten().tolist():
                exposed[recipient] |= self.exposed[donor]
            if rows is not None:
                exposed[recipient] |= rows[recipient]
        return Ledger(exposed)


def exposed_share(exposed: Bool[Tensor, "K n"], validation: Bool[Tensor, "T n"]) -> Float64[Tensor, "K T"]:
    """Returns which share of each validation set's rows each model has been exposed to; 0 means a clean score.

    Args:
        exposed: [K, n] rows that each model has been exposed to.
        validation: [T, n] rows of each validation set, at least one a set.

    Example:
        >>> validation = torch.tensor([[True, True, False], [False, False, True]])
        >>> exposed_share(torch.tensor([[True, False, False]]), validation)
        tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    shares = [exposed[:, rows].to(torch.float64).mean(dim=1) for rows in validation]
    return torch.stack(shares, dim=1)
