"""CIFAR-10 and CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).

In two forms: the binary batches of the original, and batches as pictures, whose every line of 1,024 pixels is an
image of 32 × 32.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from kinfold.data.base import Label
from kinfold.data.image_files import open_image
from kinfold.data.images import ImageDataset, from_pixels
from kinfold.errors import InputError
from kinfold.files import read_json
from kinfold.importing import one_line

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_PICTURE = re.compile(r"(data_batch_\d+|test_batch)\.png")
_LABEL_FILES = ("{}_labels.json", "{}_lables.json")  # the second is how they are given out


def from_cifar(path: Path, *, labels: Sequence[Label] | None = None) -> ImageDataset:
    """Returns a data set of CIFAR images: those of one file, or the training part in a folder.

    Classes go by their names where `batches.meta.txt` or `fine_label_names.txt` lies beside the batches, else by
    their numbers.

    Args:
        path: a binary batch (`data_batch_1.bin`, `test_batch.bin`; `train.bin` and `test.bin` are CIFAR-100, of which
            the fine labels are taken), the picture `test_batch.png`, or a folder with `data_batch_*.bin`, `train.bin`
            or `data_batch_*.png`. Of pictures the labels are in `train_labels.json` and `test_labels.json`.
        labels: the classes of an earlier run, in its order.

    Raises:
        InputError: no such file; one that is cut short or damaged; a batch that is missing between others; a label
            that is none, or not one for each image.
    """
    name = path.resolve().name if path.is_dir() else path.stem
    files = _batches(path)
    if files[0].suffix == ".png":
        pixels = read_pictures(files).transpose(0, 3, 1, 2)
        numbers, classes = _picture_labels(files, len(pixels), whole=path.is_dir()), 10
    else:
        pixels, numbers, classes = _read_binary(files)
    return from_pixels(pixels, _named(numbers, classes, files[0].parent), name=name, labels=labels)


def cifar_features(path: Path) -> UInt8[np.ndarray, "N *shape"]:
    """Returns the images of one file, or of the training part in a folder, without their labels.

    Raises:
        InputError: as for `from_cifar`.
    """
    files = _batches(path)
    return read_pictures(files) if files[0].suffix == ".png" else _read_binary(files)[0]


def is_cifar(path: Path) -> bool:
    """Returns whether a folder holds CIFAR batches, or a picture is one (its labels lie beside it)."""
    if path.is_dir():
        return bool(_binary(path)) or (bool(_pictures(path)) and _label_file(path, "train") is not None)
    return _PICTURE.fullmatch(path.name) is not None and any(
        _label_file(path.parent, part) is not None for part in ("train", "test")
    )


def read_pictures(paths: Sequence[Path]) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Returns the images in pictures of 1,024 pixels a line, one image a line.

    Args:
        paths: the pictures, in the order that their images are to have.

    Raises:
        InputError: Pillow is not installed, or a file is missing, damaged, or of another width.
    """
    return np.concatenate([_read_picture(path) for path in paths])


def _read_picture(path: Path) -> UInt8[np.ndarray, "n 32 32 3"]:
    with open_image(path) as image:
        if image.width != _SIDE * _SIDE:
            raise InputError(
                f"{path}: is {image.width} pixels wide; a CIFAR batch is {_SIDE * _SIDE}, an image a line."
            )
        try:
            pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow may raise anything for a damaged file
            raise InputError(f"{path}: cannot be read as a picture ({one_line(error)}); fetch it again.") from None
    return pixels.reshape(-1, _SIDE, _SIDE, 3)


def _batches(path: Path) -> list[Path]:
    """Returns the files that hold the training part of a folder; a file itself."""
    if not path.is_dir():
        return [path]
    if path.joinpath("train.bin").is_file():
        return [path / "train.bin"]
    files = {_number(file): file for file in _binary(path) or _pictures(path)}
    for number in range(1, max(files, default=0) + 1):
        if number not in files:
            raise InputError(f"{path}: has no data_batch_{number}{files[max(files)].suffix} beside the others; add it.")
    if not files:
        raise InputError(f"{path}: holds no CIFAR batches; give data_batch_1.bin and so on.")
    return [files[number] for number in sorted(files)]


def _binary(folder: Path) -> list[Path]:
    return [*folder.glob("data_batch_[0-9]*.bin"), *(file for file in [folder / "train.bin"] if file.is_file())]


def _pictures(folder: Path) -> list[Path]:
    return list(folder.glob("data_batch_[0-9]*.png"))


def _number(path: Path) -> int:
    found = re.fullmatch(r"data_batch_(\d+)", path.stem)
    if found is None:
        raise InputError(f"{path}: is not called data_batch_ and a number; rename or remove it.")
    return int(found[1])


def _read_binary(
    files: Sequence[Path],
) -> tuple[UInt8[np.ndarray, "N 3 32 32"], Int64[np.ndarray, " N"], int]:
    """Returns (images, class numbers, number of classes)."""
    fine = files[0].name in ("train.bin", "test.bin")
    classes, before = (100, 2) if fine else (10, 1)
    pixels, numbers = [], []
    for path in files:
        records = _records(path, before + _PIXELS)
        own = records[:, before - 1]
        if own.max() >= classes:
            row = int(np.argmax(own >= classes))
            raise InputError(
                f"{path}: row {row} has the label {own[row]}, and there are {classes} classes; fetch it again."
            )
        numbers.append(own.astype(np.int64))
        pixels.append(records[:, before:].reshape(-1, 3, _SIDE, _SIDE))
    return pixels[0] if len(pixels) == 1 else np.concatenate(pixels), np.concatenate(numbers), classes


def _records(path: Path, length: int) -> UInt8[np.ndarray, "n length"]:
    """Returns the records of a file, mapped from it."""
    try:
        size = path.stat().st_size
        if size == 0 or size % length:
            raise InputError(
                f"{path}: has {size} bytes, and CIFAR's rows are {length} each; it is cut short or no CIFAR batch."
            )
        return np.asarray(np.memmap(path, np.uint8, mode="c", shape=(size // length, length)))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}).") from None


def _picture_labels(files: Sequence[Path], images: int, *, whole: bool) -> Int64[np.ndarray, " N"]:
    folder = files[0].parent
    part = "train" if whole else "test"
    if not whole and files[0].stem != "test_batch":
        raise InputError(f"{files[0]}: is one batch of several; give the folder {folder}.")
    path = _label_file(folder, part)
    if path is None:
        raise InputError(f"{files[0]}: has no labels beside it; add {_LABEL_FILES[0].format(part)}.")
    numbers = read_json(path)
    if not isinstance(numbers, list) or len(numbers) != images:
        held = f"{len(numbers)} labels" if isinstance(numbers, list) else "no list"
        raise InputError(f"{path}: holds {held}, and there are {images} images; give one label an image.")
    for row, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number < 10:
            raise InputError(f"{path}: row {row} has the label {json.dumps(number)}; labels are 0 to 9.")
    return np.array(numbers, dtype=np.int64)


def _label_file(folder: Path, part: str) -> Path | None:
    paths = (folder / name.format(part) for name in _LABEL_FILES)
    return next((path for path in paths if path.is_file()), None)


def _named(numbers: Int64[np.ndarray, " N"], classes: int, folder: Path) -> list[str] | Int64[np.ndarray, " N"]:
    """Returns the labels by their names, where these are told."""
    path = folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")
    if not path.is_file():
        return numbers
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(set(names)) != classes or len(names) != classes:
        raise InputError(f"{path}: names {len(set(names))} classes, and there are {classes}; correct or remove it.")
    return [names[number] for number in numbers.tolist()]
