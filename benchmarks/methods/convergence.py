"""How fast optimizers go: an MLP on MNIST-1D, the steps to a training loss, at rates tuned alike.

Each arm has the same number of rates to choose from; the one with the fewest steps on seeds that are not scored is
taken. Starts, splits and orders of rows are the same in every arm, seed by seed. No test row is used.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from common import Records, difference, interval
from torch import nn

import kinfold
from kinfold.methods import Method

BATCH, STEPS, TUNED_ON = 64, 3200 // 64, 3  # rows of a batch; steps of an epoch; seeds


@dataclass(frozen=True)
class Arm:
    """An optimizer, the rates to choose from, and the methods over it."""

    optimizer: Any
    rates: Sequence[float]
    methods: tuple[Method, ...] = field(default=())


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def run(arm: Arm, rate: float, epochs: int, seeds: int, seed: int) -> dict[str, Any]:
    """Each epoch's training losses of several seeds, their best validation accuracies, and one core's seconds."""
    common: dict[str, Any] = {"holdout": 0, "transfer": "none", "start": "independent", "engine": "vectorised"}
    optimizer = partial(arm.optimizer, lr=rate)
    began = time.process_time()
    result = kinfold.fit(
        network,
        "mnist1d",
        tasks=seeds,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=optimizer,
        scheduler=None,
        methods=arm.methods,
        seed=seed,
        **common,
    )
    seconds = time.process_time() - began
    periods = [event for event in result.history if event["event"] == "period"]
    best = [100 * max(event["metric"][t] or 0.0 for event in periods) for t in range(seeds)]  # None: it diverged
    losses = [[value if value is None else round(value, 4) for value in event["train_loss"]] for event in periods]
    return {"losses": losses, "validation": best, "seconds": seconds}


def steps_to(target: float, losses: Sequence[Sequence[float | None]]) -> list[float]:
    """Steps after which each seed's mean loss of an epoch was first at the target; infinite where it never was."""
    return [
        next((STEPS * (i + 1) for i, own in enumerate(one) if own is not None and own <= target), math.inf)
        for one in zip(*losses, strict=True)
    ]


def table(
    arms: Mapping[str, Arm], controls: Sequence[str], records: Records, seeds: int, epochs: int, target: float
) -> tuple[str, dict[str, list[float]]]:
    """Returns the table of all arms, each at its best rate, and the steps that each took, by seed."""
    gaps = " | ".join(f"less {name}" for name in controls)
    lines = [
        f"| arm | rate | steps | {gaps} | loss at the end | ms a step | validation accuracy, % |",
        "|---|---|---|" + "---|" * len(controls) + "---|---|---|",
    ]
    rates: dict[str, float] = {}
    scored: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        steps = {
            rate: sum(steps_to(target, tuned["losses"]))
            for rate in (arm.rates if len(arm.rates) > 1 else ())
            for tuned in [records(f"tune {name} {rate}", partial(run, arm, rate, epochs, TUNED_ON, 1000))]
        }
        rates[name] = min(arm.rates, key=lambda rate: steps.get(rate, 0.0))
        again = partial(run, arm, rates[name], epochs, seeds, 0)
        scored[name] = records(f"score {name} {rates[name]} {seeds}", again)
    reached = {name: steps_to(target, one["losses"]) for name, one in scored.items()}
    for name, one in scored.items():
        apart = ["" if name == control else difference(reached[name], reached[control]) for control in controls]
        each = 1000 * one["seconds"] / (epochs * STEPS * seeds)
        measured = [interval(one["losses"][-1]), f"{each:.2f}", interval(one["validation"])]
        cells = [name, f"{rates[name]:g}", interval(reached[name]), *apart, *measured]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), reached


def note(seeds: int, epochs: int, target: float) -> str:
    """Returns what the table's columns are."""
    return (
        f"An MLP 40-64-64-10 on MNIST-1D, {seeds} seeds, constant rates, {epochs} epochs. Steps of batches of {BATCH}\n"
        f"until the mean training loss of an epoch is at most {target}; mean ± half width of the 95 % interval\n"
        f"(Student's t; differences paired). Each arm's rate is that of the fewest steps on {TUNED_ON} other seeds.\n"
        "The time is one core's for a step of one network, of as many as there are seeds that train together,\n"
        "on a machine with other work. Accuracies are those of the best epoch on its validation rows."
    )
