"""Shares of the tasks in one process, which exchange what a cluster's would, counted and through a codec.

What the cluster engine does, without Ray: every share has an engine of its own, and plans are carried out among them by
`kinfold.engines.exchange`. For benchmarks of traffic; one share after another is slower than all tasks in one engine.

Legend: T tasks, A shares, N rows, C classes or outputs.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kinfold.engines.base import Engine, Job
from kinfold.engines.compression import Codec
from kinfold.engines.exchange import InProcess, carry_out
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import joined_states, start_share, state_of_tasks
from kinfold.tasks.order import Segment
from kinfold.tasks.update import MakeScheduler
from kinfold.transfer.base import Outcome, Plan


@final
class Shared(Engine):
    """Engines of A shares, one after another.

    Args:
        job: of all tasks.
        shares: A.
        codec: for models that go from one share to another.
        kind: the engine of a share.
        start: whether the shares know the tasks' common start, from which a codec then reckons.

    Attributes:
        moved: bytes that went from one share to another so far, by kind.
        plans: how many plans moved any.
    """

    name = "shared"

    def __init__(
        self,
        job: Job,
        shares: int,
        codec: Codec | None = None,
        kind: type[LocalEngine] = Sequential,
        start: bool = True,
    ):
        ends = [round(i * job.tasks / shares) for i in range(shares + 1)]
        self._shares = [slice(first, end) for first, end in itertools.pairwise(ends)]
        self._engines = [start_share(kind, job, tasks) for tasks in self._shares]
        for engine in self._engines if not start else []:
            vars(engine)["start"] = {}  # in the place of what it would find
        self._transport, self._codec = InProcess(self._engines), codec
        self.moved: Counter[str] = Counter()
        self.plans = 0

    def _all(self, function: Callable[[LocalEngine], Tensor]) -> Tensor:
        return torch.cat([function(engine) for engine in self._engines])

    def train(self, segment: Segment) -> Float[Tensor, " T"]:
        return self._all(lambda engine: engine.train(segment))

    def steps(self, period: int) -> Int64[Tensor, " T"]:
        return self._all(lambda engine: engine.steps(period))

    def score(self) -> Float[Tensor, "T 2"]:
        return self._all(lambda engine: engine.score())

    def predict(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m C"]:
        return self._all(lambda engine: engine.predict(rows, best))

    def losses(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m"]:
        return self._all(lambda engine: engine.losses(rows, best))

    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        for engine, own in zip(self._engines, self._shares, strict=True):
            engine.snapshot(tasks[own])

    def apply(self, plan: Plan, period: int) -> Outcome:
        outcome = carry_out(plan, period, self._shares, self._transport, self._codec)
        moved = self._transport.traffic()
        self.moved.update(moved)
        self.plans += bool(moved)
        return outcome

    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        for engine, own in zip(self._engines, self._shares, strict=True):
            engine.end_period(scores[own])

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        for engine in self._engines:
            engine.reschedule(scheduler)

    def export(self, task: int) -> nn.Module:
        engine, own = next(pair for pair in zip(self._engines, self._shares, strict=True) if task < pair[1].stop)
        return engine.export(task - own.start)

    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        return self._all(lambda engine: engine.norms(best))

    def method_states(self) -> list[dict[str, Tensor]]:
        states = zip(*(engine.method_states() for engine in self._engines), strict=True)
        return [{name: torch.cat([own[name] for own in parts]) for name in parts[0]} for parts in states]

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        parts = [engine.options() for engine in self._engines]
        return {name: torch.cat([own[name] for own in parts]) for name in parts[0]}

    def visits(self) -> int:
        return sum(engine.visits() for engine in self._engines)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return joined_states([engine.state() for engine in self._engines], self._shares)

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        for engine, own in zip(self._engines, self._shares, strict=True):
            engine.restore(*state_of_tasks(tensors, values, own))

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
