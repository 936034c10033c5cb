"""Where the exchange becomes the bottleneck: T from 8 to 4,096 tasks, models from 10⁵ to 10¹⁰ parameters.

    python benchmarks/scaling/simulate.py [--out benchmarks/scaling/simulate.md]

The cost model (`model.py`) on a cluster of GPUs that is assumed, since none was at hand; its constants are on the page,
and in `CLUSTER`. Writes the page and, beside it, the plot.

Legend: T tasks, P parameters.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from model import PLANS, Machine, Setting, compute_seconds, exchange_seconds, rule_seconds

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files
from kinfold.comparing.charts import write_svg
from kinfold.comparing.drawing import FAINT, INK, colour_map, to_svg
from kinfold.comparing.table import markdown

CLUSTER = Machine(
    store=4e9,  # GPU to host memory, into the object store, out of it and back
    network=1e10,  # 100 Gbit/s, of which 80 % are reached
    latency=2e-3,  # of a call of a Ray actor, as measured on one machine
    driver=1e9,  # one process that takes predictions in, works on them and gives targets out
    step=1e-3,  # launches of kernels, not captured
    rate=1e13,  # 60 · 10¹² operations a second, 6 for each parameter and row
    actors_per_node=8,
)
TASKS = tuple(2**i for i in range(3, 13))
PARAMETERS = tuple(10**i for i in range(5, 11))
TASKS_AN_ACTOR = 4
ROWS, BATCH = 50_000, 64
STEPS = round(0.8 * ROWS) // BATCH  # of a period
CODED = 0.5  # bytes of a number by the adaptive codec at 4 bits, where differences have no structure
SHOWN: Mapping[str, tuple[str, float]] = {
    "papa": ("papa", 4.0),
    f"papa, {4 / CODED:g} times fewer bytes": ("papa", CODED),
    "papa-all": ("papa-all", 4.0),
    "shuffle": ("shuffle", 4.0),
    "amto": ("amto", 4.0),
    "merge-median": ("merge-median", 4.0),
    "teach": ("teach", 4.0),
}
ABOUT = f"""The cost model of `model.py` (see docs/scaling.md) for {TASKS_AN_ACTOR} tasks an actor, so that the \
cluster grows with T.
Each actor has a GPU, and {CLUSTER.actors_per_node} of them share a node. A period is {STEPS} steps with {BATCH} of \
{ROWS:,} rows. Assumed: {CLUSTER.network / 1e9:g} GB/s into a node,
{CLUSTER.store / 1e9:g} GB/s between actors of one, {1e3 * CLUSTER.latency:g} ms a message, {CLUSTER.driver / 1e9:g} \
GB/s through the driver, {1e3 * CLUSTER.step:g} ms and P · {BATCH} / 10¹³ s a step. Momentum
moves where a rule lets it follow. Four models of 10¹⁰ parameters with their momentum fit on no GPU there is: that
column is arithmetic."""


def setting(tasks: int, parameters: float, number_bytes: float = 4.0) -> Setting:
    """Returns the run that is simulated."""
    return Setting(tasks, max(1, tasks // TASKS_AN_ACTOR), parameters, number_bytes, rows=ROWS)


def share(name: str, tasks: int, parameters: float) -> float:
    """Returns the seconds of a rule's exchanges over those of training, in a period."""
    rule, number_bytes = SHOWN[name]
    of = setting(tasks, parameters, number_bytes)
    return rule_seconds(rule, of, CLUSTER, STEPS) / compute_seconds(of, CLUSTER, STEPS, BATCH)


def first_above(limit: float, of: Callable[[int], float]) -> int | None:
    """Returns the first T of `TASKS` at which a share is above a limit, or None."""
    return next((T for T in TASKS if of(T) > limit), None)


def shares() -> str:
    """Returns the table of shares at the largest T."""
    rows = [[name, *(said(share(name, TASKS[-1], P)) for P in PARAMETERS)] for name in SHOWN]
    return markdown(rows, [f"at T = {TASKS[-1]:,}", *map(power, PARAMETERS)])


def limits(limit: float) -> str:
    """Returns the table of the first T at which an exchange takes more than a share of the training."""
    rows = []
    for name in SHOWN:
        found = [first_above(limit, lambda T, P=P, name=name: share(name, T, P)) for P in PARAMETERS]
        rows.append([name, *("never" if T is None else f"{T:,}" for T in found)])
    return markdown(rows, [f"above {limit:.0%} from T =", *map(power, PARAMETERS)])


def volumes() -> str:
    """Returns the table of what each kind of plan moves, in models for each actor."""
    rows = []
    for name, plan in PLANS.items():
        row = [name]
        for T in (8, 64, 512, 4096):
            of = setting(T, 1e6)
            found = plan(of)
            row.append(f"{found.between / of.model / of.actors:.3g}")
        seconds = exchange_seconds(plan(setting(4096, 1e8)), setting(4096, 1e8), CLUSTER)
        rows.append([*row, f"{found.driver / 1e9:.3g}", f"{seconds:.3g}"])
    head = ["plan", *(f"T = {T:,}" for T in (8, 64, 512, 4096)), "GB by the driver", "seconds"]
    return markdown(rows, head)


def said(value: float) -> str:
    """Returns a share in percent, or how many times as much it is.

    Example:
        >>> said(0.0123), said(1.234), said(12.34)
        ('1.2 %', '120 %', '12 times')
    """
    if value >= 10:
        return f"{value:.2g} times"
    return f"{float(f'{100 * value:.2g}'):g} %"


def power(value: float) -> str:
    """Returns P as a power of ten."""
    return f"P = 1e{round(np.log10(value))}"


def plot() -> Markup:
    """Returns a panel for each P: the share of each rule over T."""
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    colours = colour_map(len(SHOWN))
    for axes, P in zip(panels, PARAMETERS, strict=True):
        for i, (name, marker) in enumerate(zip(SHOWN, "oPsD^vX", strict=True)):
            values = [share(name, T, P) for T in TASKS]
            axes.plot(TASKS, values, color=colours(i), marker=marker, markersize=3.5, linewidth=1.2, label=name)
        axes.axhline(1.0, color=INK, linestyle="--", linewidth=1)
        _dressed(axes, f"10{str(round(np.log10(P))).translate(_RAISED)} parameters")
    figure.supylabel("time of exchange / time of training", size=10, color=INK)
    for axes in figure.axes[3:]:
        axes.set_xlabel("tasks (T)", size=10, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return to_svg(figure, "Time of exchange over time of training by number of tasks, a panel for each size of model")


_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _dressed(axes: Axes, title: str) -> None:
    axes.set_title(title, size=10, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([8, 64, 512, 4096])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(1e-5, 1e3)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)


def page() -> str:
    """Returns the whole page."""
    parts = [
        "# Where the exchange becomes the bottleneck, simulated",
        provenance(),
        ABOUT,
        "![shares of time](simulate.svg)",
        "## Time of a period's exchanges, in percent of its training",
        shares(),
        limits(0.1),
        limits(1.0),
        "## What a plan moves: models into each actor, on average",
        volumes(),
        "Seconds: of one plan at T = 4,096 and P = 1e8. AMTO tries with probability 0.375 and accepts half of it.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("simulate.md"))
    given = parser.parse_args()
    files.write_text(given.out, page())
    write_svg(given.out.with_suffix(".svg"), plot())


if __name__ == "__main__":
    main()
