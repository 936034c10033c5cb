"""Selection: what better means, which model is best overall, what it was exposed to, and how good it is."""

from kinfold.selection.better import BETTER, better
from kinfold.selection.diagnostics import Diagnostics, diagnose
from kinfold.selection.estimate import (
    Estimate,
    Interval,
    bca,
    calibration_bins,
    calibration_error,
    estimate,
    per_class,
    wilson,
)
from kinfold.selection.ledger import Ledger, exposed_share
from kinfold.selection.select import CRITERIA, overall, select

__all__ = [
    "BETTER",
    "CRITERIA",
    "Diagnostics",
    "Estimate",
    "Interval",
    "Ledger",
    "bca",
    "better",
    "calibration_bins",
    "calibration_error",
    "diagnose",
    "estimate",
    "exposed_share",
    "overall",
    "per_class",
    "select",
    "wilson",
]
