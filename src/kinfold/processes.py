"""What this process may use of the machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
