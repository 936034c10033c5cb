"""The arms of a comparison: named ways of spending a budget on one labelled data set, and what each came to.

An arm's *experiment* is what has to be trained for it; arms that differ only in what they take from it share it.
Legend: T tasks, N rows, C classes or outputs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinfold.assembling import Assembled, assemble
from kinfold.candidates import ExponentialAverage, StochasticAverage, averaged_model
from kinfold.comparing.table import CONVENTIONAL, Score
from kinfold.data.base import Dataset
from kinfold.errors import InputError, unknown
from kinfold.fitting import carry_out
from kinfold.result import model_outputs
from kinfold.student import Student, epochs_within, train_student
from kinfold.tasks.order import steps_in
from kinfold.transfer import RULES

Given: TypeAlias = Mapping[str, Any]


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
        control: whether it is a control, and not a rule whose worth is in question.
        reference: whether it answers with T models at prediction.
    """

    name: str
    experiment: str
    run: Experiment = field(repr=False)
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
        return Arm(spec, spec, _fitted(spec, {"transfer": spec}))
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise InputError(f"arms: {spec!r} is no arm; give a name, or a mapping of a name and arguments of fit.")
    name = str(spec["name"])
    if name in CONTROLS:
        raise InputError(f"arms: {name!r} is the name of a control; give your arm another.")
    return Arm(name, name, _fitted(name, {key: value for key, value in spec.items() if key != "name"}))


def _fitted(arm: str, changes: Given) -> Experiment:
    """The experiment of one call of `fit`."""

    def run(trial: Trial) -> dict[str, Score]:
        began = time.perf_counter()
        given = {**trial.given, **changes}
        unknown_names = sorted(set(changes) - set(trial.given))
        if unknown_names:
            raise unknown(f"arms: {arm}", unknown_names[0], trial.given)
        assembled = assemble(given)
        result, _ = carry_out(assembled, patience=given["patience"], engine=given["engine"], listen=_hush)
        kept = result.selected.kind if result.selected.task is None else f"task {result.selected.task}"
        seconds = time.perf_counter() - began
        return {arm: _score(arm, [result.model], trial, assembled, result.cost["sample_visits"], seconds, kept)}

    return run


def _conventional(trial: Trial) -> dict[str, Score]:
    return _fitted(CONVENTIONAL, {"tasks": 1, "transfer": "none"})(trial)


def _conventional_long(trial: Trial) -> dict[str, Score]:
    epochs = trial.given["tasks"] * trial.given["epochs"]
    return _fitted("conventional-long", {"tasks": 1, "transfer": "none", "epochs": epochs})(trial)


def _restarts(trial: Trial) -> dict[str, Score]:
    """T tasks that learn nothing of each other: the best, all together, and the number of epochs that they advise."""
    began = time.perf_counter()
    given = {**trial.given, "transfer": "none", "start": "independent", "candidates": ()}
    assembled = assemble(given)
    result, engine = carry_out(assembled, patience=given["patience"], engine=given["engine"], listen=_hush)
    members = [engine.export(t) for t in range(assembled.job.tasks)]
    visits, seconds = int(result.cost["sample_visits"]), time.perf_counter() - began
    periods = [event["metric"] for event in result.history if event["event"] == "period"]
    metric = assembled.job.objective.metric
    means = torch.tensor(
        [[float("nan") if one is None else metric.oriented(one) for one in period] for period in periods]
    ).mean(1)
    epochs = 1 + int(torch.where(means.isnan(), -torch.inf, means).argmax())
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
        ),
    }


def _all_rows(trial: Trial) -> dict[str, Score]:
    """One run on all rows that visits as many as T tasks do; plain, and its weight averages."""
    began = time.perf_counter()
    given = {**trial.given, "transfer": "none", "candidates": ()}
    assembled = assemble(given)
    job, epochs = assembled.job, assembled.remaining.epochs
    own = [int(rows.sum()) for rows in job.train]
    visits = epochs * sum(steps_in(n, job.batch_size) * min(n, job.batch_size) for n in own)
    epochs = epochs_within(visits, int(_unsealed(assembled).sum()), job.batch_size)
    kinds = {"all-rows-ema": ExponentialAverage(), "all-rows-swa": StochasticAverage()}
    trackers = tuple(kind.tracker(epochs) for kind in kinds.values())
    student = _on_all_rows(assembled, epochs, watching=trackers)
    models = {"all-rows": student.model}
    for name, watched in zip(kinds, student.watched, strict=True):
        average = averaged_model(student.model, watched, 0, job, _unsealed(assembled), (name,))
        models[name] = student.model if average is None else average
    seconds, kept = time.perf_counter() - began, f"epoch {epochs}"
    return {
        name: _score(name, [model], trial, assembled, student.visits, seconds, kept) for name, model in models.items()
    }


def _all_rows_once(trial: Trial) -> dict[str, Score]:
    began = time.perf_counter()
    assembled = assemble({**trial.given, "tasks": 1, "transfer": "none", "candidates": ()})
    epochs = assembled.remaining.epochs
    student = _on_all_rows(assembled, epochs)
    seconds, name = time.perf_counter() - began, "all-rows-once"
    return {name: _score(name, [student.model], trial, assembled, student.visits, seconds, f"epoch {epochs}")}


CONTROLS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(CONVENTIONAL, CONVENTIONAL, _conventional, control=True),
        Arm("conventional-long", "conventional-long", _conventional_long, control=True),
        Arm("restarts", "restarts", _restarts, control=True),
        Arm("refit", "restarts", _restarts, control=True),
        Arm("all-rows-once", "all-rows-once", _all_rows_once, control=True),
        Arm("all-rows", "all-rows", _all_rows, control=True),
        Arm("all-rows-ema", "all-rows", _all_rows, control=True),
        Arm("all-rows-swa", "all-rows", _all_rows, control=True),
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
) -> Score:
    """What one model, or several that answer together, come to on the test rows and on those they could train on."""
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
    trained = job.train.any(0).nonzero().flatten()
    outputs = _together([model_outputs(m, job.inputs, trained) for m in models], classes)
    train_value, train_loss = job.objective.score(outputs, job.targets[trained])
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
