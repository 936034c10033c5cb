"""How to train where nobody says: network, optimizer, schedule and augmentation by the kind and size of the data.

Rules of thumb from the networks' papers, so sized that small data get many epochs and large data few. docs/models.md
has them as a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from kinfold.data.base import Form, Kind

Part: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What `kinfold.fit` takes under the same names, as plain data that a configuration can hold.

    Attributes:
        model: a structure by name, with arguments.
        optimizer: likewise.
        batch_size: rows of one task in one batch.
        epochs: the cap, and the length of the schedule.
        scheduler: a schedule by name.
        methods: training methods by name, with arguments.
        clip_norm: greatest gradient norm of each task, or None.
    """

    model: Part
    optimizer: Part
    batch_size: int
    epochs: int
    scheduler: str = "cosine"
    methods: tuple[Part, ...] = ()
    clip_norm: float | None = None


def recipe(form: Form, kind: Kind, rows: int, input_shape: tuple[int, ...]) -> Recipe:
    """Returns how to train on data of a form and size.

    Args:
        form: what kind of thing a row is (`Dataset.form`).
        kind: classification or regression.
        rows: how many labelled rows there are.
        input_shape: the shape of one encoded row.

    Example:
        >>> chosen = recipe("image", "classification", 50_000, (3, 32, 32))
        >>> chosen.model, chosen.methods
        ({'name': 'resnet20'}, ({'name': 'crop_flip_cutout', 'padding': 4},))
    """
    # Squared errors of a target in its own units may be of any size, and plain SGD follows them anywhere.
    clip_norm = 1.0 if kind == "regression" else None
    if form == "image" and min(input_shape[1:]) >= 8:
        return _image(rows, input_shape, clip_norm)
    if form == "series":
        return _series(rows, input_shape)
    if form == "text":
        return _text(rows)
    if form == "table":
        return _table(rows)
    return Recipe({"name": "mlp"}, _sgd(0.05, 0.0), 64, 100, clip_norm=clip_norm)


def _image(rows: int, input_shape: tuple[int, ...], clip_norm: float | None) -> Recipe:
    channels, height, width = input_shape
    shorter = min(height, width)
    if channels == 1 and max(height, width) <= 32:
        return Recipe({"name": "lenet5"}, _sgd(0.05, 5e-4), 64, _epochs(rows, 64, 20_000, 20, 100), clip_norm=clip_norm)
    # Pictures of the world may be shifted and mirrored; digits, and spectrograms, may not.
    methods = ({"name": "crop_flip_cutout", "padding": shorter // 8},) if channels >= 3 else ()
    if shorter >= 128:
        epochs = _epochs(rows, 32, 50_000, 30, 100)
        return Recipe({"name": "resnet18"}, _sgd(0.02, 1e-4), 32, epochs, methods=methods, clip_norm=clip_norm)
    rate, batch_size = (0.1, 128) if rows >= 5_000 else (0.05, 32)
    return Recipe({"name": "resnet20"}, _sgd(rate, 5e-4), batch_size, epochs=100, methods=methods, clip_norm=clip_norm)


def _series(rows: int, input_shape: tuple[int, ...]) -> Recipe:
    steps = rows * input_shape[-1]
    batch_size = 64 if rows >= 1_000 else 16
    name = "inception-time" if steps <= 500_000 else "fcn"  # the better and the quicker one
    return Recipe({"name": name}, _adamw(1e-3, 1e-4), batch_size, _epochs(rows, batch_size, 2_000, 20, 100))


def _text(rows: int) -> Recipe:
    batch_size = 64 if rows >= 2_000 else 16
    model = {"name": "textcnn", "width": 128}
    return Recipe(model, _adamw(1e-3, 1e-2), batch_size, _epochs(rows, batch_size, 2_000, 5, 30))


def _table(rows: int) -> Recipe:
    if rows < 2_000:
        return Recipe({"name": "mlp"}, _adamw(1e-3, 1e-2), 32, _epochs(rows, 32, 5_000, 50, 200))
    batch_size = 128 if rows < 50_000 else 512
    return Recipe(
        {"name": "tabular-resnet"}, _adamw(1e-3, 1e-2), batch_size, _epochs(rows, batch_size, 10_000, 10, 100)
    )


def _epochs(rows: int, batch_size: int, steps: int, least: int, most: int) -> int:
    """Returns how many epochs come to about so many steps, within bounds."""
    return min(most, max(least, steps * batch_size // rows))


def _sgd(rate: float, decay: float) -> Part:
    return {"name": "sgd", "lr": rate, "momentum": 0.9, "weight_decay": decay}


def _adamw(rate: float, decay: float) -> Part:
    return {"name": "adamw", "lr": rate, "weight_decay": decay}
