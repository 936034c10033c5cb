"""Nothing is left of a run but its files: no handle, thread, process, shared memory or temporary file.

However it ends: with success, with an error, by an interrupt, or by SIGTERM. Runs are in processes of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

_ROWS = '''
import numpy as np
import torch

import kinfold


class Rows(torch.utils.data.Dataset):
    """Read as they are needed."""

    def __init__(self, count, seconds=0.0):
        self.count, self.seconds = count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        import time

        time.sleep(self.seconds)
        generator = np.random.default_rng(row)
        x = torch.from_numpy(generator.normal(size=5).astype(np.float32))
        return x, int(x[0] > 0)


def held():
    x, y = zip(*(row for row in map(Rows(300).__getitem__, range(300))))
    return kinfold.data.from_arrays(torch.stack(x), list(y))


def streamed(count=300, seconds=0.0):
    return kinfold.data.from_torch(Rows(count, seconds), in_memory=False, num_workers=2)


def slow():
    return streamed(3000, 0.002)
'''

_IN_TURN = '''
import gc, json, os, signal, threading
from pathlib import Path

import torch

import kinfold
from rows import held, streamed


def found():
    """What this process holds."""
    gc.collect()
    own = Path("/proc/self")
    links = []
    for handle in (own / "fd").iterdir():
        try:
            links.append(os.readlink(handle))
        except OSError:  # the listing's own
            pass
    tasks = list((own / "task").iterdir())
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    shared = [name for name in os.listdir("/dev/shm") if str(os.getpid()) in name]
    return {
        "handles": sorted(links),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "tasks": len(tasks),
        "children": children,
        "shared memory": shared,
        "temporary files": os.listdir(os.environ["TMPDIR"]),
        "parts": [str(path) for path in Path("runs").rglob("*.part")],
    }


def ends(how):
    def listen(event):
        if event["event"] == "period" and how == "error":
            raise ValueError("the listener failed")
        if event["event"] == "period" and how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)

    return listen


def run(engine, data, how, number):
    try:
        kinfold.fit(
            "mlp", data, tasks=2, epochs=2, engine=engine, transfer="papa", out=f"runs/{number}",
            listen=ends(how),
        )
        return "success"
    except ValueError:
        return "error"
    except KeyboardInterrupt:
        return "interrupt"


signal.signal(signal.SIGINT, signal.default_int_handler)
run("vectorised", held(), "success", 0)  # what torch and others set up once
before, number = found(), 0
for engine, name, data in (
    ("vectorised", "held", held()), ("sequential", "streamed", streamed()), ("workers", "streamed", streamed())
):
    for how in ("success", "error", "interrupt"):
        number += 1
        ended = run(engine, data, how, number)
        after = found()
        wrong = {what: [before[what], after[what]] for what in before if before[what] != after[what]}
        print(json.dumps([engine, name, how, ended, wrong]), flush=True)
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rows.py").write_text(_ROWS)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp"), "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.slow
def test_a_process_holds_no_more_after_runs_than_before(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _IN_TURN],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 9
    for engine, data, asked, ended, wrong in told:
        assert (ended, wrong) == (asked, {}), (engine, data)


def descendants(pid: int) -> Iterator[int]:
    """The processes that one has started, and theirs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shared_memory_of(pids: list[int]) -> list[str]:
    return [path.name for path in Path("/dev/shm").iterdir() if any(str(pid) in path.name for pid in pids)]


COMMAND = ["-m", "kinfold", "train", "rows:slow", "--model", "mlp", "--tasks", "3", "--epochs", "500", "--out", "run"]
SCRIPT = ["-c", "import kinfold, rows; kinfold.fit('mlp', rows.slow(), tasks=3, epochs=500, engine='{}', out='run')"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "engine", "number", "status"),
    [
        pytest.param(COMMAND, "vectorised", signal.SIGINT, 130, id="command, reading processes, SIGINT"),
        pytest.param(COMMAND, "workers", signal.SIGTERM, 130, id="command, workers, SIGTERM"),
        pytest.param(SCRIPT, "sequential", signal.SIGTERM, -signal.SIGTERM, id="script, reading processes, SIGTERM"),
    ],
)
def test_signals_leave_nothing(place: Path, start: list[str], engine: str, number: signal.Signals, status: int) -> None:
    """Reading processes of one that was ended without a word look for it every few seconds."""
    asked = [*start, "--engine", engine] if start is COMMAND else [start[0], start[1].format(engine)]
    process = subprocess.Popen(
        [sys.executable, *asked],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 240
        started: list[int] = []
        while len(started) < 2 or not (place / "run" / "history.jsonl").exists():
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < until
            time.sleep(0.02)
            started = list(descendants(process.pid))
        time.sleep(0.5)  # into the midst of reading
        started = list({*started, *descendants(process.pid)})
        process.send_signal(number)
        process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    until = time.monotonic() + 120
    while any(map(alive, started)):
        assert time.monotonic() < until, "processes are left"
        time.sleep(0.05)
    assert shared_memory_of([process.pid, *started]) == []
    assert [path for path in (place / "tmp").iterdir() if not path.name.startswith("torchinductor")] == []  # torch's
    if start is COMMAND:  # of a script that was ended without a word, resuming takes them away
        assert not list((place / "run").rglob("*.part"))


_CLAIM = """
import sys
from kinfold.cli.base import new_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(25):
    print(new_folder("iris", "mlp"), flush=True)
"""


def test_no_two_processes_take_the_same_directory(tmp_path: Path) -> None:
    """Four that start to name theirs at once."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _CLAIM], cwd=tmp_path, stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [folder for process in processes for folder in process.communicate()[0].split()]
    assert sorted(taken) == sorted(f"runs/iris-mlp-{n}" for n in range(1, 101))
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").iterdir()} == set(taken)
