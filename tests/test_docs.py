"""Every command and every Python example of the documentation runs, in the order in which a reader meets them.

Training is cut to a few epochs and commands are kept quiet; nothing else is changed. What cannot run here says why, in
a comment on the line before its block.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from kinfold.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
_BLOCK = re.compile(r"^(?P<why><!-- not run: .*? -->\n)?```(?P<language>\w*)\n(?P<content>.*?)^```$", re.M | re.S)
_SHORT = {"train": ["--epochs", "3", "--quiet"], "compare": ["--epochs", "3", "--seeds", "2", "--quiet"]}

_LONG = ("tutorials/series.md", "tutorials/texts.md")


def blocks(page):
    """The page's blocks that are to run: (`commands` or the language, content)."""
    for found in _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        commands = found["language"] == "" and found["content"].startswith("kinfold ")
        if (commands or found["language"] in ("python", "yaml")) and found["why"] is None:
            yield "commands" if commands else found["language"], found["content"]


def run_commands(content, capsys):
    for line in content.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)[1:]
        if not words:
            continue
        short = [] if "--resume" in words else _SHORT.get(words[0], [])
        status = main([*words, *short])
        said = capsys.readouterr()
        if status and words[:2] == ["data", "get"]:
            pytest.skip(f"not here and not to be had: {said.err}")
        if status == 2 and "pip install" in said.err:
            pytest.skip(f"needs what is not installed: {said.err}")
        assert status == 0, (line, said.err)
        assert said.out, line


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p in _LONG else []) for p in PAGES if any(blocks(p))],
)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch, capsys, measurements):
    import kinfold

    def shortly(*given, **options):
        if "epochs" in options:
            options["epochs"] = min(options["epochs"], 3)
        else:
            options["epochs"] = 3
        return fit(*given, **options)

    fit = kinfold.fit
    monkeypatch.setattr(kinfold, "fit", shortly)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(
        "from torch import nn\n\n\ndef factory():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    measurements(tmp_path)
    names = {"__name__": "docs"}
    for kind, content in blocks(page):
        if kind == "commands":
            run_commands(content, capsys)
        elif kind == "yaml":
            Path("config.yaml").write_text(content)
            verb = "compare" if "arms" in yaml.safe_load(content) else "train"
            run_commands(f"kinfold {verb} --config config.yaml --out runs/{len(list(Path().rglob('*')))}", capsys)
        else:
            with torch.random.fork_rng([]):  # it is the reader's own, and the examples draw from it
                try:
                    exec(compile(content, page, "exec"), names)
                except kinfold.InputError as error:
                    if "pip install" not in str(error):
                        raise
                    pytest.skip(f"needs what is not installed: {error}")


def test_there_are_pages_that_run():
    assert len([page for page in PAGES if any(blocks(page))]) > 8


def test_a_block_that_is_not_run_says_why():
    for page in PAGES:
        for found in _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
            if found["why"] is not None:
                assert len(found["why"]) > len("<!-- not run:  -->\n") + 10, page


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_row_is_cut_off_its_table(page):
    lines = ["", *(DOCS / page).read_text(encoding="utf-8").split("\n"), ""]
    heads = [after for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
             if line.startswith("|") and not before.startswith("|")]  # fmt: skip
    assert all(re.match(r"\|\s*:?-", after) for after in heads)
