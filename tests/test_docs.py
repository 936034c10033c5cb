"""Every command and every Python example of the documentation runs, in the order in which a reader meets them.

Training is cut to a few epochs, scikit-learn's digits to a sixth of their rows, and commands are kept quiet; nothing
else is changed. A reader's own tables, pictures, modules and runs are at hand. What cannot run here says why, in a
comment on the line before its block.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import yaml
from sklearn.utils import Bunch
from torch.utils.data import TensorDataset

from kinfold.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
_BLOCK = re.compile(r"^(?P<why><!-- not run: .*? -->\n)?```(?P<language>\w*)\n(?P<content>.*?)^```$", re.M | re.S)
_SHORT = {"train": ["--epochs", "3", "--quiet"], "compare": ["--epochs", "2", "--seeds", "2", "--quiet"]}

_BEFORE = {  # runs of the reader's own that a page speaks of
    "export.md": "kinfold train measurements.csv --target species --tasks 2 --out runs/species",
    "report.md": "kinfold train digits --tasks 2 --out runs/digits-mlp-1",
    "trust-hostile.md": "kinfold train mine:rows --model mine:net --tasks 2 --out runs/mine",
}

_LONG = ("tutorials/series.md", "tutorials/texts.md")
_ELSEWHERE = ("sklearn.md",)  # tests/test_sklearn.py runs it in a process of its own


def blocks(page):
    """The page's blocks that are to run: (`commands` or the language, content)."""
    for found in _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        commands = found["language"] == "" and found["content"].startswith("kinfold ")
        if (commands or found["language"] in ("python", "yaml")) and found["why"] is None:
            yield "commands" if commands else found["language"], found["content"]


def run_commands(content, capsys):
    """Runs each line; returns what those said that need a package which is not installed."""
    needs = []
    for line in content.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)[1:]
        if not words:
            continue
        words, written = (words[:-2], Path(words[-1])) if ">" in words else (words, None)
        short = [] if "--resume" in words else _SHORT.get(words[0], [])
        status = main([*words, *short])
        said = capsys.readouterr()
        if status and words[:2] == ["data", "get"]:  # which all that follows trains on
            pytest.skip(f"not here and not to be had: {said.err}")
        if status == 2 and "pip install" in said.err:
            needs.append(said.err)
            continue
        assert status == 0, (line, said.err)
        assert said.out, line
        if written:
            written.write_text(said.out)
    return needs


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in _LONG else [])
        for page in PAGES
        if any(blocks(page)) and page not in _ELSEWHERE
    ],
)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch, capsys, belongings):
    import kinfold

    def shortly(*given, **options):
        if "epochs" in options:
            options["epochs"] = min(options["epochs"], 3)
        else:
            options["epochs"] = 3
        return fit(*given, **options)

    def few_digits(return_X_y=False):
        digits = load_digits()
        fewer = Bunch(**{part: digits[part][:300] for part in ("data", "target", "images")})
        return (fewer.data, fewer.target) if return_X_y else fewer

    fit, load_digits = kinfold.fit, sklearn.datasets.load_digits
    monkeypatch.setattr(kinfold, "fit", shortly)
    monkeypatch.setattr(sklearn.datasets, "load_digits", few_digits)
    for module in ("mine", "my_package", "my_package.my_module"):  # nothing of this folder stays imported
        monkeypatch.setitem(sys.modules, module, sys)
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    belongings(tmp_path)
    weights = np.linspace(1, 2, 80)
    dataset = TensorDataset(torch.zeros(8, 3, 4, 4), torch.arange(8) % 2)
    names = {"__name__": "docs", "weights": weights, "dataset": dataset}
    needs = run_commands(_BEFORE.get(page, ""), capsys)
    for kind, content in blocks(page):
        if kind == "commands":
            needs += run_commands(content, capsys)
        elif kind == "yaml":
            Path("config.yaml").write_text(content)
            verb = "compare" if "arms" in yaml.safe_load(content) else "train"
            out = f"runs/{len(list(Path().rglob('*')))}"
            needs += run_commands(f"kinfold {verb} --config config.yaml --out {out}", capsys)
        else:
            with torch.random.fork_rng([]):  # it is the reader's own, and the examples draw from it
                try:
                    exec(compile(content, page, "exec"), names)
                except kinfold.InputError as error:
                    if "pip install" not in str(error):
                        raise
                    needs.append(str(error))
                    break
    if needs:
        pytest.skip("; ".join(needs))


def test_there_are_pages_that_run():
    assert len([page for page in PAGES if any(blocks(page))]) > 8


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_is_text_or_says_why(page):
    run = [content for _, content in blocks(page)]
    for found in _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        if found["why"] is not None:
            assert len(found["why"]) > len("<!-- not run:  -->\n") + 10, page
        else:
            assert found["language"] == "text" or found["content"] in run, (page, found["content"])


def test_what_is_not_run_can_be_read():
    for page in PAGES:
        for found in _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
            if found["language"] == "bash":
                subprocess.run(["bash", "-n"], input=found["content"], text=True, check=True)
            elif found["language"] == "yaml":
                assert list(yaml.safe_load_all(found["content"])), page
            elif found["language"] == "python":
                compile(found["content"], page, "exec")


def test_every_cell_of_the_peers_leads_to_where_it_is_seen():
    text = (DOCS / "peers.md").read_text(encoding="utf-8")
    places = re.findall(r"^\[([\w-]+)\]: https://\S+$", text, re.M)
    assert len(places) == len(set(places))
    assert set(places) == set(re.findall(r"\]\[([\w-]+)\]", text))
    rows = [line.split("|")[2:-1] for line in text.splitlines() if re.match(r"\| \w", line)]
    assert len(rows) >= 8
    for row in rows:
        assert len(row) == 8
        assert all(re.search(r"\]\[|\]\(", cell) for cell in row), row


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_row_is_cut_off_its_table(page):
    lines = ["", *(DOCS / page).read_text(encoding="utf-8").split("\n"), ""]
    heads = [after for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
             if line.startswith("|") and not before.startswith("|")]  # fmt: skip
    assert all(re.match(r"\|\s*:?-", after) for after in heads)
