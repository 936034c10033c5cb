"""idx files, the form in which MNIST and its successors are given out: an array, big-endian, behind its shape.

Format: LeCun, Cortes, Burges, *The MNIST database of handwritten digits* (1998), section "the IDX file format".
"""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from kinfold.data.base import Dataset, Kind, Label
from kinfold.data.images import images_or_arrays
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.limits import most_of

_BLOCK = 1 << 20
_NAME = re.compile(r".*images(.*\.idx|[.-]idx\d-ubyte)(\.gz)?")
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> Shaped[np.ndarray, "..."]:
    """Returns the array in an idx file: mapped from the file where it holds single bytes, else in memory.

    Args:
        path: an idx file, compressed if its name ends `.gz`.

    Raises:
        InputError: no such file; one that is damaged, cut short, too long, not idx, or of more than
            `limits.most_of` its size once decompressed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))
        ...     read_idx(path).tolist()
        [7, 3]
    """
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as file:
                dtype, shape, size, _ = _header(path, file)
                if size > most_of(path.stat().st_size):  # one that is not packed is mapped, of any size
                    raise InputError(f"{path}: claims {size} bytes; unpack it, or raise KINFOLD_MAX_BYTES.")
                content = bytearray()  # no more than there is, whatever the header claims
                while len(content) <= size and (block := file.read(min(_BLOCK, size + 1 - len(content)))):
                    content += block  # one byte more shows what is too long, whatever its length
            _check_size(path, len(content), size)
            array = np.frombuffer(content, dtype=dtype).reshape(shape)
        else:
            with path.open("rb") as file:
                dtype, shape, size, start = _header(path, file)
            _check_size(path, path.stat().st_size - start, size)
            # Copy on write: torch takes memory that may not be written to for a mistake.
            array = np.memmap(path, dtype, mode="c", offset=start, shape=shape)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as idx ({one_line(error)}).") from None
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


def from_idx(path: Path, *, kind: Kind | None = None, labels: Sequence[Label] | None = None) -> Dataset:
    """Returns a data set of an idx file and the file of its labels beside it.

    Args:
        path: the features, such as `train-images-idx3-ubyte.gz`; the labels are in the file of the same name with
            `labels` for `images` and any number for that of the axes, compressed or not. Or a folder of such
            files, of which the training part is read: the one whose name begins with `train`, or the only one.
        kind: `classification` or `regression` where the type of the labels says otherwise.
        labels: the classes of an earlier run, in its order.

    Raises:
        InputError: as for `read_idx`; no file of labels, or another number of them.
    """
    path = _features_file(path)
    beside = _labels_file(path)
    X, y = read_idx(path), read_idx(beside)
    if y.ndim != 1:
        raise InputError(f"{beside}: holds an array of shape {list(y.shape)}; labels are one a row.")
    if X.shape[0] != len(y):
        raise InputError(f"{beside}: holds {len(y)} labels for the {X.shape[0]} rows of {path.name}; give one a row.")
    return images_or_arrays(X, y, name=_name(path), kind=kind, labels=labels)


def idx_features(path: Path) -> Shaped[np.ndarray, "..."]:
    """Returns the features in an idx file or a folder of such files, which need no labels.

    Raises:
        InputError: as for `read_idx`.
    """
    return read_idx(_features_file(path))


def is_idx_folder(folder: Path) -> bool:
    """Returns whether a folder holds idx files of images."""
    return bool(_candidates(folder))


def _header(path: Path, file: BufferedIOBase) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns (type, shape, bytes that follow, bytes of the header)."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
        raise InputError(f"{path}: is not an idx file (it begins with {magic.hex(' ') or 'nothing'}).")
    dtype, axes = np.dtype(_TYPES[magic[2]]), magic[3]
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise InputError(f"{path}: is cut short in its header; fetch it again.")
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    if 0 in shape:
        raise InputError(f"{path}: holds an array of shape {list(shape)}; give one row at least.")
    return dtype, shape, math.prod(shape) * dtype.itemsize, 4 + 4 * axes


def _check_size(path: Path, held: int, needed: int) -> None:
    if held < needed:
        raise InputError(f"{path}: is cut short, it has {held} of {needed} bytes; fetch it again.")
    if held > needed:
        raise InputError(f"{path}: has more than the {needed} bytes that its header tells of; fetch it again.")


def _features_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _candidates(path)
    training = [each for each in found if each.name.startswith("train")] or found
    if len(training) > 1:
        raise InputError(f"{path}: holds {', '.join(each.name for each in training)}; give one of them.")
    if not training:
        raise InputError(f"{path}: holds no idx file of images; give train-images-idx3-ubyte and its labels.")
    return training[0]


def _candidates(folder: Path) -> list[Path]:
    """Returns the files of features in a folder, one for each that is there both compressed and not."""
    files = [path for path in folder.glob("*images*") if _NAME.fullmatch(path.name) and path.is_file()]
    return sorted({path.name.removesuffix(".gz"): path for path in sorted(files, reverse=True)}.values())


def _labels_file(path: Path) -> Path:
    stem, images, rest = path.name.removesuffix(".gz").rpartition("images")
    if not images:
        raise InputError(f"{path}: is not called …-images-idx3-ubyte; give the images, whose labels lie beside them.")
    separator = rest[:1]
    names = [f"{stem}labels{separator}idx1{rest[5:]}", f"{stem}labels{rest}"]
    beside = [path.with_name(name + ending) for name in names for ending in ("", ".gz")]
    found = next((each for each in beside if each.is_file()), None)
    if found is None:
        raise InputError(f"{path}: has no labels beside it; add {beside[0].name}.")
    return found


def _name(path: Path) -> str:
    return path.name.rpartition("images")[0].rstrip("-_.") or path.name
