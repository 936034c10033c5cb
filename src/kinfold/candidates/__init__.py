"""Candidates beyond the tasks' own models: soups and weight averages."""

from collections.abc import Callable

from kinfold.candidates.average import ExponentialAverage as ExponentialAverage
from kinfold.candidates.average import StochasticAverage as StochasticAverage
from kinfold.candidates.average import averaged_model as averaged_model
from kinfold.candidates.base import Built as Built
from kinfold.candidates.base import Candidate as Candidate
from kinfold.candidates.base import Finished as Finished
from kinfold.candidates.base import Kind as Kind
from kinfold.candidates.soup import GreedySoup as GreedySoup
from kinfold.candidates.soup import Soup as Soup

CANDIDATES: dict[str, Callable[..., Candidate]] = {
    "soup": Soup,
    "greedy-soup": GreedySoup,
    "ema": ExponentialAverage,
    "swa": StochasticAverage,
}
