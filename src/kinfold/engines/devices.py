"""Several GPUs of one machine, each with a share of the tasks.

One thread tells all of them what to do: a GPU does not wait for the step that it was told last, so the host goes on to
the next one, and captured steps (see `kinfold.engines.captured`) take it little time. Threads would contend for Python,
and for the global random generators, which are seeded around every step. Each GPU holds its tasks' models and a copy
of the rows; the first one also holds room for the models of all, in which plans are carried out.

Legend: T tasks, k those of one device, m rows asked for, C classes or outputs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kinfold.engines.base import Job
from kinfold.engines.local import LocalEngine, going_back, mean_losses, take_turns
from kinfold.engines.sharing import Sharing, joined, joined_options, optimizers_of, share_of, take_optimizers
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import InputError
from kinfold.methods.base import Params
from kinfold.tasks.order import Segment
from kinfold.tasks.update import MakeScheduler, in_step


@final
class Devices(Sharing):
    """Every device trains a share of the tasks.

    Args:
        job: what to train; its own device does not count where others are given.
        devices: which; default all GPUs that this process may use. Never more than T.
        kind: the engine that runs on each.

    Raises:
        InputError: the job's device is no GPU, and no others are given; or none are.
    """

    name = "devices"

    def __init__(self, job: Job, devices: Sequence[torch.device] | None = None, kind: type[LocalEngine] = Vectorised):
        devices = _devices(job) if devices is None else devices
        if not devices:
            raise InputError("engine: no devices are given; give one or more.")
        job = job.on(devices[0])
        whole = kind(job)
        whole.updater.unfuse()  # the shares may be at different points
        super().__init__(job, kind, whole, len(devices))
        self._engines = [self._engine(tasks, device) for tasks, device in zip(self._shares, devices, strict=False)]

    # -- what each share is asked ---------------------------------------------------------------------------------

    def steps(self, period: int) -> Int64[Tensor, " T"]:
        return torch.cat(self._on_shares(LocalEngine.steps, period))

    def snapshot(self, tasks: Bool[Tensor, " T"]) -> None:
        self._tell(LocalEngine.snapshot, [(tasks[own],) for own in self._shares])

    def export(self, task: int) -> nn.Module:
        (share,) = [i for i, tasks in enumerate(self._shares) if tasks.start <= task < tasks.stop]
        return self._engines[share].export(task - self._shares[share].start)

    def norms(self, best: bool = False) -> Float[Tensor, " T"]:
        return torch.cat(self._on_shares(LocalEngine.norms, best))

    def method_states(self) -> list[dict[str, Tensor]]:
        found = zip(*self._on_shares(LocalEngine.method_states), strict=True)
        return [{name: torch.cat([own[name].cpu() for own in states]) for name in states[0]} for states in found]

    def options(self) -> dict[str, Float[Tensor, " T"]]:
        return joined_options(self._on_shares(LocalEngine.options))

    def end_period(self, scores: Float[Tensor, "T 2"]) -> None:
        self._tell(LocalEngine.end_period, [(scores[tasks],) for tasks in self._shares])

    def reschedule(self, scheduler: MakeScheduler | None) -> None:
        self._job = dataclasses.replace(self._job, scheduler=scheduler)
        self._whole.reschedule(scheduler)
        self._on_shares(LocalEngine.reschedule, scheduler)

    # -- everything at once ---------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        for models in (_models, _snapshots):
            self._copy(models, here=True)
        self._fetch()
        tensors, values = self._whole.state()
        self._whole.updater.restore({}, values["optimizers"])
        for engine, tasks in zip(self._engines, self._shares, strict=True):
            for own in values["optimizers"][tasks]:
                own["fused"] = engine.updater.fused  # so that a run that is resumed goes on with the same sums
        fewer = [count for engine in self._engines for count in engine.fewer()]
        return tensors, {**values, "visits": self._visits, "together": fewer}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._whole.restore(tensors, values)
        for engine, tasks in zip(self._engines, self._shares, strict=True):
            engine.take_fewer(values.get("together", [])[tasks])  # older checkpoints do not say
        self._visits = self._whole.visits()
        for models in (_models, _snapshots):
            self._copy(models, here=False)
        optimizers, own = self._whole.updater.state()
        for now, saved in zip(own, values["optimizers"], strict=True):
            now["fused"] = saved["fused"]
        self._give(optimizers, own)
        if self._whole.lesson is None:
            self._on_shares(LocalEngine.forget_lesson)
        else:
            self._teach()

    def notes(self) -> list[str]:
        return list(dict.fromkeys(note for engine in (self._whole, *self._engines) for note in engine.notes()))

    def close(self) -> None:
        self._closed = True
        self._whole.close()
        for engine in self._engines:
            engine.close()

    # -- the devices ----------------------------------------------------------------------------------------------

    def _tell(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        with self._all_or_none():
            return [function(engine, *given) for engine, given in zip(self._engines, arguments, strict=True)]

    def _on_shares(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return self._tell(function, [arguments] * len(self._shares))

    def _trained(self, segment: Segment) -> list[tuple[Float[Tensor, " k"], int]]:
        before = [engine.visits() for engine in self._engines]

        def trained() -> list[Float[Tensor, " k"]]:
            done = take_turns([engine.advance(segment) for engine in self._engines])
            return [mean_losses(total, counts) for total, counts in done]

        with self._all_or_none():
            losses = going_back(self._engines, segment.period, trained)
        visits = [engine.visits() - earlier for engine, earlier in zip(self._engines, before, strict=True)]
        return list(zip(losses, visits, strict=True))

    def _scored(self) -> list[Float[Tensor, "k 2"]]:
        with self._all_or_none():
            return take_turns([engine.scoring() for engine in self._engines])  # no device waits for another

    @contextmanager
    def _models_here(self, best: bool) -> Iterator[None]:
        for models in (_models, _snapshots) if best else (_models,):
            self._copy(models, here=True)
        yield
        self._copy(_models, here=False)

    def _copy(self, models: "Callable[[LocalEngine], list[Params]]", here: bool) -> None:
        """Copies the shares' models to the engine that holds all, or back."""
        for engine, tasks in zip(self._engines, self._shares, strict=True):
            for all_of, own in zip(models(self._whole), models(engine), strict=True):
                for name, value in own.items():
                    mine = all_of[name][tasks]
                    if here:
                        mine.copy_(value, non_blocking=True)
                    else:
                        value.copy_(mine, non_blocking=True)

    def _fetch(self) -> None:
        self._whole.updater.restore(*joined(self._on_shares(optimizers_of), self._shares))

    def _hand_over(self) -> None:
        tensors, values = self._whole.updater.state()
        for engine, tasks in zip(self._engines, self._shares, strict=True):
            together = engine.updater.fused and in_step(*share_of(tensors, values, tasks))
            for own in values[tasks]:
                own["fused"] = together  # what a plan did not part goes on in one kernel
        self._give(tensors, values)

    def _give(self, tensors: dict[str, Tensor], values: list[dict[str, Any]]) -> None:
        self._tell(take_optimizers, [share_of(tensors, values, tasks) for tasks in self._shares])
        self._whole.updater.restore({}, values)

    def _engine(self, tasks: slice, device: torch.device) -> LocalEngine:
        whole = self._whole
        engine = self._kind(self._job_of(tasks).on(device), whole.stack.rows(tasks).on(device), tasks.start)
        engine.seen = whole.seen.tasks(tasks)  # on the host, and so common to both
        engine.in_turns = True
        return engine


def _models(engine: LocalEngine) -> list[Params]:
    return [engine.stack.params, engine.stack.buffers, *engine.states]


def _snapshots(engine: LocalEngine) -> list[Params]:
    return [engine.best.params, engine.best.buffers, *engine.best_states]


def _devices(job: Job) -> list[torch.device]:
    if job.device.type != "cuda":
        raise InputError(
            f"engine: devices shares out the tasks over GPUs, and device is {job.device}; give device cuda, "
            "or engine auto."
        )
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
