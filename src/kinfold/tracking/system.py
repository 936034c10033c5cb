"""Figures of the machine: by psutil where it is installed, else by /proc; fewer where there is neither."""

import importlib.util
import os
from pathlib import Path
from typing import final

import torch

_PROC = Path("/proc")


@final
class SystemFigures:
    """How busy the machine is. Called, it gives what is known now, of the processors since the last call.

    The keys are `cpu_percent` (of all processors), `memory_percent` (of the machine's), `process_bytes` (of this
    process, which lie in memory) and, where torch has used a GPU, `gpu_bytes` (which its tensors take there).

    Example:
        >>> 0 <= SystemFigures()().get("memory_percent", 0.0) <= 100
        True
    """

    def __init__(self) -> None:
        self._psutil = importlib.util.find_spec("psutil") is not None
        self._before = self._times()

    def __call__(self) -> dict[str, float]:
        """Returns the figures."""
        figures = _by_psutil() if self._psutil else _by_proc() if _PROC.exists() else {}
        now = self._times()
        if now is not None and self._before is not None and now[1] > self._before[1]:
            figures["cpu_percent"] = 100 * (now[0] - self._before[0]) / (now[1] - self._before[1])
        self._before = now
        if torch.cuda.is_available() and (taken := torch.cuda.memory_allocated()):
            figures["gpu_bytes"] = float(taken)
        return figures

    def _times(self) -> tuple[float, float] | None:
        """(busy, all) of the processors' time."""
        if self._psutil:
            import psutil

            times = psutil.cpu_times()._asdict()
        elif (_PROC / "stat").exists():
            names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
            numbers = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
            times = dict(zip(names, map(float, numbers), strict=False))
        else:
            return None
        # What guests took is part of what users did.
        whole = sum(value for name, value in times.items() if not name.startswith("guest"))
        return whole - times["idle"] - times.get("iowait", 0.0), whole


def _by_psutil() -> dict[str, float]:
    import psutil

    return {
        "memory_percent": float(psutil.virtual_memory().percent),
        "process_bytes": float(psutil.Process().memory_info().rss),
    }


def _by_proc() -> dict[str, float]:
    lines = (line.split() for line in (_PROC / "meminfo").read_text(encoding="ascii").splitlines())
    memory = {words[0].rstrip(":"): float(words[1]) for words in lines}
    pages = float((_PROC / "self" / "statm").read_text(encoding="ascii").split()[1])
    return {
        "memory_percent": 100 * (1 - memory["MemAvailable"] / memory["MemTotal"]),
        "process_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }
