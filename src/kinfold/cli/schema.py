"""Makes the JSON schemas of configurations, from the keys, the tables of parts and the signatures of what these make.

`python -m kinfold.cli.schema` writes the files of `kinfold.cli.schemas` anew; a test holds them to what is made here.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

COMMANDS = ("train", "compare")
"""The commands that have a configuration."""

_CLASS = {
    "type": "object",
    "description": "A class or function by its path, with its arguments.",
    "properties": {
        "class_path": {"type": "string", "description": "package.module.Class, or package.module:function"},
        "init_args": {"type": "object", "description": "arguments by name; parts within it are written alike"},
    },
    "required": ["class_path"],
    "additionalProperties": False,
}
_PATH = {"type": "string", "pattern": r"^[\w.]+:[\w.]+$", "description": "package.module:name"}
_PART = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/class"}, {"type": "object", "required": ["name"]}]}
"""A part of which no table is known."""


def build_schema(command: str) -> dict[str, Any]:
    """Returns the schema of a command's configuration, made anew.

    Args:
        command: `train` or `compare`.
    """
    import torch

    from kinfold.cli.compare import COMPARE
    from kinfold.cli.keys import COMPARE_KEYS, DATA, KEYS
    from kinfold.cli.train import TRAIN
    from kinfold.comparing.arms import SET_BY_TRIAL
    from kinfold.data import NAMES, PUBLIC

    tables = _tables()
    keys, of = (KEYS, TRAIN) if command == "train" else (COMPARE_KEYS, COMPARE)
    names = sorted([*NAMES, *PUBLIC, *(f"{name}:test" for name, each in PUBLIC.items() if each.test_rows is not None)])
    properties = {"data": {"type": "string", "examples": names, "description": DATA.help}}
    properties |= {name: _of_key(name, key, tables, of.parser()) for name, key in keys.items()}
    if command == "compare":
        properties["test"]["examples"] = names
        own = {name: _of_key(name, key, tables, None) for name, key in KEYS.items() if name not in SET_BY_TRIAL}
        properties["arms"] |= _arms(own)
    parts = {name: {"anyOf": _of_table(name, *table)} for name, table in tables.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"with the signatures of torch {'.'.join(torch.__version__.split('.')[:2])}",
        "title": f"kinfold {command}",
        "description": f"What kinfold {command} --config FILE reads. {of.summary}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {"class": _CLASS, **parts},
    }


def _tables() -> dict[str, tuple[Mapping[str, Callable[..., Any]], int]]:
    """Of each key that is a part: names → what makes it, and how many arguments that is given by position."""
    from kinfold.candidates import CANDIDATES
    from kinfold.engines.compression import COMPRESSIONS
    from kinfold.methods import METHODS
    from kinfold.models import MODELS
    from kinfold.parts import LOSSES, METRICS, OPTIMIZERS, SCHEDULERS
    from kinfold.splits import SPLITTERS
    from kinfold.tracking import TRACKERS
    from kinfold.transfer import RULES

    return {
        "model": ({name: each.make for name, each in MODELS.items()}, 2),
        "optimizer": (OPTIMIZERS, 1),
        "scheduler": ({name: make(1) for name, make in SCHEDULERS.items()}, 1),
        "loss": (LOSSES, 0),
        "metric": (METRICS, 0),
        "splits": (SPLITTERS, 0),
        "transfer": (RULES, 0),
        "candidates": (CANDIDATES, 0),
        "methods": (METHODS, 0),
        "tracking": (TRACKERS, 0),
        "compression": (COMPRESSIONS, 0),
    }


def _of_key(name: str, key: Any, tables: Mapping[str, Any], parser: Any) -> dict[str, Any]:
    from kinfold.annotations import schema_of
    from kinfold.assembling import BY_RECIPE, CHOICES
    from kinfold.cli.keys import Part, Parts
    from kinfold.engines import ENGINES

    words = {**{choice: list(known) for choice, known in CHOICES.items()}, "engine": ["auto", *ENGINES]}
    if name in words:
        said: dict[str, Any] = {"enum": words[name]}
    elif key.type in (Part, Part | None, Parts, Parts | None):
        part = {"$ref": f"#/$defs/{name}"} if name in tables else _PART
        several = [{"type": "array", "items": part}] if key.type in (Parts, Parts | None) else []
        null = [{"type": "null"}] if key.type in (Part | None, Parts | None) else []
        auto = [{"enum": ["auto"], "description": "chosen by the data"}] if name in BY_RECIPE else []
        said = {"anyOf": [part, *several, *null, *auto]}
    else:
        said = schema_of(key.type)
    return {"description": key.help, **said}


def _arms(keys: Mapping[str, Any]) -> dict[str, Any]:
    name = {"type": "string", "description": "what to call the arm"}
    arm = {
        "type": "object",
        "description": "an arm of your own: arguments of train that are another for it",
        "properties": {"name": name, **keys},
        "required": ["name"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"type": "string"}, arm]}}]}


def _of_table(key: str, table: Mapping[str, Callable[..., Any]], first: int) -> list[dict[str, Any]]:
    named = [_named(name, maker, first) for name, maker in table.items()]
    names = {"enum": list(table), "description": f"one of {len(table)} by name"}
    return [names, *_also(key, list(table)), _PATH, *named, {"$ref": "#/$defs/class"}]


def _also(key: str, names: list[str]) -> list[dict[str, Any]]:
    """What else the word for a part may be."""
    if key == "transfer":
        one = "|".join(map(re.escape, names))
        return [{"type": "string", "pattern": rf"^({one})(\+({one}))+$", "description": "several together: teach+papa"}]
    if key == "splits":
        return [{"type": "string", "pattern": r"\.safetensors$", "description": "splits of an earlier run"}]
    if key == "model":
        hub = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^(timm|torchvision):"}}}
        return [
            {"type": "string", "pattern": "^(timm|torchvision):", "description": "from a hub"},
            hub | {"required": ["name"]},
        ]
    return [{"type": "string", "pattern": r"^[\w.]+\.\w+$", "description": "package.module.Class"}]


def _named(name: str, maker: Callable[..., Any], first: int) -> dict[str, Any]:
    """A part by name, with the arguments that its signature has."""
    from kinfold.annotations import parameters_of, schema_of

    made = maker.func if isinstance(maker, partial) else maker
    told = _told(inspect.getdoc(made) or "")
    properties: dict[str, Any] = {"name": {"const": name}}
    for argument, parameter in list((parameters_of(maker) or {}).items())[first:]:
        schema = schema_of(parameter.annotation)
        described = {"description": told[argument]} if argument in told else {}
        default = parameter.default
        default = list(default) if isinstance(default, tuple) else default
        plain = isinstance(default, (bool, int, float, str, list)) and default == default  # NaN is no JSON
        properties[argument] = {**described, **schema, **({"default": default} if plain else {})}
    summary = (inspect.getdoc(made) or name).split("\n\n")[0].replace("\n", " ")
    return {
        "type": "object",
        "description": summary,
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
    }


def _told(docstring: str) -> dict[str, str]:
    """What a docstring's section of attributes or arguments says of each."""
    found = re.search(r"^(?:Attributes|Args):\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if found is None:
        return {}
    entries = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: ((?:.*)(?:\n {5,}.*)*)", found[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def main() -> None:
    """Writes the files anew."""
    from kinfold.files import write_text

    folder = Path(__file__).parent / "schemas"
    for command in COMMANDS:
        write_text(folder / f"{command}.json", json.dumps(build_schema(command), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
