"""Inline SVG, written by hand: small, in the page's own type and colours, and described for those who cannot see it.

Lengths are in SVG units, `WIDTH` of which make the width of a chart: on a phone a unit is about a pixel, and a chart is
at most a third larger elsewhere. Colours are the page's CSS variables, so that a chart follows its theme.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup, escape

Length: TypeAlias = float | int

WIDTH = 360
"""The width of a chart."""

TEXT = 12
"""The height of its type."""


def number(value: Length) -> str:
    """Returns a length as SVG text, to a tenth of a unit.

    Example:
        >>> number(3.04), number(-0.01), number(7)
        ('3', '0', '7')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def element(name: str, content: str = "", **attributes: str | Length | None) -> str:
    """Returns an element; numbers are rounded, None is left out, `_` in a name is `-`, and `class_` is `class`.

    Example:
        >>> element("circle", r=2.04, class_="a", fill=None)
        '<circle r="2" class="a"/>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(
    x: Length,
    y: Length,
    words: object,
    *,
    anchor: str = "start",
    size: Length = TEXT,
    class_: str | None = None,
    turned: bool = False,
    stroke: str | None = None,
) -> str:
    """Returns a line of text, escaped.

    Args:
        x: where it is anchored.
        y: its base line, or where it is `turned` its middle line.
        words: what it says.
        anchor: `start`, `middle` or `end`.
        size: its height.
        class_: CSS classes.
        turned: whether it reads from below to above.
        stroke: the colour around its letters.
    """
    return element(
        "text",
        str(escape(words)),
        x=x,
        y=y,
        text_anchor=None if anchor == "start" else anchor,
        font_size=None if size == TEXT else size,
        class_=class_,
        stroke=stroke,
        transform=f"rotate(-90 {number(x)} {number(y)})" if turned else None,
        dominant_baseline="central" if turned else None,
    )


def polyline(points: Iterable[tuple[Length, Length]]) -> str:
    """Returns the `d` of a path through points; one that is not finite breaks the line.

    Example:
        >>> polyline([(0, 1), (2.5, 3), (4, math.nan), (5, 6)])
        'M0 1L2.5 3M5 6h0'
    """
    parts: list[str] = []
    alone = False  # a point by itself is drawn as a line of no length, which has round ends
    broken = True
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            parts += ["h0"] * alone
            alone, broken = False, True
            continue
        parts.append(f"{'M' if broken else 'L'}{number(x)} {number(y)}")
        alone, broken = broken, False
    return "".join([*parts, *["h0"] * alone])


def drawing(name: str, height: Length, parts: Iterable[str], *, title: str, describe: str) -> Markup:
    """Returns the `<svg>` element: a picture with a title and a description for screen readers.

    Args:
        name: unlike that of any other chart of the page; ids begin with it.
        height: the picture's height.
        parts: elements.
        title: what the picture is.
        describe: what it shows.
    """
    about = element("title", str(escape(title)), id=f"{name}-title")
    about += element("desc", str(escape(describe)), id=f"{name}-desc")
    head = f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-labelledby="{name}-title {name}-desc">'
    return Markup(head + about + "".join(parts) + "</svg>")  # nosec B704  # all texts in it were escaped above


def width_of(words: str, size: Length = TEXT) -> float:
    """Returns about how wide a text is: never much wider than this in the type of common systems.

    Example:
        >>> width_of("") == 0, width_of("測") > width_of("a")
        (True, True)
    """
    return size * sum((_width(letter) for letter in words), 0.0)


def _width(letter: str) -> float:
    """About the width of a letter, in heights, in DejaVu Sans, which is wider than most."""
    if unicodedata.east_asian_width(letter) in "WF" or letter in "mwMW@%…—":
        return 1.02
    if letter in "iljI.,:;'|!` ":
        return 0.35
    return 0.86 if letter in "<>=+~&#" or letter.isupper() else 0.65


def fitted(words: str, room: Length, size: Length = TEXT) -> str:
    """Returns a text, its end cut off where it would be wider than the room.

    Example:
        >>> fitted("a very long name", 40), fitted("name", 40)
        ('a ve…', 'name')
    """
    if width_of(words, size) <= room:
        return words
    while words and width_of(f"{words}…", size) > room:
        words = words[:-1]
    return f"{words}…"


def spans_decades(values: Iterable[Length]) -> bool:
    """Returns whether values are better seen on a logarithmic axis: all above 0, the greatest ten times the least.

    Example:
        >>> spans_decades([0.1, 2.0]), spans_decades([0.0, 2.0]), spans_decades([math.nan])
        (True, False, False)
    """
    finite = [float(value) for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 10 * min(finite)


_LEAST, _MOST = 1e-290, 1e308
"""What is not above the first has no place on a logarithmic axis, which has room below its least value."""


@dataclass(frozen=True)
class Axis:
    """From values to lengths.

    Attributes:
        low: the value at `start`.
        high: the value at `end`.
        start: a length.
        end: a length, greater or smaller.
        log: whether equal factors have equal lengths.
    """

    low: Length
    high: Length
    start: Length
    end: Length
    log: bool = False

    @classmethod
    def over(
        cls,
        values: Iterable[Length],
        start: Length,
        end: Length,
        *,
        log: bool = False,
        room: float = 0.05,
    ) -> "Axis":
        """Returns an axis over the finite ones of some values, with room at both ends as a share of their range."""
        finite = [float(value) for value in values if math.isfinite(value) and (value > _LEAST or not log)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if log:
            margin = room * max(math.log(high) - math.log(low), 0.1)
            return cls(low * math.exp(-margin), min(high * math.exp(margin), _MOST), start, end, True)
        alike = high - low <= 1e-9 * max(abs(high), abs(low))
        spread = (0.05 * abs(high) or 1.0) if alike else room * (high - low)
        return cls(low - spread, high + spread, start, end)

    def at(self, value: Length) -> float:
        """Returns the length at a value; NaN where there is none."""
        if not math.isfinite(value) or (self.log and value <= _LEAST):
            return math.nan
        share = (
            (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Returns round values on the axis, at most about so many, each with how it is written.

        Example:
            >>> [written for _, written in Axis(0.0, 1.0, 0, 100).ticks(5)]
            ['0', '0.2', '0.4', '0.6', '0.8', '1']
            >>> [written for _, written in Axis(0.5, 300.0, 0, 100, log=True).ticks(5)]
            ['1', '10', '100']
        """
        if self.log:
            for steps in ((1, 2, 5), (1,)):
                values = [m * 10.0**e for e in range(-30, 31) for m in steps if self.low <= m * 10.0**e <= self.high]
                if len(values) <= most + 1:
                    break
            if len(values) > 1:
                return [(value, f"{value:g}") for value in values[:: math.ceil(len(values) / (most + 1))]]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        places = max(6, math.ceil(math.log10(max(abs(self.low), abs(self.high)) / step)) + 2)
        return [(k * step, "0" if k == 0 else f"{k * step:.{places}g}") for k in range(first, last + 1)]


def spaced(wanted: Sequence[Length], gap: Length, low: Length, high: Length) -> list[float]:
    """Returns places near those wanted, in the same order, at least a gap apart where there is room for that.

    Example:
        >>> spaced([5.0, 6.0, 50.0], 10, 0, 100)
        [5.0, 15.0, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    places: list[float] = []
    for i in order:
        places.append(float(max(min(max(wanted[i], low), high), places[-1] + gap if places else low)))
    ceiling = float(high)
    for k in reversed(range(len(places))):
        places[k] = min(places[k], ceiling)
        ceiling = places[k] - gap
    found = [0.0] * len(wanted)
    for place, i in zip(places, order, strict=True):
        found[i] = place
    return found
