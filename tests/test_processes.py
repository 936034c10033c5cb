"""What is free, as the system, a control group and a limit of addresses tell."""

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kinfold import processes
from kinfold.data.table import TableEncoder
from kinfold.errors import InputError
from kinfold.processes import check_room, control_group_leaves, free_bytes

GiB = 2**30


def group(root: Path, folder: str, limit: object, used: int, idle: int) -> None:
    for name, content in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {idle}")):
        path = root / "sys/fs/cgroup" / folder / f"memory.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def belongs(root: Path, line: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"{line}\n")


def test_the_narrowest_group_counts(tmp_path):
    belongs(tmp_path, "0::/jobs/one")
    group(tmp_path, "jobs/one", limit=8 * GiB, used=3 * GiB, idle=GiB)
    assert control_group_leaves(tmp_path) == 6 * GiB
    group(tmp_path, "jobs", limit=5 * GiB, used=4 * GiB, idle=0)
    assert control_group_leaves(tmp_path) == GiB
    group(tmp_path, "jobs", limit="max", used=4 * GiB, idle=0)
    assert control_group_leaves(tmp_path) == 6 * GiB


def test_groups_of_the_first_version(tmp_path):
    belongs(tmp_path, "12:pids:/other\n7:cpu,memory:/jobs")
    folder = tmp_path / "sys/fs/cgroup/memory/jobs"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{2 * GiB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GiB}\n")
    (folder / "memory.stat").write_text("total_cache 7\ntotal_inactive_file 512\n")
    assert control_group_leaves(tmp_path) == GiB + 512


def test_what_is_given_up_or_swapped_counts_as_free(tmp_path):
    belongs(tmp_path, "0::/jobs")
    group(tmp_path, "jobs", limit=8 * GiB, used=7 * GiB, idle=GiB)
    folder = tmp_path / "sys/fs/cgroup/jobs"
    with (folder / "memory.stat").open("a") as file:
        file.write(f"active_file {2 * GiB}\nslab_reclaimable {GiB}\nslab_unreclaimable 7\n")
    assert control_group_leaves(tmp_path) == 5 * GiB
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: 1 kB\nSwapFree: {2 * 2**20} kB\n")
    assert control_group_leaves(tmp_path) == 5 * GiB  # the group may not swap, as far as it says
    (folder / "memory.swap.max").write_text(f"{3 * GiB}\n")
    (folder / "memory.swap.current").write_text(f"{2 * GiB}\n")
    assert control_group_leaves(tmp_path) == 6 * GiB
    (folder / "memory.swap.max").write_text("max\n")
    assert control_group_leaves(tmp_path) == 7 * GiB


def test_no_group_and_no_files_limit_nothing(tmp_path):
    assert control_group_leaves(tmp_path) == math.inf
    belongs(tmp_path, "0::/")
    assert control_group_leaves(tmp_path) == math.inf


def test_the_least_of_all_counts(monkeypatch):
    assert 0 < free_bytes() < math.inf
    for name in ("_machine_leaves", "control_group_leaves", "_addresses_left"):
        with monkeypatch.context() as patch:
            patch.setattr(processes, name, lambda: 5.0)
            assert free_bytes() == 5.0


_LIMITED = """
import resource
from pathlib import Path
import kinfold
from kinfold.processes import free_bytes
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
taken = 1024 * int(status["VmSize"].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, -1))
print(0 < free_bytes() <= 2**30)
try:
    kinfold.fit({"name": "mlp", "hidden": [2000, 2000]}, "iris", tasks=100, epochs=1, engine="sequential", out="run")
except kinfold.InputError as error:
    print(error)
print(Path("run").exists())
"""


def test_a_limit_of_addresses_refuses_a_run_before_it_begins(tmp_path):
    """100 tasks of 4 million parameters in one GiB."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], cwd=tmp_path, capture_output=True, text=True, check=True)
    within, refused, written = done.stdout.splitlines()
    assert (within, written) == ("True", "False")
    assert refused.startswith("memory: 100 tasks in batches of 64 take at least ")
    assert refused.endswith("of memory are free; give fewer tasks, or a smaller model.")


def test_what_is_to_be_held_is_refused(monkeypatch):
    frame = pd.DataFrame({"size": np.arange(100.0), "site": ["a", "b"] * 50})
    encoder = TableEncoder.fit(frame, np.arange(100))
    width = encoder.input_shape[0]
    monkeypatch.setattr(processes, "free_bytes", lambda: 4.0 * 100 * width)
    encoder.encode(frame)
    monkeypatch.setattr(processes, "free_bytes", lambda: 4.0 * 100 * width - 1)
    with pytest.raises(
        InputError, match=rf"data: 100 rows of {width} encoded columns take at least .* MiB, and .*; give"
    ):
        encoder.encode(frame)
    with pytest.raises(InputError, match=r"data: 9 pictures take at least 2 GiB, .*; decode them\.$"):
        check_room(2 * GiB, "9 pictures", "decode them")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [torch.ones(20_000) for _ in range(2_000)]  # 160 MB, in pieces that are not mapped by themselves
    full = resident()
    del pieces[:-1]  # the last keeps the end of the heap in place
    processes.give_back()
    assert resident() < full - 120e6
