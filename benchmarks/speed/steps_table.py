"""From the records of `steps.py` to its tables and plots. Legend: A alternations."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contestants import CONTESTANTS, ENGINES, PEERS
from jaxtyping import Float64
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from work import BATCH, CLASSES, MOMENTUM, RATE, STRUCTURES

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold.comparing.drawing import FAINT, INK, colour_map, new_axes, to_svg
from kinfold.comparing.table import markdown

ABOUT = f"""One training step of T models of one structure, each on {BATCH} rows of its own, gathered by index from
one data set in memory; cross-entropy, SGD (lr {RATE}, momentum {MOMENTUM}), {CLASSES} classes. All contestants of a
cell take turns in one process, in an order drawn anew every time. Figures are medians over the turns with quartiles;
ratios are medians over turns of the ratio within one, above 1 where the contestant is faster; the best peer of a cell
is in bold, and the best engine is the fastest that was asked for by name, *auto* aside. Threads wait as PyTorch's do
by default, by spinning, which suits plain loops best while nothing else runs. An engine's time has all that its
`train` does, the drawing of each period's order included; peers have their batches' rows drawn beforehand.

*loop*: plain PyTorch, T modules with an optimizer each, one after another, all threads. *processes*: the same in one
process for each CPU, one thread each. *jax*: `vmap` and `jit` of the step, blocks of up to 64 steps by `lax.scan`,
buffers donated; *jax-loop*: the jitted step of one model, for one after another.

The limit is the time of the step's matrix products (each in the fastest form found for its shape) and of copying what
the optimizer and the batch must move. *Of the limit* is the limit's time as a share of the contestant's. *Together*
leaves out forms in which a thread does its share of the models by itself, as if threads did not hinder each other.
Memory is what a process of its own grows by in its first 40 steps (or fewer that take 20 s), the making of a recording
included, for each model; what one model needs is its parameters, gradients, momentum and activations."""


@dataclass(frozen=True)
class Cell:
    """One cell's record.

    Attributes:
        model: a name of `work.STRUCTURES`.
        tasks: T.
        device: where it was measured.
        precision: likewise.
        seconds: of a step of all T models, A turns of each contestant and limit.
        skipped: who did not take part, and why.
        notes: what is to be said of a contestant.
        threads: of PyTorch.
        memory: bytes that a contestant grew by, for all T models.
        needed: bytes that one model needs, or None where no memory was measured.
    """

    model: str
    tasks: int
    device: str
    precision: str
    seconds: dict[str, list[float]]
    skipped: dict[str, str]
    notes: dict[str, str]
    threads: int
    memory: dict[str, int]
    needed: int | None

    def times(self, name: str) -> Float64[np.ndarray, " A"]:
        """Returns a contestant's seconds a step, turn by turn."""
        return np.array(self.seconds[name])

    def fastest(self, names: Sequence[str]) -> str | None:
        """Returns which of these has the lowest median; None where none took part."""
        present = [name for name in names if name in self.seconds]
        return min(present, key=lambda name: float(np.median(self.seconds[name])), default=None)


def spread(values: Float64[np.ndarray, " A"], form: str = ".2f") -> str:
    """Returns the median and the quartiles.

    Example:
        >>> spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), ".1f")
        '3.0 (2.0–4.0)'
    """
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def table(cells: Sequence[Cell]) -> str:
    """Returns the whole page."""
    first = cells[0]
    head = f"# A training step of T models, on {first.device} in {first.precision}\n\n{provenance()}\n\n{ABOUT}"
    parts = [head]
    for model, structure in STRUCTURES.items():
        own = sorted((cell for cell in cells if cell.model == model), key=lambda cell: cell.tasks)
        if own:
            parts += [f"## {structure.says}", _of_model(own), *_left_out(own)]
    return "\n\n".join(parts) + "\n"


def _of_model(cells: Sequence[Cell]) -> str:
    columns = ["T", "contestant", "ms a step", "µs a model", "× loop", "× best peer"]
    columns += ["× best engine", "of the limit", "together"]
    rows = [row for cell in cells for row in _rows(cell)]
    need = next((cell.needed for cell in cells if cell.needed is not None), None)
    said = "" if need is None else f"\n\nOne model needs {_megabytes(need)} MB."
    return markdown(rows, [*columns, "MB a model", "× its need"]) + said


def _rows(cell: Cell) -> list[list[str]]:
    best, engine = cell.fastest(PEERS), cell.fastest(ENGINES)
    rows = []
    for name in [*CONTESTANTS, "limit"]:
        if name not in cell.seconds:
            continue
        own = cell.times(name)
        shares = [spread(100 * cell.times(limit) / own, ".0f") + " %" for limit in ("limit", "limit-together")]
        beside = ("loop", best or "loop", engine or "")
        ratios = ["–" if other not in cell.seconds else spread(cell.times(other) / own) for other in beside]
        title = f"{name}: {cell.notes[name]}" if name in cell.notes else name
        bold = f"**{title}**" if name == best else title
        row = [str(cell.tasks), bold, spread(1e3 * own, ".3g"), f"{1e6 * float(np.median(own)) / cell.tasks:.0f}"]
        rows.append([*row, *ratios, *shares, *_memory(cell, name)])
    return rows


def _memory(cell: Cell, name: str) -> tuple[str, str]:
    if name not in cell.memory or cell.needed is None:
        return "–", "–"
    each = cell.memory[name] / cell.tasks
    return _megabytes(each), f"{each / cell.needed:.2f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g}"


def _left_out(cells: Sequence[Cell]) -> list[str]:
    lines = [f"- T = {cell.tasks}, {name}: {why}" for cell in cells for name, why in cell.skipped.items()]
    return ["Left out:\n\n" + "\n".join(lines)] if lines else []


def plots(cells: Sequence[Cell]) -> dict[str, Markup]:
    """Returns a chart for each model: milliseconds of a step for each of its models over T, and the limit."""
    charts = {}
    for model, structure in STRUCTURES.items():
        own = sorted((cell for cell in cells if cell.model == model), key=lambda cell: cell.tasks)
        if own:
            charts[model] = _plot(own, structure.says)
    return charts


def _plot(cells: Sequence[Cell], says: str) -> Markup:
    figure, axes = new_axes(3.6)
    colours = colour_map(len(CONTESTANTS))
    for i, (name, marker) in enumerate(zip(CONTESTANTS, "osD^v<>p", strict=True)):
        line = _line(cells, name)
        axes.plot(list(line), list(line.values()), color=colours(i), marker=marker, markersize=4, label=name)
    limit = _line(cells, "limit")
    axes.plot(list(limit), list(limit.values()), color=INK, linestyle="--", linewidth=1, label="limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("models trained at once (T)")
    axes.set_ylabel("ms of a step, for each model")
    axes.grid(color=FAINT, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return to_svg(figure, f"Milliseconds of a training step for each of T models of {says}, by contestant")


def _line(cells: Sequence[Cell], name: str) -> Mapping[int, float]:
    return {cell.tasks: 1e3 * float(np.median(cell.times(name))) / cell.tasks for cell in cells if name in cell.seconds}
