"""`fit`: the front door. Assembles data, splits, tasks, rule and engine, and calls the loop.

Nothing is written before everything has been checked, so bad input leaves nothing behind.
"""

import contextlib
import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from kinfold import files
from kinfold.assembling import Assembled, Auto, Prepared, assemble, check, configuration, is_auto, resolve_trackers
from kinfold.asynchronous import run_asynchronously
from kinfold.candidates import Candidate
from kinfold.checkpoint import Checkpoints
from kinfold.config import names_in
from kinfold.engines import Engine, Job, Precision, choose_engine
from kinfold.engines.memory import want_of_memory_named
from kinfold.errors import InputError, RunError
from kinfold.finishing import ask_for_lesson, finish
from kinfold.importing import one_line, only_parts
from kinfold.locking import LOCK, locked
from kinfold.methods import Method
from kinfold.report import write_report
from kinfold.result import Result, load, write_start
from kinfold.run import Event, Listener, Progress, run, tell_of_notes
from kinfold.splits import Splits, load_splits
from kinfold.student import epochs_done, keep_student
from kinfold.tasks.objective import LossFunction
from kinfold.tasks.update import MakeOptimizer, MakeScheduler
from kinfold.tracking import Tracker
from kinfold.tracking.history import Events, HistoryFile
from kinfold.tracking.notebook import shown_in_notebook
from kinfold.tracking.telling import Tracking, unended
from kinfold.transfer import Rule

_LOG = logging.getLogger("kinfold")

ABOUT_THE_RUN = ("out", "resume", "listen", "tracking")
"""Arguments of `fit` that say where a run is kept and who hears of it; they change nothing of what it comes to."""

_LATER = ("rescue",)  # runs of versions that did not know of it go on with what is given


def fit(
    model: nn.Module | Callable[..., nn.Module] | str | Mapping[str, Any],
    data: Any,
    *,
    target: str | None = None,
    groups: str | None = None,
    times: str | None = None,
    kind: Literal["classification", "regression"] | None = None,
    texts: str | Sequence[str] | None = None,
    tasks: int = 8,
    val_fraction: float | int = 0.2,
    holdout: float | int = 0.1,
    epochs: int | Auto = 100,
    patience: int | None = None,
    rescue: int = 2,
    batch_size: int | Auto = 64,
    optimizer: MakeOptimizer | Sequence[MakeOptimizer] | str | Mapping[str, Any] | None = None,
    scheduler: MakeScheduler | str | Mapping[str, Any] | None = "cosine",
    loss: LossFunction | str | Mapping[str, Any] | None = None,
    metric: Any = None,
    splits: Any = None,
    transfer: Rule | str | Mapping[str, Any] | Sequence[Rule | str | Mapping[str, Any]] = "distil",
    methods: Method | str | Mapping[str, Any] | Iterable[Method | str | Mapping[str, Any]] = (),
    candidates: Candidate | str | Mapping[str, Any] | Iterable[Candidate | str | Mapping[str, Any]] = (),
    start: Literal["independent", "shared"] = "shared",
    better: Literal["metric", "loss"] = "metric",
    criterion: str = "mean",
    accumulate: int = 1,
    clip_norm: float | int | Auto | None = None,
    engine: str = "auto",
    resources: str | None = None,
    compression: Any = None,
    asynchronous: bool = False,
    precision: Precision = "float32",
    device: str = "auto",
    seed: int = 0,
    tracking: Tracker | str | Mapping[str, Any] | Iterable[Tracker | str | Mapping[str, Any]] = (),
    out: str | Path | Callable[[Mapping[str, Any]], Path] | None = None,
    resume: bool = False,
    listen: Listener | None = None,
) -> Result:
    """Trains one model structure on many random splits at once and returns the model best across all of them.

    Args:
        model: a factory of an `nn.Module`, called without arguments, but for `input_shape` and `outputs` where it
            has parameters of these names and no defaults for them: the data's; a module, whose parameters are every
            task's start (pretrained weights stay, frozen ones stay frozen, tied ones tied); a name (`mlp`, `lenet5`,
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
        texts: the column of free text, or several, for tables; `()` for none; default those that look it.
        tasks: T, how many splits and models.
        val_fraction: share of the unsealed rows that a task validates on.
        holdout: share of all rows that is sealed for the estimate; 0 for none, and then there is no estimate.
        epochs: the cap, and the length of the schedule. A rule with stages or a student divides them.
        patience: stop when every task has gone this many periods without improving; None runs to the cap.
        rescue: how often a task that diverges starts again with half its learning rate, from the best of the others
            or, where all have or they learn nothing of each other, from its own best snapshot; after that it is set
            aside. 0 lets it go on as it is.
        batch_size: B, rows of one task in one batch.
        optimizer: from parameters to a `torch.optim.Optimizer`; one for all tasks, or T of them. Default SGD,
            lr 0.05, momentum 0.9. Or a name (`sgd`, `adam`, `adamw` …), or `{name: adamw, lr: 0.001}`.
        scheduler: from an optimizer to a schedule stepped once an epoch; `cosine`, `linear`, `constant` or None.
        loss: (outputs, targets) → scalar. Default cross-entropy, or squared error.
        metric: (outputs, targets) → number of which higher is better, a torchmetrics object, or a
            `kinfold.Metric`. Default accuracy, or R².
        splits: how to split: `stratified`, `shuffle`, `kfold`, `grouped`, `ordered`, a saved file, a scikit-learn
            splitter … (see `kinfold.splits.resolve`).
        transfer: what tasks learn from each other, or teach a student of theirs in the end: `distil`, `amto`,
            `teach`, `papa`, `none` … (docs/rules.md), or a rule. Several act together as
            `teach+papa`, or as a list: `["teach", {"name": "papa", "alpha": 0.98}]`.
        methods: training methods, one or several in order: names of `kinfold.methods.METHODS`, such as `mixup` and
            `sam`, or objects.
        candidates: what may be handed back besides the tasks' own models, one or several: `soup`, `greedy-soup`,
            `ema`, `swa`, or objects. Picked, like these, by the scores on all validation sets; so not beside a rule
            that hands back a student of its own, as `distil` does.
        start: whether a factory is called once for all tasks (`shared`), or once a task (`independent`). Blends
            of independently initialised networks lie in high-loss regions; from a shared start they work.
        better: what decides between two scores first, the `metric` or the `loss`; the other breaks ties.
        criterion: how a model's scores on all validation sets become one: `mean`, `worst`, `rank`, `lower`.
        accumulate: batches whose mean gradient makes one optimizer step.
        clip_norm: greatest gradient norm of each task.
        engine: `auto`, `sequential`, `vectorised`, `workers` (processes that share out the tasks, on a CPU),
            `streams` or `devices` (on one GPU, on several; see docs/speed.md), `cluster` (on Ray, of one machine or
            many; see docs/cluster.md).
        resources: what each actor of the engine `cluster` takes, such as `cpus=1,gpus=0.25`; default one CPU, and a
            GPU where the device is one. As many actors train as fit, at most T.
        compression: of the models that actors of the engine `cluster` send each other: `bf16`, `adaptive`,
            `{name: adaptive, bits: 3}` or a codec (see docs/scaling.md); None sends them as they are.
        asynchronous: whether each actor of the engine `cluster` goes on at its own pace, and tasks learn from what
            others have published last, however old; not reproducible (see docs/cluster.md).
        precision: `float32`, `bf16` (forward pass under autocast) or `float64`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        seed: of everything random; nothing reads the global random state.
        tracking: experiment trackers that are told of the run, one or several: `tensorboard`, `mlflow`, `wandb`,
            `{name: mlflow, experiment: …, uri: …}`, or objects (docs/tracking.md). One that fails does not end the run.
        out: run directory to write, checkpoints included; None writes nothing. Or a function from the complete
            configuration to it, for a directory that is named after what was chosen.
        resume: go on with the run in `out` where it stopped; with none there, start.
        listen: called with every event (see docs/contracts.md, `history.jsonl`), on resuming with those of the
            periods that are done, too. Without one, warnings are logged, and a notebook shows the progress.

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
    given = {name: value for name, value in locals().items() if name not in ("out", "resume", "listen")}
    check(given)
    folder = None if out is None or callable(out) else Path(out)
    trackers = resolve_trackers(tracking, Path() if callable(out) else folder)
    if _check_folder(folder, configuration(given), resume) and folder is not None:
        return _finished(folder, model, configuration(given), trackers, listen)
    began = time.perf_counter()
    assembled = assemble(given)
    if callable(out):
        folder, resume = Path(out(assembled.config)), False
    with alone_in(folder):
        # What another process has done there since the first look.
        if _check_folder(folder, assembled.config, resume) and folder is not None:
            return _load(folder, model, assembled.config)
        with shown_in_notebook(listen) as listen, Tracking(trackers) as tracked:
            result, _ = carry_out(
                assembled,
                patience=patience,
                rescue=rescue,
                engine=engine,
                resources=resources,
                compression=compression,
                asynchronous=asynchronous,
                folder=folder,
                resume=resume,
                listen=listen,
                tracking=tracked,
            )
            result.cost["wall_seconds"] += time.perf_counter() - began
            if folder is not None:
                with files.writing(folder):
                    result.write_end(folder)
            for note in tracked.end(result, folder):
                _pass_on(note, listen)
        return result


def carry_out(
    assembled: Assembled,
    *,
    patience: int | None,
    rescue: int,
    engine: str,
    resources: str | None = None,
    compression: Any = None,
    asynchronous: bool = False,
    folder: Path | None = None,
    resume: bool = False,
    listen: Listener | None = None,
    tracking: Tracking | None = None,
    members: Callable[[Result], Sequence[int]] = lambda result: (),
) -> tuple[Result, list[nn.Module]]:
    """Trains what was assembled; returns the result, and the best models of some tasks.

    Args:
        assembled: the run.
        patience: as in `fit`.
        rescue: likewise.
        engine: likewise.
        resources: likewise.
        compression: likewise.
        asynchronous: likewise.
        folder: run directory, checked already, or None.
        resume: whether to go on from the checkpoints there.
        listen: as in `fit`.
        tracking: not started yet; its end is the caller's, since it takes the files of a run that has ended.
        members: which tasks' models to return besides the result; default none.
    """
    job, prepared, remaining = assembled.job, assembled.prepared, assembled.remaining

    def warn(message: str) -> None:  # the user, not the log: of this, the run itself shows nothing
        _pass_on({"event": "note", "severity": "warning", "message": message}, listen)

    log = None if folder is None else folder / "history.jsonl"
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", log)
    of_student = None if folder is None else Checkpoints(folder / "checkpoints" / "student", log)
    saved = None if checkpoints is None or not resume else checkpoints.latest(warn)
    if saved is not None and folder is not None:
        _check_checkpoint(saved[1], len(remaining.stages), folder)
        _check_data(prepared, saved[1]["run"]["data"], folder)
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    if saved is not None:
        engine = saved[1]["engine_name"]
        job = dataclasses.replace(job, channels_last=saved[1]["engine"]["channels_last"])
    steps = remaining.stages[-1] * int(job.train.sum(1).max()) // job.batch_size
    train = partial(run_asynchronously if asynchronous else run, rescues=rescue)
    started, note = choose_engine(engine, job, steps, resources, compression)
    with (
        contextlib.closing(started),
        contextlib.nullcontext() if checkpoints is None else checkpoints,
        want_of_memory_named(),
    ):
        told = assembled.told if note is None else [*assembled.told, {"event": "note", "message": note}]
        if saved is None:
            progress = Progress.start(job, remaining.rule, prepared.fingerprint)
        else:
            stage = saved[1]["run"]["stage"]
            if stage:  # the schedule of its stage, for the state of that schedule to be put into
                ends = remaining.stages
                started.reschedule(remaining.scheduler(ends[stage] - ends[stage - 1]))
            progress = _restored(started, *saved)
        earlier = progress.wall_seconds
        if tracking is not None:
            _start(tracking, assembled.config, job, folder)
        if folder is not None:
            _open(folder, assembled.config, prepared.splits, fresh=saved is None)
        if of_student is not None:
            keep_student(of_student, progress.period, warn)
        through = None if saved is None else progress.period + epochs_done(of_student)
        history = _History(folder, through, listen, tracking)
        if saved is None:
            for event in told:
                history(event)
        for said in [] if tracking is None else tracking.notes():
            history(said)
        unsealed, stages, lesson, stopped = torch.from_numpy(~prepared.splits.sealed), remaining.stages, None, "epochs"
        for stage, end in enumerate(stages):
            if stage < progress.stage:
                continue
            if stage > progress.stage:
                started.reschedule(remaining.scheduler(end - progress.period))
                progress.begin_stage(stage)
            stopped = train(
                started,
                job,
                remaining.rule,
                progress,
                epochs=end,
                patience=patience,
                unsealed=unsealed,
                listen=history,
                checkpoints=checkpoints,
                cap=remaining.epochs,
            )
            lesson = ask_for_lesson(started, job, progress, remaining, unsealed, last=end == stages[-1])
            if lesson is not None:
                break
        if checkpoints is not None:
            checkpoints.wait()  # a student's are counted from the last of the tasks'
        result = finish(
            started,
            job,
            progress,
            prepared.splits,
            prepared.dataset,
            prepared.encoder,
            remaining=remaining,
            lesson=lesson,
            checkpoints=of_student,
            config=assembled.config,
            history=history.events,
            listen=history,
            stopped=stopped,
        )
        tell_of_notes(started, history, progress.period)
        result.cost["wall_seconds"] += earlier
        return result, [started.export(t) for t in members(result)]


def _check_checkpoint(values: Any, stages: int, folder: Path) -> None:
    """Checks that a checkpoint says what is asked of it before its state is put back."""
    try:
        run, engine = values["run"], values["engine"]
        said = (values["engine_name"], engine["channels_last"], run["data"], run["stage"])
        known = all(isinstance(value, kind) for value, kind in zip(said, (str, bool, str, int), strict=True))
        whole = known and 0 <= run["stage"] < stages
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"resume: the checkpoint in {folder} is damaged or of another version; give another out.")


def _restored(engine: Engine, tensors: dict[str, torch.Tensor], values: Any) -> Progress:
    try:
        return Progress.load(engine, tensors, values)
    except RunError:  # an engine of several processes lost one
        raise
    except Exception as error:  # anything may stand in a file that somebody has changed
        raise InputError(f"resume: the checkpoint is damaged or of another version ({one_line(error)}).") from error


def _open(folder: Path, config: dict[str, Any], splits: Splits, fresh: bool) -> None:
    """Begins to write: the run's first files, or the clearing up of what a killed process left."""
    with files.writing(folder):
        files.clear_halves(folder)
        if fresh:
            write_start(folder, config, splits)


@contextlib.contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keeps other runs out of the run directory, or the comparison's, where there is one.

    Raises:
        InputError: another process is at work there, or it cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None:
            try:
                stack.enter_context(locked(folder))
            except OSError as error:
                raise InputError(
                    f"out: {folder} cannot be written to ({error.strerror}); mend that, or choose another directory."
                ) from None
        yield


def _finished(
    folder: Path, model: Any, config: dict[str, Any], trackers: Sequence[Tracker], listen: Listener | None
) -> Result:
    """Loads a run that is done, and first does what a killed process left undone: the last file, telling trackers."""
    page = folder / "report.html"
    left = (folder / LOCK).exists() or files.halves(folder)
    if page.exists() and not left and not unended(trackers, folder):
        return _load(folder, model, config)
    with alone_in(folder):
        with files.writing(folder):
            files.clear_halves(folder)
            if not page.exists():
                write_report(folder)
        result = _load(folder, model, config)
        _tell_at_last(unended(trackers, folder), result, folder, listen)
    return result


def _load(folder: Path, model: Any, config: dict[str, Any]) -> Result:
    """Loads a finished run, importing nothing of others but what the caller's own arguments name."""
    with only_parts(str(folder), names_in(config)):
        return load(folder, _structure(model), trust=True)


def _start(tracking: Tracking, config: Mapping[str, Any], job: Job, folder: Path | None) -> None:
    """Starts the trackers of a run."""
    model = config["model"]
    named = f"{config['data']}-{model if isinstance(model, str) else model.get('name') or model.get('class_path')}"
    name = named if folder is None else folder.resolve().name
    tracking.start(name=name, folder=folder, config=config, tasks=job.tasks, metric=job.objective.metric.name)


def _tell_at_last(trackers: Sequence[Tracker], result: Result, folder: Path, listen: Listener | None) -> None:
    """Tells trackers of a run whose process ended when it was done, but had not told them."""
    if not trackers:
        return
    name, tasks, metric = folder.resolve().name, result.splits.tasks, result.scores.metric
    with Tracking(trackers) as tracking:
        tracking.start(name=name, folder=folder, config=result.config, tasks=tasks, metric=metric)
        for event in result.history:
            tracking(event, again=True)
        # Its report may have been rewritten with rows of the data since, which are no tracker's to have.
        for note in tracking.end(result, None):
            _pass_on(note, listen)


class _History:
    """Keeps every event, writes it where there is a run directory, and passes it on."""

    def __init__(self, folder: Path | None, through: int | None, listen: Listener | None, tracking: Tracking | None):
        self._writing = contextlib.nullcontext if folder is None else partial(files.writing, folder)
        with self._writing():
            self._file = None if folder is None else HistoryFile(folder / "history.jsonl", through)
        self._listen, self._tracking = listen, tracking
        self.events = Events() if self._file is None else self._file.kept
        for event in self.events:  # of a resumed run, the listener and the trackers hear the beginning too
            if listen is not None:
                listen(event)
            if tracking is not None:
                tracking(event, again=True)

    def __call__(self, event: Event) -> None:
        event = files.jsonable(event)
        self.events.append(event)
        if self._file is not None:
            with self._writing():
                self._file(event)
        _pass_on(event, self._listen)
        if self._tracking is not None:
            self._tracking(event)
            for note in self._tracking.notes():
                self(note)


def _pass_on(event: Event, listen: Listener | None) -> None:
    """Tells the user of an event: all of them if they listen, else what may not be missed."""
    if listen is not None:
        listen(event)
    elif event["event"] == "note" or event.get("severity") == "warning":
        _LOG.warning("%s", event["message"])


def _structure(model: Any) -> nn.Module | Callable[..., nn.Module] | None:
    """What `load` is to fill, where the model cannot be rebuilt from the configuration."""
    if isinstance(model, (str, Mapping)):
        return None
    return copy.deepcopy(model) if isinstance(model, nn.Module) else model


def _check_folder(folder: Path | None, config: dict[str, Any], resume: bool) -> bool:
    """Returns whether the folder holds this run, finished."""
    if folder is None:
        if resume:
            raise InputError("resume: there is no run directory to resume from; give out.")
        return False
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a directory.")
    if not (folder / "config.yaml").exists():
        if folder.exists() and files.entries(folder):
            raise InputError(f"out: {folder} is not empty and holds no run; choose another directory.")
        return False
    if not resume:
        raise InputError(
            f"out: {folder} already holds a run; choose another directory, or go on with it (resume, --resume)."
        )
    files.check_links(folder)
    before = files.read_yaml(folder / "config.yaml")
    if not isinstance(before, dict):
        raise InputError(f"resume: {folder / 'config.yaml'} is damaged; give another out.")
    before = {"asynchronous": False} | before  # runs of a version that knew no other way
    for name, value in config.items():
        if name in ("tracking", "resources"):  # who is told, and where it runs, changes nothing of the run
            continue
        if name in _LATER and name not in before:
            continue
        if before.get(name) != value and not is_auto(value):  # what was chosen for it is what the run has
            raise InputError(
                f"resume: {name} is {value!r}, and the run in {folder} has {before.get(name)!r}; "
                "give the same, or another out."
            )
    return (folder / "result.json").exists()


def _check_data(prepared: Prepared, fingerprint: str, folder: Path) -> None:
    before, drawn = load_splits(folder / "splits.safetensors"), prepared.splits
    masks = ("train", "validation", "sealed")
    if fingerprint != prepared.fingerprint or not all(
        np.array_equal(getattr(before, mask), getattr(drawn, mask)) for mask in masks
    ):
        raise InputError(f"resume: the data has changed since the run in {folder} began; give another out.")
