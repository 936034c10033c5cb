"""Splits in a file: what a run writes beside its model, and what repeats it row by row."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kinfold.errors import InputError
from kinfold.files import read_tensors, write_tensors
from kinfold.splits.base import RowInfo, Splits, Splitter

_FORMAT = {"format": "kinfold splits", "version": 1}
_MASKS = ("train", "validation", "sealed")


def save_splits(splits: Splits, path: str | Path) -> None:
    """Writes splits as safetensors: `train` [T, n], `validation` [T, n] and `sealed` [n], as 0 and 1 (uint8).

    Example:
        >>> import numpy as np, tempfile
        >>> splits = Splits(np.array([[True, False]]), np.array([[False, True]]), np.array([False, False]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_splits(splits, f"{folder}/splits.safetensors")
        ...     load_splits(f"{folder}/splits.safetensors").train
        array([[ True, False]])
    """
    masks = {name: torch.from_numpy(getattr(splits, name)).to(torch.uint8) for name in _MASKS}
    write_tensors(Path(path), masks, _FORMAT)


def load_splits(path: str | Path) -> Splits:
    """Reads what `save_splits` wrote.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    tensors, about = read_tensors(Path(path))
    if about != _FORMAT or set(tensors) != set(_MASKS):
        raise InputError(f"{path}: is not a file of Kinfold's splits (version 1).")
    train, validation, sealed = (tensors[name] for name in _MASKS)
    shaped = train.ndim == 2 and train.shape == validation.shape and train.shape[1:] == sealed.shape
    if not shaped or any(mask.dtype != torch.uint8 or (mask > 1).any() for mask in (train, validation, sealed)):
        raise InputError(f"{path}: its masks are not uint8 0 and 1 of shapes [T, n], [T, n] and [n].")
    return Splits(*(mask.bool().numpy() for mask in (train, validation, sealed)))


@dataclass(frozen=True)
class Saved(Splitter):
    """Gives splits that are already drawn, sealed rows included; T and the sealed rows are theirs.

    Attributes:
        source: the splits, or the file that `save_splits` wrote them to.
    """

    source: str | Path | Splits

    def draw(self, info: RowInfo, *, tasks: int, holdout: float | int, seed: int) -> Splits:
        """Returns the saved splits; tasks, holdout and seed have no effect.

        Raises:
            InputError: the file cannot be used, or its splits are of another number of rows.
        """
        del tasks, holdout, seed
        splits = self.source if isinstance(self.source, Splits) else load_splits(self.source)
        if len(splits) != len(info):
            name = "splits" if isinstance(self.source, Splits) else self.source
            raise InputError(
                f"{name}: {len(splits)} rows are split and the data have {len(info)}; "
                "give the data that the splits were drawn from."
            )
        return splits
