"""The report's charts: arrays in, inline SVG out.

Nothing a user named is drawn in a chart (captions carry names, escaped), so no label can be read as markup or
as mathematics. Ink, grid lines and the page's ground are the page's CSS variables, so that a chart follows its
light or dark theme; the other colours are those of Okabe and Ito, or viridis where there are more than eight
tasks, and read on both.

Shapes: T tasks, P periods.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Colours that stand for CSS variables until the SVG is written: no palette in use has them.
INK, FAINT, _GROUND = "#010203", "#010204", "#010205"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", _GROUND: "var(--ground)"}

# Okabe & Ito, *Color Universal Design*, 2008, less the yellow and black, which vanish on one theme or the other.
BLUE, GREY = "#0072B2", "#8C8C8C"
_OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", BLUE, "#D55E00", "#CC79A7", GREY, INK)

_WIDTH = 4.6  # inches; 331 SVG units, about a phone's width, where the text then has its nominal size
MAX_NUMBERED = 12  # tasks, up to which a matrix has its numbers, and dots, in its cells


@dataclass(frozen=True)
class Transfer:
    """One transfer on the timeline.

    Attributes:
        period: when.
        recipient: the task that was offered knowledge.
        donor: the task it came from, or None where it came from several.
        accepted: whether the recipient kept it.
    """

    period: int
    recipient: int
    donor: int | None
    accepted: bool


def curves(
    values: Float[np.ndarray, "P T"],
    periods: Float[np.ndarray, " P"],
    *,
    selected: int | None,
    kept: int | None,
    ylabel: str,
    describe: str,
) -> Markup:
    """Returns a chart of one line a task over the periods.

    Args:
        values: loss or score of each task after each period; NaN leaves a gap.
        periods: the periods' numbers.
        selected: the task to be highlighted, or None.
        kept: index (not number) of the period whose snapshot the selected task kept, or None.
        ylabel: what is on the vertical axis.
        describe: what the chart shows, for those who cannot see it.
    """
    figure, axes = new_axes(2.9)
    tasks = values.shape[1]
    palette = colour_map(tasks)
    for t in range(tasks):
        strong = t == selected
        axes.plot(
            periods,
            values[:, t],
            color=palette(t),
            linewidth=2.6 if strong else 1.0,
            alpha=1.0 if strong or selected is None else 0.55,
            zorder=3 if strong else 2,
            marker="." if len(periods) == 1 else None,
        )
    if selected is not None and kept is not None:
        axes.plot(
            periods[kept],
            values[kept, selected],
            marker="o",
            markersize=7,
            markerfacecolor=palette(selected),
            markeredgecolor=_GROUND,
            markeredgewidth=1.5,
            zorder=4,
        )
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("period")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if tasks > 1:
        _task_key(figure, axes, tasks, "task")
    return to_svg(figure, describe)


def matrix(
    values: Float[np.ndarray, "T T"],
    *,
    exposed: Float[np.ndarray, "T T"] | None = None,
    low: float | None = None,
    digits: str,
    xlabel: str,
    ylabel: str,
    selected: int | None = None,
    describe: str,
) -> Markup:
    """Returns a heat map, its numbers written in the cells up to twelve tasks.

    Args:
        values: the cells; NaN is left empty.
        exposed: share in 0 … 1 of each cell's rows that the row's model has been exposed to; drawn, beside
            the numbers, as a dot whose area is the share. None draws no dots.
        low: the value that has the darkest colour; None is the least one.
        digits: format of the numbers, such as `".1f"`.
        xlabel: what the columns are.
        ylabel: what the rows are.
        selected: the row to be framed, or None.
        describe: what the chart shows, for those who cannot see it.
    """
    figure, axes = new_axes(4.3)
    tasks = len(values)
    finite = values[np.isfinite(values)]
    least, most = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    norm = Normalize(least if low is None else low, most)
    viridis = colormaps["viridis"]
    axes.imshow(values, cmap=viridis, norm=norm, interpolation="none", aspect="auto")
    # white on viridis' dark end, black on its light one
    on_cell = np.where(norm(np.nan_to_num(values, nan=least)).filled(0.0) < 0.6, "#FFFFFF", "#000000")
    numbered = tasks <= MAX_NUMBERED
    if numbered:
        drop = 0.0 if exposed is None else 0.12
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            axes.text(
                j,
                i + drop,
                format(values[i, j], digits),
                color=on_cell[i, j],
                size=min(9.0, 84.0 / tasks),
                ha="center",
                va="center",
            )
    if numbered and exposed is not None:
        i, j = np.nonzero(np.nan_to_num(exposed) > 0)
        widest = min(6.0, 120 / tasks)  # points
        axes.scatter(j, i - 0.3, s=exposed[i, j] * widest**2, color=list(on_cell[i, j]), linewidths=0)
    if selected is not None:
        axes.axhspan(
            selected - 0.5,
            selected + 0.5,
            facecolor="none",
            edgecolor=INK,
            linewidth=2 if numbered else 1,
            clip_on=False,
            zorder=3,
        )
    axes.set_xticks(_ticks(tasks, 12))
    axes.set_yticks(_ticks(tasks, 12))
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, tasks - 0.5)
    axes.set_ylim(tasks - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[:].set_visible(False)
    if not numbered:
        _style(figure.colorbar(ScalarMappable(norm, viridis), ax=axes, location="top", aspect=40, pad=0.02))
    return to_svg(figure, describe)


def timeline(transfers: Sequence[Transfer], tasks: int, periods: int, *, describe: str) -> Markup:
    """Returns a chart of who taught whom when: recipients by period, coloured by donor, hollow where rejected.

    Args:
        transfers: in any order; a donor of None is drawn as a small square.
        tasks: T.
        periods: the last period, which ends the axis even where nothing was tried in it.
        describe: what the chart shows, for those who cannot see it.
    """
    figure, axes = new_axes(max(2.4, min(4.6, 1.2 + 0.2 * tasks)))
    palette = colour_map(tasks)
    size = max(2.5, min(7.0, 0.75 * 72 * 3.8 / max(periods, tasks, 1))) ** 2
    for many in (False, True):
        for accepted in (False, True):
            some = [x for x in transfers if x.accepted is accepted and (x.donor is None) is many]
            colours = [GREY if x.donor is None else palette(x.donor) for x in some]
            axes.scatter(
                [x.period for x in some],
                [x.recipient for x in some],
                s=size * (0.4 if many else 1.0),
                marker="s" if many else "o",
                facecolors=colours if accepted else "none",
                edgecolors=colours,
                linewidths=1.0,
                clip_on=False,
                zorder=3,
            )
    axes.set_xlim(0, max(periods, 1) + 0.5)
    axes.set_ylim(tasks - 0.5, -0.5)
    axes.set_yticks(_ticks(tasks, 8))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("period")
    axes.set_ylabel("recipient")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    _task_key(figure, axes, tasks, "donor")
    return to_svg(figure, describe)


def comparison(
    rows: Sequence[tuple[str, float]], interval: tuple[float, float] | None, *, digits: str, describe: str
) -> Markup:
    """Returns a chart of a few scores under each other, the last with its interval.

    Args:
        rows: (what is scored, score).
        interval: (low, high) of the last score, which it marks as the one to trust; or None.
        digits: format of the numbers, such as `".1f"`.
        describe: what the chart shows, for those who cannot see it.
    """
    figure, axes = new_axes(0.6 + 0.42 * len(rows))
    last = len(rows) - 1
    colours = [GREY] * len(rows)
    if interval is not None:
        colours[last] = BLUE
        axes.plot(interval, (last, last), color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="butt")
    values = [value for _, value in rows]
    axes.scatter(values, range(len(rows)), s=50, color=colours, zorder=3)
    for y, value in enumerate(values):
        axes.annotate(
            format(value, digits), (value, y), (0, 7), textcoords="offset points", size=9, ha="center", color=INK
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(last + 0.5, -0.8)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return to_svg(figure, describe)


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


def colour_map(tasks: int) -> ListedColormap:
    """Returns one colour a task: the same task has the same colour in every chart."""
    if tasks <= len(_OKABE_ITO):
        return ListedColormap(_OKABE_ITO[:tasks])
    return ListedColormap(colormaps["viridis"](np.linspace(0.1, 0.9, tasks)))


def _task_key(figure: Figure, axes: Axes, tasks: int, label: str) -> None:
    """Says above the axes which colour is which task."""
    norm = BoundaryNorm(np.arange(tasks + 1) - 0.5, tasks)
    bar = figure.colorbar(ScalarMappable(norm, colour_map(tasks)), ax=axes, location="top", aspect=40, pad=0.03)
    bar.set_ticks(_ticks(tasks, 16))
    bar.set_label(label, color=INK, size=9)
    _style(bar)


def _ticks(tasks: int, most: int) -> list[int]:
    """Evenly spaced task numbers, at most about so many."""
    return list(range(0, tasks, math.ceil(tasks / most)))


def _style(bar: Colorbar) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=INK, labelsize=9)
    bar.minorticks_off()


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
    return Markup(text)
