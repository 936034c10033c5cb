"""How long do whole jobs take, in one warm process, against what else does the same work?

    python benchmarks/speed/jobs.py [--jobs digits mlp-16 mlp-64] [--alternations 7] [--epochs 20] [--records FILE]
        [--out FILE.md] [--table-only]

`digits` is `kinfold train digits --tasks 8` as the command does it, with its files, estimate and report, once with the
default transfer rule and once with none. Beside it stand eight sequential fits by skorch, by Lightning and by a plain
PyTorch loop. `mlp-16` and `mlp-64` are `kinfold.fit` of an MLP 64-128-128-10 on digits with so many tasks and no
transfer, beside the plain loop. Everybody trains the same network on the same rows for the same epochs by the same
optimizer, schedule and batch size, scores its validation rows after every epoch, and keeps the best parameters.
"""

import argparse
import copy
import io
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, final

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback as LightningCallback
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback as SkorchCallback
from skorch.callbacks import LRScheduler
from skorch.helper import predefined_split
from steps import append
from steps_table import spread
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
from kinfold.assembling import BY_RECIPE, assemble
from kinfold.cli import main as command
from kinfold.comparing.table import markdown
from kinfold.data.base import TensorInputs
from kinfold.engines import Job
from kinfold.files import read_json_lines, write_text
from kinfold.fitting import fit
from kinfold.tasks.state import build_starts

RECORDS = Path(__file__).parent / "records" / "jobs.jsonl"
JOBS = ("digits", "mlp-16", "mlp-64")
EVALUATION_ROWS = 512  # in one batch, as Kinfold's engines score
MLP = {"name": "mlp", "hidden": [128, 128]}
ABOUT = """Wall time of whole jobs in one warm process (imports and a first, short call of each left out). Contestants
of a job take turns, beginning with another one every time: medians over alternations with quartiles; a ratio is the
median over alternations of Kinfold's time divided by the row's, so under 1 where Kinfold is faster. Threads
wait as PyTorch's do by default.

Kinfold's jobs do more than the others': they draw and audit the splits, score every model on every validation set, and
estimate the picked one on sealed rows; those of the command line write a run directory with checkpoints of every epoch
and a report. Peers get the splits and the encoded rows for nothing, and their leanest fair form: whole batches are
gathered from memory by index (no collating row by row), last short batches are dropped as Kinfold drops them,
validation takes one batch, the best parameters are kept in memory by a small callback; skorch without its printed log,
Lightning without logger, progress bar, summary, sanity check and checkpoints."""


class Rows(Dataset[Any]):
    """Rows of one task, of which a whole batch is gathered at once."""

    def __init__(self, X: Tensor, y: Tensor):
        self.X, self.y = X, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.X[row], self.y[row]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.X[rows], self.y[rows]


def as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Collates nothing: `Rows` gives whole batches."""
    return batch


class Best:
    """The best parameters so far: a higher accuracy, ties broken by a lower loss."""

    def __init__(self) -> None:
        self._score = (-np.inf, -np.inf)
        self.parameters: dict[str, Tensor] = {}

    def see(self, model: nn.Module, accuracy: float, loss: float) -> None:
        """Keeps a copy if it is better."""
        if (accuracy, -loss) > self._score:
            self._score, self.parameters = (accuracy, -loss), copy.deepcopy(model.state_dict())


def by_task(job: Job, train_one: Callable[[Job, nn.Module, Rows, Rows, int], None], epochs: int) -> None:
    """Trains the job's tasks one after another."""
    assert isinstance(job.inputs, TensorInputs)
    X, y = job.inputs.values, job.targets
    starts = build_starts(job.model, job.tasks, job.shared_start, job.seed)
    for t, start in enumerate(starts):
        train, validation = (Rows(X[mask[t]], y[mask[t]]) for mask in (job.train, job.validation))
        train_one(job, copy.deepcopy(start), train, validation, epochs)


def by_loop(job: Job, model: nn.Module, train: Rows, validation: Rows, epochs: int) -> None:
    """Plain PyTorch."""
    optimizer = job.optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(job.seed)
    loss_of, best = nn.CrossEntropyLoss(), Best()
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(train), generator=generator)
        for index in order[: len(order) // job.batch_size * job.batch_size].split(job.batch_size):
            optimizer.zero_grad()
            loss_of(model(train.X[index]), train.y[index]).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            outputs = model(validation.X)
            accuracy = float((outputs.argmax(1) == validation.y).double().mean())
            best.see(model, accuracy, float(loss_of(outputs, validation.y)))


@final
class KeepBestOfSkorch(SkorchCallback):
    """Keeps the best parameters of a net."""

    def initialize(self) -> "KeepBestOfSkorch":
        self.best = Best()
        return self

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.best.see(net.module_, net.history[-1, "valid_acc"], net.history[-1, "valid_loss"])


def by_skorch(job: Job, model: nn.Module, train: Rows, validation: Rows, epochs: int) -> None:
    """A fit of skorch's classifier."""
    options = job.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        **{f"optimizer__{name}": options[name] for name in ("lr", "momentum", "weight_decay")},
        max_epochs=epochs,
        classes=list(range(10)),
        train_split=predefined_split(validation),
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
        iterator_train__batch_size=job.batch_size,
        iterator_valid__batch_size=EVALUATION_ROWS,
        iterator_train__collate_fn=as_it_is,
        iterator_valid__collate_fn=as_it_is,
        callbacks=[LRScheduler(policy=torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs), KeepBestOfSkorch()],
        callbacks__print_log=None,
        verbose=0,
    )
    net.fit(train, None)


@final
class Network(lightning.LightningModule):
    """The network as Lightning takes it."""

    def __init__(self, job: Job, model: nn.Module, epochs: int):
        super().__init__()
        self._job, self.model, self._epochs = job, model, epochs
        self._loss = nn.CrossEntropyLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss: Tensor = self._loss(self.model(x), y)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, y = batch
        outputs = self.model(x)
        self.score = float((outputs.argmax(1) == y).double().mean()), float(self._loss(outputs, y))

    def configure_optimizers(self) -> Any:
        optimizer = self._job.optimizer(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._epochs)]


@final
class KeepBestOfLightning(LightningCallback):
    """Keeps the best parameters of a network, whose validation rows are one batch."""

    def __init__(self) -> None:
        self.best = Best()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.best.see(pl_module.model, *pl_module.score)


def by_lightning(job: Job, model: nn.Module, train: Rows, validation: Rows, epochs: int) -> None:
    """A fit of Lightning's trainer."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[KeepBestOfLightning()],
    )
    batches = DataLoader(train, job.batch_size, shuffle=True, drop_last=True, collate_fn=as_it_is)
    trainer.fit(Network(job, model, epochs), batches, DataLoader(validation, len(validation), collate_fn=as_it_is))


def by_command(transfer: tuple[str, ...], epochs: int) -> None:
    """`kinfold train digits --tasks 8`, but for the number of epochs."""
    folder = Path(tempfile.mkdtemp())
    try:
        arguments = ["--tasks", "8", "--epochs", str(epochs), "--quiet", "--out", str(folder / "run"), *transfer]
        with redirect_stdout(io.StringIO()):
            status = command(["train", "digits", *arguments])
        if status != 0:
            raise SystemExit(f"kinfold train ended with status {status}.")
    finally:
        shutil.rmtree(folder)


def jobs(epochs: int) -> dict[str, dict[str, Callable[[int], None]]]:
    """Returns the contestants of each job, Kinfold's first, as functions of the number of epochs."""
    defaults = {name: value for name, value in fit.__kwdefaults__.items() if name not in ("out", "resume", "listen")}

    def assembled(**given: Any) -> Job:
        return assemble({**defaults, "transfer": "none", "epochs": epochs, "device": "cpu", **given}).job

    auto = dict.fromkeys((name for name in BY_RECIPE if name != "epochs"), "auto")
    digits = assembled(data="digits", tasks=8, **auto)
    found: dict[str, dict[str, Callable[[int], None]]] = {
        "digits": {
            "kinfold, default rule": partial(by_command, ()),
            "kinfold, no transfer": partial(by_command, ("--transfer", "none")),
            "loop": partial(by_task, digits, by_loop),
            "skorch": partial(by_task, digits, by_skorch),
            "lightning": partial(by_task, digits, by_lightning),
        }
    }
    for tasks in (16, 64):
        own = assembled(model=MLP, data="digits", tasks=tasks)
        found[f"mlp-{tasks}"] = {"kinfold": partial(by_fit, tasks), "loop": partial(by_task, own, by_loop)}
    return found


def by_fit(tasks: int, epochs: int) -> None:
    """`kinfold.fit` without transfer and without files."""
    kinfold.fit(MLP, "digits", tasks=tasks, epochs=epochs, transfer="none", device="cpu")


def alternate(name: str, contestants: Mapping[str, Callable[[int], None]], given: argparse.Namespace) -> None:
    """Times a job's contestants in turns, and puts every alternation on record."""
    before = [r for r in recorded(given.records, given.epochs) if r["job"] == name]
    if len(before) >= given.alternations:
        return
    for run in contestants.values():
        run(2)
    for alternation in range(len(before), given.alternations):
        order = list(contestants)
        order = order[alternation % len(order) :] + order[: alternation % len(order)]
        seconds = {}
        for contestant in order:
            began = time.perf_counter()
            contestants[contestant](given.epochs)
            seconds[contestant] = time.perf_counter() - began
        append(given.records, {"job": name, "epochs": given.epochs, "seconds": seconds})
        print(name, {who: round(spent, 2) for who, spent in seconds.items()}, file=sys.stderr, flush=True)


def recorded(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Returns the alternations on record for so many epochs."""
    return [record for record in read_json_lines(path) if record["epochs"] == epochs] if path.exists() else []


def table(records: list[dict[str, Any]], epochs: int) -> str:
    """Returns the page."""
    parts = [f"# Whole jobs of {epochs} epochs\n\n{provenance()}\n\n{ABOUT}"]
    for name in dict.fromkeys(record["job"] for record in records):
        own = [record["seconds"] for record in records if record["job"] == name]
        seconds = {who: np.array([one[who] for one in own]) for who in sorted(own[0])}
        ours = [who for who in seconds if who.startswith("kinfold")]
        rows = [
            [who, spread(spent), *(spread(seconds[our] / spent) for our in ours)]
            for who, spent in sorted(seconds.items(), key=lambda item: float(np.median(item[1])))
        ]
        head = ["", "seconds", *(f"{our} ÷ this" for our in ours)]
        parts.append(f"## {name}\n\n{len(own)} alternations.\n\n{markdown(rows, head)}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=JOBS)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    parser.add_argument("--table-only", action="store_true", help="of what is on record")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # that one process reads the data, which is meant
    if not given.table_only:
        everything = jobs(given.epochs)
        for name in given.jobs:
            alternate(name, everything[name], given)
    text = table(recorded(given.records, given.epochs), given.epochs)
    print(text)
    if given.out:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
