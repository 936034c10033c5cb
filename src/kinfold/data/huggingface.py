"""Data sets of Hugging Face `datasets`: in memory, and as `save_to_disk` leaves them in a folder."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinfold.data.image_files import named_picture, open_image
from kinfold.data.pictures import Images, stacked_pictures
from kinfold.errors import InputError, unknown
from kinfold.importing import one_line

_ONE, _SEVERAL = "state.json", "dataset_dict.json"


def is_rows(source: Any) -> bool:
    """Returns whether this is a part of a data set, a `datasets.Dataset`."""
    module = sys.modules.get("datasets")  # where it was never imported, nobody can hold one
    return module is not None and isinstance(source, module.Dataset)


def is_parts(source: Any) -> bool:
    """Returns whether these are the parts of a data set by name, a `datasets.DatasetDict`."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(source, module.DatasetDict)


def is_saved(folder: Path) -> bool:
    """Returns whether a folder is one that `save_to_disk` wrote."""
    return (folder / _SEVERAL).is_file() or all((folder / name).is_file() for name in (_ONE, "dataset_info.json"))


def from_disk(folder: Path, part: str | None = None) -> Any:
    """Returns a part of a saved data set: the one called `part`, by default `train`, or all there is.

    Raises:
        InputError: datasets is not installed, the folder is damaged, or there is no such part.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"data: {folder} needs datasets; install it by: pip install 'kinfold[huggingface]'.") from None
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow has many errors for a damaged file
        raise InputError(f"data: {folder} is damaged ({one_line(error)}); remove it, and write it again.") from None
    if is_parts(found):
        return _checked(part_of(found, part or "train", str(folder)), folder)
    if part is not None:
        raise InputError(f"data: {folder} is not divided into parts; leave ':{part}' out.")
    return _checked(found, folder)


def _checked(rows: Any, folder: Path) -> Any:
    """Returns a saved part, whose files may be anybody's, if nothing in it leads elsewhere."""
    try:
        rows.data.table.validate(full=True)  # Arrow trusts what it reads: offsets that lead out of its memory
    except Exception as error:
        raise InputError(f"data: {folder} is damaged ({one_line(error)}); remove it, and write it again.") from None
    for name, feature in rows.features.items():
        chunks = rows.data.column(name).chunks if isinstance(feature, sys.modules["datasets"].Image) else ()
        if any(chunk.field("bytes").null_count for chunk in chunks):  # an address may be named, and would be fetched
            raise InputError(
                f"data: {folder}: column {name!r} has rows without a picture, or that name one elsewhere; write it "
                "again with the pictures in it (save_to_disk)."
            )
    return rows


def part_of(parts: Mapping[str, Any], part: str, source: str) -> Any:
    """Returns a part of a data set by name.

    Raises:
        InputError: there is no such part.
    """
    if part not in parts:
        raise InputError(f"data: {source}: has no part {part!r}; it has {', '.join(parts)}.")
    return parts[part]


def labelled(rows: Any, target: str | None, beside: Sequence[str], source: str) -> tuple[Any, Any, str | None]:
    """Returns the features and the target of a part.

    Args:
        rows: the part.
        target: the column to predict; by default the only one of class labels.
        beside: columns that are no features, such as groups.
        source: what the user called it, for messages.

    Returns:
        (pixels, or a table that keeps the columns `beside`; targets as they are written; the target's name).

    Raises:
        InputError: no such column, none is named and there is not one of labels, or a row without a label.
    """
    module = sys.modules["datasets"]
    if target is None:
        classes = [name for name, feature in rows.features.items() if isinstance(feature, module.ClassLabel)]
        if len(classes) != 1:
            raise InputError(f"target: name the column of {source} to predict. Columns: {', '.join(rows.features)}.")
        target = classes[0]
    if target not in rows.features:
        raise unknown("target", target, rows.features)
    values = rows.select_columns([target]).with_format("arrow")[:][target].to_pylist()  # nothing is decoded
    feature = rows.features[target]
    if isinstance(feature, module.ClassLabel):
        numbers = np.array([-1 if value is None else value for value in values])
        unlabelled = (numbers < 0) | (numbers >= len(feature.names))
        if unlabelled.any():
            row = int(unlabelled.argmax())
            raise InputError(f"data: {source}: row {row} has no label; drop it, or choose a part that has them.")
        values = [feature.names[number] for number in numbers]
    return features_of(rows, source, (target,), beside), values, target


def features_of(rows: Any, source: str, without: Sequence[str] = (), beside: Sequence[str] = ()) -> Any:
    """Returns the features of a part: pixels, where one column holds pictures; else a table.

    Columns beside the pictures are left out. Class labels are their names.

    Args:
        rows: the part.
        source: what the user called it, for messages.
        without: columns that are left out.
        beside: columns that must stay, which pictures have no place for.

    Raises:
        InputError: several columns of pictures, pictures that differ in size, or one that cannot be read.
    """
    module = sys.modules["datasets"]
    names = [name for name in rows.features if name not in without]
    pictures = [name for name in names if isinstance(rows.features[name], module.Image)]
    if len(pictures) == 1 and not beside:
        return _pictures(rows, pictures[0], source)
    if pictures:
        raise InputError(f"data: {source}: pictures stand beside {', '.join((*pictures[1:], *beside))}; leave one out.")
    frame = rows.select_columns(names).to_pandas()
    for name in names:
        feature = rows.features[name]
        if isinstance(feature, module.ClassLabel):
            known = dict(enumerate(feature.names))
            frame[name] = frame[name].map(known)
    return frame


def _pictures(rows: Any, column: str, source: str) -> Images:
    """Decodes a column of pictures, by the decoders that picture files are read with; none is fetched from anywhere."""
    from PIL.ImageOps import exif_transpose

    module = sys.modules["datasets"]
    mode = rows.features[column].mode
    held = rows.select_columns([column]).with_format(None).cast_column(column, module.Image(mode=mode, decode=False))

    def decoded() -> Iterator[Any]:
        for number, row in enumerate(held):
            picture = row[column]
            if picture is None:
                raise InputError(f"data: {source}: row {number} has no picture; drop it.")
            content: Path | bytes = Path(picture["path"] or "") if picture["bytes"] is None else picture["bytes"]
            called = f"data: {source}: row {number}" if isinstance(content, bytes) else str(content)
            with open_image(content, called) as image, named_picture(content, called):
                upright = exif_transpose(image)
                yield upright if mode in (None, upright.mode) else upright.convert(mode)

    images: Images = stacked_pictures(decoded(), len(held), source)
    return images
