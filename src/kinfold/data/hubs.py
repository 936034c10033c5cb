"""Data sets of torchvision and of the Hugging Face hub, where these packages are installed.

`torchvision:CIFAR10` and `hf:NAME` are training parts, `torchvision:CIFAR10:test` and `hf:NAME:test` test parts. As
with `kinfold.data.public`, reading downloads nothing: `kinfold data get torchvision:CIFAR10` does.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kinfold.data.fetch import cache_root, locked, made_beside
from kinfold.data.huggingface import from_disk
from kinfold.data.pictures import Images, stacked_pictures
from kinfold.errors import InputError, unknown
from kinfold.importing import one_line

_TEST = ":test"


@dataclass(frozen=True)
class Hub:
    """A package that has data sets of its own.

    Attributes:
        module: what is imported of it.
        install: how it is installed.
        read: returns a part that is here, given the module, the set's name, the folder of the hub's sets, what the
            user called the part, and whether it is the test part.
        get: downloads a set, given the module, its name and the folder; returns False where it was here.
    """

    module: str
    install: str
    read: Callable[[Any, str, Path, str, bool], Any]
    get: Callable[[Any, str, Path], bool]


def read_hub(source: str, root: Path | None = None) -> Any:
    """Returns a part of a data set of a hub that was fetched before.

    Args:
        source: `torchvision:NAME` or `hf:NAME`, with `:test` behind it for the test part.
        root: the folder of the cache; default as `cache_root` says.

    Returns:
        (pixels, y) of torchvision; a `datasets.Dataset` of Hugging Face.

    Raises:
        InputError: the package is not installed, has no such set or part, or the set was not fetched.
    """
    hub, name, folder, module = _open(source, root)
    return hub.read(module, name, folder, source, source.endswith(_TEST))


def get_hub(source: str, root: Path | None = None) -> bool:
    """Downloads a data set of a hub into the cache, all its parts; returns False where it was here.

    Args:
        source: `torchvision:NAME` or `hf:NAME`.
        root: the folder of the cache; default as `cache_root` says.

    Raises:
        InputError: the package is not installed, has no such set, or cannot download it.
    """
    hub, name, folder, module = _open(source, root)
    try:
        return hub.get(module, name, folder)
    except InputError:
        raise
    except Exception as error:  # of the hub's package, which may raise anything where it is offline
        raise InputError(
            f"data: {source} could not be fetched ({one_line(error)}); check the name and the network."
        ) from None


def _open(source: str, root: Path | None) -> tuple[Hub, str, Path, Any]:
    prefix, _, name = source.removesuffix(_TEST).partition(":")
    hub = HUBS[prefix]
    try:
        module = importlib.import_module(hub.module)
    except ImportError:
        raise InputError(f"data: {source} needs {hub.module.partition('.')[0]}; {hub.install}.") from None
    except Exception as error:  # a torchvision that does not fit torch
        raise InputError(f"data: {source}: {hub.module} cannot be imported ({one_line(error)}).") from None
    return hub, name, cache_root(root) / prefix, module


def _missing(source: str) -> InputError:
    return InputError(f"data: {source} is not here yet; fetch it with: kinfold data get {source.removesuffix(_TEST)}.")


def _torchvision(module: Any, name: str, folder: Path, *, test: bool, download: bool) -> Any:
    """Returns a part as the map-style dataset that torchvision makes of it."""
    if name not in module.__all__:
        raise unknown("data: torchvision", name, module.__all__)
    make = getattr(module, name)
    parameters = inspect.signature(make).parameters
    if "train" in parameters:
        part: dict[str, Any] = {"train": not test}
    elif "split" in parameters:
        part = {"split": "test" if test else "train"}
    else:
        raise InputError(f"data: torchvision:{name} is not divided into training and test part; load it yourself.")
    return make(root=str(folder), download=download, **part)


def _read_torchvision(module: Any, name: str, folder: Path, source: str, test: bool) -> tuple[Images, list[Any]]:
    try:
        items = _torchvision(module, name, folder, test=test, download=False)
    except InputError:
        raise
    except (RuntimeError, FileNotFoundError):  # what torchvision raises for files that are not there, or not whole
        raise _missing(source) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"data: {source} cannot be made by name alone ({one_line(error)}).") from None
    labels = []

    def pictures() -> Iterator[Any]:
        for row in range(len(items)):
            picture, label = items[row]
            labels.append(label)
            yield picture

    return stacked_pictures(pictures(), len(items), source), labels


def _get_torchvision(module: Any, name: str, folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    for test in (False, True):
        _torchvision(module, name, folder, test=test, download=True)
    return True


def _read_hf(module: Any, name: str, folder: Path, source: str, test: bool) -> Any:
    del module  # it is there, which is all that was asked
    kept = folder / quote(name, safe="")
    if not kept.exists():
        raise _missing(source)
    return from_disk(kept, "test" if test else "train")


def _get_hf(module: Any, name: str, folder: Path) -> bool:
    kept = folder / quote(name, safe="")
    with locked(kept):
        if kept.exists():
            return False
        parts = module.load_dataset(name)
        with made_beside(kept) as fresh:
            parts.save_to_disk(str(fresh))
    return True


HUBS: Mapping[str, Hub] = {
    "torchvision": Hub("torchvision.datasets", "install kinfold[vision]", _read_torchvision, _get_torchvision),
    "hf": Hub("datasets", "install kinfold[huggingface]", _read_hf, _get_hf),
}
"""Every hub, by what its names begin with."""
