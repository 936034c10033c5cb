"""What the comparison's charts have in common: axes in the page's ink, one colour an arm, and an SVG of a figure.

Nothing is drawn through pyplot, and no setting of matplotlib's is changed. Ink, grid lines and ground are CSS
variables, so that a chart on a page follows its light or dark theme; the other colours are those of Okabe and Ito, or
viridis where there are more than eight, and read on both.
"""

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from kinfold.report.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, colours_of

# Colours that stand for CSS variables until the SVG is written: no palette in use has them.
INK, FAINT = "#010203", "#010204"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)"}

_PALETTE = (ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY, INK)

_WIDTH = 4.6  # inches; 331 SVG units, about a phone's width, where the text then has its nominal size


def new_axes(height: float) -> tuple[Figure, Axes]:
    """Returns a figure outside pyplot of a height in inches, and its axes in the page's ink."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    return figure, axes


def colour_map(arms: int) -> ListedColormap:
    """Returns one colour an arm: the same arm has the same colour in every chart."""
    return ListedColormap(colours_of(arms, _PALETTE))


def to_svg(figure: Figure, describe: str) -> Markup:
    """Returns the figure as an `<svg>` element for a page: no size of its own, theme colours, no names to collide."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    # the salt makes the ids of clip paths and markers the same in every run, and other in every chart of a page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": describe}):
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib wrote an SVG without a viewBox"
    text = f'<svg {view[0]} role="img" aria-label="{escape(describe)}">' + text[text.index(">") + 1 :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text)  # nosec B704  # matplotlib escapes the texts in it, and `describe` is escaped above
