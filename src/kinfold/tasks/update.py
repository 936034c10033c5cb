"""Optimizer steps over the stack: one optimizer and one scheduler per task over row views, or one for many tasks.

The row form works for every `torch.optim.Optimizer` and is separate training: exactly so where the optimizer was given
a form (`foreach`, `fused`), else to rounding, since torch's own choice is not the fastest. Where all tasks share their
hyper-parameters and the optimizer treats every number for itself, a fused optimizer over the stacked tensors takes the
same step in fewer calls, for all tasks or for a lane of neighbours; it turns into the row form, for good, when a task
needs something of its own.
"""

import copy
import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, ReduceLROnPlateau

from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.methods.base import Params
from kinfold.methods.chain import step_by
from kinfold.tasks.kernels import ONE_KERNEL, Kernel, kernel_of, step_by_kernel

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler: TypeAlias = Callable[[Optimizer], Any]
"""Makes a `torch.optim.lr_scheduler.LRScheduler`, or what steps like one."""


Slots: TypeAlias = dict[tuple[str, str], Any]
"""What an optimizer remembers of one task: (parameter name, slot) → tensor or other value."""


class Stretched:
    """A schedule written for `length` periods that is run through in `periods`.

    Args:
        schedule: what is stepped.
        length: how many steps it was written for.
        periods: in how many it is to take them.
    """

    def __init__(self, schedule: LRScheduler, length: int, periods: int):
        self._schedulers = [schedule]  # the name by which torch's composed schedules hold their parts
        self._length, self._periods, self._period = length, periods, 0

    def step(self) -> None:
        """Ends a period: takes as many of the schedule's steps as fall into it."""
        before = self._period * self._length // self._periods
        self._period += 1
        for _ in range(self._period * self._length // self._periods - before):
            self._schedulers[0].step()

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` takes."""
        own = {"period": self._period, "periods": self._periods, "length": self._length}
        return {**own, "schedule": self._schedulers[0].state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        self._period, self._periods, self._length = state["period"], state["periods"], state["length"]
        self._schedulers[0].load_state_dict(state["schedule"])


def stretched(make: MakeScheduler, length: int, periods: int, optimizer: Optimizer) -> LRScheduler | Stretched:
    """Returns a schedule written for `length` periods as one of `periods`; one that follows a score as it is.

    Example:
        >>> halving = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = stretched(halving, length=4, periods=2, optimizer=optimizer)
        >>> optimizer.step()
        >>> schedule.step()
        >>> optimizer.param_groups[0]["lr"]
        0.5
    """
    schedule = make(optimizer)
    if isinstance(schedule, ReduceLROnPlateau):
        return schedule
    return Stretched(schedule, length, periods)


ELEMENTWISE: frozenset[type[Optimizer]] = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
    }
)
"""Optimizers whose step on a stack is the steps on its rows. Others (Adafactor) silently couple stacked tasks."""

_KERNELS = ("foreach", "fused")
"""Options that choose between forms of the same step."""

_CHOSEN = {"foreach": False, "fused": True}
"""What they are set to where nobody has chosen."""

_FORMS = (("foreach", None), ("fused", None), ("capturable", False), ("differentiable", False))
"""Options of those who have chosen a form, or need one, and what they are where nobody has."""

_COUNTERS = frozenset({"step", "mu_product", "eta", "mu"})
"""Optimizer state that is one number for the whole parameter, even where that is itself one number."""


def check_count(optimizers: MakeOptimizer | Sequence[MakeOptimizer], tasks: int) -> None:
    """Checks that there is one maker of optimizers, or one for each task.

    Raises:
        InputError: there are others.
    """
    if not callable(optimizers) and len(optimizers) != tasks:
        raise InputError(f"optimizer: {len(optimizers)} given for {tasks} tasks; give one, or one a task.")


class Updater:
    """Steps the stacked parameters in place.

    Args:
        params: {name: [T, …]} trainable parameters; their memory is shared, and never replaced.
        optimizers: one maker for all tasks, or T of them.
        scheduler: maker of a learning-rate schedule that is stepped once a period, or None.
        fuse: whether to take one fused step where that is the same; never where it is not.
        lane: how many tasks at most one fused optimizer steps (see `lanes_of`); default all.

    Raises:
        InputError: the number of makers is not T, or a maker fails or makes something that cannot be used.
    """

    def __init__(
        self,
        params: Params,
        optimizers: MakeOptimizer | Sequence[MakeOptimizer],
        scheduler: MakeScheduler | None,
        fuse: bool,
        lane: int | None = None,
    ):
        self._params = {name: value.detach() for name, value in params.items()}
        self._makers, self._make_scheduler = optimizers, scheduler
        self.tasks = len(next(iter(params.values())))
        check_count(optimizers, self.tasks)
        self._lane = self.tasks if lane is None else lane
        self._lanes: list[range] = []  # the tasks of each optimizer
        self._stacks: list[dict[str, nn.Parameter]] = []
        self._rows: list[dict[str, nn.Parameter]] = []
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[Any] = []
        self._factors = [1.0] * self.tasks
        self._build_rows()
        if fuse and callable(optimizers) and type(self._optimizers[0]) in ELEMENTWISE:
            self._fuse()
        self._start_schedulers()
        if self.fused and any(isinstance(schedule, ReduceLROnPlateau) for schedule in self._schedulers):
            self._unfused()  # it follows each task's own losses

    @property
    def fused(self) -> bool:
        """Whether one optimizer steps all tasks of a lane."""
        return bool(self._stacks)

    def step(self, grads: Params, tasks: Sequence[int] | None = None) -> None:
        """Takes one step with gradients {name: [k, …]} of the given k tasks, or of all T.

        A parameter without a gradient is left alone, as it is where a loss does not reach it in a plain loop.
        """
        if self.fused and not self._lanes_stepped_by(tasks):
            self.unfuse()
        for i, own in self._shared_out(grads, tasks):
            self._step(i, own)

    def kernels(self, grads: Params, names: Sequence[str], tasks: Sequence[int] | None = None) -> list[Kernel] | None:
        """Returns what takes the steps to come as `step` would, one for each optimizer, where kernels alone do.

        They may be called as long as nothing else changes the optimizers, or what steps are scaled by, and where
        gradients are not asked for.

        Args:
            grads: like those to come, as in `step`, but for their numbers.
            names: of what each is given at a step, in order: these gradients, and maybe others, which it leaves alone;
                [k, …] where one optimizer steps all these tasks, else […] of its one task.
            tasks: as in `step`.

        Returns:
            None if torch's own step is called, or one call is not enough for the tasks of `step`.
        """
        if self.fused and len(self._lanes_stepped_by(tasks)) != 1:
            return None
        found: list[Kernel] = []
        places = {name: place for place, name in enumerate(names)}
        for i, own in self._shared_out(grads, tasks):
            kernel = kernel_of(self._optimizers[i], own, self._factors[i])
            if kernel is None:
                return None
            stepped = [(places[name], p) for name, p in self._parameters(i).items() if p in own]
            found.append(partial(_step_laid_out, kernel, stepped))
        return found

    def _lanes_stepped_by(self, tasks: Sequence[int] | None) -> list[int]:
        """The numbers of the lanes that are these tasks, where one optimizer steps all of a lane."""
        return [i for i, lane in enumerate(self._lanes) if tasks is None or list(lane) == list(tasks)]

    def _shared_out(
        self, grads: Params, tasks: Sequence[int] | None
    ) -> Iterator[tuple[int, dict[nn.Parameter, Tensor]]]:
        """Yields the number of every optimizer that steps these tasks, and the gradients of its parameters."""
        if self.fused:
            for i in self._lanes_stepped_by(tasks):
                whole = len(self._lanes) == 1 or tasks is not None
                lane = slice(self._lanes[i].start, self._lanes[i].stop)
                yield i, self._of_parameters(i, grads if whole else {name: grad[lane] for name, grad in grads.items()})
            return
        for place, t in enumerate(range(self.tasks) if tasks is None else tasks):
            yield t, self._of_parameters(t, {name: grad[place] for name, grad in grads.items()})

    def _of_parameters(self, i: int, grads: Params) -> dict[nn.Parameter, Tensor]:
        return {p: _laid_out_as(p, grads[name]) for name, p in self._parameters(i).items() if name in grads}

    def _step(self, i: int, own: dict[nn.Parameter, Tensor]) -> None:
        optimizer = self._optimizers[i]
        factor = self._factors[i]  # those that differ are never fused
        if step_by_kernel(optimizer, own, factor):
            return
        for parameter, grad in own.items():
            parameter.grad = grad
        with _without_kernel(optimizer) if _beyond_kernel(optimizer, own) else nullcontext():
            step_by(optimizer, factor)
        for parameter in own:
            parameter.grad = None  # its memory is free for the next step's

    def scale(self, factors: Sequence[float]) -> None:
        """Sets what the tasks' learning rates [T] are multiplied by in the steps to come."""
        if self.fused and len(set(factors)) > 1:
            self.unfuse()
        self._factors = list(factors)

    def end_period(self, losses: Sequence[float]) -> None:
        """Steps the schedules; `losses` [T] are for those that follow a score (`ReduceLROnPlateau`)."""
        with warnings.catch_warnings():
            # An optimizer that took over from the fused one in mid-period may not have stepped itself.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for scheduler, loss in zip(self._schedulers, losses, strict=False):  # fewer schedulers when fused
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(loss)
                else:
                    scheduler.step()

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        """Returns the options of the optimizers' first groups that are numbers in every task, [T] each."""
        groups = [self._optimizers[i].param_groups[0] for i, _ in self._places()]
        names = [name for name in groups[0] if all(_is_number(group.get(name)) for group in groups)]
        return {name: torch.tensor([float(group[name]) for group in groups], dtype=torch.float64) for name in names}

    def tune(self, values: Mapping[str, Float[Tensor, " T"]], relative: bool = False) -> None:
        """Sets options of the tasks' optimizers; NaN leaves one as it is.

        A learning rate is the first group's; the other groups keep their proportion to it, and schedules go on
        from it.

        Args:
            values: option → [T] values.
            relative: whether these are factors, for every group; a rate that is 0 at present is then cut as well,
                since what schedules reckon from is.

        Raises:
            InputError: the optimizer has no such option.
        """
        for option in values:
            if option not in self._optimizers[0].param_groups[0]:
                raise InputError(f"transfer: the optimizer has no option {option!r} to tune.")
        self.unfuse()
        for option, per_task in values.items():
            for t, value in enumerate(per_task.tolist()):
                if math.isnan(value):
                    continue
                groups = self._optimizers[t].param_groups
                first = groups[0]["lr"] if option == "lr" else 0.0
                if option == "lr" and (relative or first):
                    self._scale_rates(t, value if relative else value / first)
                    continue
                for group in groups:  # a rate of 0 says nothing of how far the new one is from it
                    group[option] = group[option] * value if relative else value

    def _scale_rates(self, t: int, factor: float) -> None:
        """Multiplies a task's learning rates, and what schedules reckon from."""
        groups = self._optimizers[t].param_groups
        for group in groups:
            for origin in ("lr", "base_lr", "initial_lr", "max_lr", "min_lr"):
                if origin in group:
                    group[origin] *= factor
        for schedule in _parts(self._schedulers[t]) if self._schedulers else []:
            if "base_lrs" in vars(schedule):
                schedule.base_lrs = [group["initial_lr"] for group in groups]
            if isinstance(schedule, CyclicLR):  # has them to itself
                schedule.max_lrs = [factor * rate for rate in schedule.max_lrs]

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        """Begins a new schedule, from the learning rates that the last one began with; moments stay."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
                group["lr"] = group["base_lr"]
        self._make_scheduler = scheduler
        self._start_schedulers()

    def reset(self, tasks: Bool[Tensor, " T"]) -> None:
        """Forgets the optimizer state (moments, step counts) of some tasks."""
        if bool(tasks.any()):
            self.unfuse()
            for t in tasks.nonzero().flatten().tolist():
                self._optimizers[t].state = self._make_optimizer(t).state  # Adagrad's begins full

    def slots(self) -> list[Slots]:
        """Returns what the optimizers remember of each task; moments are views where one optimizer steps all."""
        found: list[Slots] = []
        for i, row in self._places():
            own: Slots = {}
            for name, parameter in self._parameters(i).items():
                for slot, value in self._optimizers[i].state.get(parameter, {}).items():
                    per_task = self.fused and _is_moment(slot, value, parameter.shape)
                    own[name, slot] = value[row] if per_task else value
            found.append(own)
        return found

    def _places(self) -> list[tuple[int, int]]:
        """For every task the number of its optimizer, and its place among the tasks of that."""
        return [(i, row) for i, lane in enumerate(self._lanes) for row in range(len(lane))]

    def _parameters(self, i: int) -> dict[str, nn.Parameter]:
        return self._stacks[i] if self.fused else self._rows[i]

    def moments(self) -> frozenset[tuple[str, str]]:
        """Returns the slots that hold, in every task, a number for each of the parameter's."""
        of_each = [
            {key for key, value in own.items() if _is_moment(key[1], value, self._params[key[0]].shape[1:])}
            for own in self.slots()
        ]
        return frozenset(set.intersection(*of_each))

    def carry(
        self,
        change: Callable[[str, str, Tensor], Tensor],
        donors: Sequence[int],
        beside: Sequence[Slots] = (),
        moments: frozenset[tuple[str, str]] | None = None,
    ) -> None:
        """Lets optimizer state go with parameters.

        Args:
            change: (parameter name, slot, [T, …] moments shaped like the parameter) → the new ones.
            donors: [T] the task whose other state (step counts) each task takes, which may be one of `beside`.
            beside: that state of further tasks, which are numbered from T.
            moments: slots that change; default `moments()`, which is right where there are no other tasks.
        """
        moments = self.moments() if moments is None else moments
        states = [*self.slots(), *beside]
        others = [{key: value for key, value in own.items() if key not in moments} for own in states]
        moved = [others[donor] for donor in donors]
        if self.fused and all(_same(one, other) for one, other in zip(others, moved, strict=False)):
            for name, slot in sorted(moments):  # step counts stay
                parts = [o.state[stack[name]][slot] for o, stack in zip(self._optimizers, self._stacks, strict=True)]
                whole = change(name, slot, torch.cat(parts) if len(parts) > 1 else parts[0])
                for part, lane in zip(parts, self._lanes, strict=True):
                    part.copy_(whole[lane.start : lane.stop])
            return
        self.unfuse()
        for name, slot in sorted(moments):
            news = change(name, slot, torch.stack([own[name, slot] for own in states[: self.tasks]]))
            for t, new in enumerate(news):
                self._put(t, name, slot, new)
        for t, (old, new) in enumerate(zip(others[: self.tasks], moved, strict=True)):
            for name, slot in sorted(old.keys() | new.keys()) if old is not new else ():
                self._put(t, name, slot, new.get((name, slot)))

    def _put(self, t: int, name: str, slot: str, value: Any) -> None:
        """Sets one slot of a task's optimizer, to a copy; or removes it, for None."""
        parameter = self._rows[t][name]
        state = self._optimizers[t].state[parameter]
        if value is None:
            state.pop(slot, None)
        elif isinstance(value, Tensor):
            state[slot] = _own(slot, value, parameter, self._optimizers[t])
        else:
            state[slot] = value

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Returns (tensors keyed `task/parameter/slot`, JSON values of each task), alike for both forms."""
        tensors, others = {}, []
        for t, (slots, (i, _)) in enumerate(zip(self.slots(), self._places(), strict=True)):
            plain: dict[str, Any] = {}
            for (name, slot), value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"{t}/{name}/{slot}"] = value.detach().clone()
                else:
                    plain[f"{name}/{slot}"] = value
            hidden = ("params", *_KERNELS)
            groups = [{k: v for k, v in group.items() if k not in hidden} for group in self._optimizers[i].param_groups]
            scheduler = self._schedulers[i].state_dict() if self._schedulers else None
            values = {"slots": plain, "groups": groups, "scheduler": scheduler, "fused": self.fused}
            others.append(copy.deepcopy(values))
        return tensors, others

    def restore(self, tensors: Mapping[str, Tensor], others: Sequence[Mapping[str, Any]]) -> None:
        """Puts back what `state` returned."""
        if self.fused and not (
            all(other["fused"] for other in others) and all(in_step(tensors, others, lane) for lane in self._lanes)
        ):
            self._unfused()
        by_task: list[dict[tuple[str, str], Tensor]] = [{} for _ in range(self.tasks)]
        for key, value in tensors.items():
            task, name, slot = key.split("/", 2)
            by_task[int(task)][name, slot] = value
        for i, (optimizer, lane) in enumerate(zip(self._optimizers, self._lanes, strict=True)):
            t, names, groups = lane.start, self._parameters(i), optimizer.param_groups
            optimizer.state.clear()
            for (name, slot), value in by_task[t].items():
                parameter = names[name]
                if self.fused and _is_moment(slot, value, parameter.shape[1:]):
                    value = torch.stack([by_task[row][name, slot] for row in lane])
                optimizer.state[parameter][slot] = _own(slot, value, parameter, optimizer)
            for key, plain in others[t]["slots"].items():
                name, slot = key.rsplit("/", 1)
                optimizer.state[names[name]][slot] = plain
            for group, saved in zip(groups, others[t]["groups"], strict=True):
                group.update(_revived(saved, group))
            if self._schedulers:
                fresh = self._schedulers[i].state_dict()
                self._schedulers[i].load_state_dict(_revived(copy.deepcopy(others[t]["scheduler"]), fresh))

    def kept(self) -> Callable[[], None]:
        """Returns what puts back what the optimizers remember, and their form, as it is now.

        It is for steps that are taken back within a period: schedules and options are left alone. The copies are the
        host's.
        """
        stacks, rows, lanes = self._stacks, self._rows, self._lanes
        optimizers, schedulers = self._optimizers, self._schedulers
        slots = [
            [
                (state, slot, value, value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value)
                for state in optimizer.state.values()
                for slot, value in state.items()
            ]
            for optimizer in optimizers
        ]
        owners = [list(optimizer.state.items()) for optimizer in optimizers]

        def back() -> None:
            self._stacks, self._rows, self._lanes = stacks, rows, lanes
            self._optimizers, self._schedulers = optimizers, schedulers
            for optimizer, owned, saved in zip(optimizers, owners, slots, strict=True):
                optimizer.state.clear()
                optimizer.state.update(owned)
                for _, state in owned:
                    state.clear()
                for state, slot, value, copy_of in saved:
                    state[slot] = value.detach().copy_(copy_of) if isinstance(value, Tensor) else copy_of

        return back

    def unfuse(self) -> None:
        """Turns to the row form, keeping all state."""
        if self.fused:
            saved = self.state()
            self._unfused()
            self.restore(*saved)

    def _unfused(self) -> None:
        self._stacks = []
        self._build_rows()
        self._start_schedulers()

    def _build_rows(self) -> None:
        self._rows = [{name: nn.Parameter(value[t]) for name, value in self._params.items()} for t in range(self.tasks)]
        self._optimizers = [self._make_optimizer(t) for t in range(self.tasks)]
        self._lanes = [range(t, t + 1) for t in range(self.tasks)]

    def _make_optimizer(self, t: int) -> Optimizer:
        make = self._makers if callable(self._makers) else self._makers[t]
        try:
            optimizer = make(list(self._rows[t].values()))
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer: it cannot be made ({one_line(error)}).") from error
        if not isinstance(optimizer, Optimizer):
            raise InputError(
                f"optimizer: the maker returned {type(optimizer).__name__}; return a torch.optim.Optimizer."
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError("optimizer: LBFGS asks for the loss more than once a step; give one that does not.")
        for group in optimizer.param_groups:
            for option, value in group.items():
                if isinstance(value, Tensor):  # one tensor would be shared by the tasks' schedules
                    raise InputError(f"optimizer: {option} is a tensor; give a number.")
            if type(optimizer) in ONE_KERNEL and not any(
                group.get(option) not in (None, unset) for option, unset in _FORMS
            ):
                group.update(_CHOSEN)
        return optimizer

    def _fuse(self) -> None:
        first = self._optimizers[0]
        hooked = bool(first._optimizer_step_pre_hooks or first._optimizer_step_post_hooks)
        if hooked or any(_options(optimizer) != _options(first) for optimizer in self._optimizers):
            return
        # Groups are read off task 0's rows, since predicates such as `p.ndim > 1` must never see a stack.
        name_of = {id(parameter): name for name, parameter in self._rows[0].items()}
        groups = [[name_of[id(p)] for p in group["params"]] for group in first.param_groups]
        self._lanes = lanes_of(self.tasks, self._lane)
        self._stacks = [
            {name: nn.Parameter(self._params[name][lane.start : lane.stop]) for group in groups for name in group}
            for lane in self._lanes
        ]
        fused: Callable[..., Optimizer] = type(first)
        # Adagrad fills its state by an argument of its own, not by the groups' options.
        accepted = inspect.signature(fused).parameters
        defaults = {name: value for name, value in first.defaults.items() if name in accepted}
        self._optimizers = [
            fused(
                [
                    {**options, "params": [stack[name] for name in names]}
                    for options, names in zip(_options(first), groups, strict=True)
                ],
                **defaults,
            )
            for stack in self._stacks
        ]
        self._rows = []

    def _start_schedulers(self) -> None:
        make = self._make_scheduler
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group.setdefault("base_lr", group["lr"])  # where a further schedule begins (see `reschedule`)
        try:
            self._schedulers = [] if make is None else [make(optimizer) for optimizer in self._optimizers]
        except (TypeError, ValueError) as error:
            raise InputError(f"scheduler: it cannot be made ({one_line(error)}).") from error


def lanes_of(tasks: int, most: int) -> list[range]:
    """Returns the tasks in lanes of neighbours, as few as can be with no more than so many in each, and all alike.

    Example:
        >>> lanes_of(5, 3)
        [range(0, 3), range(3, 5)]
        >>> lanes_of(64, 64)
        [range(0, 64)]
    """
    count = math.ceil(tasks / most)
    ends = [math.ceil(i * tasks / count) for i in range(count + 1)]
    return [range(first, last) for first, last in pairwise(ends)]


def in_step(tensors: Mapping[str, Tensor], others: Sequence[Mapping[str, Any]], tasks: range | None = None) -> bool:
    """Returns whether tasks' optimizers, as `Updater.state` gives them, have not parted: one could step them all.

    They part by step counts, rates and forgotten moments.

    Args:
        tensors: of all tasks.
        others: likewise.
        tasks: which are asked about; default all.
    """
    tasks = range(len(others)) if tasks is None else tasks
    slots: dict[int, set[str]] = {t: set() for t in tasks}
    counters: dict[str, list[Tensor]] = {}
    for key, value in tensors.items():
        task, slot = key.split("/", 1)
        if int(task) in slots:
            slots[int(task)].add(slot)
            if slot.rpartition("/")[2] in _COUNTERS:
                counters.setdefault(slot, []).append(value)
    first = tasks.start
    own = {t: {name: value for name, value in others[t].items() if name != "fused"} for t in tasks}
    return (
        all(mine == slots[first] for mine in slots.values())
        and all(_equal(mine, own[first]) for mine in own.values())
        and all(bool((torch.stack(values) == values[0]).all()) for values in counters.values())
    )


def _beyond_kernel(optimizer: Optimizer, stepped: Collection[nn.Parameter]) -> bool:
    """Whether torch's one kernel cannot take a step: sparse gradients, or momenta of some parameters and not of others.

    The latter where a parameter has its first gradient later than others have.
    """
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in stepped):
        return True
    state = optimizer.state
    if type(optimizer) is not torch.optim.SGD or len(state) in (
        0,
        sum(len(g["params"]) for g in optimizer.param_groups),
    ):
        return False
    known = [state.get(parameter, {}).get("momentum_buffer") is not None for parameter in stepped]
    return any(known) and not all(known)


@contextmanager
def _without_kernel(optimizer: Optimizer) -> Iterator[None]:
    """Takes back for one step what was chosen; for good, and a run that is resumed would go on in another form."""
    chosen = [group for group in optimizer.param_groups if _CHOSEN.items() <= group.items()]
    for group in chosen:
        group["fused"] = False
    try:
        yield
    finally:
        for group in chosen:
            group.update(_CHOSEN)


def _own(slot: str, value: Tensor, parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """A copy of a slot's tensor where the optimizer has it, whatever device it came from.

    Counters live on the CPU, unless the optimizer was asked to keep them beside the parameter.
    """
    beside = slot not in _COUNTERS or any(
        (group.get("capturable") or group.get("fused")) and any(p is parameter for p in group["params"])
        for group in optimizer.param_groups
    )
    own = value.detach().clone().to(parameter.device if beside else "cpu")
    return _laid_out_as(parameter, own) if _is_moment(slot, own, parameter.shape) else own


def _step_laid_out(kernel: Kernel, parameters: Sequence[tuple[int, nn.Parameter]], grads: Sequence[Tensor]) -> None:
    """Takes a step with gradients, of which each parameter's is at the place that stands before it."""
    kernel([_laid_out_as(parameter, grads[place]) for place, parameter in parameters])


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Returns a gradient that lies in memory as the parameter does.

    Moments begin as its copies, and stay so; and kernels go through the memory of all three alike without a look at it.
    """
    if value.is_sparse or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_moment(slot: str, value: object, shape: torch.Size) -> bool:
    """Whether a slot of an optimizer's state holds a number for each of the parameter's."""
    return isinstance(value, Tensor) and slot not in _COUNTERS and value.shape == shape


def _same(one: Slots, other: Slots) -> bool:
    """Whether two tasks' optimizers remember the same."""

    def alike(a: object, b: object) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a is b or (a.shape == b.shape and bool((a.to(b.device) == b).all()))
        return a == b

    return one is other or (one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items()))


def _equal(one: Any, other: Any) -> bool:
    """Whether two tasks' values are the same; those of a user's schedule may have tensors or arrays in them."""
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # of several numbers it cannot be said in one word
        return False


def _parts(schedule: LRScheduler) -> list[LRScheduler]:
    """A schedule and those it is made of (`SequentialLR`, `ChainedScheduler`)."""
    return [schedule, *(part for inner in vars(schedule).get("_schedulers", ()) for part in _parts(inner))]


def _revived(saved: Any, fresh: Any) -> Any:
    """What JSON gave back, with whole-number keys (`MultiStepLR.milestones`) and tuples as they are in `fresh`."""
    if isinstance(fresh, dict):
        keys = {str(key): key for key in fresh}
        revived = copy.copy(fresh)
        revived.clear()
        for key, value in saved.items():
            name = keys.get(key, key)
            revived[name] = _revived(value, fresh.get(name))
        return revived
    if isinstance(fresh, tuple):
        return tuple(saved)
    if isinstance(fresh, list):
        return [_revived(one, like) for one, like in zip_longest(saved, fresh[: len(saved)])]
    return saved


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    hidden = ("params", "initial_lr", "base_lr")
    return [{k: v for k, v in group.items() if k not in hidden} for group in optimizer.param_groups]


def clip_rows(grads: Params, max_norm: float) -> Params:
    """Returns gradients {name: [k, …]} scaled so that no task's norm exceeds `max_norm`.

    The norm is over one task's parameters at a time: `clip_grad_norm_` on stacked gradients would couple the tasks.
    """
    squares = torch.stack([grad.reshape(len(grad), -1).square().sum(1) for grad in grads.values()]).sum(0)
    scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    return {name: grad * scale.view(-1, *[1] * (grad.ndim - 1)) for name, grad in grads.items()}
