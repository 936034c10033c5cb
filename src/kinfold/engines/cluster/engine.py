"""The engine `cluster`: shares of neighbouring tasks on hosts, Ray's actors, of one machine or many.

The one who asks sees scores, predictions and plans. Models are on the hosts, go from host to host where a plan wants
it, and come here one by one as they are exported, or in the state that a checkpoint is made of. What becomes of hosts
that are lost is `kinfold.engines.cluster.recovery`'s.

Legend: T tasks, k those of one share, A shares, m rows asked for, C classes or outputs.
"""

import dataclasses
import statistics
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kinfold.engines.apart import Apart, Uneven
from kinfold.engines.base import Job
from kinfold.engines.cluster.actors import halves, shared_start, trained
from kinfold.engines.cluster.packing import sent
from kinfold.engines.cluster.placement import Crew, node_name
from kinfold.engines.cluster.recovery import Shares
from kinfold.engines.exchange import Codec
from kinfold.engines.local import LocalEngine
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import joined_options, joined_states, state_of_tasks
from kinfold.errors import RunError
from kinfold.tasks.order import Segment
from kinfold.tasks.update import MakeScheduler
from kinfold.transfer.base import Outcome, Plan

_SLOW, _PERIODS = 2.0, 3
"""A host that takes so many times as long for a row as the median of all, in so many periods running, is named."""


@final
class Cluster(Uneven):
    """Shares of the tasks on hosts of a Ray cluster: the one at RAY_ADDRESS, or one of this machine's processes.

    A host that is lost, or a whole node, is replaced, and what it did is done again: the run ends as it would have. A
    node that joins is used from the next period on. Both are told of in `notes`.

    Args:
        job: what to train. A device that is a GPU says that hosts shall have one each.
        kind: the engine that each host runs on its share.
        resources: what each host takes, such as `cpus=1,gpus=0.25`; default one CPU, and a GPU where the job's device
            is one and the cluster has some. As many hosts are started as fit now, at most T.
        compression: makes models smaller on their way from host to host; None sends them as they are.
        grace: seconds to wait for room for a host that was lost, before the others take over its tasks.

    Raises:
        InputError: the resources cannot be read or are nowhere free, or there is no Ray.
    """

    name = "cluster"

    def __init__(
        self,
        job: Job,
        kind: type[LocalEngine] = Sequential,
        resources: str | None = None,
        compression: Codec | None = None,
        grace: float | int = 20.0,
    ):
        self._job, self._codec = job, compression
        self._start = shared_start(job)
        both = [sent(half) for half in halves(job, self._start)]  # before anything is started
        self._notes: list[str] = []
        self._crew = crew = Crew(resources, job.tasks, job.device.type == "cuda", self._notes.append)
        self._end = weakref.finalize(self, crew.close)
        self._pace: dict[Any, int] = {}  # by host: in how many periods running it was slow
        self._named: set[Any] = set()
        self._spent: dict[int, tuple[int, float]] = {}  # by share: (rows, seconds) of the present period
        try:
            self._shares = Shares(crew, job.tasks, both, kind, self._notes.append, compression, grace)
        except BaseException:
            self._end()
            raise

    # -- what hosts do ------------------------------------------------------------------------------------------------

    def train(self, segment: Segment) -> Float[Tensor, " T"]:
        if segment.first == 0:
            self._name_stragglers()
            self._shares.begin_period(segment.period)
        found = self._ask(trained, segment, changes=True)
        for share, (_, rows, seconds, _) in enumerate(found):
            before = self._spent.get(share, (0, 0.0))
            self._spent[share] = before[0] + rows, before[1] + seconds
        self._notes += dict.fromkeys(note for *_, notes in found for note in notes)
        return torch.cat([losses for losses, *_ in found])

    def steps(self, period: int) -> Int64[Tensor, " T"]:
        return torch.cat(self._ask(LocalEngine.steps, period))

    def score(self) -> Float[Tensor, "T 2"]:
        return torch.cat(self._ask(LocalEngine.score))

    def predict(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m C"]:
        return torch.cat(self._ask(LocalEngine.predict, rows, best))

    def losses(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m"]:
        return torch.cat(self._ask(LocalEngine.losses, rows, best))

    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        if bool(tasks.any()):
            self._tell(LocalEngine.snapshot, [(tasks[own],) for own in self._shares.tasks])

    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        self._tell(LocalEngine.end_period, [(scores[own],) for own in self._shares.tasks])

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        self._ask(LocalEngine.reschedule, scheduler, changes=True)
        self._job = dataclasses.replace(self._job, scheduler=scheduler)
        self._shares.start_from(sent(halves(self._job, self._start)[0]))

    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        return torch.cat(self._ask(LocalEngine.norms, best))

    def method_states(self) -> list[dict[str, Tensor]]:
        found = zip(*self._ask(LocalEngine.method_states), strict=True)
        return [{name: torch.cat([own[name] for own in states]) for name in states[0]} for states in found]

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        return joined_options(self._ask(LocalEngine.options))

    def visits(self) -> int:
        return sum(self._ask(LocalEngine.visits))

    def export(self, task: int) -> nn.Module:
        ((share, own),) = [(i, own) for i, own in enumerate(self._shares.tasks) if own.start <= task < own.stop]
        module: nn.Module = self._shares.tell(LocalEngine.export, {share: (task - own.start,)})[share]
        return module

    # -- plans ---------------------------------------------------------------------------------------------------------

    def apply(self, plan: Plan, period: int) -> Outcome:
        self._check_open()
        return self._shares.carry_out(plan, period)

    @contextmanager
    def apart(self) -> Iterator[Apart]:
        self._check_open()
        with self._shares.apart() as wires:
            apart = Apart(self._shares.tasks, wires, self._codec)
            yield apart
        self._shares.meet(apart.period)

    def traffic(self) -> dict[str, int]:
        """Returns the bytes of tensors that went from share to share since it was last called, by what they were."""
        return self._shares.traffic()

    # -- everything at once --------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return joined_states(self._ask(LocalEngine.state), self._shares.tasks)

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._tell(LocalEngine.restore, [state_of_tasks(tensors, values, own) for own in self._shares.tasks])

    def trained_on(self) -> torch.device:
        return torch.device("cuda" if self._crew.resources.gpus > 0 else "cpu")

    def notes(self) -> list[str]:
        said = list(self._notes)
        self._notes.clear()
        return said

    def close(self) -> None:
        self._end()

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _ask(self, function: Callable[..., Any], *arguments: Any, changes: bool = False) -> list[Any]:
        """Returns what a function gives for each share."""
        return self._tell(function, [arguments] * len(self._shares.tasks), changes)

    def _tell(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], changes: bool = True
    ) -> list[Any]:
        """Calls a function with each share's engine, and arguments of its own."""
        self._check_open()
        answers = self._shares.tell(function, dict(enumerate(arguments)), changes)
        return [answers[share] for share in range(len(arguments))]

    def _check_open(self) -> None:
        if self._crew.closed:
            raise RunError("engine: it has been closed, and its hosts have ended; start another.")

    def _name_stragglers(self) -> None:
        """Says who was much slower than the others in the last periods; once."""
        rates = {self._shares.home(share): took / rows for share, (rows, took) in self._spent.items() if rows}
        self._spent = {}
        if len(rates) < 2:
            return
        median = statistics.median_low(rates.values())
        self._pace = {host: self._pace.get(host, 0) + 1 for host, rate in rates.items() if rate > _SLOW * median}
        for host, periods in self._pace.items():
            if periods >= _PERIODS and host not in self._named and host.alive:
                self._named.add(host)
                self._notes.append(
                    f"cluster: the actor on node {node_name(host.node)} takes {rates[host] / median:.1f} times as long "
                    f"for a row as the others, in {periods} periods running; all wait for it."
                )
