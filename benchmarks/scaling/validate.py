"""Does the cost model hold on this machine? Bytes of every kind of plan, and the time of a period among processes.

    python benchmarks/scaling/validate.py bytes [--engine shared|cluster]
    python benchmarks/scaling/validate.py time

`bytes` carries out plans drawn at random among shares of the tasks, in this process or on a local Ray, and compares
what the exchange counted with `model.py`. `time` measures the model's constants (`calibrate.py`), and then training and
plans of the cluster engine on a local Ray. Each writes its page, `validate-bytes.md`, `validate-bytes-cluster.md` or
`validate-time.md`.

Legend: T tasks, A actors.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrate import BATCH, calibrated, dense_job, parameters
from model import PLANS, Machine, Setting, Volume, compute_seconds, exchange_seconds
from shared import Shared
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files, random
from kinfold.comparing.table import markdown
from kinfold.engines.base import Engine, Job
from kinfold.engines.sequential import Sequential
from kinfold.tasks.order import Segment
from kinfold.transfer.base import Plan
from kinfold.transfer.changes import Change, Cross, Elastic, Median, Mix, Restart, Shuffle

HERE = Path(__file__).parent
CASES = ((4, 2), (8, 2), (8, 3), (12, 4))
"""(T, A)."""
TRIES, DONORS, RATE = 0.375, 2, 0.1
DRAWS: Mapping[str, int] = {"copy": 50, "crossover": 800, "amto": 400, "mixture": 40, "shuffle": 5}
"""Plans of the kinds that are drawn at random, over which the mean is taken; of the others, 1."""
STEPS = 200


def plans(kind: str, tasks: int, draws: torch.Generator) -> Iterator[Plan]:
    """Yields plans of a kind, as its rule would make them; what they try is accepted, and moments follow."""
    count = DRAWS.get(kind, 1)
    # What each task draws is spread evenly over the plans: their mean is then near the expectation with fewer of them.
    chance, rate, other = (_even(count, tasks, draws) for _ in range(3))
    for i in range(count):
        if kind in _PARTS:
            source = (torch.arange(tasks) + 1 + (other[i] * (tasks - 1)).long()) % tasks
            yield Plan(_taking(chance[i], rate[i], source, _PARTS[kind], draws))
        else:
            yield drawn(kind, tasks, draws)


def _even(count: int, tasks: int, draws: torch.Generator) -> Tensor:
    """[count, T] numbers between 0 and 1: for each task, one in every 1/count of them, in an order of its own."""
    order = torch.stack([torch.randperm(count, generator=draws) for _ in range(tasks)], 1)
    return (order + torch.rand(count, tasks, dtype=torch.float64, generator=draws)) / count


_PARTS = {"copy": (1.0, 0.0), "crossover": (0.0, 1.0), "amto": (2 / 3, 1 / 3)}
"""Which parts of the tries are copies, and crossovers."""


def drawn(kind: str, tasks: int, draws: torch.Generator) -> Plan:
    """Returns a plan of another kind."""
    everyone, eye = torch.ones(tasks, dtype=torch.bool), torch.eye(tasks, dtype=torch.float64)
    mean = torch.full((tasks, tasks), 0.01 / tasks, dtype=torch.float64)
    if kind == "mean":
        return Plan((Mix(0.99 * eye + mean),), moments="keep", buffers="keep")
    if kind == "elastic":
        rate = torch.full((tasks,), 0.1, dtype=torch.float64)
        return Plan((Elastic(rate, rate / tasks),), moments="keep", buffers="keep")
    if kind == "shuffle":
        return Plan((Shuffle(everyone, RATE, RATE, int(torch.randint(2**62, (), generator=draws))),), moments="keep")
    if kind == "median":
        return Plan((Median(torch.ones(tasks, tasks, dtype=torch.bool)),))
    if kind == "restart":
        return Plan((Restart(everyone),))
    assert kind == "mixture", kind
    return Plan((Mix(_mixture(tasks, draws)),), moments="keep")


def _mixture(tasks: int, draws: torch.Generator) -> Tensor:
    weights = torch.zeros(tasks, tasks, dtype=torch.float64)
    for t in range(tasks):
        others = torch.tensor([s for s in range(tasks) if s != t])
        chosen = others[torch.randperm(tasks - 1, generator=draws)[:DONORS]]
        weights[t, chosen] = torch.rand(DONORS, dtype=torch.float64, generator=draws) + 0.1
        weights[t, t] = 1.0
    return weights / weights.sum(1, keepdim=True)


def _taking(
    chance: Tensor, rate: Tensor, source: Tensor, parts: tuple[float, float], draws: torch.Generator
) -> tuple[Change, ...]:
    """AMTO's changes: each task tries with probability TRIES, one other, a copy or a crossover by layer."""
    tasks = len(chance)
    copies = chance < TRIES * parts[0]
    crossed = ~copies & (chance < TRIES)
    weights = torch.eye(tasks, dtype=torch.float64)
    weights[copies] = torch.eye(tasks, dtype=torch.float64)[source[copies]]
    keys = torch.randint(2**62, (tasks,), generator=draws)
    return Mix(weights), Cross(torch.where(crossed, source, -1), rate, keys, "layer")


def predicted(kind: str, job: Job, actors: int) -> float:
    """Returns the bytes between shares that the model expects of one such plan."""
    given = Setting(
        job.tasks, actors, parameters(job), tries=TRIES, accepted=1.0, shuffled=RATE, donors=DONORS, slots=1
    )
    return PLANS[kind](given).between


@contextlib.contextmanager
def started(engine: str, job: Job, actors: int) -> Iterator[tuple[Engine, Callable[[], int]]]:
    """Gives an engine whose optimizers remember something, and what tells the bytes moved since it was last asked."""
    if engine == "shared":
        shared = Shared(job, actors)
        shared.train(Segment(1, 0, 1))
        yield shared, lambda: sum(_taken(shared.moved).values())
        return
    with on_ray(job, actors) as cluster:
        cluster.train(Segment(1, 0, 1))
        yield cluster, lambda: sum(cluster.traffic().values())


def _taken(counter: Any) -> dict[str, int]:
    found = dict(counter)
    counter.clear()
    return found


@contextlib.contextmanager
def on_ray(job: Job, actors: int) -> Iterator[Any]:
    """Gives a cluster engine of so many actors on a Ray of this machine."""
    import ray

    from kinfold.engines.cluster import Cluster

    ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with contextlib.closing(Cluster(job, Sequential, "cpus=1")) as engine:
            yield engine
    finally:
        ray.shutdown()


def counted(kind: str, job: Job, actors: int, running: Engine, moved: Callable[[], int]) -> float:
    """Returns the bytes that the exchange counted for a plan of a kind, as a mean over draws."""
    draws = random.generator(job.tasks, kind, actors)
    if kind == "elastic":  # the first pull finds the centre, too
        running.apply(drawn(kind, job.tasks, draws), 1)
    moved()
    for period, plan in enumerate(plans(kind, job.tasks, draws)):
        running.apply(plan, 2 + period)
    return moved() / DRAWS.get(kind, 1)


def bytes_page(engine: str) -> str:
    """Returns the page of bytes."""
    rows: dict[str, list[list[str]]] = {kind: [] for kind in PLANS if kind != "teach"}  # the driver moves its targets
    worst = 0.0
    for tasks, actors in CASES:
        job = dense_job(32, tasks)
        with started(engine, job, actors) as (running, moved):
            for kind, own in rows.items():
                found, expected = counted(kind, job, actors, running, moved), predicted(kind, job, actors)
                off = found / expected - 1 if expected else float(found > 0)
                worst = max(worst, abs(off))
                own.append([kind, str(tasks), str(actors), f"{found:,.0f}", f"{expected:,.0f}", f"{100 * off:+.1f} %"])
    where = "shares in one process" if engine == "shared" else "actors of the cluster engine on a local Ray"
    about = f"""Bytes of tensors that went between {where} for one plan, counted by the exchange,
beside `model.py`. MLPs of {parameters(dense_job(32, 2)):,} parameters with momentum. Kinds drawn at random as a
mean over some plans ({_draws()}), the model's
expectation being over all. The furthest is {100 * worst:.1f} % off."""
    head = ["plan", "T", "A", "bytes counted", "bytes expected", "off by"]
    return (
        "\n\n".join(["# Bytes: counted and expected", provenance(), about, markdown(list(chain(*rows.values())), head)])
        + "\n"
    )


def _draws() -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in DRAWS.items())


def time_page() -> str:
    """Returns the page of times."""
    machine = calibrated()
    rows = []
    for width, tasks, actors in ((64, 4, 2), (256, 4, 2), (1024, 4, 2)):
        job = dense_job(width, tasks)
        given = Setting(tasks, actors, parameters(job))
        crosswise = torch.eye(tasks, dtype=torch.float64).roll(tasks // 2, 0)  # each takes one of the other actor
        with on_ray(job, actors) as engine:
            measured = {
                f"training, {STEPS} steps": _median(partial(_train, engine)),
                "mean": _seconds_of(engine, drawn("mean", tasks, torch.Generator())),
                "copy": _seconds_of(engine, Plan((Mix(crosswise),))),
            }
        expected = {
            f"training, {STEPS} steps": compute_seconds(given, machine, STEPS, BATCH),
            "mean": exchange_seconds(PLANS["mean"](given), given, machine),
            "copy": exchange_seconds(Volume(tasks * (1 + given.slots) * given.model, hops=4), given, machine),
        }
        for what, seconds in measured.items():
            ratio = seconds / expected[what]
            row = [what, f"{given.parameters:,}", f"{1e3 * seconds:.3g}", f"{1e3 * expected[what]:.3g}", f"{ratio:.2f}"]
            rows.append(row)
    head = ["what", "parameters", "ms measured", "ms expected", "ratio"]
    about = f"""Two actors of the cluster engine on one machine, two MLPs each; medians. The model's constants were
measured just before, one thread each: {_said(machine)}."""
    return "\n\n".join(["# Time: measured and expected", provenance(), about, markdown(rows, head)]) + "\n"


def _said(machine: Machine) -> str:
    return (
        f"{1e3 * machine.step:.2f} ms and P · {BATCH} / {machine.rate:.2g} s a step, {1e3 * machine.latency:.2f} ms a "
        f"message, {machine.store / 1e6:.0f} MB/s between actors of a node"
    )


def _train(engine: Engine, period: int) -> None:
    per_period = int(engine.steps(period).max())
    for i in range(-(-STEPS // per_period)):
        engine.train(Segment(period + 1000 * i, 0, min(per_period, STEPS - i * per_period)))


def _seconds_of(engine: Engine, plan: Plan) -> float:
    return _median(lambda period: engine.apply(plan, period))


def _median(call: Callable[[int], Any], tries: int = 7) -> float:
    times = []
    for period in range(1, tries + 3):
        began = time.perf_counter()
        call(period)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("bytes", "time"))
    parser.add_argument("--engine", choices=("shared", "cluster"), default="shared")
    given = parser.parse_args()
    torch.set_num_threads(1)
    page = bytes_page(given.engine) if given.what == "bytes" else time_page()
    of_cluster = given.what == "bytes" and given.engine == "cluster"
    files.write_text(HERE / f"validate-{given.what}{'-cluster' if of_cluster else ''}.md", page)
    print(page)


if __name__ == "__main__":
    main()
