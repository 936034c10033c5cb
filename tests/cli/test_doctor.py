import json
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from kinfold.cli import doctor
from kinfold.data.fetch import cache_root


@pytest.fixture
def _no_training(monkeypatch):
    monkeypatch.setattr(doctor, "_training", lambda: doctor.Check("training", "ok", "left out"))


@pytest.fixture
def installed(monkeypatch):
    """Has kinfold require what is said."""

    def require(*lines):
        monkeypatch.setattr(metadata, "requires", lambda name: list(lines))

    return require


def test_it_looks_at_everything_and_trains(cli):
    status, out, err = cli("doctor")
    assert (status, err) == (0, "")
    *lines, empty, verdict = out.splitlines()
    assert (empty, verdict) == ("", "Ready. To begin: kinfold train digits")
    seen = {line.split()[1]: line for line in lines}
    assert {"python", "kinfold", "packages", "torch", "gpu", "disk", "cache", "training", "parquet"} <= set(seen)
    assert torch.__version__ in seen["torch"]
    assert "2 networks on digits in " in seen["training"]
    assert len(lines) < 24  # one screen
    assert all(len(line) < 200 for line in lines)


@pytest.mark.usefixtures("_no_training")
def test_as_json(cli):
    status, out, err = cli("doctor", "--json")
    said = json.loads(out)
    assert (status, err, said["ready"]) == (0, "", True)
    assert {check["state"] for check in said["checks"]} <= {"ok", "note"}


@pytest.mark.usefixtures("_no_training")
def test_what_is_missing_is_told_with_its_remedy(cli, installed):
    installed(
        "numpy>=1.26", 'absent-package>=2; extra == "magic"', 'numpy>=999.1; extra == "later"', 'ruff; extra == "dev"'
    )
    status, out, err = cli("doctor")
    assert (status, err) == (0, "")  # extras need not be there
    assert "absent-package is missing: pip install 'kinfold[magic]'" in out
    assert "is older than 999.1: pip install 'kinfold[later]'" in out
    assert "ruff" not in out


@pytest.mark.usefixtures("_no_training")
def test_what_is_needed_and_missing_makes_it_fail(cli, installed):
    installed("absent-package>=2", "numpy>=999")
    status, out, err = cli("doctor", "--json")
    assert status == 1
    assert json.loads(out)["ready"] is False
    assert len(err.splitlines()) == 1
    assert err.startswith("kinfold: not ready: absent-package is missing; numpy ")
    assert "pip install --upgrade kinfold" in err
    status, out, _ = cli("doctor")
    assert status == 1
    assert "BAD  packages" in out
    assert "Ready" not in out


@pytest.mark.usefixtures("_no_training")
def test_where_kinfold_is_not_installed_it_says_so(cli, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    status, out, _ = cli("doctor")
    assert status == 0
    assert "kinfold is not installed" in out


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor._folder("cache", tmp_path / "not" / "there", "note")
    assert check.state == "note"
    assert check.found == f"{tmp_path} cannot be written to (Permission denied)"
    assert check.fix == "set KINFOLD_DATA to a folder of yours"
    assert doctor._folder("disk", tmp_path, "bad").state == "bad"


def test_little_disk_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    assert doctor._folder("disk", tmp_path, "bad") == doctor.Check("disk", "note", f"0.5 GiB free in {tmp_path}")


def test_the_cache_is_the_one_that_data_use(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("KINFOLD_DATA", str(tmp_path / "mine"))
    assert doctor._cache() == cache_root() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("build", "driver", "words"),
    [
        (None, True, "there is one, but this torch is built for CPUs alone"),
        ("12.8", True, "there is one, but torch"),
        (None, False, "none; training runs on the CPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use(monkeypatch, build, driver, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    gpu = list(doctor._torch())[1]
    assert (gpu.name, gpu.state) == ("gpu", "note")
    assert gpu.found.startswith(words) or driver != (words.startswith("there"))


def test_gpus_and_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((1 + i) * 2**30, 4 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Abacus")
    assert [check.found for check in doctor._torch()][1:] == [
        "cuda:0 Abacus, 1.0 of 4.0 GiB free",
        "cuda:1 Abacus, 2.0 of 4.0 GiB free",
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (RuntimeError("no\nluck"), "failed (RuntimeError: no luck)"),
        (SimpleNamespace(estimate=SimpleNamespace(value=0.1, metric="accuracy"), engine="x"), "accuracy 0.10"),
        (SimpleNamespace(estimate=SimpleNamespace(value=float("nan"), metric="accuracy"), engine="x"), "accuracy nan"),
    ],
)
def test_training_that_fails_or_learns_nothing_is_bad(monkeypatch, answer, words):
    def fit(*arguments, **options):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("kinfold.fitting.fit", fit)
    check = doctor._training()
    assert check.state == "bad"
    assert words in check.found
    assert check.fix


def test_without_torch_it_still_says_what_is_wrong(tmp_path):
    """In a process whose torch cannot be imported."""
    code = (
        "import sys, kinfold.cli\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ImportError('libcudart.so is not there')\n"
        "sys.meta_path.insert(1, No())\n"
        "sys.exit(kinfold.cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "BAD  torch" in done.stdout
    assert "libcudart.so is not there" in done.stdout
    assert len(done.stderr.splitlines()) == 1
