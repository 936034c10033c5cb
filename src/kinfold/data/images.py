"""Images: 8-bit pixels, kept as they are, and brought to standard units only as a model reads them.

Legend: N images, C channels, H height, W width; B a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8, UInt64
from torch import Tensor

from kinfold.data.arrays import from_arrays
from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label
from kinfold.data.folders import class_files, column_paths, files_in
from kinfold.data.hashes import content_hashes
from kinfold.data.image_files import ENDINGS, FilePixels, HeldPixels, ImageFiles, Pixels, Shape
from kinfold.data.programs import FromPixels, Port, Program
from kinfold.data.streamed import Streamed
from kinfold.data.table import TableDataset
from kinfold.data.targets import make_target, row_values
from kinfold.errors import InputError
from kinfold.limits import max_pixels

_CPU = torch.device("cpu")
_CHANNELS = (1, 3, 4)
_CHUNK_BYTES = 2**21  # of pixels looked at together, at least one image; as float64 they take eight times that


@final
class Units:
    """Standard units of pixels: (pixel / 255 − mean) / std.

    Args:
        mean: [C] of pixel / 255.
        std: [C] likewise.
        device: where the pixels are.
        dtype: of what a model reads.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
    ):
        self._mean, self._std, self.device = mean, std, device
        levels = [[255 * m for m in mean], [255 * s for s in std]]
        self._centre, self._scale = torch.tensor(levels, dtype=dtype, device=device)[:, :, None, None]

    def of(self, pixels: UInt8[Tensor, "*axes C H W"]) -> Float[Tensor, "*axes C H W"]:
        """Returns the pixels in these units."""
        pixels = pixels.contiguous()  # whatever the axes' order in memory: models may call `view`
        return pixels.to(self._scale.dtype).sub_(self._centre).div_(self._scale)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Units":
        """Returns the same units for pixels on `device`, in `dtype`."""
        return Units(self._mean, self._std, device, dtype)


@final
class ImageInputs(Inputs):
    """Encoded images, their pixels in memory: brought to standard units as a batch is gathered.

    Args:
        pixels: N images.
        units: what a model reads them in.
    """

    def __init__(self, pixels: HeldPixels, units: Units):
        self._pixels, self._units = pixels, units

    def __len__(self) -> int:
        return len(self._pixels)

    def rows(self, index: Int64[Tensor, "*axes"]) -> Float[Tensor, "*axes C H W"]:
        return self._units.of(self._pixels.take(index))

    def to(self, device: torch.device, dtype: torch.dtype) -> "ImageInputs":
        return ImageInputs(self._pixels.to(device), self._units.to(device, dtype))

    def held(self) -> Sequence[Tensor]:
        return (self._pixels.values,)


@final
class StreamedImages(Streamed):
    """Encoded images, decoded from files as they are needed; held as pixels meanwhile.

    Args:
        pixels: N images.
        units: what a model reads them in.
    """

    def __init__(self, pixels: FilePixels, units: Units):
        self._pixels, self._units = pixels, units
        self.num_workers, self.device = pixels.files.num_workers, units.device

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def form(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self._pixels.shape, torch.uint8

    def decode(self, row: int, key: int) -> UInt8[Tensor, "C H W"]:
        del key  # nothing is drawn at random
        return self._pixels.image(row)

    def finished(self, held: UInt8[Tensor, "*axes C H W"]) -> Float[Tensor, "*axes C H W"]:
        return self._units.of(held)

    def to(self, device: torch.device, dtype: torch.dtype) -> "StreamedImages":
        return StreamedImages(self._pixels, self._units.to(device, dtype))


@dataclass(frozen=True)
class ImageEncoder(Encoder):
    """Standardises each channel: (pixel / 255 − mean) / std, over the fitted rows.

    Attributes:
        shape: (C, H, W) of one image; picture files are brought to it.
        mean: [C] of pixel / 255.
        std: [C] likewise (ddof 0); 1 for a channel that is constant.
        column: the column of a table that names the picture files, for runs that were trained on one.

    Example:
        >>> encoder = ImageEncoder((1, 1, 2), mean=(0.5,), std=(0.5,))
        >>> encoder.encode(np.array([[[0, 255]]], dtype=np.uint8)).rows(torch.tensor([0]))
        tensor([[[[-1.,  1.]]]])
    """

    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    column: str | None = None
    kind = "image"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, features: Any) -> Inputs:
        """Returns the encoded images.

        Args:
            features: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; picture files; or a table with the `column`
                that names them.

        Raises:
            InputError: images of another shape or type, no such column, or files that cannot be read.
        """
        pixels, units = self._pixels(features), Units(self.mean, self.std)
        return StreamedImages(pixels, units) if isinstance(pixels, FilePixels) else ImageInputs(pixels, units)

    def _pixels(self, features: Any) -> HeldPixels | FilePixels:
        import pandas as pd

        if isinstance(features, pd.DataFrame):
            if self.column is None:
                raise InputError("data: is a table, and the model was trained on images; give images.")
            features = ImageFiles(column_paths(features, self.column), column=self.column)
        if isinstance(features, ImageFiles):
            if self.shape[0] == 4:
                raise InputError("data: the model was trained on images of 4 channels, and picture files give 1 or 3.")
            return features.pixels(self.shape)
        pixels = HeldPixels(pixel_tensor(features, self.shape))
        if pixels.shape != self.shape:
            raise InputError(
                f"X: images have shape {list(pixels.shape)} (channels, height, width); give images of shape "
                f"{list(self.shape)}, as the model was trained on."
            )
        return pixels

    def program(self) -> Program:
        channels, height, width = self.shape
        order = {1: "grey", 3: "red, green, blue", 4: "four"}.get(channels, "as they came")
        port = Port("pixels", self.shape, torch.uint8, f"channels ({order}) first, 0 to 255")
        about = {
            "resized": f"to {height} x {width} pixels by bilinear interpolation, before",
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return Program((port,), FromPixels(self.mean, self.std), self._tensors, about)

    def _tensors(self, features: Any) -> tuple[UInt8[Tensor, "N C H W"]]:
        pixels = self._pixels(features)
        return (pixels.take(torch.arange(len(pixels))).contiguous(),)

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "column": self.column,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ImageEncoder":
        channels, height, width = spec["shape"]
        return cls((channels, height, width), tuple(spec["mean"]), tuple(spec["std"]), spec["column"])


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Labelled images: `features` is uint8 [N, C, H, W] in memory or mapped from a file, or `ImageFiles`."""

    form = "image"
    standardised = True

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> ImageEncoder:
        pixels = self._pixels()
        total, squares = np.zeros((2, pixels.shape[0]))  # of whole numbers under 2^53, so exact
        for block in _blocks(pixels, rows):
            values = block.double()
            total += values.sum((0, 2, 3)).numpy()
            squares += values.square().sum((0, 2, 3)).numpy()
        count = len(rows) * pixels.shape[1] * pixels.shape[2]
        mean = total / count
        # n² · variance, of whole numbers: zero exactly where a channel is constant.
        spread = [int(count) * int(q) - int(s) ** 2 for q, s in zip(squares, total, strict=True)]
        std = [float(each) ** 0.5 / count / 255 or 1.0 for each in spread]
        column = self.features.column if isinstance(self.features, ImageFiles) else None
        return ImageEncoder(pixels.shape, tuple((mean / 255).tolist()), tuple(std), column)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        pixels = self._pixels()
        blocks = _blocks(pixels, np.arange(len(pixels)))
        return content_hashes(row.numpy().tobytes() for block in blocks for row in block)

    def _pixels(self) -> Pixels:
        if isinstance(self.features, ImageFiles):
            return self.features.pixels(self.features.shape)
        return HeldPixels(self.features)


def from_pixels(
    pixels: Any,
    y: Any,
    *,
    name: str = "images",
    labels: Sequence[Label] | None = None,
    groups: Any = None,
    times: Any = None,
    kind: Kind | None = None,
) -> ImageDataset:
    """Returns a data set of images in memory, or mapped from a file; they are not copied.

    Args:
        pixels: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], with 1, 3 or 4 channels: the last axis, if it is that
            long, else the second.
        y: [N] text, whole numbers or booleans (classes), or [N] or [N, K] floats (regression).
        name: a short name for messages and the run directory.
        labels: the classes of an earlier run, in its order; default the labels of `y`, sorted.
        groups: [N] group of each row, or None.
        times: [N] number or date of each row, or None.
        kind: `classification` or `regression` where the type of `y` says otherwise.

    Raises:
        InputError: another type or shape, no images, images of more than `max_pixels()` pixels, lengths that differ,
            only one class.

    Example:
        >>> dataset = from_pixels(np.zeros((4, 8, 8, 3), dtype=np.uint8), ["cat", "dog", "cat", "dog"])
        >>> dataset.form, dataset.fit(np.arange(3)).input_shape
        ('image', (3, 8, 8))
    """
    features = pixel_tensor(pixels)
    target = make_target(y, kind=kind, labels=labels)
    if len(features) != len(target.values):
        raise InputError(f"y: has {len(target.values)} targets for {len(features)} images; give one an image.")
    return ImageDataset(
        name,
        features,
        target,
        row_values(groups, len(features), "groups"),
        row_values(times, len(features), "times", sortable=True),
    )


def images_or_arrays(X: Any, y: Any, **arguments: Any) -> Dataset:
    """Returns a data set of X as images where it is uint8 of an image's shape, else as arrays.

    Args:
        X: [N, …] numbers.
        y: [N] or [N, K] targets.
        arguments: as for `from_pixels` and `from_arrays`.

    Raises:
        InputError: as for these.

    Example:
        >>> X = np.arange(8).reshape(2, 2, 2)
        >>> images_or_arrays(X, [0, 1]).form, images_or_arrays(X.astype(np.uint8), [0, 1]).form
        ('array', 'image')
    """
    is_pixels = isinstance(X, (Tensor, np.ndarray)) and X.dtype in (torch.uint8, np.uint8)
    if is_pixels and _channel_axis(tuple(X.shape)) is not None:
        return from_pixels(X, y, **arguments)
    return from_arrays(X, y, **arguments)


def from_image_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    labels: Sequence[Label] | None = None,
    in_memory: bool | None = None,
    num_workers: int | None = None,
) -> ImageDataset:
    """Returns a data set of the pictures in a folder that has a sub-folder for each class.

    Args:
        folder: holds the sub-folders, each named after its class; pictures lie anywhere in these.
        size: (H, W) that pictures are resized to; default see `ImageFiles`.
        labels: the classes of an earlier run, in its order.
        in_memory: whether the pictures are decoded once and held; default see `ImageFiles`.
        num_workers: how many processes decode them where they are not; default see `ImageFiles`.

    Raises:
        InputError: Pillow is not installed; a picture outside any class, a class without pictures, only one class,
            a class that is not among `labels`; a file that is no picture or has too many pixels.
    """
    paths, classes = class_files(folder, ENDINGS, labels)
    files = ImageFiles(paths, size=size, in_memory=in_memory, num_workers=num_workers)
    return ImageDataset(folder.resolve().name, files, make_target(classes, labels=labels))


def from_image_table(table: TableDataset, *, size: tuple[int, int] | None = None) -> ImageDataset:
    """Returns a data set of the pictures that the one feature column of a table names.

    Args:
        table: its features are one column of paths, relative to the file that the table was read from.
        size: (H, W) that pictures are resized to; default see `ImageFiles`.

    Raises:
        InputError: Pillow is not installed, a row that names no file, or a file as for `from_image_folder`.
    """
    (column,) = table.features.columns
    files = ImageFiles(column_paths(table.features, column), size=size, column=column)
    return ImageDataset(table.name, files, table.target, table.groups, table.times)


def image_features(folder: Path) -> ImageFiles:
    """Returns all pictures in a folder, labelled by sub-folders or not, in the order of their paths.

    Raises:
        InputError: Pillow is not installed, there are no pictures, or a file as for `from_image_folder`.
    """
    return ImageFiles(files_in(folder, ENDINGS))


def pixel_tensor(pixels: Any, known: Shape | None = None) -> UInt8[Tensor, "N C H W"]:
    """Returns images as a view with the channels in front, on the CPU, checked; memory is shared where it can be.

    Args:
        pixels: as for `from_pixels`.
        known: (C, H, W) that the images should have; rows of just that shape have their channels in front.

    Raises:
        InputError: as for `from_pixels`.

    Example:
        >>> pixel_tensor(np.zeros((2, 28, 28), dtype=np.uint8)).shape
        torch.Size([2, 1, 28, 28])
    """
    if not isinstance(pixels, (Tensor, np.ndarray)) or pixels.dtype not in (torch.uint8, np.uint8):
        held = pixels.dtype if isinstance(pixels, (Tensor, np.ndarray)) else type(pixels).__name__
        raise InputError(f"X: holds {held} where images are needed; give an array of uint8, 0 to 255.")
    shape = tuple(pixels.shape)
    axis = 1 if shape[1:] == known else _channel_axis(shape)
    if axis is None:
        raise InputError(
            f"X: has shape {list(shape)}; give images as [N, H, W], [N, H, W, C] or [N, C, H, W] of 1, 3 or 4 channels."
        )
    if 0 in shape:
        raise InputError(f"X: has shape {list(shape)}; give one image of one pixel at least.")
    tensor = pixels.detach().cpu() if isinstance(pixels, Tensor) else _shared(pixels)
    tensor = tensor.unsqueeze(1) if len(shape) == 3 else tensor.movedim(axis, 1)
    if tensor.shape[2] * tensor.shape[3] > max_pixels():
        raise InputError(f"X: has shape {list(shape)}; give images of at most {max_pixels()} pixels.")
    return tensor


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Returns the axis of the channels: 0 where there is none to be counted, None where these are no images."""
    if len(shape) == 3:
        return 0
    if len(shape) == 4:
        return next((axis for axis in (3, 1) if shape[axis] in _CHANNELS), None)
    return None


def _shared(array: UInt8[np.ndarray, "N *shape"]) -> UInt8[Tensor, "N *shape"]:
    """Returns a tensor in the array's own memory; a copy where torch can neither share it nor trust it to stay."""
    if not array.flags.writeable or min(array.strides) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def _blocks(pixels: Pixels, rows: Int64[np.ndarray, " rows"]) -> Iterator[UInt8[Tensor, "m C H W"]]:
    size = pixels.shape[0] * pixels.shape[1] * pixels.shape[2]
    for chunk in torch.split(torch.from_numpy(rows), max(1, _CHUNK_BYTES // size)):
        yield pixels.take(chunk)
