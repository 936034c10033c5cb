"""What the demonstrations of methods share: training runs of several seeds, records, and tables with intervals.

A seed has a split, initial parameters and an order of rows of its own, and these are the same in every arm: arms are
compared by paired differences.
"""

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
from kinfold import random
from kinfold.assembling import assemble
from kinfold.data import read
from kinfold.files import read_json, write_json
from kinfold.fitting import carry_out

Data: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class Trained(NamedTuple):
    """What a training run of several seeds has come to.

    Attributes:
        models: each seed's, of its best epoch by its validation rows.
        scores: accuracy of these on the validation rows.
        train: [seeds, rows] each seed's training rows.
        validation: [seeds, rows] likewise.
        seconds: of the processor, a seed.
    """

    models: list[nn.Module]
    scores: list[float]
    train: torch.Tensor
    validation: torch.Tensor
    seconds: float


def trained(model: Any, data: Data, *, seeds: int = 1, **given: Any) -> Trained:
    """Trains a network once a seed; nothing is transferred between them.

    Args:
        model: as in `kinfold.fit`.
        data: rows and classes; a fifth is each seed's validation rows, drawn by the seed.
        seeds: how many at once; the run's own seed stands for one of them.
        given: other arguments of `kinfold.fit`.
    """
    defaults = {name: p.default for name, p in inspect.signature(kinfold.fit).parameters.items()}
    engine = "sequential" if seeds == 1 else "vectorised"
    own = {"tasks": seeds, "transfer": "none", "start": "independent", "holdout": 0, "engine": engine}
    arguments = {**defaults, "model": model, "data": data, **own, **given}
    for name in ("out", "resume", "listen"):
        del arguments[name]
    began = time.process_time()
    assembled = assemble(arguments)
    result, models = carry_out(assembled, patience=None, rescue=0, engine=engine, members=lambda result: range(seeds))
    seconds = (time.process_time() - began) / seeds
    return Trained(models, result.scores.own.tolist(), assembled.job.train, assembled.job.validation, seconds)


def arrays(name: str) -> tuple[Data, Data]:
    """Returns labelled rows and test rows of a public data set; of digits, a fixed 500 are test rows.

    Pictures are in units of 0 to 1, series as they are.
    """
    parts = []
    for part in [name] if name == "digits" else [name, f"{name}:test"]:
        dataset = read(part)
        x = dataset.features
        x = torch.from_numpy(np.stack(x)) if isinstance(x, tuple) else torch.as_tensor(x)
        x = x.float() / (255.0 if x.dtype == torch.uint8 else 1.0)
        parts.append((x, dataset.target.values))
    if name != "digits":
        return parts[0], parts[1]
    (x, y), order = parts[0], random.permutation(random.key("test rows"), len(parts[0][1]))
    return (x[order[500:]], y[order[500:]]), (x[order[:500]], y[order[:500]])


def accuracy(model: nn.Module, rows: Data) -> float:
    """Returns the accuracy on rows, in %."""
    x, y = rows
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).double().mean())


class Records:
    """What was measured so far, a JSON file a key: an interrupted demonstration goes on, and processes can share it.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """Returns what was measured under the key, or measures it now."""
        path = self._folder / f"{key.replace(' ', '_')}.json"
        if not path.exists():
            measured = measure()
            write_json(path, measured)
            print(key, measured, file=sys.stderr, flush=True)
        return read_json(path)


def interval(values: Sequence[float], sign: str = "") -> str:
    """Returns mean ± half of the 95 % interval by Student's t."""
    array = np.asarray(values)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return f"{array.mean():{sign}.2f} ± {half:.2f}"


def difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Returns the mean of paired differences, with its interval."""
    return interval(np.asarray(one) - np.asarray(other), "+")


def write(path: Path, title: str, sentence: str, body: str) -> None:
    """Writes a demonstration's page: what it shows first, then the tables, then where they come from."""
    path.write_text(f"# {title}\n\n{sentence}\n\n{body}\n\n{provenance()}\n", encoding="utf-8")


def arguments(description: str, script: str) -> argparse.Namespace:
    """Returns the command line's arguments; one thread is used, for times that compare."""
    here = Path(script)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where processes share the work")
    parser.add_argument("--records", type=Path, default=here.parent / "records" / here.stem)
    parser.add_argument("--out", type=Path, default=here.with_suffix(".md"))
    given = parser.parse_args()
    given.records.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return given


def each_seed(given: argparse.Namespace, measure: Callable[[int], Any]) -> list[Any]:
    """Returns what is measured for each seed, in the order of the seeds; the first of the arguments is done first."""
    order = [(given.first + i) % given.seeds for i in range(given.seeds)]
    found = {seed: measure(seed) for seed in order}
    return [found[seed] for seed in range(given.seeds)]
