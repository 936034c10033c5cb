"""`kinfold report`."""

from kinfold.cli.base import Command, Given, declare_run
from kinfold.tracking.progress import printable


def _report(given: Given) -> str:
    from kinfold.report import write_report
    from kinfold.result import finished

    return printable(str(write_report(finished(given["run"]))))


REPORT = Command("report", "Rewrites a run's report.html.", "RUN", declare_run, _report)
