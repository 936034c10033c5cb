"""Progress of a comparison on the terminal: a line an arm, a bar for the whole grid, and how long it may still take.

`Grid` is what is shown, as data; `after`, `seconds_left`, `line_of` and `render` are pure.
Legend: K seeds.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kinfold.tracking.progress import message_of, print_message, printable

Event: TypeAlias = Mapping[str, Any]
Listener: TypeAlias = Callable[[Event], None]

_NOTHING = "–"


@dataclass(frozen=True)
class Grid:
    """Where a comparison stands, as far as its events have told.

    Attributes:
        done: experiments that have ended.
        of: experiments in all, 0 before the first has ended.
        values: what each arm came to, in order of its seeds.
        seconds: what each experiment took, by the arms that it yields, likewise.
    """

    done: int = 0
    of: int = 0
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: Mapping[tuple[str, ...], tuple[float, ...]] = field(default_factory=dict)


def after(grid: Grid, event: Event) -> Grid:
    """Returns the grid as it stands after an event of `kinfold.comparing.compare`.

    Example:
        >>> event = {"event": "experiment", "seed": 0, "done": 1, "of": 6, "values": {"amto": 0.9}, "seconds": 2.0}
        >>> after(Grid(), event).values
        {'amto': (0.9,)}
    """
    if event["event"] != "experiment":
        return grid
    arms = tuple(event["values"])
    return replace(
        grid,
        done=event["done"],
        of=event["of"],
        values={**grid.values, **{arm: (*grid.values.get(arm, ()), event["values"][arm]) for arm in arms}},
        seconds={**grid.seconds, arms: (*grid.seconds.get(arms, ()), event["seconds"])},
    )


def seconds_left(grid: Grid) -> float:
    """Returns about how long the rest may take: each experiment as long as it took on the seeds before, in seconds.

    Within the first seed, nothing is known of those to come, and they are taken to be like those that ended. NaN
    before the first has ended.

    Example:
        >>> seconds_left(Grid(2, 6, {}, {("conventional",): (1.0,), ("amto",): (8.0,)}))  # 3 seeds, or more arms
        18.0
    """
    if not grid.done:
        return math.nan
    means = {arms: math.fsum(some) / len(some) for arms, some in grid.seconds.items()}
    if all(len(some) == 1 for some in grid.seconds.values()):  # the first seed: there may be more arms
        return (grid.of - grid.done) * math.fsum(means.values()) / len(means)
    seeds = grid.of // len(grid.seconds)
    return math.fsum((seeds - len(some)) * means[arms] for arms, some in grid.seconds.items())


def line_of(grid: Grid, event: Event) -> str:
    """Returns the line that the end of an experiment is told in, safe for a terminal.

    Args:
        grid: as it stands after the event.
        event: the experiment's.

    Example:
        >>> event = {"event": "experiment", "seed": 1, "done": 3, "of": 4, "values": {"amto": 0.9}, "seconds": 2.0}
        >>> line_of(after(Grid(), event), event)
        '3 of 4: seed 1, amto 0.9000 in 2.0 s; about 2.0 s left'
    """
    values = ", ".join(f"{printable(arm)} {_number(value)}" for arm, value in event["values"].items())
    return f"{grid.done} of {grid.of}: seed {event['seed']}, {values} in {_duration(event['seconds'])}{_rest(grid)}"


def render(grid: Grid, elapsed: float) -> RenderableType:
    """Returns the grid as rich shows it: a table with a line an arm, and a bar with the time that it may take.

    Args:
        grid: where the comparison stands.
        elapsed: seconds since it began.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("arm")
    for column in ("seeds", "last", "mean"):
        table.add_column(column, justify="right")
    for arm, values in grid.values.items():
        mean = math.fsum(values) / len(values)
        table.add_row(Text(printable(arm)), str(len(values)), _number(values[-1]), _number(mean))
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=grid.of or 1, completed=grid.done, width=30)
    line.add_row(bar, f"{grid.done}/{grid.of or '…'} experiments", f"{_duration(elapsed)}{_rest(grid)}")
    return Group(table, line) if grid.values else line


@contextmanager
def live_grid(console: Console) -> Iterator[Listener]:
    """Gives a listener that keeps the grid on a terminal up to date, with findings and notes above it.

    Args:
        console: the terminal.
    """
    grid, began = Grid(), time.monotonic()

    def shown() -> RenderableType:
        return render(grid, time.monotonic() - began)

    with Live(get_renderable=shown, console=console, refresh_per_second=4) as live:

        def listen(event: Event) -> None:
            nonlocal grid
            message = message_of(event)
            if message is not None:
                live.console.print(Text(message))
            grid = after(grid, event)
            live.refresh()

        yield listen


@contextmanager
def plain_grid() -> Iterator[Listener]:
    """Gives a listener that writes a line an experiment to standard error, and one a finding or note."""
    grid = Grid()

    def listen(event: Event) -> None:
        nonlocal grid
        print_message(event)
        grid = after(grid, event)
        if event["event"] == "experiment":
            print(line_of(grid, event), file=sys.stderr, flush=True)

    yield listen


def _rest(grid: Grid) -> str:
    return f"; about {_duration(seconds_left(grid))} left" if grid.done < grid.of else ""


def _number(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
