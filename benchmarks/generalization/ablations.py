"""Which part of a rule does the work? Variants of the rules on a few quick cells, over several seeds.

    python benchmarks/generalization/ablations.py [--seeds 5] [--records DIR] [--out FILE]

Each question has a first variant that the others are set against. Trained and kept on record as by `arms_on_cells.py`.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms_on_cells import RECORDS, run
from cells import CELLS, Cell
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files
from kinfold.comparing.arms import resolve_arm
from kinfold.comparing.statistics import paired_t
from kinfold.comparing.table import markdown

QUICK = (
    *("digits-300", "digits-300-noise20", "magic-500", "magic-500-noise20", "satimage-500-noise10", "crop-1000-under"),
)
"""The cells: clean, noisy and under-trained ones of four data sets, whose arms take seconds."""


def arm(name: str, transfer: Any, **options: Any) -> Mapping[str, Any]:
    return {"name": name, "transfer": transfer, **options}


def amto(name: str, **arguments: Any) -> Mapping[str, Any]:
    return arm(f"amto, {name}", {"name": "amto", **arguments})


INDEPENDENT = {"start": "independent"}
SOUPS = {"candidates": ["soup"]}
AVERAGES = {"candidates": ["ema", "swa"]}
QUESTIONS: Mapping[str, tuple[Any, ...]] = {
    "Every rule": (
        *("restarts", "none", "amto", "exchange", "papa", "papa-all", "elastic", "shuffle", "merge-median", "mfea"),
        *("mfea-2", "teach", "teach-out-of-fold", "distil"),
    ),
    "Parameter space, function space, both": (
        *("amto", "papa", "teach", "teach-out-of-fold", "amto+teach", "papa+teach"),
    ),
    "What amto sends": (
        "amto",
        *(amto(f"{form} only", forms=[form]) for form in ("copy", "blend", "crossover")),
    ),
    "Rows that amto accepts by": ("amto", amto("shared rows", rows="shared"), amto("unexposed rows", rows="unexposed")),
    "Adaptive or fixed rates": (
        "amto",
        amto("fixed rates", p_low=0.375, p_high=0.375, floor=1.0),
        amto("often", p_low=0.7, p_high=1.0),
    ),
    "Period of transfers": ("amto", amto("every 3 periods", period=3), amto("every 10 periods", period=10)),
    "Shared or independent starts": (
        *("amto", arm("amto, independent", "amto", **INDEPENDENT)),
        *("papa", arm("papa, independent", "papa", **INDEPENDENT)),
        *("teach", arm("teach, independent", "teach", **INDEPENDENT)),
        *("distil", arm("distil, independent", "distil", **INDEPENDENT)),
    ),
    "Averaging: late (soups, weight averages), early (papa), both": (
        "none",
        *(arm("none, soup", "none", **SOUPS), arm("none, averages", "none", **AVERAGES)),
        *("papa", arm("papa, soup", "papa", **SOUPS), arm("papa, averages", "papa", **AVERAGES)),
        arm("teach, averages", "teach", **AVERAGES),
    ),
    "How strongly peers teach": (
        "teach",
        arm("teach, weight 0.3", {"name": "teach", "weight": 0.3}),
        arm("teach, weight 0.8", {"name": "teach", "weight": 0.8}),
        arm("teach, temperature 2", {"name": "teach", "temperature": 2}),
    ),
    "The final student": (
        "distil",
        arm("distil, probe only", {"name": "distil", "stages": [0.1]}),
        arm("distil, labels as they are", {"name": "distil", "stages": [0.1], "clean": 1.0}),
        arm("distil, always noisy", {"name": "distil", "clean": 0.0}),
        arm("distil, second stage 0.3", {"name": "distil", "stages": [0.1, 0.3]}),
        arm("distil, three stages", {"name": "distil", "stages": [0.1, 0.2, 0.4]}),
        *("all-rows", "all-rows-once"),
    ),
}


def values(records: Path, name: str, seeds: int) -> Float64[np.ndarray, "cells K"]:
    return 100 * np.array(
        [[files.read_json(records / cell / f"{seed}.json")[name]["value"] for seed in range(seeds)] for cell in QUICK]
    )


def table(records: Path, specs: tuple[Any, ...], seeds: int) -> str:
    """One question: means over cells, clean and noisy, and the paired difference to the first variant."""
    noisy = np.array([CELLS[cell].noise > 0 for cell in QUICK])
    names = [resolve_arm(spec).name for spec in specs]
    first = values(records, names[0], seeds)
    rows = []
    for name in names:
        mine = values(records, name, seeds)
        difference = paired_t((mine - first).mean(0))
        rows.append(
            [
                name,
                f"{mine.mean():.2f}",
                f"{mine[~noisy].mean():.2f}",
                f"{mine[noisy].mean():.2f}",
                "" if name == names[0] else f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})",
            ]
        )
    return markdown(rows, ["variant", "all", "clean", "noisy labels", f"better than {names[0]} by (95 % interval)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--share", default="1/1", metavar="I/N", help="the I-th of N processes takes every N-th cell")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms = {(made := resolve_arm(spec)).name: made for specs in QUESTIONS.values() for spec in specs}
    mine, of = map(int, given.share.split("/"))
    cells: list[Cell] = [CELLS[name] for name in QUICK[mine - 1 :: of]]
    for seed in range(given.seeds):
        for cell in cells:
            run(cell, seed, list(arms.values()), given.records)
    if given.out is None:
        return
    parts = [f"## {question}\n\n{table(given.records, specs, given.seeds)}" for question, specs in QUESTIONS.items()]
    about = (
        f"{len(QUICK)} cells ({', '.join(QUICK)}), {given.seeds} seeds, 8 tasks; test accuracy in %. Recipes as in\n"
        "`arms_on_cells.md`. Intervals are Student's t over seeds, of the mean over cells, paired by seed."
    )
    given.out.write_text("\n\n".join(["# Ablations", provenance(), about, *parts]) + "\n")


if __name__ == "__main__":
    main()
