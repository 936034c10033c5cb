"""Hashes of rows, equal where their contents are equal."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Shaped, UInt64
from torch import Tensor


def content_hashes(contents: Iterable[bytes]) -> UInt64[np.ndarray, " N"]:
    """Returns a 64-bit hash (BLAKE2b) of each row's content, the same on every machine.

    Args:
        contents: the N rows, each as bytes that are equal for equal rows.

    Example:
        >>> one, other, again = content_hashes([b"a", b"b", b"a"])
        >>> bool(one == again), bool(one == other)
        (True, False)
    """
    digests = (hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def tensor_hashes(rows: Shaped[Tensor, "N *shape"]) -> UInt64[np.ndarray, " N"]:
    """Returns a 64-bit hash of the numbers of each row, on the CPU.

    Example:
        >>> import torch
        >>> one, other = tensor_hashes(torch.tensor([[0.0], [-0.0]]))
        >>> bool(one == other)
        True
    """
    flat = rows.reshape(len(rows), -1).numpy() + 0  # turns -0.0, which equals 0.0, into it
    return content_hashes(row.tobytes() for row in flat)
