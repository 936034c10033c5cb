"""Draws the pictures of concepts.md from one run on the embedded digits: `python docs/pictures.py`."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import kinfold

FOLDER = Path(__file__).parent / "pictures"
GREY, LIGHT, DARK, RED = "#6b7280", "#bcd3ea", "#1f5f99", "#c2410c"  # readable on white and on dark grey


def figure(height: float) -> Figure:
    made = Figure(figsize=(7.5, height), layout="constrained")
    made.patch.set_alpha(0.0)
    return made


def axes_of(made: Figure):
    axes = made.subplots()
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=GREY, length=0)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    return axes


def splits(result: kinfold.Result) -> Figure:
    rows = np.linspace(0, len(result.splits.sealed) - 1, 90).astype(int)
    sealed, train = result.splits.sealed[rows], result.splits.train[:, rows]
    order = np.argsort(sealed, kind="stable")
    made = figure(2.2)
    axes = axes_of(made)
    for t, own in enumerate(train[:, order]):
        for x, (trains, shut) in enumerate(zip(own, sealed[order], strict=True)):
            colour = "none" if shut else LIGHT if trains else DARK
            style = {"hatch": "////", "edgecolor": GREY, "linewidth": 0} if shut else {"linewidth": 0}
            axes.add_patch(matplotlib.patches.Rectangle((x, t + 0.08), 0.94, 0.84, facecolor=colour, **style))
    axes.set(xlim=(0, len(rows)), ylim=(len(train), 0), xlabel="rows (every twentieth), the sealed ones last")
    axes.set_yticks(np.arange(len(train)) + 0.5, [f"task {t}" for t in range(len(train))])
    axes.set_xticks([])
    return made


def transfer(result: kinfold.Result) -> Figure:
    made = figure(3.0)
    axes = axes_of(made)
    T = len(result.scores.own)
    events = [event for event in result.history if event["event"] == "transfer"]
    last = max(event["period"] for event in result.history if event["event"] == "period")
    for t in range(T):
        axes.plot([0, last], [t, t], color=GREY, linewidth=0.8, alpha=0.6)
    for event in events:
        for move in event["transfers"]:
            for donor in set(move["donors"]) - {move["recipient"]}:
                taken = move["accepted"]
                arrow = {"arrowstyle": "-|>", "color": RED if taken else GREY, "linewidth": 1.6 if taken else 0.8}
                axes.annotate(
                    "",
                    xy=(event["period"], move["recipient"]),
                    xytext=(event["period"] - 0.6, donor),
                    arrowprops={**arrow, "linestyle": "-" if taken else ":", "shrinkA": 0, "shrinkB": 1},
                )
    axes.set(xlim=(0, last + 0.5), ylim=(T - 0.5, -0.5), xlabel="period (epoch)")
    axes.set_yticks(range(T), [f"task {t}" for t in range(T)])
    return made


def exposure(result: kinfold.Result) -> Figure:
    made = figure(3.6)
    axes = axes_of(made)
    matrix, exposed = result.scores.matrix.numpy(), result.scores.exposed.numpy()
    T = len(matrix)
    axes.imshow(matrix, cmap="Blues", vmin=matrix.min() - 0.04, vmax=1.0, aspect="auto")
    for t in range(T):
        for j in range(T):
            shade = "" if exposed[t, j] == 0 else "//" if exposed[t, j] < 0.9 else "////"
            cell = matplotlib.patches.Rectangle((j - 0.5, t - 0.5), 1, 1, fill=False, hatch=shade, edgecolor="white")
            axes.add_patch(cell)
            axes.text(
                j, t, f"{100 * matrix[t, j]:.1f}", ha="center", va="center", bbox={"facecolor": "white", "pad": 1.5}
            )
    axes.set(xlabel="validation set of task", ylabel="model of task")
    axes.set_xticks(range(T))
    axes.set_yticks(range(T))
    return made


def estimate(result: kinfold.Result) -> Figure:
    made = figure(1.7)
    axes = axes_of(made)
    means = 100 * result.scores.matrix.mean(1).numpy()
    found = result.estimate
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    axes.plot(means, np.ones(len(means)), "o", color=DARK, alpha=0.8)
    axes.plot([100 * found.low, 100 * found.high], [0, 0], color=RED, linewidth=2.5)
    axes.plot([100 * found.value], [0], "D", color=RED)
    axes.set(ylim=(-0.6, 1.6), xlabel="accuracy, %")
    axes.set_yticks([1, 0], ["selection scores", "estimate"])
    return made


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "kinfold", "svg.fonttype": "path", "font.size": 9}
    options = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    result = kinfold.fit("mlp", "digits", tasks=6, epochs=12, optimizer=options, transfer="amto", seed=4)
    FOLDER.mkdir(exist_ok=True)
    for draw in (splits, transfer, exposure, estimate):
        draw(result).savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
