"""From a run's files to `report.html`: the answer first, then what it rests on.

The page is a pure function of `result.json`, `history.jsonl` and `config.yaml` (see docs/contracts.md), needs
nothing else, loads nothing, and runs no script.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from kinfold.errors import InputError
from kinfold.files import read_json, read_json_lines, read_yaml, write_text
from kinfold.report import charts

Json = dict[str, Any]

_NOTHING = "–"
_CRITERIA = {
    "mean": "the best mean over all validation sets",
    "worst": "the best score on its worst validation set",
    "rank": "the best mean rank over all validation sets",
    "lower": "the best lower confidence bound over all validation sets",
}


@dataclass(frozen=True)
class Scale:
    """How scores of a metric are written: accuracies in percent, others as they are.

    Attributes:
        metric: the metric's name.
        factor: what scores are multiplied by.
        unit: what follows the number.
        digits: the number's format.
    """

    metric: str
    factor: float
    unit: str
    digits: str

    @classmethod
    def of(cls, metric: str) -> "Scale":
        """Returns the scale of a metric by its name."""
        return cls(metric, 100.0, " %", ".1f") if metric == "accuracy" else cls(metric, 1.0, "", "#.3g")

    def text(self, score: float | int | None) -> str:
        """Returns a score with its unit, or a dash where there is none."""
        return f"{score * self.factor:{self.digits}}{self.unit}" if _present(score) else _NOTHING

    def difference(self, score: float | int) -> str:
        """Returns the size of a difference between two scores, such as `1.2 points`."""
        return f"{abs(score) * self.factor:.1f} points" if self.unit else f"{abs(score):.2g}"


def write_report(run_directory: Path) -> Path:
    """Writes `report.html` into a run directory, from the files that are there.

    Args:
        run_directory: a run directory with `result.json`, and `history.jsonl` and `config.yaml`.

    Returns:
        The page's path.

    Raises:
        InputError: one of the files is missing or damaged; names the file, and the line.
    """
    history = _events(run_directory / "history.jsonl")
    page = render(
        read_json(run_directory / "result.json"),
        history,
        read_yaml(run_directory / "config.yaml") or {},
        [event for event in history if event["event"] == "finding"],
    )
    path = run_directory / "report.html"
    write_text(path, page)
    return path


def render(result: Json, history: list[Json], config: Json, findings: list[Json]) -> str:
    """Returns the page of a run.

    Args:
        result: what `result.json` holds. Scores may be None where a model gave no number.
        history: the events of `history.jsonl`, in order.
        config: what `config.yaml` holds.
        findings: what the split audit found.

    Example:
        >>> result = {"tasks": 1, "epochs_run": 0, "stopped": "interrupted", "estimate": None,
        ...           "selected": {"kind": "task", "task": 0, "criterion": "mean", "score": 0.5},
        ...           "contenders": [{"kind": "task", "name": "task", "members": [0], "score": 0.5, "exposed": 0.0}],
        ...           "scores": {"metric": "accuracy", "matrix": [[0.5]], "own": [0.5], "exposed": [[0.0]]}}
        >>> "no clean estimate" in render(result, history=[], config={}, findings=[]).lower()
        True
    """
    scale = Scale.of(result["scores"]["metric"])
    periods = [event for event in history if event["event"] == "period"]
    transfers, forms = list(_transfers(history)), _forms(history)
    selected, epochs = result["selected"], [event for event in history if event["event"] == "student"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"score": scale.text, "number": _number, "bytes": _bytes, "seconds": _seconds}
    template = resources.files("kinfold.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        result=result,
        metric=scale.metric,
        title=" · ".join(str(result[part]) for part in ("data", "model") if result.get(part)),
        selected=_selected(result),
        picked=picked(result),
        own_task=selected["task"] if selected["kind"] == "task" else None,
        comparison=_comparison(result, scale),
        curves=_curves(periods, selected, scale),
        student=_student(epochs),
        student_epochs=len(epochs),
        score_matrix=_score_matrix(result, scale),
        timeline=_timeline(transfers, forms, result["tasks"], periods),
        by_pair=_by_pair(result),
        transfers=transfers,
        forms=forms,
        findings=findings,
        notes=[event["message"] for event in history if event["event"] == "note"],
        details=(result["estimate"] or {}).get("details") or {},
        config=list(_flat(config)),
    )


def _events(path: Path) -> list[Json]:
    events = read_json_lines(path)
    for number, event in enumerate(events, start=1):
        if not isinstance(event, dict) or "event" not in event:
            raise InputError(f"{path}: line {number} is no event; resume the run to repair it.")
    return events


def _transfers(history: Sequence[Json]) -> Iterator[charts.Transfer]:
    for event in history:
        if event["event"] == "transfer":
            for x in event["transfers"]:
                yield charts.Transfer(event["period"], x["recipient"], x["donor"], x["accepted"])


def _forms(history: Sequence[Json]) -> list[tuple[str, str, int, int]]:
    """(rule, form, tried, accepted) of each form of transfer that was tried, in order of first use."""
    counts: dict[tuple[str, str], list[int]] = {}
    for event in history:
        if event["event"] == "transfer":
            for x in event["transfers"]:
                count, times = counts.setdefault((event["rule"], x["form"]), [0, 0]), x.get("times", 1)
                count[0] += times
                count[1] += times * x["accepted"]
    return [(rule, form, tried, accepted) for (rule, form), (tried, accepted) in counts.items()]


def picked(result: Json) -> Json | None:
    """Returns the contender that was handed back; None where the selection fits several, or none.

    Args:
        result: what `result.json` holds.
    """
    selected = result["selected"]
    fitting = [
        contender
        for contender in result["contenders"]
        if (contender["kind"], contender["score"]) == (selected["kind"], selected["score"])
        and (selected["task"] is None or contender["members"] == [selected["task"]])
    ]
    return fitting[0] if len(fitting) == 1 else None


def picked_words(result: Json) -> str:
    """Returns what was handed back, in words.

    Args:
        result: what `result.json` holds.

    Example:
        >>> picked_words({"tasks": 8, "contenders": [], "selected": {"kind": "task", "task": 3, "score": 0.9}})
        'task 3 of 8'
    """
    selected, tasks, contender = result["selected"], result["tasks"], picked(result)
    name = selected["kind"] if contender is None else contender["name"]
    if selected["kind"] == "distilled":
        return f"a model distilled from all {tasks} tasks, trained on all unsealed rows"
    if selected["kind"] == "average":
        return f"the {name} of task {selected['task']}, an average of its parameters over time"
    if selected["kind"] == "soup":
        return f"the {name} of {_members(contender, tasks)}, a mean of their parameters"
    return f"task {selected['task']} of {tasks}"


def _members(contender: Json | None, tasks: int) -> str:
    members = [] if contender is None else [str(task) for task in contender["members"]]
    if not members:
        return "some tasks"
    return f"all {tasks} tasks" if len(members) == tasks else f"tasks {', '.join(members[:-1])} and {members[-1]}"


def _selected(result: Json) -> str:
    """The sentence that says which model was picked and why."""
    selected, tasks = result["selected"], result["tasks"]
    if tasks == len(result["contenders"]) == 1:
        return "There was one task, and its best model was taken."
    what = picked_words(result)
    what = what[0].upper() + what[1:]
    if selected["kind"] == "distilled":
        return f"{what}; handed back whatever the others score, for no unsealed row is left to compare it on."
    if selected["kind"] == "task":
        what = f"{what} (0 to {tasks - 1})"
    why = _CRITERIA.get(selected["criterion"], f"the criterion {selected['criterion']!r}")
    return f"{what}, picked for {why}."


def _comparison(result: Json, scale: Scale) -> Json:
    """What each set of rows said of the selected model: the figure, and the sentences under it."""
    scores, selected, tasks, estimate = result["scores"], result["selected"], result["tasks"], result["estimate"]
    mean = None
    said: list[tuple[str, float | None]] = []
    if selected["kind"] == "task":
        mean = _mean(scores["matrix"][selected["task"]])
        said.append(("own validation set", scores["own"][selected["task"]]))
    elif selected["criterion"] == "mean":
        mean = selected["score"]
    if tasks > 1 or selected["kind"] != "task":
        said.append((f"mean of {tasks} validation sets" if tasks > 1 else "validation set", mean))
    if estimate is not None:
        said.append(("sealed rows", estimate["value"]))
    rows = [(name, score * scale.factor) for name, score in said if _present(score)]
    figure = interval = None
    if estimate is not None and _present(estimate["low"]) and _present(estimate["high"]):
        interval = (estimate["low"] * scale.factor, estimate["high"] * scale.factor)
    if rows:
        written = "; ".join(f"{name} {score:{scale.digits}}{scale.unit}" for name, score in rows)
        figure = charts.comparison(
            rows, interval, digits=scale.digits, describe=f"Scores of the selected model: {written}"
        )
    return {"figure": figure, "words": " ".join(_comparison_words(mean, result, scale))}


def _comparison_words(mean: float | None, result: Json, scale: Scale) -> Iterator[str]:
    selected, tasks, estimate = result["selected"], result["tasks"], result["estimate"]
    if mean is None:
        return
    sets = f"The mean over the {tasks} validation sets" if tasks > 1 else "The validation set"
    if estimate is not None and _present(estimate["value"]):
        gap = mean - estimate["value"]
        against = f"{scale.difference(gap)} {'lower' if gap > 0 else 'higher'}" if gap else "the same"
        yield f"{sets} said {scale.text(mean)}; the sealed rows say {scale.text(estimate['value'])}, {against}."
    else:
        yield f"{sets} said {scale.text(mean)}."
    if selected["kind"] == "distilled":
        yield "That score says little: the model had trained on the rows behind it."
        return
    yield "That score chose the model, and so flatters it."
    seen = _mean(result["scores"]["exposed"][selected["task"]]) if selected["kind"] == "task" else None
    if seen is not None and seen > 0:
        yield (
            f"Of the rows behind it, {100 * seen:.0f} % had been trained on, by the selected model or by one it "
            "had learned from."
        )
    contender = picked(result)
    if selected["kind"] != "task" and contender is not None:
        yield (
            f"Of the unsealed rows, {100 * contender['exposed']:.0f} % had been trained on by a model that is in it, "
            "or by one that these had learned from."
        )


def _curves(periods: Sequence[Json], selected: Json, scale: Scale) -> Json | None:
    if not periods:
        return None
    task = selected["task"]
    when = np.asarray([event["period"] for event in periods], dtype=np.float64)
    losses = _table([event["train_loss"] for event in periods])
    scores = _table([event["metric"] for event in periods]) * scale.factor
    snapshot = task is not None and selected["kind"] == "task"
    improved = [p for p, event in enumerate(periods) if event["improved"][task]] if snapshot else []
    kept = improved[-1] if improved else None
    of = f"of {losses.shape[1]} tasks over {len(periods)} periods"
    return {
        "kept": None if kept is None else periods[kept]["period"],
        "loss": charts.curves(
            losses, when, selected=task, kept=kept, ylabel="training loss", describe=f"Training loss {of}"
        ),
        "score": charts.curves(
            scores,
            when,
            selected=task,
            kept=kept,
            ylabel=f"validation score{scale.unit and f' ({scale.unit.strip()})'}",
            describe=f"Validation score {of}",
        ),
    }


def _student(epochs: Sequence[Json]) -> Markup | None:
    """The training loss of the model that was trained on all unsealed rows in the end."""
    if not epochs:
        return None
    return charts.curves(
        _table([[event["train_loss"]] for event in epochs]),
        np.asarray([event["period"] for event in epochs], dtype=np.float64),
        selected=None,
        kept=None,
        ylabel="training loss",
        describe=f"Training loss of one model on all unsealed rows over {len(epochs)} epochs",
    )


def _score_matrix(result: Json, scale: Scale) -> list[Markup]:
    """The score matrix; and, where it has too many cells to mark them, how far each had been seen."""
    scores, tasks = result["scores"], result["tasks"]
    exposed = _table(scores["exposed"])
    size = f"{tasks} models by {tasks} validation sets; the numbers are in the table below"
    labels: Json = {
        "xlabel": "validation set of task",
        "ylabel": "model of task",
        "selected": result["selected"]["task"] if result["selected"]["kind"] == "task" else None,
    }
    figures = [
        charts.matrix(
            _table(scores["matrix"]) * scale.factor,
            exposed=exposed,
            digits=scale.digits,
            describe=f"Score matrix, {size}",
            **labels,
        )
    ]
    if tasks > charts.MAX_NUMBERED:
        describe = f"Share of the rows seen before, in percent, {size}"
        figures.append(charts.matrix(100 * exposed, low=0.0, digits=".0f", describe=describe, **labels))
    return figures


def _timeline(
    transfers: Sequence[charts.Transfer],
    forms: Sequence[tuple[str, str, int, int]],
    tasks: int,
    periods: Sequence[Json],
) -> Markup | None:
    if not transfers:
        return None
    tried, accepted = sum(form[2] for form in forms), sum(form[3] for form in forms)
    return charts.timeline(
        transfers,
        tasks,
        int(max([event["period"] for event in periods] + [x.period for x in transfers])),
        describe=f"{tried} transfers by recipient and period, {accepted} of them accepted",
    )


def _by_pair(result: Json) -> Markup | None:
    taught = result.get("transfers", {}).get("by_pair")
    if not taught or not np.any(_table(taught) > 0):
        return None
    counts = _table(taught)
    return charts.matrix(
        np.where(counts > 0, counts, np.nan),
        low=0.0,
        digits=".0f",
        xlabel="donor",
        ylabel="recipient",
        describe=f"Accepted transfers, {len(counts)} recipients by {len(counts)} donors",
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of each leaf of a configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def _table(rows: Sequence[Sequence[float | int | None]]) -> Float[np.ndarray, "rows columns"]:
    """Rows of numbers as an array, None as NaN."""
    return np.asarray(rows, dtype=np.float64)


def _mean(scores: Sequence[float | int | None]) -> float | None:
    """The mean, or None where a score is missing: a mean of the others would be of other sets."""
    return float(np.mean(np.asarray(scores, dtype=np.float64))) if all(map(_present, scores)) else None


def _present(value: float | int | None) -> TypeGuard[float | int]:
    return value is not None and math.isfinite(value)


def _number(value: float | int | None, digits: str = ".4g") -> str:
    if not _present(value):
        return _NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:{digits}}"


def _bytes(value: float | int | None) -> str:
    return f"{value / 2**20:,.0f} MiB" if _present(value) else _NOTHING


def _seconds(value: float | int | None) -> str:
    if not _present(value):
        return _NOTHING
    if value < 120:
        return f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
