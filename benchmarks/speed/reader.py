"""The shared reader against one loader for each task: an epoch of T small networks on a folder of JPEG pictures.

    python benchmarks/speed/reader.py [--tasks 4 8] [--pictures 1000] [--alternations 7] [--out FILE.md]

The pictures, 256×256, are crops of scikit-learn's two photographs, turned, lit and with noise; which photograph it is
from is the class. Every task trains on 80 % of them. Both sides decode with the same function, which counts its calls
over all processes; both have T decoding processes, the same networks, batches, optimizer and number of steps; pictures
are in neither's memory. A side's epoch is timed whole, in turns with the other's. Kinfold starts its processes in every
epoch. The loaders keep theirs from one epoch to the next, which spares them that.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files, random
from kinfold.comparing.table import markdown
from kinfold.data import ImageDataset, ImageFiles, from_image_folder
from kinfold.data.streamed import Schedule
from kinfold.engines import Job
from kinfold.engines.sequential import Sequential
from kinfold.tasks.objective import make_objective
from kinfold.tasks.order import Segment, row_orders

SIDE, SHARE, B, LR = 256, 0.8, 32, 0.01
DECODED = multiprocessing.get_context("fork").Value("q", 0)
NAMES = ("shared reader", "T loaders")


def counted(decode: Callable[..., UInt8[np.ndarray, "C H W"]]) -> Callable[..., UInt8[np.ndarray, "C H W"]]:
    """The function, counting its calls in whatever process."""

    def counting(images: ImageFiles, row: int, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "C H W"]:
        with DECODED.get_lock():
            DECODED.value += 1
        return decode(images, row, shape)

    return counting


def write_pictures(folder: Path, count: int) -> None:
    """Writes the pictures into a sub-folder for each photograph."""
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for number in range(count):
        which = number % len(photographs)
        whole = photographs[which]
        top, left = (rng.integers(length - SIDE) for length in whole.shape[:2])
        crop = whole[top : top + SIDE, left : left + SIDE].astype(float)
        crop = crop[:, :: rng.choice([-1, 1])] * rng.uniform(0.6, 1.4) + rng.normal(0, 6, crop.shape)
        path = folder / f"photograph{which}" / f"{number:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(crop.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def network() -> nn.Module:
    """Reads a picture in coarse steps: what it costs is small beside decoding."""
    convolutions = [nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=4), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


class Kinfold:
    """T tasks of one engine, which one reader serves."""

    def __init__(self, dataset: ImageDataset, train: Bool[Tensor, "T N"]):
        device = torch.device("cpu")
        encoder = dataset.fit(np.arange(len(dataset) // 8))
        self.job = Job(
            model=network,
            inputs=encoder.encode(dataset.features),
            targets=dataset.target.values,
            train=train,
            validation=~train,
            objective=make_objective("classification", 2, None, None, device, torch.float32),
            optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9),
            scheduler=None,
            batch_size=B,
        )
        self.engine = Sequential(self.job)

    def epoch(self, number: int) -> None:
        self.engine.train(Segment(number))

    def held(self) -> int:
        """How many decoded pictures it holds at most, in the first epoch."""
        orders = row_orders(self.job.seed, 1, self.job.train)
        steps = max(len(order) for order in orders) // B
        batches = [order[step * B : (step + 1) * B] for step in range(steps) for order in orders]
        return Schedule(batches, most=len(self.job.targets)).slots


class Pictures(Dataset[tuple[Tensor, int]]):
    """The same pictures as a loader reads them."""

    def __init__(self, dataset: ImageDataset):
        self.files, self.targets = dataset.features, dataset.target.values.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.files.decode(row, self.files.shape)), self.targets[row]


class Loaders:
    """T plain training loops in turns, each with a loader of its own."""

    def __init__(self, dataset: ImageDataset, train: Bool[Tensor, "T N"]):
        encoder = dataset.fit(np.arange(len(dataset) // 8))
        levels = (torch.tensor(each)[:, None, None] * 255 for each in (encoder.mean, encoder.std))
        self.centre, self.scale = levels
        pictures = Pictures(dataset)
        self.loaders = [
            DataLoader(
                Subset(pictures, own.nonzero().flatten().tolist()),
                batch_size=B,
                shuffle=True,
                drop_last=True,
                num_workers=1,
                persistent_workers=True,
                generator=random.generator(t),
            )
            for t, own in enumerate(train)
        ]
        with random.seeded(torch.device("cpu"), 0):
            self.models = [network() for _ in train]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9) for model in self.models]

    def epoch(self, number: int) -> None:
        del number  # each loader shuffles for itself
        for batches in zip(*self.loaders, strict=True):
            for (pixels, y), model, optimizer in zip(batches, self.models, self.optimizers, strict=True):
                x = pixels.float().sub_(self.centre).div_(self.scale)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()


@dataclass(frozen=True)
class Record:
    """What an epoch of each side took, in the order of `NAMES`."""

    tasks: int
    rows: int
    held: int
    decodes: list[tuple[int, ...]]
    seconds: list[tuple[float, ...]]


def measure(folder: Path, tasks: int, alternations: int) -> Record:
    """Times both sides' epochs in turns, after one of each that is not counted."""
    dataset = from_image_folder(folder, in_memory=False, num_workers=tasks)
    n = len(dataset)
    train = torch.zeros(tasks, n, dtype=torch.bool)
    for t in range(tasks):
        train[t, random.permutation(random.key(0, "own", t), n)[: round(SHARE * n) // B * B]] = True
    ours = Kinfold(dataset, train)
    sides = (ours.epoch, Loaders(dataset, train).epoch)
    decodes, seconds = [], []
    for number in range(alternations + 1):
        both: dict[int, tuple[int, float]] = {}
        for which in (0, 1) if number % 2 else (1, 0):
            DECODED.value = 0
            began = time.perf_counter()
            sides[which](number + 1)
            both[which] = DECODED.value, time.perf_counter() - began
        if number:
            decodes.append((both[0][0], both[1][0]))
            seconds.append((both[0][1], both[1][1]))
    return Record(tasks, int(train.sum()), ours.held(), decodes, seconds)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(records: list[Record]) -> str:
    heads = ["T", "side", "decodes an epoch", "fewer", "0.8·T", "seconds", "rows a second", "faster", "held at most"]
    lines = []
    for record in records:
        for which, name in enumerate(NAMES):
            decodes = [each[which] for each in record.decodes]
            seconds = [each[which] for each in record.seconds]
            own = which == 0
            fewer = min(loaders / reader for reader, loaders in record.decodes)
            lines.append(
                [
                    str(record.tasks),
                    name,
                    f"{min(decodes):,} to {max(decodes):,}" if min(decodes) < max(decodes) else f"{decodes[0]:,}",
                    f"{fewer:.2f} times" if own else "",
                    f"{SHARE * record.tasks:.1f}" if own else "",
                    spread(seconds),
                    spread([record.rows / each for each in seconds], 0),
                    spread([theirs / ours for ours, theirs in record.seconds]) + " times" if own else "",
                    f"{record.held} pictures, {record.held * 3 * SIDE**2 / 2**20:.0f} MiB" if own else "",
                ]
            )
    return markdown(lines, heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ImageFiles.decode = counted(ImageFiles.decode)  # before any process is forked
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), given.pictures)
        records = [measure(Path(folder), tasks, given.alternations) for tasks in given.tasks]
    about = (
        f"An epoch of T small networks on {given.pictures:,} JPEG pictures of {SIDE}×{SIDE}, of which each trains on "
        f"{SHARE:.0%} in batches of {B}; both sides with T decoding processes, and counted in the same function. "
        f"{given.alternations} alternations after one to warm up: medians with quartiles in brackets; of the ratios "
        "between the sides, that of the decodes is the least of all epochs."
    )
    text = f"# The shared reader\n\n{provenance()}\n\n{about}\n\n{table(records)}\n"
    print(text)
    if given.out is not None:
        files.write_text(given.out, text)


if __name__ == "__main__":
    main()
