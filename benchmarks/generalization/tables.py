"""Makes the generalization benchmark's tables and plot of the records that `arms_on_cells.py` keeps.

    python benchmarks/generalization/tables.py [--records DIR] [--out benchmarks/generalization/arms_on_cells.md]

A data set's figure is the mean over its cells, so that none counts more for having more cells; an arm's is the mean
over data sets. Legend: A arms, D data sets, K seeds.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cells import CELLS, Cell, draw
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files
from kinfold.comparing.charts import critical_difference, write_svg
from kinfold.comparing.statistics import (
    average_ranks,
    corrected_resampled_t,
    friedman,
    nemenyi_critical_difference,
    paired_t,
    share_of_ensemble_gain,
    wilcoxon,
)
from kinfold.comparing.table import markdown

RECORDS = Path(__file__).with_name("records")
OUR, REFERENCE = "distil", "ensemble"
CONTROLS = ("conventional", "restarts", "refit", "all-rows-once", "all-rows")
OTHERS = ("amto", "papa", "teach")
MAIN = (*CONTROLS, OUR, REFERENCE)
ABOUT = """Recipes
(`recipes.json`) were tuned for the conventional control by validation rows of other seeds (of data sets without an
official test part, these rows may be test rows here), and are the same for every arm. A data set's figure is the mean
over its cells. Trained by `arms_on_cells.py`, one torch thread a process."""
ABOUT_P = """The corrected p is Nadeau and Bengio's, for seeds that split one data set anew; with few labelled rows and
many test rows it is cautious. *Worse beyond interval* is by how much even the better end of the interval is worse."""
REGIMES: dict[str, Callable[[Cell], bool]] = {
    "clean, full": lambda cell: not cell.noise and cell.length == "full",
    "clean, under-trained": lambda cell: cell.length == "under",
    "10 % noise": lambda cell: cell.noise == 0.1,
    "20 % noise": lambda cell: cell.noise == 0.2,
}


class Grid:
    """Test accuracies in %, [A, K] for each cell.

    Args:
        records: what `arms_on_cells.py` wrote.
        wanted: the arms; the seeds are those that every cell has all of these for.
        field: another field of the records instead.
        scale: what to multiply it by.
    """

    def __init__(self, records: Path, wanted: Sequence[str], field: str = "value", scale: float = 100.0):
        read: dict[str, dict[int, dict[str, Any]]] = {}
        for name in CELLS:
            runs = {int(path.stem): files.read_json(path) for path in (records / name).glob("*.json")}
            read[name] = {seed: run for seed, run in runs.items() if all(arm in run for arm in wanted)}
        common = sorted(set.intersection(*(set(runs) for runs in read.values())))
        if not common:
            raise SystemExit(f"records: no seed has {', '.join(wanted)} in every cell; run arms_on_cells.py.")
        self.seeds, self.arms = len(common), list(wanted)
        self.cells = {
            name: scale * np.array([[runs[seed][arm][field] for seed in common] for arm in wanted], dtype=np.float64)
            for name, runs in read.items()
        }
        self.sets = list(dict.fromkeys(cell.data for cell in CELLS.values()))

    def by_set(self, keep: Callable[[Cell], bool] = lambda cell: True) -> dict[str, Float64[np.ndarray, "A K"]]:
        """Returns each data set's mean over its cells that are kept; sets without any are left out."""
        kept = {
            data: [self.cells[name] for name, cell in CELLS.items() if cell.data == data and keep(cell)]
            for data in self.sets
        }
        return {data: np.mean(cells, axis=0) for data, cells in kept.items() if cells}

    def of(self, arm: str, values: Float64[np.ndarray, "A K"]) -> Float64[np.ndarray, " K"]:
        """Returns one arm's row."""
        row: Float64[np.ndarray, " K"] = values[self.arms.index(arm)]
        return row


@cache
def test_ratio(data: str) -> float | None:
    """Returns the test rows' share of all rows where seeds split a data set anew, as a mean over cells; else None."""
    cells = [cell for cell in CELLS.values() if cell.data == data]
    if cells[0].source.fixed_test:
        return None
    return float(np.mean([draw(cell, 0).test.mean() for cell in cells]))


def regimes(grid: Grid, records: Path) -> str:
    """The mean over data sets of every arm in every regime, and its mean rank over data sets."""
    singles = [arm for arm in grid.arms if arm != REFERENCE]
    means = {name: np.mean([v.mean(1) for v in grid.by_set(keep).values()], axis=0) for name, keep in REGIMES.items()}
    overall = np.stack([values.mean(1) for values in grid.by_set().values()])
    ranks = dict(
        zip(singles, average_ranks(overall[:, [grid.arms.index(arm) for arm in singles]]).tolist(), strict=True)
    )
    visits = Grid(records, grid.arms, "visits", 1.0).cells
    unit = grid.arms.index("conventional")
    relative = np.mean([v.mean(1) / v.mean(1)[unit] for v in visits.values()], axis=0)
    rows = []
    for a in np.argsort(-overall.mean(0)).tolist():
        arm = grid.arms[a]
        rank = f"{ranks[arm]:.2f}" if arm in ranks else "8 models at prediction"
        cells = [f"{overall.mean(0)[a]:.2f}", *(f"{means[name][a]:.2f}" for name in REGIMES)]
        rows.append([f"**{arm}**" if arm == OUR else arm, *cells, rank, f"{relative[a]:.2f}"])
    return markdown(rows, ["arm", "all", *REGIMES, "mean rank", "visits / conventional"])


def against(grid: Grid, control: str) -> str:
    """The default rule against one control, data set by data set, and over all."""
    rows, means = [], []
    for data, values in grid.by_set().items():
        difference = grid.of(OUR, values) - grid.of(control, values)
        means.append((grid.of(OUR, values).mean(), grid.of(control, values).mean()))
        ratio = test_ratio(data)
        plain = paired_t(difference)
        corrected = plain if ratio is None else corrected_resampled_t(difference, ratio)
        beyond = -plain.high  # by how much even the interval's better end is worse
        rows.append(
            [
                data,
                f"{means[-1][0]:.2f}",
                f"{means[-1][1]:.2f}",
                f"{plain.mean:+.2f} ({plain.low:+.2f} to {plain.high:+.2f})",
                f"{plain.p:.3f}",
                "fixed test set" if ratio is None else f"{corrected.p:.3f}",
                f"{max(beyond, 0):.2f}",
            ]
        )
    ours, theirs = np.array(means).T
    p = wilcoxon(ours, theirs).p
    better = int((ours > theirs).sum())
    head = [
        "data set",
        OUR,
        control,
        "difference (95 % interval)",
        "p, paired t",
        "p, corrected",
        "worse beyond interval",
    ]
    said = (
        f"{OUR} is better in the mean on {better} of {len(rows)} data sets, by {(ours - theirs).mean():+.2f} points in "
        f"all; Wilcoxon's signed-rank test over data sets gives p = {p:.4f}."
    )
    return f"{markdown(rows, head)}\n\n{said}"


def by_cell(grid: Grid) -> str:
    """Every arm on every cell."""
    rows = [
        [name, *(f"{mean:.1f}" if mean < values.mean(1).max() else f"**{mean:.1f}**" for mean in values.mean(1))]
        for name, values in grid.cells.items()
    ]
    return markdown(rows, ["cell", *grid.arms])


def losses(grid: Grid, records: Path) -> str:
    """Training loss and generalization gap, in clean and in noisy cells."""
    loss, trained = Grid(records, grid.arms, "train_loss", 1.0), Grid(records, grid.arms, "train_value")
    groups = {"clean": lambda cell: not cell.noise, "noisy": lambda cell: cell.noise > 0}
    rows = []
    for a, arm in enumerate(grid.arms):
        row = [arm]
        for keep in groups.values():
            names = [name for name, cell in CELLS.items() if keep(cell)]
            row.append(f"{np.median([loss.cells[name][a].mean() for name in names]):.3f}")
            row.append(f"{np.mean([(trained.cells[name][a] - grid.cells[name][a]).mean() for name in names]):+.1f}")
        rows.append(row)
    head = [f"{what}, {group}" for group in groups for what in ("training loss (median)", "gap, points")]
    return markdown(rows, ["arm", *head])


def kept_of_ensemble(grid: Grid) -> str:
    """What the single model keeps of the ensemble's gain."""
    sets = grid.by_set()
    single, conventional, ensemble = (
        float(np.mean([grid.of(arm, values).mean() for values in sets.values()]))
        for arm in (OUR, "conventional", REFERENCE)
    )
    share = share_of_ensemble_gain(single, conventional, ensemble)
    return (
        f"Over all data sets the ensemble of the eight restarts gains {ensemble - conventional:+.2f} points over the "
        f"conventional split, and {OUR}'s single model {single - conventional:+.2f}: {100 * share:.0f} % of it."
    )


def scores(records: Path) -> str:
    """Every record as CSV, one line for each cell, seed and arm."""
    lines = ["cell,seed,arm,value,train_loss,train_value,visits,seconds,kept"]
    for name in CELLS:
        for path in sorted((records / name).glob("*.json"), key=lambda path: int(path.stem)):
            for arm, run in files.read_json(path).items():
                said = [run[key] for key in ("value", "train_loss", "train_value", "visits", "seconds", "kept")]
                lines.append(",".join(map(str, [name, path.stem, arm, *said])))
    return "\n".join(lines) + "\n"


def sections(grid: Grid, records: Path) -> Sequence[str]:
    """The page, part by part."""
    overall = np.stack([values.mean(1) for values in grid.by_set().values()])
    singles = [a for a, arm in enumerate(grid.arms) if arm != REFERENCE]
    test = friedman(overall[:, singles])
    wider = Grid(records, (*MAIN, *OTHERS))
    return [
        "# Arms on cells: which way of spending a budget gives the best single model",
        provenance(),
        f"{len(grid.cells)} cells over {len(grid.sets)} data sets, {grid.seeds} seeds, 8 tasks; accuracy in %. {ABOUT}",
        "## In all, and by regime",
        regimes(grid, records),
        f"Friedman's test over data sets: p = {test.p:.2g}. ![Mean ranks](arms_on_cells.svg)",
        kept_of_ensemble(grid),
        *(part for control in CONTROLS for part in (f"## Against {control}", against(grid, control))),
        ABOUT_P,
        f"## With other rules, {wider.seeds} seeds",
        regimes(wider, records),
        *(against(wider, other) for other in OTHERS),
        "## Training loss and generalization gap",
        losses(wider, records),
        "## Every cell",
        by_cell(grid),
        f"With the other rules, {wider.seeds} seeds:",
        by_cell(wider),
    ]


def main() -> None:
    grid = Grid(args.records, MAIN)
    text = "\n\n".join(sections(grid, args.records)) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
        args.out.with_suffix(".csv").write_text(scores(args.records))
        overall = np.stack([values.mean(1) for values in grid.by_set().values()])
        singles = [arm for arm in grid.arms if arm != REFERENCE]
        columns = [grid.arms.index(arm) for arm in singles]
        ranks = dict(zip(singles, average_ranks(overall[:, columns]).tolist(), strict=True))
        distance = nemenyi_critical_difference(len(singles), len(grid.sets))
        chart = critical_difference(ranks, distance, describe="Mean ranks of the arms over data sets")
        write_svg(args.out.with_suffix(".svg"), chart)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    main()
