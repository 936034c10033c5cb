"""The keys of a configuration: flags of `train` and `compare`, and what their YAML files hold."""

import argparse
import inspect
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jsonargparse import ArgumentError, ArgumentParser

from kinfold.cli.base import Command, Given, Json
from kinfold.errors import InputError, unknown

_Kind: TypeAlias = Literal["classification", "regression"]
_Auto: TypeAlias = Literal["auto"]
Part: TypeAlias = str | dict[str, Any]
Names: TypeAlias = str | list[str]
Parts: TypeAlias = str | dict[str, Any] | list[str | dict[str, Any]]
WANTED: Mapping[Any, str] = {
    int: "a whole number",
    int | _Auto: "a whole number or auto",
    float | _Auto | None: "a number, auto or null",
    int | None: "a whole number or null",
    float: "a number",
    float | None: "a number or null",
    str: "a name",
    str | None: "a name or null",
    _Kind | None: "classification, regression or null",
    Part: "a name or a mapping",
    Part | None: "a name, a mapping or null",
    Names | None: "a name, a list of names or null",
    Parts: "a name, a mapping or a list of them",
    Parts | None: "a name, a mapping, a list of them or null",
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
    "model": Key(Part, "M", "mlp, resnet20 … (kinfold models lists them), or package.module:factory"),
    "target": Key(str | None, "COL", "column to predict, for tables"),
    "groups": Key(str | None, "COL", "column whose values keep rows together in a split, for tables"),
    "times": Key(str | None, "COL", "column that orders rows in time, for tables"),
    "kind": Key(_Kind | None, "KIND", "where the target's type says otherwise"),
    "texts": Key(Names | None, "COL", "column of free text, or '[a, b]', for tables (default: those that look it)"),
    "tasks": Key(int, "T", "how many splits and models"),
    "val_fraction": Key(float, "F", "share of the unsealed rows that a task validates on"),
    "holdout": Key(float, "F", "share of all rows sealed for the estimate; 0 for no estimate"),
    "epochs": Key(int | _Auto, "E", "the cap, and the length of the schedule"),
    "patience": Key(int | None, "P", "stop when every task has gone this many epochs without improving"),
    "batch_size": Key(int | _Auto, "B", "rows of one task in one batch"),
    "optimizer": Key(
        Parts | None, "OPT", "sgd, adam, adamw …; '{name: adamw, lr: 0.001}' (default: sgd, lr 0.05, momentum 0.9)"
    ),
    "scheduler": Key(Part | None, "S", "cosine, linear, constant or null"),
    "loss": Key(Part | None, "LOSS", "cross_entropy, mse, l1, huber, or package.module:function"),
    "metric": Key(
        Part | None, "METRIC", "accuracy, r2, package.module:function, or the class of a torchmetrics object"
    ),
    "splits": Key(Part | None, "KIND|FILE", "stratified, shuffle, kfold, grouped, ordered, or a saved file"),
    "transfer": Key(Parts, "RULE", "distil, amto, teach, papa … or none; teach+papa; '{name: amto, period: 2}'"),
    "candidates": Key(Parts, "WHAT", "soup, greedy-soup, ema or swa: what may be handed back besides a task's model"),
    "methods": Key(Parts, "METHODS", "mixup, or '[mixup, {name: label_smoothing, epsilon: 0.1}]'"),
    "start": Key(str, "START", "independent or shared: whether all tasks start from the same parameters"),
    "better": Key(str, "WHAT", "metric or loss: what decides between two scores first"),
    "criterion": Key(str, "C", "mean, worst, rank or lower: how a model's scores on all validation sets become one"),
    "accumulate": Key(int, "N", "batches whose mean gradient makes one optimizer step"),
    "clip_norm": Key(float | _Auto | None, "X", "greatest gradient norm of each task"),
    "engine": Key(str, "ENGINE", "auto, sequential, vectorised, workers (processes), streams or devices (GPUs)"),
    "precision": Key(str, "P", "float32, bf16 or float64"),
    "device": Key(str, "D", "auto, cpu, cuda, cuda:1 …"),
    "seed": Key(int, "S", "of everything random"),
    "tracking": Key(Parts, "WHERE", "tensorboard, mlflow or wandb; '[tensorboard, {name: mlflow, experiment: mine}]'"),
}
"""Everything that `config.yaml` holds beside `data`."""


_SET_BY_ARMS = ("transfer", "candidates", "holdout", "seed", "tracking")
COMPARE_KEYS: Mapping[str, Key] = {
    "arms": Key(Parts, "ARMS", "a,b,c: controls, and rules such as teach+papa; or a list that has mappings, too"),
    "seeds": Key(int, "K", "how many seeds every arm runs with"),
    "test": Key(str | None, "DATA", "labelled rows that nothing else touches (default: DATA:test where there is one)"),
    "test_share": Key(float, "F", "share of the rows that each seed sets aside for the test, where there are none"),
    "control": Key(str | None, "ARM", "the arm that the others are set against (default: all-rows, else the first)"),
    **{name: key for name, key in KEYS.items() if name not in _SET_BY_ARMS},
}
"""Everything that `comparison.yaml` holds beside `data`: what `train` takes, but for what arms and seeds decide, and
for tracking, which is of one run."""


def declare_keys(parser: ArgumentParser, keys: Mapping[str, Key], defaults: Given) -> None:
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


def defaults() -> Json:
    """Returns the defaults of the keys: "auto" where a recipe may choose by the data, else those of `kinfold.fit`."""
    from kinfold.assembling import BY_RECIPE
    from kinfold.fitting import fit

    return defaults_of(fit) | dict.fromkeys(BY_RECIPE, "auto")


def defaults_of(function: Callable[..., Any]) -> Json:
    """Returns the defaults of a function's arguments, of those that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def parse_error(error: ArgumentError) -> str:
    """What jsonargparse says, or of a value of a wrong type what would have been right."""
    found = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
    key = None if found is None else {**KEYS, **COMPARE_KEYS}.get(found[1])
    if found is None or key is None:
        return " ".join(str(error).split())
    return f"{found[1]}: is {found[2]!r}; give {WANTED[key.type]}"


def values_of(command: Command, keys: Mapping[str, Key], given: Given) -> Json:
    """Returns what the flags and the configuration file say, "auto" where both leave the choice to a recipe."""
    from kinfold.assembling import BY_RECIPE

    if given["resume"] and given["out"] is None:
        raise InputError("resume: the directory to go on in is not named; give --out DIR.")
    values = {name: value for name, value in given.items() if name in ("data", *keys)}
    config = _config_file(command.name, given)
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


def _config(command: Command, keys: Mapping[str, Key], path: Path, flags: Given) -> Json:
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
        wanted = WANTED[str if name == "data" else keys[name].type]
        if is_object(value):
            raise InputError(
                f"config {path}: {name} was a Python object; run it from Python, or give {name} as a flag."
            )
        if value is None and "null" not in wanted:
            raise InputError(f"config {path}: {name}: is null; give {wanted}, or leave it out.")
        values[name] = value
    try:
        parsed: Json = command.parser().parse_object(values, defaults=False).as_dict()
    except ArgumentError as error:
        raise InputError(f"config {path}: {parse_error(error)}.") from None
    return parsed


def interrupted(command: str, folder: Path | None) -> str:
    """Returns what is said of an interrupt: whether there is something to go on with, and how."""
    if folder is None or not (folder / _RECORDS[command]).exists():
        return "interrupted before training began; nothing was written."
    return f"interrupted; go on with: kinfold {command} --resume --out {shlex.quote(str(folder))}"
