"""The comparison's charts: numbers of arms in, SVG out.

Each function returns an `<svg>` element for a page; `write_svg` makes a file of one, which stands alone. Arms are
named in the charts, as plain text: a `$` in a name is a `$`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.text import Text

from kinfold.comparing.drawing import FAINT, INK, colour_map, new_axes, to_svg
from kinfold.comparing.statistics import Interval, Paired, cliques
from kinfold.errors import InputError
from kinfold.files import write_text
from kinfold.report.colours import BLUE, GREY

_PAPER = {"var(--ink)": "#1b1f24", "var(--faint)": "#d5d9de", "var(--ground)": "#ffffff"}
"""The page's light theme, for a file that has no page around it."""

_MARKERS = "osD^v<>"  # beside the colours, for those who do not see these apart


def critical_difference(ranks: Mapping[str, float | int], cd: float | int, *, describe: str) -> Markup:
    """Returns a critical-difference diagram: arms on an axis of mean ranks, joined where not told apart.

    The best rank is on the right. A thick line joins each group of arms whose ranks lie less than the critical
    difference apart (`cliques`); the bar above the axis is as long as that difference, or as the axis if it is longer.

    Source: J. Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7, 2006, figure 1.

    Args:
        ranks: each arm's mean rank, in 1 … A, of at least two arms.
        cd: the critical difference (`nemenyi_critical_difference`), above 0.
        describe: what the chart shows, for those who cannot see it.

    Raises:
        InputError: there are fewer than two arms, a rank is not in 1 … A, or `cd` is not above 0.

    Example:
        >>> svg = critical_difference({"teach": 1.2, "all-rows": 2.0, "amto": 2.8}, 1.1, describe="Mean ranks")
        >>> svg.startswith("<svg "), "teach" in svg
        (True, True)
    """
    A = len(ranks)
    if A < 2:
        raise InputError(f"ranks: {A} arms have no differences; give at least two.")
    for arm, rank in ranks.items():
        if not 1 <= rank <= A:
            raise InputError(f"ranks: {arm!r} has {rank!r}; mean ranks of {A} arms lie between 1 and {A}.")
    if not cd > 0:
        raise InputError(f"cd: must be above 0, not {cd!r}.")
    groups = cliques(ranks, cd)
    arms = sorted(ranks, key=lambda arm: ranks[arm])
    right = arms[: (A + 1) // 2]
    left = arms[: len(right) - 1 : -1]  # the worst is the highest, so that no two lines cross
    top, first = -3.0, 1.0 + 0.6 * len(groups)  # in lines of text below the axis
    bottom = first + len(right)
    figure, axes = new_axes(0.2 * (bottom - top))
    axes.set_xlim(A, 1)
    axes.set_ylim(bottom, top)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set(visible=True, position=("data", 0), color=INK)
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, A + 1))
    axes.set_yticks([])
    margin = 0.03 * (A - 1)
    for side, edge, outward, align in ((right, 1 - margin, -1, "left"), (left, A + margin, 1, "right")):
        for level, arm in enumerate(side):
            y, rank = first + level, ranks[arm]
            axes.plot([rank, rank, edge], [0, y, y], color=INK, linewidth=1, clip_on=False)
            _write(axes, edge + outward * margin / 2, y, f"{arm} {rank:.2f}", ha=align)
    for level, group in enumerate(groups):
        y = 0.7 + 0.6 * level
        ends = [ranks[group[0]] - margin / 2, ranks[group[-1]] + margin / 2]
        axes.plot(ends, [y, y], color=BLUE, linewidth=4, solid_capstyle="butt", clip_on=False)
    end = max(1.0, A - cd)
    axes.plot([A, end], [-2, -2], color=INK, linewidth=1.5, marker="|", markersize=7, clip_on=False)
    _write(axes, (A + end) / 2, -2.6, f"critical difference {cd:.2f}", ha="center")
    return to_svg(figure, describe)


def gaps(train_loss: Mapping[str, Interval], gap: Mapping[str, Interval], *, describe: str) -> Markup:
    """Returns a chart of training loss against generalization gap, a point with its intervals for each arm.

    It tells two effects of a rule apart: to the left are arms whose optimum is better (the model fits what it trained
    on), below are arms that carry over better to unseen rows (regularisation).

    Args:
        train_loss: each arm's loss on the rows it could train on. A mean or an end that is NaN is not drawn.
        gap: each arm's generalization gap, for the same arms.
        describe: what the chart shows, for those who cannot see it.

    Raises:
        InputError: there are no arms, or the two name different ones.

    Example:
        >>> loss = {"all-rows": Interval(0.1, 0.08, 0.12), "teach": Interval(0.2, 0.17, 0.23)}
        >>> gap = {"all-rows": Interval(6.0, 5.5, 6.5), "teach": Interval(4.0, 3.0, 5.0)}
        >>> "teach" in gaps(loss, gap, describe="Loss and gap")
        True
    """
    if not train_loss or train_loss.keys() != gap.keys():
        raise InputError(
            f"gap: has the arms {list(gap)}, train_loss {list(train_loss)}; give both the same, at least one."
        )
    lines = (len(train_loss) + 1) // 2
    figure, axes = new_axes(2.9 + 0.2 * lines)
    colours = colour_map(len(train_loss))
    for i, (arm, x) in enumerate(train_loss.items()):
        y = gap[arm]
        colour = colours(i)
        axes.plot([x.low, x.high], [y.mean, y.mean], color=colour, linewidth=1.2)
        axes.plot([x.mean, x.mean], [y.low, y.high], color=colour, linewidth=1.2)
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(x.mean, y.mean, color=colour, marker=marker, markersize=6, linestyle="none", label=arm, zorder=3)
    axes.set_xlabel("training loss")
    axes.set_ylabel("generalization gap")
    axes.grid(color=FAINT, linewidth=0.6)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    _plain(legend.get_texts())
    return to_svg(figure, describe)


def differences(rows: Mapping[str, Paired], control: str, *, describe: str) -> Markup:
    """Returns a chart of each arm's paired difference to a control arm with its interval (a forest plot).

    An interval that excludes 0 is blue, any other grey; it is the arm's own, not corrected for the number of arms.

    Args:
        rows: each arm's difference to the control, above 0 where the arm is better, from top to bottom. A mean or
            an interval that is NaN is not drawn.
        control: the control arm's name.
        describe: what the chart shows, for those who cannot see it.

    Raises:
        InputError: there are no arms.

    Example:
        >>> paired = Paired(0.6, 0.2, 1.0, p=0.01, wins=5, losses=0, ties=0, corrected=True)
        >>> "better than all-rows by" in differences({"teach": paired}, "all-rows", describe="Differences")
        True
    """
    if not rows:
        raise InputError("rows: there is no arm besides the control; give at least one.")
    figure, axes = new_axes(0.8 + 0.32 * len(rows))
    axes.axvline(0, color=INK, linewidth=1)
    for y, row in enumerate(rows.values()):
        colour = BLUE if row.low > 0 or row.high < 0 else GREY
        axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2)
        axes.plot(row.mean, y, color=colour, marker="o", markersize=7)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"better than {control} by")
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _plain([axes.xaxis.label, *axes.get_yticklabels()])
    return to_svg(figure, describe)


def write_svg(path: Path, chart: Markup) -> None:
    """Writes a chart to a file that stands alone: with a size, dark ink and a white ground.

    Args:
        path: the file, by custom `*.svg`.
        chart: what a function of this module returned.
    """
    text = str(chart)
    view = re.search(r'viewBox="0 0 (\S+) (\S+)"', text)
    assert view is not None, "a chart without a viewBox"
    for variable, colour in _PAPER.items():
        text = text.replace(variable, colour)
    head, body = text.split(">", 1)
    size = f'width="{view[1]}pt" height="{view[2]}pt"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ground = f'<rect width="100%" height="100%" fill="{_PAPER["var(--ground)"]}"/>'
    write_text(path, f"{head} {size} {spaces}>{ground}{body}\n")


def _write(axes: Axes, x: float, y: float, text: str, *, ha: str) -> None:
    axes.text(x, y, text, ha=ha, va="center", size=9, color=INK, parse_math=False)


def _plain(texts: list[Text]) -> None:
    """A name is no mathematics."""
    for text in texts:
        text.set_parse_math(False)
