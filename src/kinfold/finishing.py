"""After the loop: score every best snapshot on every validation set, pick one, estimate it on the sealed rows, once.

Legend: T tasks, N rows, n some of them, C classes or outputs.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from kinfold.data.base import Dataset, Encoder, Label
from kinfold.engines import Engine, Job
from kinfold.result import Result, Scores, Selected, Target, Transfers, model_outputs
from kinfold.run import Event, Progress
from kinfold.selection import Estimate, estimate, exposed_share, overall, select
from kinfold.splits import Splits
from kinfold.tasks.objective import Objective


def finish(
    engine: Engine,
    job: Job,
    progress: Progress,
    splits: Splits,
    dataset: Dataset,
    encoder: Encoder,
    *,
    config: dict[str, Any],
    history: list[Event],
    stopped: str,
) -> Result:
    """Scores every best snapshot on every validation set, picks one, and estimates it on the sealed rows, once."""
    criterion = str(config["criterion"])
    matrix, losses = _score_matrix(engine, job)
    task = select(matrix, losses, criterion, job.better)
    metric = job.objective.metric
    shown = matrix if metric.higher_is_better else -matrix
    score = float(overall(matrix, criterion)[task])
    model = engine.export(task)
    visits = engine.visits()
    return Result(
        model=model,
        selected=Selected("task", task, criterion, -score if criterion == "rank" else metric.oriented(score)),
        scores=Scores(
            metric=metric.name,
            matrix=shown,
            loss_matrix=losses,
            own=shown.diagonal().clone(),
            exposed=exposed_share(progress.best_exposed, job.validation),
        ),
        estimate=_estimate(model, job, splits, dataset, progress.best_exposed[task]),
        transfers=Transfers(progress.proposed, progress.accepted, progress.by_pair),
        history=history,
        cost={
            "wall_seconds": progress.wall_seconds,
            "train_seconds": progress.train_seconds,
            "transfer_seconds": progress.transfer_seconds,
            "sample_visits": visits,
            "samples_per_second": visits / progress.train_seconds if progress.train_seconds else 0.0,
            "peak_memory_bytes": _peak_memory(job.device),
        },
        config=config,
        splits=splits,
        encoder=encoder,
        target=Target(dataset.target.kind, dataset.target.outputs, dataset.target.labels, dataset.target.name),
        engine=engine.name,
        device=str(job.device),
        epochs_run=progress.period,
        stopped=stopped,
    )


def _score_matrix(engine: Engine, job: Job) -> tuple[Float[Tensor, "T T"], Float[Tensor, "T T"]]:
    """Returns (metric, oriented so that higher is better; loss) of model t on validation set j."""
    rows = job.validation.any(0).nonzero().flatten()
    outputs = engine.predict(rows, best=True)
    matrices = torch.full((2, job.tasks, job.tasks), math.nan, dtype=torch.float64)
    for j, validation in enumerate(job.validation):
        mine = validation[rows]
        for t in range(job.tasks):
            pair = job.objective.score(outputs[t, mine], job.targets[rows[mine]])
            matrices[:, t, j] = torch.tensor(pair, dtype=torch.float64)
    return matrices[0], matrices[1]


def _estimate(
    model: nn.Module, job: Job, splits: Splits, dataset: Dataset, exposed: Bool[Tensor, " N"]
) -> Estimate | None:
    sealed = torch.from_numpy(splits.sealed)
    rows = sealed.nonzero().flatten()
    if len(rows) == 0:
        return None
    found = measure(
        job.objective,
        model_outputs(model, job.inputs, rows),
        job.targets[rows],
        labels=dataset.target.labels,
        seed=job.seed,
    )
    return replace(found, clean=not bool((exposed & sealed).any()))


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
