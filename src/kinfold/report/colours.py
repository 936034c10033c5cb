"""The colours of all charts that matplotlib draws: those of Okabe and Ito, or viridis where there are not enough.

Source: M. Okabe and K. Ito, *Color Universal Design*, 2008; their yellow vanishes on white, and is left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#8C8C8C"


def colours_of(number: int, palette: Sequence[str]) -> list[Any]:
    """Returns so many colours that can be told apart: the first of a palette; where it has too few, viridis's.

    Example:
        >>> colours_of(2, (BLUE, ORANGE, GREEN)), len(colours_of(5, (BLUE, ORANGE, GREEN)))
        (['#0072B2', '#E69F00'], 5)
    """
    if number <= len(palette):
        return list(palette[:number])
    return list(colormaps["viridis"](np.linspace(0.1, 0.9, number)))
