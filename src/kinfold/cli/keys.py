"""The keys of a configuration: flags of `train` and `compare`, and what their YAML files hold."""

import argparse
import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jsonargparse import ArgumentError, ArgumentParser

from kinfold.cli.base import Command, Given, Json, declare_trust
from kinfold.cli.schemas import schema_text
from kinfold.cli.sources import constant_in, defaults_in
from kinfold.errors import InputError, unknown
from kinfold.importing import may_be_named, only_parts
from kinfold.yaml_files import Located, read_located, yaml_text

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
    bool: "true or false",
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


DATA = Key(
    str, "DATA", "a name (kinfold data list), a .csv, .tsv, .parquet or .npz file, a folder, or package.module:function"
)

KEYS: Mapping[str, Key] = {
    "model": Key(Part, "M", "mlp, resnet20 … (kinfold models lists them), or package.module:factory"),
    "target": Key(str | None, "COL", "column to predict, for tables"),
    "groups": Key(str | None, "COL", "column whose values keep rows together in a split, for tables"),
    "times": Key(str | None, "COL", "column that orders rows in time, for tables"),
    "kind": Key(_Kind | None, "KIND", "classification or regression, where the target's type says otherwise"),
    "texts": Key(Names | None, "COL", "column of free text, or '[a, b]', for tables (default: those that look it)"),
    "tasks": Key(int, "T", "how many splits and models"),
    "val_fraction": Key(float, "F", "share of the unsealed rows that a task validates on"),
    "holdout": Key(float, "F", "share of all rows sealed for the estimate; 0 for no estimate"),
    "epochs": Key(int | _Auto, "E", "the cap, and the length of the schedule"),
    "patience": Key(int | None, "P", "stop when every task has gone this many epochs without improving"),
    "rescue": Key(int, "K", "how often a task that diverges starts again, at half the learning rate; 0 for never"),
    "batch_size": Key(int | _Auto, "B", "rows of one task in one batch"),
    "optimizer": Key(
        Parts | None, "OPT", "sgd (lr 0.05, momentum 0.9), adam, adamw …; '{name: adamw, lr: 0.001}'; null is sgd"
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
    "engine": Key(
        str, "ENGINE", "auto, sequential, vectorised, workers (processes), streams or devices (GPUs), cluster"
    ),
    "resources": Key(str | None, "R", "what each actor of the engine cluster takes: cpus=1,gpus=0.25"),
    "compression": Key(Part | None, "C", "of models that actors of a cluster send: bf16, adaptive or null"),
    "asynchronous": Key(bool, "A", "true lets each actor of a cluster go at its own pace; not reproducible"),
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
        type=DATA.type,
        default=argparse.SUPPRESS,
        metavar=DATA.metavar,
        help=DATA.help,
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
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML, and do no more")
    parser.add_argument("--print-schema", action="store_true", help="print the JSON schema of FILE, and do no more")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out where it stopped")
    declare_trust(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress, findings or notes")


def by_recipe() -> Json:
    """Returns the keys that a recipe may choose, each "auto"."""
    return dict.fromkeys(constant_in("kinfold.assembling", "BY_RECIPE"), "auto")


def defaults() -> Json:
    """Returns the defaults of the keys: "auto" where a recipe may choose by the data, else those of `kinfold.fit`."""
    return defaults_in("kinfold.fitting", "fit") | by_recipe()


def parse_error(error: ArgumentError, flags: Sequence[str] = ()) -> str:
    """What jsonargparse says, or of a value of a wrong type what would have been right, and of a flag the nearest.

    Args:
        error: what it raised.
        flags: all that there are.
    """
    stray = re.match(r"unrecognized arguments: ([^\s=]+)", str(error), re.IGNORECASE)
    if stray is not None:
        near = difflib.get_close_matches(stray[1], flags, n=1)
        hint = f", did you mean {near[0]}?" if near else "" if stray[1].startswith("-") else "; quote what has spaces"
        return f"{stray[1]}: unknown {'flag' if stray[1].startswith('-') else 'argument'}{hint}"
    found = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
    key = None if found is None else {**KEYS, **COMPARE_KEYS}.get(found[1])
    if found is None or key is None:
        return " ".join(str(error).split())
    return f"{found[1]}: is {found[2]!r}; give {WANTED[key.type]}"


@dataclass(frozen=True)
class Configured:
    """What the flags and the configuration file say.

    Attributes:
        values: of the keys that either has; flags go before the file.
        path: the file, or None.
        lines: of the keys that only the file has, where they stand in it.
    """

    values: Json
    path: Path | None
    lines: Located

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Has what is wrong with a key's value say where in the file the key stands."""
        try:
            yield
        except InputError as error:
            found = re.match(r"([\w.\[\]]+)[: ]", str(error))
            line = None if found is None else self.lines.line(found[1])
            if line is None:
                raise
            raise InputError(f"config {self.path} line {line}: {error}") from None


def configured(command: Command, keys: Mapping[str, Key], given: Given) -> Configured:
    """Returns what the flags and the configuration file say.

    Raises:
        InputError: the file cannot be read, has a key that there is not, or a value of a wrong type.
    """
    if given["resume"] and given["out"] is None:
        raise InputError("resume: the directory to go on in is not named; give --out DIR.")
    flags = {name: value for name, value in given.items() if name in ("data", *keys)}
    path = _config_file(command.name, given)
    found = Configured(flags, None, Located(None)) if path is None else _from_file(command, keys, path, flags)
    for name, value in found.values.items():
        if isinstance(value, str) and value[:1] in ("{", "["):
            raise InputError(f"{name}: {value} cannot be read as YAML; close its brackets, and put quotes around it.")
    return found


def runnable(command: Command, keys: Mapping[str, Key], given: Given) -> Configured:
    """Returns what `configured` does, "auto" where all leave the choice to a recipe.

    Raises:
        InputError: likewise, or no data are named.
    """
    found = configured(command, keys, given)
    if "data" not in found.values:
        raise InputError("data: is not named; give DATA (kinfold data list has names) or --config FILE.")
    return replace(found, values=by_recipe() | found.values)


def printed_instead(command: Command, keys: Mapping[str, Key], own: Given, given: Given) -> str | None:
    """Returns what `--print-schema` or `--print-config` print, or None where neither is asked for.

    Args:
        command: whose configuration it is.
        keys: its keys.
        own: their defaults.
        given: its arguments.
    """
    if given["print_schema"]:
        return schema_text(command.name)
    return _config_text(command, keys, own, configured(command, keys, given).values) if given["print_config"] else None


def _config_text(command: Command, keys: Mapping[str, Key], own: Given, values: Given) -> str:
    """A complete configuration with a comment for each key; what must be told, or left out, is commented out."""
    lines = [f"# kinfold {command.name} --config FILE; each key is also a flag, and flags go before the file"]
    for name, key in {"data": DATA, **keys}.items():
        value = values.get(name, own.get(name))
        value = list(value) if isinstance(value, tuple) else value
        told = name in values or name not in ("data", *_LEFT_OUT)
        text = yaml_text({name: value}).rstrip()
        lines += ["", f"# {key.help}", text if told else f"# {name}:"]
    return "\n".join(lines)


_LEFT_OUT = ("test", "test_share")
"""Keys of `compare` that say something by being there at all."""

_RECORDS = {"train": "config.yaml", "compare": "comparison.yaml"}
"""The file by which a command knows a directory of its own again, and that has its configuration."""


def _config_file(command: str, given: Given) -> Path | None:
    """The file that has what the flags leave out: the one named or, on resuming, the directory's own."""
    if given["config"] is not None:
        return Path(given["config"])
    own = Path(given["out"], _RECORDS[command]) if given["resume"] else None
    return own if own is not None and own.exists() else None


def reading(command: str, given: Given) -> AbstractContextManager[None]:
    """Returns what is to be entered while a command runs: the directory it goes on in may be another's.

    What the user types, and what stands in a file named by `--config`, is the user's own.
    """
    from kinfold.config import names_in

    if given["trust"] or not given["resume"] or given["config"] is not None:
        return nullcontext()
    own = Path(given["out"], _RECORDS[command])
    return only_parts(
        str(own), names_in({name: given[name] for name in ("data", *KEYS, *COMPARE_KEYS) if name in given})
    )


def _from_file(command: Command, keys: Mapping[str, Key], path: Path, flags: Given) -> Configured:
    from kinfold.config import is_object

    located = read_located(path)
    content = located.value
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"config: {path} holds no keys; write lines such as 'tasks: 8'.")
    own = {name: value for name, value in (content or {}).items() if name not in flags}
    lines = {at: line for at, line in located.lines.items() if re.split(r"[.\[]", at)[0] in own}
    found = Configured(own, path, Located(content, lines))
    with found.naming_lines():
        for name, value in own.items():
            if name not in ("data", *keys):
                raise unknown(str(name), name, ("data", *keys))
            wanted = WANTED[DATA.type if name == "data" else keys[name].type]
            if is_object(value):
                raise InputError(f"{name}: was a Python object; run it from Python, or give {name} as a flag.")
            if value is None and "null" not in wanted:
                raise InputError(f"{name}: is null; give {wanted}, or leave it out.")
        try:
            parsed: Json = command.parser().parse_object(own, defaults=False).as_dict()
        except ArgumentError as error:
            raise InputError(f"{parse_error(error)}.") from None
    return replace(found, values={**parsed, **flags})


def interrupted(command: str, folder: Path | None, values: Given) -> str:
    """Returns what is said of an interrupt: whether there is something to go on with, and how."""
    if folder is None or not (folder / _RECORDS[command]).exists():
        return "interrupted before training began; nothing was written."
    trust = " --trust" if _is_refused(values, folder) else ""
    return f"interrupted; go on with: kinfold {command} --resume{trust} --out {shlex.quote(str(folder))}"


def _is_refused(values: Given, folder: Path) -> bool:
    """Whether going on in a directory refuses what its configuration names, unless it is trusted."""
    from kinfold.assembling import resolve_trackers
    from kinfold.models.hubs import check_hub_model, hub_of

    with only_parts(str(folder)):
        try:
            resolve_trackers(values.get("tracking", ()), folder)
            model = values.get("model")
            if isinstance(model, dict) and hub_of(str(model.get("name"))) is not None:
                check_hub_model(model["name"], {name: value for name, value in model.items() if name != "name"})
            return not all(map(may_be_named, _code_in(values)))
        except InputError:
            return True


def _code_in(values: Given) -> Iterator[str]:
    """Yields the names of code in a configuration: `package.module:name` or, where it is no file, with dots alone."""
    for key in _CODE:
        for name, dotted in _texts(values.get(key), key not in _FILES):
            path = _PATH.fullmatch(name)
            if path is not None and (dotted or ":" in name) and path["module"] not in _OF_PACKAGES:
                yield name


def _texts(value: Any, dotted: bool) -> Iterator[tuple[str, bool]]:
    """Yields (a text in a value, whether it may be the name of code without a colon)."""
    if isinstance(value, str):
        yield value, dotted
    for name, one in value.items() if isinstance(value, Mapping) else ():
        yield from _texts(one, name == "class_path")
    for one in value if isinstance(value, (list, tuple)) else ():
        yield from _texts(one, dotted)


_CODE = (
    *("data", "test", "model", "optimizer", "scheduler", "loss", "metric", "splits", "transfer", "methods"),
    *("candidates", "compression", "arms"),
)
_FILES = ("data", "test", "splits")  # what has dots alone is a file there
_OF_PACKAGES = ("timm", "torchvision", "hf")
_PATH = re.compile(r"(?P<module>[^\W\d][\w.]*)[:.](?!test$)[^\W\d]\w*")
