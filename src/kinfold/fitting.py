"""`fit`: the front door. Assembles data, splits, tasks, rule and engine, and calls the loop.

Nothing is written before everything has been checked, so bad input leaves nothing behind.
"""

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold import files
from kinfold.checkpoint import Checkpoints
from kinfold.config import describe, resolve
from kinfold.data import read
from kinfold.data.base import Dataset, Encoder
from kinfold.engines import Job, Precision, choose_engine
from kinfold.errors import InputError, unknown
from kinfold.finishing import finish
from kinfold.methods import METHODS, Method
from kinfold.models import Rescaled, StandardisedMSE, factory, moments
from kinfold.parts import LOSSES, METRICS, optimizer_maker, scheduler_maker
from kinfold.recipes import recipe
from kinfold.report import write_report
from kinfold.result import Result, load, write_start
from kinfold.run import Event, Listener, Progress, run
from kinfold.selection import CRITERIA
from kinfold.splits import Finding, Splits, audit, draw_splits, load_splits
from kinfold.splits.base import RowInfo
from kinfold.tasks.objective import LossFunction, Objective, make_objective
from kinfold.tasks.update import MakeOptimizer, MakeScheduler
from kinfold.tracking.history import HistoryFile
from kinfold.transfer import RULES, Rule

_LOG = logging.getLogger("kinfold")

Auto: TypeAlias = Literal["auto"]
BY_RECIPE = ("model", "optimizer", "scheduler", "methods", "batch_size", "epochs", "clip_norm")
"""The arguments of `fit` that may be "auto"."""


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
    epochs: int | Auto = 100,
    patience: int | None = None,
    batch_size: int | Auto = 64,
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
    clip_norm: float | int | Auto | None = None,
    engine: str = "auto",
    precision: Precision = "float32",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | Callable[[Mapping[str, Any]], Path] | None = None,
    resume: bool = False,
    listen: Listener | None = None,
) -> Result:
    """Trains one model structure on many random splits at once and returns the model best across all of them.

    Args:
        model: a zero-argument factory of an `nn.Module`; a module, whose parameters are every task's start
            (pretrained weights stay, frozen ones stay frozen, tied ones tied); a name (`mlp`, `lenet5`,
            `resnet20`), sized to the data; or `package.module:factory`. `"auto"`, here and for epochs, batch_size,
            optimizer, scheduler, methods and clip_norm, chooses by the kind and size of the data
            (`kinfold.recipes`), and says so.
        data: (X, y) arrays or tensors, a map-style `torch.utils.data.Dataset`, a `kinfold.data` data set, a
            path (a table, arrays, pictures, series, texts, recordings: see docs/data.md), a name (`digits`), or
            `package.module:function`.
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
        out: run directory to write, checkpoints included; None writes nothing. Or a function from the complete
            configuration to it, for a directory that is named after what was chosen.
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
    config: dict[str, Any] = describe(
        {name: value for name, value in locals().items() if name not in ("out", "resume", "listen")}
    )
    if not isinstance(data, (str, Path)):
        config["data"] = f"<{type(data).__qualname__}>"  # not the rows themselves, which lists would spell out
    _check_whole(tasks=tasks, accumulate=accumulate, patience=patience, epochs=epochs, batch_size=batch_size)
    _check_choices(start=start, better=better, criterion=criterion, precision=precision)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InputError(f"seed: is {seed!r}; give a whole number.")
    folder = None if out is None or callable(out) else Path(out)
    finished = _check_folder(folder, config, resume)
    if finished and folder is not None:
        if not (folder / "report.html").exists():  # killed before its last file
            write_report(folder)
        return load(folder, _structure(model))

    began = time.perf_counter()
    rule = resolve("transfer", transfer, RULES)
    if not isinstance(rule, Rule):
        raise InputError(f"transfer: is a {type(rule).__name__}; give a rule, or one of {', '.join(sorted(RULES))}.")
    dataset = read(data, target=target, groups=groups, times=times, kind=kind)
    prepared = _prepare(dataset, splits, tasks, val_fraction, holdout, seed)
    told: list[Event] = [{"event": "finding", **asdict(finding)} for finding in prepared.findings]
    given = {name: value for name, value in locals().items() if name in BY_RECIPE}
    if any(_is_auto(value) for value in given.values()):
        chosen = _by_recipe(given, prepared)
        given |= chosen
        config |= describe(chosen)
        told.append({"event": "note", "message": _recipe_line(dataset, config)})
    if callable(out):
        folder = Path(out(config))
        _check_folder(folder, config, resume=False)
    where = _device(device)
    structure, objective = _objective(given["model"], prepared, loss, metric, where, precision)
    job = Job(
        model=structure,
        inputs=prepared.encoder.encode(dataset.features),
        targets=dataset.target.values,
        train=torch.from_numpy(prepared.splits.train),
        validation=torch.from_numpy(prepared.splits.validation),
        objective=objective,
        optimizer=optimizer_maker(given["optimizer"]),
        scheduler=scheduler_maker(given["scheduler"], given["epochs"]),
        methods=_methods(given["methods"]),
        batch_size=int(given["batch_size"]),
        accumulate=accumulate,
        clip_norm=_clip_norm(given["clip_norm"]),
        shared_start=start == "shared",
        better=better,
        seed=int(seed),
        device=where,
        precision=precision,
    )
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints")
    saved = None if checkpoints is None or not resume else checkpoints.latest()
    if saved is not None and folder is not None:
        _check_data(prepared, saved[1]["run"]["data"], folder)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    started, note = choose_engine(engine if saved is None else saved[1]["engine_name"], job)
    if note is not None:
        told.append({"event": "note", "message": note})
    progress = Progress.start(job, rule, prepared.fingerprint) if saved is None else Progress.load(started, *saved)
    if folder is not None:
        _open(folder, config, prepared.splits, fresh=saved is None)
    history = _History(folder, None if saved is None else progress.period, listen)
    if saved is None:
        for event in told:
            history(event)
    preparing = time.perf_counter() - began
    stopped = run(
        started,
        job,
        rule,
        progress,
        epochs=int(given["epochs"]),
        patience=patience,
        unsealed=torch.from_numpy(~prepared.splits.sealed),
        listen=history,
        checkpoints=checkpoints,
    )
    finishing = time.perf_counter()
    result = finish(
        started,
        job,
        progress,
        prepared.splits,
        dataset,
        prepared.encoder,
        config=config,
        history=history.events,
        stopped=stopped,
    )
    result.cost["wall_seconds"] = progress.wall_seconds + preparing + time.perf_counter() - finishing
    if folder is not None:
        result.write_end(folder)
    return result


@dataclass(frozen=True)
class _Prepared:
    """The data, split and encoded, before anything is said of how to train."""

    dataset: Dataset
    splits: Splits
    findings: list[Finding]
    encoder: Encoder
    fingerprint: str


def _prepare(
    dataset: Dataset, splits: Any, tasks: int, val_fraction: float | int, holdout: float | int, seed: int
) -> _Prepared:
    info = RowInfo(
        dataset.target.values.numpy(),
        None if dataset.target.labels is None else len(dataset.target.labels),
        dataset.groups,
        dataset.times,
        dataset.target.labels,
    )
    drawn = draw_splits(info, splits, tasks=int(tasks), val_fraction=val_fraction, holdout=holdout, seed=int(seed))
    hashes = dataset.fingerprints()
    whole = hashlib.sha256(hashes.tobytes() + dataset.target.values.numpy().tobytes())
    encoder = dataset.fit(np.flatnonzero(~drawn.sealed))
    return _Prepared(dataset, drawn, audit(drawn, info, hashes), encoder, whole.hexdigest())


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _by_recipe(given: Mapping[str, Any], prepared: _Prepared) -> dict[str, Any]:
    """Returns what stands for each "auto"."""
    dataset = prepared.dataset
    rows = int((~prepared.splits.sealed).sum())
    chosen = recipe(dataset.form, dataset.target.kind, rows, prepared.encoder.input_shape)
    parts = {name: getattr(chosen, name) for name, value in given.items() if _is_auto(value)}
    return {
        name: part["name"] if isinstance(part, Mapping) and len(part) == 1 else part for name, part in parts.items()
    }


def _recipe_line(dataset: Dataset, config: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {files.json_line(config[name])}" for name in BY_RECIPE if config[name] is not None)
    return f"recipe for {dataset.form} data: {said}"


def _methods(spec: Any) -> tuple[Method, ...]:
    several = (spec,) if isinstance(spec, (str, Mapping, Method)) else spec
    chain = tuple(resolve("methods", method, METHODS) for method in several)
    for method in chain:
        if not isinstance(method, Method):
            raise InputError(f"methods: {method!r} is not a method; give one of {', '.join(sorted(METHODS))}.")
    return chain


def _clip_norm(value: float | int | None) -> float | int | None:
    if value is not None and not value > 0:
        raise InputError(f"clip_norm: is {value}; give a positive number, or None for no clipping.")
    return value


def _objective(
    model: Any, prepared: _Prepared, loss: Any, metric: Any, device: torch.device, precision: Precision
) -> tuple[nn.Module | Callable[[], nn.Module], Objective]:
    """Returns the network and what it minimises; both in the target's standard units where the format says so."""
    dataset, encoder = prepared.dataset, prepared.encoder
    structure, given_loss = _model(model, encoder, dataset), resolve("loss", loss, LOSSES)
    if dataset.standardised and dataset.target.kind == "regression" and given_loss is None:
        # Fitted on the unsealed rows, like every scaler.
        mean, scale = moments(dataset.target.values[torch.from_numpy(~prepared.splits.sealed)])
        structure, given_loss = _rescaled(structure, mean, scale), StandardisedMSE(scale)
    dtype = torch.float64 if precision == "float64" else torch.float32
    made = resolve("metric", metric, METRICS)
    return structure, make_objective(dataset.target.kind, dataset.target.outputs, given_loss, made, device, dtype)


def _open(folder: Path, config: dict[str, Any], splits: Splits, fresh: bool) -> None:
    """Begins to write: the run's first files, or the clearing up of what a killed process left."""
    try:
        for leftover in folder.rglob(".*.part"):
            leftover.unlink()
        if fresh:
            write_start(folder, config, splits)
    except OSError as error:
        raise InputError(f"out: {folder} cannot be written to ({error.strerror}); choose another directory.") from None


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


def _model(model: Any, encoder: Encoder, dataset: Dataset) -> nn.Module | Callable[[], nn.Module]:
    if isinstance(model, (str, Mapping)):
        return factory(model, encoder.input_shape, dataset.target.outputs, encoder.hints)
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


def _check_whole(**counts: object) -> None:
    for name, count in counts.items():
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if count is not None and not _is_auto(count) and (not whole or count < 1):  # type: ignore[operator]
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
        if before.get(name) != value and not _is_auto(value):  # what was chosen for it is what the run has
            raise InputError(
                f"resume: {name} is {value!r}, and the run in {folder} has {before.get(name)!r}; "
                "give the same, or another out."
            )
    return (folder / "result.json").exists()


def _check_data(prepared: _Prepared, fingerprint: str, folder: Path) -> None:
    before, drawn = load_splits(folder / "splits.safetensors"), prepared.splits
    masks = ("train", "validation", "sealed")
    if fingerprint != prepared.fingerprint or not all(
        np.array_equal(getattr(before, mask), getattr(drawn, mask)) for mask in masks
    ):
        raise InputError(f"resume: the data has changed since the run in {folder} began; give another out.")
