"""The model card: what the model is, what it was trained on and how, how good it is, and what is not known of it.

Mitchell et al., *Model cards for model reporting*, FAT* 2019 (arXiv:1810.03993); its head is that of the Hugging Face
hub. It holds no rows of the data.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from kinfold._version import __version__
from kinfold.config import is_object
from kinfold.exporting.base import Finished, Json
from kinfold.report import picked_words

_TASKS = {
    ("table", "classification"): "tabular-classification",
    ("table", "regression"): "tabular-regression",
    ("image", "classification"): "image-classification",
    ("text", "classification"): "text-classification",
    ("audio", "classification"): "audio-classification",
}
_INTERVALS = {"wilson": "Wilson", "bca": "BCa bootstrap", "percentile": "percentile bootstrap"}
_SHOWN = 20  # classes, findings


def model_card(finished: Finished, program: str | None = None, about: Json | None = None) -> str:
    """Returns the card of a run's model, Markdown under a head of YAML.

    Args:
        finished: the run.
        program: the name of the file of the program that the card stands beside; None beside safetensors.
        about: the program's description.
    """
    data, target = finished.about["source"], finished.about["target"]
    structure = _structure(finished.about["model"])
    lines = [
        "---",
        yaml.safe_dump(_head(finished), sort_keys=False, allow_unicode=True).rstrip(),
        "license:  # left to you: it depends on the data and on where the model came from",
        "---",
        "",
        f"# {_plain(structure)} on {_plain(data['name'])}",
        "",
        *_what(finished, structure),
        "",
        "## Data",
        "",
        f"- Name: {_plain(data['name'])}",
        f"- Rows: {data['rows']:,}, of which {data['sealed']:,} were sealed before anything else was done",
        f"- Predicted: {_predicted(target)}",
        f"- Preprocessing, fitted on the unsealed rows: `{finished.about['encoder']['kind']}`",
        f"- Fingerprint of all rows and targets: `{data['fingerprint'] or 'not known'}`",
        "",
        "## Training",
        "",
        *_training(finished),
        "",
        "## How good it is",
        "",
        *_estimate(finished.said),
        "",
        *_selection(finished.said),
        "",
        "## Limits",
        "",
        *_limits(finished),
        "",
        "## How to use it",
        "",
        *_use(finished, program, about),
        "",
        "## Licence",
        "",
        "Not chosen yet: fill in `license` in the head of this file. It depends on the terms of the data, and of the",
        "weights the training began with, if it began with any.",
        "",
        f"Written by Kinfold {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _head(finished: Finished) -> Json:
    data, target, estimate = finished.about["source"], finished.about["target"], finished.said["estimate"]
    structure = _structure(finished.about["model"])
    task = _TASKS.get((finished.about["encoder"]["kind"], target["kind"]))
    head: Json = {"library_name": "kinfold", "tags": ["kinfold", structure, target["kind"]]}
    if task is not None:
        head["pipeline_tag"] = task
    if estimate is not None and estimate["value"] is not None:
        result = {
            "task": {"type": task or target["kind"]},
            "dataset": {"name": data["name"], "type": data["name"], "split": "sealed rows"},
            "metrics": [{"type": estimate["metric"], "value": estimate["value"], "verified": False}],
        }
        head["model-index"] = [{"name": f"{structure} on {data['name']}", "results": [result]}]
    return head


def _structure(spec: Any) -> str:
    """What a network is called: its name, its class, or that it was somebody's own."""
    if isinstance(spec, dict):
        spec = spec.get("name") or spec.get("class_path")
    return str(spec).strip("<>")


def _what(finished: Finished, structure: str) -> Iterator[str]:
    target = finished.about["target"]
    does = (
        f"tells {target['outputs']} classes apart"
        if target["labels"] is not None
        else f"predicts {target['outputs']} number{'s' if target['outputs'] > 1 else ''}"
    )
    yield f"A `{_code(structure)}` network of {finished.about['parameters']:,} parameters that {does}."
    said = finished.said
    yield f"It is {picked_words(said)}: {said['tasks']} such networks were trained on as many splits of the same rows."


def _predicted(target: Json) -> str:
    name = "" if target["name"] is None else f"{_plain(target['name'])}, "
    if target["labels"] is None:
        return f"{name}{target['outputs']} value{'s' if target['outputs'] > 1 else ''}"
    shown = ", ".join(f"`{_code(label)}`" for label in target["labels"][:_SHOWN])
    more = f" … ({len(target['labels'])} in all)" if len(target["labels"]) > _SHOWN else ""
    return f"{name}one of {shown}{more}"


def _training(finished: Finished) -> Iterator[str]:
    config, said = finished.config, finished.said
    splits = "chosen by the data" if config["splits"] is None else f"`{_code(config['splits'])}`"
    yield f"- Splits: {said['tasks']}, {splits}; {config['val_fraction']:.0%} of the unsealed rows validate a task"
    yield f"- What tasks learn from each other: `{_code(config['transfer'])}`"
    transfers = said["transfers"]
    yield f"- Transfers: {transfers['accepted']:,} taken of {transfers['proposed']:,} proposed"
    yield f"- Epochs: {said['epochs_run']} of each task, stopped by {said['stopped']}"
    yield f"- Seed {said['seed']}, {said['precision']}, engine {said['engine']} on {said['device']}"
    yield f"- Optimizer: `{_code(config['optimizer'] or 'sgd, lr 0.05, momentum 0.9')}`"
    for name in ("scheduler", "batch_size", "methods"):
        if config[name] not in (None, [], ()):
            yield f"- {name.replace('_', ' ').capitalize()}: `{_code(config[name])}`"


def _estimate(said: Json) -> Iterator[str]:
    estimate = said["estimate"]
    if estimate is None:
        yield "There is no clean estimate: no rows were sealed (`holdout=0`). Score the model on new rows before use."
        return
    metric, value = _plain(estimate["metric"]), _number(estimate["metric"], estimate["value"])
    if estimate["low"] is None:
        interval = "no interval could be made"
    else:
        low, high = (_number(estimate["metric"], estimate[end]) for end in ("low", "high"))
        how = _INTERVALS.get(estimate["details"].get("interval"), "")
        interval = f"the {estimate['level']:.0%} interval is {low} to {high}{f' ({how})' if how else ''}"
    yield f"**{metric} {value}** on {estimate['rows']:,} sealed rows; {interval}."
    if estimate["clean"]:
        yield "No such row was trained on, by this model or by anything it learned from, and none selected it."
    else:
        yield "**Not clean**: the model, or something it learned from, has trained on some of these rows."
    yield "The interval covers which rows happened to be sealed: it says where the score lies on new rows that come"
    yield "about as these did. It covers no rows of another origin or a later time, and no training with another seed."


def _selection(said: Json) -> Iterator[str]:
    selected = said["selected"]
    if selected["score"] is None:
        return
    score = _number("rank" if selected["criterion"] == "rank" else said["scores"]["metric"], selected["score"])
    yield f"Selection score ({_plain(selected['criterion'])} over {said['tasks']} validation sets): {score}."
    if selected["kind"] == "distilled":
        yield "It says little, since the model has trained on these rows: quote the estimate, not this."
    else:
        yield "It is optimistic, since the model was selected by it: quote the estimate, not this."


def _limits(finished: Finished) -> Iterator[str]:
    yield "- Nothing is known of it beyond the figures above: not of fairness between groups, of attacks, or of drift."
    if finished.about["target"]["labels"] is not None:
        error = ((finished.said["estimate"] or {}).get("details") or {}).get("calibration_error")
        known = "" if error is None else f" (calibration error on the sealed rows {error:.3f})"
        yield f"- Probabilities are the softmax of the logits{known}."
        yield "- A row of none of the classes is given one of them all the same."
    findings = [e for e in finished.history if e["event"] == "finding" and e["severity"] == "warning"]
    for finding in findings[:_SHOWN]:
        yield f"- Audit of the splits: {_plain(finding['message'])}"
    if not findings:
        yield "- The audit of the splits found nothing that makes the figures doubtful."
    for event in [e for e in finished.history if e.get("diverged")][:_SHOWN]:
        yield f"- In training, {_plain(event['message'])}"


def _use(finished: Finished, program: str | None, about: Json | None) -> Iterator[str]:
    if program is None or about is None:
        own = is_object(finished.about["model"])
        yield "```python"
        yield "import kinfold"
        yield ""
        yield f'model = kinfold.load("FOLDER"{", model=network()" if own else ""})  # the folder this file lies in'
        yield "model.predict(rows)  # raw rows, as the training data were given"
        yield "```"
        return
    inputs = ", ".join(each["name"] for each in about["inputs"])
    outputs = "".join(f"{name}, " for name in finished.output_names).rstrip()
    outputs = outputs.rstrip(",") if len(finished.output_names) > 1 else outputs
    yield f"`{_code(program)}` takes {_inputs(about)}, for any number of rows, and gives {_outputs(about)}."
    yield f"`{_code(program)}.json`, and a copy inside the program, says how to come from raw rows to these, and which"
    found = about["checked"]
    yield f"output is which class. It was checked on {found['rows']:,} real rows: the greatest difference from the"
    yield f"model was {found['relative_difference']:.1e} of the greatest output."
    yield ""
    yield "```python"
    if about["format"] == "onnx":
        yield "import onnxruntime"
        yield ""
        yield f"session = onnxruntime.InferenceSession({program!r})"
        given = ", ".join(f'"{each["name"]}": {each["name"]}' for each in about["inputs"])
        yield f"{outputs} = session.run(None, {{{given}}})  # NumPy arrays"
    else:
        yield "import torch"
        yield ""
        yield f"program = torch.export.load({program!r}).module()"
        yield f"{outputs} = program({inputs})  # tensors"
    yield "```"


def _inputs(about: Json) -> str:
    return " and ".join(
        f"`{each['name']}` ({each['type']} {' x '.join(map(str, each['shape']))}: {_plain(each['what'])})"
        for each in about["inputs"]
    )


def _outputs(about: Json) -> str:
    return " and ".join(f"`{each['name']}`" for each in about["outputs"])


def _number(metric: str, value: float | int | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" if metric == "accuracy" else f"{value:.4g}"


def _plain(value: object) -> str:
    """Returns text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", _one_line(value))


def _code(value: object) -> str:
    """Returns text for between backticks."""
    return _one_line(value).replace("`", "'")


def _one_line(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))
