"""A result's charts as matplotlib figures, for notebooks and papers. `Result.plot` is their front door.

None of them is known to pyplot. A figure is dark on white whatever the notebook's theme, and its text is escaped, so
that a dollar sign in a name is no mathematics. What matters is told by marks, and not by colours alone.

Shapes: T tasks, P periods.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from kinfold.report.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, colours_of
from kinfold.report.svg import spans_decades

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, "black")

_NUMBERED = 12
"""Tasks, up to which a matrix has its numbers in its cells."""


@final
class Chart(Figure):
    """A figure that a notebook shows as a picture, whether or not pyplot is in use there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def curves(
    losses: Float[np.ndarray, "P T"],
    scores: Float[np.ndarray, "P T"],
    periods: Int[np.ndarray, " P"],
    student: Float[np.ndarray, "E 2"],
    *,
    metric: str,
    selected: int | None,
) -> Chart:
    """Returns the learning curves of all tasks: the training loss, and the score on their validation rows.

    Args:
        losses: after each period; NaN leaves a gap.
        scores: likewise.
        periods: their numbers.
        student: (period, training loss) of the model that was trained on all rows in the end; may be empty.
        metric: the score's name.
        selected: the task that was handed back, or None.
    """
    figure, (left, right) = _new(8.4, 3.4, 2)
    colours = colours_of(losses.shape[1], _COLOURS)
    for axes, values, label in ((left, losses, "training loss"), (right, scores, f"validation {_plain(metric)}")):
        for t in range(values.shape[1]):
            strong = t == selected
            axes.plot(
                periods,
                values[:, t],
                color=colours[t],
                linewidth=2.4 if strong else 1.1,
                zorder=3 if strong else 2,
                marker="." if len(periods) == 1 else None,
                label=f"task {t}{' (selected)' if strong else ''}",
            )
        axes.set(xlabel="period", ylabel=label)
        if len(periods) == 1:
            axes.set_xlim(periods[0] - 1, periods[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", linewidth=0.4)
    if len(student):
        left.autoscale(axis="x")
        left.plot(*student.T, color="black", linestyle="--", linewidth=1.8, zorder=4, label="student on all rows")
    if spans_decades(np.concatenate([losses.ravel(), student[:, 1]])):
        left.set_yscale("log")
    many = losses.shape[1] > len(_COLOURS)  # more colours than can be told apart: only what matters has a name
    named = [line for t, line in enumerate(left.get_lines()) if not many or t in (selected, losses.shape[1])]
    if named:
        figure.legend(handles=named, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def score_matrix(
    scores: Float[np.ndarray, "T T"], exposed: Float[np.ndarray, "T T"], *, metric: str, selected: int | None
) -> Chart:
    """Returns every task's model on every task's validation rows; cells with rows it has been exposed to are hatched.

    Args:
        scores: S[t, j]; NaN is left empty.
        exposed: the share in 0 … 1 of a cell's rows that the model, or anything it learned from, has trained on.
        metric: the score's name.
        selected: the task that was handed back, whose row is framed, or None.
    """
    figure, (axes,) = _new(5.6, 4.6, 1)
    picture = _cells(axes, scores, 3)
    for t, j in zip(*np.nonzero(exposed > 0), strict=True):
        ink = _ink(picture, scores[t, j])
        place = (j - 0.5, t - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, fill=False, hatch="///", edgecolor=ink, linewidth=0, alpha=0.35))
    if selected is not None:
        frame = Rectangle((-0.5, selected - 0.5), len(scores), 1, fill=False, linewidth=2.5, edgecolor="black")
        axes.add_patch(frame)
        frame.set_clip_on(False)
    axes.set(xlabel="validation rows of task", ylabel="model of task")
    axes.set_title("hatched: rows it has been exposed to" + (", framed: selected" if selected is not None else ""))
    figure.colorbar(picture, ax=axes, label=_plain(metric))
    return figure


def transfer_graph(accepted: Int[np.ndarray, "T T"], proposed: Int[np.ndarray, "T T"]) -> Chart:
    """Returns who taught whom: tasks in a circle, an arrow from donor to recipient, wide where much was taken.

    Args:
        accepted: moves that were taken, recipient by donor.
        proposed: moves that were offered, likewise; a pair of which nothing was taken has a thin, dashed arrow.
    """
    figure, (axes,) = _new(4.8, 4.8, 1)
    T = len(accepted)
    angles = np.pi / 2 - 2 * np.pi * np.arange(T) / T
    places = np.stack([np.cos(angles), np.sin(angles)], 1)
    most, size = max(int(accepted.max(initial=0)), 1), min(16.0, 120.0 / T)
    for recipient, donor in zip(*np.nonzero((proposed > 0) | (accepted > 0)), strict=True):
        taken = int(accepted[recipient, donor])
        axes.add_patch(
            FancyArrowPatch(
                tuple(places[donor]),
                tuple(places[recipient]),
                connectionstyle="arc3,rad=0.15",  # so that two directions lie beside each other
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=size,
                shrinkB=size,
                linewidth=0.5 + 2.5 * taken / most,
                linestyle="-" if taken else (0, (3, 3)),
                color=BLUE if taken else GREY,
                alpha=0.8,
            )
        )
    for t, (x, y) in enumerate(places):
        axes.text(x, y, str(t), ha="center", va="center", fontsize=size * 0.75, zorder=3)
        axes.plot(x, y, "o", markersize=1.4 * size, markerfacecolor="white", markeredgecolor="black", zorder=2)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
    axes.set_axis_off()
    axes.set_title(f"{int(accepted.sum())} taken of {int(proposed.sum())} offered, by pair of tasks")
    return figure


def calibration(bins: Sequence[Mapping[str, Any]], *, rows: str) -> Chart:
    """Returns how often the model was right at each level of confidence.

    Args:
        bins: as of `kinfold.selection.calibration_bins`.
        rows: which rows these are, in words.
    """
    figure, (above, below) = _new(4.6, 5.2, 2, rows=True)
    confidence, accuracy, count = (
        np.asarray([each[name] for each in bins], dtype=np.float64) for name in ("confidence", "accuracy", "rows")
    )
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as sure as right")
    above.plot(confidence, accuracy, "o-", color=BLUE, label="the model")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that was right")
    above.legend(frameon=False, loc="upper left", fontsize="small")
    above.set_title(_plain(rows))
    below.bar(
        [each["low"] for each in bins],
        count,
        width=[each["high"] - each["low"] for each in bins],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="rows")
    return figure


def _new(width: float, height: float, axes: int, rows: bool = False) -> tuple[Chart, tuple[Axes, ...]]:
    """A figure of a size in inches, with axes beside each other, or below: the first is then the taller."""
    figure = Chart(figsize=(width, height), layout="constrained", facecolor="white")
    if rows:
        made = figure.subplots(axes, 1, squeeze=False, sharex=True, height_ratios=[3, *[1] * (axes - 1)])
    else:
        made = figure.subplots(1, axes, squeeze=False)
    every = tuple(made.ravel())
    for one in every:
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_fontsize("medium")
    return figure, every


def _cells(axes: Axes, values: Float[np.ndarray, "T T"], digits: int) -> Any:
    """A heat map, with its numbers where they can be read."""
    picture = axes.imshow(values, cmap="viridis")
    known: Bool[np.ndarray, "T T"] = np.isfinite(values)
    if len(values) <= _NUMBERED:
        for t, j in zip(*np.nonzero(known), strict=True):
            axes.text(
                j,
                t,
                f"{values[t, j]:.{digits}g}",
                ha="center",
                va="center",
                fontsize="small",
                color=_ink(picture, values[t, j]),
                zorder=3,
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return picture


def _ink(picture: Any, value: float) -> str:
    """What can be read on a cell of a heat map; an empty one is white."""
    return "black" if not math.isfinite(value) or sum(picture.to_rgba(value)[:3]) > 1.4 else "white"


def _plain(text: str) -> str:
    """A text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")
