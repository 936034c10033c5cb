"""Pictures that a package hands out one by one, as one array."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from kinfold.errors import InputError

MAX_BYTES = 8 << 30
"""The most bytes of pixels that such pictures may have, since they are held in memory."""

Images: TypeAlias = UInt8[np.ndarray, "N H W"] | UInt8[np.ndarray, "N H W C"]


def stacked_pictures(pictures: Iterable[Any], count: int, source: str) -> Images:
    """Returns pictures (of Pillow, or arrays) as one array.

    Args:
        pictures: all of them.
        count: how many they are.
        source: what the user called them, for messages.

    Raises:
        InputError: there are none, they differ in shape, have not 8 bits a channel, or take more than `MAX_BYTES`.

    Example:
        >>> stacked_pictures([np.zeros((2, 3), dtype=np.uint8)] * 4, 4, "them").shape
        (4, 2, 3)
    """
    held: Any = None
    for row, picture in enumerate(pictures):
        image = np.asarray(picture)
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise InputError(f"data: {source}: row {row} is no picture of 8 bits a channel.")
        if held is None:
            if count * image.size > MAX_BYTES:
                raise InputError(f"data: {source}: {count} pictures like row 0 exceed {MAX_BYTES >> 30} GiB.")
            held = np.empty((count, *image.shape), dtype=np.uint8)
        if image.shape != held.shape[1:]:
            raise InputError(
                f"data: {source}: row {row} has shape {list(image.shape)} where row 0 has {list(held.shape[1:])}; "
                "save the pictures as a folder, from which they are read in one size."
            )
        held[row] = image
    if held is None:
        raise InputError(f"data: {source}: has no rows.")
    images: Images = held
    return images
