"""After the loop: score every candidate on every validation set, pick one, estimate it on the sealed rows, once.

Legend: T tasks, K candidates, N rows, n some of them, C classes or outputs.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from kinfold.candidates import Candidate, Finished, Kind
from kinfold.checkpoint import Checkpoints
from kinfold.data.base import Dataset, Encoder, Label
from kinfold.diverging import hidden
from kinfold.engines import Engine, Job
from kinfold.methods.base import overrides
from kinfold.result import Contender, Result, Scores, Selected, Source, Target, Transfers, model_outputs
from kinfold.run import Event, Listener, Progress, open_losses, open_targets
from kinfold.selection import Diagnostics, Estimate, diagnose, estimate, exposed_share, overall, select
from kinfold.splits import Splits
from kinfold.student import Student, epochs_done, epochs_within, train_student
from kinfold.tasks.objective import Objective
from kinfold.tasks.update import MakeScheduler
from kinfold.transfer.base import Lesson, Rule, View


@dataclass(frozen=True)
class Remaining:
    """What is to come besides training the tasks.

    Attributes:
        rule: the transfer rule, which may want a student.
        candidates: what else may be handed back; their trackers are the last of the job's methods, in this order.
        epochs: a task's part of the whole budget, in periods.
        stages: numbers of the periods at which the tasks' stages end.
        scheduler: makes the schedule of a training of so many epochs, or None.
    """

    rule: Rule
    candidates: tuple[Candidate, ...]
    epochs: int
    stages: tuple[int, ...]
    scheduler: Callable[[int], MakeScheduler | None]


def finish(
    engine: Engine,
    job: Job,
    progress: Progress,
    splits: Splits,
    dataset: Dataset,
    encoder: Encoder,
    *,
    remaining: Remaining,
    lesson: Lesson | None,
    checkpoints: Checkpoints | None,
    config: dict[str, Any],
    history: Sequence[Event],
    listen: Listener,
    stopped: str,
) -> Result:
    """Trains the student if there is to be one, scores every candidate, picks one, and estimates it.

    `lesson` is the student's, or None where there is to be none; `checkpoints` are its own, or None. Of wall-clock time
    the result has only what was spent on the student before the run was resumed: the rest is the caller's to add.
    """
    criterion = str(config["criterion"])
    unsealed = torch.from_numpy(~splits.sealed)
    matrix, losses = _score_matrix(engine, job)
    picks = [
        _Pick("task", "task", (t,), None, progress.best_exposed[t], matrix[t], losses[t]) for t in range(job.tasks)
    ]
    picks += _built(engine, job, progress, remaining.candidates, unsealed, criterion)
    metrics, all_losses = (torch.stack([getattr(pick, name) for pick in picks]) for name in ("metric", "loss"))
    pick = picks[select(metrics, all_losses, criterion, job.better)]
    scores = overall(metrics, criterion).tolist()
    student = None
    if lesson is not None:
        student = _student(engine, job, progress, remaining, lesson, unsealed, listen, checkpoints)
    if student is not None:
        # Handed back whatever the others score: it has seen every unsealed row, so none is left to compare it on.
        exposed = unsealed | progress.best_exposed.any(0)
        members = () if lesson is None or lesson.targets is None else tuple(range(job.tasks))
        pick = _Pick("distilled", "distilled", members, student.model, exposed, *_scores_of(student.model, job))
        picks.append(pick)
        # Its rank among the others would say nothing, and would be theirs to share.
        scores.append(math.nan if criterion == "rank" else float(overall(pick.metric[None], criterion)[0]))
    metric = job.objective.metric
    shown = matrix if metric.higher_is_better else -matrix
    model = engine.export(pick.members[0]) if pick.model is None else pick.model
    visits = engine.visits() + (0 if student is None else student.visits)
    train_seconds = progress.train_seconds + (0.0 if student is None else student.seconds)
    contenders = tuple(
        Contender(
            one.kind,
            one.name,
            one.members,
            -score if criterion == "rank" else metric.oriented(score),
            float(one.exposed[unsealed].double().mean()),
        )
        for one, score in zip(picks, scores, strict=True)
    )
    found, diagnostics = _judged(model, pick, job, splits, dataset, progress.data)
    return Result(
        model=model,
        selected=Selected(
            pick.kind,
            pick.members[0] if pick.kind in ("task", "average") else None,
            criterion,
            contenders[picks.index(pick)].score,
        ),
        contenders=contenders,
        scores=Scores(
            metric=metric.name,
            matrix=shown,
            loss_matrix=losses,
            own=shown.diagonal().clone(),
            exposed=exposed_share(progress.best_exposed, job.validation),
        ),
        estimate=found,
        transfers=Transfers(progress.proposed, progress.accepted, progress.by_pair, progress.health.rescues),
        history=history,
        cost={
            "wall_seconds": 0.0 if student is None else student.earlier_seconds,
            "train_seconds": train_seconds,
            "transfer_seconds": progress.transfer_seconds,
            "sample_visits": visits,
            "samples_per_second": visits / train_seconds if train_seconds else 0.0,
            "peak_memory_bytes": _peak_memory(job.device),
        },
        config=config,
        splits=splits,
        encoder=encoder,
        target=Target(dataset.target.kind, dataset.target.outputs, dataset.target.labels, dataset.target.name),
        engine=engine.name,
        device=str(engine.trained_on() or job.device),
        epochs_run=progress.period,
        stopped=stopped,
        source=Source(dataset.name, len(splits), int(splits.sealed.sum()), progress.data),
        diagnostics=diagnostics,
        rebuilt=any(overrides(method, "rebuild") for method in job.methods),
    )


@dataclass(frozen=True, eq=False)
class _Pick:
    """One model that may be handed back; `model` is None for a task's, which is exported only if picked."""

    kind: Kind
    name: str
    members: tuple[int, ...]
    model: nn.Module | None
    exposed: Bool[Tensor, " N"]
    metric: Float[Tensor, " T"]
    loss: Float[Tensor, " T"]


def _built(
    engine: Engine,
    job: Job,
    progress: Progress,
    candidates: tuple[Candidate, ...],
    unsealed: Bool[Tensor, " N"],
    criterion: str,
) -> list[_Pick]:
    """The soups and averages that were asked for, scored like the tasks' own models."""
    if not candidates:
        return []
    # A rank is one among others: for a model by itself, the mean stands in for it.
    alone = "mean" if criterion == "rank" else criterion

    def decisive(model: nn.Module) -> float:
        metric, loss = _scores_of(model, job)
        return float(overall((metric if job.better == "metric" else -loss)[None], alone)[0])

    members = tuple(engine.export(t) for t in range(job.tasks))
    finished = Finished(job, progress, unsealed, members, decisive)
    states = engine.method_states()
    tracking = [candidate for candidate in candidates if candidate.tracker(1) is not None]
    watched = dict(zip(tracking, states[len(states) - len(tracking) :], strict=True))
    return [
        _Pick(made.kind, candidate.name, made.members, made.model, made.exposed, *_scores_of(made.model, job))
        for candidate in candidates
        for made in candidate.build(finished, watched.get(candidate, {}))
    ]


def ask_for_lesson(
    engine: Engine, job: Job, progress: Progress, remaining: Remaining, unsealed: Bool[Tensor, " N"], last: bool
) -> Lesson | None:
    """Returns what the rule would teach a student at the end of a stage; None where it wants none yet, or never."""
    rule = remaining.rule
    if not rule.student or job.tasks == 1 or progress.period == remaining.epochs:
        return None
    never = progress.best.isnan().any(1)  # their snapshots are still as they started
    view = View(
        period=progress.period,
        epochs=progress.period,
        metric=progress.best[:, 0],
        loss=progress.best[:, 1],
        train_loss=torch.full_like(progress.best[:, 0], math.nan),
        sound=engine.sound(best=True) & ~never,
        improved=torch.zeros(job.tasks, dtype=torch.bool),
        validation=job.validation,
        exposed=progress.best_exposed,
        unsealed=unsealed,
        targets=open_targets(job, unsealed),
        options=engine.options(),
        classes=job.objective.classes,
        predict=hidden(partial(engine.predict, best=True), never) if "predictions" in rule.needs else None,
        losses=hidden(partial(open_losses, partial(engine.losses, best=True), unsealed), never)
        if "losses" in rule.needs
        else None,
    )
    return rule.graduate(view, progress.rule, last)


def _student(
    engine: Engine,
    job: Job,
    progress: Progress,
    remaining: Remaining,
    lesson: Lesson,
    unsealed: Bool[Tensor, " N"],
    listen: Listener,
    checkpoints: Checkpoints | None,
) -> Student:
    """The model trained on all unsealed rows with what the tasks left of the budget."""
    if lesson.note is not None and not epochs_done(checkpoints):
        listen({"event": "note", "period": progress.period + 1, "message": lesson.note})
    visits = engine.visits() // progress.period * (remaining.epochs - progress.period)
    epochs = epochs_within(visits, int(unsealed.sum()), job.batch_size)
    return train_student(
        job,
        unsealed,
        epochs=epochs,
        scheduler=remaining.scheduler(epochs),
        targets=lesson.targets,
        after=progress.period,
        listen=listen,
        checkpoints=checkpoints,
    )


def _scores_of(model: nn.Module, job: Job) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """One model's (metric, oriented so that higher is better; loss) on every validation set."""
    rows = job.validation.any(0).nonzero().flatten()
    outputs = model_outputs(model.to(job.device), job.inputs, rows)
    model.cpu()
    metric, loss = _on_all_sets(outputs[None], rows, job)
    return metric[0], loss[0]


def _score_matrix(engine: Engine, job: Job) -> tuple[Float[Tensor, "T T"], Float[Tensor, "T T"]]:
    """Every task's best snapshot on every validation set."""
    rows = job.validation.any(0).nonzero().flatten()
    return _on_all_sets(engine.predict(rows, best=True), rows, job)


def _on_all_sets(
    outputs: Float[Tensor, "K m C"], rows: Int64[Tensor, " m"], job: Job
) -> tuple[Float[Tensor, "K T"], Float[Tensor, "K T"]]:
    """Returns (metric, oriented so that higher is better; loss) of outputs k on validation set j."""
    sets = [validation[rows] for validation in job.validation]
    own = [rows[mine] for mine in sets]
    pairs = torch.stack([job.scores([output[mine] for mine in sets], own) for output in outputs])
    return pairs[..., 0], pairs[..., 1]


def _judged(
    model: nn.Module, pick: _Pick, job: Job, splits: Splits, dataset: Dataset, data: str
) -> tuple[Estimate | None, Diagnostics]:
    """The estimate on the sealed rows, and what is behind it; without them, what the validation rows can tell."""
    sealed = torch.from_numpy(splits.sealed)
    clean = bool(sealed.any())
    own = job.validation[pick.members[0]] if pick.kind in ("task", "average") else job.validation.any(0)
    rows = (sealed if clean else own).nonzero().flatten()
    outputs, targets, labels = model_outputs(model, job.inputs, rows), job.targets[rows], dataset.target.labels
    seen = float(pick.exposed[rows].double().mean())
    source: Literal["sealed", "validation"] = "sealed" if clean else "validation"
    diagnostics = diagnose(outputs, targets, rows, source=source, seen=seen, data=data, labels=labels)
    if not clean:
        return None, diagnostics
    return replace(measure(job.objective, outputs, targets, labels=labels, seed=job.seed), clean=not seen), diagnostics


def measure(
    objective: Objective,
    outputs: Float[Tensor, "n C"],
    targets: Shaped[Tensor, "n *K"],
    *,
    labels: Sequence[Label] | None,
    seed: int,
) -> Estimate:
    """Returns a model's metric on rows that are new to it, with an interval, the loss and figures a class.

    Args:
        objective: the run's loss and metric.
        outputs: what the model gives for the rows.
        targets: class numbers, or values.
        labels: class c as the user wrote it; None for regression.
        seed: of the bootstrap.
    """

    def metric(outputs: Tensor, targets: Tensor) -> float:
        return objective.metric.oriented(objective.score(outputs, targets)[0])

    return estimate(
        objective.metric.name,
        metric,
        outputs,
        targets,
        seed=seed,
        is_accuracy=objective.metric.accuracy,
        loss_fn=lambda outputs, targets: objective.score(outputs, targets)[1],
        labels=labels,
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
