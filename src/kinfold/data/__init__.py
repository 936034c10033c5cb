"""Labelled data: one file a format, each giving a `Dataset` (see `kinfold.data.base`).

A new format is one new file, and one line in `ENCODERS` if it brings preprocessing of its own.
"""

from typing import Any

from kinfold.data.arrays import ArrayDataset, ArrayEncoder, from_arrays
from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label, Rows, Target, TensorInputs
from kinfold.data.benchmarks import NAMES
from kinfold.data.npz import from_npz
from kinfold.data.resolve import read, read_features
from kinfold.data.table import TableDataset, TableEncoder, from_frame
from kinfold.data.table_files import read_csv, read_parquet, write_table
from kinfold.data.targets import encode_target
from kinfold.data.wrapped import from_torch
from kinfold.errors import unknown

ENCODERS: dict[str, type[Encoder]] = {"array": ArrayEncoder, "table": TableEncoder}


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
    "NAMES",
    "ArrayDataset",
    "ArrayEncoder",
    "Dataset",
    "Encoder",
    "Inputs",
    "Kind",
    "Label",
    "Rows",
    "TableDataset",
    "TableEncoder",
    "Target",
    "TensorInputs",
    "encode_target",
    "encoder_from_spec",
    "from_arrays",
    "from_frame",
    "from_npz",
    "from_torch",
    "read",
    "read_csv",
    "read_features",
    "read_parquet",
    "write_table",
]
