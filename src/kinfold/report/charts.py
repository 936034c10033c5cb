"""The report's charts: numbers in, inline SVG out.

No chart needs colours to be told apart: lines have dashes and a number at their end, cells a number or a table behind
them, marks a shape. What would be too much for a page is thinned out, and the caller is told how.

Shapes: T tasks, P periods, n rows or columns of a matrix.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64
from markupsafe import Markup

from kinfold.report.svg import (
    TEXT,
    WIDTH,
    Axis,
    Length,
    drawing,
    element,
    fitted,
    number,
    polyline,
    spaced,
    spans_decades,
    text,
    width_of,
)

COLOURED = 8
"""How many tasks have a colour and a dash of their own."""

NUMBERED = 16
"""How many tasks a timeline has with the donor's number in every mark."""

_DASHES = (None, "6 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "10 2 3 2 3 2")
_MOST_POINTS = 4000  # of all lines of a chart
_MOST_CELLS = 64  # of a side of a matrix
_COLUMNS = 18  # of a timeline
_SMALLEST = 9.5  # type in a cell
_VIRIDIS = np.array(
    [
        *([68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142]),
        *([31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]),
    ]
)


@dataclass(frozen=True)
class Transfer:
    """One transfer on the timeline.

    Attributes:
        period: when.
        recipient: the task that was offered knowledge.
        donor: the task it came from, or None where it came from several.
        accepted: whether the recipient kept it.
        times: how many there were alike.
    """

    period: int
    recipient: int
    donor: int | None
    accepted: bool
    times: int = 1


def curves(
    name: str,
    values: Float[np.ndarray, "P T"],
    periods: Float[np.ndarray, " P"],
    *,
    selected: int | None,
    kept: float | int | None,
    xlabel: str = "period",
    ylabel: str,
    title: str,
    describe: str,
) -> Markup:
    """Returns a chart of one line a task over the periods, its task's number at its end; long ones are thinned out.

    Up to eight lines have a colour and a dash each; of more, only the selected one stands out.

    Args:
        name: of the chart.
        values: loss or score of each task after each period; NaN leaves a gap.
        periods: the periods' numbers.
        selected: the task to be highlighted, or None.
        kept: the period whose snapshot the selected task kept, or None.
        xlabel: what is on the horizontal axis.
        ylabel: what is on the vertical axis.
        title: what the chart is.
        describe: what it shows.
    """
    T = values.shape[1]
    finite = values[np.isfinite(values)]
    log = spans_decades(finite)
    labelled = [t for t in range(T) if T > 1 and (T <= COLOURED or t == selected)]
    height, top, bottom = 230, 24, 192
    y = Axis.over(finite, bottom, top, log=log)
    ticks = y.ticks(5)
    left = 10 + max(width_of(written) for _, written in ticks)
    right = WIDTH - (14 + max((width_of(str(t)) for t in labelled), default=0) + 8 * bool(labelled))
    x = Axis(float(periods[0]), float(max(periods[-1], periods[0] + 1)), left, right)
    parts = [text(0, 11, ylabel), *_grid(y, left, right, ticks), *_below(x, bottom, xlabel, whole=True)]
    order = [t for t in range(T) if t != selected] + ([] if selected is None else [selected])
    ends: dict[int, tuple[float, float]] = {}
    for t in order:
        points = _thinned(values[:, t], T)
        line = [(x.at(periods[p]), y.at(values[p, t])) for p in points]
        drawn = [point for point in line if math.isfinite(point[1])]
        if not drawn:
            continue
        ends[t] = drawn[-1]
        parts.append(
            element(
                "path",
                d=polyline(line),
                class_=f"line {_colour(t, T, selected)}{' strong' if t == selected else ''}",
                stroke_dasharray=_DASHES[t] if T <= COLOURED and t != selected else None,
            )
        )
    some = [t for t in labelled if t in ends]
    places = spaced([ends[t][1] for t in some], TEXT, top, bottom)
    for t, place in zip(some, places, strict=True):
        tie = polyline([ends[t], (right + 3, ends[t][1]), (right + 10, place)])
        parts.append(element("path", d=tie, class_=f"tie {_colour(t, T, selected)}"))
        parts.append(text(right + 13, place + 4, t, class_="strong" if t == selected else None))
    if selected is not None and kept is not None:
        p = int(np.flatnonzero(periods == kept)[0])
        if math.isfinite(y.at(values[p, selected])):
            style = f"dot {_colour(selected, T, selected)}"
            parts.append(element("circle", cx=x.at(kept), cy=y.at(values[p, selected]), r=5, class_=style))
    return drawing(name, height, parts, title=title, describe=describe)


def matrix(
    name: str,
    values: Float[np.ndarray, "n n"],
    *,
    colours: Float[np.ndarray, "n n"] | None = None,
    exposed: Float[np.ndarray, "n n"] | None = None,
    low: float | None = None,
    digits: str,
    xlabel: str,
    ylabel: str,
    labels: Sequence[str] | None = None,
    frames: Sequence[tuple[int, int, int, int]] = (),
    title: str,
    describe: str,
) -> Markup:
    """Returns a heat map, its numbers written in the cells where they have room.

    Over 64 rows, a cell is the mean of several.

    Args:
        name: of the chart.
        values: the cells; NaN is left empty.
        colours: what the cells are coloured by, where that is not their value.
        exposed: share in 0 … 1 of each cell's rows that the row's model has been exposed to: any is hatched, half or
            more of them densely.
        low: the value that has the darkest colour; None is the least one.
        digits: format of the numbers, such as `".1f"`.
        xlabel: what the columns are.
        ylabel: what the rows are.
        labels: the rows' and the columns' names; None numbers them from 0.
        frames: (row, column, rows, columns) of cells with a frame around them.
        title: what the chart is.
        describe: what it shows.
    """
    hues = values if colours is None else colours
    block = math.ceil(len(values) / _MOST_CELLS)
    names = [str(i) for i in range(0, len(values), block)] if labels is None or block > 1 else list(labels)
    values, hues = _blocks(values, block), _blocks(hues, block)
    exposed = None if exposed is None else _blocks(exposed, block)
    n = len(values)
    finite = hues[np.isfinite(hues)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    least = least if low is None else low
    share = np.clip((hues - least) / (most - least), 0, 1) if most > least else np.where(np.isfinite(hues), 1.0, np.nan)

    widest = min(84.0, max(width_of(each) for each in names))
    left = 26 + widest
    w = (WIDTH - left - 2) / n
    level = widest + 2 <= w or labels is None
    top = 22 + (16 if level else widest + 6)
    cells = _Cells(n, left, top, w, w if n > NUMBERED else max(20.0, min(w, 34.0), 96 / n))
    foot = cells.bottom + 8
    parts = _matrix_names(cells, names, widest, level)
    parts.append(text(left + n * w / 2, 12, xlabel, anchor="middle"))
    parts.append(text(8, (top + cells.bottom) / 2, fitted(ylabel, n * cells.h + 20), anchor="middle", turned=True))
    levels = np.where(np.isfinite(share), np.rint(31 * share), -1)
    for k in np.unique(levels[levels >= 0]).astype(int):
        parts.append(element("path", d=cells.outline(levels == k), fill=_viridis(k / 31), class_="cells"))
    if exposed is not None:
        seen = np.nan_to_num(exposed)
        kinds = {"few": (seen > 0) & (seen < 0.5), "many": seen >= 0.5}
        for kind, words in (("few", "under half of its rows seen"), ("many", "half or more of its rows seen")):
            if kinds[kind].any():
                hatch = f"url(#{name}-{kind})"
                parts.append(element("defs", _hatch(name, kind)))
                parts.append(element("path", d=cells.outline(kinds[kind]), fill=hatch))
                swatch = f"M{number(left)} {number(foot)}h18v12h-18z"
                parts += [element("path", d=swatch, fill=fill) for fill in (_viridis(0.35), hatch)]
                parts.append(text(left + 24, foot + 10, words))
                foot += 18
    written = [[format(v, digits) if math.isfinite(v) else "" for v in row] for row in values]
    longest = max((width_of(each, 1) for row in written for each in row), default=0.0) or 1.0
    size = min(float(TEXT), (w - 5) / longest)
    parts.append(element("path", d=cells.lines(1 if n <= NUMBERED else n), class_="lattice"))
    if n <= NUMBERED and size >= _SMALLEST:
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            k = max(levels[i, j], 0) / 31
            x, y = cells.middle(int(i), int(j))
            style = "cell bright" if _bright(k) else "cell"
            parts.append(
                text(x, y + size / 3, written[i][j], anchor="middle", size=size, class_=style, stroke=_viridis(k))
            )
    elif finite.size:
        parts += _colour_key(left, foot, least, most, digits)
        foot += 36
    for row, column, rows, columns in frames if block == 1 else ():
        x, y = left + column * w, top + row * cells.h
        around = f"M{number(x)} {number(y)}h{number(columns * w)}v{number(rows * cells.h)}h{number(-columns * w)}z"
        parts += [element("path", d=around, class_=f"frame {side}") for side in ("under", "over")]
    return drawing(name, foot, parts, title=title, describe=describe)


@dataclass(frozen=True)
class _Cells:
    """Where the cells of a matrix lie: n rows of n, from (left, top), each w wide and h high."""

    n: int
    left: Length
    top: Length
    w: Length
    h: Length

    @property
    def bottom(self) -> float:
        return self.top + self.n * self.h

    def middle(self, row: int, column: int) -> tuple[float, float]:
        return self.left + (column + 0.5) * self.w, self.top + (row + 0.5) * self.h

    def outline(self, chosen: Bool[np.ndarray, "n n"]) -> str:
        """The `d` of a path around each of the chosen cells."""
        return "".join(
            f"M{number(self.left + j * self.w)} {number(self.top + i * self.h)}"
            f"h{self.w:.2f}v{self.h:.2f}h{-self.w:.2f}z"
            for i, j in zip(*np.nonzero(chosen), strict=True)
        )

    def lines(self, every: int) -> str:
        """The `d` of a path around and between cells, at every so many."""
        some = range(0, self.n + 1, every)
        right = number(self.left + self.n * self.w)
        down = [f"M{number(self.left + k * self.w)} {number(self.top)}V{number(self.bottom)}" for k in some]
        across = [f"M{number(self.left)} {number(self.top + k * self.h)}H{right}" for k in some]
        return "".join(down + across)


def _matrix_names(cells: _Cells, names: Sequence[str], widest: Length, level: bool) -> list[str]:
    """The names of the columns, level or turned, and of the rows: those that there is room for."""
    parts = []
    for j in range(0, cells.n, math.ceil((widest + 4) / cells.w) if level else math.ceil((TEXT + 1) / cells.w)):
        middle, label = cells.middle(0, j)[0], fitted(names[j], widest)
        if middle + (width_of(label) if level else TEXT + 4) / 2 > WIDTH:
            continue
        if level:
            parts.append(text(middle, cells.top - 5, label, anchor="middle"))
        else:
            parts.append(text(middle, cells.top - 4, label, turned=True))
    for i in range(0, cells.n, math.ceil((TEXT + 1) / cells.h)):
        parts.append(text(cells.left - 5, cells.middle(i, 0)[1] + 4, fitted(names[i], widest), anchor="end"))
    return parts


def timeline(
    name: str, transfers: Sequence[Transfer], tasks: int, periods: int, *, title: str, describe: str
) -> Markup:
    """Returns the graph of who taught whom when: a lane for each recipient, time from left to right.

    A mark says that the lane's task was offered knowledge: filled where it kept some, hollow where it kept none; a
    square where it came from several tasks at once. The number in it is the task that most of it came from, and up to
    eight tasks a line leads from that task's lane. Over 18 periods, a mark stands for several.

    Args:
        name: of the chart.
        transfers: in any order.
        tasks: T.
        periods: the last period, which ends the axis even where nothing was tried in it.
        title: what the chart is.
        describe: what it shows.
    """
    block, group = columns_of(periods), math.ceil(tasks / _MOST_CELLS)
    columns, lanes = math.ceil(periods / block), math.ceil(tasks / group)
    marks: dict[tuple[int, int], list[Transfer]] = defaultdict(list)
    for each in transfers:
        marks[(each.period - 1) // block, each.recipient // group].append(each)
    left = 22 + width_of(str(tasks - 1))
    w = (WIDTH - left - 6) / columns
    h = 21.0 if lanes <= NUMBERED else max(5.0, 340 / lanes)
    top = 10
    bottom = top + lanes * h
    r = min(8.0, w / 2 - 0.5, h / 2 - 0.5)
    middle = [top + (lane + 0.5) * h for lane in range(lanes)]
    parts = [text(8, (top + bottom) / 2, "recipient", anchor="middle", turned=True)]
    for lane in range(0, lanes, math.ceil((TEXT + 1) / h)):
        parts.append(text(left - 5, middle[lane] + 4, lane * group, anchor="end"))
    parts += [element("path", d=f"M{number(left)} {number(y)}H{WIDTH - 4}", class_="grid") for y in middle]
    arcs, heads = [], []
    for (column, lane), some in sorted(marks.items()):
        taken = [each for each in some if each.accepted]
        donors: Counter[int | None] = Counter()
        for each in taken or some:
            donors[each.donor] += each.times
        donor = donors.most_common(1)[0][0]
        y = middle[lane]
        several = donor is None
        # Lanes have a place of their own within a column, so that no two lines fall on one another.
        x = (
            left
            + (column + 0.5) * w
            + (0 if several or lanes > COLOURED else ((lane + 0.5) / lanes - 0.5) * max(0.0, w - 2 * r))
        )
        colour = "c-many" if several else _colour(donor or 0, tasks, None)
        if taken and donor is not None and lanes <= COLOURED and donor // group != lane:
            arcs.append(element("path", d=f"M{number(x)} {number(middle[donor])}V{number(y)}", class_=f"arc {colour}"))
            arcs.append(element("circle", cx=x, cy=middle[donor], r=2.5, class_=f"mark {colour}"))
        style = f"{'mark' if taken else 'mark hollow'} {colour}"
        shape = (
            element("rect", x=x - 0.8 * r, y=y - 0.8 * r, width=1.6 * r, height=1.6 * r, class_=style)
            if several
            else element("circle", cx=x, cy=y, r=r, class_=style)
        )
        heads.append(shape)
        if donor is not None and r >= 7 and lanes <= NUMBERED:
            heads.append(text(x, y + 3.5, donor, anchor="middle", size=10, class_="in" if taken else None))
    x_axis = Axis(0.5, columns + 0.5, left, left + columns * w)
    return drawing(
        name,
        bottom + 38,
        [*parts, *arcs, *heads, *_columns(x_axis, bottom, block, columns, periods)],
        title=title,
        describe=describe,
    )


def columns_of(periods: int) -> int:
    """Returns how many periods one column of a timeline stands for.

    Example:
        >>> columns_of(10), columns_of(100)
        (1, 6)
    """
    return math.ceil(max(periods, 1) / _COLUMNS)


def scores(
    name: str,
    rows: Sequence[tuple[str, float]],
    interval: tuple[float, float] | None,
    *,
    digits: str,
    unit: str,
    title: str,
    describe: str,
) -> Markup:
    """Returns a chart of a few scores under each other, the last with its interval.

    Args:
        name: of the chart.
        rows: (what is scored, score).
        interval: (low, high) of the last score, which it marks as the one to trust; or None.
        digits: format of the numbers, such as `".1f"`.
        unit: what follows them.
        title: what the chart is.
        describe: what it shows.
    """
    x = Axis.over([value for _, value in rows] + list(interval or ()), 10, WIDTH - 10, room=0.08)
    step, bottom = 40, 8 + 40 * len(rows)
    parts = []
    for k, (said, value) in enumerate(rows):
        y = 32 + k * step
        trusted = interval is not None and k == len(rows) - 1
        parts.append(element("path", d=f"M10 {y}H{WIDTH - 10}", class_="grid"))
        figure = f"{value:{digits}}{unit}"
        parts.append(text(10, y - 12, said, class_="strong" if trusted else None))
        parts.append(text(WIDTH - 10, y - 12, figure, anchor="end", class_="strong" if trusted else None))
        if trusted and interval is not None:
            ends = [x.at(end) for end in interval]
            bar = f"M{number(ends[0])} {y}H{number(ends[1])}"
            caps = "".join(f"M{number(end)} {y - 6}v12" for end in ends)
            parts.append(element("path", d=bar + caps, class_="interval c0"))
        style = "dot c0" if trusted else "dot plain"
        parts.append(element("circle", cx=x.at(value), cy=y, r=6, class_=style))
    parts += [text(x.at(value), bottom + 16, written, anchor="middle", class_="muted") for value, written in x.ticks(4)]
    return drawing(name, bottom + 24, parts, title=title, describe=describe)


def calibration(name: str, bins: Sequence[Mapping[str, float | int]], *, title: str, describe: str) -> Markup:
    """Returns a reliability diagram: how often the model was right at each level of confidence.

    Args:
        name: of the chart.
        bins: `rows`, mean `confidence` and `accuracy` of each bin that has rows, in order.
        title: what the chart is.
        describe: what it shows.
    """
    left, right, top, bottom = 46, WIDTH - 12, 24, 244
    x, y = Axis(0.0, 100.0, left, right), Axis(0.0, 100.0, bottom, top)
    parts = [text(0, 11, "share that was right (%)")]
    parts += [*_grid(y, left, right, y.ticks(5)), *_below(x, bottom, "confidence (%)")]
    parts.append(element("path", d=f"M{left} {bottom}L{right} {top}", class_="ideal"))
    most = max((each["rows"] for each in bins), default=1)
    places = [(x.at(100 * each["confidence"]), y.at(100 * each["accuracy"])) for each in bins]
    for each, (across, up) in zip(bins, places, strict=True):
        parts.append(
            element(
                "path", d=f"M{number(across)} {number(y.at(100 * each['confidence']))}V{number(up)}", class_="arc c0"
            )
        )
    parts.append(element("path", d=polyline(places), class_="line c0"))
    for each, (across, up) in zip(bins, places, strict=True):
        parts.append(element("circle", cx=across, cy=up, r=2.5 + 5.5 * math.sqrt(each["rows"] / most), class_="dot c0"))
    return drawing(name, bottom + 38, parts, title=title, describe=describe)


def predictions(
    name: str,
    true: Float64[np.ndarray, " n"],
    predicted: Float64[np.ndarray, " n"],
    *,
    title: str,
    describe: str,
) -> Markup:
    """Returns a chart of predicted against true values, with the line on which they are equal.

    Args:
        name: of the chart.
        true: the targets.
        predicted: what the model gave.
        title: what the chart is.
        describe: what it shows.
    """
    top, bottom = 24, 244
    y = Axis.over([*true, *predicted], bottom, top)
    ticks = y.ticks(5)
    left = 10 + max(width_of(written) for _, written in ticks)
    x = Axis(y.low, y.high, left, WIDTH - 14)
    parts = [text(0, 11, "predicted"), *_grid(y, left, WIDTH - 14, ticks), *_below(x, bottom, "true")]
    parts.append(element("path", d=f"M{number(left)} {bottom}L{WIDTH - 14} {top}", class_="ideal"))
    where = [(x.at(a), y.at(b)) for a, b in zip(true, predicted, strict=True) if math.isfinite(b)]
    parts.append(element("path", d="".join(f"M{number(a)} {number(b)}h0" for a, b in where), class_="points c0"))
    return drawing(name, bottom + 38, parts, title=title, describe=describe)


def series(name: str, values: Float[np.ndarray, "C L"], *, title: str, describe: str) -> Markup:
    """Returns a small chart of one series, at most three of its channels.

    Args:
        name: of the chart.
        values: C channels; NaN leaves a gap.
        title: what the chart is.
        describe: what it shows.
    """
    y = Axis.over(values[:3].ravel().tolist(), 116, 4)
    x = Axis(0.0, float(max(values.shape[1] - 1, 1)), 4, WIDTH - 4)
    parts = [
        element(
            "path",
            d=polyline([(x.at(p), y.at(float(channel[p]))) for p in _thinned(channel, 12)]),
            class_=f"line c{c}",
            stroke_dasharray=_DASHES[c],
        )
        for c, channel in enumerate(values[:3])
    ]
    return drawing(name, 120, parts, title=title, describe=describe)


def _colour(task: int, tasks: int, selected: int | None) -> str:
    """The CSS class that gives a task its colour, the same in every chart."""
    if tasks <= COLOURED:
        return f"c{task}"
    return "c0" if selected is None or task == selected else "c-many"


def _thinned(values: Float[np.ndarray, " P"], lines: int) -> list[int]:
    """Places of the points to draw of a line: all; or the first, the last, and least and greatest of equal parts."""
    P = len(values)
    parts = max(10, min(100, _MOST_POINTS // (2 * lines)))
    if 2 * parts >= P:
        return list(range(P))
    kept = {0, P - 1}
    for part in np.array_split(np.arange(P), parts):
        finite = part[np.isfinite(values[part])]
        if len(finite):
            kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    return sorted(kept)


def _blocks(values: Float[np.ndarray, "n n"], block: int) -> Float[np.ndarray, "m m"]:
    """Means of square blocks, of what is finite in them."""
    if block == 1:
        return np.asarray(values, dtype=np.float64)
    starts = np.arange(0, len(values), block)
    known = np.isfinite(values)

    def total(cells: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "m m"]:
        rows: Float[np.ndarray, "m n"] = np.add.reduceat(cells, starts, axis=0)
        return np.asarray(np.add.reduceat(rows, starts, axis=1))

    count = total(known.astype(np.float64))
    return total(np.where(known, values, 0.0)) / np.where(count > 0, count, np.nan)


def _viridis(share: Length) -> str:
    place = share * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    mixed = _VIRIDIS[low] + (place - low) * (_VIRIDIS[low + 1] - _VIRIDIS[low])
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _bright(share: Length) -> bool:
    """Whether black is read better than white on the colour."""
    hexadecimal = _viridis(share)
    parts = [int(hexadecimal[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18


def _hatch(name: str, kind: str) -> str:
    """Slanted pairs of a dark and a light line, which are seen on any colour."""
    gap = {"few": 9, "many": 5}[kind]
    lines = element("path", d=f"M0.5 0V{gap}", stroke="#000") + element("path", d=f"M1.5 0V{gap}", stroke="#fff")
    return element(
        "pattern",
        lines,
        id=f"{name}-{kind}",
        class_="hatch",
        width=gap,
        height=gap,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )


def _grid(y: Axis, left: Length, right: Length, ticks: Sequence[tuple[Length, str]]) -> list[str]:
    parts = []
    for value, written in ticks:
        at = y.at(value)
        parts.append(element("path", d=f"M{number(left)} {number(at)}H{number(right)}", class_="grid"))
        parts.append(text(left - 5, at + 4, written, anchor="end", class_="muted"))
    return parts


def _below(x: Axis, bottom: Length, label: str, *, whole: bool = False) -> list[str]:
    """The ticks of a horizontal axis and its label, under a chart."""
    ticks = [tick for tick in x.ticks(5) if not whole or tick[0] == round(tick[0])]
    parts = [text(x.at(value), bottom + 17, written, anchor="middle", class_="muted") for value, written in ticks]
    return [*parts, text((x.start + x.end) / 2, bottom + 33, label, anchor="middle")]


def _columns(x: Axis, bottom: Length, block: int, columns: int, periods: int) -> list[str]:
    """The periods under a timeline's columns; what does not have the room is left out."""
    names = [
        str(first) if block == 1 else f"{first}–{min(first + block - 1, periods)}"
        for first in range(1, periods + 1, block)
    ]
    room = max(width_of(each) for each in names) + 8
    every = math.ceil(room / (x.at(2) - x.at(1)))
    parts = [
        text(x.at(k + 1), bottom + 15, names[k], anchor="middle", class_="muted")
        for k in range(0, columns, every)
        if x.at(k + 1) + width_of(names[k]) / 2 <= WIDTH and x.at(k + 1) - width_of(names[k]) / 2 >= 14
    ]
    return [*parts, text((x.start + x.end) / 2, bottom + 32, "period", anchor="middle")]


def _colour_key(left: Length, y: Length, least: Length, most: Length, digits: str) -> list[str]:
    """A bar of the colours, with the values at its ends."""
    step = (WIDTH - left - 2) / 16
    bar = [
        element("rect", x=left + k * step, y=y, width=step + 0.5, height=10, fill=_viridis(k / 15)) for k in range(16)
    ]
    return [
        *bar,
        text(left, y + 24, format(least, digits), class_="muted"),
        text(WIDTH - 2, y + 24, format(most, digits), anchor="end", class_="muted"),
    ]
