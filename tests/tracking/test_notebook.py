"""In a real kernel where there is one, and by IPython's own calls."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("IPython")

import kinfold
from kinfold.tracking import notebook, picture
from kinfold.tracking.notebook import in_notebook, shown_in_notebook
from kinfold.tracking.picture import NotebookProgress, Picture
from kinfold.tracking.progress import Board, after

PERIOD = {"event": "period", "period": 1, "epochs": 2, "train_loss": [0.5, None], "metric": [0.25, 0.5]}
PERIOD |= {"improved": [True, False], "seconds": 0.5}


class Handle:
    """Stands for what IPython's `display` returns."""

    def __init__(self, first):
        self.shown = [first]

    def update(self, picture):
        self.shown.append(picture)


@pytest.fixture
def handles(monkeypatch):
    made = []

    def display(picture, display_id):
        assert display_id is True
        made.append(Handle(picture))
        return made[-1]

    monkeypatch.setattr("IPython.display.display", display)
    return made


def test_one_output_is_brought_up_to_date(handles, monkeypatch):
    monkeypatch.setattr(picture, "_EVERY", 0.0)
    progress = NotebookProgress()
    progress({"event": "note", "message": "<b>engine</b>"})
    progress(PERIOD)
    (handle,) = handles
    assert len(handle.shown) == 3
    html = handle.shown[-1]._repr_html_()
    assert "note: &lt;b&gt;engine&lt;/b&gt;" in html
    assert "1/2 epochs" in html
    assert "0.2500" in html
    assert "color: inherit" in html
    assert "background" not in html
    assert "note: <b>engine</b>" in repr(handle.shown[-1])
    assert "1/2 epochs" not in handle.shown[0]._repr_html_()  # what was shown does not change


def test_it_is_not_brought_up_to_date_too_often(handles, monkeypatch):
    monkeypatch.setattr(picture, "_EVERY", 1e9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(notebook, "in_notebook", lambda: True)
        with shown_in_notebook(None) as listen:
            for _ in range(50):
                listen(PERIOD)
    assert len(handles[0].shown) == 2  # at the beginning, and in the end
    assert "1/2 epochs" in handles[0].shown[-1]._repr_html_()


def test_only_a_notebook_shows_it_and_only_where_nobody_listens(handles, monkeypatch):
    assert not in_notebook()
    kinfold.fit({"name": "mlp", "hidden": [4]}, "iris", tasks=2, epochs=1)
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    with shown_in_notebook(print) as listen:
        assert listen is print
    assert not handles


def test_what_users_named_cannot_be_read_as_markup():
    html = Picture(after(Board(), PERIOD), ("warning: <script>alert(1)</script>",))._repr_html_()
    assert "<script" not in html


def test_in_a_real_kernel(tmp_path: Path, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    cells = [
        "import kinfold; result = kinfold.fit('mlp', 'iris', tasks=2, epochs=3, transfer='amto')",
        "result",
        "result.plot('scores')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    monkeypatch.setenv("PYTHONPATH", str(Path(kinfold.__file__).parents[1]))
    client = nbclient.NotebookClient(book, timeout=120, kernel_name=_kernel(tmp_path, monkeypatch))
    client.execute(cwd=str(tmp_path))
    progress, shown, plotted = (cell.outputs for cell in book.cells)
    (board,) = progress
    assert board.output_type == "display_data"
    assert "3/3 epochs" in board.data["text/html"]
    assert "3/3 epochs" in board.data["text/plain"]
    assert "<table" in shown[0].data["text/html"]
    assert "accuracy" in shown[0].data["text/html"]
    assert len(plotted[0].data["image/png"]) > 1000


def _kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this very interpreter, that only this test knows of."""
    from ipykernel.kernelspec import write_kernel_spec

    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    (folder / "jupyter" / "kernels").mkdir(parents=True)
    write_kernel_spec(folder / "jupyter" / "kernels" / "kinfold-test")
    assert sys.executable
    return "kinfold-test"
