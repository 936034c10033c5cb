"""Two actors of which one is slower: does it help not to wait for each other, and what does it cost in accuracy?

    python benchmarks/scaling/uneven.py [--seeds 2] [--periods 20] [--seconds 0.6] [--tasks 4]

How long a period takes is made up, so that it hangs little on what else the machine does: an actor computes its own,
and then idles until that long has passed. An actor that is slow takes twice as long: always the same one, or by a draw
for each actor and period, which is the same for both ways. These take turns, seed by seed.

Legend: T tasks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
from kinfold import asynchronous, files, random
from kinfold.comparing.table import markdown
from kinfold.engines.cluster import engine as cluster
from kinfold.engines.local import LocalEngine

Slowness: TypeAlias = Callable[[int, int], bool]
"""Whether a period of an actor, given by the first of its tasks, is slow."""

SLOW = 2
"""How many times as long a slow period takes."""


def always_one(first: int, period: int) -> bool:
    """Returns whether it is the first actor's."""
    del period
    return first == 0


def by_draw(first: int, period: int) -> bool:
    """Returns what a draw for each actor and period says."""
    return bool(torch.rand((), generator=random.generator(7, "slow", first, period)) < 0.5)


UNEVEN: dict[str, Slowness] = {"always the same": always_one, "by a draw": by_draw}


def lasting(function: Callable[..., Any], seconds: float, slow: Slowness, engine: LocalEngine, *given: Any) -> Any:
    """Calls what trains for a period, and returns when that has lasted so long; or twice that."""
    began = time.perf_counter()
    result = function(engine, *given)
    period = given[0] if isinstance(given[0], int) else given[0].period
    wanted = seconds * (SLOW if slow(engine._first, period) else 1)
    time.sleep(max(0.0, began + wanted - time.perf_counter()))
    return result


@contextmanager
def periods_of(seconds: float, slow: Slowness) -> Iterator[None]:
    """Within, a period of an actor lasts so long, in either way of going through them."""
    before = cluster.trained, asynchronous.live
    cluster.trained, asynchronous.live = (partial(lasting, function, seconds, slow) for function in before)
    try:
        yield
    finally:
        cluster.trained, asynchronous.live = before


@dataclass(frozen=True)
class Run:
    """What came of one.

    Attributes:
        rate: periods a second, from the end of the first.
        value: accuracy on the sealed rows.
        accepted: transfers.
        age: of the copies that were learned from, in periods, away from 0; NaN where there is none.
    """

    rate: float
    value: float
    accepted: int
    age: float


def trained(apart: bool, seed: int, periods: int, tasks: int) -> Run:
    """Returns what comes of a run."""
    ends: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "period":
            ends.append(time.perf_counter())

    result = kinfold.fit(
        "mlp",
        "digits",
        tasks=tasks,
        epochs=periods,
        transfer="amto",
        engine="cluster",
        asynchronous=apart,
        seed=seed,
        holdout=0.3,
        listen=listen,
    )
    ages = [
        abs(age)
        for event in result.history
        if event["event"] == "transfer"
        for move in event["transfers"]
        for donor, age in zip(move["donors"], move.get("ages", ()), strict=False)
        if (donor < tasks // 2) != (move["recipient"] < tasks // 2)
    ]
    assert result.estimate is not None
    age = statistics.mean(ages) if ages else float("nan")
    return Run((periods - 1) / (ends[-1] - ends[0]), result.estimate.value, result.transfers.accepted, age)


def page(found: dict[tuple[str, bool], list[Run]], given: argparse.Namespace) -> str:
    """Returns the page."""
    rows = []
    for (name, apart), runs in found.items():
        ratios = [one.rate / other.rate for one, other in zip(runs, found[name, False], strict=True)]
        values = [100 * run.value for run in runs]
        rows.append(
            [
                name,
                "asynchronous" if apart else "synchronous",
                f"{statistics.mean(run.rate for run in runs):.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})",
                f"{statistics.mean(run.accepted for run in runs):.0f}",
                f"{statistics.mean(run.age for run in runs):.1f}" if apart else "0",
            ]
        )
    head = ["slow", "way", "periods a second", "to synchronous", "accuracy, %", "transfers", "age"]
    about = f"""MLP on digits, T = {given.tasks} on two actors, `amto`, {given.periods} periods, {given.seeds} seeds,
the two ways in turns. A period lasts {given.seconds:g} s at an actor, {SLOW} times as long where it is slow. Accuracy
is of the model handed back, on the sealed 30 % of the rows; in brackets the least and the most of a seed. Age is that
of copies from the other actor, in periods, whichever is ahead."""
    return "\n\n".join(["# Actors that are not alike", provenance(), about, markdown(rows, head)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--periods", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--tasks", type=int, default=4)
    given = parser.parse_args()
    import ray  # one for all runs

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    found: dict[tuple[str, bool], list[Run]] = {}
    for seed in range(given.seeds):
        for name, slow in UNEVEN.items():
            for apart in (False, True) if seed % 2 == 0 else (True, False):
                with periods_of(given.seconds, slow):
                    run = trained(apart, seed, given.periods, given.tasks)
                found.setdefault((name, apart), []).append(run)
                print(name, apart, seed, run, file=sys.stderr)
    ray.shutdown()
    text = page(dict(sorted(found.items())), given)
    files.write_text(Path(__file__).with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
