import importlib.util

import pytest

from kinfold.tracking.system import SystemFigures


@pytest.mark.parametrize("with_psutil", [True, False])
def test_the_figures_are_those_of_a_machine(monkeypatch, with_psutil):
    if with_psutil:
        pytest.importorskip("psutil")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    look = SystemFigures()
    monkeypatch.setattr(SystemFigures, "_times", lambda self: None if self._before is None else (1e12, 2e12))
    first = look()
    assert 0 < first["memory_percent"] < 100
    assert 1e6 < first["process_bytes"] < 1e12
    assert first["cpu_percent"] == pytest.approx(50, abs=1)


def test_both_ways_agree():
    pytest.importorskip("psutil")
    from kinfold.tracking.system import _by_proc, _by_psutil

    one, other = _by_psutil(), _by_proc()
    assert one["memory_percent"] == pytest.approx(other["memory_percent"], abs=5)
    assert one["process_bytes"] == pytest.approx(other["process_bytes"], rel=0.05)
