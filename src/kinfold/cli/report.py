"""`kinfold report`."""

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, declare_run
from kinfold.tracking.progress import printable


def _declare_report(parser: ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--rows", metavar="DATA", help="the run's data, for the page to show its hardest rows")


def _report(given: Given) -> str:
    from kinfold.report import write_report
    from kinfold.result import finished

    return printable(str(write_report(finished(given["run"]), given["rows"])))


REPORT = Command("report", "Rewrites a run's report.html.", "RUN [--rows DATA]", _declare_report, _report)
