import pytest

from kinfold.cli import main


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys):
    """Runs the command line in this process: (exit status, standard output, standard error)."""

    def call(*argv):
        capsys.readouterr()
        status = main(argv)
        return status, *capsys.readouterr()

    return call
