"""Transfer rules: what tasks learn from each other. Each rule is one file; `RULES` names them."""

from collections.abc import Callable

from kinfold.transfer.amto import AMTO as AMTO
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
from kinfold.transfer.none import Nothing as Nothing
from kinfold.transfer.teach import TeachRule as TeachRule

RULES: dict[str, Callable[..., Rule]] = {"none": Nothing, "amto": AMTO, "teach": TeachRule}
