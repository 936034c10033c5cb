"""What this process may use of the machine."""

import os


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
