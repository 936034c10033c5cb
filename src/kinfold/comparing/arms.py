"""The arms of a comparison: named ways of spending a budget on one labelled data set, and what each came to.

An arm's *experiment* is what has to be trained for it; arms that differ only in what they take from it share it.
Legend: T tasks, N rows, C classes or outputs.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinfold.assembling import Assembled, assemble
from kinfold.candidates import ExponentialAverage, StochasticAverage, averaged_model
from kinfold.comparing.table import CONVENTIONAL, Score
from kinfold.data.base import Dataset
from kinfold.engines import Job
from kinfold.errors import InputError, unknown
from kinfold.fitting import ABOUT_THE_RUN, carry_out, fit
from kinfold.result import Result, model_outputs
from kinfold.run import Event
from kinfold.splits import RowInfo, Splits, Splitter, draw_splits
from kinfold.student import Student, epochs_within, train_student
from kinfold.tasks.order import steps_in
from kinfold.transfer import RULES

Given: TypeAlias = Mapping[str, Any]

SET_BY_TRIAL = ("data", "target", "groups", "times", "kind", "metric", "holdout", "seed")
"""Arguments of `kinfold.fit` that no arm may change: all are judged by the same metric on the same rows."""
SET_BY_ARM = ("transfer", "candidates")
"""Arguments of `kinfold.fit` that are for an arm to set: given to all, they would not reach the controls."""


@dataclass(frozen=True)
class Trial:
    """One seed of a comparison.

    Attributes:
        given: all arguments of `kinfold.fit` but `out`, `resume` and `listen`; nothing in them is "auto".
        test: the rows that arms are judged by, apart from `given`'s data; None where these are its sealed rows.
    """

    given: Given
    test: Dataset | None = None


Experiment: TypeAlias = Callable[[Trial], dict[str, Score]]


@dataclass(frozen=True)
class Arm:
    """One line of a comparison.

    Attributes:
        name: the arm's name.
        experiment: name of what is trained for it; arms with the same one share the training.
        run: carries that out, and returns the scores of all arms that it yields, by name.
        changes: what it changes of the trial's arguments, where the experiment is one call of `fit`; else None.
        control: whether it is a control, and not a rule whose worth is in question.
        reference: whether it answers with T models at prediction.
    """

    name: str
    experiment: str
    run: Experiment = field(repr=False)
    changes: Given | None = None
    control: bool = False
    reference: bool = False


def resolve_arm(spec: str | Given) -> Arm:
    """Returns the arm that `spec` means.

    Args:
        spec: a name in `CONTROLS`; a transfer rule's name, or several as `teach+papa`; or a mapping of a `name` and
            arguments of `kinfold.fit`, such as `{"name": "papa-soup", "transfer": "papa", "candidates": "soup"}`.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(spec, str):
        if spec in CONTROLS:
            return CONTROLS[spec]
        for part in spec.split("+"):
            if part not in RULES:
                raise unknown("arms", part, [*CONTROLS, *RULES])
        return _fitted(spec, {"transfer": spec})
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise InputError(f"arms: {spec!r} is no arm; give a name, or a mapping of a name and arguments of fit.")
    name = str(spec["name"])
    if name in {arm.experiment for arm in CONTROLS.values()} | set(CONTROLS):
        raise InputError(f"arms: {name!r} is the name of a control; give your arm another.")
    if not name or Path(name).name != name:  # records are named after it
        raise InputError(f"arms: the name {name!r} cannot be that of a file; leave out slashes.")
    changes = {key: value for key, value in spec.items() if key != "name"}
    known = [key for key in inspect.signature(fit).parameters if key not in (*ABOUT_THE_RUN, *SET_BY_TRIAL)]
    for key in changes:
        if key in SET_BY_TRIAL:
            raise InputError(f"arms: {name}: {key} is the same for all arms; leave it out.")
        if key not in known:
            raise unknown(f"arms: {name}", key, known)
    return _fitted(name, changes)


def _fitted(name: str, changes: Given) -> Arm:
    """The arm of one call of `fit`."""
    alone = dict(changes) == {"transfer": "none"}  # nothing is exchanged, and nothing else is new
    return Arm(name, name, lambda trial: _fit(name, trial, changes), changes, control=alone)


def _fit(arm: str, trial: Trial, changes: Given) -> dict[str, Score]:
    """One call of `fit`."""
    began = time.perf_counter()
    given = {**trial.given, **changes}
    assembled = assemble(given)
    result, _ = carry_out(assembled, **_ways(given), listen=_hush)
    selected = result.selected
    kept = selected.kind if selected.task is None else f"{selected.kind} {selected.task}"
    seconds = time.perf_counter() - began
    return {arm: _score(arm, [result.model], trial, assembled, result.cost["sample_visits"], seconds, kept)}


@final
@dataclass(frozen=True)
class _First(Splitter):
    """The first of the splits that a spec means, also where it fixes their number."""

    spec: Any
    val_fraction: float | int

    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        drawn = draw_splits(info, self.spec, tasks=tasks, val_fraction=self.val_fraction, holdout=holdout, seed=seed)
        return Splits(drawn.train[:1], drawn.validation[:1], drawn.sealed)


def _conventional(trial: Trial, arm: str = CONVENTIONAL, times: int = 1) -> dict[str, Score]:
    """One split and so many times the epochs; the best of them."""
    given = trial.given
    one = {"tasks": 1, "splits": _First(given["splits"], given["val_fraction"]), "epochs": times * given["epochs"]}
    if isinstance(given["optimizer"], (list, tuple)):  # one a task
        one["optimizer"] = given["optimizer"][0]
    return _fit(arm, trial, {**one, "transfer": "none"})


def _ways(given: Given) -> dict[str, Any]:
    """What `carry_out` takes of the arguments of `fit`."""
    return {name: given[name] for name in ("patience", "rescue", "engine", "resources", "compression", "asynchronous")}


def _conventional_long(trial: Trial) -> dict[str, Score]:
    return _conventional(trial, "conventional-long", trial.given["tasks"])


def _restarts(trial: Trial) -> dict[str, Score]:
    """T tasks that learn nothing of each other: the best, all together, and the number of epochs that they advise."""
    began = time.perf_counter()
    given = {**trial.given, "transfer": "none", "start": "independent"}
    assembled = assemble(given)
    result, members = carry_out(assembled, **_ways(given), listen=_hush, members=_with_a_say)
    visits, seconds = int(result.cost["sample_visits"]), time.perf_counter() - began
    epochs = _best_period(result.history, assembled.job)
    refitted = _on_all_rows(assembled, epochs, schedule=assembled.remaining.epochs)
    return {
        "restarts": _score(
            "restarts", [result.model], trial, assembled, visits, seconds, f"task {result.selected.task}"
        ),
        "ensemble": _score("ensemble", members, trial, assembled, visits, seconds, f"all {len(members)}"),
        "refit": _score(
            "refit",
            [refitted.model],
            trial,
            assembled,
            visits + refitted.visits,
            seconds + refitted.seconds,
            f"epoch {epochs}",
            _unsealed(assembled),
        ),
    }


def _with_a_say(result: Result) -> list[int]:
    """Returns the tasks that did not diverge: one that did has no say, like everywhere.

    Nor has one that never had a score, whose snapshot is as it was before training.
    """
    scored = torch.tensor([event["improved"] for event in result.history if event["event"] == "period"]).any(0)
    sound = result.scores.loss_matrix.isfinite().all(1) & scored
    return [t for t in range(len(sound)) if sound[t] or t == result.selected.task]


def _best_period(history: Sequence[Event], job: Job) -> int:
    """Returns the period at which the tasks that had a score were best, in the mean, by what decides first."""
    said = [event[job.better] for event in history if event["event"] == "period"]
    scores = torch.tensor([[math.nan if one is None else one for one in row] for row in said], dtype=torch.float64)
    higher = job.better == "metric" and job.objective.metric.higher_is_better
    means = (scores if higher else -scores).nanmean(1)
    return 1 + int(torch.where(means.isnan(), -torch.inf, means).argmax())


def _all_rows(trial: Trial) -> dict[str, Score]:
    """One run on all rows that visits as many as T tasks do."""
    return {"all-rows": _long_run(trial, {})["all-rows"]}


def _all_rows_averaged(trial: Trial) -> dict[str, Score]:
    """The same run's weight averages. Watching them costs as much as a small network's step, so it is a run apart."""
    scores = _long_run(trial, {"all-rows-ema": ExponentialAverage(), "all-rows-swa": StochasticAverage()})
    return {name: score for name, score in scores.items() if name != "all-rows"}


def _long_run(trial: Trial, averages: Mapping[str, ExponentialAverage | StochasticAverage]) -> dict[str, Score]:
    began = time.perf_counter()
    given = {**trial.given, "transfer": "none"}
    assembled = assemble(given)
    job, epochs, rows = assembled.job, assembled.remaining.epochs, _unsealed(assembled)
    own = [int(mine.sum()) for mine in job.train]
    visits = epochs * sum(steps_in(n, job.batch_size) * min(n, job.batch_size) for n in own)
    epochs = epochs_within(visits, int(rows.sum()), job.batch_size)
    student = _on_all_rows(assembled, epochs, watching=[average.tracker(epochs) for average in averages.values()])
    models = {"all-rows": student.model}
    for name, watched in zip(averages, student.watched, strict=True):
        average = averaged_model(student.model, watched, 0, job, rows, (name,))
        models[name] = student.model if average is None else average
    seconds, kept = time.perf_counter() - began, f"epoch {epochs}"
    return {
        name: _score(name, [model], trial, assembled, student.visits, seconds, kept, rows)
        for name, model in models.items()
    }


def _all_rows_once(trial: Trial) -> dict[str, Score]:
    began = time.perf_counter()
    assembled = assemble({**trial.given, "transfer": "none"})
    epochs = assembled.remaining.epochs
    student = _on_all_rows(assembled, epochs)
    seconds, name, kept = time.perf_counter() - began, "all-rows-once", f"epoch {epochs}"
    rows = _unsealed(assembled)
    return {name: _score(name, [student.model], trial, assembled, student.visits, seconds, kept, rows)}


CONTROLS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(CONVENTIONAL, CONVENTIONAL, _conventional, control=True),
        Arm("conventional-long", "conventional-long", _conventional_long, control=True),
        Arm("restarts", "restarts", _restarts, control=True),
        Arm("refit", "restarts", _restarts, control=True),
        Arm("all-rows-once", "all-rows-once", _all_rows_once, control=True),
        Arm("all-rows", "all-rows", _all_rows, control=True),
        Arm("all-rows-ema", "all-rows-averaged", _all_rows_averaged, control=True),
        Arm("all-rows-swa", "all-rows-averaged", _all_rows_averaged, control=True),
        Arm("ensemble", "restarts", _restarts, control=True, reference=True),
    )
}
"""The built-in controls: `conventional` (one split, best epoch), with T times the epochs as `conventional-long`; the
best of T `restarts`; `refit` on all rows for the number of epochs that these advise; `all-rows` without validation,
at equal compute, with two weight averages of it, and for the plain number of epochs as `all-rows-once`; and the
`ensemble` of the restarts, an upper reference that costs T models at prediction."""


def _on_all_rows(
    assembled: Assembled, epochs: int, schedule: int | None = None, watching: Sequence[Any] = ()
) -> Student:
    """One run on all unsealed rows, without validation, to its last epoch."""
    return train_student(
        assembled.job,
        _unsealed(assembled),
        epochs=epochs,
        scheduler=assembled.remaining.scheduler(epochs if schedule is None else schedule),
        watching=watching,
        words=("all-rows",),
    )


def _unsealed(assembled: Assembled) -> Bool[Tensor, " N"]:
    return torch.from_numpy(~assembled.prepared.splits.sealed)


def _score(
    arm: str,
    models: Sequence[nn.Module],
    trial: Trial,
    assembled: Assembled,
    visits: float | int,
    seconds: float,
    kept: str,
    trained: Bool[Tensor, " N"] | None = None,
) -> Score:
    """What one model, or several that answer together, come to on the test rows and on those they could train on.

    The latter are `trained`, or those of the tasks.
    """
    job, prepared = assembled.job, assembled.prepared
    metric = job.objective.metric
    if trial.test is None:
        rows = torch.from_numpy(prepared.splits.sealed).nonzero().flatten()
        inputs, targets = job.inputs, job.targets[rows]
    else:
        inputs, targets = prepared.encoder.encode(trial.test.features), trial.test.target.values
        rows = torch.arange(len(inputs))
    classes = job.objective.classes
    value, _ = job.objective.score(_together([model_outputs(m, inputs, rows) for m in models], classes), targets)
    own = (job.train.any(0) if trained is None else trained).nonzero().flatten()
    outputs = _together([model_outputs(m, job.inputs, own) for m in models], classes)
    train_value, train_loss = job.objective.score(outputs, job.targets[own])
    return Score(
        arm=arm,
        seed=int(trial.given["seed"]),
        value=metric.oriented(value),
        train_loss=train_loss,
        train_value=metric.oriented(train_value),
        visits=int(visits),
        seconds=seconds,
        kept=kept,
    )


def _together(outputs: Sequence[Float[Tensor, "N C"]], classes: int | None) -> Float[Tensor, "N C"]:
    """The outputs of several models as one's: the mean of their probabilities as logits, or of their values."""
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(list(outputs))
    return stacked.mean(0) if classes is None else torch.softmax(stacked, -1).mean(0).clamp_min(1e-30).log()


def _hush(event: Mapping[str, Any]) -> None:
    """Hears the runs' own events, which a comparison has no use for."""
