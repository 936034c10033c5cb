import inspect
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from kinfold.cli import COMMANDS, main
from kinfold.cli.keys import KEYS
from kinfold.fitting import fit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRACTS = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")


def blocks(text):
    """The fenced blocks: (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_python_examples_run(capsys):
    sources = [content for language, content in blocks(README) if language == "python"]
    assert sources
    for source in sources:
        exec(compile(source, "README.md", "exec"), {"__name__": "readme"})
    assert re.match(r"accuracy 0\.\d{3}, 95 % interval 0\.\d{3} to [01]\.\d{3}\n", capsys.readouterr().out)
    assert Path("runs/mine/report.html").exists()


def test_the_commands_run(capsys, measurements):
    lines = [line for _, content in blocks(README) for line in content.splitlines() if line.startswith("kinfold ")]
    assert {shlex.split(line)[1] for line in lines} >= {"train", "evaluate", "predict"}
    measurements(Path())
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
        assert capsys.readouterr().out
    assert list(pd.read_csv("predictions.csv"))[:2] == ["row", "prediction"]
    assert Path("runs/again/result.json").exists()


def test_the_contract_lists_the_flags_there_are(capsys):
    synopsis = re.search(r"^```text\n(kinfold train .*?)^```$", CONTRACTS, re.MULTILINE | re.DOTALL)[1]
    listed = {verb: set() for verb in COMMANDS}
    for verb, rest in re.findall(r"^kinfold ([a-z]+)(.*(?:\n +.*)*)", synopsis, re.MULTILINE):
        listed[verb] |= set(re.findall(r"--[a-z-]+", rest)) | ({"..."} if "any other key" in rest else set())
    for verb, flags in listed.items():
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
        assert flags - {"..."} <= known, verb
        assert flags == known or "..." in flags, verb


def test_the_contract_lists_every_key_with_its_default():
    listed = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? *\|", CONTRACTS, re.MULTILINE))
    parameters = inspect.signature(fit).parameters
    words = {None: "null", (): "[]"}
    assert list(listed) == ["data", *KEYS]
    assert listed["data"] == ""
    assert listed["model"] == ""
    for name in KEYS:
        if name != "model":
            default = parameters[name].default
            said = str(default).lower() if isinstance(default, bool) else words.get(default, str(default))
            assert listed[name] == said, name
