"""What a structure asks of the shape of its rows."""

from kinfold.errors import InputError

SMALL_IMAGE = 64
"""Below so many pixels on its shorter side, an image goes through a network's CIFAR form; else its ImageNet form."""


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


def series_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns `input_shape` as (channels, steps).

    Args:
        name: the structure, for the message.
        input_shape: the shape of one row.

    Raises:
        InputError: rows are no series.

    Example:
        >>> series_shape("fcn", (1, 500))
        (1, 500)
    """
    if len(input_shape) != 2:
        raise InputError(
            f"model: {name} needs series of shape [channels, steps]; the rows have shape {list(input_shape)}: "
            "reshape them or choose mlp."
        )
    channels, steps = input_shape
    return channels, steps


def text_shape(name: str, input_shape: tuple[int, ...], vocabulary: int | None) -> tuple[int, int]:
    """Returns (steps, vocabulary) of rows of token ids.

    Args:
        name: the structure, for the message.
        input_shape: the shape of one row.
        vocabulary: how many token ids there are, 0 (padding) included; None where the data does not say.

    Raises:
        InputError: rows are no lists of ids, or nobody says how many ids there are.

    Example:
        >>> text_shape("textcnn", (64,), 20000)
        (64, 20000)
    """
    if len(input_shape) != 1 or vocabulary is None:
        raise InputError(
            f"model: {name} needs rows of token ids, shape [steps], and the vocabulary's size; the rows have shape "
            f"{list(input_shape)} and vocabulary {vocabulary}: give texts, or vocabulary as an argument of the model."
        )
    if vocabulary < 2:
        raise InputError(f"model {name}: vocabulary is {vocabulary}; give 2 or more, padding included.")
    return input_shape[0], vocabulary


def table_shape(name: str, input_shape: tuple[int, ...]) -> int:
    """Returns how many numbers a row of a table has.

    Args:
        name: the structure, for the message.
        input_shape: the shape of one row.

    Raises:
        InputError: rows are of another shape.

    Example:
        >>> table_shape("tabular-resnet", (26,))
        26
    """
    if len(input_shape) != 1:
        raise InputError(
            f"model: {name} needs rows of a table, shape [columns]; the rows have shape {list(input_shape)}: "
            "flatten them or choose mlp."
        )
    return input_shape[0]


def check_dropout(name: str, **shares: float | int) -> None:
    """Checks the shares of values that training drops.

    Args:
        name: the structure, for the message.
        shares: each by the name of its argument.

    Raises:
        InputError: one is not from 0 to under 1.
    """
    for argument, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"model {name}: {argument} is {share}; give a share from 0 to under 1.")


def check_sizes(name: str, **sizes: int) -> None:
    """Checks widths, numbers of layers and the like.

    Args:
        name: the structure, for the message.
        sizes: each by the name of its argument.

    Raises:
        InputError: one is not a positive whole number.
    """
    for argument, size in sizes.items():
        if type(size) is not int or size < 1:
            raise InputError(f"model {name}: {argument} is {size!r}; give a positive whole number.")
