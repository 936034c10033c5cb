"""`kinfold predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, declare_run, declare_trust
from kinfold.errors import InputError
from kinfold.tracking.progress import printable

if TYPE_CHECKING:  # it imports torch
    from kinfold.result import Result


def _declare_predict(parser: ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("data", metavar="DATA", help="rows as the run was given them, with or without a target")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .csv or .parquet file to write")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    declare_trust(parser)


def _predict(given: Given) -> str:
    import pandas as pd

    from kinfold.data import read_features, write_table
    from kinfold.result import load

    out = Path(given["out"])
    if out.is_dir() or (out.exists() and not given["force"]):
        raise InputError(f"out: {out} exists already; choose another file, or replace a file by --force.")
    result = load(given["run"], trust=given["trust"])
    columns = _predictions(result, read_features(given["data"], result.encoder.written))
    write_table(out, pd.DataFrame(columns))
    return f"{len(columns['row'])} predictions in {printable(str(out))}"


def _predictions(result: "Result", features: Any) -> dict[str, Sequence[Any]]:
    """Returns the columns that `predict` writes."""
    import torch

    from kinfold.data import feature_paths

    outputs = result.outputs(features).double()
    rows: dict[str, Sequence[Any]] = {"row": range(len(outputs))}
    paths = feature_paths(features)
    if paths is not None:  # a name that is no UTF-8 is written with escapes
        rows["file"] = [str(path).encode(errors="backslashreplace").decode() for path in paths]
    labels = result.target.labels
    if labels is None:
        names = [f"prediction_{k}" for k in range(outputs.shape[1])] if outputs.shape[1] > 1 else ["prediction"]
        return rows | dict(zip(names, outputs.T.tolist(), strict=True))
    probabilities = torch.softmax(outputs, 1)
    return (
        rows
        | {"prediction": [labels[c] for c in outputs.argmax(1).tolist()]}
        | {f"probability_{label}": probabilities[:, c].tolist() for c, label in enumerate(labels)}
    )


PREDICT = Command("predict", "Writes a run's predictions for rows.", "RUN DATA --out FILE", _declare_predict, _predict)
