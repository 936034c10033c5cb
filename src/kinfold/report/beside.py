"""What transfer brought, which one run cannot tell: from the comparison that the run lies in, or how to make one.

A comparison is read from its own files (docs/contracts.md, Comparison directory), as it stands there.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.files import read_yaml
from kinfold.report.words import rule_name

_LEVELS = 2  # directories above the run's in which a comparison is looked for
_SAME = ("data", "model", "tasks", "epochs")
_NEEDED = ("target", "groups", "times", "kind", "texts")


@dataclass(frozen=True)
class Beside:
    """A comparison that a run lies in.

    Attributes:
        about: what was measured.
        head: the table's columns.
        rows: its arms, the best first.
        notes: how its figures were come by.
        sentence: what helped.
        differs: how its runs differ from this one, in words.
        arm: which of its arms this run is of, or None.
    """

    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str
    sentence: str
    differs: tuple[str, ...]
    arm: str | None


def comparison_beside(run_directory: Path, config: Mapping[str, Any]) -> Beside | None:
    """Returns the comparison in whose directory a run lies, or None.

    Args:
        run_directory: the run's.
        config: the run's configuration.

    Raises:
        InputError: its `comparison.yaml` is damaged.
    """
    for folder in run_directory.resolve().parents[:_LEVELS]:
        written = folder / "comparison.md"
        if (folder / "comparison.yaml").is_file() and written.is_file():
            return _read(written.read_text(encoding="utf-8"), read_yaml(folder / "comparison.yaml"), config)
    return None


def _read(markdown: str, compared: Any, config: Mapping[str, Any]) -> Beside | None:
    about, *paragraphs = [each.strip() for each in markdown.strip().split("\n\n")]
    tables = [each for each in paragraphs if each.startswith("|")]
    if not tables or not isinstance(compared, Mapping):
        return None
    lines = [_cells(line) for line in tables[0].split("\n")]
    words = [each for each in paragraphs if not each.startswith("|")]
    differs = tuple(
        f"{name} {compared[name]} and not {config.get(name)}"
        for name in _SAME
        if name in compared and compared[name] != config.get(name)
    )
    rows = tuple(lines[2:])
    arm = rule_name(config)
    known = arm if any(row[0].split(" ")[0] == arm for row in rows) else None
    return Beside(about, lines[0], rows, " ".join(words[:-1]), words[-1] if words else "", differs, known)


def _cells(line: str) -> tuple[str, ...]:
    """The cells of a line of a Markdown table."""
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return tuple(cell.strip().replace(r"\|", "|") for cell in cells)


def compare_command(config: Mapping[str, Any]) -> str | None:
    """Returns the command that would tell what the run's rule brings; None where no command can name its parts.

    Args:
        config: the run's configuration.

    Example:
        >>> compare_command({"data": "digits", "model": "mlp", "transfer": "amto", "tasks": 8, "epochs": 30})
        'kinfold compare digits --model mlp --tasks 8 --epochs 30 --arms conventional,all-rows,amto'
    """
    arm = rule_name(config)
    named = [config.get("data"), config.get("model"), config.get("transfer")]
    if not all(isinstance(each, str) and each and not each.startswith("<") for each in named):
        return None
    arms = "conventional,all-rows" + ("" if arm == "none" else f",{arm}")
    words = ["kinfold", "compare", str(config["data"])]
    for name in ("model", "tasks", "epochs", *_NEEDED):
        if config.get(name) is not None:
            value = config[name]
            words += [f"--{name}", json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)]
    return shlex.join([*words, "--arms", arms])
