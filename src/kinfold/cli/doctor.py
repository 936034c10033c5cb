"""`kinfold doctor`: whether the installation works, on one screen."""

import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from jsonargparse import ArgumentParser

from kinfold._version import __version__
from kinfold.cli.base import Command, FailingError, Given, json_text
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.tracking.progress import printable

State: TypeAlias = Literal["ok", "note", "bad"]
_MARKS = {"ok": "ok", "note": "-", "bad": "BAD"}
_FOR_DEVELOPERS = ("dev", "bench")
_GIBIBYTE = 2**30
_LITTLE = 1.0
"""Gibibytes of free disk below which a note is made."""


@dataclass(frozen=True)
class Check:
    """What was looked at.

    Attributes:
        name: what.
        state: `ok`; `note`, where something is not there that need not be; `bad`, where Kinfold cannot be used so.
        found: what there is.
        fix: what to do about it, or None.
    """

    name: str
    state: State
    found: str
    fix: str | None = None


def _declare_doctor(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print what was found as JSON alone")


def _doctor(given: Given) -> str:
    checks = list(_checks())
    bad = [check for check in checks if check.state == "bad"]
    if given["json"]:
        text = json_text({"ready": not bad, "version": __version__, "checks": [asdict(check) for check in checks]})
    else:
        text = _screen(checks, ready=not bad)
    if bad:
        raise FailingError(f"not ready: {'; '.join(_line(check) for check in bad)}.", text)
    return text


def _screen(checks: list[Check], ready: bool) -> str:
    width = max(len(check.name) for check in checks) + 2
    lines = [f"{_MARKS[check.state]:5}{check.name:{width}}{printable(_line(check))}" for check in checks]
    return "\n".join([*lines, "", *(["Ready. To begin: kinfold train digits"] if ready else [])]).rstrip()


def _line(check: Check) -> str:
    return check.found if check.fix is None else f"{check.found}: {check.fix}"


def _checks() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Check("kinfold", "ok", f"{__version__}, {Path(__file__).parents[1]}")
    needed, extras = _requirements()
    if not needed:
        yield Check("packages", "note", "not known, since kinfold is not installed", "pip install kinfold")
    else:
        yield _packages(needed)
    found = list(_torch())
    yield from found
    yield _folder("disk", Path.cwd(), "bad")
    for extra, wanted in extras.items():
        yield _extra(extra, wanted)
    if found[0].state != "bad":  # what follows needs it
        yield _folder("cache", _cache(), "note")
        yield _training()


Wanted: TypeAlias = dict[str, str | None]
"""Names of packages → the oldest version that will do."""


def _requirements() -> tuple[Wanted, dict[str, Wanted]]:
    """What kinfold needs, and what each extra brings, as the installed package says it."""
    try:
        lines = metadata.requires("kinfold") or []
    except metadata.PackageNotFoundError:
        return {}, {}
    needed: Wanted = {}
    extras: dict[str, Wanted] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
        oldest = re.search(r">=\s*([\d.]+)", requirement)
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        into = needed if extra is None else extras.setdefault(extra[1], {})
        into[name] = None if oldest is None else oldest[1]
    return needed, {name: wanted for name, wanted in extras.items() if name not in _FOR_DEVELOPERS}


def _packages(wanted: Wanted) -> Check:
    problems = [problem for name, oldest in wanted.items() if (problem := _problem(name, oldest)) is not None]
    if problems:
        return Check("packages", "bad", "; ".join(problems), "pip install --upgrade kinfold")
    return Check("packages", "ok", f"all {len(wanted)} that it needs are there")


def _extra(extra: str, wanted: Wanted) -> Check:
    problems = [problem for name, oldest in wanted.items() if (problem := _problem(name, oldest)) is not None]
    if problems:
        return Check(extra, "note", "; ".join(problems), f"pip install 'kinfold[{extra}]'")
    return Check(extra, "ok", ", ".join(f"{name} {metadata.version(name)}" for name in wanted))


def _problem(name: str, oldest: str | None) -> str | None:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    if oldest is not None and _numbers(found) < _numbers(oldest):
        return f"{name} {found} is older than {oldest}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version.

    Example:
        >>> _numbers("2.13.0+cpu"), _numbers("1.0rc1")
        ((2, 13, 0), (1, 0))
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return () if found is None else tuple(int(number) for number in found[0].split("."))


def _torch() -> Iterator[Check]:
    try:
        import torch

        from kinfold.processes import usable_cpus
    except Exception as error:  # a library that it needs may be missing, or be another version's
        yield Check("torch", "bad", f"cannot be imported ({one_line(error)})", "pip install --force-reinstall torch")
        return
    build = torch.version.cuda or torch.version.hip
    cores = f"{torch.get_num_threads()} threads on {usable_cpus()} CPUs"
    yield Check("torch", "ok", f"{torch.__version__}, {cores}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = (size / _GIBIBYTE for size in torch.cuda.mem_get_info(i))
            yield Check("gpu", "ok", f"cuda:{i} {torch.cuda.get_device_name(i)}, {free:.1f} of {total:.1f} GiB free")
    elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        why = "this torch is built for CPUs alone" if build is None else f"torch {torch.__version__} cannot use it"
        yield Check("gpu", "note", f"there is one, but {why}", "see https://pytorch.org/get-started for your driver")
    else:
        yield Check("gpu", "note", "none; training runs on the CPU")


def _cache() -> Path:
    from kinfold.data.fetch import cache_root

    return cache_root()


def _folder(name: str, folder: Path, without: State) -> Check:
    """Whether a folder, or what it would be made in, can be written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / _GIBIBYTE
    found = f"{free:.1f} GiB free in {folder}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"kinfold")
    except OSError as error:
        fix = "set KINFOLD_DATA to a folder of yours" if name == "cache" else "work in a folder of yours"
        return Check(name, without, f"{there} cannot be written to ({error.strerror or one_line(error)})", fix)
    return Check(name, "note" if free < _LITTLE else "ok", found)


def _training() -> Check:
    """Trains for about a second, on what is there without any file."""
    began = time.perf_counter()
    try:
        from kinfold.fitting import fit

        result = fit("mlp", "digits", tasks=2, epochs=4, transfer="none", listen=lambda event: None)
    except InputError as error:
        return Check("training", "bad", f"failed ({one_line(error)})", "reinstall kinfold")
    except Exception as error:
        debug = "KINFOLD_DEBUG=1 kinfold train digits shows where"
        return Check("training", "bad", f"failed ({one_line(error)})", debug)
    estimate, seconds = result.estimate, time.perf_counter() - began
    assert estimate is not None  # rows are sealed by default
    found = f"2 networks on digits in {seconds:.1f} s, {estimate.metric} {estimate.value:.2f}, {result.engine}"
    if not estimate.value > 0.5:  # chance is 0.1
        return Check("training", "bad", found, "numbers come out wrong here; reinstall torch")
    return Check("training", "ok", found)


DOCTOR = Command("doctor", "Checks the installation, and trains for a second.", "", _declare_doctor, _doctor)
