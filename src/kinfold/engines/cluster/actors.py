"""What runs in Ray's processes: hosts, which train shares of the tasks, and keepers, which hold copies of their state.

Both answer in the order in which they are asked. What is asked of a host is a function of a share's engine; what that
gives goes back in the answer, or stays in the object store of the host's node, where another process may fetch it.
"""

import dataclasses
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import ray
import torch
from jaxtyping import Float
from ray.exceptions import RayError
from torch import Tensor, nn

from kinfold.data.streamed import Streamed
from kinfold.engines.base import Job
from kinfold.engines.cluster.packing import Packed, packed, unpacked
from kinfold.engines.exchange import bytes_of
from kinfold.engines.local import LocalEngine, example_rows, start_stack
from kinfold.engines.sharing import EngineState, joined_states, state_of_tasks
from kinfold.errors import InputError, RunError
from kinfold.importing import one_line
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import Segment
from kinfold.tasks.state import build_starts, materialise

DATA = ("inputs", "targets", "train", "validation")
"""What of a job all hosts of a node read in one place; the rest of it each has for itself."""


@dataclass(frozen=True)
class Failed:
    """What the user's model, loss or methods raised, or what is to be told of it.

    Attributes:
        error: to be raised again.
        trace: where it came from.
    """

    error: Exception
    trace: str


@dataclass(frozen=True)
class Missing:
    """Something that was to be fetched from another process was gone with that."""


@dataclass(frozen=True)
class Done:
    """A call that went well.

    Attributes:
        answer: what it gave.
    """

    answer: Any = None


Answer: TypeAlias = Done | Failed | Missing


@dataclass(frozen=True)
class Held:
    """Where something lies in the object store.

    Attributes:
        reference: in a list, since Ray fetches for a call what stands by itself.
    """

    reference: list[Any]


@dataclass(frozen=True)
class Slot:
    """Stands in a call for what is fetched for it.

    Attributes:
        number: which of the things fetched.
    """

    number: int


@dataclass(frozen=True)
class Beginning:
    """How a share's engine is started.

    Attributes:
        kind: the engine.
        tasks: the share's, among all T.
        total: T.
        parts: which of the share's tasks each state is of that comes with it.
        version: of the state that the host kept of the share, where none comes with it; None for the job's own start.
    """

    kind: type[LocalEngine]
    tasks: slice
    total: int
    parts: tuple[slice, ...] = ()
    version: int | None = None


@final
class Host:
    """Trains shares of the tasks: one, unless it took over those of a host that was lost.

    Args:
        cpus: how many threads it may use.
        gpu: whether it has a GPU.
    """

    def __init__(self, cpus: int, gpu: bool):
        torch.set_num_threads(cpus)
        _keep_freed_memory()
        self._cpus = cpus
        self._device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self._engines: dict[int, LocalEngine] = {}
        self._kept: dict[tuple[int, int], Any] = {}  # (share, version) → reference to its state

    def node(self) -> str:
        """Returns the number of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def begin(self, share: int, beginning: Packed, rest: Packed, data: Packed, *parts: Held | Missing) -> Answer:
        """Starts a share's engine in the place of the one it had, from the job's start or from what is given."""

        def begun() -> None:
            self._drop([share])
            how: Beginning = unpacked(beginning)
            engine = self._started(how, unpacked(rest), unpacked(data, shared=True))
            if parts:
                states = [_fetched(part, shared=True) for part in parts]
                engine.restore(*joined_states(states, how.parts))
            elif how.version is not None:
                engine.restore(*unpacked(ray.get(self._kept[share, how.version]), shared=True))
            self._engines[share] = engine

        return _answered(begun, "starting")

    def tell(self, share: int, call: Packed) -> Answer:
        """Returns what a function gives for a share's engine."""
        return _answered(lambda: packed(self._called(share, call, ())), "training or scoring")

    def run(self, share: int, call: Packed, *given: Held | Missing) -> tuple[Answer, Held | Missing]:
        """Has a function called with a share's engine; returns how many bytes of tensors that gave, and where they are.

        A small result of its own would go inside Ray's reply to the driver, a reference does not.
        """
        held: Held | Missing = Missing()

        def ran() -> int:
            nonlocal held
            result = self._called(share, call, given)
            held = Held([ray.put(packed(result))])
            return bytes_of(result)

        return _answered(ran, "carrying out a plan"), held

    def keep(self, share: int, version: int) -> Held:
        """Keeps a share's state under a number; returns where it is."""
        self._kept[share, version] = ray.put(packed(self._engines[share].state()))
        return self.kept(share, version)

    def kept(self, share: int, version: int) -> Held:
        """Returns where the state is that it kept of a share."""
        return Held([self._kept[share, version]])

    def drop(self) -> None:
        """Drops all engines."""
        self._drop([*self._engines])

    def forget(self, shares: Sequence[int]) -> None:
        """Forgets all of shares that are no more."""
        _forget_shares(self._kept, shares)
        self._drop(shares)

    def forget_before(self, version: int) -> None:
        """Forgets the states of lower numbers, of all shares."""
        _forget_before(self._kept, version)

    def _drop(self, shares: Sequence[int]) -> None:
        """Ends engines of shares where there are any, and frees their memory now: others are to have it."""
        engines = [self._engines.pop(share) for share in shares if share in self._engines]
        if not engines:
            return
        for engine in engines:
            engine.close()
        del engine, engines
        gc.collect()  # what records their steps refers to them
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _called(self, share: int, call: Packed, given: tuple[Held | Missing, ...]) -> Any:
        function, arguments = unpacked(call)
        fetched = [_fetched(held) for held in given]
        return function(self._engines[share], *(fetched[a.number] if isinstance(a, Slot) else a for a in arguments))

    def _started(self, how: Beginning, rest: dict[str, Any], data: dict[str, Any]) -> LocalEngine:
        """Returns the engine of a share, whose tasks start as they do among all."""
        start: nn.Module | None = rest.pop("start")
        tasks, optimizer = how.tasks, rest["optimizer"]
        masks = {name: data[name][tasks] for name in ("train", "validation")}
        own = {"optimizer": optimizer if callable(optimizer) else optimizer[tasks]}
        dtype = torch.float64 if rest["precision"] == "float64" else torch.float32
        kind, outputs, loss, metric = rest["objective"]
        objective = make_objective(kind, outputs, loss, metric, self._device, dtype)
        job = Job(**{**rest, **data, **masks, **own, "objective": objective, "device": self._device})
        if isinstance(job.inputs, Streamed) and job.inputs.num_workers is None:
            job.inputs.num_workers = self._cpus  # this host's share of what the node has
        apart = how.total > 1 and not job.shared_start and not isinstance(job.model, nn.Module)
        begun = job if start is None else dataclasses.replace(job, model=start)
        engine = how.kind(job, start_stack(begun, first=tasks.start, apart=apart), tasks.start)
        if start is not None:
            engine.start = {
                name: value.detach().to(self._device, job.dtype)
                for name, value in start.named_parameters()
                if value.requires_grad
            }
        return engine


@final
class Keeper:
    """Holds copies of what hosts of other nodes kept: all that is left of them where these are lost."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], Packed] = {}

    def store(self, share: int, version: int, held: Held) -> bool:
        """Takes a copy; returns whether it has come."""
        try:
            content, buffers = ray.get(held.reference[0])
        except RayError:
            return False
        self._copies[share, version] = content, [buffer.copy() for buffer in buffers]
        return True

    def give(self, share: int, version: int) -> Held:
        """Returns where the copy is."""
        return Held([ray.put(self._copies[share, version])])

    def forget(self, shares: Sequence[int]) -> None:
        """Forgets shares that are no more."""
        _forget_shares(self._copies, shares)

    def forget_before(self, version: int) -> None:
        """Forgets copies of lower numbers, of all shares: also of those that have another keeper now."""
        _forget_before(self._copies, version)


def _keep_freed_memory() -> None:
    """Has what a step frees stay with the process; else the next step asks the system for it again, page by page.

    glibc gives back what is above a limit, which begins low and grows with the largest block that was ever freed, of up
    to 32 MiB. Other processes have freed large ones by the time they train; a host maps its data, and has not.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # gone at once


def _forget_shares(kept: dict[tuple[int, int], Any], shares: Sequence[int]) -> None:
    for share, version in list(kept):
        if share in shares:
            del kept[share, version]


def _forget_before(kept: dict[tuple[int, int], Any], number: int) -> None:
    for share, version in list(kept):
        if version < number:
            del kept[share, version]


class _GoneError(Exception):
    """What was to be fetched has gone with the process that had it."""


def _fetched(held: Held | Missing, shared: bool = False) -> Any:
    if isinstance(held, Missing):
        raise _GoneError
    try:
        return unpacked(ray.get(held.reference[0]), shared)
    except RayError as error:
        raise _GoneError from error


def _answered(function: Callable[[], Any], doing: str) -> Answer:
    try:
        return Done(function())
    except _GoneError:
        return Missing()
    except (InputError, RunError) as error:
        return Failed(error, traceback.format_exc())
    except Exception as error:  # the user's model, loss or methods, which may raise anything
        return Failed(
            RunError(f"engine: {doing} some of the tasks failed ({one_line(error)})."), traceback.format_exc()
        )


# -- what a share's engine is told -------------------------------------------------------------------------------------


def trained(engine: LocalEngine, segment: Segment) -> tuple[Float[Tensor, " k"], int, float, list[str]]:
    """Trains; returns (mean losses, rows visited, seconds, what the user is to be told)."""
    before, began = engine.visits(), time.perf_counter()
    losses = engine.train(segment)
    return losses, engine.visits() - before, time.perf_counter() - began, engine.notes()


def piece(engine: LocalEngine, tasks: slice) -> EngineState:
    """Returns the state of some of a share's tasks."""
    return state_of_tasks(*engine.state(), tasks)


# -- jobs --------------------------------------------------------------------------------------------------------------


def shared_start(job: Job) -> nn.Module | None:
    """Returns what a factory gives for all tasks, called once; None where it is no factory, or they start apart."""
    if isinstance(job.model, nn.Module) or not job.shared_start:
        return None
    (start,) = build_starts(job.model, 1, True, job.seed)
    materialise(start, example_rows(job), job.seed)
    return start


def halves(job: Job, start: nn.Module | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (a job without its data, its data), as they are sent: for any device, in the type that hosts train in.

    `start` is the tasks' shared one, which a factory that is called again on a host might not give again.
    """
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    data = {name: fields.pop(name) for name in DATA} | {"inputs": job.inputs.to(torch.device("cpu"), job.dtype)}
    objective = job.objective  # as its ingredients, of which a host makes its own
    made_of = (objective.kind, objective.outputs, objective.score_loss, objective.metric)
    del fields["device"]
    return fields | {"objective": made_of, "start": start}, data
