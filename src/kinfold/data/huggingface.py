"""Data sets of Hugging Face `datasets`: in memory, and as `save_to_disk` leaves them in a folder."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
        return part_of(found, part or "train", str(folder))
    if part is not None:
        raise InputError(f"data: {folder} is not divided into parts; leave ':{part}' out.")
    return found


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
    values = rows[target]
    feature = rows.features[target]
    if isinstance(feature, module.ClassLabel):
        numbers = np.array([-1 if value is None else value for value in values])
        if (numbers < 0).any():
            row = int((numbers < 0).argmax())
            raise InputError(f"data: {source}: row {row} has no label; drop it, or choose a part that has them.")
        values = [feature.names[number] for number in numbers]
    else:
        values = list(values)
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
        InputError: several columns of pictures, or pictures that differ in size.
    """
    module = sys.modules["datasets"]
    names = [name for name in rows.features if name not in without]
    pictures = [name for name in names if isinstance(rows.features[name], module.Image)]
    if len(pictures) == 1 and not beside:
        images: Images = stacked_pictures(
            (row[pictures[0]] for row in rows.select_columns(pictures)), len(rows), source
        )
        return images
    if pictures:
        raise InputError(f"data: {source}: pictures stand beside {', '.join((*pictures[1:], *beside))}; leave one out.")
    frame = rows.select_columns(names).to_pandas()
    for name in names:
        feature = rows.features[name]
        if isinstance(feature, module.ClassLabel):
            known = dict(enumerate(feature.names))
            frame[name] = frame[name].map(known)
    return frame
