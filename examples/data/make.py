"""Writes the small files of this folder: made up, so that the examples need nothing downloaded.

Run `python examples/data/make.py` from the root of the repository; it writes the same files every time.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Rows = Iterable[Iterable[Any]]


def trees(rng: np.random.Generator) -> Rows:
    """Returns a table with numbers, categories and gaps; the species is a word."""
    yield "height", "girth", "soil", "leaf", "species"
    for _ in range(240):
        kind = int(rng.integers(3))
        height = f"{rng.normal((18, 25, 12)[kind], 3):.1f}" if rng.random() > 0.05 else ""
        girth = f"{rng.normal((1.1, 1.6, 0.7)[kind], 0.2):.2f}"
        soil = rng.choice(["clay", "sand", "loam"], p=[(0.6, 0.2, 0.2), (0.2, 0.2, 0.6), (0.1, 0.7, 0.2)][kind])
        leaf = (
            rng.choice(["broad", "narrow"], p=[(0.9, 0.1), (0.8, 0.2), (0.2, 0.8)][kind]) if rng.random() > 0.1 else ""
        )
        yield height, girth, soil, leaf, ("oak", "ash", "pine")[kind]


def waves(rng: np.random.Generator) -> Rows:
    """Returns series of 64 steps, the class first, as the UCR archive has them: sines, saws and pulses with noise."""
    steps = np.arange(64) / 64
    for _ in range(150):
        kind, phase, beats = int(rng.integers(3)), rng.random(), rng.uniform(2, 4)
        turn = (beats * steps + phase) % 1
        wave = (np.sin(2 * np.pi * turn), 2 * turn - 1, np.where(turn < 0.3, 1.0, -0.5))[kind]
        yield (kind + 1, *(f"{value:.3f}" for value in wave + rng.normal(0, 0.3, 64)))


def reviews(rng: np.random.Generator) -> Rows:
    """Returns short texts about things that were bought, and whether they were liked."""
    things = ["kettle", "lamp", "chair", "radio", "bicycle", "blanket", "umbrella"]
    good = ["works very well", "looks lovely", "was worth every penny", "arrived early", "feels solid"]
    bad = ["broke within a week", "smells odd", "was far too expensive", "arrived late and dented", "feels cheap"]
    ends = ["I told my sister so", "that is all I can say", "the box was brown", "it stands in the kitchen now"]
    yield "review", "opinion"
    for _ in range(200):
        liked = rng.random() < 0.5
        said = rng.choice(good if liked else bad, 2, replace=False)
        yield f"The {rng.choice(things)} {said[0]} and {said[1]}, {rng.choice(ends)}.", "liked" if liked else "disliked"


def faults(rng: np.random.Generator) -> Rows:
    """Returns readings of a machine, of which one in twelve ends in a fault."""
    yield "temperature", "vibration", "current", "state"
    for i in range(360):
        fault = i % 12 == 5
        temperature, vibration, current = rng.normal((70, 1.0, 5.0)) + np.array((8, 1.8, 1.0)) * fault * rng.uniform(
            0.7, 1.3, 3
        )
        yield f"{temperature:.2f}", f"{vibration:.2f}", f"{current:.2f}", "fault" if fault else "fine"


def patients(rng: np.random.Generator) -> Rows:
    """Returns several visits of each patient: rows of one patient are alike, and must not be on both sides."""
    yield "patient", "pulse", "pressure", "sleep", "ill"
    for number in range(40):
        ill, own = number % 2 == 0, rng.normal(0, 6, 2)
        for _ in range(int(rng.integers(3, 8))):
            pulse, pressure = rng.normal((70, 120)) + own + np.array((12, 10)) * ill
            yield (
                f"p{number:02}",
                f"{pulse:.1f}",
                f"{pressure:.1f}",
                f"{rng.normal(7 - ill, 1):.1f}",
                "yes" if ill else "no",
            )


def demand(rng: np.random.Generator) -> Rows:
    """Returns one row a day: what was sold hangs on the weekday, the weather and a slow drift."""
    yield "day", "weekday", "warmth", "holiday", "sold"
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    for day in range(300):
        warmth, holiday = 12 + 9 * np.sin(2 * np.pi * day / 365) + rng.normal(0, 2), rng.random() < 0.04
        sold = 80 + 0.05 * day + 2.5 * warmth + (0, 0, 0, 4, 15, 30, -20)[day % 7] - 40 * holiday + rng.normal(0, 4)
        yield np.datetime64("2024-01-01") + day, days[day % 7], f"{warmth:.1f}", int(holiday), f"{sold:.1f}"


FILES: dict[str, Callable[[np.random.Generator], Rows]] = {
    "trees.csv": trees,
    "waves.tsv": waves,
    "reviews.csv": reviews,
    "faults.csv": faults,
    "patients.csv": patients,
    "demand.csv": demand,
}


def main(folder: Path = Path(__file__).parent) -> None:
    """Writes every file into a folder."""
    for seed, (name, make) in enumerate(FILES.items()):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if name.endswith(".tsv") else ","
            csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(make(np.random.default_rng(seed)))


if __name__ == "__main__":
    main()
