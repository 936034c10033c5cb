"""Where a table comes from: command, versions, machine and date, for the head of every table."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

import kinfold


def provenance() -> str:
    """Returns the lines that stand over a table."""
    command = " ".join(["python", *map(shlex.quote, sys.argv)])
    where = [f"{os.cpu_count()} cores ({_processor()})", platform.system()]
    if torch.cuda.is_available():
        where.append(torch.cuda.get_device_name())
    versions = f"Kinfold {kinfold.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return f"`{command}`\n{versions}; {', '.join(where)}; {torch.get_num_threads()} torch threads; {today}."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
