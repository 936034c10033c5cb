"""The few calls by which a run changes the disk. All that Kinfold writes goes through here.

One seam, so that tests can stop a run at each of these calls, or let any of them fail.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path


def make_folder(path: Path) -> None:
    """Makes one folder, in a folder that is there."""
    path.mkdir()


def remove_folder(path: Path) -> None:
    """Removes an empty folder."""
    path.rmdir()


def open_new(path: Path) -> int:
    """Opens an empty file for writing, in place of any that is there, but for a link; returns its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)


def open_end(path: Path) -> int:
    """Opens a file for writing at its end, whether or not it is there, but for a link; returns its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)


def open_folder(path: Path) -> int:
    """Opens a folder, for `sync`; returns its descriptor."""
    return os.open(path, os.O_RDONLY)


def write(descriptor: int, content: bytes | memoryview) -> None:
    """Writes all of the content."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def empty(descriptor: int) -> None:
    """Takes out what is in a file that is open for writing."""
    os.ftruncate(descriptor, 0)


def sync(descriptor: int) -> None:
    """Has what was written, or the names in a folder, survive a power cut."""
    os.fsync(descriptor)


def rename(old: Path, new: Path) -> None:
    """Gives a file another name, in place of any that has it."""
    old.replace(new)


def remove(path: Path) -> None:
    """Removes a file."""
    path.unlink()


def sync_folder(path: Path) -> None:
    """Has the names in a folder survive a power cut, where its file system can."""
    descriptor = open_folder(path)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what some network file systems say of folders
            raise
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and those it lies in, where they are not there; returns those that it made, outermost first."""
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                with suppress(FileExistsError):  # another process was quicker, or else a file is in the way
                    make_folder(folder)
                    made.append(folder)
                    sync_folder(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    except OSError:
        remove_folders(made)
        raise
    return made


def remove_folders(made: list[Path]) -> None:
    """Removes folders that `make_folders` made, unless something is in them by now."""
    with suppress(OSError):
        for folder in reversed(made):
            remove_folder(folder)
