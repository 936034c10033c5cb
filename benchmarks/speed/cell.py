"""Times all contestants on one cell in one process, in turns, and prints its record as a line of JSON.

    python benchmarks/speed/cell.py --model mlp --tasks 16 [the options of steps.py]

`steps.py` calls it for every cell. A turn is at least `--seconds` of one contestant's steps; an alternation is a turn
of each, in an order drawn anew, so that what the machine does meanwhile, and what the one before leaves behind (threads
that still spin, full caches), meets all alike.
"""

import argparse
import json
import math
import random
import sys
import time
from functools import partial
from typing import Any

import torch
from contestants import CONTESTANTS, CannotRunError, Contestant
from limit import Limit
from work import STRUCTURES, make_work

LONGEST_BLOCK = 64  # steps: a period of the work, for which a run calls its engine once
SETTLED = 48  # steps after which every contestant has recorded or compiled what it will
SETTLING = 20.0  # seconds that this may take
LIMITS = {"limit": Limit, "limit-together": partial(Limit, shared_out=False)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `steps.py` passes on."""
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn, at least")
    parser.add_argument("--limit-seconds", type=float, default=20.0, help="a slower step's contestant is left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")


def timed(contestant: Contestant, steps: int) -> float:
    """Returns the seconds that so many steps take."""
    began = time.perf_counter()
    contestant.run(steps)
    return time.perf_counter() - began


def warm_up(contestant: Contestant, seconds: float, limit: float) -> int:
    """Runs a contestant until it has compiled what it needs.

    Returns:
        The steps of its blocks: as many as fit into a turn, a power of two, and not above 64.

    Raises:
        CannotRunError: a step takes longer than the limit.
    """
    timed(contestant, 1)
    step = timed(contestant, 1)
    if step > limit:
        raise CannotRunError(f"a step takes {step:.0f} s, and the limit is {limit:g} s")
    block = 1
    while block < LONGEST_BLOCK and 2 * block * step <= seconds:
        block *= 2
    for _ in range(max(1, math.ceil(min(SETTLED, max(seconds, SETTLING) / step) / block))):
        timed(contestant, block)  # compiled for this length, too
    return block


def turn(contestant: Contestant, block: int, seconds: float) -> float:
    """Returns the mean seconds of a step over blocks that take at least so many seconds."""
    spent, steps = 0.0, 0
    while spent < seconds:
        spent += timed(contestant, block)
        steps += block
    return spent / steps


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the cell's record."""
    work = make_work(given.model, given.tasks, given.device, given.precision)
    skipped = dict(given.skip)
    runners: dict[str, tuple[Contestant, int]] = {}
    for name, make in {**CONTESTANTS, **LIMITS}.items():
        if name in skipped or name not in [*given.contestants, *LIMITS]:
            continue
        try:
            contestant = make(work)
            runners[name] = contestant, warm_up(contestant, given.seconds, given.limit_seconds)
        except (CannotRunError, RuntimeError) as error:
            skipped[name] = " ".join(str(error).split())[:200]
        print(given.model, given.tasks, name, skipped.get(name, "ready"), file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order, draw = list(runners), random.Random(0)
    for _ in range(given.alternations):
        draw.shuffle(order)
        for name in order:
            seconds[name].append(turn(*runners[name], given.seconds))
    notes = {name: runner.note for name, (runner, _) in runners.items() if runner.note}
    for runner, _ in runners.values():
        runner.close()
    return {"seconds": seconds, "skipped": skipped, "notes": notes, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=STRUCTURES, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--skip", nargs=2, action="append", default=[], metavar=("CONTESTANT", "WHY"))
    add_options(parser)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
