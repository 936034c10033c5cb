"""Splits: rows sealed first, then T pairs of training and validation rows from the rest, and an audit of them.

Example:
    >>> import numpy as np
    >>> info = RowInfo(np.arange(100) % 3, classes=3)
    >>> splits = draw_splits(info, None, tasks=4, val_fraction=0.2, holdout=0.1, seed=0)
    >>> splits.tasks, int(splits.sealed.sum()), splits.validation.sum(axis=1)
    (4, 10, array([18, 18, 18, 18]))
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from kinfold import config
from kinfold.errors import InputError, unknown
from kinfold.splits.audit import Finding, audit
from kinfold.splits.base import RowInfo, Splits, Splitter
from kinfold.splits.drawn import Drawn
from kinfold.splits.grouped import Grouped
from kinfold.splits.kfold import RepeatedStratifiedKFold
from kinfold.splits.ordered import Ordered
from kinfold.splits.pick import check_share, check_whole
from kinfold.splits.saved import Saved, load_splits, save_splits
from kinfold.splits.seal import seal
from kinfold.splits.shuffle import Shuffle
from kinfold.splits.stratified import Stratified
from kinfold.splits.wrapped import SklearnSplitter, Wrapped

__all__ = [
    "SPLITTERS",
    "Drawn",
    "Finding",
    "Grouped",
    "Ordered",
    "RepeatedStratifiedKFold",
    "RowInfo",
    "Saved",
    "Shuffle",
    "Splits",
    "Splitter",
    "Stratified",
    "Wrapped",
    "audit",
    "draw_splits",
    "load_splits",
    "resolve",
    "save_splits",
    "seal",
]

SPLITTERS: dict[str, type[Shuffle | Stratified | RepeatedStratifiedKFold | Grouped | Ordered]] = {
    "random": Shuffle,
    "shuffle": Shuffle,
    "stratified": Stratified,
    "kfold": RepeatedStratifiedKFold,
    "grouped": Grouped,
    "ordered": Ordered,
}
"""The splitters that have a name, and are made from plain values."""


def resolve(spec: object, *, val_fraction: float | int, info: RowInfo) -> Splitter:
    """Returns the splitter that `spec` means.

    Args:
        spec: None (`grouped` where rows have groups, else `ordered` where they have times, else `stratified` for
            classes and `shuffle` for regression); a name in `SPLITTERS`; a mapping of `name` and the splitter's
            arguments, or of `class_path` and `init_args`; `package.module:Class`; a path that ends in `.safetensors`;
            `Splits`; a `Splitter`; or a scikit-learn splitter.
        val_fraction: share of the unsealed rows to validate on, for splitters that take it and do not state it.
        info: what is known of the rows.

    Raises:
        InputError: `spec` is none of these, or an argument in it is unknown or out of range.

    Example:
        >>> resolve({"name": "kfold", "folds": 3}, val_fraction=0.2, info=RowInfo(np.zeros(9)))
        RepeatedStratifiedKFold(folds=3, repeats=2)
    """
    if spec is None:
        return resolve(_default(info), val_fraction=val_fraction, info=info)
    if isinstance(spec, Splitter):
        return spec
    if isinstance(spec, Splits) or (isinstance(spec, (str, Path)) and Path(spec).suffix == ".safetensors"):
        return Saved(spec)
    if (isinstance(spec, Mapping) and "class_path" in spec) or (isinstance(spec, str) and ":" in spec):
        made = config.resolve("splits", spec, {})
        if not isinstance(made, Splitter | Splits | SklearnSplitter) or isinstance(made, type):
            raise InputError(f"splits: {spec} makes a {type(made).__name__}; name a splitter's class.")
        return resolve(made, val_fraction=val_fraction, info=info)
    if isinstance(spec, Mapping):
        return _named(spec.get("name"), {k: v for k, v in spec.items() if k != "name"}, val_fraction)
    if isinstance(spec, SklearnSplitter) and not isinstance(spec, type):
        return Wrapped(spec)
    return _named(spec, {}, val_fraction)


def _default(info: RowInfo) -> str:
    if info.groups is not None:
        return "grouped"
    if info.times is not None:
        return "ordered"
    return "shuffle" if info.classes is None else "stratified"


def _named(name: object, arguments: Mapping[str, object], val_fraction: float | int) -> Splitter:
    if not isinstance(name, str) or name not in SPLITTERS:
        raise unknown("splits", name, [*SPLITTERS, "FILE.safetensors"])
    splitter = SPLITTERS[name]
    arguments = config.arguments_of("splits", splitter, arguments)
    known = {field.name for field in fields(splitter)}
    shared = {"val_fraction": val_fraction} if "val_fraction" in known else {}
    return splitter(**{**shared, **arguments})  # each splitter checks its arguments


def draw_splits(
    info: RowInfo, spec: object, *, tasks: int, val_fraction: float | int, holdout: float | int, seed: int
) -> Splits:
    """Returns sealed rows and T splits of the rest.

    Args:
        info: what is known of the n rows.
        spec: how to split (see `resolve`).
        tasks: T, at least 1; a splitter with a number of its own (`kfold`, scikit-learn's, saved) goes before it.
        val_fraction: share of the unsealed rows that a task validates on, in (0, 1).
        holdout: share of the rows to seal, in [0, 1); saved splits keep their own sealed rows.
        seed: the seed that every draw is keyed by.

    Raises:
        InputError: an argument is out of range, a row has no group or time, the rows cannot be split this way, or
            a task would validate on a class that it does not train on.
    """
    check_whole("tasks", tasks, 1)
    check_share("val_fraction", val_fraction)
    check_share("holdout", holdout, zero=True)
    if info.classes == len(info) > 2:
        raise InputError(
            f"target: each of the {len(info)} rows has a label of its own, so none can be learned; "
            "name a column of classes, or of numbers with kind regression."
        )
    for argument, values in (("groups", info.groups), ("times", info.times)):
        if values is not None and pd.isna(values).any():
            raise InputError(f"{argument}: row {pd.isna(values).argmax()} has none; fill it in or drop the row.")
    splitter = resolve(spec, val_fraction=val_fraction, info=info)
    splits = splitter.draw(info, tasks=tasks, holdout=holdout, seed=seed)
    untrained = (info.class_counts(splits.validation) > 0) & (info.class_counts(splits.train) == 0)
    if untrained.any():
        task, number = np.argwhere(untrained)[0].tolist()
        raise InputError(
            f"splits: task {task} validates on class {info.label(number)} and has no training row of it; "
            "use 'stratified', or give more rows of the class or drop it."
        )
    return splits
