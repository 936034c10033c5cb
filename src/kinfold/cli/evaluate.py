"""`kinfold evaluate`."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, Json, declare_run, declare_trust, json_text, number, scored
from kinfold.tracking.progress import printable

if TYPE_CHECKING:  # they import torch
    from kinfold.data import Dataset
    from kinfold.result import Result
    from kinfold.selection import Estimate


def _declare_evaluate(parser: ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("data", metavar="DATA", help="labelled rows, as for train")
    parser.add_argument("--target", metavar="COL", help="column to predict (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    declare_trust(parser)


def _evaluate(given: Given) -> str:
    from kinfold.data import read
    from kinfold.files import jsonable
    from kinfold.importing import only_parts
    from kinfold.result import load

    result = load(given["run"], trust=given["trust"])
    target = result.target
    dataset = read(
        given["data"],
        target=given["target"] or target.name,
        kind=target.kind,
        labels=target.labels,
        written=result.encoder.written,
    )
    with nullcontext() if given["trust"] else only_parts(given["run"]):
        estimate, notes = _measured(result, dataset)
    # Nobody knows here where the rows come from, so nothing is said of whether they are clean.
    said = jsonable({"run": given["run"], "data": given["data"], **asdict(estimate), "clean": None, "notes": notes})
    return json_text(said) if given["json"] else _figures(said)


def _measured(result: "Result", dataset: "Dataset") -> tuple["Estimate", list[str]]:
    """Scores the run's model by the run's loss and metric; and what is to be said of them."""
    import torch

    from kinfold.config import is_object, resolve
    from kinfold.finishing import measure
    from kinfold.models import Rescaled, StandardisedMSE
    from kinfold.parts import LOSSES, METRICS
    from kinfold.tasks.objective import make_objective

    spec = {name: result.config[name] for name in ("loss", "metric")}
    lost = [name for name in spec if is_object(spec[name])]
    loss, metric = (None if is_object(spec[name]) else spec[name] for name in ("loss", "metric"))
    outputs = result.outputs(dataset.features)
    loss = resolve("loss", loss, LOSSES)
    if loss is None and isinstance(result.model, Rescaled):
        loss = StandardisedMSE(result.model.get_buffer("scale"))
    objective = make_objective(
        result.target.kind,
        result.target.outputs,
        loss,
        resolve("metric", metric, METRICS),
        torch.device("cpu"),
        outputs.dtype,
    )
    estimate = measure(
        objective,
        outputs,
        dataset.target.values,
        labels=result.target.labels,
        seed=result.config["seed"],
    )
    return estimate, [f"the run's {name} was a Python object; this is the default {name}." for name in lost]


def _figures(said: Json) -> str:
    """What `evaluate` prints."""
    details = said["details"]
    lines = [f"{scored(said)} on {said['rows']} rows", f"loss {number('loss', details['loss'])}"]
    if "per_class" in details:
        lines.append(f"calibration error {number('accuracy', details['calibration_error'])}")
        table = [("class", "rows", "recall", "precision")] + [
            (
                printable(str(each["label"])),
                str(each["support"]),
                *(number("accuracy", each[name]) for name in ("recall", "precision")),
            )
            for each in details["per_class"]
        ]
        width = max(len(row[0]) for row in table)
        lines += ["", *(f"{row[0]:{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in table), ""]
    lines += said["notes"]
    lines.append(
        "The rows are taken as new: where the run trained on them or selected by them, this is no clean estimate."
    )
    return "\n".join(lines)


EVALUATE = Command("evaluate", "Scores a run's model on labelled rows.", "RUN DATA", _declare_evaluate, _evaluate)
