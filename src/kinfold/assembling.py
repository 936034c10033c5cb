"""From the arguments of `fit` to what the loop needs: data, splits, encoder, rule, job.

Everything that can be refused is refused here, before anything is written or trained.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold import files
from kinfold.asynchronous import check_asynchronous
from kinfold.candidates import CANDIDATES, Candidate
from kinfold.config import describe, names_in, resolve
from kinfold.data import TableEncoder, read
from kinfold.data.base import Dataset, Encoder, fingerprint
from kinfold.data.columns import CategoryColumn, stray_words
from kinfold.engines import Job, Precision
from kinfold.errors import InputError, unknown
from kinfold.finishing import Remaining
from kinfold.importing import require
from kinfold.methods import METHODS, Method
from kinfold.methods.base import overrides
from kinfold.methods.chain import name_of
from kinfold.models import Rescaled, StandardisedMSE, factory, moments, sized
from kinfold.parts import KIND_OF_LOSS, KIND_OF_METRIC, LOSSES, METRICS, optimizer_maker, scheduler_maker
from kinfold.recipes import recipe
from kinfold.run import Event
from kinfold.selection import CRITERIA
from kinfold.splits import Finding, Splits, audit, draw_splits
from kinfold.splits.base import RowInfo
from kinfold.tasks.objective import Objective, make_objective
from kinfold.tracking import TRACKERS, Tracker
from kinfold.transfer import RULES, Rule, Together

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

Auto: TypeAlias = Literal["auto"]
BY_RECIPE = ("model", "optimizer", "scheduler", "methods", "batch_size", "epochs", "clip_norm")
"""The arguments of `fit` that may be "auto"."""

_SHOWN = 5  # rows and words named in a finding


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to be started.

    Attributes:
        prepared: the data, split and encoded.
        job: what the engine trains.
        remaining: the transfer rule, and what is to come when the tasks have ended.
        config: the complete configuration, with what was chosen for "auto".
        told: what the user is to be told before training: findings of the audit, choices of the recipe.
    """

    prepared: "Prepared"
    job: Job
    remaining: Remaining
    config: dict[str, Any]
    told: list[Event]


def configuration(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit` as `config.yaml` holds them."""
    config: dict[str, Any] = describe(dict(given))
    if isinstance(given["transfer"], Together):  # a list of parts is what YAML can hold
        config["transfer"] = describe(given["transfer"].rules)
    if not isinstance(given["data"], (str, Path)):
        config["data"] = f"<{type(given['data']).__qualname__}>"  # not the rows themselves, spelled out
    return config


def check(given: Mapping[str, Any]) -> None:
    """Raises InputError where an argument of `fit` cannot be used, whatever the data are."""
    _check_whole(**{name: given[name] for name in ("tasks", "accumulate", "patience", "epochs", "batch_size")})
    rescue = given["rescue"]
    if not isinstance(rescue, (int, np.integer)) or isinstance(rescue, bool) or rescue < 0:
        raise InputError(f"rescue: is {rescue!r}; give a whole number, 0 for tasks that diverge to stay as they are.")
    _check_choices(**{name: given[name] for name in CHOICES})
    if not isinstance(given["asynchronous"], bool):
        raise InputError(f"asynchronous: is {given['asynchronous']!r}; give true or false.")
    if isinstance(given["seed"], bool) or not isinstance(given["seed"], (int, np.integer)):
        raise InputError(f"seed: is {given['seed']!r}; give a whole number.")


def resolve_trackers(spec: Any, folder: Path | None) -> tuple[Tracker, ...]:
    """Returns the trackers that one spec, or several, mean.

    Args:
        spec: the argument `tracking` of `fit`.
        folder: the run directory, or None.

    Raises:
        InputError: one of them cannot be used, or two are of one name; or one that sends a run away, or an argument
            that says where to, is read from what may be another's (see `importing.only_parts`).
    """
    for one in spec if isinstance(spec, (list, tuple)) else (spec,):
        given = {name: value for name, value in one.items() if name != "name"} if isinstance(one, Mapping) else {}
        for text in names_in(given):
            require(False, text, "tracking", "says where a run is sent or written")
        name = str(one.get("name") if isinstance(one, Mapping) else one)
        require(name not in TRACKERS or not TRACKERS[name].elsewhere, name, "tracking", "sends the run elsewhere")
    trackers = _several("tracking", spec, TRACKERS, Tracker)
    names = [tracker.name for tracker in trackers]
    if len(set(names)) < len(names):
        raise InputError(f"tracking: is {', '.join(names)}; give each once.")
    for tracker in trackers:
        tracker.check(folder)
    return trackers


def assemble(given: Mapping[str, Any]) -> Assembled:
    """Reads, splits and encodes the data, and makes every part that the arguments name.

    Args:
        given: the arguments of `fit` by name, but for `out`, `resume` and `listen`; `tracking` is only described.

    Raises:
        InputError: something given cannot be used.
    """
    check(given)
    config = configuration(given)
    rule = _rule(given["transfer"])
    if given["asynchronous"]:
        check_asynchronous(str(given["engine"]), rule)
    dataset = read(given["data"], **{name: given[name] for name in ("target", "groups", "times", "kind", "texts")})
    prepared = _prepare(dataset, *(given[name] for name in ("splits", "tasks", "val_fraction", "holdout", "seed")))
    told: list[Event] = [{"event": "finding", **asdict(finding)} for finding in prepared.findings]
    parts = {name: given[name] for name in BY_RECIPE}
    if any(is_auto(value) for value in parts.values()):
        chosen = _by_recipe(parts, prepared)
        parts |= chosen
        config |= describe(chosen)
        told.append({"event": "note", "message": _recipe_line(dataset, config)})
    batch_size, fewest = int(parts["batch_size"]), int(prepared.splits.train.sum(1).min())
    if batch_size > fewest:
        rows = f"batch_size {batch_size} is more than the {fewest} rows a task trains on: they are one batch"
        told.append({"event": "note", "message": f"{rows}, and an epoch is one step"})
    where = _device(given["device"])
    epochs = int(parts["epochs"])
    stages = _stages(rule, epochs) if prepared.splits.tasks > 1 else (epochs,)
    also = _several("candidates", given["candidates"], CANDIDATES, Candidate)
    if also and rule.student and prepared.splits.tasks > 1:
        raise InputError(
            f"candidates: with transfer {rule.name!r} its student is handed back, whatever they score; leave them out, "
            "or choose another rule, such as papa."
        )
    methods = _several("methods", parts["methods"], METHODS, Method)
    _check_candidates(also, methods)
    trackers = tuple(tracker for one in also if (tracker := one.tracker(stages[-1])) is not None)
    precision = given["precision"]
    structure, objective = _objective(parts["model"], prepared, given["loss"], given["metric"], where, precision)
    job = Job(
        model=structure,
        inputs=prepared.encoder.encode(dataset.features),
        targets=dataset.target.values,
        train=torch.from_numpy(prepared.splits.train),
        validation=torch.from_numpy(prepared.splits.validation),
        objective=objective,
        optimizer=optimizer_maker(parts["optimizer"]),
        scheduler=scheduler_maker(parts["scheduler"], stages[0], length=epochs),
        methods=(*methods, *trackers),
        batch_size=batch_size,
        accumulate=given["accumulate"],
        clip_norm=_clip_norm(parts["clip_norm"]),
        shared_start=given["start"] == "shared",
        better=given["better"],
        seed=int(given["seed"]),
        device=where,
        precision=precision,
        weights=None if dataset.weights is None else torch.from_numpy(dataset.weights),
        periods=stages[-1],
    )
    scheduler = partial(scheduler_maker, parts["scheduler"], length=epochs)
    return Assembled(prepared, job, Remaining(rule, also, epochs, stages, scheduler), config, told)


def _check_candidates(also: Sequence[Candidate], methods: Sequence[Method]) -> None:
    """Checks that what candidates put together are whole models, which some methods' parameters are not."""
    for method in methods:
        if also and (overrides(method, "weights") or overrides(method, "rebuild")):
            raise InputError(
                f"candidates: {also[0].name!r} would average what {name_of(method)} masks, quantises or cuts; leave "
                "one of them out."
            )


@dataclass(frozen=True)
class Prepared:
    """The data, split and encoded, before anything is said of how to train."""

    dataset: Dataset
    splits: Splits
    findings: list[Finding]
    encoder: Encoder
    fingerprint: str


def _prepare(
    dataset: Dataset, splits: Any, tasks: int, val_fraction: float | int, holdout: float | int, seed: int
) -> Prepared:
    info = row_info(dataset)
    drawn = draw_splits(info, splits, tasks=int(tasks), val_fraction=val_fraction, holdout=holdout, seed=int(seed))
    hashes = dataset.fingerprints()
    encoder = dataset.fit(np.flatnonzero(~drawn.sealed))
    findings = [*column_findings(dataset, encoder), *audit(drawn, info, hashes)]
    return Prepared(dataset, drawn, findings, encoder, fingerprint(dataset, hashes))


def column_findings(dataset: Dataset, encoder: Encoder) -> list[Finding]:
    """Returns a warning, of kind `column-words`, for each column of a table that is categories for a few stray words.

    Args:
        dataset: the rows.
        encoder: fitted to them.
    """
    columns = encoder.columns if isinstance(encoder, TableEncoder) else ()
    named = [column.name for column in columns if isinstance(column, CategoryColumn)]
    return [found for name in named for found in _stray_words(name, dataset.features[name])]


def _stray_words(name: str, series: "pandas.Series[Any]") -> Iterator[Finding]:
    rows = stray_words(series)
    if len(rows):
        words = [repr(word)[:40] for word in dict.fromkeys(series.iloc[rows].tolist())]
        message = (
            f"column {name!r}: is taken as categories, since {len(rows)} of its {int(series.notna().sum())} values "
            f"{'is no number' if len(rows) == 1 else 'are no numbers'}: {_few(words)} "
            f"(row{'s' * (len(rows) > 1)} {_few(rows.tolist())}); for a column of numbers, correct or empty them."
        )
        yield Finding("column-words", "warning", message, (), len(rows), tuple(rows[:_SHOWN].tolist()))


def _few(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + " …" * (len(values) > _SHOWN)


def row_info(dataset: Dataset) -> RowInfo:
    """Returns what a splitter may know of the rows."""
    target = dataset.target
    classes = None if target.labels is None else len(target.labels)
    return RowInfo(target.values.numpy(), classes, dataset.groups, dataset.times, target.labels)


def is_auto(value: object) -> bool:
    """Returns whether the recipe is to choose it."""
    return isinstance(value, str) and value == "auto"


def _by_recipe(given: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """Returns what stands for each "auto"."""
    dataset = prepared.dataset
    rows = int((~prepared.splits.sealed).sum())
    chosen = recipe(dataset.form, dataset.target.kind, rows, prepared.encoder.input_shape)
    parts = {name: getattr(chosen, name) for name, value in given.items() if is_auto(value)}
    return {
        name: part["name"] if isinstance(part, Mapping) and len(part) == 1 else part for name, part in parts.items()
    }


def _recipe_line(dataset: Dataset, config: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {files.json_line(config[name])}" for name in BY_RECIPE if config[name] is not None)
    return f"recipe for {dataset.form} data: {said}"


def _rule(spec: Any) -> Rule:
    """Returns the rule, or several as one: `teach+papa`, or a list."""
    if isinstance(spec, str) and "," in spec:
        joined = "+".join(part.strip() for part in spec.split(","))
        raise InputError(f"transfer: {spec!r} is not a rule; several together are written {joined!r}.")
    if isinstance(spec, (list, tuple)):
        rules = tuple(resolve(f"transfer[{i}]", one, RULES) for i, one in enumerate(spec))
    else:
        specs = spec.split("+") if isinstance(spec, str) else [spec]
        rules = tuple(resolve("transfer", one, RULES) for one in specs)
    for rule in rules:
        if not isinstance(rule, Rule):
            known = ", ".join(sorted(RULES))
            raise InputError(f"transfer: is a {type(rule).__name__}; give a rule, or one of {known}.")
    return rules[0] if len(rules) == 1 else Together(rules)


def _stages(rule: Rule, epochs: int) -> tuple[int, ...]:
    """Returns the numbers of the periods at which the tasks' stages end, each at least one period long.

    Where epochs are few, stages fall together, and a student keeps the last period; of a single one there is none
    to keep.
    """
    last = max(1, epochs - 1) if rule.student else epochs
    ends = [round(sum(rule.stages[: i + 1]) * epochs) for i in range(len(rule.stages))]
    return tuple(sorted({min(max(1, end), last) for end in ends}))


def _several(argument: str, spec: Any, table: Mapping[str, Callable[..., Any]], kind: type) -> tuple[Any, ...]:
    """Returns the parts that one spec, or several in order, mean."""
    known = ", ".join(sorted(table))
    if isinstance(spec, (str, Mapping, kind)):
        parts: tuple[Any, ...] = (resolve(argument, spec, table),)
    elif isinstance(spec, Iterable):
        parts = tuple(resolve(f"{argument}[{i}]", one, table) for i, one in enumerate(spec))
    else:
        raise InputError(f"{argument}: is a {type(spec).__name__}; give one or several of {known}.")
    for part in parts:
        if not isinstance(part, kind):
            raise InputError(f"{argument}: {part!r} is not a {kind.__name__.lower()}; give some of {known}.")
    return parts


def _clip_norm(value: float | int | None) -> float | int | None:
    if value is not None and not value > 0:
        raise InputError(f"clip_norm: is {value}; give a positive number, or None for no clipping.")
    return value


def _objective(
    model: Any, prepared: Prepared, loss: Any, metric: Any, device: torch.device, precision: Precision
) -> tuple[nn.Module | Callable[[], nn.Module], Objective]:
    """Returns the network and what it minimises; both in the target's standard units where the format says so."""
    dataset, encoder = prepared.dataset, prepared.encoder
    for argument, spec, kinds in (("loss", loss, KIND_OF_LOSS), ("metric", metric, KIND_OF_METRIC)):
        kind = kinds.get(spec.get("name") if isinstance(spec, Mapping) else spec)
        if kind not in (None, dataset.target.kind):
            target = f"{dataset.target.name or 'the target'} is for {dataset.target.kind}"
            raise InputError(f"{argument}: {spec!r} is for {kind}, and {target}; leave {argument} out, or set kind.")
    structure, given_loss = _model(model, encoder, dataset), resolve("loss", loss, LOSSES)
    if dataset.standardised and dataset.target.kind == "regression" and given_loss is None:
        # Fitted on the unsealed rows, like every scaler.
        mean, scale = moments(dataset.target.values[torch.from_numpy(~prepared.splits.sealed)])
        structure, given_loss = _rescaled(structure, mean, scale), StandardisedMSE(scale)
    dtype = torch.float64 if precision == "float64" else torch.float32
    made = resolve("metric", metric, METRICS)
    return structure, make_objective(dataset.target.kind, dataset.target.outputs, given_loss, made, device, dtype)


def _model(model: Any, encoder: Encoder, dataset: Dataset) -> nn.Module | Callable[[], nn.Module]:
    if isinstance(model, (str, Mapping)):
        return factory(model, encoder.input_shape, dataset.target.outputs, encoder.hints)
    if not callable(model):
        raise InputError(f"model: is a {type(model).__name__}; give an nn.Module, a factory of one, or a name.")
    return model if isinstance(model, nn.Module) else sized(model, encoder.input_shape, dataset.target.outputs)


def _rescaled(
    model: nn.Module | Callable[[], nn.Module], mean: Float[Tensor, " K"], scale: Float[Tensor, " K"]
) -> nn.Module | Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return Rescaled(model, mean, scale)
    make = model
    return lambda: Rescaled(make(), mean, scale)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0].lower() == "gpu":
        raise InputError(f"device: {name!r} cannot be used here; a GPU is {name.lower().replace('gpu', 'cuda')!r}.")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"device: {name!r} cannot be used here ({why}); try auto or cpu (kinfold doctor says what is there)."
        ) from None
    return device


def _check_whole(**counts: object) -> None:
    for name, count in counts.items():
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if count is not None and not is_auto(count) and (not whole or count < 1):  # type: ignore[operator]
            raise InputError(f"{name}: is {count!r}; give a whole number of at least 1.")


CHOICES: Mapping[str, Iterable[str]] = {
    "start": ("independent", "shared"),
    "better": ("metric", "loss"),
    "criterion": CRITERIA,
    "precision": ("float32", "bf16", "float64"),
}
"""Arguments of `fit` that are one of a few words."""


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise unknown(name, value, CHOICES[name])
