"""Arms compared on one data set at equal compute: the statistics, the charts and the words."""

from kinfold.comparing.arms import CONTROLS as CONTROLS
from kinfold.comparing.comparison import ARMS as ARMS
from kinfold.comparing.comparison import Comparison as Comparison
from kinfold.comparing.comparison import compare as compare
