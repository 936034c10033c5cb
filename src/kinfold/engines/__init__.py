"""Engines: how and where T tasks run. Each engine is one file; `choose.ENGINES` names them."""

from kinfold.engines.base import Engine as Engine
from kinfold.engines.base import Job as Job
from kinfold.engines.base import Precision as Precision
from kinfold.engines.choose import ENGINES as ENGINES
from kinfold.engines.choose import choose_engine as choose_engine
