"""What a job takes of memory, estimated before it starts: what cannot fit is refused while nothing has been lost.

Estimated is what is certain to be needed, measured on an engine of one task: where this is more than is free, the job
cannot run; where it is a little less, it may still fail. What fails then is named (`want_of_memory_named`).

Legend: T tasks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kinfold import random
from kinfold.data.images import ImageInputs
from kinfold.engines.base import Job
from kinfold.engines.local import discarded
from kinfold.engines.sequential import Sequential
from kinfold.engines.timing import first_tasks
from kinfold.errors import InputError, RunError
from kinfold.importing import one_line
from kinfold.processes import bytes_in_words, free_bytes


@dataclass(frozen=True)
class Need:
    """What a job takes of the memory in which its tasks live, in bytes.

    Attributes:
        model: of every task, as long as it trains: parameters, buffers, the best snapshot of these, and what the
            optimizer and the methods remember.
        step: of every task that takes a step: its gradients, and what the pass forward keeps for the pass back.
        data: rows and targets that are copied to the device.
        parameters: of every task, those that are trained.

    Example:
        >>> Need(model=300, step=50, data=1000, parameters=100).of(tasks=10, at_once=2)
        4100
    """

    model: int
    step: int
    data: int
    parameters: int

    def of(self, tasks: int, at_once: int) -> int:
        """Returns the bytes that T tasks take, of which some take their steps at the same time."""
        return self.data + tasks * self.model + at_once * self.step


def needed(job: Job, free: float) -> Need | None:
    """Returns what a job takes, or None where an engine of one task cannot be started on it, for whatever reason.

    Args:
        job: what to train.
        free: how many bytes may be taken (see `free_on`), asked before anything is.

    Raises:
        InputError: the data do not fit on the device.
    """
    data = _copied(job)
    if data > free:
        raise _refused(job, data, free, _less_data(job))
    try:
        with random.seeded_everywhere(job.seed, "timing"), discarded(Sequential(first_tasks(job, 1))) as one:
            own, best = ([*stack.params.values(), *stack.buffers.values()] for stack in (one.stack, one.best))
            kept = [*own, *best, *tree_leaves([one.states, one.best_states]), *_slots(one)]
            parameters = _bytes(one.stack.params.values())
            step = parameters + _saved(one)
    except Exception:  # the user's model, optimizer, loss or methods: the engine that is started next says what
        return None
    return Need(model=_bytes(kept), step=step, data=data, parameters=parameters)


def check_fits(job: Job, need: Need, free: float, at_once: int, smaller: str | None = None) -> None:
    """Refuses a job that cannot fit.

    Args:
        job: what to train.
        need: what it takes.
        free: how many bytes may be taken (see `free_on`), asked before any of it was.
        at_once: how many tasks take their steps at the same time, at least.
        smaller: an engine that takes less, if there is one.

    Raises:
        InputError: it takes more than is free.
    """
    whole = need.of(job.tasks, at_once)
    if whole <= free:
        return
    parts = {
        "a smaller batch_size": at_once * need.step,
        "fewer tasks, or a smaller model": job.tasks * need.model,
        _less_data(job): need.data,
    }
    largest = max(parts, key=lambda advice: parts[advice])
    helps = smaller is not None and need.of(job.tasks, 1) <= free
    raise _refused(job, whole, free, f"{largest}, or engine {smaller}" if helps else largest)


def free_on(device: torch.device) -> float:
    """Returns how many bytes may still be taken where tasks live."""
    if device.type != "cuda":
        return free_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@contextmanager
def want_of_memory_named() -> Iterator[None]:
    """Turns what is raised within for want of memory into our word, which says what to change.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _for_want_of_memory(error):
            raise
        raise RunError(
            f"memory: it ran out ({one_line(error)}); give a smaller batch_size, fewer tasks or engine sequential, "
            "and resume the run if it has a directory."
        ) from error


def _for_want_of_memory(error: Exception) -> bool:
    told = ("not enough memory", "can't allocate memory")  # as the allocator of a CPU says it
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in told)


def _refused(job: Job, need: float | int, free: float, advice: str) -> InputError:
    where = "memory" if job.device.type == "cpu" else f"memory of {job.device}"
    takes, there = bytes_in_words(need), bytes_in_words(free)
    return InputError(
        f"memory: {job.tasks} tasks in batches of {job.batch_size} take at least {takes}, and {there} of {where} are "
        f"free; give {advice}."
    )


def _less_data(job: Job) -> str:
    pictures = isinstance(job.inputs, ImageInputs)
    return f"data of fewer rows{', or pictures that are not held (in_memory=False)' if pictures else ''}"


def _copied(job: Job) -> int:
    """Bytes of rows and targets that an engine takes besides those that are there."""
    floating = job.dtype.itemsize
    return sum(
        value.numel() * (floating if value.is_floating_point() else value.element_size())
        for value in [*job.inputs.held(), job.targets]
        if value.device != job.device or (value.is_floating_point() and value.dtype != job.dtype)
    )


def _slots(one: Sequential) -> list[Tensor]:
    """What the optimizer remembers, which is there after a first step."""
    one.updater.step({name: torch.zeros_like(value) for name, value in one.stack.params.items()})
    return list(one.updater.state()[0].values())


def _saved(one: Sequential) -> int:
    """How much autograd keeps in a step, parameters and buffers left out; 0 where that cannot be seen."""
    stack = one.stack
    lasting = {_place(value) for part in (stack.params, stack.frozen, stack.buffers) for value in part.values()}
    kept: dict[int, int] = {}

    def noted(value: Tensor) -> Tensor:
        if _place(value) not in lasting:  # views of the same memory once
            kept[_place(value)] = value.untyped_storage().nbytes()
        return value

    try:
        with torch.autograd.graph.saved_tensors_hooks(noted, lambda value: value):
            one.probe()
    except InputError:
        raise
    except Exception:  # derivatives by `torch.func` do not go with such hooks
        return 0
    return sum(kept.values())


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)
