"""Measures how much memory one contestant takes for its T models, in a process of its own, and prints it as JSON.

    python benchmarks/speed/memory.py --model mlp --tasks 16 --contestant loop [--device cpu] [--precision float32]

On the CPU it is what the process grows by over its level after imports, data and a first small training: by its peak
resident set where it is alone, else by the highest proportional set (pages that processes share count once) of it and
its children together, as sampled. On a GPU it is the most that the allocator has given out, data included.
"""

import argparse
import gc
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from contestants import CONTESTANTS, CannotRunError, Contestant
from torch import nn
from work import STRUCTURES, Work, make_work

FIRST = 6  # steps
STEPS = 40  # those that are recorded among them, and the making of the recording
SECONDS = 20.0  # after which no further steps are taken
_EVERY = 0.002  # seconds between samples


def needed(work: Work) -> int:
    """Returns the bytes that training one model needs: parameters, gradients, momentum, buffers and activations.

    Activations are what autograd saves in a forward pass, each piece of memory once, and without the parameters.
    """
    model = work.starts()[0].train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    rows = work.batches[0, 0]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss = nn.functional.cross_entropy(model(work.inputs[rows]), work.targets[rows])
    del loss
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return 3 * parameters + sum(b.numel() * b.element_size() for b in model.buffers()) + sum(saved.values())


def grown(work: Work, contestant: str) -> int:
    """Returns by how many bytes the first steps of a contestant raise the peak."""
    if work.job.device.type == "cuda":
        return _grown_on_gpu(work, contestant)
    for name in dict.fromkeys(("loop", contestant)):  # so that what is imported or set up once is there, and in parents
        small = CONTESTANTS[name](make_work("mlp", 2))
        _train(small)
        small.close()
        del small
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    level, shared_level = _status("VmHWM"), _proportional(os.getpid())
    samples = [shared_level]
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(samples, done))
    sampler.start()
    runner = CONTESTANTS[contestant](work)
    _train(runner)
    has_children = bool(_children())
    done.set()
    sampler.join()
    runner.close()
    return max(samples) - shared_level if has_children else _status("VmHWM") - level


def _train(runner: Contestant) -> None:
    began, steps = time.perf_counter(), FIRST
    runner.run(FIRST)
    while steps < STEPS and time.perf_counter() - began < SECONDS:
        runner.run(2)
        steps += 2


def _grown_on_gpu(work: Work, contestant: str) -> int:
    runner = CONTESTANTS[contestant](work)
    if contestant.startswith("jax"):
        import jax

        _train(runner)
        return int(jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"])
    torch.cuda.reset_peak_memory_stats()
    _train(runner)
    return torch.cuda.max_memory_allocated()


def _sample(samples: list[int], done: threading.Event) -> None:
    while not done.is_set():
        samples.append(sum(_proportional(process) for process in [os.getpid(), *_children()]))
        time.sleep(_EVERY)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    children = []
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            children += map(int, (task / "children").read_text().split())
    return children


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _proportional(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=STRUCTURES, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--contestant", choices=CONTESTANTS, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    given = parser.parse_args()
    work = make_work(given.model, given.tasks, given.device, given.precision)
    need = needed(work)
    try:
        print(json.dumps({"needed": need, "grown": grown(work, given.contestant)}))
    except CannotRunError as error:
        print(json.dumps({"needed": need, "skipped": str(error)}))


if __name__ == "__main__":
    main()
