"""Trains for a hundred thousand transfers, and looks at what the process holds on the way.

    python benchmarks/trust/endurance.py [--transfers 100000] [--out FILE.md]

Eight small networks on 96 rows, in periods of two steps; after every period each is pulled to their mean (`papa`), and
blends of them are tried (`amto`). Measured are resident memory, open file handles, threads and child processes, the
time that a transfer takes, and the size of the log. The exit status is 1 where resident memory at the last transfer is
more than 5 % above that after the first thousand, or where more handles, threads or processes are there.
"""

import argparse
import gc
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kinfold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import provenance

TASKS = 8
FIRST = 1000
"""Transfers after which everything that a run sets up has been set up."""


class _EnoughError(Exception):
    """So many transfers were wanted, and no more."""


@dataclass(frozen=True)
class Held:
    """What this process holds, and where the run stands."""

    transfers: int
    period: int
    seconds: float
    resident: int
    handles: int
    threads: int
    children: int
    log: int


def held(transfers: int, period: int, began: float, log: Path) -> Held:
    """Looks at this process, through /proc."""
    own = Path("/proc/self")
    status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
    tasks = list((own / "task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    resident = int(status["VmRSS"].split()[0]) * 1024
    handles = len(list((own / "fd").iterdir())) - 1  # one is the listing's own
    seconds = time.perf_counter() - began
    return Held(transfers, period, seconds, resident, handles, len(tasks), children, log.stat().st_size)


def endure(transfers: int, folder: Path) -> list[Held]:
    """Runs until so many transfers have been proposed; returns what was held after the first 1,000 and each tenth."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=draws)
    y = (x[:, 0] + 0.5 * torch.randn(96, generator=draws) > 0).long()
    looks: list[Held] = []
    due = [FIRST, *(math.ceil(transfers * tenth / 10) for tenth in range(1, 11))]
    done, began = 0, time.perf_counter()

    def listen(event: dict[str, Any]) -> None:
        nonlocal done
        if event["event"] != "transfer":
            return
        done += sum(move.get("times", 1) for move in event["transfers"])
        if len(looks) < len(due) and done >= due[len(looks)]:
            gc.collect()
            looks.append(held(done, event["period"], began, folder / "history.jsonl"))
            print(looks[-1], flush=True)
        if done >= transfers:
            raise _EnoughError

    try:
        kinfold.fit(
            {"name": "mlp", "hidden": [8]},
            (x, y),
            tasks=TASKS,
            epochs=transfers,  # never reached: every period has several
            batch_size=64,
            transfer=["amto", {"name": "papa", "steps": 2}],
            scheduler="constant",
            engine="vectorised",
            out=folder,
            listen=listen,
        )
    except _EnoughError:
        return looks
    raise SystemExit("the run ended before its transfers were done")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train for many transfers, and look at what the process holds.")
    parser.add_argument("--transfers", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        looks = endure(arguments.transfers, Path(scratch, "run"))
    first, last = looks[0], looks[-1]
    grown = last.resident / first.resident - 1
    flat = grown <= 0.05 and all(
        getattr(last, what) <= getattr(first, what) for what in ("handles", "threads", "children")
    )
    lines = []
    for before, look in zip([None, *looks[:-1]], looks, strict=True):
        since = (
            (look.transfers, look.seconds)
            if before is None
            else (look.transfers - before.transfers, look.seconds - before.seconds)
        )
        lines.append(
            f"| {look.transfers:,} | {look.period:,} | {look.resident / 2**20:.1f} | {look.handles} | {look.threads} | "
            f"{look.children} | {look.log / 2**20:.2f} | {1e3 * since[1] / since[0]:.2f} |"
        )
    found = (
        f"Resident memory after {last.transfers:,} transfers was {abs(100 * grown):.1f} % "
        f"{'above' if grown > 0 else 'below'} that after the first {first.transfers:,}."
    )
    about = (
        f"{TASKS} networks, periods of two steps, `amto` and `papa` after every period, `vectorised`, checkpoints and "
        "log written. Where a checkpoint is being written at a look, a thread and a handle are its."
    )
    names = ("transfers", "periods", "resident, MiB", "file handles", "threads", "child processes", "log, MiB")
    head = f"| {' | '.join((*names, 'ms a transfer'))} |"
    page = [
        "# Endurance",
        "",
        found,
        "",
        provenance(),
        "",
        head,
        "|---:" * (len(names) + 1) + "|",
        *lines,
        "",
        about,
        "",
    ]
    arguments.out.write_text("\n".join(page))
    print("\n".join(page))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
