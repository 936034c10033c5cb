"""The models of all tasks as stacked tensors: parameters are `{name: [T, …]}`, and row t is task t's model.

A row view `nn.Parameter(stack[t])` shares the stack's memory, so ordinary optimizers step it in place, and the
same numbers are one tensor program over the stack. `.to(dtype)` on a view would silently end the sharing, so
device and precision are settled as the stack is made.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from kinfold import random
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.methods.base import Params, Rows
from kinfold.placing import placed


@dataclass(frozen=True)
class TaskStack:
    """T models of one structure.

    Attributes:
        module: the structure, through which every task's forward pass runs; its own parameters are not used.
        params: trainable parameters, [T, …] each; tied ones once, under their first name.
        frozen: parameters that do not require gradients and are the same for all tasks, [T, …] expanded from one
            copy. Where tasks started apart, theirs differ, and stand among the buffers instead.
        buffers: [T, …] each: what training does not optimise and yet belongs to one task.
    """

    module: nn.Module
    params: Params
    frozen: Params
    buffers: Params

    @property
    def tasks(self) -> int:
        """T."""
        return len(next(iter(self.params.values())))

    @cached_property
    def first(self) -> tuple[Params, Params, Params]:
        """Parameters, frozen parameters and buffers of the first task, as views, which share the memory."""
        params, frozen, buffers = (
            {name: value[0] for name, value in part.items()} for part in (self.params, self.frozen, self.buffers)
        )
        return params, frozen, buffers

    def rows(self, tasks: slice) -> "TaskStack":
        """Returns neighbouring tasks as views, which share the memory."""
        params, frozen, buffers = (
            {name: value[tasks] for name, value in part.items()} for part in (self.params, self.frozen, self.buffers)
        )
        return TaskStack(self.module, params, frozen, buffers)

    def take(self, tasks: Int64[Tensor, " k"]) -> "TaskStack":
        """Returns a copy of some tasks, [k, …]."""
        params, buffers = (
            {name: value[tasks.to(value.device)] for name, value in part.items()}
            for part in (self.params, self.buffers)
        )
        frozen = {name: value[: len(tasks)] for name, value in self.frozen.items()}  # the same for all, so never copied
        return TaskStack(self.module, params, frozen, buffers)

    def channels_last(self) -> "TaskStack":
        """Returns the same models, with the channels of four-dimensional weights innermost in memory.

        Whatever is computed from them in place, or laid out like them, stays so: gradients, moments, snapshots.

        Example:
            >>> models = [nn.Conv2d(3, 4, 2)] * 2
            >>> stack = stack_models(models, 2, torch.device("cpu"), torch.float32).channels_last()
            >>> stack.params["weight"].shape, stack.params["weight"].stride()
            (torch.Size([2, 4, 3, 2, 2]), (48, 12, 1, 6, 3))
        """
        params, frozen = (
            {name: _channels_last(value) if value.ndim == 5 else value for name, value in part.items()}
            for part in (self.params, self.frozen)
        )
        return TaskStack(self.module, params, frozen, self.buffers)

    def on(self, device: torch.device) -> "TaskStack":
        """Returns a copy with a structure and memory of its own on a device."""
        params, buffers = (
            {name: value.detach().to(device, copy=True) for name, value in part.items()}
            for part in (self.params, self.buffers)
        )
        # The same for all, so copied once.
        frozen = {name: value[:1].to(device).expand_as(value) for name, value in self.frozen.items()}
        return TaskStack(copy.deepcopy(self.module).to(device), params, frozen, buffers)

    def put(self, tasks: Int64[Tensor, " k"], rows: "TaskStack") -> None:
        """Writes [k, …] rows over some tasks, in place, so that row views keep sharing the memory."""
        for mine, theirs in ((self.params, rows.params), (self.buffers, rows.buffers)):
            for name, value in mine.items():
                value[tasks.to(value.device)] = theirs[name]

    def clone(self) -> "TaskStack":
        """Returns a copy with memory of its own for what training changes."""
        return TaskStack(
            self.module,
            {name: value.detach().clone() for name, value in self.params.items()},
            self.frozen,
            {name: value.clone() for name, value in self.buffers.items()},
        )


@final
class Some:
    """k of a stack's T tasks, whose rows are read and written; neighbours without a copy.

    Args:
        tasks: which, in order.
        stack: the models of all; their tensors stay where they are.
    """

    def __init__(self, tasks: list[int], stack: TaskStack):
        self.tasks = tasks
        self.everyone = len(tasks) == stack.tasks
        device = next(iter(stack.params.values())).device
        side_by_side = tasks == list(range(tasks[0], tasks[-1] + 1))
        self.which: Int64[Tensor, " k"] = placed(torch.tensor(tasks), device)
        self._rows: slice | Tensor = slice(tasks[0], tasks[-1] + 1) if side_by_side else self.which
        self._whole = stack
        self._views = stack if self.everyone else stack.rows(self._rows) if isinstance(self._rows, slice) else None

    @property
    def in_place(self) -> bool:
        """Whether what is read of them is read where it lies: they are neighbours."""
        return self._views is not None

    def stack(self) -> TaskStack:
        """Returns their models, to be read: a frozen backbone is dear to copy at every step."""
        return self._whole.take(self.which) if self._views is None else self._views

    def of(self, value: Shaped[Tensor, "T *shape"]) -> Shaped[Tensor, "k *shape"]:
        """Returns their rows, to be read."""
        return value if self.everyone else value[self._rows]

    def copy(self, value: Shaped[Tensor, "T *shape"]) -> Shaped[Tensor, "k *shape"]:
        """Returns a copy of their rows."""
        return value[self.which] if self._views is None else self.of(value).clone()

    def add(self, value: Shaped[Tensor, " T"], terms: Shaped[Tensor, " k"]) -> None:
        """Adds a number to each of theirs, in place."""
        if self._views is None:
            value[self._rows] += terms
        else:
            self.of(value).add_(terms)  # not written back to where it already is

    def add_each(self, value: Shaped[Tensor, " T"], terms: Sequence[Shaped[Tensor, "*k"]]) -> None:
        """Adds many numbers to each of theirs as `add` does, in place, one after another; without k, to the one's."""
        if terms:
            summands = torch.stack([term.view(-1) for term in terms])
            value[self._rows] = torch.cat([self.of(value)[None], summands]).cumsum(0)[-1]

    def memory_of(self, part: Params) -> list[Tensor]:
        """Returns their rows of several tensors as views, or the whole tensors where they are not neighbours."""
        return [value if self._views is None else self.of(value) for value in part.values()]

    def write(self, mine: Params, new: Params) -> None:
        """Writes their rows [k, …] in place, of whichever names there are new ones."""
        with torch.no_grad():
            for name, value in new.items():
                mine[name][self._rows] = value


def build_starts(
    model: nn.Module | Callable[[], nn.Module],
    tasks: int,
    shared: bool,
    seed: int,
    generation: int = 0,
    first: int = 0,
) -> Iterator[nn.Module]:
    """Yields each task's model before training, one at a time: together they take as much memory as the stack.

    Args:
        model: a module, whose parameters every task starts from, or a factory of one, which is called once for
            each task, or once in all with `shared`. Its random draws come from (seed, task).
        tasks: T.
        shared: one start for all: the same object, T times.
        seed: the run's seed.
        generation: raised to draw a new start for the same task.
        first: number of the first of these tasks, where they are a share of more.

    Raises:
        InputError: the factory fails or does not give an `nn.Module`.
    """
    if isinstance(model, nn.Module):
        if is_lazy(model):
            raise InputError("model: its lazy layers have no shape yet, so it cannot be copied; give a factory of it.")
        yield from [copy.deepcopy(model)] * tasks
        return
    for t in range(1) if shared else range(first, first + tasks):
        with random.seeded_everywhere(seed, "start", t, generation):
            try:
                start = model()
            except InputError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise InputError(
                    f"model: the factory failed ({one_line(error)}); it is called without arguments."
                ) from error
        if not isinstance(start, nn.Module):
            raise InputError(f"model: the factory returned {type(start).__name__}, it must return an nn.Module.")
        yield from [start] * (tasks if shared else 1)


def materialise(start: nn.Module, example: Rows, seed: int, task: int = 0) -> None:
    """Gives lazy parameters their shapes, by one forward pass on `example`, in place.

    Args:
        start: see `build_starts`.
        example: a few rows.
        seed: the run's seed.
        task: its number, 0 where the tasks share a start.

    Raises:
        InputError: the forward pass fails.
    """
    if not is_lazy(start):
        return
    with random.seeded(torch.device("cpu"), seed, "lazy", task), torch.no_grad():
        start.eval()
        try:
            start(*_arguments(example))
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"model: the pass that sizes its lazy layers failed ({one_line(error)}).") from error


def is_lazy(module: nn.Module) -> bool:
    """Returns whether some of its parameters have no shape yet (see `materialise`)."""
    lazy = (UninitializedParameter, UninitializedBuffer)
    return any(isinstance(value, lazy) for value in [*module.parameters(), *module.buffers()])


def stack_models(
    starts: Iterable[nn.Module], tasks: int, device: torch.device, dtype: torch.dtype, apart: bool = False
) -> TaskStack:
    """Returns the tasks' models as one stack.

    Args:
        starts: T modules of one structure, which are let go of one by one; the same object T times for a shared start.
        tasks: T.
        device: where the stack lives.
        dtype: of floating parameters and buffers.
        apart: whether the tasks started apart even if these did not: a share of one task, among others.

    Raises:
        InputError: the modules differ in their parameters, or none is trainable.
    """
    starts = iter(starts)
    first = next(starts)
    parts = _parts(first)
    if not parts[0]:
        raise InputError("model: it has no trainable parameters (all have requires_grad=False, or there are none).")

    def dtype_of(value: Tensor) -> torch.dtype:  # `nn.Module.to` would take complex numbers' imaginary parts away
        return dtype if value.is_floating_point() else dtype.to_complex() if value.is_complex() else value.dtype

    def rows_of(part: Params) -> Params:
        """Memory for all tasks, with the first's values."""
        rows = {n: torch.empty(tasks, *v.shape, dtype=dtype_of(v), device=device) for n, v in part.items()}
        return {name: value.copy_(part[name].expand_as(value)) for name, value in rows.items()}

    module = copy.deepcopy(first)._apply(lambda value: value.to(device, dtype_of(value)))  # type: ignore[no-untyped-call]
    params, buffers, fixed = rows_of(parts[0]), rows_of(parts[1]), rows_of(parts[2]) if apart else {}
    for t, start in enumerate(starts, 1):
        if start is first:
            continue
        own = _parts(start)
        if [_shapes(part) for part in own] != [_shapes(part) for part in parts]:
            raise InputError("model: the factory's modules differ in structure; every task must train the same one.")
        fixed = fixed or rows_of(parts[2])
        for rows, values in zip((params, buffers, fixed), own, strict=True):
            for name, value in values.items():
                rows[name][t] = value
        apart = True
    if apart:
        return TaskStack(module, params, {}, {**fixed, **buffers})
    frozen = {name: value[None].expand(tasks, *value.shape) for name, value in _parts(module)[2].items()}
    return TaskStack(module, params, frozen, buffers)


def _parts(module: nn.Module) -> tuple[Params, Params, Params]:
    """What is trained of a module, its buffers, and the parameters that are not trained."""
    named = {name: (value.detach(), value.requires_grad) for name, value in module.named_parameters()}
    trained, fixed = ({n: value for n, (value, trains) in named.items() if trains is kind} for kind in (True, False))
    return trained, dict(module.named_buffers()), fixed


def _shapes(part: Params) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in part.items()}


def _channels_last(stacked: Float[Tensor, "T O I H W"]) -> Float[Tensor, "T O I H W"]:
    one = stacked[:1] if stacked.stride(0) == 0 else stacked  # what is common to all tasks stays one copy
    return one.movedim(2, -1).contiguous().movedim(-1, 2).expand_as(stacked)


def export_module(stack: TaskStack, t: int) -> nn.Module:
    """Returns task t's model as an ordinary module, on the CPU, in eval mode; tied parameters stay tied."""
    module = copy.deepcopy(stack.module).cpu()
    with torch.no_grad():
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, value in {**stack.params, **stack.frozen, **stack.buffers}.items():
            own[name].copy_(value[t])
    return module.eval()


def _arguments(x: Rows) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)
