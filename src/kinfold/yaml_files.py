"""YAML, read safely (no Python objects), and where in the file each key stands.

`1e-3` is a number, as in JSON and in YAML 1.2, and not a text as in YAML 1.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kinfold.errors import InputError
from kinfold.limits import YAML_BYTES, check_yaml


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Puts quotes around what `_Loader` would take for a number."""


for _own in (_Loader, _Dumper):
    _own.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Escapes the line breaks of Unicode, which else are folded into others."""
    style = '"' if re.search("[\x85\u2028\u2029]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class Located:
    """What a YAML file holds.

    Attributes:
        value: its content.
        lines: of every key, written `optimizer.init_args.lr` or `methods[0].epsilon`, the line it stands on, from 1.
    """

    value: Any
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, key: str) -> int | None:
        """Returns the line of a key, or of the innermost one around it that is there.

        Example:
            >>> Located(None, {"optimizer": 2}).line("optimizer.lr")
            2
        """
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return None


def yaml_text(value: Any) -> str:
    """Returns a value as YAML that `read_yaml` reads back, mappings in their own order.

    Example:
        >>> print(yaml_text({"target": "1e5", "optimizer": {"lr": 0.00001}}), end="")
        target: '1e5'
        optimizer:
          lr: 1.0e-05
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def read_yaml(path: Path) -> Any:
    """Reads YAML.

    Raises:
        InputError: the file is missing, is not YAML, or would be too large (see `kinfold.limits`).
    """
    return read_located(path).value


def read_located(path: Path) -> Located:
    """Reads YAML, and where its keys stand.

    Raises:
        InputError: the file is missing, is not YAML, or would be too large (see `kinfold.limits`); or a key stands
            twice in one mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(YAML_BYTES + 1)
        if len(content) > YAML_BYTES:
            raise InputError(f"it has more than {YAML_BYTES} bytes")
        loader = _Loader(content.decode())
        try:
            node = loader.get_single_node()
            if node is None:
                return Located(None)
            check_yaml(node)
            lines = dict(_lines(node, "", set()))
            return Located(loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except RecursionError:
        raise InputError(f"{path}: cannot be read as YAML (it nests too deeply).") from None
    except Exception as error:  # its constructors raise anything: `!!int ''` an IndexError, `!!bool x` a KeyError
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}).") from None


def _lines(node: yaml.Node, path: str, told: set[int]) -> Iterator[tuple[str, int]]:
    if id(node) in told:  # an alias, which may even stand within what it is of
        return
    told.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ValueError(f"line {line}: the key {key.value!r} stands twice; take one out")
            seen.add(key.value)
            inner = f"{path}.{key.value}" if path else str(key.value)
            yield inner, line
            yield from _lines(value, inner, told)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield f"{path}[{i}]", item.start_mark.line + 1
            yield from _lines(item, f"{path}[{i}]", told)
