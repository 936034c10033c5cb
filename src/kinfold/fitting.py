"""`fit`: the front door. Assembles data, splits, tasks, rule and engine, and calls the loop.

Nothing is written before everything has been checked, so bad input leaves nothing behind.
"""

import copy
import hashlib
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from kinfold import config as parts
from kinfold import files
from kinfold.checkpoint import Checkpoints
from kinfold.data import read
from kinfold.data.base import Dataset, Encoder, Label
from kinfold.engines import Engine, Job, Precision, choose_engine
from kinfold.errors import InputError, unknown
from kinfold.methods import METHODS, Method
from kinfold.models import Rescaled, StandardisedMSE, factory, moments
from kinfold.report import write_report
from kinfold.result import Result, Scores, Selected, Target, Transfers, load, model_outputs, write_start
from kinfold.run import Event, Listener, Progress, run
from kinfold.selection import CRITERIA, Estimate, estimate, exposed_share, overall, select
from kinfold.splits import Splits, audit, draw_splits, load_splits
from kinfold.splits.base import RowInfo
from kinfold.tasks.objective import LossFunction, Metric, Objective, make_objective, resolve_metric
from kinfold.tasks.update import MakeOptimizer, MakeScheduler
from kinfold.tracking.history import HistoryFile
from kinfold.transfer import RULES, Rule

_LOG = logging.getLogger("kinfold")

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
SCHEDULERS: Mapping[str, Callable[[int], MakeScheduler]] = {
    "cosine": lambda epochs: partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    "linear": lambda epochs: partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=1.0 / epochs, total_iters=epochs
    ),
    "constant": lambda epochs: partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0),
}
LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
    "l1": nn.L1Loss,
    "huber": nn.HuberLoss,
}
METRICS: Mapping[str, Callable[[], Metric]] = {
    "accuracy": partial(resolve_metric, None, "classification"),
    "r2": partial(resolve_metric, None, "regression"),
}


def fit(
    model: nn.Module | Callable[[], nn.Module] | str | Mapping[str, Any],
    data: Any,
    *,
    target: str | None = None,
    groups: str | None = None,
    times: str | None = None,
    kind: Literal["classification", "regression"] | None = None,
    tasks: int = 8,
    val_fraction: float | int = 0.2,
    holdout: float | int = 0.1,
    epochs: int = 100,
    patience: int | None = None,
    batch_size: int = 64,
    optimizer: MakeOptimizer | Sequence[MakeOptimizer] | str | Mapping[str, Any] | None = None,
    scheduler: MakeScheduler | str | Mapping[str, Any] | None = "cosine",
    loss: LossFunction | str | Mapping[str, Any] | None = None,
    metric: Any = None,
    splits: Any = None,
    transfer: Rule | str | Mapping[str, Any] = "amto",
    methods: Method | str | Mapping[str, Any] | Iterable[Method | str | Mapping[str, Any]] = (),
    start: Literal["independent", "shared"] = "shared",
    better: Literal["metric", "loss"] = "metric",
    criterion: str = "mean",
    accumulate: int = 1,
    clip_norm: float | int | None = None,
    engine: str = "auto",
    precision: Precision = "float32",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    listen: Listener | None = None,
) -> Result:
    """Trains one model structure on many random splits at once and returns the model best across all of them.

    Args:
        model: a zero-argument factory of an `nn.Module`; a module, whose parameters are every task's start
            (pretrained weights stay, frozen ones stay frozen, tied ones tied); a name (`mlp`, `lenet5`,
            `resnet20`), sized to the data; or `package.module:factory`.
        data: (X, y) arrays or tensors, a map-style `torch.utils.data.Dataset`, a `kinfold.data` data set, a
            path (.csv, .parquet, .npz), a name (`digits`), or `package.module:function`.
        target: the column to predict, for tables.
        groups: the column whose values keep rows together in a split, for tables.
        times: the column that orders rows in time, for tables.
        kind: overrides what the target's type says: whole numbers and words are classes, floats are values.
        tasks: T, how many splits and models.
        val_fraction: share of the unsealed rows that a task validates on.
        holdout: share of all rows that is sealed for the estimate; 0 for none, and then there is no estimate.
        epochs: the cap, and the length of the schedule.
        patience: stop when every task has gone this many periods without improving; None runs to the cap.
        batch_size: B, rows of one task in one batch.
        optimizer: from parameters to a `torch.optim.Optimizer`; one for all tasks, or T of them. Default SGD,
            lr 0.05, momentum 0.9. Or a name (`sgd`, `adam`, `adamw` …), or `{name: adamw, lr: 0.001}`.
        scheduler: from an optimizer to a schedule stepped once an epoch; `cosine`, `linear`, `constant` or None.
        loss: (outputs, targets) → scalar. Default cross-entropy, or squared error.
        metric: (outputs, targets) → number of which higher is better, a torchmetrics object, or a
            `kinfold.Metric`. Default accuracy, or R².
        splits: how to split: `stratified`, `shuffle`, `kfold`, `grouped`, `ordered`, a saved file, a scikit-learn
            splitter … (see `kinfold.splits.resolve`).
        transfer: what tasks learn from each other: `amto`, `teach`, `none`, or a rule.
        methods: training methods, one or several in order: `label_smoothing`, `mixup`, `crop_flip_cutout`, or objects.
        start: whether a factory is called once for all tasks (`shared`), or once a task (`independent`). Blends
            of independently initialised networks lie in high-loss regions; from a shared start they work.
        better: what decides between two scores first, the `metric` or the `loss`; the other breaks ties.
        criterion: how a model's scores on all validation sets become one: `mean`, `worst`, `rank`, `lower`.
        accumulate: batches whose mean gradient makes one optimizer step.
        clip_norm: greatest gradient norm of each task.
        engine: `auto`, `sequential` or `vectorised`.
        precision: `float32`, `bf16` (forward pass under autocast) or `float64`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        seed: of everything random; nothing reads the global random state.
        out: run directory to write, checkpoints included; None writes nothing.
        resume: go on with the run in `out` where it stopped; with none there, start.
        listen: called with every event (see docs/contracts.md, `history.jsonl`), on resuming with those of the
            periods that are done, too.

    Returns:
        The result: `.model`, `.estimate`, `.scores`, `.transfers`, `.history`, `.predict(x)`, `.save(dir)`.

    Raises:
        InputError: something given cannot be used; nothing has been written then.
        RunError: the run could not be finished, such as when all tasks diverged.

    Example:
        >>> import kinfold
        >>> result = kinfold.fit("mlp", "iris", tasks=3, epochs=5, seed=1)
        >>> result.scores.matrix.shape, result.estimate.rows
        (torch.Size([3, 3]), 15)
    """
    config: dict[str, Any] = parts.describe(
        {name: value for name, value in locals().items() if name not in ("out", "resume", "listen", "config")}
    )
    if not isinstance(data, (str, Path)):
        config["data"] = f"<{type(data).__qualname__}>"  # not the rows themselves, which lists would spell out
    _check(tasks=tasks, epochs=epochs, batch_size=batch_size, accumulate=accumulate, patience=patience)
    _check_choices(start=start, better=better, criterion=criterion, precision=precision)
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip_norm: is {clip_norm}; give a positive number, or None for no clipping.")
    folder = None if out is None else Path(out)
    finished = _check_folder(folder, config, resume)
    if finished and folder is not None:
        if not (folder / "report.html").exists():  # killed before its last file
            write_report(folder)
        return load(folder, _structure(model))

    began = time.perf_counter()
    rule = parts.resolve("transfer", transfer, RULES)
    given = (methods,) if isinstance(methods, (str, Mapping, Method)) else methods
    chain = tuple(parts.resolve("methods", method, METHODS) for method in given)
    _check_types(rule, chain)
    dataset = read(data, target=target, groups=groups, times=times, kind=kind)
    info = _row_info(dataset)
    drawn = draw_splits(info, splits, tasks=tasks, val_fraction=val_fraction, holdout=holdout, seed=seed)
    hashes = dataset.fingerprints()
    findings = [asdict(finding) for finding in audit(drawn, info, hashes)]
    fingerprint = hashlib.sha256(hashes.tobytes() + dataset.target.values.numpy().tobytes()).hexdigest()
    encoder = dataset.fit(np.flatnonzero(~drawn.sealed))
    where = _device(device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    structure, given_loss = _model(model, encoder, dataset), parts.resolve("loss", loss, LOSSES)
    rescaled = dataset.standardised and dataset.target.kind == "regression" and given_loss is None
    if rescaled:  # on the unsealed rows, like every scaler
        mean, scale = moments(dataset.target.values[torch.from_numpy(~drawn.sealed)])
        structure, given_loss = _rescaled(structure, mean, scale), StandardisedMSE(scale)
    objective = make_objective(
        dataset.target.kind,
        dataset.target.outputs,
        given_loss,
        parts.resolve("metric", metric, METRICS),
        where,
        dtype,
    )
    job = Job(
        model=structure,
        inputs=encoder.encode(dataset.features),
        targets=dataset.target.values,
        train=torch.from_numpy(drawn.train),
        validation=torch.from_numpy(drawn.validation),
        objective=objective,
        optimizer=_optimizer(optimizer),
        scheduler=_scheduler(scheduler, epochs),
        methods=chain,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=clip_norm,
        shared_start=start == "shared",
        better=better,
        seed=seed,
        device=where,
        precision=precision,
    )
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints")
    saved = None if checkpoints is None or not resume else checkpoints.latest()
    if saved is not None and folder is not None:
        _check_data(drawn, saved[1]["run"]["data"] == fingerprint, folder)
    started, note = choose_engine(engine if saved is None else saved[1]["engine_name"], job)
    progress = Progress.start(job, rule, fingerprint) if saved is None else Progress.load(started, *saved)

    if folder is not None:
        for leftover in folder.rglob(".*.part"):  # of a process that was killed while it wrote
            leftover.unlink()
        if saved is None:
            write_start(folder, config, drawn)
    history = _History(folder, None if saved is None else progress.period, listen)
    if saved is None:
        for finding in findings:
            history({"event": "finding", **finding})
        if note is not None:
            history({"event": "note", "message": note})
    preparing = time.perf_counter() - began
    stopped = run(
        started,
        job,
        rule,
        progress,
        epochs=epochs,
        patience=patience,
        unsealed=torch.from_numpy(~drawn.sealed),
        listen=history,
        checkpoints=checkpoints,
    )
    finishing = time.perf_counter()
    result = _finish(started, job, progress, drawn, dataset, encoder, config, criterion, history.events, stopped)
    result.cost["wall_seconds"] = progress.wall_seconds + preparing + time.perf_counter() - finishing
    if folder is not None:
        result.write_end(folder)
    return result


class _History:
    """Keeps every event, writes it where there is a run directory, and passes it on."""

    def __init__(self, folder: Path | None, through: int | None, listen: Listener | None):
        self._file = None if folder is None else HistoryFile(folder / "history.jsonl", through)
        self._listen = listen
        self.events: list[Event] = [] if self._file is None else list(self._file.kept)
        if listen is not None:
            for event in self.events:  # of a resumed run, the listener hears the beginning too
                listen(event)

    def __call__(self, event: Event) -> None:
        event = files.jsonable(event)
        self.events.append(event)
        if self._file is not None:
            self._file(event)
        if self._listen is not None:
            self._listen(event)
        elif event["event"] == "note" or event.get("severity") == "warning":
            _LOG.warning("%s", event["message"])


def _finish(
    engine: Engine,
    job: Job,
    progress: Progress,
    splits: Splits,
    dataset: Dataset,
    encoder: Encoder,
    config: dict[str, Any],
    criterion: str,
    history: list[Event],
    stopped: str,
) -> Result:
    """Scores every best snapshot on every validation set, picks one, and estimates it on the sealed rows, once."""
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
        estimate=_estimate(model, job, splits, dataset),
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


def _estimate(model: nn.Module, job: Job, splits: Splits, dataset: Dataset) -> Estimate | None:
    rows = torch.from_numpy(splits.sealed).nonzero().flatten()
    if len(rows) == 0:
        return None
    outputs = model_outputs(model, job.inputs, rows)
    return measure(job.objective, outputs, job.targets[rows], labels=dataset.target.labels, seed=job.seed)


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


def _row_info(dataset: Dataset) -> RowInfo:
    return RowInfo(
        dataset.target.values.numpy(),
        None if dataset.target.labels is None else len(dataset.target.labels),
        dataset.groups,
        dataset.times,
        dataset.target.labels,
    )


def _model(model: Any, encoder: Encoder, dataset: Dataset) -> nn.Module | Callable[[], nn.Module]:
    if isinstance(model, (str, Mapping)):
        return factory(model, encoder.input_shape, dataset.target.outputs)
    if not callable(model):
        raise InputError(f"model: is a {type(model).__name__}; give an nn.Module, a factory of one, or a name.")
    return model  # type: ignore[no-any-return]  # a module, or the user's factory


def _rescaled(
    model: nn.Module | Callable[[], nn.Module], mean: Float[Tensor, " K"], scale: Float[Tensor, " K"]
) -> nn.Module | Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return Rescaled(model, mean, scale)
    make = model
    return lambda: Rescaled(make(), mean, scale)


def _structure(model: Any) -> nn.Module | None:
    """A module for `load` to fill, where the model cannot be rebuilt from the configuration."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if isinstance(model, (str, Mapping)):
        return None
    with torch.random.fork_rng([]):
        built: nn.Module = model()
    return built


def _optimizer(spec: Any) -> MakeOptimizer | Sequence[MakeOptimizer]:
    if spec is None:
        return partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    if isinstance(spec, (list, tuple)):
        return [parts.resolve("optimizer", one, OPTIMIZERS, bind=True) for one in spec]
    made = parts.resolve("optimizer", spec, OPTIMIZERS, bind=True)
    if not callable(made):
        raise InputError(
            f"optimizer: is a {type(made).__name__}; give a function of parameters, such as "
            "partial(torch.optim.AdamW, lr=1e-3), or a name."
        )
    return made  # type: ignore[no-any-return]  # the user's callable


def _scheduler(spec: Any, epochs: int) -> MakeScheduler | None:
    if spec is None:
        return None
    if isinstance(spec, str) and "." not in spec and ":" not in spec:
        if spec not in SCHEDULERS:
            raise unknown("scheduler", spec, SCHEDULERS)
        return SCHEDULERS[spec](epochs)
    made = parts.resolve("scheduler", spec, {}, bind=True)
    if not callable(made):
        raise InputError(f"scheduler: is a {type(made).__name__}; give a function of an optimizer, or a name.")
    return made  # type: ignore[no-any-return]  # the user's callable


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(f"device: {name!r} cannot be used here ({why}); try auto or cpu.") from None
    return device


def _check(**counts: object) -> None:
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InputError(f"{name}: is {count!r}; give a whole number of at least 1.")


_CHOICES: Mapping[str, Iterable[str]] = {
    "start": ("independent", "shared"),
    "better": ("metric", "loss"),
    "criterion": CRITERIA,
    "precision": ("float32", "bf16", "float64"),
}


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise unknown(name, value, _CHOICES[name])


def _check_types(rule: object, chain: tuple[object, ...]) -> None:
    if not isinstance(rule, Rule):
        raise InputError(f"transfer: is a {type(rule).__name__}; give a rule, or one of {', '.join(sorted(RULES))}.")
    for method in chain:
        if not isinstance(method, Method):
            raise InputError(f"methods: {method!r} is not a method; give one of {', '.join(sorted(METHODS))}.")


def _check_folder(folder: Path | None, config: dict[str, Any], resume: bool) -> bool:
    """Returns whether the folder holds this run, finished."""
    if folder is None:
        if resume:
            raise InputError("resume: there is no run directory to resume from; give out.")
        return False
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a directory.")
    if not (folder / "config.yaml").exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"out: {folder} is not empty and holds no run; choose another directory.")
        return False
    if not resume:
        raise InputError(f"out: {folder} already holds a run; choose another directory, or go on with it by resume.")
    before = files.read_yaml(folder / "config.yaml")
    if not isinstance(before, dict):
        raise InputError(f"resume: {folder / 'config.yaml'} is damaged; give another out.")
    for name, value in config.items():
        if before.get(name) != value:
            raise InputError(
                f"resume: {name} is {value!r}, and the run in {folder} has {before.get(name)!r}; "
                "give the same, or another out."
            )
    return (folder / "result.json").exists()


def _check_data(drawn: Splits, same_rows: bool, folder: Path) -> None:
    before = load_splits(folder / "splits.safetensors")
    masks = ("train", "validation", "sealed")
    if not same_rows or not all(np.array_equal(getattr(before, mask), getattr(drawn, mask)) for mask in masks):
        raise InputError(f"resume: the data has changed since the run in {folder} began; give another out.")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
