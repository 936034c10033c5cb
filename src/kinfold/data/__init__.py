"""Labelled data: one file a format, each giving a `Dataset` (see `kinfold.data.base`).

A new format is one new file, and one line in `ENCODERS` if it brings preprocessing of its own.
"""

from typing import Any

from kinfold.data.arrays import ArrayDataset, ArrayEncoder, from_arrays
from kinfold.data.audio import AudioDataset, AudioEncoder, from_audio_folder, from_recordings
from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label, Rows, Target, TensorInputs
from kinfold.data.benchmarks import NAMES
from kinfold.data.cifar import from_cifar
from kinfold.data.hubs import HUBS
from kinfold.data.idx import from_idx, read_idx
from kinfold.data.image_files import ImageFiles
from kinfold.data.images import ImageDataset, ImageEncoder, from_image_folder, from_pixels
from kinfold.data.npy import from_npy
from kinfold.data.npz import from_npz
from kinfold.data.public import PUBLIC
from kinfold.data.resolve import feature_paths, read, read_features, some_rows
from kinfold.data.series import SeriesDataset, SeriesEncoder, from_series, from_ts, from_ucr, read_ts, read_ucr
from kinfold.data.streamed import Streamed
from kinfold.data.table import TableDataset, TableEncoder, from_frame
from kinfold.data.table_files import read_arrow, read_csv, read_parquet, write_table
from kinfold.data.targets import encode_target, weighted
from kinfold.data.text import TextDataset, TextEncoder, from_texts
from kinfold.data.text_files import read_json_table, read_tab
from kinfold.data.wrapped import ItemsDataset, from_torch
from kinfold.errors import unknown

ENCODERS: dict[str, type[Encoder]] = {
    "array": ArrayEncoder,
    "audio": AudioEncoder,
    "image": ImageEncoder,
    "series": SeriesEncoder,
    "table": TableEncoder,
    "text": TextEncoder,
}


def encoder_from_spec(spec: dict[str, Any]) -> Encoder:
    """Returns the encoder whose `spec()` this is.

    Raises:
        InputError: there is no encoder of that kind.

    Example:
        >>> encoder_from_spec({"kind": "array", "shape": [3], "integer_inputs": False}).input_shape
        (3,)
    """
    if spec["kind"] not in ENCODERS:
        raise unknown("encoder", spec["kind"], ENCODERS)
    return ENCODERS[spec["kind"]].from_spec(spec)


__all__ = [
    "ENCODERS",
    "HUBS",
    "NAMES",
    "PUBLIC",
    "ArrayDataset",
    "ArrayEncoder",
    "AudioDataset",
    "AudioEncoder",
    "Dataset",
    "Encoder",
    "ImageDataset",
    "ImageEncoder",
    "ImageFiles",
    "Inputs",
    "ItemsDataset",
    "Kind",
    "Label",
    "Rows",
    "SeriesDataset",
    "SeriesEncoder",
    "Streamed",
    "TableDataset",
    "TableEncoder",
    "Target",
    "TensorInputs",
    "TextDataset",
    "TextEncoder",
    "encode_target",
    "encoder_from_spec",
    "feature_paths",
    "from_arrays",
    "from_audio_folder",
    "from_cifar",
    "from_frame",
    "from_idx",
    "from_image_folder",
    "from_npy",
    "from_npz",
    "from_pixels",
    "from_recordings",
    "from_series",
    "from_texts",
    "from_torch",
    "from_ts",
    "from_ucr",
    "read",
    "read_arrow",
    "read_csv",
    "read_features",
    "read_idx",
    "read_json_table",
    "read_parquet",
    "read_tab",
    "read_ts",
    "read_ucr",
    "some_rows",
    "weighted",
    "write_table",
]
