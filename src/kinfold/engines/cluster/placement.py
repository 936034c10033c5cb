"""Where hosts are: what each takes of the cluster, how many fit, and the Ray that they run in."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinfold.engines.cluster.actors import Host, Keeper
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.processes import usable_cpus

_PLACED_SECONDS = 120.0
"""The longest that a host may take to start where there is room for it: its process imports torch."""

_FREED_SECONDS = 10.0
"""What a run has left that ended just now is free after some time."""

_APART_SECONDS = 30.0
"""The longest that one of several may take after the one before it."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it tells nobody of itself
    "RAY_worker_niceness": "0",  # else 15: whatever else runs on the machine would come before what trains
}
"""Of a Ray that is started for a run."""


@dataclass(frozen=True)
class Resources:
    """What each host takes.

    Attributes:
        cpus: logical CPUs of Ray; its threads are as many, at least one.
        gpus: GPUs, at most one; hosts that take a part of one share it.
    """

    cpus: float | int = 1
    gpus: float | int = 0

    @property
    def wanted(self) -> dict[str, float]:
        """Ray's names of what it takes some of."""
        return {name: float(value) for name, value in (("CPU", self.cpus), ("GPU", self.gpus)) if value > 0}

    def fits(self, free: Mapping[str, float]) -> int:
        """Returns how many times it fits into what is free.

        Example:
            >>> Resources(cpus=1, gpus=0.25).fits({"CPU": 8.0, "GPU": 1.0})
            4
        """
        return min(math.floor(free.get(name, 0.0) / value + 1e-9) for name, value in self.wanted.items())

    def __str__(self) -> str:
        return f"cpus={self.cpus:g},gpus={self.gpus:g}"


def parse_resources(text: str | None, gpus: float | int = 0) -> Resources:
    """Returns what a string such as `cpus=1,gpus=0.25` says that each host takes.

    Args:
        text: None for the defaults; what it leaves out has its default.
        gpus: the default of GPUs; that of CPUs is 1.

    Raises:
        InputError: it says something else.

    Example:
        >>> parse_resources("gpus=0.5")
        Resources(cpus=1, gpus=0.5)
    """
    found: dict[str, float] = {}
    for part in [] if text is None else text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        if name not in ("cpus", "gpus") or name in found or not 0 <= amount < math.inf:
            raise InputError(
                f"resources: {text!r} cannot be read at {part.strip()!r}; write what each actor takes, such as "
                "cpus=1,gpus=0.25."
            )
        found[name] = amount
    made = Resources(**{"gpus": gpus, **found})
    if made.gpus > 1:
        raise InputError(f"resources: gpus is {made.gpus:g}, and an actor trains on one GPU; give at most 1.")
    if not made.wanted:
        raise InputError(f"resources: {text!r} takes nothing; give cpus or gpus above 0.")
    return made


class LostError(Exception):
    """A process is gone, or something that it had."""


@dataclass(eq=False)
class Member:
    """A process of ours.

    Attributes:
        actor: by which Ray reaches it.
        node: number of its node.
        alive: whether nothing is known of its end.
    """

    actor: Any
    node: str
    alive: bool = True

    def answer(self, reference: Any) -> Any:
        """Returns what it answered.

        Raises:
            LostError: it is gone, or what it needed has gone with another process.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:  # of what is raised in it; also of what became of another, by inheritance
            if isinstance(error.cause, RayError):
                raise LostError from error
            raise
        except RayActorError as error:
            self.end()
            raise LostError from error
        except RayError as error:
            raise LostError from error

    def end(self) -> None:
        """Ends it, where it has not ended."""
        self.alive = False
        if ray.is_initialized():
            ray.kill(self.actor)


class Crew:
    """The processes of one run.

    Args:
        text: what the user says that each host takes, or None.
        most: hosts there may be.
        cuda: whether the user's device is a GPU.
        note: is told if some hosts cannot start.

    Raises:
        InputError: the string cannot be read, no Ray is to be had, no host fits, or none can start.

    Attributes:
        hosts: those that are not known to be lost.
        closed: whether all have been ended.
    """

    def __init__(self, text: str | None, most: int, cuda: bool, note: Callable[[str], None]):
        parse_resources(text)  # before anything is started
        self._note = note
        self._connection = _Connection()
        try:
            gpus = 1 if cuda and ray.cluster_resources().get("GPU", 0.0) > 0 else 0
            self.resources, self._most = parse_resources(text, gpus), most
            self.hosts: list[Member] = []
            self.closed = False
            self._keepers: dict[str, Member] = {}
            self._declined: list[str] | None = None  # nodes among which the last host found no place, or cannot start
            self._failure: str | None = None  # what the first host that cannot start said
            until = time.monotonic() + _FREED_SECONDS
            while not self.room() and any(map(self.resources.fits, _alive().values())) and time.monotonic() < until:
                time.sleep(0.1)
            if not self.grow(_PLACED_SECONDS):
                if self._failure is not None:
                    raise InputError(
                        f"engine: actors cannot start ({self._failure}); see that kinfold is installed on every node, "
                        "with the same versions of it, torch and Python."
                    )
                raise InputError(
                    f"resources: {self.resources} is free on no node of the cluster ({_told(ray.nodes())}); ask for "
                    "less, or wait."
                )
        except BaseException:
            self._connection.close()
            raise

    def room(self) -> int:
        """Returns how many more hosts may fit now."""
        alive = _alive()
        free = self.resources.fits(ray.available_resources())
        own = [sum(host.node == node for host in self.hosts) for node in alive]
        most = sum(self.resources.fits(has) - mine for has, mine in zip(alive.values(), own, strict=True))
        return max(0, min(free, most, self._most - len(self.hosts)))

    def grow(self, seconds: float) -> list[Member]:
        """Starts as many more hosts as fit, at most as many as there may be; returns those that did start in time."""
        count, nodes = self.room(), sorted(_alive())
        if not count or nodes == self._declined:
            return []
        # What is free may lie on several nodes, a bit on each: then some find no place.
        make = ray.remote(Host).options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        threads, gpu = max(1, math.floor(self.resources.cpus)), self.resources.gpus > 0
        actors: list[Any] = [make.remote(threads, gpu) for _ in range(count)]
        placed = [actor.node.remote() for actor in actors]
        ready, waiting = list[Any](), placed
        while waiting:
            # Of hosts that were asked for together, one that comes much later than the rest has found no place.
            now, waiting = ray.wait(waiting, timeout=min(seconds, _APART_SECONDS) if ready else seconds)
            ready += now
            if not now:
                break
        new, failures = [], []
        for actor, reference in zip(actors, placed, strict=True):
            member = Member(actor, "")
            if reference not in ready:
                member.end()
                self._declined = nodes
                continue
            try:
                member.node = member.answer(reference)
                new.append(member)
            except (LostError, RayError) as error:
                member.end()
                failures.append(_said_at_start(error))
        self.hosts += new
        if failures:
            self._declined = nodes
            if self.hosts and self._failure is None:
                self._note(f"cluster: an actor could not start ({failures[0]}); the others go on without it.")
            self._failure = self._failure or failures[0]
        return new

    def notice(self) -> None:
        """Strikes off whoever was on a node that is no more, or is known to be lost."""
        nodes = _alive()
        for member in (*self.hosts, *self._keepers.values()):
            if member.node not in nodes:
                member.alive = False
        self.hosts = [host for host in self.hosts if host.alive]
        self._declined = None

    def keeper(self, node: str) -> Member:
        """Returns the keeper of what hosts of a node have: on another node if there is one."""
        nodes = sorted({*_alive(), node})
        where = nodes[(nodes.index(node) + 1) % len(nodes)]
        if where not in self._keepers or not self._keepers[where].alive:
            pinned = NodeAffinitySchedulingStrategy(where, soft=False)
            make = ray.remote(Keeper).options(num_cpus=0, max_restarts=0, scheduling_strategy=pinned)
            self._keepers[where] = Member(make.remote(), where)
        return self._keepers[where]

    def keepers(self) -> list[Member]:
        """Returns the keepers that are not known to be lost."""
        return [keeper for keeper in self._keepers.values() if keeper.alive]

    def close(self) -> None:
        """Ends all processes, and the Ray that was started for them."""
        for member in (*self.hosts, *self._keepers.values()):
            member.end()
        self.hosts, self._keepers, self.closed = [], {}, True
        self._connection.close()


class _Connection:
    """Ray as this run found or started it; what it started ends with the last run that uses it."""

    _runs = 0  # those that use what we connected to

    def __init__(self) -> None:
        self._ours = _Connection._runs > 0 or not ray.is_initialized()
        if self._ours and not ray.is_initialized():
            _connect()
        _Connection._runs += self._ours

    def close(self) -> None:
        """Disconnects, and stops a Ray that was started here; twice is once."""
        if self._ours:
            self._ours = False
            _Connection._runs -= 1
            if not _Connection._runs and ray.is_initialized():
                ray.shutdown()


def _connect() -> None:
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"engine: RAY_ADDRESS is {address}, a client's address; run on a node of the cluster (ray job submit), "
            "with RAY_ADDRESS=auto."
        )
    local: dict[str, Any] = {"num_cpus": usable_cpus(), "include_dashboard": False}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with _signals_kept(), _settings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*accelerator visible devices", category=FutureWarning)
        try:
            ray.init(address=address or "local", **quiet, **({} if address else local))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"RAY_ADDRESS={address} cannot be reached" if address else "a local Ray cannot be started"
            raise InputError(f"engine: {where} ({one_line(error)[:200]}); start it, or take another engine.") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; who had it, has it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _settings() -> Iterator[None]:
    """A Ray that is started within has settings of ours, where the user has not said otherwise."""
    own = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _alive() -> dict[str, dict[str, float]]:
    """What each node that is up has, by its number."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def node_name(number: str) -> str:
    """Returns a node's name for people: its address, and the beginning of its number."""
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == number]
    return f"{addresses[0] if addresses else '?'} ({number[:8]})"


def node_is_up(number: str) -> bool:
    """Returns whether a node is up."""
    return number in _alive()


def _said_at_start(error: Exception) -> str:
    """What ended a process as it started: of a traceback, the last line."""
    said = error.__cause__ if isinstance(error, LostError) and error.__cause__ is not None else error
    last = [line.strip() for line in str(said).splitlines() if line.strip()]
    return (last[-1] if "Traceback" in str(said) or "creation task" in str(said) else one_line(said))[:300].rstrip(".")


def _told(nodes: Sequence[Mapping[str, Any]]) -> str:
    up = [node["Resources"] for node in nodes if node["Alive"]]
    has = "; ".join(f"cpus={one.get('CPU', 0):g},gpus={one.get('GPU', 0):g}" for one in up[:4])
    return f"{len(up)} up: {has}{', …' if len(up) > 4 else ''}"
