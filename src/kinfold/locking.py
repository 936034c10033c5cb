"""One process at a time in a run directory.

The lock is the kernel's (`flock`), on a file `.lock` in the directory: it ends with the process, however that ends.
"""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinfold import disk
from kinfold.errors import InputError

LOCK = ".lock"
"""Name of the file that is locked. One that a killed process left is not locked, and the next process takes it over."""

_LOG = logging.getLogger("kinfold")
_HELD: set[int] = set()
_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # what file systems without locks say


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a directory, which is made where it is not there, and removed again if it stays empty.

    On a network file system it is as good as that one's locks (NFS has them since Linux 2.6.12); on one without, a
    warning is logged.

    Raises:
        InputError: another run is at work there; names its process.
        OSError: the lock cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     try:
        ...         with locked(Path(folder)):
        ...             pass
        ...     except InputError:
        ...         print("kept out")
        kept out
    """
    made = disk.make_folders(folder)
    path = folder / LOCK
    try:
        descriptor = _taken(path)
        try:
            yield
        finally:
            if descriptor in _HELD:
                try:
                    with suppress(OSError):  # as left by a process that was killed
                        disk.remove(path)
                finally:
                    _HELD.discard(descriptor)
                    os.close(descriptor)
    finally:
        disk.remove_folders(made)


def _taken(path: Path) -> int:
    """Takes the lock, and says in its file by whom; returns its descriptor."""
    while True:
        descriptor = disk.open_end(path)
        try:
            if _is_free(descriptor, path):
                disk.empty(descriptor)
                disk.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                _HELD.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_free(descriptor: int, path: Path) -> bool:
    """Locks the file, unless it is another by now: who had it has removed it since it was opened.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = " ".join(os.pread(descriptor, 200, 0).decode(errors="replace").split())
        raise InputError(
            f"out: another run is at work in {path.parent} ({said or 'its process is not known'}); "
            "wait until it has ended, or give another out."
        ) from None
    except OSError as error:
        if error.errno not in _WITHOUT:
            raise
        _LOG.warning("out: %s lies on a file system without locks; start no second run there.", path.parent)
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """A forked process has its parent's descriptors, and would go on holding the locks of a parent that was killed."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)
