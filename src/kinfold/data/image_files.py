"""Pixels, held in memory or decoded from picture files as they are asked for.

Legend: N images, C channels, H height, W width; B a batch.
"""

import abc
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from kinfold.data.base import taken
from kinfold.data.streamed import check_num_workers
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.limits import max_pixels
from kinfold.processes import check_room, free_bytes

if TYPE_CHECKING:  # an extra
    from PIL.Image import Image

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How the names of picture files end."""

LARGEST_SIDE = 224
"""The longer side, in pixels, to which larger pictures are scaled down where no size is given."""

HELD_BYTES = 2**30
"""Pictures that take no more than this once decoded are held in memory, where nobody says whether they are."""

Shape: TypeAlias = tuple[int, int, int]
"""(C, H, W)."""

_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # those alone: others may run programs
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that exchange height and width
_ORIENTATION = 0x0112
_DECODED_AT_ONCE = 256


class Pixels(abc.ABC):
    """N images of one shape, 8 bits a channel."""

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """The shape of one image."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, index: Int64[Tensor, "*axes"]) -> UInt8[Tensor, "*axes C H W"]:
        """Returns the images at `index`, on the index's device.

        Raises:
            InputError: a file is damaged, or gone.
        """


@final
class HeldPixels(Pixels):
    """Images in one tensor, which may be a view, and may be mapped from a file.

    Args:
        values: [N, C, H, W].
    """

    def __init__(self, values: UInt8[Tensor, "N C H W"]):
        self.values = values

    @property
    def shape(self) -> Shape:
        C, H, W = self.values.shape[1:]
        return C, H, W

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Int64[Tensor, "*axes"]) -> UInt8[Tensor, "*axes C H W"]:
        return taken(self.values, index)

    def to(self, device: torch.device) -> "HeldPixels":
        """Returns the same images, kept on `device`."""
        return HeldPixels(self.values.to(device))


@final
class FilePixels(Pixels):
    """Images in files, decoded whenever they are taken.

    Args:
        files: the files.
        shape: what each picture is brought to.
    """

    def __init__(self, files: "ImageFiles", shape: Shape):
        self.files, self._shape = files, shape

    @property
    def shape(self) -> Shape:
        return self._shape

    def __len__(self) -> int:
        return len(self.files)

    def image(self, row: int) -> UInt8[Tensor, "C H W"]:
        """Returns one picture.

        Raises:
            InputError: the file is damaged, or gone.
        """
        return torch.from_numpy(self.files.decode(row, self._shape))

    def take(self, index: Int64[Tensor, "*axes"]) -> UInt8[Tensor, "*axes C H W"]:
        rows, place = torch.unique(index.cpu(), return_inverse=True)
        images = torch.empty(len(rows), *self._shape, dtype=torch.uint8)
        with _decoding() as pool:
            for number, image in enumerate(pool.map(self.image, rows.tolist())):
                images[number] = image
        return images[place].to(index.device)


@final
class ImageFiles:
    """Picture files, looked at but not decoded yet.

    Pictures that are all grey have one channel, else all have three; transparency is left out, and of an animation
    the first frame counts. They are turned upright as their EXIF orientation says.

    Args:
        paths: the files, N of them.
        size: (H, W) that pictures are resized to. By default the one size that all have; where they differ, the
            median height and the median width; in either case scaled down to a longer side of `LARGEST_SIDE`.
            Resizing keeps all of a picture: its sides may be scaled differently.
        column: the column of the table that named the files, or None.
        in_memory: whether the pictures are decoded once and held; default where they take no more than `HELD_BYTES`,
            and no more than is free. Others are decoded as they are needed (see `kinfold.data.streamed`).
        num_workers: how many processes then decode; default as many as this one may use CPUs.

    Raises:
        InputError: num_workers is negative, Pillow is not installed, or a file is missing, is no picture, or has more
            than `max_pixels()`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        size: tuple[int, int] | None = None,
        column: str | None = None,
        in_memory: bool | None = None,
        num_workers: int | None = None,
    ):
        self.paths, self.column, self._in_memory = tuple(paths), column, in_memory
        self.num_workers = check_num_workers(num_workers)
        _require_pillow()
        headers = [_header(path) for path in self.paths]
        channels = 1 if all(grey for grey, _, _ in headers) else 3
        sides = np.array([[height, width] for _, height, width in headers])
        self._natural: Shape = (channels, *(_common_size(sides) if size is None else size))
        self._pixels: HeldPixels | FilePixels | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> Shape:
        """The shape that the pictures are brought to where nothing else is asked for."""
        return self._natural

    def some(self, rows: Sequence[int]) -> "ImageFiles":
        """Returns some of the pictures, brought to the size of all."""
        _, height, width = self._natural
        paths = [self.paths[row] for row in rows]
        return ImageFiles(paths, size=(height, width), column=self.column, num_workers=self.num_workers)

    def pixels(self, shape: Shape) -> HeldPixels | FilePixels:
        """Returns the pictures brought to a shape: decoded once and held, or decoded as needed.

        Args:
            shape: (C, H, W), C being 1 (colours become grey) or 3 (grey becomes three equal channels).

        Raises:
            InputError: a file is damaged; or, where they are not held, when the damaged one is taken.
        """
        if self._pixels is None or self._pixels.shape != shape:
            size = len(self) * shape[0] * shape[1] * shape[2]
            held = size <= min(HELD_BYTES, free_bytes()) if self._in_memory is None else self._in_memory
            if held:
                check_room(size, f"{len(self)} pictures", "have them decoded as they are needed (in_memory=False)")
            self._pixels = HeldPixels(self._all(shape)) if held else FilePixels(self, shape)
        return self._pixels

    def decode(self, row: int, shape: Shape) -> UInt8[np.ndarray, "C H W"]:
        """Returns one picture, brought to a shape.

        Raises:
            InputError: the file is damaged, or gone.
        """
        with named_picture(self.paths[row], str(self.paths[row])):
            return _decoded(self.paths[row], shape)

    def _all(self, shape: Shape) -> UInt8[Tensor, "N C H W"]:
        images = torch.empty(len(self), *shape, dtype=torch.uint8)
        with _decoding() as pool:
            for start in range(0, len(self), _DECODED_AT_ONCE):  # so that decoded ones do not pile up in the queue
                rows = range(start, min(start + _DECODED_AT_ONCE, len(self)))
                for row, image in zip(rows, pool.map(lambda row: self.decode(row, shape), rows), strict=True):
                    images[row] = torch.from_numpy(image)
        return images


def open_image(source: Path | bytes, called: str = "") -> "Image":
    """Returns a picture whose header has been read, to be closed by the caller.

    Args:
        source: its file, or what would stand in it.
        called: what it is called, for messages; default the file's path.

    Raises:
        InputError: Pillow is not installed, or the file is missing, is no picture, or has more than `max_pixels()`.
    """
    _require_pillow()
    from PIL import Image

    called = called or str(source)
    with named_picture(source, called), warnings.catch_warnings():
        # Of more than our own limit; of more than twice theirs it is an error in any case.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_DECODERS)
    if image.width * image.height > max_pixels():
        image.close()
        raise InputError(
            f"{called}: has {image.width} × {image.height} pixels; make it smaller, or raise KINFOLD_MAX_PIXELS "
            f"({max_pixels()})."
        )
    return image


def _header(path: Path) -> tuple[bool, int, int]:
    """Returns (whether it is grey, upright height, upright width) from the first bytes of a file."""
    with open_image(path) as image, named_picture(path, str(path)):
        width, height = image.size
        # Only where the tags are there by now: of some formats the whole file would be read for them.
        if "exif" in image.info and image.getexif().get(_ORIENTATION) in _TURNED:
            width, height = height, width
        return image.mode in _GREY, height, width


def _common_size(sides: Shaped[np.ndarray, "N 2"]) -> tuple[int, int]:
    median = np.median(sides, axis=0)
    scaled = median * min(1.0, LARGEST_SIDE / median.max())
    height, width = np.maximum(1, np.rint(scaled)).astype(int).tolist()
    return height, width


def _decoded(path: Path, shape: Shape) -> UInt8[np.ndarray, "C H W"]:
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    with open_image(path) as opened:  # it may have become another since it was looked at
        longer = max(height, width)
        opened.draft(mode, (longer, longer))  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough
        image = ImageOps.exif_transpose(_eight_bits(opened)).convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(image)
    # A copy: the picture's own memory may not be written to, which torch takes for a mistake.
    return np.array(values[None] if channels == 1 else values.transpose(2, 0, 1), order="C")


def _eight_bits(image: "Image") -> "Image":
    """Returns a picture of 16 bits with the upper 8 of them; others as they are."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise ValueError("pixels have more than 16 bits")
    turned = Image.fromarray((values >> 8).astype(np.uint8))
    turned.info = image.info  # the orientation
    return turned


@contextmanager
def named_picture(source: Path | bytes, called: str) -> Iterator[None]:
    """Turns what Pillow raises, which may be anything, into one line that names the picture (see `open_image`)."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{called}: no such file.") from None
    except InputError:
        raise
    except Exception as error:
        empty = not source if isinstance(source, bytes) else source.is_file() and not source.stat().st_size
        why = "the file is empty" if empty else one_line(error)
        raise InputError(f"{called}: cannot be read as a picture ({why}); replace or remove it.") from None


def _decoding() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())  # Pillow lets other threads run while it decodes


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError("data: pictures need Pillow; install kinfold[images].") from None
