"""The work that every contestant does: T models of one structure, trained on batches of 64 rows of their own.

Legend: T tasks, N rows, S steps of a period, B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kinfold import random
from kinfold.data.base import TensorInputs
from kinfold.engines import Job, Precision
from kinfold.models import factory
from kinfold.splits import RowInfo, draw_splits
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import row_orders
from kinfold.tasks.state import build_starts

ROWS = 5_160  # of which a task trains on four fifths: 64 whole batches a period
CLASSES = 10
BATCH = 64
RATE, MOMENTUM = 0.05, 0.9

make_optimizer = partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM)


@dataclass(frozen=True)
class Structure:
    """A network of the benchmark.

    Attributes:
        spec: as `kinfold.models.factory` takes it.
        shape: of a row.
        says: what it is, for the table.
    """

    spec: dict[str, Any]
    shape: tuple[int, ...]
    says: str


STRUCTURES: dict[str, Structure] = {
    "mlp": Structure({"name": "mlp", "hidden": [128, 128]}, (64,), "MLP 64-128-128-10"),
    "lenet5": Structure({"name": "lenet5"}, (1, 28, 28), "LeNet-5 on 1×28×28"),
    "resnet20": Structure({"name": "resnet20"}, (3, 32, 32), "ResNet-20 on 3×32×32"),
    "lstm": Structure({"name": "lstm"}, (4, 64), "LSTM of width 128 on series of 4 channels, 64 steps"),
}


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be trained.

    Attributes:
        model: a name of `STRUCTURES`.
        job: what Kinfold's engines are given; its rows are in memory, and the engines bring them to the device.
    """

    model: str
    job: Job

    @property
    def tasks(self) -> int:
        """T."""
        return self.job.tasks

    @cached_property
    def inputs(self) -> Float[Tensor, "N *row"]:
        """The rows, on the device."""
        assert isinstance(self.job.inputs, TensorInputs)
        return self.job.inputs.values.to(self.job.device)

    @cached_property
    def targets(self) -> Int64[Tensor, " N"]:
        """Their classes, on the device."""
        return self.job.targets.to(self.job.device)

    @cached_property
    def batches(self) -> Int64[Tensor, "S T B"]:
        """The rows of every task's batches in the first period, in Kinfold's order, on the device.

        Contestants other than Kinfold's engines train on these period after period, and have them for nothing;
        an engine draws and gathers an order of its own for every period.
        """
        orders = row_orders(self.job.seed, 1, self.job.train)
        steps = min(map(len, orders)) // BATCH
        return torch.stack([o[: steps * BATCH].view(steps, BATCH) for o in orders], 1).to(self.job.device)

    def starts(self) -> list[nn.Module]:
        """Returns T models of their own, on the device, with the parameters that the engines start from."""
        return [model.to(self.job.device) for model in build_starts(self.job.model, self.tasks, False, self.job.seed)]


def make_work(model: str, tasks: int, device: str = "cpu", precision: Precision = "float32") -> Work:
    """Returns the work: rows around a prototype of their class, split by Kinfold's own stratified splitter.

    Args:
        model: a name of `STRUCTURES`.
        tasks: T.
        device: where the rows and the models are.
        precision: `float32`, or `bf16` for a forward pass under autocast.
    """
    structure, where = STRUCTURES[model], torch.device(device)
    generator = random.generator(0, "speed", model)
    targets = torch.randint(CLASSES, (ROWS,), generator=generator)
    prototypes = torch.randn(CLASSES, *structure.shape, generator=generator)
    rows = prototypes[targets] + torch.randn(ROWS, *structure.shape, generator=generator)
    info = RowInfo(targets.numpy(), CLASSES)
    splits = draw_splits(info, "stratified", tasks=tasks, val_fraction=0.2, holdout=0, seed=0)
    make: Callable[[], nn.Module] = factory(structure.spec, structure.shape, CLASSES)
    job = Job(
        model=make,
        inputs=TensorInputs(rows),
        targets=targets,
        train=torch.from_numpy(splits.train),
        validation=torch.from_numpy(splits.validation),
        objective=make_objective("classification", CLASSES, None, None, where, torch.float32),
        optimizer=make_optimizer,
        scheduler=None,
        batch_size=BATCH,
        device=where,
        precision=precision,
    )
    return Work(model, job)
