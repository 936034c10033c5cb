"""The scripts, run by the shells that are here."""

import shutil
import subprocess

import pytest

from kinfold.cli import COMMANDS
from kinfold.cli.completion import SHELLS, verbs_of

VERBS = verbs_of(COMMANDS)


def shell(name, script, code, cwd):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    (cwd / "script").write_text(script)
    done = subprocess.run(
        [name, *(["--no-config"] if name == "fish" else ["-f"] if name == "zsh" else []), "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"HOME": str(cwd), "PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split("\n")


def test_every_verb_and_flag_is_there():
    verbs = {verb.name: verb for verb in VERBS}
    assert set(verbs) == set(COMMANDS)
    flags = {flag.name: flag for flag in verbs["train"].flags}
    assert {"--model", "--batch-size", "--help", "--print-config"} <= set(flags)
    assert "papa" in flags["--transfer"].words
    assert "resnet20" in flags["--model"].words
    assert flags["--precision"].words == ("bf16", "float32", "float64")
    assert flags["--out"].files
    assert not flags["--resume"].takes
    assert "digits" in verbs["train"].words
    assert verbs["completion"].words == tuple(SHELLS)
    assert {"list", "get", "mnist"} <= set(verbs["data"].words)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["tr"], {"train"}),
        (["train", "dig"], {"digits"}),
        (["train", "digits", "--tran"], {"--transfer"}),
        (["train", "digits", "--transfer", "pa"], {"papa", "papa-all"}),
        (["train", "digits", "--model", "lene"], {"lenet5"}),
        (["compare", "iris", "--print-"], {"--print-config", "--print-schema"}),
        (["data", "g"], {"get"}),
        (["completion", "z"], {"zsh"}),
        (["train", "digits", "--config", "m"], set()),  # files, by readline
    ],
)
def test_bash(tmp_path, cli, typed, expected):
    script = cli("completion", "bash")[1]
    words = " ".join(["kinfold", *typed])
    code = (
        f'source ./script; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _kinfold; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert {line for line in shell("bash", script, code, tmp_path) if line} == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("kinfold tr", {"train"}),
        ("kinfold train dig", {"digits"}),
        ("kinfold train digits --transfer pa", {"papa", "papa-all"}),
        ("kinfold train digits --tran", {"--transfer"}),
        ("kinfold data g", {"get"}),
    ],
)
def test_fish(tmp_path, cli, typed, expected):
    script = cli("completion", "fish")[1]
    lines = shell("fish", script, f"source ./script; complete -C '{typed}'", tmp_path)
    assert {line.split("\t")[0] for line in lines if line} == expected


def test_zsh_knows_the_script(tmp_path, cli):
    script = cli("completion", "zsh")[1]
    code = "autoload -U compinit; compinit -u -d dump; source ./script; print -r -- $_comps[kinfold]"
    assert shell("zsh", script, code, tmp_path)[0] == "_kinfold"


@pytest.mark.parametrize("name", SHELLS)
def test_scripts_are_sound_to_their_shells(tmp_path, cli, name):
    status, script, err = cli("completion", name)
    assert (status, err) == (0, "")
    shell(name, script, f"{name} -n ./script", tmp_path)
