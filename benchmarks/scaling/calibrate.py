"""Measures what the cost model needs to know of this machine: steps, the object store, the network, the driver.

    python benchmarks/scaling/calibrate.py [--out benchmarks/scaling/calibration.json]

Two actors of a local Ray, on one node, and on two nodes that are processes of this machine; one thread each. Where the
nodes are one machine, their network is its own loopback: of another cluster, measure that cluster.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from model import Machine
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files
from kinfold.assembling import assemble
from kinfold.comparing.comparison import fit_arguments
from kinfold.engines.base import Job
from kinfold.engines.sequential import Sequential
from kinfold.tasks.order import Segment

CALIBRATION = Path(__file__).with_name("calibration.json")
SIZES = (4_000, 40_000, 400_000, 4_000_000, 40_000_000)  # bytes
WIDTHS = (64, 256, 1024)
INPUTS, OUTPUTS, ROWS, BATCH = 64, 10, 2_000, 64
STORE = 600_000_000  # bytes of the object store
_TRIES = 7


def dense_job(width: int, tasks: int, seed: int = 0) -> Job:
    """Returns the training of an MLP 64-width-width-10 on random rows: what it learns does not matter."""
    draws = np.random.default_rng(seed)
    data = draws.normal(size=(ROWS, INPUTS)).astype(np.float32), draws.integers(0, OUTPUTS, ROWS)
    model = {"name": "mlp", "hidden": (width, width)}
    given = fit_arguments(model, data, tasks=tasks, batch_size=BATCH, epochs=100, scheduler=None)
    return assemble({**given, "transfer": "none", "seed": seed}).job


def parameters(job: Job) -> int:
    """Returns P."""
    return sum(value[0].numel() for value in Sequential(job).stack.params.values())


def seconds_a_step(job: Job) -> float:
    """Returns the median seconds of one task's step, of some periods after the first two."""
    engine = Sequential(job)
    steps = int(engine.steps(1).sum())
    return _median(lambda period: engine.train(Segment(period)), first=1, skip=2) / steps


def line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Returns (a, b) of seconds ≈ a + b · size, by least squares of the relative errors; neither below 0.

    Example:
        >>> [round(x, 6) for x in line([1.0, 10.0, 100.0], [2.5, 7.0, 52.0])]
        [2.0, 0.5]
    """
    from scipy.optimize import nnls

    weights = 1 / np.asarray(seconds, dtype=np.float64)
    system = np.stack([weights, weights * np.asarray(sizes, dtype=np.float64)], 1)
    solution, _ = nnls(system, np.ones(len(weights)))
    return float(solution[0]), float(solution[1])


@contextmanager
def local_ray(nodes: int) -> Iterator[Callable[[int], Any]]:
    """Starts a Ray of so many nodes in processes of this machine; gives what makes a peer on one of them."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    quiet = {"include_dashboard": False, "object_store_memory": STORE}
    for node in range(nodes):
        cluster.add_node(num_cpus=1, resources={f"node{node}": 1.0}, **quiet)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    peer = ray.remote(num_cpus=0)(Peer)
    try:
        yield lambda node: peer.options(resources={f"node{node}": 0.01}).remote()
    finally:
        ray.shutdown()
        cluster.shutdown()


class Peer:
    """An actor that sends and takes tensors."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def send(self, size: int) -> list[Any]:
        """Puts a tensor of so many bytes; returns its reference, nested, so that the tensor stays where it is."""
        import ray

        return [ray.put(torch.ones(size // 4))]

    def take(self, nested: list[Any]) -> int:
        """Fetches a tensor and copies it, as one does who adds it to another."""
        import ray

        return len(ray.get(nested[0]).clone())


def link(nodes: int) -> tuple[float, float]:
    """Returns (seconds of a message, bytes a second) from an actor to another, on one node or on two."""
    import ray

    with local_ray(nodes) as make:
        sender, taker = make(0), make(nodes - 1)

        def once(size: int) -> None:
            ray.get(taker.take.remote(ray.get(sender.send.remote(size))))

        seconds = [_median(lambda _, size=size: once(size)) for size in SIZES]
    latency, each = line(SIZES, seconds)
    return latency / 2, 1 / each  # two calls


def driver_rate() -> float:
    """Returns the bytes a second that the driver takes from an actor, works on as `teach` does, and gives back."""
    import ray

    with local_ray(1) as make:
        peer, size = make(0), SIZES[-1]
        nested = ray.get(peer.send.remote(size))

        def once(_: int) -> None:
            outputs: Float[Tensor, " n"] = ray.get(nested[0]).view(-1, OUTPUTS)
            ray.get(peer.take.remote([ray.put(torch.softmax(outputs / 8.0, -1))]))

        return 2 * size / _median(once)


def calibrated() -> Machine:
    """Measures this machine."""
    jobs = [dense_job(width, tasks=1) for width in WIDTHS]
    step, each = line([parameters(job) * BATCH for job in jobs], [seconds_a_step(job) for job in jobs])
    latency, store = link(1)
    _, network = link(2)
    return Machine(store, network, latency, driver_rate(), step, 1 / each)


def _median(function: Callable[[int], object], first: int = 0, skip: int = 1) -> float:
    times = []
    for i in range(first, first + skip + _TRIES):
        began = time.perf_counter()
        function(i)
        times.append(time.perf_counter() - began)
    return float(np.median(times[skip:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = calibrated()
    files.write_json(given.out, {"provenance": provenance(), "machine": vars(found)})
    print(found)


if __name__ == "__main__":
    main()
