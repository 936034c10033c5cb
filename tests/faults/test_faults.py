"""Faults at calls to the disk; `benchmarks/trust/faults.py` makes them all, here is a sample."""

import ast
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "trust"))

from injection import (
    ENDS,
    FAILS,
    KINDS,
    SUBJECTS,
    Call,
    DiedError,
    Disk,
    Fault,
    faults,
    hastened,
    problems_after,
    undisturbed,
    unread,
)

import kinfold
from kinfold import disk, files
from kinfold.cli import main

EVERY = 29
"""One in so many faults is made here; no period of the calls of a run, so it comes by all of them."""

SOURCE = Path(kinfold.__file__).parent


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Call]]]:
    """Each subject done undisturbed, and the calls to the disk that it takes."""
    folder = tmp_path_factory.mktemp("wholes")
    return {name: (folder / name, undisturbed(subject, folder / name)) for name, subject in SUBJECTS.items()}


def sample(calls: list[Call], kind: str, every: int) -> list[Fault]:
    return faults(calls, kind)[len(kind) % every :: every]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["stages and a student", "transfers"])
def test_nothing_is_lost_and_nothing_differs(
    tmp_path: Path, wholes: dict[str, tuple[Path, list[Call]]], name: str, kind: str
) -> None:
    whole, calls = wholes[name]
    made = sample(calls, kind, EVERY)
    assert made
    for number, fault in enumerate(made):
        assert problems_after(SUBJECTS[name], whole, tmp_path / str(number), fault) == []


def test_nothing_of_a_comparison_is_lost(tmp_path: Path, wholes: dict[str, tuple[Path, list[Call]]]) -> None:
    whole, calls = wholes["comparison"]
    for number, kind in enumerate(KINDS):
        fault = random.Random(number).choice(faults(calls, kind))
        assert problems_after(SUBJECTS["comparison"], whole, tmp_path / kind, fault) == []


def test_a_run_that_ends_again_on_resuming(tmp_path: Path, wholes: dict[str, tuple[Path, list[Call]]]) -> None:
    whole, calls = wholes["stages and a student"]
    draws = random.Random(0)
    for number in range(4):
        twice = [draws.choice(faults(calls, kind)) for kind in draws.sample(list(ENDS), 2)]
        assert problems_after(SUBJECTS["stages and a student"], whole, tmp_path / str(number), *twice) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_fault(tmp_path: Path, wholes: dict[str, tuple[Path, list[Call]]], name: str, kind: str) -> None:
    whole, calls = wholes[name]
    for number, fault in enumerate(faults(calls, kind)):
        assert problems_after(SUBJECTS[name], whole, tmp_path / str(number), fault) == []


def test_what_is_not_atomic_is_found(
    tmp_path: Path, wholes: dict[str, tuple[Path, list[Call]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: files written in place are found to be neither old nor new."""

    def write_in_place(path: Path, *parts: bytes) -> None:
        disk.make_folders(path.parent)
        descriptor = disk.open_new(path)
        disk.write(descriptor, b"".join(parts))
        os.close(descriptor)

    monkeypatch.setattr(files, "write_bytes", write_in_place)
    whole, _ = wholes["transfers"]
    for name in ("result.json", "checkpoints/period-000002.safetensors"):
        fault = Fault("short write", Call("write", name, 1))
        assert problems_after(SUBJECTS["transfers"], whole, tmp_path / name, fault)


def test_what_is_not_flushed_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    """Likewise: a new name may be lost until its folder is flushed, and what was written until its file is."""

    def written(path: Path, *flushes: str) -> None:
        descriptor = disk.open_new(path)
        disk.write(descriptor, b"x" * 1000)
        if "file" in flushes:
            disk.sync(descriptor)
        os.close(descriptor)
        if "folder" in flushes:
            disk.sync_folder(path.parent)

    def work(out: Path) -> None:
        disk.make_folders(out)
        written(out / "both", "file", "folder")
        written(out / "folder", "folder")
        written(out / "file", "file")
        disk.make_folder(out / "last")

    lengths: dict[str, set[int]] = {"both": set(), "file": set(), "folder": set()}
    for number in range(30):
        out = tmp_path / str(number)
        last = Call("make_folder", "last", 1)
        with pytest.raises(DiedError), Disk(out, Fault("power cut", last), seed=number).between():
            work(out)
        for name, seen in lengths.items():
            seen.add((out / name).stat().st_size if (out / name).exists() else -1)
    assert lengths["both"] == {1000}
    assert lengths["file"] == {-1, 1000}
    assert min(lengths["folder"]) >= 0
    assert min(lengths["folder"]) < 1000


@pytest.mark.parametrize("kind", FAILS)
def test_the_command_says_it_in_one_line_and_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "run"
    asked = ["train", "iris", "--tasks", "2", "--epochs", "3", "--transfer", "none", "--quiet", "--out", str(out)]
    number, _ = FAILS[kind]
    name = "rename" if kind == "input/output error" else "open_new"
    call = Call(name, "model.safetensors" if name == "rename" else ".model.safetensors.PID.part", 1)
    with hastened(), Disk(out, Fault(kind, call)).between() as between:
        assert main(asked) == 1
    assert between.struck
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"out: {out} cannot be written to ({os.strerror(number)}); mend that" in said.err
    assert unread(out) == []
    assert main([*asked, "--resume"]) == 0
    assert (out / "report.html").exists()


def test_a_directory_that_cannot_be_written_to_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "run"
    for kind, call in (("read-only", Call("open_end", ".lock", 1)), ("no permission", Call("make_folder", ".", 1))):
        with Disk(out, Fault(kind, call)).between():
            assert main(["train", "iris", "--tasks", "2", "--quiet", "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"out: {out} cannot be written to ({os.strerror(FAILS[kind][0])})" in said
        assert not out.parent.exists()


_WRITES = {"write_text", "write_bytes", "mkdir", "makedirs", "rmdir", "unlink", "rename", "savefig", "rmtree", "touch"}
_CALLS_OF_OS = {"open", "replace", "remove", "truncate", "ftruncate"}
_ELSEWHERE = {
    "disk.py": "the seam itself",
    "cli/__init__.py": "standard output is turned to nowhere",
    "comparing/drawing.py": "into memory",
    "data/fetch.py": "the cache of public data, with checksums and a lock of its own",
    "data/hubs.py": "the cache of public data, as the hub's own package writes it",
    "data/public.py": "likewise, while it is made",
    "data/table.py": "columns get other names",
    "previewing.py": "a temporary file, read again at once",
    "report/figures.py": "into memory",
    "tracking/mlflow.py": "the tracker's own store",
    "tracking/telling.py": "takes back what trackers have begun",
    "tracking/wandb.py": "the tracker's own store",
}
"""Files of the package that write, or seem to, without `kinfold.disk`: nothing that a run could lose."""


def _writes(path: Path) -> list[str]:
    """What in a file of the package seems to change the disk."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = [*node.args, *[keyword.value for keyword in node.keywords]]
        modes = {each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)}
        opens = bool(modes & {"w", "wb", "a", "ab", "x", "xb", "r+", "r+b"})
        if isinstance(node.func, ast.Attribute):
            name, of = node.func.attr, getattr(node.func.value, "id", "")
            seam = of in ("files", "disk")
            changes = name in _WRITES or (name == "open" and opens) or (of == "os" and name in _CALLS_OF_OS)
        else:  # a function of `kinfold.files` by its name, or the built-in `open`
            name, of, seam = getattr(node.func, "id", ""), "", False
            changes = name in ("save_file", "mkstemp") or (name == "open" and opens)
        if changes and not seam:
            found.append(f"{of}.{name} in line {node.lineno}")
    return found


def test_what_a_run_writes_goes_through_the_seam() -> None:
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name not in _ELSEWHERE and _writes(path):
            found[name] = _writes(path)
    assert found == {}
