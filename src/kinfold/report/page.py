"""From a run's files to `report.html`: the answer first, then what it rests on.

The page is a pure function of `result.json`, `history.jsonl` and `config.yaml` (see docs/contracts.md), and of what is
put beside them: the comparison that the run lies in, and rows to look at. It needs nothing else, loads nothing, and
runs no script.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from kinfold.data import encoder_from_spec
from kinfold.errors import InputError
from kinfold.files import json_line, read_events, read_json, read_yaml, write_text
from kinfold.importing import one_line
from kinfold.report import charts, words
from kinfold.report.beside import Beside, compare_command, comparison_beside
from kinfold.report.rows import Shown, rows_to_show
from kinfold.report.words import Json, Scale, picked, present

_TABLE_PERIODS = 20  # lines of the table behind learning curves
_WIDE = 16  # tasks, or classes, up to which a table has a column for each
_LONG = 32  # tasks up to which the score matrix is written out
_MOST_LINES = 128  # of a list of tasks, contenders or confusions


@dataclass(frozen=True)
class Table:
    """What is behind a chart.

    Attributes:
        caption: what the table holds.
        head: its columns.
        rows: its lines, the first cell of each being its name.
        note: what was left out, or None.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str | None = None


def write_report(run_directory: Path, rows: Any = None) -> Path:
    """Writes `report.html` into a run directory, from the files that are there.

    Args:
        run_directory: a run directory with `result.json`, `history.jsonl` and `config.yaml`, and for rows `model.json`.
        rows: the run's data, as `kinfold.fit` was given them, for the hardest rows to be shown on the page; or None,
            and it has their numbers, labels and losses alone.

    Returns:
        The page's path.

    Raises:
        InputError: one of the files is missing or damaged; names the file, and the line. Or the rows are not the
            run's, or the run keeps no hardest rows.
    """
    history = read_events(run_directory / "history.jsonl")
    result, config = read_json(run_directory / "result.json"), read_yaml(run_directory / "config.yaml") or {}
    try:
        shown = {} if rows is None else _shown(run_directory, rows, result, config)
        page = render(result, history, config, beside=comparison_beside(run_directory, config), shown=shown)
    except InputError:
        raise
    except Exception as error:  # anything may stand in files that somebody has changed
        raise InputError(f"report: {run_directory} is damaged or of another version ({one_line(error)}).") from error
    path = run_directory / "report.html"
    write_text(path, page)
    return path


def _shown(run_directory: Path, rows: Any, result: Json, config: Json) -> Mapping[int, Shown]:
    """The hardest rows of a run, as they are to be seen."""
    diagnostics = result.get("diagnostics")
    if diagnostics is None:
        raise InputError(f"rows: {run_directory} is of a version that kept no hardest rows; leave them out.")
    hardest = [each["row"] for each in diagnostics["hardest"]]
    written = encoder_from_spec(read_json(run_directory / "model.json")["encoder"]).written
    return rows_to_show(rows, config, diagnostics["data"], hardest, written)


def render(
    result: Json,
    history: Sequence[Json],
    config: Json,
    *,
    beside: Beside | None = None,
    shown: Mapping[int, Shown] | None = None,
) -> str:
    """Returns the page of a run.

    Args:
        result: what `result.json` holds. Scores may be None where a model gave no number.
        history: the events of `history.jsonl`, in order.
        config: what `config.yaml` holds.
        beside: the comparison that the run lies in, or None.
        shown: rows of the data by number, for those of the hardest ones that are to be seen.

    Example:
        >>> result = {"tasks": 1, "epochs_run": 0, "stopped": "interrupted", "estimate": None,
        ...           "selected": {"kind": "task", "task": 0, "criterion": "mean", "score": 0.5},
        ...           "contenders": [{"kind": "task", "name": "task", "members": [0], "score": 0.5, "exposed": 0.0}],
        ...           "scores": {"metric": "accuracy", "matrix": [[0.5]], "own": [0.5], "exposed": [[0.0]]}}
        >>> "no clean estimate" in render(result, history=[], config={}).lower()
        True
    """
    scale = Scale.of(result["scores"]["metric"])
    of = partial(_of_kind, history)
    periods, epochs = of("period"), of("student")
    transfers = list(_transfers(of("transfer")))
    last = max([0, *(event["period"] for event in periods), *(each.period for each in transfers)])
    selected, estimate = result["selected"], result["estimate"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, lstrip_blocks=True)
    environment.filters |= {
        "score": scale.text,
        "number": words.decimal,
        "percent": words.percent,
        "memory": words.memory,
        "duration": words.duration,
    }
    template = resources.files("kinfold.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        result=result,
        metric=scale.metric,
        title=" · ".join(str(result[part]) for part in ("data", "model") if result.get(part)),
        selection=words.selection(result),
        interval=None if estimate is None else words.interval(estimate, scale),
        picked=picked(result),
        own_task=selected["task"] if selected["kind"] == "task" else None,
        optimism={"figure": _optimism(result, scale), "words": " ".join(words.optimism(result, scale))},
        rule=words.rule_name(config),
        beside=beside,
        command=compare_command(config),
        curves=_curves(periods, selected, scale),
        student=_student(epochs),
        student_epochs=len(epochs),
        score_matrix=_score_matrix(result, scale),
        contenders=_contenders(result, scale),
        timeline=_timeline(transfers, result["tasks"], last),
        columns_of=charts.columns_of(last),
        several=any(each.donor is None for each in transfers),
        by_pair=_by_pair(result),
        forms=_forms(of("transfer")),
        behind=_behind(result),
        shown=shown or {},
        findings=of("finding"),
        notes=[event["message"] for event in of("note")],
        config=list(_flat(config)),
    )


def _of_kind(history: Sequence[Json], kind: str) -> list[Json]:
    return [event for event in history if event["event"] == kind]


def _optimism(result: Json, scale: Scale) -> Markup | None:
    """What each set of rows said of the selected model."""
    selected, tasks, estimate = result["selected"], result["tasks"], result["estimate"]
    said: list[tuple[str, float | None]] = []
    if selected["kind"] == "task" and tasks > 1:
        said.append(("own validation set", result["scores"]["own"][selected["task"]]))
    said.append((f"mean of {tasks} validation sets" if tasks > 1 else "validation set", words.validation_mean(result)))
    interval = None
    if estimate is not None:
        said.append(("sealed rows: the clean estimate", estimate["value"]))
        if all(map(present, (estimate[part] for part in ("low", "value", "high")))):
            interval = (estimate["low"] * scale.factor, estimate["high"] * scale.factor)
    rows = [(name, score * scale.factor) for name, score in said if present(score)]
    if not rows:
        return None
    written = "; ".join(f"{name} {score:{scale.digits}}{scale.unit}" for name, score in rows)
    return charts.scores(
        "optimism",
        rows,
        interval,
        digits=scale.digits,
        unit=scale.unit,
        title="What each set of rows said of the selected model",
        describe=f"{scale.metric}: {written}.",
    )


def _curves(periods: Sequence[Json], selected: Json, scale: Scale) -> Json | None:
    if not periods:
        return None
    task = selected["task"]
    when = np.asarray([event["period"] for event in periods], dtype=np.float64)
    snapshot = task is not None and selected["kind"] == "task"
    improved = [event["period"] for event in periods if event["improved"][task]] if snapshot else []
    kept = improved[-1] if improved else None
    sides = {
        "loss": (_table([event["train_loss"] for event in periods]), "training loss", "Training loss", ".4g"),
        "score": (
            _table([event["metric"] for event in periods]) * scale.factor,
            f"validation {scale.title}",
            f"Validation {scale.title}",
            scale.digits,
        ),
    }
    return {"kept": kept, "tasks": sides["loss"][0].shape[1]} | {
        side: {
            "figure": charts.curves(
                side,
                values,
                when,
                selected=task,
                kept=kept,
                ylabel=label,
                title=f"{title} of each task",
                describe=_course(values, when, task),
            ),
            "table": _curve_table(values, when, f"{title} by period", digits, task),
        }
        for side, (values, label, title, digits) in sides.items()
    }


def _course(values: Float[np.ndarray, "P T"], when: Float[np.ndarray, " P"], selected: int | None) -> str:
    """Learning curves in a sentence."""
    T = values.shape[1]

    def spread(row: Float[np.ndarray, " T"]) -> str:
        finite = row[np.isfinite(row)]
        if not len(finite):
            return "nothing that is a number"
        return f"{finite.min():.4g}" if finite.min() == finite.max() else f"{finite.min():.4g} to {finite.max():.4g}"

    said = f"{T} tasks over {len(when)} periods: " if T > 1 else f"{len(when)} periods: "
    said += f"{spread(values[0])} after the first, {spread(values[-1])} after the last."
    if selected is not None and T > 1 and np.isfinite(values[-1, selected]):
        said += f" The selected task {selected} ends at {values[-1, selected]:.4g}."
    return said


def _curve_table(
    values: Float[np.ndarray, "P T"], when: Float[np.ndarray, " P"], caption: str, digits: str, selected: int | None
) -> Table:
    P, T = values.shape
    some = np.unique(np.linspace(0, P - 1, min(P, _TABLE_PERIODS)).round().astype(int))
    if T <= _WIDE:
        columns, head = values, [f"task {t}" for t in range(T)]
    else:
        known = np.where(np.isfinite(values).any(1, keepdims=True), values, 0.0)
        columns, head = np.nanquantile(known, (0, 0.5, 1), axis=1).T, ["least", "median", "greatest"]
        columns[~np.isfinite(values).any(1)] = np.nan
        if selected is not None:
            columns, head = np.column_stack([columns, values[:, selected]]), [*head, f"task {selected}"]
    rows = [[f"{when[p]:g}", *(_cell(value, digits) for value in columns[p])] for p in some]
    note = None if len(some) == P else f"{len(some)} of {P} periods; history.jsonl has all."
    return Table(caption, ["period", *head], rows, note)


def _student(epochs: Sequence[Json]) -> Json | None:
    """The training loss of the model that was trained on all unsealed rows in the end."""
    if not epochs:
        return None
    losses = _table([[event["train_loss"]] for event in epochs])
    when = np.arange(1.0, len(epochs) + 1)
    title = "Training loss of the student"
    figure = charts.curves(
        "student",
        losses,
        when,
        selected=None,
        kept=None,
        xlabel="epoch",
        ylabel="training loss",
        title=title,
        describe=_course(losses, when, None).replace("periods", "epochs"),
    )
    table = _curve_table(losses, when, f"{title} by epoch", ".4g", None)
    return {"figure": figure, "table": Table(table.caption, ["epoch", "student"], table.rows, table.note)}


def _score_matrix(result: Json, scale: Scale) -> Json | None:
    scores, T = result["scores"], result["tasks"]
    if T == 1:
        return None
    matrix, exposed = _table(scores["matrix"]), _table(scores["exposed"])
    selected = result["selected"]["task"] if result["selected"]["kind"] == "task" else None
    clean = int((exposed == 0).sum())
    figure = charts.matrix(
        "scores",
        matrix * scale.factor,
        exposed=exposed,
        digits=scale.digits,
        xlabel="validation set of task",
        ylabel="model of task",
        frames=() if selected is None else [(selected, 0, 1, T)],
        title=f"Score matrix: {scale.title}",
        describe=f"{T} models by {T} validation sets, from {_range(matrix * scale.factor, scale.digits)}; "
        f"{clean} of {T * T} cells are clean.",
    )
    if T <= _LONG:
        cells = [
            [f"{scale.text(s)}{f', {words.percent(e)} seen' if e else ''}" for s, e in zip(row, seen, strict=True)]
            for row, seen in zip(scores["matrix"], scores["exposed"], strict=True)
        ]
        rows = [[f"task {t}", *row] for t, row in enumerate(cells)]
        table = Table("Score, and share of the rows seen before", ["model", *(f"set {j}" for j in range(T))], rows)
    else:
        rows = []
        for t, row in enumerate(matrix[:_MOST_LINES]):
            finite = row[np.isfinite(row)]
            ends = (finite.min(), finite.mean(), finite.max()) if len(finite) else (None, None, None)
            said = [scale.text(None if end is None else float(end)) for end in ends]
            rows.append([f"task {t}", scale.text(scores["own"][t]), *said, words.percent(float(exposed[t].mean()))])
        head = ["model", "own set", "lowest", "mean", "highest", "rows seen before"]
        table = Table(
            "Scores of each model over all validation sets", head, rows, _left_out(T, "models", "result.json")
        )
    return {"figure": figure, "table": table, "clean": clean}


def _contenders(result: Json, scale: Scale) -> Table:
    chosen = picked(result)
    rows = [
        [
            f"task {each['members'][0]}" if each["kind"] == "task" else each["name"],
            each["kind"],
            ", ".join(map(str, each["members"])) if len(each["members"]) <= _LONG else f"{len(each['members'])} tasks",
            scale.text(each["score"]) if result["selected"]["criterion"] != "rank" else words.decimal(each["score"]),
            words.percent(each["exposed"]),
            "picked" if each is chosen else "",
        ]
        for each in result["contenders"]
    ]
    marked = [row for row in rows[_MOST_LINES:] if row[-1]]
    return Table(
        "Contenders",
        ["model", "kind", "of tasks", "score", "rows seen", "picked"],
        rows[:_MOST_LINES] + marked,
        _left_out(len(rows), "contenders", "result.json"),
    )


def _transfers(events: Sequence[Json]) -> Iterator[charts.Transfer]:
    for event in events:
        for x in event["transfers"]:
            yield charts.Transfer(event["period"], x["recipient"], x["donor"], x["accepted"], x.get("times", 1))


def _forms(events: Sequence[Json]) -> Table:
    """How often each form of transfer was tried and accepted, in order of first use."""
    counts: dict[tuple[str, str], list[int]] = {}
    for event in events:
        for x in event["transfers"]:
            count, times = counts.setdefault((x["form"], event["rule"]), [0, 0]), x.get("times", 1)
            count[0] += times
            count[1] += times * x["accepted"]
    rows = [[*names, *map(words.decimal, both)] for names, both in counts.items()]
    return Table("Forms of transfer", ["form", "rule", "tried", "accepted"], rows)


def _timeline(transfers: Sequence[charts.Transfer], tasks: int, last: int) -> Json | None:
    if not transfers:
        return None
    tried = sum(each.times for each in transfers)
    taken = sum(each.times for each in transfers if each.accepted)
    figure = charts.timeline(
        "timeline",
        transfers,
        tasks,
        last,
        title="Who taught whom, and when",
        describe=f"{words.decimal(tried)} transfers to {len({each.recipient for each in transfers})} of {tasks} tasks "
        f"in periods {min(each.period for each in transfers)} to {max(each.period for each in transfers)}, "
        f"{words.decimal(taken)} of them accepted.",
    )
    return {"figure": figure, "table": _timeline_table(transfers, tasks, last)}


def _timeline_table(transfers: Sequence[charts.Transfer], tasks: int, last: int) -> Table:
    """By column of the timeline and recipient; of many tasks, by recipient alone."""
    block = charts.columns_of(last)
    cells: dict[tuple[int, int], list[charts.Transfer]] = defaultdict(list)
    for each in transfers:
        cells[(each.period - 1) // block if tasks <= _WIDE else 0, each.recipient].append(each)

    def donors(some: Sequence[charts.Transfer]) -> str:
        count: Counter[int | None] = Counter()
        for each in some:
            count[each.donor] += each.times
        named = [f"{'several' if d is None else d}{f' ({n} times)' if n > 1 else ''}" for d, n in count.most_common(3)]
        return ", ".join(named) + (" …" if len(count) > 3 else "")

    def said(some: Sequence[charts.Transfer]) -> str:
        kinds = {"kept from": [x for x in some if x.accepted], "refused from": [x for x in some if not x.accepted]}
        return "; ".join(f"{kind} {donors(those)}" for kind, those in kinds.items() if those)

    if tasks <= _WIDE:
        rows = [
            [
                str(first) if block == 1 else f"{first} to {min(first + block - 1, last)}",
                *(said(cells.get((column, t), [])) for t in range(tasks)),
            ]
            for column, first in enumerate(range(1, last + 1, block))
        ]
        shown = [row for row in rows if any(row[1:])]
        return Table("Transfers by period and recipient", ["period", *(f"to task {t}" for t in range(tasks))], shown)
    lines = []
    for (_, recipient), some in sorted(cells.items())[:_MOST_LINES]:
        tried, taken = sum(x.times for x in some), sum(x.times for x in some if x.accepted)
        taken_from = donors([x for x in some if x.accepted])
        lines.append([f"task {recipient}", words.decimal(tried), words.decimal(taken), taken_from])
    head = ["recipient", "tried", "accepted", "kept from"]
    return Table("Transfers by recipient", head, lines, _left_out(len(cells), "recipients", "history.jsonl"))


def _by_pair(result: Json) -> Json | None:
    taught = (result.get("transfers") or {}).get("by_pair")
    if not taught or not np.any(_table(taught) > 0):
        return None
    counts, T = _table(taught), len(taught)
    figure = charts.matrix(
        "pairs",
        np.where(counts > 0, counts, np.nan),
        low=0.0,
        digits=".0f",
        xlabel="donor",
        ylabel="recipient",
        title="Accepted transfers by recipient and donor",
        describe=f"{words.decimal(int(counts.sum()))} in all, in {int((counts > 0).sum())} of {T * (T - 1)} pairs.",
    )
    if T <= _LONG:
        rows = [[f"task {t}", *(words.decimal(int(n)) for n in row)] for t, row in enumerate(counts)]
        table = Table("Accepted transfers", ["recipient", *(f"from {s}" for s in range(T))], rows)
    else:
        rows = [
            [f"task {t}", words.decimal(int(row.sum())), str(int(row.argmax())) if row.any() else words.NOTHING]
            for t, row in enumerate(counts[:_MOST_LINES])
        ]
        table = Table(
            "Accepted transfers", ["recipient", "in all", "most from"], rows, _left_out(T, "tasks", "result.json")
        )
    return {"figure": figure, "table": table}


def _behind(result: Json) -> Json | None:
    """What the outputs on the sealed rows say besides the estimate; None of an early version's run without them."""
    found, details = result.get("diagnostics"), (result["estimate"] or {}).get("details") or {}
    if found is None and not details:
        return None
    per_class = [
        [
            str(x["label"]),
            words.decimal(x["precision"], ".3f"),
            words.decimal(x["recall"], ".3f"),
            words.decimal(x["support"]),
        ]
        for x in details.get("per_class") or []
    ]
    head = ["class", "precision", "recall", "rows"]
    said: Json = {
        "loss": details.get("loss"),
        "error": details.get("calibration_error"),
        "per_class": Table(
            "Precision and recall of each class",
            head,
            per_class[:_MOST_LINES],
            _left_out(len(per_class), "classes", "result.json"),
        ),
        "diagnostics": found,
        "confusion": None,
        "calibration": None,
        "predictions": [],
        "hardest": [],
    }
    if found is None:
        return said
    if found["labels"] is not None:
        said["confusion"] = _confusion(found)
        said["calibration"] = _calibration(found)
        bins = found["calibration"]
        gaps = sum(each["rows"] * abs(each["accuracy"] - each["confidence"]) for each in bins)
        said["error"] = gaps / found["rows"] if found["rows"] else None
    else:
        said["predictions"] = list(_predictions(found))
    said["hardest"] = [
        {
            **each,
            "target": _target(each["target"]),
            "predicted": _target(each["predicted"]),
            "wrong": each["target"] != each["predicted"],
        }
        for each in found["hardest"]
    ]
    return said


def _confusion(found: Json) -> Json:
    """The confusion matrix, and what is taken for what most often."""
    labels, C = [str(label) for label in found["labels"]], len(found["labels"])
    wrong = [(true, taken, rows) for true, taken, rows in found["confusion"] if true != taken]
    errors = sum(rows for _, _, rows in wrong)
    summary = f"{found['rows'] - errors:,} of {found['rows']:,} rows right"
    if wrong:
        true, taken, rows = wrong[0]
        summary += (
            f"; most often, {labels[true]} was taken for {labels[taken]} ({rows:,} time{'s' if rows > 1 else ''})"
        )
    pairs = [[f"{labels[true]} taken for {labels[taken]}", words.decimal(rows)] for true, taken, rows in wrong]
    said: Json = {"summary": summary, "figure": None}
    if C <= _WIDE:
        counts = np.zeros((C, C))
        for true, taken, rows in found["confusion"]:
            counts[true, taken] = rows
        cells = [[labels[c], *(words.decimal(int(n)) for n in row)] for c, row in enumerate(counts)]
        said["table"] = Table("Rows by true class (down) and predicted class (across)", ["true class", *labels], cells)
    else:
        said["table"] = Table(
            "The most frequent confusions",
            ["confusion", "rows"],
            pairs[:40],
            _left_out(len(pairs), "confusions", "result.json", 40),
        )
    if C <= 2 * _LONG:
        counts = np.zeros((C, C))
        for true, taken, rows in found["confusion"]:
            counts[true, taken] = rows
        of_class = counts.sum(1, keepdims=True)
        said["figure"] = charts.matrix(
            "confusion",
            np.where(counts > 0, counts, np.nan),
            colours=np.where(counts > 0, counts / np.where(of_class > 0, of_class, 1), np.nan),
            low=0.0,
            digits=".0f",
            xlabel="predicted class",
            ylabel="true class",
            labels=labels,
            frames=[(c, c, 1, 1) for c in range(C)] if C <= _WIDE else (),
            title="Confusion matrix",
            describe=f"{C} true by {C} predicted classes: {summary}.",
        )
    return said


def _calibration(found: Json) -> Json:
    bins = found["calibration"]
    sure, right = (
        sum(each["rows"] * each[part] for each in bins) / max(found["rows"], 1) for part in ("confidence", "accuracy")
    )
    leaning = "surer than it was right" if sure > right else "less sure than it was right"
    summary = f"its mean confidence was {words.percent(sure)}, and it was right on {words.percent(right)}"
    rows = [
        [
            f"{words.percent(each['low'])} to {words.percent(each['high'])}",
            words.decimal(each["rows"]),
            f"{100 * each['confidence']:.1f}\u00a0%",
            f"{100 * each['accuracy']:.1f}\u00a0%",
        ]
        for each in bins
    ]
    return {
        "summary": f"{summary}: {leaning}" if abs(sure - right) >= 0.005 else summary,
        "figure": charts.calibration(
            "calibration", bins, title="Calibration curve", describe=f"{len(bins)} levels of confidence; {summary}."
        ),
        "table": Table("Rows by confidence", ["confidence", "rows", "mean confidence", "right"], rows),
    }


def _predictions(found: Json) -> Iterator[Json]:
    """A chart of predicted against true values for each of the first few targets."""
    if not found["points"]:
        return
    rows = np.asarray([row for row, _, _ in found["points"]])
    true, predicted = (_table([np.atleast_1d(point[k]).tolist() for point in found["points"]]) for k in (1, 2))
    K = true.shape[1]
    for k in range(min(K, 4)):
        name = "" if K == 1 else f" of target {k}"
        some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _TABLE_PERIODS)).round().astype(int))
        cells = [[str(rows[i]), *(_cell(each[i, k], ".5g") for each in (true, predicted))] for i in some]
        error = np.abs(predicted[:, k] - true[:, k])
        error = error[np.isfinite(error)]
        summary = f"half of the predictions{name} are within {np.median(error):.3g}" if len(error) else "no number"
        yield {
            "summary": summary,
            "figure": charts.predictions(
                f"predictions-{k}",
                true[:, k],
                predicted[:, k],
                title=f"Predicted against true values{name}",
                describe=f"{len(rows)} rows; {summary} of the truth.",
            ),
            "table": Table(
                f"Predicted and true values{name}",
                ["row", "true", "predicted"],
                cells,
                None if len(some) == found["rows"] else f"{len(some)} of {found['rows']:,} rows.",
            ),
        }


def _target(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_target, value))
    if value is None:
        return words.NOTHING
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of each leaf of a configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json_line(value)


def _table(rows: Sequence[Sequence[float | int | None]]) -> Float[np.ndarray, "rows columns"]:
    """Rows of numbers as an array, None as NaN."""
    return np.asarray(rows, dtype=np.float64)


def _cell(value: float, digits: str) -> str:
    return words.decimal(float(value), digits)


def _range(values: Float[np.ndarray, "T T"], digits: str) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():{digits}} to {finite.max():{digits}}" if finite.size else "none that is a number"


def _left_out(lines: int, what: str, file: str, most: int = _MOST_LINES) -> str | None:
    return None if lines <= most else f"{most} of {lines:,} {what}; {file} has all."
