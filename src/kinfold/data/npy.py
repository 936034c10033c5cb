"""`.npy` arrays, mapped from their files: `X.npy` with `y.npy` beside it."""

import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.images import images_or_arrays
from kinfold.data.npz import FEATURES, TARGETS
from kinfold.errors import InputError
from kinfold.importing import one_line


def from_npy(path: Path, *, kind: Kind | None = None, labels: Sequence[Label] | None = None) -> Dataset:
    """Returns a data set of arrays in files of their own; float32 and uint8 features stay on disk until they are read.

    Args:
        path: `X.npy`, or a folder that holds it; beside it lie `y.npy` and, where there are any, `groups.npy` and
            `times.npy`. The names are those of `kinfold.data.npz`. Features of uint8 and an image's shape are images.
        kind: `classification` or `regression` where the type of the targets says otherwise.
        labels: the classes of an earlier run, in its order.

    Raises:
        InputError: no such file, a damaged one, pickled objects in it, no targets beside it, and all that
            `from_arrays` and `from_pixels` raise.
    """
    features = _features_file(path)
    folder = features.parent
    if features.stem not in FEATURES and features.is_file():
        raise InputError(f"{features}: has no targets; call it X.npy and put y.npy beside it.")
    X, beside = npy_features(features), _present(folder, TARGETS)
    if beside is None:
        raise InputError(f"{features}: has no targets; put y.npy beside it.")
    extra = {name: read_npy(folder / f"{name}.npy") for name in ("groups", "times") if _present(folder, [name])}
    return images_or_arrays(
        X,
        read_npy(beside),
        name=folder.resolve().name,
        kind=kind,
        labels=labels,
        groups=extra.get("groups"),
        times=extra.get("times"),
    )


def npy_features(path: Path) -> Tensor | Shaped[np.ndarray, "..."]:
    """Returns the features in a file of any name ending `.npy`, or in a folder that holds `X.npy`.

    Raises:
        InputError: no such file, or a damaged one.
    """
    array = read_npy(_features_file(path))
    # As a tensor: those of these types are then passed on as they are, where arrays would be copied.
    return torch.from_numpy(array) if array.dtype in (np.uint8, np.float32) and array.dtype.isnative else array


def is_npy_folder(folder: Path) -> bool:
    """Returns whether a folder holds `X.npy`, or what else features are called."""
    return _present(folder, FEATURES) is not None


def read_npy(path: Path) -> Shaped[np.ndarray, "..."]:
    """Returns the array in a file, mapped from it and not read yet.

    Raises:
        InputError: no such file, a damaged one, or pickled objects in it.
    """
    try:
        # Copy on write: torch takes memory that may not be written to for a mistake.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("it is an archive; call it .npz")
        return array
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError, tokenize.TokenError) as error:
        raise InputError(f"{path}: cannot be read as .npy of a plain array ({one_line(error)}).") from None


def _features_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _present(path, FEATURES)
    if found is None:
        raise InputError(f"{path}: holds no X.npy; add it, and y.npy beside it.")
    return found


def _present(folder: Path, names: Sequence[str]) -> Path | None:
    paths = (folder / f"{name}.npy" for name in names)
    return next((path for path in paths if path.is_file()), None)
