"""`.npz` archives of numpy arrays: `X`, `y`, and `groups` and `times` where there are any."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.images import images_or_arrays
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.limits import most_of

FEATURES = ("X", "x", "features", "data")
TARGETS = ("y", "labels", "targets", "target")


def from_npz(path: Path, *, kind: Kind | None = None, labels: Sequence[Label] | None = None) -> Dataset:
    """Returns a data set of the arrays in an archive: images where they are uint8 of an image's shape, else unscaled.

    Args:
        path: a file as `numpy.savez` writes it, its features under one of `FEATURES` and its targets under one
            of `TARGETS`; optionally `groups` and `times`.
        kind: `classification` or `regression` where the type of the targets says otherwise.
        labels: the classes of an earlier run, in its order.

    Raises:
        InputError: no such file, a damaged archive, one that unpacks to more than `limits.most_of` its size, pickled
            objects in it, no array of the needed names, and all that `from_arrays` and `from_pixels` raise.
    """
    arrays = _read_npz(path)
    return images_or_arrays(
        _pick(arrays, FEATURES, path),
        _pick(arrays, TARGETS, path),
        name=path.stem,
        labels=labels,
        groups=arrays.get("groups"),
        times=arrays.get("times"),
        kind=kind,
    )


def npz_features(path: Path) -> Shaped[np.ndarray, "..."]:
    """Returns the features in an archive, which need not hold targets.

    Raises:
        InputError: as for `from_npz`.
    """
    return _pick(_read_npz(path), FEATURES, path)


def _read_npz(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise TypeError("it is one array without a name")
            size = sum(member.file_size for member in archive.zip.infolist())
            if size > most_of(path.stat().st_size):
                raise ValueError(f"it unpacks to {size} bytes; where it is to, raise KINFOLD_MAX_BYTES")
            arrays = {name: archive[name] for name in archive.files}
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise TypeError(f"{name[:40]!r} in it is no array")
            return arrays
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as error:  # zipfile, its decoders and numpy have many errors for a damaged file
        raise InputError(f"{path}: cannot be read as .npz of plain arrays ({one_line(error)}).") from None


def _pick(
    arrays: Mapping[str, Shaped[np.ndarray, "..."]], names: Sequence[str], path: Path
) -> Shaped[np.ndarray, "..."]:
    for name in names:
        if name in arrays:
            return arrays[name]
    held = ", ".join(arrays) or "nothing"
    raise InputError(f"{path}: has no array called {' or '.join(names)}; it holds {held}.")
