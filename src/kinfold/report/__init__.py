"""`report.html`: one self-contained page that says what a run found, how, and how far to trust it."""

from kinfold.report.page import render as render
from kinfold.report.page import write_report as write_report
from kinfold.report.words import picked_words as picked_words
