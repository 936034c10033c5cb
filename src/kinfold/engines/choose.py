"""Which engine runs a job: the one asked for, or the fastest that can, with a word about why."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from kinfold.data.streamed import Streamed
from kinfold.engines.base import Engine, Job
from kinfold.engines.compression import Codec, resolve_compression
from kinfold.engines.devices import Devices
from kinfold.engines.local import LocalEngine
from kinfold.engines.memory import Need, check_fits, free_on, needed
from kinfold.engines.sequential import Sequential
from kinfold.engines.streams import STREAMS, Streams
from kinfold.engines.timing import Form, best_threads, by_one_thread, first_tasks, quick_step, seconds_a_step, told
from kinfold.engines.vectorised import Vectorised, most_abreast
from kinfold.engines.workers import Workers
from kinfold.errors import InputError, unknown
from kinfold.processes import usable_cpus
from kinfold.tasks.update import check_count


def _cluster(
    job: Job, kind: type[LocalEngine] = Sequential, resources: str | None = None, compression: Codec | None = None
) -> Engine:
    """The engine `cluster`, whose package is imported only where it is wanted."""
    try:
        from kinfold.engines.cluster import Cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError("engine: cluster needs Ray, which is not installed; pip install 'kinfold[cluster]'.") from None
    return Cluster(job, kind, resources, compression)


ENGINES: dict[str, Callable[[Job], Engine]] = {
    "sequential": Sequential,
    "vectorised": Vectorised,
    "workers": Workers,
    "streams": Streams,
    "devices": Devices,
    "cluster": _cluster,
}


_WORTH_TIMING = 20.0
"""Seconds that training must take for forms of running it to be timed."""

_STEPS_OF_TIMING, _STACKED_STEPS_OF_TIMING, _SHARE_OF_TIMING = 60, 12, 0.05
"""Steps of one task, and of all of them stacked, that timing costs about; and how much of the training it may be."""

_LEVEL = 0.05
"""By how much slower than processes beside it a form of this process may be, and still is taken."""


def choose_engine(
    name: str, job: Job, steps: int = 0, resources: str | None = None, compression: Any = None
) -> tuple[Engine, str | None]:
    """Returns (a started engine, a line to tell the user or None).

    The stacked form is probed with one training and one scoring step. A model that cannot be stacked (recurrent
    cells, data-dependent control flow, embedding bags) runs one task after another instead. Each of `workers` runs
    its tasks stacked where they can be and do not convolve: on one CPU's thread, stacked convolutions gain nothing.

    `auto` times a few steps of each form that fits and takes the fastest, but `workers` only where they are faster than
    what is level with them (`_LEVEL`); where training is so short that this would cost more than it gains, it takes the
    stacked form if there can be one. One task after another is trained by one thread where that is faster.

    Args:
        name: `auto`, or an entry of `ENGINES`.
        job: what to train.
        steps: how many steps each task is to take, as far as that is known; for 0 nothing is timed.
        resources: what each actor of `cluster` takes, or None.
        compression: of what the actors send each other (see `kinfold.engines.compression`), or None.

    Raises:
        InputError: the name is unknown; resources or a compression are given to another engine than `cluster`; the
            job cannot fit in memory, in the smallest form there is of what was asked for; or the model cannot be
            trained in any way, then with its own message.
    """
    if name not in ("auto", *ENGINES):
        raise unknown("engine", name, ["auto", *ENGINES])
    for argument, given in (("resources", resources), ("compression", compression)):
        if given is not None and name != "cluster":
            raise InputError(f"{argument}: {given!r} is for the engine cluster, and engine is {name!r}; leave it out.")
    codec = resolve_compression(compression)
    check_count(job.optimizer, job.tasks)  # of all, also where fewer are tried
    free = free_on(job.device)  # before anything is made that takes of it
    need = None if name == "cluster" else needed(job, free)  # whose hosts have memory of their own
    if need is not None and name != "devices":  # of which each has its own share to hold
        at_once = min(job.tasks, {"workers": usable_cpus(), "streams": STREAMS}.get(name, 1))
        check_fits(job, need, free, at_once, smaller="sequential" if at_once > 1 else None)
    try:
        plain = Sequential(job if name != "cluster" else first_tasks(job, 1))  # beyond what one machine holds
    except InputError:
        raise
    except Exception as error:  # the user's factory, optimizer, scheduler or methods, which may raise anything
        raise InputError(f"model, optimizer or scheduler: cannot be set up ({_line(error)}); correct it.") from error
    try:
        draws = plain.probe()
    except InputError:
        raise
    except Exception as error:
        row = job.inputs.rows(job.train[0].nonzero()[0, 0])
        shape = " and ".join(str(tuple(part.shape)) for part in (row if isinstance(row, tuple) else (row,)))
        raise InputError(
            f"model: a training step on rows of shape {shape} failed ({_line(error)}); "
            "check the model's input and output shapes, the loss and the methods."
        ) from error
    if name == "sequential":
        return _by_best_threads(plain, steps), None
    convolves, images = (
        any(isinstance(layer, kind) for layer in plain.stack.module.modules()) for kind in (_ConvNd, nn.Conv2d)
    )
    plain.discard()
    if name == "streams":
        return Streams(job), None
    if name == "cluster":
        # What a model draws itself depends, stacked, on what it is stacked with, and so on how tasks are shared out.
        stacks = not convolves and not draws and isinstance(_stacked(first_tasks(job, 2)), Vectorised)
        return _cluster(job, Vectorised if stacks else Sequential, resources, codec), None
    if name == "workers" and convolves:
        return Workers(job), None  # task by task, whether they can be stacked or not
    crowded = need is not None and job.tasks > 1 and job.device.type == "cpu" and _crowded(name, job, need, free)
    together = f"{job.tasks} tasks do not fit in memory together" if crowded else _stacked(job)
    stacks = isinstance(together, Vectorised)
    if isinstance(together, Vectorised) and name in ("workers", "devices"):
        together.discard()
    if name == "workers":
        return Workers(job, kind=_kind_of_workers(stacks, convolves)), None
    if name == "devices":
        return Devices(job, kind=Vectorised if stacks else Sequential), None
    if name == "auto" and _long(job, steps, stacks):
        if isinstance(together, Vectorised):
            together.discard()
        return _fastest(job, stacks, convolves, images)
    if isinstance(together, Vectorised) and not (name == "auto" and job.tasks == 1):
        return together, None
    line = None if stacks else f"engine: sequential, since {together}."
    return _by_best_threads(Sequential(job), steps), line


def _fastest(job: Job, stacks: bool, convolves: bool, images: bool) -> tuple[Engine, str]:
    """Returns the engine that measures fastest, on the better layout of images, and the line that says so."""
    if images:
        make = Form(by_one_thread if job.device.type == "cpu" else Vectorised if stacks else Sequential, tasks=1)
        last = dataclasses.replace(job, channels_last=True)
        layouts = {one.channels_last: seconds_a_step({"": make}, one).get("", math.inf) for one in (job, last)}
        job = last if layouts[True] < layouts[False] else job
    forms = _forms(job, stacks, convolves)
    found = seconds_a_step(forms, job)
    if not found:
        return Sequential(job), "engine: sequential, since no form could be timed."
    chosen = _choice(found)
    return forms[chosen].make(job), told(found, chosen, ", channels last" if job.channels_last else "")


def _choice(found: Mapping[str, float]) -> str:
    """The fastest form; but processes beside this one, which take memory of their own, only where they gain by it."""
    fastest = min(found, key=lambda form: found[form])
    here = {form: seconds for form, seconds in found.items() if form != "workers"}
    level = min(here, key=lambda form: here[form], default=fastest)
    return level if found[level] <= (1 + _LEVEL) * found[fastest] else fastest


def _forms(job: Job, stacks: bool, convolves: bool) -> dict[str, Form]:
    """Returns the forms of a job to be timed, by name; what goes task by task is timed on a few of them."""
    forms = {"sequential": Form(Sequential, tasks=1, share=job.tasks)}
    if stacks:
        forms["vectorised"] = Form(Vectorised)
    if job.device.type != "cpu":
        return forms | {"streams": Form(Streams)}
    if torch.get_num_threads() > 1:
        forms["sequential, one thread"] = Form(by_one_thread, tasks=1, share=job.tasks)
        if stacks and job.tasks == 1:  # as a worker would go, of which more tasks have several
            forms["vectorised, one thread"] = Form(partial(by_one_thread, kind=Vectorised))
    count, kind = min(job.tasks, usable_cpus()), _kind_of_workers(stacks, convolves)
    if count > 1 and sys.platform != "darwin":  # where frameworks do not bear a fork that nobody asked for
        few = Form(partial(Workers, kind=kind), tasks=count, share=math.ceil(job.tasks / count))
        forms["workers"] = few if kind is Sequential else dataclasses.replace(few, tasks=None, share=1)
    return forms


def _kind_of_workers(stacks: bool, convolves: bool) -> type[LocalEngine]:
    return Vectorised if stacks and not convolves else Sequential


def _long(job: Job, steps: int, stacks: bool) -> bool:
    """Whether training will take so long, in the form that is taken where nothing is timed, that timing pays."""
    if isinstance(job.inputs, Streamed):  # timing would begin to read, and measure that
        return False
    if steps == 0:
        return False
    one = quick_step(first_tasks(job, 1))
    step = quick_step(job, Vectorised) if stacks else job.tasks * one
    timing = (_STEPS_OF_TIMING + _STACKED_STEPS_OF_TIMING * job.tasks) * one
    return steps * step > _WORTH_TIMING + timing / _SHARE_OF_TIMING


def _by_best_threads(engine: Sequential, steps: int) -> Sequential:
    engine.threads = best_threads(engine.job, steps * engine.job.tasks)
    return engine


def _crowded(name: str, job: Job, need: Need, free: float) -> bool:
    """Whether all tasks' steps at once do not fit; or, where the form is ours to choose, would leave little room."""
    lane = most_abreast(job, need.parameters)
    at_once = min(job.tasks, lane * (usable_cpus() if name == "workers" else 1))
    return need.of(job.tasks, at_once) > free or (name == "auto" and at_once * need.step > free / 2)


def _stacked(job: Job) -> Vectorised | str:
    """Returns an engine of the stacked form, or why there can be none."""
    try:
        together = Vectorised(job)
        together.probe()
    except torch.OutOfMemoryError:
        return f"{job.tasks} tasks do not fit in memory together"
    except Exception as error:
        return f"this model cannot be stacked ({_line(error)})"
    return together


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:200] + "…"
    return f"{type(error).__name__}: {text}".rstrip(".")
