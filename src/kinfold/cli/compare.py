"""`kinfold compare`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from kinfold._version import __version__
from kinfold.cli.base import Command, Given, Json, give_up_empty, json_text, listener, new_folder, source_of
from kinfold.cli.keys import (
    COMPARE_KEYS,
    Part,
    Parts,
    declare_keys,
    defaults,
    interrupted,
    printed_instead,
    reading,
    runnable,
)
from kinfold.cli.sources import defaults_in
from kinfold.errors import InputError
from kinfold.tracking.grid import live_grid, plain_grid
from kinfold.tracking.progress import printable

if TYPE_CHECKING:  # it imports torch
    from kinfold.comparing import Comparison


def _declare_compare(parser: ArgumentParser) -> None:
    declare_keys(parser, COMPARE_KEYS, _defaults())
    parser.add_argument("--out", metavar="DIR", help="directory of the comparison (default: runs/compare-<data>-<n>)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")


def _compare(given: Given) -> str:
    printed = printed_instead(COMPARE, COMPARE_KEYS, _defaults(), given)
    if printed is not None:
        return printed
    chosen = runnable(COMPARE, COMPARE_KEYS, given)  # and only then what imports torch
    from kinfold.comparing import compare

    values = dict(chosen.values)
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
    folder = None if given["out"] is None else Path(given["out"])

    def out() -> Path:
        nonlocal folder
        folder = new_folder("compare", source_of(values["data"]))
        return folder

    try:
        with (
            reading("compare", given),
            listener(given["quiet"], live_grid, plain_grid) as listen,
            chosen.naming_lines(),
        ):

            def told(event: Given) -> None:
                while untold:  # not before everything has been checked: bad input gets one line alone
                    listen({"event": "note", "message": untold.pop()})
                listen(event)

            found = compare(**values, out=folder or out, resume=given["resume"], listen=told)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted("compare", folder, values)) from None
    finally:
        give_up_empty(given, folder)
    assert folder is not None  # named above, or by `out`
    return json_text(_compared(found, folder)) if given["json"] else _comparison(found, folder)


def _defaults() -> Json:
    own = defaults() | defaults_in("kinfold.comparing.comparison", "compare")
    return own | {"arms": ",".join(own["arms"])}


def _arms(said: Parts) -> list[Part]:
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


COMPARE = Command("compare", "Compares ways of training at equal compute.", "DATA", _declare_compare, _compare)
