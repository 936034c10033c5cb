"""How much a file may ask for: what a small one can claim, or unpack to, is refused above a limit.

Limits are for files that say little and hold much; one that is as large as what it holds is read whatever its size.
The user raises them where their own files need more: `KINFOLD_MAX_BYTES` and `KINFOLD_MAX_PIXELS`.
"""

import os
import re

import yaml

from kinfold.errors import InputError

YAML_BYTES = 2**18
"""The most bytes of a YAML file; what is read is configurations."""

YAML_NODES, YAML_DEPTH = 20_000, 40
"""The most values that a YAML file may have, each counted wherever an alias repeats it; and how deep they may nest."""


def most_of(packed: int) -> int:
    """Returns the most bytes that a file of so many bytes may unpack to: `max_bytes()`, or 20 times what it has.

    So a large file that holds little more than it says is read whatever its size.

    Example:
        >>> most_of(100) == max_bytes(), most_of(2**30) >> 30
        (True, 20)
    """
    return max(max_bytes(), _PACKED * packed)


_PACKED = 20  # times: more than honest data are commonly packed


def max_bytes() -> int:
    """Returns the bytes that any packed file may unpack to: `KINFOLD_MAX_BYTES`, by default 4 GiB.

    Example:
        >>> max_bytes() >> 30
        4
    """
    return _limit("KINFOLD_MAX_BYTES", 2**32)


def max_pixels() -> int:
    """Returns the most pixels of one picture: `KINFOLD_MAX_PIXELS`, by default 8,192 × 8,192.

    Example:
        >>> max_pixels()
        67108864
    """
    return _limit("KINFOLD_MAX_PIXELS", 2**26)


def check_yaml(node: yaml.Node) -> None:
    r"""Checks that a YAML document stays small when its aliases are written out, and texts in it are read as YAML.

    Raises:
        InputError: it has more than `YAML_NODES` values, nests deeper than `YAML_DEPTH`, or contains itself.

    Example:
        >>> check_yaml(yaml.compose("a: &a [1, 2]\nb: *a"))
        >>> check_yaml(yaml.compose("&a [*a]"))
        Traceback (most recent call last):
        ...
        kinfold.errors.InputError: line 1: contains itself; write it out.
    """
    _measured(node, {}, 0)


def _measured(node: yaml.Node, sizes: dict[int, int | None], depth: int) -> int:
    """Returns how many values there are in a node; in `sizes` those known, None for the ones that are being counted."""
    where = f"line {node.start_mark.line + 1}"
    if depth > YAML_DEPTH:
        raise InputError(f"{where}: nests deeper than {YAML_DEPTH}; write it flatter.")
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise InputError(f"{where}: contains itself; write it out.")
        return known
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.ScalarNode):
        _check_text(node.value, where)
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                size += _measured(part, sizes, depth + 1)
    if size > YAML_NODES:
        raise InputError(f"{where}: holds more than {YAML_NODES} values; write a shorter file.")
    sizes[id(node)] = size
    return size


def _check_text(text: str, where: str) -> None:
    """Checks a text that may be YAML once more, as the value of a flag is."""
    if _NAME.fullmatch(text):
        return
    for loader in _LOADERS:
        try:
            node = yaml.compose(text, loader)
        except RecursionError:
            raise InputError(f"{where}: nests deeper than {YAML_DEPTH}; write it flatter.") from None
        except (yaml.YAMLError, ValueError):
            continue  # a text, and no more
        if node is not None and not isinstance(node, yaml.ScalarNode):
            check_yaml(node)


_LOADERS = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
"""Either may read a flag's value; they do not take quite the same texts, such as tabs, for YAML."""

_NAME = re.compile(r"[\w./:]*")


def _limit(variable: str, default: int) -> int:
    said = os.environ.get(variable, "")
    if not said:
        return default
    if not said.isascii() or not said.isdecimal() or len(said) > 18 or int(said) < 1:
        raise InputError(f"{variable}: is {said[:40]!r}; give a whole number of at least 1.")
    return int(said)
