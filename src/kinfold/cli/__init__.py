"""`kinfold`: the command line. Few verbs; `train` and `compare` take their configuration as flags, as YAML, or both.

Standard output holds the result and nothing else; progress, findings and errors go to standard error. What needs
torch is imported by the command that needs it, so that help is quick. The contract is docs/contracts.md.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from types import FrameType
from typing import NoReturn

from jsonargparse import ArgumentError

from kinfold._version import __version__
from kinfold.cli.base import Command, FailingError, Json
from kinfold.cli.compare import COMPARE
from kinfold.cli.completion import completion_of
from kinfold.cli.data import DATA
from kinfold.cli.doctor import DOCTOR
from kinfold.cli.evaluate import EVALUATE
from kinfold.cli.export import EXPORT
from kinfold.cli.keys import parse_error
from kinfold.cli.models import MODELS
from kinfold.cli.predict import PREDICT
from kinfold.cli.report import REPORT
from kinfold.cli.train import TRAIN
from kinfold.errors import InputError, RunError, unknown
from kinfold.tracking.progress import printable

_OTHERS = {each.name: each for each in (TRAIN, COMPARE, EVALUATE, PREDICT, EXPORT, REPORT, MODELS, DATA, DOCTOR)}
COMMANDS: Mapping[str, Command] = {**_OTHERS, "completion": completion_of(_OTHERS)}
"""Every verb."""


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
    except FailingError as error:
        _print(error.output)
        return _fail(str(error), 1)
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
    if name.startswith("-"):
        raise InputError(f"{name}: comes after a command, such as kinfold train {name}; see kinfold --help.")
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    given = _parse(name, argv[1:])
    with redirect_stdout(sys.stderr):  # what the user's own code prints is no part of the result
        return COMMANDS[name].run(given)


def _parse(name: str, arguments: list[str]) -> Json:
    try:
        given: Json = COMMANDS[name].parser().parse_args(arguments).as_dict()
    except ArgumentError as error:
        known = [flag for action in COMMANDS[name].parser()._actions for flag in action.option_strings]
        raise InputError(f"{parse_error(error, known)}; see kinfold {name} --help.") from None
    return given


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


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
            "All flags:  kinfold train --help, or as a file to edit: kinfold train DATA --print-config",
            "No luck?    kinfold doctor",
        ]
    )


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
