"""What the demonstrations of compression share: training all seeds of an arm at once, records, tables.

Every seed is a task of one run without transfer: a start, a split and an order of rows of its own, the same in every
arm, so that differences are paired. A task's epoch is picked on its own validation rows; accuracies are of test rows
that nothing else was done with. Legend: K seeds, N rows.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "generalization"))
from cells import Cell as Cell
from cells import draw as draw
from provenance import provenance

from kinfold import files
from kinfold.assembling import assemble
from kinfold.comparing.comparison import fit_arguments
from kinfold.comparing.statistics import interval, paired_t
from kinfold.comparing.table import markdown
from kinfold.engines import Job
from kinfold.fitting import carry_out
from kinfold.methods import Method
from kinfold.result import model_outputs
from kinfold.splits import RowInfo, Splits, Splitter, Stratified

RECORDS = Path(__file__).with_name("records")


@final
@dataclass(frozen=True, eq=False)
class OfficialTest(Splitter):
    """Seals given test rows, and has each task validate on a tenth of the others, drawn for it.

    Attributes:
        test: [N] the rows to seal.
    """

    test: Bool[np.ndarray, " N"]

    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        labelled = np.flatnonzero(~self.test)
        drawn = Stratified(0.1).draw(info.take(labelled), tasks=tasks, holdout=0, seed=seed)
        train, validation = np.zeros((2, tasks, len(info)), dtype=bool)
        train[:, labelled], validation[:, labelled] = drawn.train, drawn.validation
        return Splits(train, validation, self.test)


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """The models of K seeds.

    Attributes:
        models: one a seed.
        job: what was trained.
        test: [N] the test rows.
        seconds: spent training.
    """

    models: list[nn.Module]
    job: Job
    test: Bool[np.ndarray, " N"]
    seconds: float

    def accuracy(self, model: nn.Module) -> float:
        """Returns a model's accuracy on the test rows, in %."""
        rows = torch.from_numpy(np.flatnonzero(self.test))
        return 100 * self.job.objective.score(model_outputs(model, self.job.inputs, rows), self.job.targets[rows])[0]

    def accuracies(self) -> list[float]:
        """Returns those of all models."""
        return [self.accuracy(model) for model in self.models]


def train(cell: Cell, model: Any, *methods: Method, seeds: int, engine: str = "vectorised", **options: Any) -> Trained:
    """Trains an arm's K seeds; `options` are those of `kinfold.fit`."""
    sample = draw(cell, 0)
    given = fit_arguments(
        model, sample.dataset, tasks=seeds, start="independent", splits=OfficialTest(sample.test), **options
    )
    assembled = assemble({**given, "methods": list(methods), "seed": 0})
    result, models = carry_out(
        assembled,
        patience=None,
        rescue=0,
        engine=engine,
        listen=lambda event: None,
        members=lambda result: range(seeds),
    )
    return Trained(models, assembled.job, sample.test, result.cost["train_seconds"])


def recorded(name: str, make: Callable[[], Any]) -> Any:
    """Returns a record, made if there is none yet."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, make())
    return files.read_json(path)


def table(arms: Mapping[str, list[float]], control: str, more: Mapping[str, list[str]] = {}) -> str:
    """Returns the table of arms' accuracies over K seeds, with paired differences to the control.

    Args:
        arms: [K] by the arm's title.
        control: title of the arm that others are compared with.
        more: further columns, a text for each arm.
    """
    rows = []
    for place, (title, values) in enumerate(arms.items()):
        found = interval(np.array(values))
        difference = "" if title == control else span(values, arms[control])
        extra = [column[place] for column in more.values()]
        rows.append([title, f"{found.mean:.2f} ± {found.high - found.mean:.2f}", difference, *extra])
    return markdown(rows, ["arm", "test accuracy, %", f"minus {control}, 95 % interval", *more])


def span(values: list[float], control: list[float]) -> str:
    """Returns the mean paired difference with its 95 % interval."""
    found = paired_t(np.array(values) - np.array(control))
    return f"{found.mean:+.2f} ({found.low:+.2f} … {found.high:+.2f})"


def write_page(path: Path, title: str, sentence: str, body: str) -> None:
    """Writes a page: its title, the one sentence, where it comes from, and the rest."""
    path.write_text(f"# {title}\n\n{sentence}\n\n{provenance()}\n\n{body}\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
