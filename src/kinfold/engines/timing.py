"""How long steps of training take, measured: which form is the fastest here is not to be had from its description.

Legend: T tasks.
"""

import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kinfold import random
from kinfold.data.streamed import Streamed
from kinfold.engines.base import Engine, Job
from kinfold.engines.local import UNRECORDED, LocalEngine, discarded
from kinfold.engines.sequential import Sequential
from kinfold.processes import give_back
from kinfold.tasks.order import Segment

_ROUNDS = 5
_FURTHER_ROUNDS = 4  # of those that are level after these
_BLOCK_SECONDS = 0.1
_OUT_OF_IT = 1.5  # times the best time: not timed again
_LEVEL = 1.1  # likewise, in the further rounds
_WORTH_TIMING = 3.0  # seconds that one task's steps must take in all, for numbers of threads to be timed
_PERIOD = UNRECORDED + 1  # so far on in a run that steps are recorded, whatever the number of steps a period has


@dataclass(frozen=True)
class Form:
    """A way of running a job that can be timed.

    Attributes:
        make: starts it on a job.
        tasks: how many tasks to time it on; None for all.
        share: by what to multiply their time for that of all tasks.
    """

    make: Callable[[Job], Engine]
    tasks: int | None = None
    share: float | int = 1


def seconds_a_step(forms: Mapping[str, Form], job: Job) -> dict[str, float]:
    """Returns the seconds that a step of all tasks takes in each form: the median of some blocks, taken in turns.

    The least would be that of a form which is fast by luck: processes wait for each other, some steps more than others.
    Forms that are level after five rounds are timed in four more.

    Args:
        forms: by name; one that cannot be started or stepped is left out.
        job: is trained on, and nothing of it is kept.
    """
    blocks: dict[str, _Block] = {}
    with random.seeded_everywhere(job.seed, "timing"), contextlib.ExitStack() as open_engines:
        for name, form in forms.items():
            try:
                engine = form.make(job if form.tasks is None else first_tasks(job, form.tasks))
                open_engines.callback(engine.close)
                blocks[name] = _Block.settled(engine)
            except Exception:  # nosec B112  # the user's model and methods, which may raise anything; memory
                continue
        times: dict[str, list[float]] = {name: [] for name in blocks}
        for number in range(_ROUNDS + _FURTHER_ROUNDS):
            best = {name: min(found, default=0.0) for name, found in times.items()}
            most = min(best.values(), default=0.0) * (_OUT_OF_IT if number < _ROUNDS else _LEVEL)
            left = [name for name in best if best[name] <= most]
            if number >= _ROUNDS and len(left) == 1:
                break
            for name in left:
                try:
                    times[name].append(blocks[name].seconds() * forms[name].share)
                except Exception:  # as above: another batch, or less memory
                    del times[name]
        blocks.clear()
    gc.collect()  # engines refer to themselves: their memory, on a GPU their graphs, would be free some time later
    give_back()  # of the largest form, which may be another than the one that is taken
    return {name: statistics.median(found) for name, found in times.items()}


def best_threads(job: Job, steps: int) -> int | None:
    """Returns with how many threads one task's steps are fastest on a CPU: one, or all, which is None.

    Products as small as those of a multi-layer perceptron take longer by two threads than by one.

    Args:
        job: see `seconds_a_step`.
        steps: how many steps are to be taken, one task after another; for few of them nothing is timed.
    """
    if job.device.type != "cpu" or torch.get_num_threads() == 1 or isinstance(job.inputs, Streamed) or steps == 0:
        return None
    one = first_tasks(job, 1)
    if steps * quick_step(one) < _WORTH_TIMING:
        return None
    found = seconds_a_step({"all": Form(Sequential), "one": Form(by_one_thread)}, one)
    return 1 if found.get("one", math.inf) < found.get("all", math.inf) else None


def quick_step(job: Job, make: Callable[[Job], LocalEngine] = Sequential) -> float:
    """Returns about how many seconds a step of all tasks takes, at little cost."""
    with random.seeded_everywhere(job.seed, "timing"), discarded(make(job)) as engine:
        engine.goes_back = False  # copies are not to be timed, and there is nothing to go back to
        return min(_timed(engine, Segment(1, 0, 1)) for _ in range(3))


def first_tasks(job: Job, count: int) -> Job:
    """Returns the job of the first tasks alone."""
    return dataclasses.replace(
        job,
        train=job.train[:count],
        validation=job.validation[:count],
        optimizer=job.optimizer if callable(job.optimizer) else job.optimizer[:count],
    )


def by_one_thread(job: Job, kind: type[LocalEngine] = Sequential) -> LocalEngine:
    """Returns an engine whose steps one thread takes."""
    engine = kind(job)
    engine.threads = 1
    return engine


@dataclass(frozen=True)
class _Block:
    engine: Engine
    steps: int

    @classmethod
    def settled(cls, engine: Engine) -> "_Block":
        """Takes first steps, in which what is recorded is recorded, and sees how many a block should have."""
        if isinstance(engine, LocalEngine):
            engine.goes_back = False  # what does not fit is left out
        most = int(engine.steps(_PERIOD).min())
        few = min(4, most)  # a call of an engine costs something, too, and is rare in a run
        _timed(engine, Segment(_PERIOD, 0, 1))
        step = _timed(engine, Segment(_PERIOD, 0, few)) / few
        return cls(engine, max(1, min(most, round(_BLOCK_SECONDS / max(step, 1e-6)))))

    def seconds(self) -> float:
        """Of a step."""
        return _timed(self.engine, Segment(_PERIOD, 0, self.steps)) / self.steps


def _timed(engine: Engine, segment: Segment) -> float:
    began = time.perf_counter()
    engine.train(segment)  # which waits for the losses
    return time.perf_counter() - began


def told(found: Mapping[str, float], chosen: str, layout: str = "") -> str:
    """Returns the line that says what was measured.

    Args:
        found: the seconds of each form.
        chosen: one of them, the fastest or level with it.
        layout: what is to be said of the layout of images.

    Example:
        >>> told({"workers": 0.0021, "vectorised": 0.0026}, "workers")
        'engine: workers, by the time of a step of all tasks (workers 2.1 ms, vectorised 2.6 ms).'
    """
    level = "" if found[chosen] <= min(found.values()) else ", level with processes and without their memory"
    others = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in sorted(found.items(), key=lambda x: x[1]))
    return f"engine: {chosen}{layout}{level}, by the time of a step of all tasks ({others})."
