"""What this process may use of the machine."""

import ctypes
import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from kinfold.errors import InputError


def usable_cpus() -> int:
    """Returns how many CPUs this process may use.

    Example:
        >>> usable_cpus() >= 1
        True
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS does not tell
        return os.cpu_count() or 1


def free_bytes() -> float:
    """Returns how many bytes of memory this process may still take; infinity where the system does not tell.

    That is the least of what the machine has free, of what its control group leaves (a container's limit, or a batch
    job's), and of what RLIMIT_AS leaves of addresses.

    Example:
        >>> free_bytes() > 0
        True
    """
    return min(_machine_leaves(), control_group_leaves(), _addresses_left())


def give_back() -> None:
    """Gives memory that was freed back to the system, where the C library can be told to: glibc's keeps much of it.

    Example:
        >>> give_back()
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def bytes_in_words(count: float | int) -> str:
    """Returns a number of bytes as text.

    Example:
        >>> bytes_in_words(3 * 2**29), bytes_in_words(5 * 2**20)
        ('1.5 GiB', '5 MiB')
    """
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 / 10 else f"{max(0.0, count) / 2**20:.3g} MiB"


def check_room(count: int, what: str, advice: str) -> None:
    """Refuses to hold what does not fit in memory.

    Args:
        count: the bytes it takes.
        what: is to be held.
        advice: what to do instead.

    Raises:
        InputError: more bytes than are free.
    """
    free = free_bytes()
    if count > free:
        said = f"{bytes_in_words(count)}, and {bytes_in_words(free)} of memory are free"
        raise InputError(f"data: {what} take at least {said}; {advice}.")


def _machine_leaves() -> float:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable") + _swap_left()


def _swap_left(root: Path = Path("/")) -> float:
    left = _kilobytes(root / "proc/meminfo", "SwapFree")
    return 0.0 if left == math.inf else left


def control_group_leaves(root: Path = Path("/")) -> float:
    """Returns how many bytes the memory limits of this process's control group and of those around it leave.

    Pages of files, and what the kernel can make anew, are given up for others, so they count as free; so does what may
    be swapped.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    left = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            given_up: Sequence[str] = _GIVEN_UP
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names, given_up = ("memory.limit_in_bytes", "memory.usage_in_bytes"), _GIVEN_UP_1
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            left = min(left, _group_leaves(folder, *names, given_up) + min(_group_swaps(folder), _swap_left(root)))
            if folder == top:
                break
    return left


_GIVEN_UP = ("inactive_file", "active_file", "slab_reclaimable")
_GIVEN_UP_1 = ("total_inactive_file", "total_active_file")


def _group_leaves(folder: Path, limit: str, usage: str, given_up: Sequence[str]) -> float:
    try:
        most, used = ((folder / name).read_text(encoding="ascii").strip() for name in (limit, usage))
        if most == "max":
            return math.inf
        pairs = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return float(int(most) - int(used) + sum(int(value) for name, value in pairs if name in given_up))
    except (OSError, ValueError):  # no limit here, or none that may be read
        return math.inf


def _group_swaps(folder: Path) -> float:
    """What a group of version 2 may still swap; 0 where that is not said."""
    try:
        most, used = (
            (folder / name).read_text(encoding="ascii").strip() for name in ("memory.swap.max", "memory.swap.current")
        )
        return math.inf if most == "max" else float(int(most) - int(used))
    except (OSError, ValueError):
        return 0.0


def _addresses_left() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _kilobytes(Path("/proc/self/status"), "VmSize")
    return math.inf if most == resource.RLIM_INFINITY or used == math.inf else most - used


def _kilobytes(path: Path, name: str) -> float:
    """One figure of a file of /proc, in bytes; infinity where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return math.inf


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Lets torch use so many threads within; None for as many as it is set to.

    Example:
        >>> with using_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Lets an interrupt wait until the end; what is forked within inherits the block, and can see to it itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
