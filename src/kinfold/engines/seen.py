"""What the tasks' models gave for their validation rows: computed once, for scores, acceptance and teaching alike.

Legend: T tasks, k some of them, N rows, V validation rows of the task that has most, m rows asked for, C outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """Outputs of the models as they stand, kept until these change. Workers share its memory, and so what is known.

    Attributes:
        validation: [T, N] the tasks' validation rows.
        outputs: [T, V, C] of each task on its validation rows in their order, where `fresh`; on the CPU.
        fresh: [T] whether a task's outputs are those of its model as it stands.
        snapshots: [1] how often the best snapshots have changed.

    Example:
        >>> seen = Seen.start(torch.tensor([[True, False, True]]), width=1, dtype=torch.float32)
        >>> seen.put(0, torch.tensor([[5.0], [7.0]]))
        >>> outputs, known = seen.on(torch.tensor([2, 1]))
        >>> known, outputs[known]
        (tensor([[ True, False]]), tensor([[7.]]))
    """

    validation: Bool[Tensor, "T N"]
    outputs: Float[Tensor, "T V C"]
    fresh: Bool[Tensor, " T"]
    snapshots: Int64[Tensor, " 1"]

    @classmethod
    def start(cls, validation: Bool[Tensor, "T N"], width: int, dtype: torch.dtype) -> "Seen":
        """Returns a place for models that give `width` numbers a row, with nothing known yet."""
        T = len(validation)
        most = int(validation.sum(1).max())
        fresh = torch.zeros(T, dtype=torch.bool)
        return cls(validation, torch.zeros(T, most, width, dtype=dtype), fresh, torch.zeros(1, dtype=torch.int64))

    def tasks(self, tasks: slice) -> "Seen":
        """Returns neighbouring tasks as views, which share the memory."""
        return Seen(self.validation[tasks], self.outputs[tasks], self.fresh[tasks], self.snapshots)

    def forget(self, tasks: Sequence[int] | None = None) -> None:
        """Some tasks' models, or all, have changed."""
        self.fresh[slice(None) if tasks is None else list(tasks)] = False

    def forget_best(self) -> None:
        """Best snapshots have changed."""
        self.snapshots.add_(1)

    def put(self, task: int, outputs: Float[Tensor, "n C"]) -> None:
        """Keeps what a task's model as it stands gives for its validation rows."""
        self.outputs[task, : len(outputs)] = outputs
        self.fresh[task] = True

    def of(self, task: int, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m C"] | None:
        """Returns a task's outputs on the rows, or None unless they are known for all of these."""
        own = self.validation[task]
        if not bool(self.fresh[task]) or not bool(own[rows].all()):
            return None
        return self.outputs[task, own.cumsum(0)[rows] - 1]

    def on(self, rows: Int64[Tensor, " m"]) -> tuple[Float[Tensor, "T m C"], Bool[Tensor, "T m"]]:
        """Returns the tasks' outputs on the same rows, and which of them are known; the rest has no meaning."""
        known = self.validation[:, rows] & self.fresh[:, None]
        outputs = self.outputs.new_empty(len(known), len(rows), self.outputs.shape[2])
        for t in self.fresh.nonzero().flatten().tolist():
            place = self.validation[t].cumsum(0) - 1
            outputs[t, known[t]] = self.outputs[t, place[rows[known[t]]]]
        return outputs, known
