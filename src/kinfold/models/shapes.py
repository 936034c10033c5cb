"""What a structure asks of the shape of its rows."""

from kinfold.errors import InputError


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Returns `input_shape` as (channels, height, width).

    Args:
        name: the structure, for the message.
        input_shape: the shape of one row.
        smallest: the least height and width that the structure can take.

    Raises:
        InputError: rows are no images, or images that are too small.

    Example:
        >>> image_shape("lenet5", (1, 28, 28), 8)
        (1, 28, 28)
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"model: {name} needs images of shape [channels, height, width], {smallest} pixels a side or more; "
            f"the rows have shape {list(input_shape)}: reshape them or choose mlp."
        )
    channels, height, width = input_shape
    return channels, height, width
