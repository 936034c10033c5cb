"""What the engines of one process share: everything but the order of steps and how one task's step is lifted.

Legend: T tasks, k some of them, N rows, m rows asked for, B batch, C classes or outputs.
"""

import abc
import bisect
import contextlib
import copy
import dataclasses
import gc
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kinfold import random
from kinfold.data.base import TensorInputs, taken
from kinfold.data.streamed import Reading, Streamed, ended_processes_named
from kinfold.engines.base import Engine, Job
from kinfold.engines.captured import Captures, MakeGraph, Pass, cuda_graphs
from kinfold.engines.lift import Lift, detached, stacked
from kinfold.engines.moves import layers_of
from kinfold.engines.prepared import AT_ONCE, Prepared, steps_of
from kinfold.engines.proposals import Donors, Here, Proposal
from kinfold.engines.recording import (
    Gradients,
    Recording,
    joint_looker_of,
    looker_of,
    recorder_of,
    tensors_in,
    tensors_of,
)
from kinfold.engines.seen import Seen
from kinfold.errors import InputError, RunError
from kinfold.importing import one_line
from kinfold.methods.base import OWN, Batch, Context, Inner, Params, Rows, State, overrides
from kinfold.methods.chain import Chain, Network, buffers_of, check_state, news_of
from kinfold.methods.model import Model, Passed, forward
from kinfold.placing import placed
from kinfold.processes import free_bytes, give_back, using_threads
from kinfold.selection.better import better
from kinfold.tasks.order import Segment, row_orders, steps_in
from kinfold.tasks.state import Some, TaskStack, build_starts, export_module, materialise, stack_models
from kinfold.tasks.update import MakeScheduler, Updater, clip_rows
from kinfold.transfer.base import Outcome, Plan
from kinfold.transfer.changes import Elastic, Restart, Teach, Tune

LossOfOne: TypeAlias = Callable[[Params], tuple[Tensor, Params]]
"""From what is differentiated of one task to (its loss, what has come of the pass)."""

Advance: TypeAlias = tuple[Float[Tensor, " k"], Float[Tensor, " k"]]
"""(sums of the tasks' losses, on their device; how many batches these were of)."""

Kept: TypeAlias = Callable[[], None]
"""Puts back what training has changed."""

Result = TypeVar("Result")
SomeEngine = TypeVar("SomeEngine", bound="LocalEngine")

_DRAWING = ("batch", "loss", "gradients")  # the stages that get a key in every step
_REBUILT = 1e-4  # greatest difference of a rebuilt module's outputs, relative to the greatest of them
_STEPPING = ("before_step", "update", "after_step")  # those around the optimizer's step
UNRECORDED = 32  # first steps of a task: to record one takes as long as a hundred small ones, and a run may be short
_LOSSES_AT_ONCE = 64
_STRETCHES = 16  # into so many a period may be cut by tasks that end, for the steps of each to be recorded
_RECOMPUTE_BATCHES = 32  # enough for running statistics; the rows of small sets all take part
_LOOKED_AT = 512  # rows of a pass that only looks, at least
_LOOKED_AT_BY_VECTORS = 2048  # likewise at most where a layer's numbers, this many at once, stay in a CPU's caches
_NUMBERS_AT_ONCE = 2**20
_NUMBERS_TOGETHER = 2**21  # likewise where all tasks look together
_APART = 128  # rows from which a CPU scores models faster one by one: stacked, their activations overflow its caches


class LocalEngine(Engine):
    """An engine in this process. A subclass says how to lift one task's functions, and in which order to step.

    Args:
        job: what to train.
        stack: the tasks' models, trained where they lie; default drawn anew.
        first: number of the job's first task, by which its draws are keyed, where it has a share of more tasks.
        states: the methods' states, [T, …] each, which stay where they are; default those before the first step.

    Attributes:
        chain: the job's methods.
        threads: of a CPU, that train; None for as many as torch is set to.
        together: how many tasks go through a pass at once, at most, where they do at all.
        goes_back: whether a segment of the first periods for which memory runs out is taken back, to be trained with
            fewer tasks at once.
        returns: whether the segment that is trained now would be.
    """

    fuse: bool
    """Whether optimizer steps of all tasks come together, and may be fused."""

    shrinks: bool
    """Whether fewer tasks can go through a pass at once, so that it takes less memory."""

    alone: bool
    """Whether what is recorded is a step of one task, without an axis of tasks."""

    in_turns: bool
    """Whether the groups of a segment take their steps in turns, and `advance` stops between them."""

    def __init__(self, job: Job, stack: TaskStack | None = None, first: int = 0, states: list[State] | None = None):
        self.job, self._first, self.together = job, first, job.tasks
        self.device, self.dtype = job.device, job.dtype
        self.inputs = job.inputs.to(self.device, self.dtype)
        floating = job.targets.is_floating_point()
        self.targets = job.targets.to(self.device, self.dtype if floating else torch.int64)
        self.weights = None if job.weights is None else job.weights.to(self.device, self.dtype)
        self.stack = start_stack(job) if stack is None else stack
        self.updater = Updater(self.stack.params, job.optimizer, job.scheduler, self.fuse, self._most_abreast())
        self.chain = Chain(job.methods)
        self._network = Network(self.stack.module, self._forward)
        self.states: list[State] = self._start_methods() if states is None else states
        self.best = self._evaluated().clone()
        self.best_states: list[State] = [  # of the best snapshots, for the methods that export from it
            {n: v.clone() for n, v in state.items()} if overrides(m, "export") or overrides(m, "rebuild") else {}
            for m, state in zip(job.methods, self.states, strict=True)
        ]
        self.seen = Seen.start(job.validation, job.objective.outputs, self.dtype)
        self._of_best: tuple[int, Tensor, Tensor] | None = None  # version, rows, outputs
        self._own = [mask.nonzero().flatten() for mask in job.validation]
        self.lesson: Teach | None = None
        self.centre: Params = {}
        self._partly_labelled = False
        self.layers = layers_of(self.stack.params, self.stack.buffers)
        self._keys = torch.stack([random.key(job.seed, "method", first + t) for t in range(job.tasks)]).to(self.device)
        self._recorder = recorder_of(job, self.stack.module, self._eager)
        self._looker = looker_of(job, self.stack.module, self._look)
        self._widest = widest_of_linear(job, self.stack.module)
        self._joint_looker = joint_looker_of(job, self.stack.module, stacked(self._look), self._looks_jointly())
        self._meant_jointly = self._joint_looker.possible
        self.threads: int | None = None
        self.goes_back = self.shrinks and self.device.type == "cuda"  # a CPU's system kills, and raises nothing
        self.returns = False
        self._unsettled: int | None = None  # the last period of which segments are taken back
        self._notes: list[str] = []
        self._captures = self._captures_on(cuda_graphs(self.device)) if self.device.type == "cuda" else None
        self._reached: frozenset[str] | None = None
        self._visits = 0
        self._accumulated: dict[tuple[int, ...], tuple[Params, int]] = {}  # of tasks that step together
        self._rows_of: tuple[int, list[int], Tensor] | None = None
        self._unlabelled: Bool[Tensor, "T N"] | None = None  # the lesson's, on the host
        self._reading: Reading | None = None
        self._reading_from: tuple[int, int | None] | None = None  # the (period, step) at which its next batch is
        self.in_turns = isinstance(self.inputs, Streamed)

    @cached_property
    def start(self) -> Params:
        """One model as all of the run's tasks began, by name; nothing where they began apart."""
        if not (self.job.shared_start or isinstance(self.job.model, nn.Module)):
            return {}
        one = dataclasses.replace(self.job, train=self.job.train[:1], validation=self.job.validation[:1])
        return {name: value[0] for name, value in start_stack(one).params.items()}

    # -- what a subclass decides ------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def lift(self) -> Lift:
        """How one task's function becomes a function of k tasks."""

    def _most_abreast(self) -> int:
        """How many tasks take a step together, where memory does for all."""
        return self.job.tasks

    @abc.abstractmethod
    def _lanes(self) -> list[list[int]]:
        """Which tasks go through a segment together; one lane after another."""

    @abc.abstractmethod
    def _eager(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        keys: Int64[Tensor, " *k"],
    ) -> Gradients:
        """Returns (losses, gradients, buffers after the pass) as the engine finds them; this is what is recorded."""

    @abc.abstractmethod
    def _recorded(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"], record: bool
    ) -> Gradients:
        """Returns what `_eager` gives for k tasks, by a recording of it if there may be one."""

    @abc.abstractmethod
    def _differentiated(self, loss: LossOfOne, at: Params) -> tuple[Tensor, Params, Params]:
        """Returns (loss, gradients, buffers after the pass) of one task, in a form that `lift` can take."""

    # -- training -----------------------------------------------------------------------------------------------

    def train(self, segment: Segment) -> Float[Tensor, " T"]:
        def trained() -> Float[Tensor, " T"]:
            ((total, counts),) = take_turns([self.advance(segment)])
            return mean_losses(total, counts)

        return going_back([self], segment.period, trained)

    def advance(self, segment: Segment) -> Generator[None, None, Advance]:
        """Trains every task over a stretch of a period, and returns before the device has done all of it.

        It stops where another engine may take a step of its own, if it goes by turns.
        """
        self.seen.forget()
        job = self.job
        _, padded = self._period_rows(segment.period)
        drawing = self.chain.has(*_DRAWING)
        keys = random.fold_in(self._keys, segment.period) if drawing else self._keys
        self.stack.module.train()
        self._set_rates()
        if self._recorder.refresh():
            self._drop_captures()
        total = torch.zeros(job.tasks, dtype=torch.float64, device=self.device)
        groups = [group for lane in self._lanes() for group in self._groups(lane, segment)]
        # Made once a group: on a GPU, a tensor made on the host is a wait.
        parts = {id(group): Some(group.tasks, self.stack) for group in groups}
        orders = {name: (some.of(padded), some.of(keys)) for name, some in parts.items()}
        prepared: dict[int, Prepared | Literal[False] | None] = {}
        recordings: dict[int, Recording | None] = {}
        waiting: dict[int, list[Tensor]] = {name: [] for name in parts}  # losses, to be added several at once
        walk = contextlib.closing(self._walk(groups, segment))
        with using_threads(self.threads), ended_processes_named(), walk as steps:
            for turn in steps:
                if turn is None:
                    yield
                    continue
                group, step = turn
                some, (rows, key) = parts[id(group)], orders[id(group)]
                # By the period, and not by what this process did: it may go on with a run.
                record = group.long and (segment.period - 1) * group.end + step >= UNRECORDED
                drawn = random.fold_in(key, step) if drawing else key
                if record and prepared.get(id(group)) is None:
                    known = recordings.get(id(group))
                    prepared[id(group)] = self._prepared(some, group, step, rows, drawn, known)
                if swift := prepared.get(id(group)):
                    waiting[id(group)].append(swift(drawn))
                    if len(waiting[id(group)]) == _LOSSES_AT_ONCE:
                        some.add_each(total, waiting[id(group)])
                        waiting[id(group)].clear()
                    continue
                index = rows[:, step * job.batch_size : step * job.batch_size + group.size]
                some.add(total, self._step(some, index, drawn, group.updates(step), record))
                recordings[id(group)] = self._recorder.latest
        counts = torch.zeros(job.tasks, dtype=torch.float64)
        for group in groups:
            parts[id(group)].add_each(total, waiting[id(group)])
            counts[group.tasks] += group.last - group.first
            self._visits += (group.last - group.first) * group.size * len(group.tasks)
        return total, counts

    def may_go_back(self, period: int) -> bool:
        """Whether a segment of a period is taken back where memory runs out.

        It is until every kind of step has been taken and recorded, and a period more: from then on steps take no more
        than they did, and the copies, which a GPU waits for, are spared.
        """
        if self.goes_back and self._unsettled is None:
            most = int(self.steps(period).max())
            self._unsettled = max(period, UNRECORDED // most + 1) + 1
        return self.goes_back and self.together > 1 and period <= (self._unsettled or 0)

    def kept(self) -> Kept:
        """Returns what puts back all that training changes, as it is now, in place; the copies are the host's."""
        tensors = self._changed()
        copies = [_on_host(value) for value in tensors]
        sums = {tasks: (dict(own), count) for tasks, (own, count) in self._accumulated.items()}
        recordable, visits, optimizers = self._recorder.possible, self._visits, self.updater.kept()

        def back() -> None:
            for value, kept in zip(tensors, copies, strict=True):
                value.copy_(kept)
            self._accumulated = {tasks: (dict(own), count) for tasks, (own, count) in sums.items()}
            self._recorder.possible, self._visits = recordable, visits
            optimizers()

        return back

    def kept_bytes(self) -> int:
        """Returns how many bytes of the host `kept` takes."""
        slots = [value for own in self.updater.slots() for value in own.values() if isinstance(value, Tensor)]
        return sum(value.numel() * value.element_size() for value in [*self._changed(), *slots])

    def _changed(self) -> list[Tensor]:
        """What training changes in place, but for what the optimizers remember."""
        sums = [own for own, _ in self._accumulated.values()]
        parts = [self.stack.params, self.stack.buffers, *self.states, *sums]
        return [value.detach() for part in parts for value in part.values()]

    def shrink(self, problem: str) -> None:
        """Lets half as many tasks go through a pass at once.

        Raises:
            RunError: it is one already, or this engine has no smaller form.
        """
        if not self.shrinks or self.together == 1:
            raise RunError(
                f"memory: {self.device} ran out of it with one task at a time ({problem}); give a smaller batch_size, "
                "or fewer tasks."
            )
        self.together = math.ceil(self.together / 2)
        self._accumulated = {
            (t,): ({name: value[i : i + 1] for name, value in sums.items()}, count)
            for tasks, (sums, count) in self._accumulated.items()
            for i, t in enumerate(tasks)
        }
        if self._captures is not None:
            self._captures = self._captures_on(cuda_graphs(self.device))
        _free_what_failed([self.device])
        how = f"{self.together} tasks at a time" if self.together > 1 else "one task after another"
        self._notes.append(f"engine: memory of {self.device} ran out, so it goes on with {how}.")

    def _fitting(self, pass_: Callable[..., Result], *given: Any) -> Result:
        """Returns what a pass gives that changes nothing, with as few tasks at once as memory asks for."""
        while True:
            try:
                return pass_(*given)
            except torch.OutOfMemoryError as error:
                problem = one_line(error)  # and not the error, whose trace holds what was taken
            self.shrink(problem)

    def fewer(self) -> list[int | None]:
        """Returns, for each task, how many go through a pass at once where memory does not do for all, else None."""
        return [None if self.together >= self.job.tasks else self.together] * self.job.tasks

    def take_fewer(self, fewer: Sequence[int | None]) -> None:
        """Lets as many go through a pass at once as `fewer` of these tasks says; where they differ, the fewest."""
        self.together = max(1, min([self.job.tasks, *(count for count in fewer if count is not None)]))

    def notes(self) -> list[str]:
        told, self._notes = self._notes, []
        return told

    def _groups(self, lane: list[int], segment: Segment) -> Iterator["Group"]:
        lengths, _ = self._period_rows(segment.period)
        return _groups(lane, lengths, self.job.batch_size, self.job.accumulate, segment)

    def _walk(self, groups: list["Group"], segment: Segment) -> Generator[tuple["Group", int] | None, None, None]:
        """Yields (group, step) of a segment, with the global generators seeded for the group.

        One group goes after another, or all go in turns, with None between two steps, when the generators are left as
        they were found. Where rows are read as they are needed, that lets few be held.
        """
        words = [
            (self.job.seed, "forward", segment.period, group.first, self._first + group.tasks[0]) for group in groups
        ]
        if not self.in_turns:
            for group, seeds in zip(groups, words, strict=True):
                with random.seeded(self.device, *seeds):
                    for step in range(group.first, group.last):
                        yield group, step
            return
        draws = {id(group): random.Draws(self.device, *seeds) for group, seeds in zip(groups, words, strict=True)}
        if isinstance(self.inputs, Streamed) and self._reading_from != (segment.period, segment.first):
            self._read(self.inputs, segment)
        try:
            for group, step in _in_turns(groups):
                with draws[id(group)].going_on():
                    yield group, step
                yield None
        except BaseException:  # also where the steps are not taken to the end
            self._stop_reading()
            raise
        if self._reading is not None:
            self._reading_from = (segment.period, segment.last)
            if not self._reading.left:
                self._stop_reading()

    def _read(self, inputs: Streamed, segment: Segment) -> None:
        """Begins to read the rows of a period, from a segment on to its end."""
        self._stop_reading()
        rest, size = Segment(segment.period, segment.first), self.job.batch_size
        host = self._period_rows(segment.period)[1].cpu()
        groups = [group for lane in self._lanes() for group in self._groups(lane, rest)]
        batches = [host[group.tasks, step * size : step * size + group.size] for group, step in _in_turns(groups)]
        self._reading = inputs.read(batches, random.seed_of(self.job.seed, "read", segment.period))

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
        self._reading = self._reading_from = None

    def steps(self, period: int) -> Int64[Tensor, " T"]:
        lengths, _ = self._period_rows(period)
        return torch.tensor([steps_in(length, self.job.batch_size) for length in lengths])

    def _period_rows(self, period: int) -> tuple[list[int], Int64[Tensor, "T n"]]:
        """Each task's number of rows in a period, and which they are; kept while the period goes on."""
        if self._rows_of is None or self._rows_of[0] != period:
            orders = self._orders(period)
            padded = nn.utils.rnn.pad_sequence(orders, batch_first=True)  # no batch reaches the padding
            self._rows_of = period, [len(order) for order in orders], placed(padded, self.device)
        return self._rows_of[1:]

    def _orders(self, period: int) -> list[Int64[Tensor, " n"]]:
        unlabelled = self._unlabelled
        orders = row_orders(self.job.seed, period, self.job.train, unlabelled)
        if not self.chain.has("draw"):
            return orders
        for i, method in self.chain.at("draw"):
            keys = [random.key(self.job.seed, "draw", self._first + t, period, i) for t in range(self.job.tasks)]
            orders = [
                method.draw(order, {name: value[t].cpu() for name, value in self.states[i].items()}, keys[t])
                for t, order in enumerate(orders)
            ]
        pool = self.job.train if unlabelled is None else self.job.train | unlabelled
        for t, order in enumerate(orders):
            if not len(order) or not bool(pool[t][order].all()):
                t += self._first
                raise RunError(f"methods: of task {t}'s own rows, a draw must return some, and no others.")
        return orders

    def _step(
        self, some: Some, index: Int64[Tensor, "k B"], keys: Int64[Tensor, " k"], update: bool, record: bool
    ) -> Float[Tensor, " k"]:
        """One step of k tasks; returns their losses."""
        if self._captures is None or not record or self._reading is not None:
            losses, grads = self._pass(some, record, index, keys)
        else:
            kind = (tuple(some.tasks), index.shape, self._temperature(), self._partly_labelled)
            # And no more: the rest may be at work on other streams.
            changed = some.memory_of(self.stack.buffers)
            changed += [value for state in self._changed_in_a_pass() for value in some.memory_of(state)]
            losses, grads = self._captures(kind, partial(self._pass, some, record), (index, keys), changed)
        mean = self._accumulate(some, grads, update)
        states = self._states_of(some)
        if mean is not None:
            if self.job.clip_norm is not None:
                mean = clip_rows(mean, self.job.clip_norm)
            for i, method in self.chain.at("before_step"):
                mean, states[i] = self.lift(method.before_step)(self._now(some), mean, states[i])
            before = self._now(some) if self.chain.has("update") else {}
            self.updater.step(mean, None if some.everyone else some.tasks)
            for i, method in self.chain.at("update"):
                params, states[i] = self.lift(method.update)(before, self._now(some), states[i])
                some.write(self.stack.params, params)
            for i, method in self.chain.at("after_step"):
                params, states[i] = self.lift(method.after_step)(self._now(some), states[i])
                some.write(self.stack.params, params)
            for i in sorted({i for stage in _STEPPING for i, _ in self.chain.at(stage)}):
                some.write(self.states[i], states[i])
        return losses

    def _prepared(
        self,
        some: Some,
        group: "Group",
        step: int,
        rows: Int64[Tensor, "k n"],
        keys: Int64[Tensor, " k"],
        recording: Recording | None,
    ) -> Prepared | Literal[False] | None:
        """Returns what takes a group's steps from one on in this segment.

        There is none, False, where more than a recording and the optimizers' kernels has a part in a step; and none as
        yet, None, before there is a recording, or state of the optimizers'.

        Args:
            some: the group's tasks.
            group: which steps they take.
            step: the next one.
            rows: the tasks' rows in the order of the period.
            keys: of the methods' draws in the step.
            recording: of the step before it; None where it was none of this segment, or there is no recording yet. Then
                it is looked for, but not where rows are read as they are needed: they would have to be read first.
        """
        job = self.job
        steps_alone = job.accumulate == 1 and job.clip_norm is None and not self.chain.has(*_STEPPING)
        if self._captures is not None or not (self._recorder.possible and steps_alone and some.in_place):
            return False
        stack, states = some.stack(), self._states_of(some)
        lies = stack.first if self.alone else (stack.params, stack.frozen, stack.buffers)
        if self.alone:
            states, keys = [_task(state, 0) for state in states], keys[0]
        batches = self._batches(some, group, range(step, group.last), rows)
        if recording is None and not isinstance(self.inputs, Streamed):
            batch = next(batches)
            recording = self._recorder.find(tensors_of(*lies, batch, states, keys), batch, self._temperature())
            batches = itertools.chain((batch,), batches)
        if recording is None or (self._by_reach and self._reached is None):
            return None
        grads = {name: grad[None] if self.alone else grad for name, grad in recording.unwritten().items()}
        if self._by_reach and self._reached is not None:
            grads = {name: grad for name, grad in grads.items() if name in self._reached}
        kernels = self.updater.kernels(grads, recording.grads, None if some.everyone else some.tasks)
        if kernels is None:  # an optimizer's first step, which may be that of the segment, is torch's own
            return None if step == group.first else False
        return Prepared(
            recording=recording,
            alone=self.alone,
            before=[value for part in lies for value in part.values()],
            behind=[value for state in states for value in state.values()],
            batches=batches,
            kernels=kernels,
            together=self.updater.fused,
            write=partial(self._write_passed, some),
        )

    def _batches(self, some: Some, group: "Group", steps: range, rows: Int64[Tensor, "k n"]) -> Iterator[Batch]:
        """Yields the batches of a group's steps, of one task if it steps alone; small ones are read several at once."""
        at_once, size = 1, self.job.batch_size
        while steps:
            now, steps = steps[:at_once], steps[at_once:]
            index = rows[:, now.start * size : now.start * size + len(now) * group.size]
            if isinstance(self.inputs, Streamed):
                batch = self._batch(some.which, index)
                yield batch.first() if self.alone else batch
                continue
            batch = self._batch(some.which, index.view(-1, len(now), group.size).transpose(0, 1))
            at_once = max(1, AT_ONCE * len(now) // sum(part.nbytes for part in tensors_in(batch)))
            yield from steps_of(batch, self.alone)

    def _now(self, some: Some) -> Params:
        """A copy: the optimizer moves the parameters in place, and what a method keeps of them may not move."""
        return {name: some.copy(value) for name, value in self.stack.params.items()}

    def _changed_in_a_pass(self) -> list[State]:
        """The states that the loss or the gradients may change; others are changed between passes."""
        changing = {i for stage in ("loss", "gradients") for i, _ in self.chain.at(stage)}
        return [state for i, state in enumerate(self.states) if i in changing or self.chain.trained([state])]

    def _pass(self, some: Some, record: bool, index: Int64[Tensor, "k B"], keys: Int64[Tensor, " k"]) -> Pass:
        """Returns (losses, gradients) of k tasks on a batch of each, whose buffers go on."""
        batch = self._batch(some.which, index)
        losses, grads, passed = self._value_and_grads(some.stack(), batch, self._states_of(some), keys, record)
        self._write_passed(some, passed)
        return losses, grads

    def _write_passed(self, some: Some, passed: Params) -> None:
        """Writes what has come of a pass: buffers, and the methods' new state."""
        some.write(self.stack.buffers, buffers_of(passed))
        for i, state in enumerate(self.states):
            some.write(state, news_of(passed, i))

    def _states_of(self, some: Some) -> list[State]:
        return [{name: some.of(value) for name, value in state.items()} for state in self.states]

    def _accumulate(self, some: Some, grads: Params, update: bool) -> Params | None:
        """Returns the mean gradient when the optimizer is to step, else None.

        That of the methods' trained state goes to their state.
        """
        if self.job.accumulate == 1:
            return grads
        (sums, count), own = self._begun(some.tasks), self.chain.trained_grads(self.states)
        for name, grad in (grads | {name: some.of(value) for name, value in own.items()}).items():
            if name in sums:
                sums[name] += grad
            else:
                sums[name] = grad.clone()  # its memory may be a graph's, which writes it anew
        if not update:
            self._accumulated[tuple(some.tasks)] = (sums, count + 1)
            return None
        means = {name: grad / (count + 1) for name, grad in sums.items()}
        some.write(own, {name: means.pop(name) for name in own})
        return means

    def _begun(self, tasks: list[int]) -> tuple[Params, int]:
        """Takes the gradients that have come together, and of how many batches."""
        own = self._accumulated.pop(tuple(tasks), ({}, 0))
        if own[1] or (tasks[0],) not in self._accumulated:
            return own  # the same tasks stay together until they step (see `_groups`), unless the engine shrinks
        parts = [self._accumulated.pop((t,)) for t in tasks]
        return {name: torch.cat([sums[name] for sums, _ in parts]) for name in parts[0][0]}, parts[0][1]

    def _batch(self, which: Int64[Tensor, " k"], index: Int64[Tensor, "*steps k B"]) -> Batch:
        classes = self.job.objective.classes
        x = self.inputs.rows(index) if self._reading is None else next(self._reading)
        weight = None if self.weights is None else taken(self.weights, index)
        batch = Batch(x, taken(self.targets, index), index, classes, weight=weight)
        lesson = self.lesson
        if lesson is None:
            return batch
        rows = which[:, None]
        by_task = lesson.weight.ndim == 1
        believed = lesson.weight[which].expand(index.shape[:-1]) if by_task else lesson.weight[rows, index]
        batch = batch._replace(soft=lesson.targets[rows, index], soft_weight=believed.to(self.dtype))
        if not self._partly_labelled:
            return batch
        labelled = ~lesson.unlabelled[rows, index]
        # Labels that may not be used are blanked, so that no method, the user's own included, can learn from them.
        shown = labelled.view(*labelled.shape, *[1] * (batch.y.ndim - labelled.ndim))
        return batch._replace(y=torch.where(shown, batch.y, 0), labelled=labelled.to(self.dtype))

    def _value_and_grads(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"], record: bool
    ) -> Gradients:
        """Returns (losses, gradients, what has come of the pass) of k tasks."""
        losses, grads, passed = self._recorded(stack, batch, states, keys, record)
        if self._by_reach:
            reached = self._reached_by_loss(stack, batch, states, keys)
            grads = {name: grad for name, grad in grads.items() if name in reached}
        return losses, grads, passed

    def _lifted(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        keys: Int64[Tensor, " k"],
    ) -> Gradients:
        losses, grads, after = self.lift(self._of_one)(params, frozen, buffers, batch, states, keys)
        return losses.detach(), grads, detached(after)

    @property
    def _by_reach(self) -> bool:
        """Whether parameters without a derivative of the loss are left alone in spite of what methods give for them.

        A plain loop has no gradient there at all, where a method may give zeros.
        """
        given = self.chain.at("gradients")
        return bool(given) and all(method.differentiates for _, method in given)

    def _reached_by_loss(
        self, stack: TaskStack, batch: Batch, states: list[State], keys: Int64[Tensor, " k"]
    ) -> frozenset[str]:
        """The names of the parameters that the loss depends on, found once."""
        if self._reached is None:
            leaves = {name: value.detach().requires_grad_() for name, value in stack.params.items()}
            with random.seeded(self.device, self.job.seed, "reached"):
                losses, _ = self.lift(self._loss_of_one)(leaves, stack.frozen, stack.buffers, batch, states, keys)
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
            self._reached = frozenset(name for name, grad in zip(leaves, found, strict=True) if grad is not None)
        return self._reached

    def _of_one(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        key: Int64[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Params, Params]:
        """One task's (loss, gradients, what has come of the pass), with the methods' gradient stages around it."""
        return self.chain.value_and_grad(
            self._network, self._inner(), self._differentiated, params, frozen, buffers, batch, states, key
        )

    def _loss_of_one(
        self,
        at: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        key: Int64[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Params]:
        """One task's loss and what has come of the pass; `at` is what may be differentiated (see `Chain.loss`)."""
        return self.chain.loss(self._network, self._inner(), at, frozen, buffers, batch, states, key)

    def _inner(self) -> Inner:
        """The loss without methods."""
        return partial(self.job.objective.training_loss, temperature=self._temperature())

    def _forward(self, params: Params, frozen: Params, buffers: Params, x: Rows) -> tuple[Tensor, Params]:
        """One task's output [B, C] and its buffers after the pass."""
        with self._autocast():
            output, after = forward(self.stack.module, params, frozen, buffers, x)
        return _two_axes(output).to(self.dtype), after

    # -- scoring --------------------------------------------------------------------------------------------------

    def score(self) -> Float[Tensor, "T 2"]:
        (scores,) = take_turns([self.scoring()])
        return scores

    def scoring(self) -> Generator[None, None, Float[Tensor, "T 2"]]:
        """`score`, with a stop before the host waits for what the device computes."""
        return self._scoring(list(range(self.job.tasks)), self._own)

    def losses(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m"]:
        outputs, targets = self.predict(rows, best), self.job.targets[rows]
        return torch.stack([self.job.objective.row_losses(output, targets) for output in outputs])

    def predict(self, rows: Int64[Tensor, " m"], best: bool = False) -> Float[Tensor, "T m C"]:
        if best:
            return self._best_outputs(rows)
        outputs, known = self.seen.on(rows)
        self._fill(outputs, known, self._evaluated(), rows)
        return outputs

    def _best_outputs(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "T m C"]:
        """Outputs of the best snapshots: those that were given last, where they were for all of these rows, too."""
        now = int(self.seen.snapshots)
        if self._of_best is not None and self._of_best[0] == now:
            _, before, outputs = self._of_best
            place = torch.full((len(self.inputs),), -1)
            place[before] = torch.arange(len(before))
            if bool((place[rows] >= 0).all()):
                return outputs[:, place[rows]]  # a copy
        self._of_best = None  # before its successor takes memory
        outputs = self.seen.outputs.new_empty(self.job.tasks, len(rows), self.seen.outputs.shape[2])
        self._fill(outputs, torch.zeros(outputs.shape[:2], dtype=torch.bool), self.best, rows)
        self._of_best = now, rows.clone(), outputs
        return outputs.clone()  # theirs to change

    def _fill(
        self, outputs: Float[Tensor, "T m C"], known: Bool[Tensor, "T m"], stack: TaskStack, rows: Int64[Tensor, " m"]
    ) -> None:
        """Computes all models' outputs on the same rows, in place, where they are not known."""
        with self._evaluating():
            chunks = torch.split(torch.arange(len(rows)), self._evaluation_rows)
            unknown = [chunk for chunk in chunks if not bool(known[:, chunk].all())]
            batches = self.inputs.batches([rows[chunk].to(self.device) for chunk in unknown])  # once for all tasks
            for chunk, x in zip(unknown, batches, strict=True):
                if not self._apart(len(chunk)):
                    outputs[:, chunk] = self._outputs(stack, x, shared=True).cpu()
                    continue
                records = self._recorder.possible and self._looker.possible
                recorded = records and len(chunk) == self._evaluation_rows
                for t in range(self.job.tasks):
                    missing = (~known[t, chunk]).nonzero().flatten()
                    if recorded and 2 * len(missing) >= len(chunk):  # a recorded pass over all is the faster
                        everything = torch.arange(len(chunk))
                        outputs[t, chunk[missing]] = self._outputs_of(stack, t, _at(x, everything))[missing]
                    elif len(missing):
                        outputs[t, chunk[missing]] = self._outputs_of(stack, t, _at(x, missing))

    def _present_scores(self, tasks: list[int], rows: list[Int64[Tensor, " _"]]) -> Float[Tensor, "k 2"]:
        (scores,) = take_turns([self._scoring(tasks, rows)])
        return scores

    def _scoring(
        self, tasks: list[int], rows: list[Int64[Tensor, " _"]]
    ) -> Generator[None, None, Float[Tensor, "k 2"]]:
        """Some tasks as they stand, each on its rows: what they gave for validation rows is computed once."""
        found = [self.seen.of(t, own) for t, own in zip(tasks, rows, strict=True)]
        unknown = [i for i, outputs in enumerate(found) if outputs is None]
        if unknown:
            computed = self._outputs_on(self._evaluated(), [rows[i] for i in unknown], [tasks[i] for i in unknown])
            yield
            for i, on_device in zip(unknown, computed, strict=True):
                found[i] = outputs = on_device.cpu()
                if rows[i] is self._own[tasks[i]]:
                    self.seen.put(tasks[i], outputs)
        return self.job.scores([outputs for outputs in found if outputs is not None], rows)

    def _scores(self, stack: TaskStack, rows: list[Int64[Tensor, " _"]], tasks: list[int]) -> Float[Tensor, "k 2"]:
        """The models of k of the tasks, of all of which there is one in the stack, each on its own rows."""
        return self.job.scores([outputs.cpu() for outputs in self._outputs_on(stack, rows, tasks)], rows)

    def _outputs_on(
        self, stack: TaskStack, rows: list[Int64[Tensor, " _"]], tasks: list[int]
    ) -> list[Float[Tensor, "_ C"]]:
        """Outputs of the models of k of the tasks, each on its own rows; on their device.

        Args:
            stack: of all tasks, as they stand or are to be.
            rows: of each of the k.
            tasks: which.
        """
        # Of a candidate as of the task as it stands, or rounding would tell apart what is the same.
        again = [torch.equal(own, self._own[t]) for own, t in zip(rows, tasks, strict=True)]
        lengths, size = [len(own) for own in rows], self._evaluation_rows
        with self._evaluating():
            if all(again) and self._joint_looker.possible and self._recorder.possible:
                return self._joint_outputs(stack, tasks)
            if self._apart(max(lengths)):
                # A chunk of each in turn: the tasks have many rows in common, which may be read as they are needed.
                turns = itertools.zip_longest(*(torch.split(own.to(self.device), size) for own in rows))
                chunks = [(t, chunk) for turn in turns for t, chunk in enumerate(turn) if chunk is not None]
                batches = self.inputs.batches([chunk for _, chunk in chunks])
                found: list[list[Tensor]] = [[] for _ in rows]
                for (t, _), x in zip(chunks, batches, strict=True):
                    found[t].append(self._outputs_of(stack, tasks[t], x, again[t]))
                return [torch.cat(parts) for parts in found]
            if len(tasks) < stack.tasks:
                stack = stack.take(torch.tensor(tasks))
            index = _cycled(rows, max(lengths))
            batches = self.inputs.batches(torch.split(index.to(self.device), size, dim=1))
            outputs = torch.cat([self._outputs(stack, x, shared=False) for x in batches], 1)
        return [mine[:length] for mine, length in zip(outputs, lengths, strict=True)]

    def _joint_outputs(self, stack: TaskStack, tasks: list[int]) -> list[Float[Tensor, "_ C"]]:
        """Outputs of the models of some tasks on these tasks' validation rows, from a pass of all."""
        given = stack.params, stack.frozen, stack.buffers
        found = []
        for index in self._validation_chunks:
            nobody = torch.zeros_like(index)
            batch = Batch(self.inputs.rows(index), nobody, nobody)
            _, _, seen = self._joint_looker(*given, batch, [], self._keys, "look", record=True)
            found.append(seen["outputs"])
        outputs = torch.cat(found, 1)
        return [outputs[t, : len(self._own[t])] for t in tasks]

    @cached_property
    def _validation_chunks(self) -> list[Int64[Tensor, "T m"]]:
        """Every task's validation rows, cycled to one length, in chunks of one size."""
        assert self._widest is not None
        most = max(map(len, self._own))
        count = math.ceil(most * self.job.tasks * self._widest / _NUMBERS_TOGETHER)
        size = math.ceil(most / count)
        return list(torch.split(_cycled(self._own, count * size), size, dim=1))

    def _looks_jointly(self) -> bool:
        """Whether all tasks' passes over their validation rows are faster together, once they are recorded."""
        shortest, longest = min(map(len, self._own)), max(map(len, self._own))
        alike = 0 < longest <= 2 * shortest
        return self.fuse and self._widest is not None and alike and longest <= 2 * _LOOKED_AT_BY_VECTORS

    def _outputs(self, stack: TaskStack, x: Rows, shared: bool) -> Float[Tensor, "k m C"]:
        """Outputs of k models together, on the same rows [m, …] or each on its own [k, m, …]."""
        module = self.stack.module

        def output(params: Params, frozen: Params, buffers: Params, own: tuple[Rows, ...]) -> Tensor:
            return _two_axes(forward(module, params, frozen, buffers, x if shared else own[0])[0])

        def outputs() -> Tensor:
            result: Tensor = self.lift(output)(stack.params, stack.frozen, stack.buffers, () if shared else (x,))
            return result

        return self._fitting(outputs).to(self.dtype)

    def _outputs_of(self, stack: TaskStack, t: int, x: Rows, again: bool = False) -> Float[Tensor, "m C"]:
        """Outputs of one of the models. A pass is recorded with `again`, or of as many rows as there may be."""
        own = [{name: value[t] for name, value in part.items()} for part in (stack.params, stack.frozen, stack.buffers)]
        count = len(x[0] if isinstance(x, tuple) else x)
        nobody = torch.zeros(count, dtype=torch.int64, device=self.device)
        # Steps of a model that changes in training are not recorded: its looks would be recorded every period.
        record = self._recorder.possible and (again or count == self._evaluation_rows)
        batch = Batch(x, nobody, nobody)
        _, _, seen = self._looker(own[0], own[1], own[2], batch, [], self._keys[t], "look", record)
        return seen["outputs"]

    def _look(
        self, params: Params, frozen: Params, buffers: Params, batch: Batch, states: list[State], key: Int64[Tensor, ""]
    ) -> Gradients:
        """A pass of one task that has no loss, of which come outputs [m, C]."""
        del states
        outputs, _ = self._forward(params, frozen, buffers, batch.x)
        return torch.zeros_like(key, dtype=self.dtype), {}, {"outputs": outputs}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within, models are evaluated."""
        self.stack.module.eval()
        self._looker.refresh()
        self._joint_looker.refresh()
        # Seeded, since a model may draw even in eval mode, and the caller's random state is not ours to move.
        seeded = random.seeded(self.device, self.job.seed, "evaluate")
        with ended_processes_named(), torch.no_grad(), seeded, self._autocast():
            yield

    def _apart(self, rows: int) -> bool:
        """Whether models are evaluated one by one on so many rows."""
        return self.device.type == "cpu" and rows >= _APART

    def _evaluated(self, stack: TaskStack | None = None, states: list[State] | None = None) -> TaskStack:
        """The parameters to score: those of `stack` (default: being trained), unless a method says otherwise."""
        stack, states = self.stack if stack is None else stack, self.states if states is None else states
        params = detached(stack.params)
        if self.chain.has("evaluation", "weights"):
            params = self.lift(self.chain.evaluation)(params, states)
        return dataclasses.replace(stack, params=params)

    @cached_property
    def _evaluation_rows(self) -> int:
        fits = 0 if self._widest is None else min(_LOOKED_AT_BY_VECTORS, _NUMBERS_AT_ONCE // self._widest)
        return max(_LOOKED_AT, fits, 4 * self.job.batch_size)

    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        if not bool(tasks.any()):
            return
        self.seen.forget_best()
        which = tasks.nonzero().flatten()
        self.best.put(which, self._evaluated().take(which))
        for mine, state in zip(self.best_states, self.states, strict=True):
            self._write(mine, {name: state[name][which.to(self.device)] for name in mine}, which)

    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        everyone = torch.arange(self.job.tasks, device=self.device)
        if self.chain.has("row_losses"):
            self._tell_row_losses()
        for i, method in self.chain.at("period_end"):
            given = scores.to(self.device, self.dtype)
            params, state = self.lift(method.period_end)(detached(self.stack.params), self.states[i], given)
            self.seen.forget()
            self._write(self.stack.params, params, everyone)
            self._write(self.states[i], state, everyone)
        self.updater.end_period([float(loss) for loss in scores[:, 1]])

    def _tell_row_losses(self) -> None:
        """Tells the methods that ask how each task does on its own training rows."""
        rows = [mask.nonzero().flatten() for mask in self.job.train]
        for t, outputs in enumerate(self._outputs_on(self._evaluated(), rows, list(range(self.job.tasks)))):
            losses = self.job.objective.row_losses(outputs.cpu(), self.job.targets[rows[t]])
            for i, method in self.chain.at("row_losses"):
                own = {name: value[t] for name, value in self.states[i].items()}
                given = rows[t].to(self.device), losses.to(self.device, self.dtype)
                state = {name: value[None] for name, value in method.row_losses(*given, own).items()}
                self._write(self.states[i], state, torch.tensor([t]))

    def _set_rates(self) -> None:
        """Sets what the methods multiply the schedules' learning rates by."""
        if self.chain.has("rate"):
            own = ([_task(state, t) for state in self.states] for t in range(self.job.tasks))
            self.updater.scale([float(self.chain.rate(states)) for states in own])

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        self.updater.reschedule(scheduler)

    # -- plans ----------------------------------------------------------------------------------------------------

    def apply(self, plan: Plan, period: int) -> Outcome:
        proposal = Proposal.of(plan, self.job.tasks)
        outcome = Outcome.nothing(self.job.tasks)
        if bool(proposal.touched.any()):
            donors = Here(proposal, self.layers)
            outcome = self.consider(proposal, period, donors)
            self.follow(proposal, outcome.accepted, donors)
        for change in plan.changes:
            if isinstance(change, Teach):
                self.learn(change)
            elif isinstance(change, Tune):
                self.updater.tune(change.values, change.relative)
        return outcome

    def consider(self, proposal: Proposal, period: int, donors: Donors) -> Outcome:
        """Builds the candidates, scores them if there is a trial, and keeps what is accepted.

        What the optimizers remember stays (see `follow`).
        """
        nothing, touched = Outcome.nothing(self.job.tasks), proposal.touched
        before, after = nothing.before, nothing.after
        candidate = self._candidate(proposal, donors)
        states = self._states_from(proposal, candidate, donors)
        if self.chain.has("after_transfer"):
            self._mend(candidate, states, touched)
        if proposal.buffers == "follow" and bool(proposal.blended.any()):
            seen = self._evaluated(candidate, states) if self.chain.has("weights") else candidate
            self._recompute_batch_norm(seen, proposal.blended, period)
        which, accepted = touched.nonzero().flatten(), touched
        if proposal.trial is not None and len(which):
            rows = [mask.nonzero().flatten() for mask in proposal.trial[which]]
            before[which] = self._present_scores(which.tolist(), rows)
            after[which] = self._scores(self._evaluated(candidate, states), rows, which.tolist())
            accepted = touched & better(after[:, 0], after[:, 1], before[:, 0], before[:, 1], by=self.job.better)
        kept = accepted.nonzero().flatten()
        if len(kept):
            self.seen.forget(kept.tolist())
            self.stack.put(kept, candidate.take(kept))
            for mine, new in zip(self.states, states, strict=True):
                self._write(mine, {name: value[kept.to(self.device)] for name, value in new.items()}, kept)
        return Outcome(accepted, before, after)

    def follow(self, proposal: Proposal, accepted: Bool[Tensor, " T"], donors: Donors) -> None:
        """Lets what the optimizers remember go with the candidates that were accepted, stay, or begin anew."""
        learn = accepted & ~proposal.restarted
        if proposal.moments == "follow" and bool(learn.any()):
            sources = [
                donors.place[origin] if learns else t
                for t, (origin, learns) in enumerate(zip(proposal.origin.tolist(), learn.tolist(), strict=True))
            ]
            self.updater.carry(partial(_followed, donors, learn), sources, donors.slots, donors.moving)
        self.updater.reset(accepted if proposal.moments == "reset" else accepted & proposal.restarted)

    def _mend(self, candidate: TaskStack, states: list[State], touched: Bool[Tensor, " T"]) -> None:
        """Has the methods keep what they promise, in the candidates of the tasks to which something is proposed."""
        which = touched.nonzero().flatten()
        place = which.to(self.device)
        params = {name: value[place] for name, value in candidate.params.items()}
        for i, method in self.chain.at("after_transfer"):
            own = {name: value[place] for name, value in states[i].items()}
            params, own = self.lift(method.after_transfer)(params, own)
            self._write(states[i], own, which)
        # What a plan leaves alone is the engine's own memory in a candidate, too.
        candidate.params.update({name: value.clone() for name, value in candidate.params.items()})
        self._write(candidate.params, params, which)

    def _candidate(self, proposal: Proposal, donors: Donors) -> TaskStack:
        before = dataclasses.replace(self.stack, params=detached(self.stack.params))
        # Moves make new tensors, so the candidate can share the old parameters until then.
        buffers = {name: value.clone() for name, value in before.buffers.items()}
        candidate = dataclasses.replace(before, params=dict(before.params), buffers=buffers)
        for number, change in enumerate(proposal.changes):
            if isinstance(change, Restart):
                which = change.tasks.nonzero().flatten()
                if len(which):
                    candidate = candidate.clone()
                    candidate.put(which, (self.best if change.best else self._starts(change.key)).take(which))
                continue
            if isinstance(change, Elastic):
                for name, value in candidate.params.items():
                    candidate.params[name], self.centre[name] = donors.pulled(
                        number, name, before.params[name], value, self.centre.get(name)
                    )
                continue
            for part, own, old in (
                ("params", candidate.params, before.params),
                ("buffers", candidate.buffers, before.buffers),
            ):
                if part == "params" or proposal.buffers == "follow":
                    own.update({n: donors.moved(number, f"{part}/{n}", n, old[n], own[n]) for n in own})
        if proposal.buffers == "reset":
            which = proposal.touched.nonzero().flatten()
            fresh = self._starts()
            for name, value in candidate.buffers.items():
                value[which.to(value.device)] = fresh.buffers[name][which.to(value.device)]
        return candidate

    def _starts(self, generation: int = 0) -> TaskStack:
        return start_stack(self.job, generation, self._first, apart=not self.stack.frozen)

    def _recompute_batch_norm(self, stack: TaskStack, tasks: Bool[Tensor, " T"], period: int) -> None:
        """Measures the batch-norm statistics of some tasks anew on their training rows, in place."""
        layers = {
            f"{path}." if path else "": layer
            for path, layer in stack.module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        }
        if not layers:
            return
        names = [prefix + name for prefix in layers for name in ("running_mean", "running_var")]
        orders = [order.to(self.device) for order in row_orders(self.job.seed, period, self.job.train)]
        momenta = [layer.momentum for layer in layers.values()]
        alike: dict[int, list[int]] = {}  # tasks with as many rows go together
        for t in tasks.nonzero().flatten().tolist():
            alike.setdefault(len(orders[t]), []).append(t)
        stack.module.train()
        try:
            for count, together in alike.items():
                some = stack.take(torch.tensor(together))
                params, frozen, buffers = detached([some.params, some.frozen, some.buffers])
                for name in names:  # 0 · infinity would keep what a diverged task had measured
                    buffers[name] = torch.zeros_like(buffers[name])
                order = torch.stack([orders[t] for t in together])[:, : _RECOMPUTE_BATCHES * self.job.batch_size]
                batches = torch.split(order, self.job.batch_size, dim=1)[: steps_in(count, self.job.batch_size)]
                for step, x in enumerate(self.inputs.batches(batches)):
                    for layer in layers.values():
                        layer.momentum = 1.0 / (step + 1)  # makes the running statistics a plain mean
                    seeds = (self.job.seed, "recompute", period, self._first + together[0], step)
                    with torch.no_grad(), random.seeded(self.device, *seeds), self._autocast():
                        _, buffers = self._fitting(self._forwards, params, frozen, buffers, x)
                for name in names:
                    stack.buffers[name][torch.tensor(together, device=self.device)] = buffers[name]
        finally:
            for layer, momentum in zip(layers.values(), momenta, strict=True):
                layer.momentum = momentum

    def _forwards(self, params: Params, frozen: Params, buffers: Params, x: Rows) -> tuple[Tensor, Params]:
        """Returns k models' outputs, each on its own rows, and their buffers after the pass."""
        passed: tuple[Tensor, Params] = self.lift(partial(forward, self.stack.module))(params, frozen, buffers, x)
        return passed

    def _states_from(self, proposal: Proposal, candidate: TaskStack, donors: Donors) -> list[State]:
        """The methods' states of a candidate.

        What goes with a parameter (see `parameter_of`) takes the same copy, mixture or mask; what is a task's own
        stays; the rest comes whole from the donor with the largest weight; a restart has fresh ones. On a return to the
        best snapshot only what goes with a parameter is fresh, or what is finite no more: counts go on.
        """
        states: list[State] = []
        for i, state in enumerate(self.states):
            new = {}
            for name, value in state.items():
                parameter = parameter_of(name, value, self.stack.params)
                moved = value
                if parameter is not None:
                    moved = donors.after(f"method{i}/{name}", parameter, value)
                elif not name.startswith(OWN):
                    moved = donors.origins(f"method{i}/{name}", value)
                new[name] = moved.clone() if moved is value else moved  # what comes of it may be turned down
            states.append(new)
        restarts = [change for change in proposal.changes if isinstance(change, Restart)]
        going_on = torch.stack([change.tasks & change.best for change in restarts] or [proposal.restarted]).any(0)
        for t in proposal.restarted.nonzero().flatten().tolist():
            for state, fresh in zip(states, self._start_of(t, candidate), strict=True):
                for name, value in fresh.items():
                    own = state[name]
                    apart = parameter_of(name, own, self.stack.params) is None and bool(own[t].isfinite().all())
                    if not (going_on[t] and apart):
                        own[t] = value
        return states

    # -- state ----------------------------------------------------------------------------------------------------

    def export(self, task: int) -> nn.Module:
        best = self.best
        for i, method in self.chain.at("export"):
            best = dataclasses.replace(best, params=self.lift(method.export)(best.params, self.best_states[i]))
        module = export_module(best, task)
        for i, method in self.chain.at("rebuild"):
            state = {name: value.cpu() for name, value in _task(self.best_states[i], task).items()}
            with random.seeded(torch.device("cpu"), self.job.seed, "rebuild", i):
                rebuilt = method.rebuild(copy.deepcopy(module), state)
            module = self._checked(task, module, rebuilt)
        return module

    def _checked(self, task: int, module: nn.Module, rebuilt: nn.Module) -> nn.Module:
        """A rebuilt module, once it is known to give on training rows what was scored."""
        rows = self._context(task, 0, self.stack).rows[: self._evaluation_rows]
        x = self.inputs.rows(rows.to(self.device))
        given = tuple(part.cpu() for part in x) if isinstance(x, tuple) else (x.cpu(),)
        with torch.no_grad(), random.seeded(torch.device("cpu"), self.job.seed, "evaluate"):
            before, after = (_two_axes(one.eval()(*given)) for one in (module, rebuilt))
        most = _REBUILT * float(before.abs().max())
        if before.shape != after.shape or not torch.allclose(before, after, rtol=0.0, atol=most):
            raise RunError(
                f"methods: the module that was rebuilt for task {self._first + task} does not give what was scored; "
                "correct the method's rebuild."
            )
        return rebuilt

    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        params = (self.best if best else self.stack).params
        norms = [value.detach().reshape(self.job.tasks, -1).norm(dim=1) for value in params.values()]
        whole: Tensor = torch.stack(norms).norm(dim=0)
        return whole.cpu()

    def close(self) -> None:
        self._stop_reading()
        self._drop_captures()

    def discard(self) -> None:
        """Closes the engine for good, and has its memory free at once: it refers to itself, so that it would linger."""
        self.close()
        vars(self).clear()
        give_back()  # else worker processes would inherit it

    def method_states(self) -> list[State]:
        return [dict(detached(state)) for state in self.states]

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        return self.updater.options()

    def visits(self) -> int:
        return self._visits

    def verdicts(self) -> dict[str, bool]:
        """Returns whether steps, and passes that look, are recorded, as far as is known."""
        # Where joint looks are not meant, such as by another engine, nothing is known of them.
        jointly = self._joint_looker.possible or not self._meant_jointly
        return {
            "recordable": self._recorder.possible,
            "lookable": self._looker.possible,
            "jointly_lookable": jointly,
        }

    def judge(self, verdicts: dict[str, Any]) -> None:
        """Takes over what was found to be impossible."""
        self._recorder.possible &= verdicts["recordable"]
        self._looker.possible &= verdicts.get("lookable", True)  # older checkpoints do not say
        self._joint_looker.possible &= verdicts.get("jointly_lookable", True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        moments, others = self.updater.state()
        parts = {
            "params": self.stack.params,
            "buffers": self.stack.buffers,
            "best_params": self.best.params,
            "best_buffers": self.best.buffers,
            "centre": self.centre,
            "optimizer": moments,
            **{f"method{i}": state for i, state in enumerate(self.states)},
            **{f"best_method{i}": state for i, state in enumerate(self.best_states)},
        }
        values: dict[str, Any] = {"optimizers": others, "visits": self._visits, "temperature": None}
        values |= self.verdicts()
        values["channels_last"] = self.job.channels_last  # chosen with the engine, and kept
        values["together"] = self.fewer()  # likewise
        values["threads"] = self.threads  # sums are taken in another order by another number
        values["frozen"] = self._frozen_digest()
        if self.lesson is not None:
            fields = ("targets", "weight", "teachers", "unlabelled")
            parts["lesson"] = {name: getattr(self.lesson, name) for name in fields}
            values["temperature"] = self.lesson.temperature
        tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
        return detached(tensors), values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["frozen"] != self._frozen_digest():
            raise InputError("resume: the model's frozen parameters have changed since the run began; give the same.")
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = value
        self.seen.forget()
        self.seen.forget_best()
        everyone = torch.arange(self.job.tasks, device=self.device)
        for part, mine in (
            ("params", self.stack.params),
            ("buffers", self.stack.buffers),
            ("best_params", self.best.params),
            ("best_buffers", self.best.buffers),
        ):
            self._write(mine, parts.get(part, {}), everyone)
        for prefix, states in (("method", self.states), ("best_method", self.best_states)):
            for i, mine in enumerate(states):
                self._write(mine, parts.get(f"{prefix}{i}", {}), everyone)
        self.updater.restore(parts.get("optimizer", {}), values["optimizers"])
        self._visits, self.threads = values["visits"], values["threads"]
        self.take_fewer(values.get("together", []))  # older checkpoints do not say
        self.judge(values)
        self.centre = {name: value.to(self.device) for name, value in parts.get("centre", {}).items()}
        if values["temperature"] is None:
            self.forget_lesson()
        else:
            self.learn(Teach(temperature=values["temperature"], **parts["lesson"]))

    # -- small parts ----------------------------------------------------------------------------------------------

    def _start_methods(self) -> list[State]:
        rows = [self._start_of(t, self.stack) for t in range(self.job.tasks)]
        return [{name: torch.stack([row[i][name] for row in rows]) for name in rows[0][i]} for i in range(len(rows[0]))]

    def _start_of(self, t: int, stack: TaskStack) -> list[State]:
        """The methods' states of one task before its first step."""
        states: list[State] = []
        for i, method in enumerate(self.job.methods):
            if not overrides(method, "start"):
                states.append({})
                continue
            context = self._context(t, i, stack)
            with random.seeded(self.device, self.job.seed, "start method", self._first + t, i):
                states.append(check_state(method, method.start(_copied(_task(stack.params, t)), context)))
        return states

    def _context(self, t: int, i: int, stack: TaskStack) -> Context:
        """What method i may know of a task before it trains."""
        job, rows = self.job, self.job.train[t].nonzero().flatten()
        params, frozen, buffers = (_task(detached(part), t) for part in (stack.params, stack.frozen, stack.buffers))

        def read(index: Int64[Tensor, " m"]) -> Batch:
            index = index.to(self.device)
            weight = None if self.weights is None else self.weights[index]
            return Batch(self.inputs.rows(index), self.targets[index], index, job.objective.classes, weight=weight)

        return Context(
            model=Model(self.stack.module, self._forward, params, frozen, Passed(buffers)),
            rows=rows.to(self.device),
            count=len(self.inputs),
            read=read,
            loss=job.objective.training_loss,
            classes=job.objective.classes,
            periods=job.periods,
            steps=steps_in(len(rows), job.batch_size),
            batch_size=job.batch_size,
            key=random.key(job.seed, "start method", self._first + t, i).to(self.device),
        )

    def _frozen_digest(self) -> str:
        """A hash of what all tasks share and no checkpoint holds."""
        digest = hashlib.sha256()
        for name, value in self.stack.frozen.items():
            digest.update(name.encode())
            digest.update(value[:1].contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def learn(self, lesson: Teach) -> None:
        """Goes on with a lesson for the engine's tasks."""
        new = dataclasses.replace(
            lesson,
            targets=lesson.targets.to(self.device, self.dtype),
            weight=lesson.weight.to(self.device),
            unlabelled=lesson.unlabelled.to(self.device),
        )
        self.lesson = new if self._captures is None else self._in_place(new)
        self._unlabelled = lesson.unlabelled.cpu()
        self._partly_labelled = bool(self._unlabelled.any())
        self._rows_of = None  # the lesson has a say in which rows are visited
        self._stop_reading()

    def forget_lesson(self) -> None:
        """Goes on without the lesson that a plan gave."""
        self.lesson = self._unlabelled = None
        self._partly_labelled = False
        self._rows_of = None
        self._stop_reading()
        self._drop_captures()

    def _in_place(self, lesson: Teach) -> Teach:
        """A lesson in memory of the engine's own, which is the last one's if it fits: graphs read it there."""
        parts = {name: getattr(lesson, name) for name in ("targets", "weight", "unlabelled")}
        last = self.lesson
        if last is not None and all(_alike(getattr(last, name), part) for name, part in parts.items()):
            return dataclasses.replace(
                lesson, **{name: getattr(last, name).copy_(part) for name, part in parts.items()}
            )
        self._drop_captures()
        return dataclasses.replace(lesson, **{name: part.clone() for name, part in parts.items()})

    def _captures_on(self, make: MakeGraph, beside: bool = False) -> Captures:
        return Captures(make, self.device, lambda: self._recorder.possible, beside, lambda: self.returns)

    def _drop_captures(self) -> None:
        if self._captures is not None:
            self._captures.drop()

    def _temperature(self) -> float:
        """What the lesson's targets were softened by: the one thing besides tensors that a step depends on."""
        return 1.0 if self.lesson is None else self.lesson.temperature

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16")

    def _write(self, mine: Params, new: Params, which: Int64[Tensor, " k"]) -> None:
        with torch.no_grad():
            for name, value in new.items():
                own = mine[name]  # copied first: what a stage hands back untouched is the very memory written to
                own[which.to(self.device)] = value.to(self.device, own.dtype, copy=True)

    def probe(self) -> bool:
        """Takes one scoring and one training step, and keeps nothing of them.

        Returns:
            Whether the training step draws from torch's global generators.

        Raises:
            InputError: the model's output has the wrong width.
            Exception: whatever the model, its loss or its methods raise when they are run this way.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*performance drop.*")  # vmap's slow fallback
            order = self._orders(period=1)
            size = min(self.job.batch_size, *(len(rows) for rows in order))
            index = torch.stack([rows[:size] for rows in order]).to(self.device)
            with self._evaluating():
                outputs = self._outputs(self.stack, self.inputs.rows(index), shared=False)
                self._outputs(self.stack, self.inputs.rows(index[0]), shared=True)
            objective = self.job.objective
            if outputs.shape[2:] != (objective.outputs,):
                what = "classes" if objective.kind == "classification" else "targets"
                raise InputError(
                    f"model: it gives {outputs.shape[2]} numbers a row, and the data has {objective.outputs} {what}; "
                    f"make its last layer {objective.outputs} wide."
                )
            try:
                self.job.score(outputs[0].cpu(), index[0].cpu())
            except Exception as error:
                name, why = objective.metric.name, " ".join(str(error).split())
                raise InputError(f"metric: {name} or the loss fails on the model's outputs ({why}).") from error
            self.stack.module.train()
            grads, draws = self._fitting(self._probed_step, index)
            if self.job.methods:
                self._probe_methods(grads)
        return draws

    def _probe_methods(self, grads: Params) -> None:
        params, score = self.stack.clone().params, torch.zeros(self.job.tasks, 2, dtype=self.dtype)
        for method, state in zip(self.job.methods, self.states, strict=True):
            grads, state = self.lift(method.before_step)(params, grads, state)
            params, state = self.lift(method.update)(params, params, state)
            params, state = self.lift(method.after_step)(params, state)
            params, state = self.lift(method.period_end)(params, state, score.to(self.device))
            params, state = self.lift(method.after_transfer)(params, state)
            self.lift(method.export)(self.lift(method.evaluation)(params, state), state)
        if self.chain.has("weights"):
            self.lift(self.chain.weights)(params, self.states)

    def _probed_step(self, index: Int64[Tensor, "T B"]) -> tuple[Params, bool]:
        """Returns (all tasks' gradients on a batch of each, whether the global generators were drawn from).

        As many tasks go at once as may. What some have no gradient of, as where a block of a network is left out by
        chance, is left out.
        """
        parts, draws = [], False
        for lane in self._lanes():
            some = Some(lane, self.stack)
            batch, states = self._batch(some.which, some.of(index)), self._states_of(some)
            with random.seeded(self.device, self.job.seed, "probe"):
                generators = random.states(self.device)
                _, grads, _ = self._value_and_grads(some.stack(), batch, states, some.of(self._keys), record=False)
                draws = draws or not all(map(torch.equal, generators, random.states(self.device)))
            parts.append(grads if self.job.methods else {})  # which alone are asked about them
        common = [name for name in parts[0] if all(name in grads for grads in parts)]
        return {name: torch.cat([grads[name] for grads in parts]) for name in common}, draws


def example_rows(job: Job) -> Rows:
    """Returns rows by which lazy layers get their shapes."""
    return job.inputs.rows(job.train[0].nonzero().flatten()[:2])


def widest_of_linear(job: Job, model: nn.Module) -> int | None:
    """Returns the width of the widest layer of a network of linear layers over whole rows, None of another.

    On a CPU such a network's passes that look are so short that their beginnings count; others' results leave caches.

    Args:
        job: whose rows they are.
        model: with the shapes that its parameters have.
    """
    own = [layer for layer in model.modules() if any(True for _ in layer.parameters(recurse=False))]
    linear = [layer for layer in own if isinstance(layer, nn.Linear)]
    plain = bool(linear) and all(isinstance(layer, (nn.Linear, _BatchNorm, nn.LayerNorm)) for layer in own)
    if job.device.type != "cpu" or not plain or not isinstance(job.inputs, TensorInputs):
        return None
    if linear[0].in_features != job.inputs.values[0].numel():  # it sees a part of a row, such as a step of a series
        return None
    return max(max(layer.in_features, layer.out_features) for layer in linear)


def start_stack(job: Job, generation: int = 0, first: int = 0, apart: bool = False) -> TaskStack:
    """Returns the tasks' models before training.

    Args:
        job: of these tasks.
        generation: raised to draw new starts of the same tasks.
        first: number of the job's first task, where it has a share of more tasks.
        apart: see `stack_models`.
    """
    example = example_rows(job)

    def starts() -> Iterator[nn.Module]:
        for t, start in enumerate(
            build_starts(job.model, job.tasks, job.shared_start, job.seed, generation, first), first
        ):
            materialise(start, example, job.seed, 0 if job.shared_start else t)
            yield start

    stack = stack_models(starts(), job.tasks, job.device, job.dtype, apart)
    return stack.channels_last() if job.channels_last else stack


@dataclass(frozen=True)
class Group:
    """Tasks that step together over a stretch of a period.

    Attributes:
        tasks: k of them.
        size: rows in each batch.
        first: first step.
        last: step before which the stretch ends.
        end: steps that the tasks take in the period, where the stretch reaches that.
        accumulate: batches whose mean gradient makes one optimizer step.
        long: whether these tasks go together for so many steps of a period that recording theirs pays.
    """

    tasks: list[int]
    size: int
    first: int
    last: int
    end: int
    accumulate: int
    long: bool

    def updates(self, step: int) -> bool:
        """Whether the optimizer steps after this batch: the last of `accumulate`, or of the period."""
        return (step + 1) % self.accumulate == 0 or step + 1 == self.end


def _groups(
    lane: list[int], lengths: Sequence[int], batch_size: int, accumulate: int, segment: Segment
) -> Iterator[Group]:
    """Yields the stretches of a segment in which the same tasks of a lane step together, in order.

    Batches of one group are of one size. Tasks that go together also step together, so they stay the same from one
    update to the next.
    """
    counts = {t: steps_in(lengths[t], batch_size) for t in lane}
    most = max(counts.values())
    first, last = segment.first, most if segment.last is None else min(segment.last, most)
    if first >= last:  # these tasks have ended, others go on
        return
    # Where tasks part: at the end of each one's period, and where its last, shorter accumulation begins.
    ends = sorted({0, *counts.values(), *(count - count % accumulate for count in counts.values())})
    places = sorted({first, last, *(place for place in ends if first < place < last)})
    for begin, end in itertools.pairwise(places):
        after = bisect.bisect_right(ends, begin)
        long = _STRETCHES * (ends[after] - ends[after - 1]) >= most
        full = (begin // accumulate + 1) * accumulate
        kinds: dict[tuple[int, int], list[int]] = {}
        for t in lane:
            if begin < counts[t]:
                kinds.setdefault((min(batch_size, lengths[t]), min(full, counts[t])), []).append(t)
        for (size, _), tasks in kinds.items():
            yield Group(tasks, size, begin, end, min(counts[t] for t in tasks), accumulate, long)


def take_turns(going: Sequence[Generator[None, None, Result]]) -> list[Result]:
    """Returns what each of several generators returns; they go on in turns, from one stop to the next."""
    results: dict[int, Result] = {}
    try:
        while len(results) < len(going):
            for i, one in enumerate(going):
                if i not in results:
                    try:
                        next(one)
                    except StopIteration as end:
                        results[i] = end.value
    finally:
        for one in going:
            one.close()
    return [results[i] for i in range(len(going))]


def going_back(engines: Sequence[LocalEngine], period: int, trained: Callable[[], Result]) -> Result:
    """Returns what training gives. Where memory runs out in a first period, all engines go back to where they are now.

    Those with most tasks at once shrink: of several, it is not said which one has run out of memory. So what is
    trained is what it would have been with fewer tasks at once from here on.

    Raises:
        RunError: it runs out with one task at a time.
    """
    early = [engine.may_go_back(period) for engine in engines]  # each is told of the period
    returns = any(early) and sum(engine.kept_bytes() for engine in engines) <= free_bytes()
    for engine in engines:
        engine.returns = returns
    if not returns:
        return trained()
    kept = [engine.kept() for engine in engines]
    while True:
        try:
            return trained()
        except torch.OutOfMemoryError as error:
            problem = one_line(error)  # and not the error, whose trace holds what was taken
        _free_what_failed([engine.device for engine in engines])
        for back in kept:
            back()
        most = max(engine.together for engine in engines)
        for engine in engines:
            if engine.together == most:
                engine.shrink(problem)


@contextmanager
def discarded(engine: SomeEngine) -> Iterator[SomeEngine]:
    """Gives an engine that is of no use afterwards (see `LocalEngine.discard`)."""
    try:
        yield engine
    finally:
        engine.discard()


def _free_what_failed(devices: Sequence[torch.device]) -> None:
    """Has the memory free that a step had taken for which it did not do: what failed may refer to itself."""
    gc.collect()
    if any(device.type == "cuda" for device in devices):
        torch.cuda.empty_cache()  # of all of them


def _on_host(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    return value.detach().to("cpu", copy=True)


def mean_losses(total: Float[Tensor, " k"], counts: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Returns each task's mean loss over its batches, on the host, which waits for it."""
    return total.cpu() / counts.clamp_min(1)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)


def _in_turns(groups: Sequence[Group]) -> Iterator[tuple[Group, int]]:
    """Yields (group, step): all groups take a step before any takes the next."""
    for step in range(
        min((group.first for group in groups), default=0), max((group.last for group in groups), default=0)
    ):
        for group in groups:
            if group.first <= step < group.last:
                yield group, step


def _task(tensors: Params, t: int) -> Params:
    """One task's."""
    return {name: value[t] for name, value in tensors.items()}


def _copied(tensors: Params) -> Params:
    return {name: value.detach().clone() for name, value in tensors.items()}


def parameter_of(name: str, state: Tensor, params: Params) -> str | None:
    """Returns the parameter that a method's state goes with, or None.

    It is named `…/<parameter>` and shaped like that parameter: an average, say. What is a task's own goes with none.
    """
    if name.startswith(OWN):
        return None
    parameter = name.partition("/")[2]
    return parameter if parameter in params and state.shape == params[parameter].shape else None


def _followed(donors: Donors, learn: Bool[Tensor, " T"], name: str, slot: str, moments: Tensor) -> Tensor:
    mine = learn.to(moments.device).view(-1, *[1] * (moments.ndim - 1))
    return torch.where(mine, donors.after(f"moments/{name}/{slot}", name, moments), moments)


def _cycled(rows: list[Int64[Tensor, " _"]], length: int) -> Int64[Tensor, "k length"]:
    """Rows of each of several, repeated in their order until there are so many."""
    return torch.stack([own[torch.arange(length) % len(own)] for own in rows])


def _at(x: Rows, index: Int64[Tensor, " m"]) -> Rows:
    """A copy of some of the rows: a model may write to what it is given."""
    return tuple(part[index] for part in x) if isinstance(x, tuple) else x[index]


def _two_axes(output: Tensor) -> Float[Tensor, "B C"]:
    if output.ndim == 1:  # a regression model that gives [B]
        return output[:, None]
    if output.ndim != 2:
        raise InputError(f"model: its output has shape {tuple(output.shape)}, it must be [batch, outputs].")
    return output
