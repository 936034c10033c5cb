"""One process at a time in a directory, whatever ends the one before."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kinfold
from kinfold import locking
from kinfold.comparing import compare
from kinfold.errors import InputError
from kinfold.locking import LOCK, locked

HOLDS = """
import sys, time
from pathlib import Path
from kinfold.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    source = str(Path(kinfold.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_another_process_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "1"
    with holder(out) as process:
        try:
            message = rf"out: another run is at work in .* \(process {process.pid} on .*\); wait until it has ended"
            with pytest.raises(InputError, match=message), locked(out):
                pytest.fail("let in")
            for work in (kinfold.fit, compare):
                with pytest.raises(InputError, match=message):
                    work("mlp", "iris", tasks=2, epochs=1, out=out)
            assert [path.name for path in out.iterdir()] == [LOCK]
        finally:
            process.send_signal(signal.SIGKILL)
    assert (out / LOCK).exists()  # but nobody holds it
    with locked(out):
        assert f"process {os.getpid()} " in (out / LOCK).read_text()
    assert list(out.iterdir()) == []


def test_nothing_is_left_of_a_directory_that_stays_empty(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "1"
    with locked(out):
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert not (tmp_path / "runs").exists()
    with locked(out):
        (out / "kept").touch()
    assert [path.name for path in out.iterdir()] == ["kept"]
    with locked(out):  # and what was there before stays, empty or not
        (out / "kept").unlink()
    assert out.is_dir()


def test_one_thread_at_a_time_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} "), locked(tmp_path):
            pytest.fail("let in")
        assert (tmp_path / LOCK).exists()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # pytest-xdist's thread
def test_a_forked_process_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    """Such as a worker that outlives a killed run."""
    reader, writer = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_lock_that_is_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of the file and its locking, the one who had it ends and removes it."""
    real, opened = locking.disk.open_end, []

    def open_and_lose(path: Path) -> int:
        descriptor = real(path)
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(locking.disk, "open_end", open_and_lose)
    with locked(tmp_path):
        assert len(opened) == 2
        with pytest.raises(InputError), locked(tmp_path):
            pytest.fail("let in")


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "kinfold"), locked(tmp_path):
        assert "lies on a file system without locks" in caplog.text


def test_what_a_killed_process_left_is_no_content(tmp_path: Path) -> None:
    """A run that was killed before its first file has a directory with a lock, and perhaps half a file."""
    (tmp_path / LOCK).write_text("process 1 on nowhere\n")
    (tmp_path / ".config.yaml.1.part").write_bytes(b"ha")
    kinfold.fit("mlp", "iris", tasks=2, epochs=1, transfer="none", out=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
