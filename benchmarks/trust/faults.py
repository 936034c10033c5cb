"""Lets faults strike runs at every call to the disk, goes on with each, and compares where they end with one in peace.

    python benchmarks/trust/faults.py [--faults 1500] [--twice 100] [--jobs 4] [--seed 0] [--out FILE.md]

What faults there are, and what strikes where, is told in `injection.py`. Every fault that may strike is made, or so
many of them, drawn by the seed. After each, every file that is there is read; then the run is resumed. Lost is a run
that cannot be resumed, or of which a file is neither as before the fault nor as after it; different is one that does
not end, bit for bit, as the undisturbed one does. The exit status is 1 where there is one of either.
"""

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from injection import ENDS, KINDS, SUBJECTS, Call, Fault, faults, problems_after, undisturbed

from kinfold.files import write_text

sys.path.insert(0, str(Path(__file__).parents[1]))

from provenance import provenance

TWICE = "twice: ends, then ends again on resuming"


def strike(name: str, struck: tuple[Fault, ...], scratch: Path) -> list[str]:
    """Lets faults strike a subject in a process of its own; returns what is wrong."""
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    found = problems_after(SUBJECTS[name], scratch / name, out, *struck)
    if not found:
        shutil.rmtree(out.parent)
    return found


def drawn(calls: dict[str, list[Call]], count: int, twice: int, seed: int) -> list[tuple[str, tuple[Fault, ...]]]:
    """Which faults are made, of which subjects."""
    draws = random.Random(seed)
    once = [(name, (fault,)) for name in calls for kind in KINDS for fault in faults(calls[name], kind)]
    again = []
    for _ in range(twice):
        name = draws.choice(list(calls))
        again.append((name, tuple(draws.choice(faults(calls[name], draws.choice(list(ENDS)))) for _ in range(2))))
    return draws.sample(once, min(count, len(once))) + again


def table(made: Counter[tuple[str, str]], lost: Counter[str], different: Counter[str]) -> list[str]:
    """The lines of the table, a kind each."""
    lines = [
        f"| kind of fault | {' | '.join(SUBJECTS)} | runs lost | silent differences |",
        "|---|" + "---:|" * (len(SUBJECTS) + 2),
    ]
    for kind in (*KINDS, TWICE):
        counts = " | ".join(str(made[kind, name]) for name in SUBJECTS)
        lines.append(f"| {kind} | {counts} | {lost[kind]} | {different[kind]} |")
    sums = " | ".join(str(sum(count for (_, name), count in made.items() if name == each)) for each in SUBJECTS)
    return [*lines, f"| together | {sums} | {lost.total()} | {different.total()} |"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Let faults strike runs, resume and compare them.")
    parser.add_argument("--faults", type=int, default=1500)
    parser.add_argument("--twice", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4, help="processes at once")
    parser.add_argument("--seed", type=int, default=0, help="of which faults are made")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made: Counter[tuple[str, str]] = Counter()
    lost: Counter[str] = Counter()
    different: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        calls = {name: undisturbed(subject, scratch / name) for name, subject in SUBJECTS.items()}
        work = drawn(calls, arguments.faults, arguments.twice, arguments.seed)
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(strike, name, struck, scratch): (name, struck) for name, struck in work}
            for done, future in enumerate(as_completed(waiting), 1):
                name, struck = waiting[future]
                kind, found = struck[0].kind if len(struck) == 1 else TWICE, future.result()
                made[kind, name] += 1
                differs = bool(found) and all(each.startswith("ends otherwise") for each in found)
                (different if differs else lost)[kind] += bool(found)
                if found or done % 100 == 0:
                    print(f"{done} of {len(work)}", *([name, *struck, *found] if found else []), flush=True)
    bad = lost.total() + different.total()
    page = [
        "# Faults at every call to the disk",
        "",
        f"{made.total():,} faults: {lost.total()} runs lost, {different.total()} silent differences.",
        "",
        provenance(),
        "",
        "How many calls to the disk each takes: "
        + ", ".join(f"{name} {len(each)}" for name, each in calls.items())
        + ". `killed` is SIGKILL, of a process of its own; the other kinds are told in `injection.py`.",
        "",
        *table(made, lost, different),
    ]
    write_text(arguments.out, "\n".join(page) + "\n")
    print(page[2])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
