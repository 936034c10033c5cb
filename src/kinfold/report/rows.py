"""Rows as a person can look at them: pictures as pictures, text as text, series as curves, tables as their values.

A run directory holds no rows. They are read again where the user asks for it, and are shown only if they are the rows
that the run was given.
"""

import base64
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from torch import Tensor

from kinfold.data import (
    ArrayDataset,
    AudioDataset,
    Dataset,
    ImageDataset,
    ImageFiles,
    ItemsDataset,
    SeriesDataset,
    TableDataset,
    TextDataset,
    read,
)
from kinfold.data.audio import log_mel, read_wav
from kinfold.data.base import fingerprint
from kinfold.data.items import StreamedItems
from kinfold.errors import InputError
from kinfold.report import charts

_READ_BY = ("target", "groups", "times", "kind", "texts")  # keys of a configuration that say how data are read
_MOST_LETTERS = 600
_MOST_VALUES = 24
_LONGEST_SIDE = 160  # of a picture, in pixels


@dataclass(frozen=True)
class Shown:
    """One row; one of these, as it can be looked at.

    Attributes:
        image: a PNG as a data URI, with its width and height in pixels.
        text: what it says.
        chart: a drawing of it.
        values: (name, value) of its features.
        more: how much was left out, in words; or None.
    """

    image: tuple[str, int, int] | None = None
    text: str | None = None
    chart: Markup | None = None
    values: tuple[tuple[str, str], ...] = ()
    more: str | None = None


def rows_to_show(
    source: Any,
    config: Mapping[str, Any],
    known_by: str,
    wanted: Sequence[int],
    written: Sequence[str] | None = None,
) -> dict[int, Shown]:
    """Returns rows of a run's data by their numbers; none where the data are of a kind that has no picture.

    Args:
        source: the data, as for `kinfold.data.read`.
        config: the run's configuration, which says how they are read.
        known_by: the fingerprint of the run's data.
        wanted: the rows' numbers.
        written: of the run's encoder, as for `kinfold.data.read`.

    Raises:
        InputError: the data cannot be read, or are not the run's.
    """
    dataset = read(source, **{name: config.get(name) for name in _READ_BY}, written=written)
    if fingerprint(dataset, dataset.fingerprints()) != known_by:
        raise InputError(
            f"rows: {dataset.name} is not the data of the run, which were {config.get('data')}, or has changed since; "
            "give the same rows in the same order."
        )
    show = _FORMS.get(type(dataset))
    return {} if show is None else {row: show(dataset, row) for row in wanted}


def _text(dataset: Dataset, row: int) -> Shown:
    whole = dataset.features[row]
    left_out = len(whole) - _MOST_LETTERS
    return Shown(text=whole[:_MOST_LETTERS], more=f"{left_out:,} more letters" if left_out > 0 else None)


def _table(dataset: Dataset, row: int) -> Shown:
    values = dataset.features.iloc[row]
    return _values([(str(name), _written(value)) for name, value in zip(values.index, values, strict=True)])


def _series(dataset: Dataset, row: int) -> Shown:
    return _curve(dataset.features[row], row)


def _recording(dataset: Dataset, row: int) -> Shown:
    path = dataset.features[row]
    spectrum = log_mel(read_wav(path))[::-1]  # low tones below
    return Shown(image=_picture(_eight_bits(spectrum)), text=path.name)


def _image(dataset: Dataset, row: int) -> Shown:
    features = dataset.features
    pixels = features.decode(row, features.shape) if isinstance(features, ImageFiles) else features[row].numpy()
    return Shown(image=_picture(np.moveaxis(pixels, 0, -1)), text=_file_name(features, row))


def _item(dataset: Dataset, row: int) -> Shown:
    return _array(StreamedItems(dataset.features).decode(row, 0), row)


def _array_row(dataset: Dataset, row: int) -> Shown:
    return _array(dataset.features[row], row)


_FORMS: Mapping[type[Dataset], Callable[[Any, int], Shown]] = {
    ArrayDataset: _array_row,
    AudioDataset: _recording,
    ImageDataset: _image,
    ItemsDataset: _item,
    SeriesDataset: _series,
    TableDataset: _table,
    TextDataset: _text,
}
"""How a row of each kind of data set is shown."""


def _file_name(features: Any, row: int) -> str | None:
    return features.paths[row].name if isinstance(features, ImageFiles) else None


def _array(values: Tensor, row: int) -> Shown:
    """A row of numbers: as a picture or a curve where its shape is that of one."""
    array = values.numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and min(array.shape[1:]) > 1:
        eight = array if array.dtype == np.uint8 else _eight_bits(array.astype(np.float64))
        return Shown(image=_picture(np.moveaxis(eight, 0, -1)))
    if array.ndim == 2 and array.shape[1] >= 8 > array.shape[0]:
        return _curve(array.astype(np.float32), row)
    if array.ndim == 2 and min(array.shape) > 1:
        return Shown(image=_picture(_eight_bits(array.astype(np.float64))))
    return _values([(str(k), _written(value)) for k, value in enumerate(array.ravel().tolist())])


def _values(values: Sequence[tuple[str, str]]) -> Shown:
    left_out = len(values) - _MOST_VALUES
    return Shown(values=tuple(values[:_MOST_VALUES]), more=f"{left_out:,} more values" if left_out > 0 else None)


def _curve(values: Float[np.ndarray, "C L"], row: int) -> Shown:
    channels, length = values.shape
    title = f"Row {row}"
    describe = f"{length} values" + (f" in each of {channels} channels" if channels > 1 else "")
    chart = charts.series(f"row-{row}", values, title=title, describe=describe)
    return Shown(chart=chart, more=f"{channels - 3} more channels" if channels > 3 else None)


def _written(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _eight_bits(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Numbers as shades, the least one black and the greatest white."""
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)


def _picture(pixels: UInt8[np.ndarray, "H W *C"]) -> tuple[str, int, int]:
    step = -(-max(pixels.shape[:2]) // _LONGEST_SIDE)
    pixels = pixels[::step, ::step][
        ..., : 3 if pixels.ndim == 3 else None
    ]  # a fourth channel is what a screen has no colour for
    height, width = pixels.shape[:2]
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}", width, height


def png(pixels: UInt8[np.ndarray, "H W *C"]) -> bytes:
    """Returns a picture as a PNG file: grey where it has no channels or one, else red, green and blue.

    Source: *Portable Network Graphics*, W3C Recommendation, third edition, 2025.

    Example:
        >>> png(np.zeros((2, 3), np.uint8))[1:4]
        b'PNG'
    """
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 and pixels.shape[2] == 3 else 0
    lines = np.zeros((height, 1 + width * (3 if colour else 1)), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
