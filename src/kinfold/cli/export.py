"""`kinfold export`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, declare_run, declare_trust
from kinfold.tracking.progress import printable


def _declare_export(parser: ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--format", required=True, metavar="F", help="safetensors, torch.export or onnx")
    parser.add_argument("--out", required=True, metavar="FILE|DIR", help="folder to write, or the program's file")
    parser.add_argument("--rows", metavar="DATA", help="rows to check a program on (default: the run's own data)")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    declare_trust(parser)


def _export(given: Given) -> str:
    from kinfold.result import load

    out = Path(given["out"])
    result = load(given["run"], trust=given["trust"])
    return printable(str(result.export(given["format"], out, rows=given["rows"], force=given["force"])))


EXPORT = Command(
    "export", "Writes a run's model for use elsewhere.", "RUN --format F --out FILE|DIR", _declare_export, _export
)
