import sys

import pytest

from kinfold.errors import InputError
from kinfold.importing import load_callable


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working directory, under a name of its own in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "kf_neighbour.py").write_text("value = 3\n")
    name = f"kf_mine_{tmp_path.parent.name}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "number = 1\nclass Holder:\n    def get():\n        import kf_neighbour\n        return kf_neighbour.value\n"
    )
    yield name
    sys.modules.pop(name, None)
    sys.modules.pop("kf_neighbour", None)


def test_the_working_directory_can_be_imported(module):
    assert load_callable(f"{module}:Holder.get", "data")() == 3
    assert load_callable(f"{module}.Holder.get", "data")() == 3


def test_what_cannot_be_loaded(module, tmp_path):
    (tmp_path / "kf_broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    for path, message in [
        ("kf_absent:f", "ModuleNotFoundError"),
        (f"{module}:absent", "has no attribute 'absent'"),
        (f"{module}:number", "is a int; name a function or a class"),
        ("kf_broken:f", "RuntimeError: first second"),
        ("not a module:f", "ValueError"),
    ]:
        with pytest.raises(InputError, match=f"model: '{path}' .*{message}") as error:
            load_callable(path, "model")
        assert "\n" not in str(error.value)
