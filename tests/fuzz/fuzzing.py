"""What the fuzzers read: every reader of files as a target, and the judge of what it does with a hostile one.

A reader may do two things with a file: read it, or refuse it with an `InputError` of one line. Anything else is a
finding: another exception, ten seconds of processor time, a file written or removed outside of the target's own
folder, a process started, a socket opened, a module asked for that is none of the readers' own (`_OWN`).
"""

import gzip
import importlib.util
import io
import os
import random
import shutil
import signal
import struct
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import sklearn.utils.extmath  # noqa: F401  # of columns of text; now, since it asks for much
import torch
import torchmetrics  # noqa: F401  # now, since with it comes matplotlib, which makes a folder of its own

from kinfold.checkpoint import Checkpoints
from kinfold.cli.keys import KEYS, configured
from kinfold.cli.train import TRAIN
from kinfold.data import feature_paths, read, read_features
from kinfold.data.audio import read_wav
from kinfold.data.image_files import ImageFiles
from kinfold.data.npz import from_npz
from kinfold.data.text_files import JSON_TARGET
from kinfold.errors import InputError
from kinfold.files import read_yaml
from kinfold.fitting import _check_checkpoint
from kinfold.importing import only_parts
from kinfold.report import write_report
from kinfold.result import load
from kinfold.splits import load_splits
from kinfold.tracking.history import HistoryFile

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10
"""How much of the processor's time a reader may take for one file."""

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A reader, and what is put before it.

    Attributes:
        file: what the hostile file is called, and where in the target's folder it lies.
        read: reads it, given its path.
        packed: makes the file of the fuzzer's bytes, where these are what is inside of it.
        beside: makes what lies beside it, once, given the target's folder.
    """

    file: str
    read: Read
    packed: Callable[[bytes], bytes] = bytes
    beside: Callable[[Path], None] = lambda folder: None


def _table(path: Path, target: str | None = "y") -> None:
    _held(read_features(path))
    dataset = read(path, target=target)
    dataset.fit(np.arange(len(dataset)))
    dataset.fingerprints()


def _held(features: Any) -> None:
    """Touches all of what may be mapped from a file."""
    if isinstance(features, (np.ndarray, torch.Tensor)):
        assert np.asarray(features).tobytes() is not None


def _labelled(path: Path) -> None:
    dataset = read(path)
    dataset.fit(np.arange(len(dataset)))
    dataset.fingerprints()
    _held(read_features(path))


def _picture(path: Path) -> None:
    files = ImageFiles([path])
    files.pixels((3, 8, 8))
    assert feature_paths(files) == (path,)


def _zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", content)
        archive.writestr("y.npy", _npy(np.array([0, 1, 0])))
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _parts(path: Path) -> None:
    """Makes every part that a run directory's configuration names, as resuming does."""
    from kinfold.assembling import _rule, _several
    from kinfold.candidates import CANDIDATES, Candidate
    from kinfold.config import resolve
    from kinfold.methods import METHODS, Method
    from kinfold.models import factory
    from kinfold.parts import LOSSES, METRICS, optimizer_maker, scheduler_maker

    config = read_yaml(path)
    makers: Mapping[str, Callable[[Any], object]] = {
        "transfer": _rule,
        "methods": lambda spec: _several("methods", spec, METHODS, Method),
        "candidates": lambda spec: _several("candidates", spec, CANDIDATES, Candidate),
        "loss": lambda spec: resolve("loss", spec, LOSSES),
        "metric": lambda spec: resolve("metric", spec, METRICS),
        "optimizer": optimizer_maker,
        "scheduler": lambda spec: scheduler_maker(spec, 3),
        "model": lambda spec: factory(spec, (3,), 2) if isinstance(spec, (str, dict)) else None,
        "data": lambda spec: read(spec) if isinstance(spec, str) and ":" in spec else None,
    }
    with only_parts("run"):
        for name, spec in config.items() if isinstance(config, dict) else ():
            if name in makers:
                makers[name](spec)


def _run_directory(folder: Path) -> None:
    for name in ("config.yaml", "history.jsonl", "model.json", "model.safetensors", "result.json", "splits"):
        seed = CORPUS / name / "seed-0"
        folder.joinpath("splits.safetensors" if name == "splits" else name).write_bytes(seed.read_bytes())


def _run(path: Path, *, report: bool = False) -> None:
    result = load(path.parent)
    frame = pd.DataFrame({"a": [0.0, 1.0], "b": ["u", "w"]})
    result.predict(frame)
    result.to_json()
    if report:
        write_report(path.parent)


def _configured(path: Path) -> None:
    configured(TRAIN, KEYS, {"resume": False, "config": str(path)})


def _saved_rows(folder: Path) -> None:
    """A folder as `save_to_disk` of `datasets` leaves it, of pictures or of a table, but for its rows."""
    for path in (CORPUS / "saved-rows-beside").iterdir():
        folder.joinpath(path.name).write_bytes(path.read_bytes())


def _of_saved(path: Path) -> None:
    dataset = read(path.parent)
    dataset.fit(np.arange(len(dataset)))
    dataset.fingerprints()


def _checkpoint(path: Path) -> None:
    saved = Checkpoints(path.parent).latest()
    assert saved is not None
    _check_checkpoint(saved[1], 1, path.parent)


TARGETS: Mapping[str, Target] = {
    "csv": Target("a.csv", _table),
    "tsv": Target("a.tsv", partial(_table, target=None)),
    "tab": Target("a.tab", partial(_table, target=None)),
    "jsonl": Target("a.jsonl", partial(_table, target=JSON_TARGET)),
    "ts": Target("a.ts", _labelled),
    "parquet": Target("a.parquet", _table),
    "arrow": Target("a.arrow", _table),
    "saved rows": Target("data-00000-of-00001.arrow", _of_saved, beside=_saved_rows),
    "npz": Target("a.npz", _labelled),
    "npz member": Target("a.npz", from_npz, _zipped),
    "npy": Target("X.npy", _labelled, beside=lambda folder: np.save(folder / "y.npy", np.array([0, 1, 0]))),
    "idx": Target(
        "images-idx3-ubyte",
        _labelled,
        beside=lambda folder: folder.joinpath("labels-idx1-ubyte").write_bytes(
            struct.pack(">BBBBI", 0, 0, 8, 1, 4) + bytes([0, 1, 0, 1])
        ),
    ),
    "idx.gz": Target("a.idx.gz", read_features),
    "idx.gz content": Target("a.idx.gz", read_features, partial(gzip.compress, compresslevel=1)),
    "cifar": Target("test_batch.bin", _labelled),
    "image": Target("a.png", _picture),
    "wav": Target("a.wav", read_wav),
    "yaml": Target("a.yaml", read_yaml),
    "config": Target("config.yaml", _configured),
    "parts of a run": Target("config.yaml", _parts),
    "splits": Target("splits.safetensors", load_splits),
    "checkpoint": Target("period-000002.safetensors", _checkpoint),
    "history.jsonl": Target("history.jsonl", lambda path: HistoryFile(path, through=1)),
    "result.json": Target("result.json", _run, beside=_run_directory),
    "model.json": Target("model.json", _run, beside=_run_directory),
    "model.safetensors": Target("model.safetensors", _run, beside=_run_directory),
    "config.yaml": Target("config.yaml", _run, beside=_run_directory),
    "report": Target("result.json", partial(_run, report=True), beside=_run_directory),
}
if importlib.util.find_spec("datasets") is None:
    TARGETS = {name: target for name, target in TARGETS.items() if name != "saved rows"}
"""Every reader, by name. Those of a run directory are given the files of a small run, one of them hostile."""


def seeds(name: str) -> list[bytes]:
    """Returns the inputs that are kept for a target."""
    folder = CORPUS / {"report": "result.json"}.get(name, name.replace(" ", "-"))
    return [path.read_bytes() for path in sorted(folder.iterdir())]


class Hang(BaseException):
    """A reader took more than `SECONDS`."""


class Judge:
    """Puts inputs before one target, in a folder of its own.

    Args:
        name: of the target.
        folder: an empty folder.
    """

    def __init__(self, name: str, folder: Path):
        self.target, self.folder = TARGETS[name], folder
        self.target.beside(folder)
        self.path = folder / self.target.file

    def verdict(self, content: bytes) -> str:
        """Returns `read`, `refused`, or a finding: what happened, and where."""
        self.path.write_bytes(self.target.packed(content))
        before = torch.random.get_rng_state()
        try:
            with warnings.catch_warnings(), _guarded(self.folder) as seen, _within_time():
                warnings.simplefilter("ignore")
                self.target.read(self.path)
            said = "read"
        except InputError as error:
            text = str(error)
            said = "refused" if len(text.splitlines()) == 1 else f"message of several lines: {text!r}"
        except Hang:
            said = "hang"
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "kinfold" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            said = f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:120]}"
        if seen:
            said = f"did {seen[0]}"
        if not torch.equal(before, torch.random.get_rng_state()):
            said = "moved the global random state"
        return said


_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.bind")
_CHANGING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"}
_watched: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or not (event == "open" or event in _CHANGING or event in _FORBIDDEN):
        return
    folder, seen = _watched[-1]
    if event in _FORBIDDEN:
        seen.append(f"{event} {arguments[:2]!r}"[:200])
    elif event != "open" or _writes(*arguments[1:3]):
        for path in arguments[:1] if event == "open" else arguments[:2]:
            if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor, whose file was opened before
                continue
            there = Path(os.fsdecode(path)).absolute()
            cached = "__pycache__" in there.parts  # of a module that is imported for the first time
            if not cached and there not in _NOWHERE and not there.is_relative_to(folder):
                seen.append(f"{event} {there}"[:200])


class _Asked:
    """Sees every module that is asked for and not there yet, and finds none: of a call of importlib no hook hears."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        root = name.partition(".")[0]
        if _watched and root not in _OWN and root not in sys.stdlib_module_names and root not in _before:
            _watched[-1][1].append(f"import {name}"[:200])


def _writes(mode: object, flags: object) -> bool:
    """Whether a file is opened for writing: by `open`, which has a mode, or by `os.open`, which has flags alone."""
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


_NOWHERE = (Path(os.devnull),)
_OWN = {
    *("kinfold", "torch", "torchmetrics", "numpy", "pandas", "pyarrow", "PIL", "yaml", "safetensors", "jsonargparse"),
    *(
        "pydantic",
        "docstring_parser",
        "typeshed_client",
        "omegaconf",
        "jsonschema",
        "typing_extensions",
        "importlib_metadata",
    ),
    *("scipy", "sklearn", "matplotlib", "datasets", "beartype", "jaxtyping", "olefile", "defusedxml", "attr", "attrs"),
}
_before = {name.partition(".")[0] for name in sys.modules}
"""What the readers import when they need it; and what was there before they were called."""


@contextmanager
def _guarded(folder: Path) -> Iterator[list[str]]:
    """Gives what was done that no reader may do; an audit hook cannot be taken out again, so one is shared."""
    if not getattr(sys, "_kinfold_fuzzing", False):
        sys.addaudithook(_hook)
        sys._kinfold_fuzzing = True  # type: ignore[attr-defined]
    _watched.append((folder.absolute(), []))
    asked: Any = _Asked()
    sys.meta_path.insert(0, asked)
    try:
        yield _watched[-1][1]
    finally:
        sys.meta_path.remove(asked)
        _watched.pop()


@contextmanager
def _within_time() -> Iterator[None]:
    """Raises `Hang` after so much of the processor's time: of the wall's there is less where others compute, too."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def mutated(kept: list[bytes], rng: random.Random) -> bytes:
    """Returns an input made of kept ones by a few changes at random: to bits, numbers, tokens and pieces."""
    content = bytearray(rng.choice(kept))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 2, 4, 8, 64)))
        change = rng.randrange(7)
        if change == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif change == 1 and at < len(content):
            content[at] = rng.randrange(256)
        elif change == 2:
            content[at:end] = rng.choice(TOKENS)
        elif change == 3:
            content[at:at] = rng.choice(TOKENS)
        elif change == 4:
            del content[at:end]
        elif change == 5:
            content[at:at] = content[at:end] * rng.choice((1, 2, 50))
        else:
            other = rng.choice(kept)
            start = rng.randrange(len(other) + 1)
            content[at:end] = other[start : start + rng.choice((1, 8, 64, len(other)))]
    return bytes(content)


TOKENS = (
    *(struct.pack(form, value) for form in ("<I", ">I", "<Q") for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)),
    *(
        b"\x00",
        b"\xff",
        b"\n",
        b"\r",
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b":",
        b"[",
        b"]",
        b"{",
        b"}",
        b"&a ",
        b"*a",
        b"- ",
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 2000,
        b"9" * 5000,
        b"-1",
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"null",
        b"true",
        b"0x7fffffff",
    ),
    *(b"!!python/object/apply:os.system [true]", b"!!int ''", b"!!timestamp x", b"!!bool x", b"<<: *x", b"1:1:1:1"),
    *(
        b"class_path: torch:os.system",
        b"../../x",
        b"/etc/passwd",
        b"mine:run",
        b"torch.hub:load",
        b"kinfold.files:write_text",
    ),
    *(
        "é\u2028\u202e".encode(),
        b"\xef\xbb\xbf",
        b"?",
        b"=1+1",
        b"1_000",
        "٣".encode(),
        b"$x^{$",
        b"<script>",
        b"\x1b[31m",
    ),
    *(
        b"|O",
        b"'|V9999999'",
        b"'descr': '<f8'",
        b"(1000000000000,)",
        b"(-1,)",
        b"True",
        b"@data\n",
        b"@timeStamps true\n",
    ),
)
"""What is put into inputs: extremes of numbers, signs that mean something, names that ask for what is not theirs."""


@contextmanager
def workplace(name: str, parent: Path) -> Iterator[Judge]:
    """Gives the judge of a target, in a folder below `parent` that is removed in the end."""
    folder = parent / name.replace(" ", "-")
    folder.mkdir()
    try:
        yield Judge(name, folder)
    finally:
        shutil.rmtree(folder)
