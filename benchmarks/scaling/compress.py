"""What codecs save, and what they cost in accuracy: bytes between shares and test accuracy on Fashion-MNIST.

    python benchmarks/scaling/compress.py [--seeds 5] [--rules papa …] [--out benchmarks/scaling/compress.md]

Every task is a share of its own, so that whatever moves is counted; the shares are in one process (`shared.py`), and
the numbers are those that a cluster would give. Trains what is not on record yet, and keeps a record of each arm and
seed in a file, so that it can be stopped and started again.

Legend: T tasks, K seeds.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "generalization"))
from cells import Cell, draw
from provenance import provenance
from shared import Shared

from kinfold import files
from kinfold.assembling import Assembled, assemble
from kinfold.comparing.comparison import fit_arguments
from kinfold.comparing.statistics import interval, paired_t
from kinfold.comparing.table import markdown
from kinfold.engines.compression import Adaptive, BFloat16, Codec, Tensors, bytes_of
from kinfold.engines.local import start_stack
from kinfold.run import Progress, run
from kinfold.splits import RowInfo, Splits, Splitter, Stratified
from kinfold.transfer import AMTO, PAPA, PAPAAll, Rule

RECORDS = Path(__file__).with_name("records") / "compression"
T, ROWS, EPOCHS, BATCH, LR, VALIDATION = 4, 1_500, 6, 32, 0.05, 0.2
RULES: Mapping[str, Rule] = {"papa": PAPA(), "papa-all": PAPAAll(period=1), "amto": AMTO(p_low=0.7)}
NONE = "none"
ALL_FORMS, TWO_BITS = "adaptive, all forms", "adaptive, all forms, 2 bits"
BITS_ALONE = "adaptive, bits alone"
"""The adaptive codec as it is by default; the other arms have all its forms to choose from."""
ALL = ("bits", "rank", "sparsity")
WITHOUT_REFERENCE = "adaptive, all forms, no reference"
"""The adaptive codec on parameters instead of differences from the common start."""
CODECS: Mapping[str, Codec | None] = {
    NONE: None,
    "bf16": BFloat16(),
    ALL_FORMS: Adaptive(bits=4, families=ALL),
    TWO_BITS: Adaptive(bits=2, families=ALL),
    BITS_ALONE: Adaptive(bits=4),
    WITHOUT_REFERENCE: Adaptive(bits=4, families=ALL),
}
ARMS: Mapping[str, tuple[str, ...]] = {
    "papa": (NONE, "bf16", ALL_FORMS),
    "papa-all": (NONE, "bf16", ALL_FORMS, BITS_ALONE),
    "amto": (NONE, "bf16", ALL_FORMS),
}
FURTHER: Mapping[str, tuple[str, ...]] = {
    "papa": (TWO_BITS,),
    "papa-all": (TWO_BITS, WITHOUT_REFERENCE),
}
FURTHER_SEEDS = 3
"""Of the further arms, which show the codec's limits."""


@final
@dataclass(frozen=True, eq=False)
class Sealing(Splitter):
    """Seals the test rows; splits the others, classes by their shares."""

    test: Bool[np.ndarray, " N"]

    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        del holdout
        labelled = np.flatnonzero(~self.test)
        drawn = Stratified(VALIDATION).draw(info.take(labelled), tasks=tasks, holdout=0, seed=seed)
        train, validation = np.zeros((2, tasks, len(info)), dtype=bool)
        train[:, labelled], validation[:, labelled] = drawn.train, drawn.validation
        return Splits(train, validation, self.test)


def assembled(rule: Rule, seed: int) -> Assembled:
    """Returns the run of a rule on a sample of its own."""
    sample = draw(Cell("fashion-mnist", ROWS), seed)
    optimizer = {"name": "sgd", "lr": LR, "momentum": 0.9}
    given = fit_arguments(
        "lenet5",
        sample.dataset,
        tasks=T,
        splits=Sealing(sample.test),
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=optimizer,
    )
    return assemble({**given, "transfer": rule, "seed": seed})


def train(rule: Rule, codec: str, seed: int) -> dict[str, Any]:
    """Trains T tasks that exchange through a codec; returns bytes, accuracies and times."""
    whole = assembled(rule, seed)
    job, remaining = whole.job, whole.remaining
    engine, progress = (
        Shared(job, T, CODECS[codec], start=codec != WITHOUT_REFERENCE),
        Progress.start(job, remaining.rule),
    )
    unsealed = torch.from_numpy(~whole.prepared.splits.sealed)
    run(
        engine,
        job,
        remaining.rule,
        progress,
        epochs=EPOCHS,
        patience=None,
        unsealed=unsealed,
        listen=lambda event: None,
    )
    rows = (~unsealed).nonzero().flatten()
    accuracies = _accuracies(engine, whole, rows)
    return {
        "test": accuracies[_best(engine, whole)],
        "members": accuracies,
        "bytes": dict(engine.moved),
        "plans": engine.plans,
        "accepted": progress.accepted,
        "seconds": progress.train_seconds + progress.transfer_seconds,
    }


def _accuracies(engine: Shared, whole: Assembled, rows: Tensor) -> list[float]:
    objective, targets = whole.job.objective, whole.job.targets[rows]
    return [100 * objective.score(outputs, targets)[0] for outputs in engine.predict(rows, best=True)]


def _best(engine: Shared, whole: Assembled) -> int:
    """The task that is best over all validation sets, in the mean."""
    per_set = [_accuracies(engine, whole, mask.nonzero().flatten()) for mask in whole.job.validation]
    return int(np.argmax(np.mean(per_set, 0)))


class Grid:
    """The records of all arms, each over the seeds that it is on record for."""

    def __init__(self, records: Path, seeds: int):
        self.seeds = seeds
        paths = {(rule, codec): {s: path(records, rule, codec, s) for s in own} for rule, codec, own in arms(seeds)}
        self.runs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {
            arm: {seed: files.read_json(where) for seed, where in own.items() if where.exists()}
            for arm, own in paths.items()
        }

    def of(self, rule: str, codec: str, what: str) -> Float[np.ndarray, " K"]:
        """Returns one figure for every seed."""
        return np.array([run[what] for run in self.runs[rule, codec].values()], dtype=np.float64)

    def pairs(self, rule: str, codec: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns (record with a codec, record without) of the same seeds."""
        plain = self.runs[rule, NONE]
        return [(run, plain[seed]) for seed, run in self.runs[rule, codec].items() if seed in plain]

    def change(self, rule: str, codec: str) -> Float[np.ndarray, " K"]:
        """Returns by how much the test accuracy is above that without a codec, for every seed."""
        return np.array([run["test"] - plain["test"] for run, plain in self.pairs(rule, codec)], dtype=np.float64)

    def fewer(self, rule: str, codec: str, kinds: tuple[str, ...] | None = None) -> float:
        """Returns how many times fewer bytes go between shares than without a codec, of some kinds or all."""
        own, plain = zip(*self.pairs(rule, codec), strict=True)
        return _bytes(plain, kinds) / _bytes(own, kinds)


def _bytes(runs: Sequence[Mapping[str, Any]], kinds: tuple[str, ...] | None) -> int:
    return sum(size for run in runs for kind, size in run["bytes"].items() if kinds is None or kind in kinds)


CODED = ("models", "sums", "combinations")
"""Kinds of traffic that a codec makes less."""


def arms(seeds: int) -> list[tuple[str, str, range]]:
    """Returns (rule, codec, seeds) of every arm."""
    main = [(rule, codec, range(seeds)) for rule, codecs in ARMS.items() for codec in codecs]
    few = range(min(seeds, FURTHER_SEEDS))
    return [*main, *((rule, codec, few) for rule, codecs in FURTHER.items() for codec in codecs)]


def path(records: Path, rule: str, codec: str, seed: int) -> Path:
    """Returns where a record is kept."""
    return records / f"{rule}-{codec.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def table(grid: Grid) -> str:
    """Returns bytes and accuracy of every arm."""
    rows = []
    for (rule, codec), runs in grid.runs.items():
        plans, moved = sum(run["plans"] for run in runs.values()), _bytes(list(runs.values()), None)
        found, change = interval(grid.of(rule, codec, "test")), paired_t(grid.change(rule, codec))
        rows.append(
            [
                f"{rule}, {codec}",
                str(len(runs)),
                f"{plans / len(runs):.0f}",
                f"{moved / 1e6 / plans:.3g}",
                *(_times(grid.fewer(rule, codec, kinds)) for kinds in (None, CODED)),
                f"{found.mean:.2f} ± {found.high - found.mean:.2f}",
                "" if codec == NONE else f"{change.mean:+.2f} ({change.low:+.2f} to {change.high:+.2f})",
            ]
        )
    head = ["arm", "seeds", "plans", "MB a plan", "fewer bytes", "of models", "test accuracy", "to none"]
    return markdown(rows, head)


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times"


def cost() -> str:
    """Returns what encoding costs: MB a second on one core, the best of some tries on one model."""
    model = {name: value[0] for name, value in start_stack(assembled(PAPA(), 0).job).params.items()}
    parts = []
    for name in ("bf16", BITS_ALONE, ALL_FORMS):
        timed = [_seconds(CODECS[name], model) for _ in range(20)]
        parts.append(f"{name} {bytes_of(model) / min(timed) / 1e6:.3g}")
    return f"""MB of float32 that one core encodes in a second, the best of 20 tries on one model: {"; ".join(parts)}.
A codec saves time where the network is slower than that."""


def _seconds(codec: Codec | None, tensors: Tensors) -> float:
    assert codec is not None
    began = time.perf_counter()
    codec.encode(tensors)
    return time.perf_counter() - began


def verdict(grid: Grid) -> str:
    """Returns whether the aim was met, arm by arm."""
    lines = []
    for rule, codec in grid.runs:
        if codec == NONE:
            continue
        fewer, change = grid.fewer(rule, codec), grid.change(rule, codec).mean()
        inside = abs(change) <= grid.of(rule, NONE, "test").std(ddof=1)
        said = "met" if fewer >= 4 and inside else "not met"
        where = "within" if inside else "beyond"
        lines.append(
            f"- {rule}, {codec}: {said} ({_times(fewer)}, {change:+.2f} points, {where} the spread over seeds)."
        )
    return "\n".join(lines)


def page(grid: Grid) -> str:
    """Returns the whole page."""
    size = bytes_of({name: value[0] for name, value in start_stack(assembled(PAPA(), 0).job).params.items()})
    setting = f"""Up to {grid.seeds} seeds, each with {ROWS:,} labelled rows of its own from the official training \
part ({VALIDATION:.0%} for validation in each
of T = {T} splits), LeNet-5 of {size / 4:,.0f} parameters ({size / 1e6:.3g} MB), {EPOCHS} epochs, batches of {BATCH}, \
SGD from {LR} by cosine, momentum 0.9.
PAPA pulls every 10 steps (α = 0.99); PAPA-all replaces all tasks by their mean after every epoch; in AMTO each tries a
copy, blend or crossover with probability 0.7, accepted on validation rows. Every task is a share of its own. *Fewer
bytes*: than without a codec, of all that moved; *of models*: of models and their sums alone, since layers of a
crossover and momentum that follows go as they are. Codecs send differences from the common start, but for those without
reference. Test accuracy in % of the task that is best over all validation sets, on 5,000 rows of the official test
part: mean ± half width of the 95 % interval over seeds (Student's t), and the paired difference to none with its
interval."""
    aim = """The aim: at least 4 times fewer bytes, at a mean accuracy no further from that without a codec than one
standard deviation of the latter over seeds."""
    parts = [
        "# What codecs save, and what they cost in accuracy",
        provenance(),
        setting,
        table(grid),
        cost(),
        "## Was the aim met?",
        aim,
        verdict(grid),
    ]
    return "\n\n".join(parts) + "\n"


def carry_through(records: Path, seeds: int, rules: Sequence[str]) -> None:
    """Trains what is not on record yet, of some rules."""
    for rule, codec, own in arms(seeds):
        for seed in own if rule in rules else ():
            where = path(records, rule, codec, seed)
            if not where.exists():
                files.write_json(where, train(RULES[rule], codec, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="of which to train some")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("compress.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    carry_through(given.records, given.seeds, given.rules)
    if set(given.rules) == set(RULES):
        files.write_text(given.out, page(Grid(given.records, given.seeds)))


if __name__ == "__main__":
    main()
