"""Transfer rules: what tasks learn from each other. Each rule is one file; `RULES` names them."""

from collections.abc import Callable
from functools import partial

from kinfold.transfer.amto import AMTO as AMTO
from kinfold.transfer.base import Lesson as Lesson
from kinfold.transfer.base import Outcome as Outcome
from kinfold.transfer.base import Plan as Plan
from kinfold.transfer.base import Rule as Rule
from kinfold.transfer.base import View as View
from kinfold.transfer.changes import BinaryCross as BinaryCross
from kinfold.transfer.changes import Change as Change
from kinfold.transfer.changes import Cross as Cross
from kinfold.transfer.changes import Elastic as Elastic
from kinfold.transfer.changes import Median as Median
from kinfold.transfer.changes import Mix as Mix
from kinfold.transfer.changes import Move as Move
from kinfold.transfer.changes import Restart as Restart
from kinfold.transfer.changes import Shuffle as Shuffle
from kinfold.transfer.changes import Teach as Teach
from kinfold.transfer.changes import Tune as Tune
from kinfold.transfer.distil import Distil as Distil
from kinfold.transfer.elastic import ElasticRule as ElasticRule
from kinfold.transfer.exchange import Exchange as Exchange
from kinfold.transfer.merge_median import MergeMedian as MergeMedian
from kinfold.transfer.mfea import MFEA as MFEA
from kinfold.transfer.mfea2 import MFEA2 as MFEA2
from kinfold.transfer.none import Nothing as Nothing
from kinfold.transfer.papa import PAPA as PAPA
from kinfold.transfer.papa_all import PAPAAll as PAPAAll
from kinfold.transfer.shuffle import ShuffleRule as ShuffleRule
from kinfold.transfer.teach import TeachRule as TeachRule
from kinfold.transfer.together import Together as Together

RULES: dict[str, Callable[..., Rule]] = {
    "none": Nothing,
    "amto": AMTO,
    "distil": Distil,
    "papa": PAPA,
    "papa-all": PAPAAll,
    "elastic": ElasticRule,
    "exchange": Exchange,
    "shuffle": ShuffleRule,
    "merge-median": MergeMedian,
    "mfea": MFEA,
    "mfea-2": MFEA2,
    "teach": TeachRule,
    "teach-out-of-fold": partial(TeachRule, teachers="out-of-fold"),
}
