"""The cells of the generalization benchmark: data set × labelled rows × label noise × length of training.

A cell is a problem (`CELLS`), which draws its labelled rows and test rows by seed (`draw`), and a recipe that was tuned
for the conventional control and is the same for every arm (`recipe`, from `recipes.json`, which `tune.py` writes).

Legend: B batch, C channels, L steps.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kinfold.data import read
from kinfold.data.base import Dataset
from kinfold.data.text import TextDataset
from kinfold.errors import InputError, unknown
from kinfold.files import read_json
from kinfold.models.convolution import conv_norm_relu
from kinfold.models.sequences import TokenSteps, masked, mean_over_steps
from kinfold.random import seed_of
from kinfold.recipes import Part, Recipe
from kinfold.splits.pick import rows_by_class

Nature: TypeAlias = Literal["image", "table", "series", "text"]

RECIPES = Path(__file__).with_name("recipes.json")
UNDER = 5
"""By what factor the epochs of an under-trained cell are fewer than those of its fully trained twin."""


@dataclass(frozen=True)
class Source:
    """A data set, and the network that is trained on it.

    Attributes:
        form: what a row is by nature, whatever form it is stored in.
        model: a structure by name, with arguments, so small that a run takes a second.
        fixed_test: whether there is an official test part, from which the test rows come, the same for every seed;
            else labelled and test rows are drawn from all rows, anew for every seed.
        epochs: where tuning begins to look for full training.
        optimizer: by name.
        batch_size: rows of one task in one batch.
        test_rows: the most that are tested on.
        engine: what runs the network fastest on one core, stated so that every machine draws the same dropout.
    """

    form: Nature
    model: Part
    epochs: int
    fixed_test: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_size: int = 32
    test_rows: int = 5_000
    engine: Literal["sequential", "vectorised"] = "vectorised"


@dataclass(frozen=True)
class Cell:
    """One problem of the benchmark.

    Attributes:
        data: a name in `SOURCES`.
        rows: n, how many labelled rows are drawn.
        noise: the share of the labelled rows whose label is replaced by another class; test labels are clean.
        length: `full`, with as many epochs, of those that `tune.py` tries, as still raise the control's validation
            accuracy; or `under`, with a fifth of those (`UNDER`).

    Example:
        >>> Cell("digits", 300, noise=0.2, length="under").name
        'digits-300-noise20-under'
    """

    data: str
    rows: int
    noise: float = 0.0
    length: Literal["full", "under"] = "full"

    @property
    def name(self) -> str:
        """What the cell is called in tables, and what its draws are keyed by."""
        noise = f"-noise{round(100 * self.noise)}" if self.noise else ""
        return f"{self.data}-{self.rows}{noise}{'-under' if self.length == 'under' else ''}"

    @property
    def source(self) -> Source:
        """The data set and its network."""
        return SOURCES[self.data]


@dataclass(frozen=True, eq=False)
class Sample:
    """What a cell gives for one seed.

    Attributes:
        dataset: labelled rows, with their noisy labels, and test rows, with clean ones; `kinfold.fit` takes it.
        test: [N] which rows are test rows. Seal these, by explicit splits: encoders are then fitted to the labelled
            rows alone, and the estimate is the test accuracy.
    """

    dataset: Dataset
    test: Bool[np.ndarray, " N"]

    def labelled(self) -> Dataset:
        """Returns the labelled rows alone."""
        return take(self.dataset, np.flatnonzero(~self.test))


@dataclass(frozen=True)
class Tuned:
    """What is tuned for the conventional control.

    Attributes:
        lr: learning rate at the start of the cosine.
        weight_decay: of all parameters.
        label_smoothing: ε.
        epochs: the length of training.
    """

    lr: float
    weight_decay: float
    label_smoothing: float
    epochs: int

    def recipe(self, cell: Cell) -> Recipe:
        """Returns how the cell is trained with this: what `kinfold.fit` takes under the same names."""
        momentum = {"momentum": 0.9} if cell.source.optimizer == "sgd" else {}
        smoothing = {"name": "label_smoothing", "epsilon": self.label_smoothing}
        return Recipe(
            model=cell.source.model,
            optimizer={"name": cell.source.optimizer, "lr": self.lr, "weight_decay": self.weight_decay, **momentum},
            batch_size=cell.source.batch_size,
            epochs=self.epochs,
            methods=(smoothing,) if self.label_smoothing else (),
        )


@final
class SmallFCN(nn.Module):
    """The fully convolutional network for series (`kinfold.models.FCN`), an eighth as wide.

    Args:
        channels: C of a series.
        outputs: how many numbers to give per series.
        stride: of the first convolution.

    Example:
        >>> SmallFCN(1, 2, stride=4)(torch.zeros(3, 1, 50)).shape
        torch.Size([3, 2])
    """

    def __init__(self, channels: int, outputs: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.blocks = nn.ModuleList([_block(channels, 16, 8, stride), _block(16, 32, 5), _block(32, 16, 3)])
        self.classifier = nn.Linear(16, outputs)

    def forward(
        self, x: Float[Tensor, "B C L"], mask: Float[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of series, with a mask where lengths differ."""
        first, *rest = self.blocks
        x = first(masked(x, mask))
        mask = None if mask is None else mask[:, :: self.stride]
        for block in rest:
            x = block(masked(x, mask))
        logits: Tensor = self.classifier(mean_over_steps(x.transpose(1, 2), mask))
        return logits


def _block(before: int, after: int, length: int, stride: int = 1) -> nn.Sequential:
    """Returns a convolution, batch norm and ReLU that make of L steps the least whole number from L / stride."""
    padding = nn.ConstantPad1d(((length - 1) // 2, length // 2), 0.0)
    return nn.Sequential(
        padding, nn.Conv1d(before, after, length, stride, bias=False), nn.BatchNorm1d(after), nn.ReLU()
    )


@final
class SmallConvNet(nn.Sequential):
    """Three convolutions that halve a colour image each, with batch norm and ReLU, and a linear layer.

    Args:
        side: height and width of an image, a multiple of 8.
        outputs: how many numbers to give per image.

    Example:
        >>> SmallConvNet(32, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, side: int, outputs: int):
        super().__init__(
            conv_norm_relu(3, 16, stride=2),
            conv_norm_relu(16, 24, stride=2),
            conv_norm_relu(24, 32, stride=2),
            nn.Flatten(),
            nn.Linear(32 * (side // 8) ** 2, outputs),
        )


@final
class WordMeans(nn.Module):
    """The mean of the words' vectors, and a linear layer.

    Joulin, Grave, Bojanowski, Mikolov, *Bag of tricks for efficient text classification*, EACL 2017
    (arXiv:1607.01759), without its n-grams.

    Args:
        outputs: how many numbers to give per text.
        vocabulary: how many token ids there may be.
        width: of a word's vector.

    Example:
        >>> WordMeans(20, vocabulary=10)(torch.tensor([[3, 7, 0]])).shape
        torch.Size([1, 20])
    """

    def __init__(self, outputs: int, vocabulary: int, width: int = 32):
        super().__init__()
        self.steps = TokenSteps(vocabulary, width)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, x: Int64[Tensor, "B L"]) -> Float[Tensor, "B outputs"]:
        """Returns the logits of a batch of texts."""
        logits: Tensor = self.classifier(mean_over_steps(*self.steps(x)))
        return logits


def _own(network: type[nn.Module], **arguments: int) -> Part:
    return {"class_path": f"cells:{network.__name__}", "init_args": arguments}


_WORDS = 4_000
"""How many words get an id: so few that a step is quick."""

_LENGTH = 100
"""How many words are read of a text, likewise."""

_MLP: Part = {"name": "mlp"}
_NARROW: Part = {"name": "mlp", "hidden": [64, 64]}
_NORMED: Part = {"name": "mlp", "batch_norm": True}
_TEXTCNN: Part = {"name": "textcnn", "width": 32, "maps": 32, "lengths": [1, 2], "dropout": 0.2}

SOURCES: Mapping[str, Source] = {
    "digits": Source("image", _MLP, epochs=40, fixed_test=False),
    "fashion-mnist": Source("image", {"name": "lenet5"}, epochs=20, engine="sequential"),
    "cifar-10": Source("image", _own(SmallConvNet, side=32, outputs=10), epochs=15, engine="sequential"),
    "mnist1d": Source("series", _MLP, epochs=50),
    "letter": Source("table", _MLP, epochs=40, fixed_test=False),
    "magic": Source("table", _NARROW, epochs=20, fixed_test=False),
    "satimage": Source("table", _NORMED, epochs=25, fixed_test=False),
    "spambase": Source("table", _NARROW, epochs=20, fixed_test=False),
    "forda": Source(
        "series", _own(SmallFCN, channels=1, outputs=2, stride=4), epochs=15, optimizer="adamw", engine="sequential"
    ),
    "crop": Source("series", _MLP, epochs=40),
    "japanese-vowels": Source(
        "series", _own(SmallFCN, channels=12, outputs=9), epochs=25, optimizer="adamw", batch_size=16
    ),
    # Two ids are for padding and for unknown words.
    "20newsgroups": Source(
        "text", _own(WordMeans, outputs=20, vocabulary=_WORDS + 2), epochs=15, optimizer="adamw", test_rows=3_000
    ),
    "sms-spam": Source("text", _TEXTCNN, epochs=10, fixed_test=False, optimizer="adamw", test_rows=3_000),
}
"""The data sets, by their names in `kinfold data list`."""

_ALL = (
    Cell("digits", 300),
    Cell("digits", 300, 0.2),
    Cell("digits", 300, length="under"),
    Cell("digits", 1_000, 0.1),
    Cell("fashion-mnist", 500),
    Cell("fashion-mnist", 500, 0.2),
    Cell("fashion-mnist", 500, length="under"),
    Cell("cifar-10", 1_000),
    Cell("cifar-10", 1_000, 0.1),
    Cell("mnist1d", 1_000),
    Cell("mnist1d", 1_000, 0.2),
    Cell("mnist1d", 3_000, 0.1),
    Cell("mnist1d", 1_000, length="under"),
    Cell("letter", 1_000),
    Cell("letter", 1_000, 0.2),
    Cell("letter", 3_000),
    Cell("letter", 3_000, length="under"),
    Cell("magic", 500),
    Cell("magic", 500, 0.2),
    Cell("magic", 2_000),
    Cell("magic", 2_000, length="under"),
    Cell("satimage", 500),
    Cell("satimage", 500, 0.1),
    Cell("satimage", 500, length="under"),
    Cell("spambase", 300),
    Cell("spambase", 300, 0.2),
    Cell("forda", 400),
    Cell("forda", 400, 0.1),
    Cell("forda", 400, length="under"),
    Cell("crop", 1_000),
    Cell("crop", 1_000, 0.2),
    Cell("crop", 1_000, length="under"),
    Cell("japanese-vowels", 135),
    Cell("japanese-vowels", 225, 0.2),
    Cell("20newsgroups", 1_000),
    Cell("20newsgroups", 1_000, 0.1),
    Cell("sms-spam", 500),
    Cell("sms-spam", 500, 0.1),
)

CELLS: Mapping[str, Cell] = {cell.name: cell for cell in _ALL}
"""Every cell, by name; those of one data set stand together, for it is read once then."""


def draw(cell: Cell, seed: int) -> Sample:
    """Returns the cell's rows for a seed: labelled ones first, then test rows, classes by their shares in both.

    Exactly the nearest whole number to noise × n labelled rows, whichever, have another class, each with the same
    probability.

    Args:
        cell: what to draw.
        seed: one of the benchmark's seeds (tuning uses 1000 and above).

    Raises:
        InputError: the data set is not in the cache, or has too few rows.

    Example:
        >>> sample = draw(Cell("digits", 300, noise=0.2), seed=0)
        >>> len(sample.dataset), int(sample.test.sum())
        (1797, 1497)
    """
    whole, official = _whole(cell.data)
    y = whole.target.values.numpy()
    labelled = _stratified(y, np.flatnonzero(~official), cell.rows, seed_of(cell.name, seed, "labelled"))
    if cell.source.fixed_test:
        rest, key = np.flatnonzero(official), seed_of(cell.data, "test")
    else:
        rest, key = np.setdiff1d(np.arange(len(y)), labelled), seed_of(cell.name, seed, "test")
    test = _stratified(y, rest, min(cell.source.test_rows, len(rest)), key)
    dataset = take(whole, np.concatenate([labelled, test]))
    values = dataset.target.values.clone()
    rng = np.random.default_rng(seed_of(cell.name, seed, "noise"))
    changed = torch.from_numpy(rng.choice(cell.rows, round(cell.noise * cell.rows), replace=False))
    classes = dataset.target.outputs
    values[changed] = (values[changed] + torch.from_numpy(rng.integers(1, classes, len(changed)))) % classes
    noisy = dataclasses.replace(dataset, target=dataclasses.replace(dataset.target, values=values))
    return Sample(noisy, np.arange(len(noisy)) >= cell.rows)


def recipe(cell: Cell) -> Recipe:
    """Returns how the cell is trained, by every arm: what `tune.py` chose for the conventional control.

    Raises:
        InputError: the cell was not tuned.
    """
    tuned = _tuned()
    if cell.name not in tuned:
        raise InputError(f"cell: {cell.name!r} has no recipe in {RECIPES.name}; run tune.py --only {cell.name}.")
    return tuned[cell.name].recipe(cell)


def select(names: list[str] | None) -> list[Cell]:
    """Returns the cells of these names, in the table's order; all where there are none.

    Raises:
        InputError: an unknown name.
    """
    for name in names or ():
        if name not in CELLS:
            raise unknown("cell", name, CELLS)
    return [cell for name, cell in CELLS.items() if not names or name in names]


def take(dataset: Dataset, rows: Int64[np.ndarray, " m"]) -> Dataset:
    """Returns these rows of a data set without groups and times, in this order."""
    values = dataset.target.values[torch.from_numpy(rows)]
    target = dataclasses.replace(dataset.target, values=values)
    return dataclasses.replace(dataset, features=_rows_of(dataset.features, rows), target=target)


def _rows_of(features: Any, rows: Int64[np.ndarray, " m"]) -> Any:
    if isinstance(features, pd.DataFrame):
        return features.iloc[rows].reset_index(drop=True)
    if isinstance(features, tuple):  # series and texts
        return tuple(features[row] for row in rows)
    return features[torch.from_numpy(rows)]


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else first + second


@lru_cache(maxsize=1)
def _whole(data: str) -> tuple[Dataset, Bool[np.ndarray, " N"]]:
    """Returns all rows of a data set, and which belong to the official test part."""
    dataset = read(data)
    official = np.zeros(len(dataset), dtype=bool)
    if SOURCES[data].fixed_test:
        test = read(f"{data}:test", labels=dataset.target.labels)
        values = torch.cat([dataset.target.values, test.target.values])
        dataset = dataclasses.replace(
            dataset,
            features=_joined(dataset.features, test.features),
            target=dataclasses.replace(dataset.target, values=values),
        )
        official = np.arange(len(dataset)) >= len(official)
    if isinstance(dataset, TextDataset):
        dataset = dataclasses.replace(dataset, max_words=_WORDS, max_length=_LENGTH)
    return dataset, official


def _stratified(
    y: Int64[np.ndarray, " N"], among: Int64[np.ndarray, " m"], count: int, seed: int
) -> Int64[np.ndarray, " count"]:
    """Returns `count` random rows of those `among`, classes by their shares, in order of their numbers."""
    if count > len(among):
        raise InputError(f"rows: {count} are wanted of {len(among)}; lower them.")
    if count == len(among):
        return among
    chosen: Int64[np.ndarray, " count"] = np.sort(among[rows_by_class(y[among], count, np.random.default_rng(seed))])
    return chosen


@cache
def _tuned() -> dict[str, Tuned]:
    return {name: Tuned(**entry["chosen"]) for name, entry in read_json(RECIPES).items()}
