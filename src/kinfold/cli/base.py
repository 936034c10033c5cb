"""What the verbs of the command line have in common: what a verb is, and how figures are printed."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jsonargparse import ArgumentParser
from rich.console import Console

from kinfold import disk
from kinfold.errors import InputError, RunError
from kinfold.tracking.progress import printable

Json: TypeAlias = dict[str, Any]
Given: TypeAlias = Mapping[str, Any]
Listening: TypeAlias = AbstractContextManager[Callable[[Given], None]]


@dataclass(frozen=True)
class Command:
    """One verb of the command line.

    Attributes:
        name: the verb.
        summary: what it does, in a line.
        arguments: how it is called.
        declare: adds its arguments to its parser.
        run: does it, and returns what goes to standard output.
    """

    name: str
    summary: str
    arguments: str
    declare: Callable[[ArgumentParser], None]
    run: Callable[[Given], str]

    def parser(self) -> ArgumentParser:
        """Returns what parses its arguments."""
        parser = ArgumentParser(
            prog=f"kinfold {self.name}",
            description=self.summary,
            formatter_class=argparse.HelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
        )
        self.declare(parser)
        return parser


class FailingError(RunError):
    """A verb that has something to print although it failed.

    Attributes:
        output: what goes to standard output.
    """

    def __init__(self, message: str, output: str):
        super().__init__(message)
        self.output = output


def declare_run(parser: ArgumentParser) -> None:
    """Adds RUN to the arguments of a verb."""
    parser.add_argument("run", metavar="RUN", help="a run directory that train wrote")


def declare_trust(parser: ArgumentParser) -> None:
    """Adds `--trust` to the arguments of a verb that reads a directory."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import whatever code the directory names; it runs as you, so know its maker",
    )


def source_of(data: str) -> str:
    """Returns what DATA is called in the name of a folder."""
    return data if ":" in data else Path(data).stem


def new_folder(*words: str) -> Path:
    """Makes the first directory runs/<words>-<n> that is not there yet, which no other process then gets.

    Raises:
        InputError: it cannot be made.
    """
    stem = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") or "run" for word in words)
    number = 1
    while True:
        folder = Path("runs", f"{stem}-{number}")
        try:
            disk.make_folders(folder.parent)
            disk.make_folder(folder)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"out: {folder} cannot be made ({error.strerror}); give a directory.") from None
        else:
            return folder


def give_up_empty(given: Given, folder: Path | None) -> None:
    """Removes what `new_folder` made for what then was not begun; a directory with something in it stays."""
    if given["out"] is None and folder is not None:
        disk.remove_folders([folder.parent, folder])


def listener(quiet: bool, live: Callable[[Console], Listening], plain: Callable[[], Listening]) -> Listening:
    """Returns what hears events: what keeps a terminal up to date, or what writes lines where there is none."""
    if quiet:
        return nullcontext(lambda event: None)
    console = Console(stderr=True)
    return live(console) if sys.stderr.isatty() and not console.is_dumb_terminal else plain()


def scored(estimate: Json) -> str:
    """Returns an estimate in words: metric, value and interval."""
    metric = estimate["metric"]
    low, high = (number(metric, estimate[end]) for end in ("low", "high"))
    interval = "no interval" if estimate["low"] is None else f"{estimate['level']:.0%} interval {low} to {high}"
    return f"{printable(metric)} {number(metric, estimate['value'])} ({interval.replace('%', ' %')})"


def number(metric: str, value: float | int | None) -> str:
    """Returns a value of a metric as text."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if metric == "accuracy" else f"{value:.4g}"


def aligned(lines: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Returns a table as text; the columns of these numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(f"{cell:{'>' if column in right else '<'}{widths[column]}}" for column, cell in enumerate(line))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def json_text(said: Json) -> str:
    """Returns what `--json` prints."""
    return json.dumps(said, indent=1, allow_nan=False)
