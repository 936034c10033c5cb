"""Two actors on two cores beside the engines of one machine: what does going through Ray cost?

    python benchmarks/scaling/cluster.py [--model lenet5] [--tasks 8] [--periods 15] [--turn 16] [--engines …]

The work is that of `benchmarks/speed`. An alternation is a period of every engine, in turns of a few steps each, and
beginning with another engine every time, so that whatever else the machine does meets all alike. A period of the
cluster engine includes what it does at its beginning: every actor keeps its state, and sends a copy to a keeper.

Legend: T tasks.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from contestants import CannotRunError, KinfoldEngine
from provenance import provenance
from work import BATCH, STRUCTURES, make_work

from kinfold import files
from kinfold.comparing.table import markdown
from kinfold.processes import usable_cpus

ENGINES = ("workers", "vectorised", "sequential", "cluster")
"""Those that fork come before Ray, beside whose threads no process should."""


def periods(engines: dict[str, KinfoldEngine], count: int, steps: int, turn: int) -> dict[str, list[float]]:
    """Returns the seconds of each engine's periods; the first one, in which engines settle, is left out."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for _ in range(1 + count):
        spent = dict.fromkeys(order, 0.0)
        for first in range(0, steps, turn):
            for name in order:
                began = time.perf_counter()
                engines[name].run(min(turn, steps - first))
                spent[name] += time.perf_counter() - began
            order = order[1:] + order[:1]
        for name, seconds in spent.items():
            found[name].append(seconds)
    return {name: seconds[1:] for name, seconds in found.items()}


def page(model: str, tasks: int, steps: int, turn: int, found: dict[str, list[float]]) -> str:
    """Returns the page."""
    median = {name: float(np.median(seconds)) for name, seconds in found.items()}
    best = min((name for name in median if name != "cluster"), key=lambda name: median[name])
    rows = []
    for name, seconds in found.items():
        ratio = np.asarray(found[best]) / np.asarray(seconds)
        low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
        rate = f"{tasks * steps / median[name]:,.0f}"
        rows.append([name, rate, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{min(ratio):.3f} to {max(ratio):.3f}"])
    about = f"""{STRUCTURES[model].says}, T = {tasks}, batches of {BATCH}; {usable_cpus()} CPUs, and as many
actors of one each. {len(found[best])} alternations of a period of {steps} steps in turns of {turn}. Throughput is that
of the median period; the ratio is to `{best}`, period by period."""
    head = ["engine", "task-steps a second", "ratio, median", "middle half", "all"]
    return "\n\n".join(["# Throughput of the cluster engine", provenance(), about, markdown(rows, head)]) + "\n"


def measured(model: str, tasks: int, count: int, turn: int, names: Sequence[str]) -> str:
    """Returns the page, measured."""
    work = make_work(model, tasks)
    steps = len(work.batches)
    with contextlib.ExitStack() as running:
        engines: dict[str, KinfoldEngine] = {}
        for name in names:
            try:
                engines[name] = KinfoldEngine(name, work)
            except CannotRunError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            running.callback(engines[name].close)
            engines[name].run(steps)
        return page(model, tasks, steps, turn, periods(engines, count, steps, turn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=STRUCTURES, default="lenet5")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--periods", type=int, default=15)
    parser.add_argument("--turn", type=int, default=16, help="steps")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    names = [name for name in ENGINES if name in given.engines]
    found = measured(given.model, given.tasks, given.periods, given.turn, names)
    files.write_text(Path(__file__).with_suffix(".md"), found)
    print(found)


if __name__ == "__main__":
    main()
