"""Students of 2 and 4 bits trained by quantised distillation, against float students that are rounded after training.

    python benchmarks/methods/quantised_distillation.py [--seeds 5] [--out benchmarks/methods/quantised_distillation.md]

All students have the same start, splits, order of rows, optimizer and number of steps. Trains what is not on record
yet.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from compression import Cell, Trained, recorded, span, table, train, write_page
from torch import nn

from kinfold.methods import Method, QuantisedDistillation
from kinfold.methods.base import linear_layers
from kinfold.methods.quantised_distillation import quantile_points, quantise, uniform_points

CELL, TEACHER, STUDENT = Cell("mnist1d", 4_000), (256, 256), (64, 32)
EPOCHS, BATCH, LR, BUCKET = 30, 64, 0.05, 256
BITS = (4, 2)
PLAIN, DISTILLED = "float, labels alone", "float, distilled"


def fit(hidden: tuple[int, ...], *methods: Method, seeds: int) -> Trained:
    """Trains an MLP, the same way in all arms."""
    return train(
        CELL,
        {"name": "mlp", "hidden": list(hidden)},
        *methods,
        seeds=seeds,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer={"name": "sgd", "lr": LR, "momentum": 0.9},
    )


class Distilled(Method):
    """A float student with the loss of quantised distillation."""

    def __init__(self, inner: QuantisedDistillation):
        self.inner = inner

    def loss(self, inner, model, batch, state, key):  # type: ignore[no-untyped-def]
        return self.inner.loss(inner, model, batch, state, key)


def rounded(model: nn.Module, bits: int, points: str) -> nn.Module:
    """Returns a trained model with its weights rounded, at the same scales as in training."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in linear_layers(model).values():
            weight = layer.weight
            at = uniform_points(bits) if points == "uniform" else quantile_points(weight, bits, BUCKET)
            weight.copy_(quantise(weight, at, BUCKET))
    return model


def run(seeds: int) -> dict[str, Any]:
    """Returns the test accuracies of all arms, and of the teacher."""
    teacher = fit(TEACHER, seeds=1)
    of_teacher = partial(QuantisedDistillation, teacher=teacher.models[0], bucket=BUCKET)
    found = {"teacher": teacher.accuracies()}
    found[PLAIN] = recorded("quantised-plain", lambda: fit(STUDENT, seeds=seeds).accuracies())
    trained = fit(STUDENT, Distilled(of_teacher()), seeds=seeds)
    found[DISTILLED] = trained.accuracies()
    for bits in BITS:
        for points in ("uniform", "quantile"):
            models = [rounded(model, bits, points) for model in trained.models]
            found[f"{bits} bits, rounded, {points} points"] = [trained.accuracy(model) for model in models]
        for points in ("uniform", "learned"):
            arm = f"{bits} bits, quantised distillation, {points} points"
            method = of_teacher(bits=bits, points=points)
            found[arm] = recorded(
                f"quantised-{bits}-{points}", lambda m=method: fit(STUDENT, m, seeds=seeds).accuracies()
            )
    return found


def mean_of(found: dict[str, list[float]]) -> Callable[[str], float]:
    """Returns what gives an arm's mean."""
    return lambda arm: sum(found[arm]) / len(found[arm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    found = recorded("quantised", lambda: run(given.seeds))
    teacher = found.pop("teacher")[0]
    sizes = [40, *STUDENT, 10]
    weights = sum(a * b for a, b in pairwise(sizes))
    buckets = sum(-(-a * b // BUCKET) for a, b in pairwise(sizes))

    def stored(arm: str) -> str:
        bits = next((bits for bits in BITS if arm.startswith(f"{bits} bits")), 32)
        scales = 0 if bits == 32 else 64 * buckets + (0 if "uniform" in arm else 32 * 2**bits * (len(sizes) - 1))
        return f"{(bits * weights + scales) / 8192:.1f}"

    said, extra = [], []
    for bits in BITS:
        best = max((f"{bits} bits, rounded, {points} points" for points in ("uniform", "quantile")), key=mean_of(found))
        uniform, learned = (
            f"{bits} bits, quantised distillation, {points} points" for points in ("uniform", "learned")
        )
        said.append(
            f"at {bits} bits it gains {span(found[uniform], found[best])} with uniform points and "
            f"{span(found[learned], found[best])} with learned ones"
        )
        extra.append(f"At {bits} bits learned points are {span(found[learned], found[uniform])} to uniform ones.")
    sentence = (
        f"**Over the same distilled student rounded after training, by the better of two grids, {'; '.join(said)} "
        "(points of test accuracy, mean and 95 % interval).**"
    )
    body = f"""{table(found, DISTILLED, {"weights, KiB": [stored(arm) for arm in found]})}

{" ".join(extra)}

{CELL.rows:,} rows of MNIST-1D; students are MLPs {"-".join(map(str, sizes))}, the teacher is one MLP with hidden
layers of {" and ".join(map(str, TEACHER))}, of {teacher:.2f} % on the test rows. It was trained on nine tenths of the
labelled rows, among them validation rows of the students, by which alone their epochs are picked. {EPOCHS} epochs,
batches of {BATCH}, SGD with momentum 0.9 and a cosine from {LR}, λ = 0.7, T = 2, buckets of {BUCKET}, points by Adam at
0.001: the same for all arms and tuned for none; {given.seeds} seeds. Quantised students are trained from the start with
quantised weights and see as many rows as float ones."""
    write_page(given.out, "Quantised distillation", sentence, body)


if __name__ == "__main__":
    main()
