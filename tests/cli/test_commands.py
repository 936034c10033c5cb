import dataclasses
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

import kinfold
from kinfold.cli import COMMANDS, _parse, main
from kinfold.cli.keys import COMPARE_KEYS, KEYS
from kinfold.comparing import CONTROLS, compare
from kinfold.comparing.arms import resolve_arm
from kinfold.fitting import fit

FAST = ("--tasks", "2", "--epochs", "2")
ARMS = ("--arms", "conventional,all-rows,papa", "--seeds", "2")
METHODS = "[mixup, {name: label_smoothing, epsilon: 1e-1}]"


def table(rows=90):
    """String labels, a categorical column, missing values, and a label that looks like a formula."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "colour": rng.choice(["red", "green", None], rows),
            "species": np.where(size > 0.3, "=oak", "ash, grey"),
        }
    )
    frame.to_csv("trees.csv", index=False)
    return frame


def files():
    return sorted(str(path) for path in Path().rglob("*"))


def test_every_argument_of_fit_is_a_key():
    assert {"data", *KEYS} == set(inspect.signature(fit).parameters) - {"out", "resume", "listen"}


def test_every_argument_of_compare_is_a_key():
    arguments = {*inspect.signature(fit).parameters, *inspect.signature(compare).parameters}
    decided = {"transfer", "candidates", "holdout", "seed"}  # by the arms, the test rows and the seeds
    decided |= {"tracking"}  # one run is tracked, and not a comparison
    assert {"data", *COMPARE_KEYS} == arguments - decided - {"options", "out", "resume", "listen"}


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, kinfold.cli; kinfold.cli.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for argv in ([], ["--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        assert done.stdout.strip()
        assert not done.stderr


def test_alone_it_says_what_to_do_next(cli):
    status, out, err = cli()
    assert status == 0
    assert "kinfold train digits" in out
    assert all(f"kinfold {name}" in out for name in COMMANDS)
    assert not err


def test_version_as_a_module():
    done = subprocess.run([sys.executable, "-m", "kinfold", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kinfold {kinfold.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert COMMANDS[command].summary in out
    if command == "train":
        assert "(default: 8)" in out
        assert "(default: auto)" in out


def test_data_list(cli):
    status, out, _ = cli("data", "list")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["digits", "1,797", "-", "1x8x8", "10", "-", "built", "in"] in lines
    assert ["diabetes", "442", "-", "10", "regression", "-", "built", "in"] in lines
    assert {line[0] for line in lines} > {"mnist", "cifar-10", "letter"}


def test_a_table_trains_evaluates_and_predicts(cli):
    frame = table()
    status, out, err = cli("train", "trees.csv", "--target", "species", *FAST, "--out", "run")
    assert status == 0
    assert out.startswith("accuracy ")
    assert "on 9 sealed rows, clean" in out
    assert "run/report.html" in out

    status, out, _ = cli("evaluate", "run", "trees.csv")
    assert status == 0
    assert out.startswith("accuracy ")
    assert "ash, grey" in out
    assert "no clean estimate" in out
    status, out, _ = cli("evaluate", "run", "trees.csv", "--json")
    said = json.loads(out)
    assert said["rows"] == 90
    assert said["clean"] is None
    assert [each["label"] for each in said["details"]["per_class"]] == ["=oak", "ash, grey"]

    frame.drop(columns="species").to_csv("new.csv", index=False)
    status, out, err = cli("predict", "run", "new.csv", "--out", "p.csv")
    assert (status, out, err) == (0, "90 predictions in p.csv\n", "")
    assert cli("predict", "run", "trees.csv", "--out", "p.parquet")[0] == 0
    inert, predicted = pd.read_csv("p.csv"), pd.read_parquet("p.parquet")
    assert set(inert.prediction) == {"'=oak", "ash, grey"}  # no formula
    inert.prediction = inert.prediction.replace("'=oak", "=oak")
    pd.testing.assert_frame_equal(predicted, inert, check_dtype=False)
    assert list(predicted) == ["row", "prediction", "probability_=oak", "probability_ash, grey"]
    assert list(predicted.row) == list(range(90))
    probabilities = predicted[["probability_=oak", "probability_ash, grey"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert list(predicted.prediction) == [("=oak", "ash, grey")[c] for c in probabilities.argmax(1)]
    accuracy = (predicted.prediction == frame.species).mean()
    assert accuracy == pytest.approx(said["value"])


def test_predict_overwrites_nothing_unless_forced(cli):
    assert cli("train", "iris", *FAST, "--out", "run")[0] == 0
    Path("p.csv").write_text("mine")
    status, out, err = cli("predict", "run", "iris", "--out", "p.csv")
    assert (status, out) == (2, "")
    assert "--force" in err
    assert Path("p.csv").read_text() == "mine"
    assert cli("predict", "run", "iris", "--out", "p.csv", "--force")[0] == 0
    assert len(pd.read_csv("p.csv")) == 150


def test_labels_come_back_as_they_were_written(cli):
    rng = np.random.default_rng(0)
    np.savez("d.npz", X=rng.normal(size=(60, 3)), y=rng.choice([10, -3, 7], 60))
    assert cli("train", "d.npz", *FAST, "--out", "run")[0] == 0
    assert cli("predict", "run", "d.npz", "--out", "p.csv")[0] == 0
    predicted = pd.read_csv("p.csv")
    assert list(predicted)[2:] == ["probability_-3", "probability_7", "probability_10"]
    assert set(predicted.prediction) <= {-3, 7, 10}


@pytest.mark.parametrize(
    ("written", "flags"),
    [
        (("007", "7"), ()),
        (("true", "false"), ()),
        (("1.0", "2"), ("--kind", "classification")),
        ((" oak", "oak"), ()),
        (("10", "-3"), ()),
    ],
)
def test_labels_of_text_come_back_as_they_were_written(cli, written, flags):
    size = np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame({"size": size, "y": np.where(size > 0, *written)})
    frame.to_csv("d.csv", index=False)
    learn = ("--tasks", "2", "--epochs", "8", "--batch-size", "4", "--optimizer", "{name: sgd, lr: 0.05}")
    assert cli("train", "d.csv", "--target", "y", *learn, *flags, "--out", "run")[0] == 0
    assert cli("predict", "run", "d.csv", "--out", "p.csv")[0] == 0
    assert cli("predict", "run", "d.csv", "--out", "p.parquet")[0] == 0
    predicted = pd.read_csv("p.csv", dtype=str)
    assert set(predicted.prediction) == set(written)
    assert [str(label) for label in pd.read_parquet("p.parquet").prediction] == list(predicted.prediction)
    assert set(list(predicted)[2:]) == {f"probability_{label}" for label in written}
    labels = json.loads(Path("run/model.json").read_text())["target"]["labels"]
    assert set(map(str, labels)) == set(written)
    details = json.loads(Path("run/result.json").read_text())["estimate"]["details"]
    assert [each["label"] for each in details["per_class"]] == labels
    status, out, _ = cli("evaluate", "run", "d.csv", "--json")
    assert status == 0
    assert json.loads(out)["value"] == pytest.approx((predicted.prediction == frame.y).mean())


@pytest.mark.parametrize("targets", [1, 2])
def test_regression(cli, targets):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = X[:, :targets].squeeze() * 2
    np.savez("d.npz", X=X, y=y)
    assert cli("train", "d.npz", *FAST, "--out", "run")[0] == 0
    status, out, _ = cli("evaluate", "run", "d.npz", "--json")
    assert status == 0
    assert json.loads(out)["metric"] == "r2"
    assert cli("predict", "run", "d.npz", "--out", "p.csv")[0] == 0
    names = ["prediction"] if targets == 1 else ["prediction_0", "prediction_1"]
    assert list(pd.read_csv("p.csv")) == ["row", *names]


def test_the_loss_is_in_the_units_of_the_run(cli):
    """A table's squared error is told in units of the target's variance, in the run as in evaluate."""
    assert cli("train", "diabetes", "--tasks", "2", "--epochs", "20", "--out", "run")[0] == 0
    said = json.loads(cli("evaluate", "run", "diabetes", "--json")[1])
    assert said["details"]["loss"] < 2


def test_json_is_alone_and_is_the_file(cli):
    status, out, err = cli("train", "iris", *FAST, "--json", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(Path("runs/iris-mlp-1/result.json").read_text())


def test_what_the_users_code_prints_is_no_part_of_the_result(cli):
    Path("loud_nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    print('hello')\n"
        "    return nn.Linear(4, 3)\n"
        "def f1(outputs, targets):\n"
        "    return float((outputs.argmax(1) == targets).double().mean()) / 2\n"
    )
    argv = ("train", "iris", "--model", "loud_nets:net", "--metric", "loud_nets:f1", *FAST, "--json", "--out", "run")
    status, out, err = cli(*argv)
    assert status == 0
    assert json.loads(out)["scores"]["metric"] == "f1"
    assert "hello" in err
    assert json.loads(cli("evaluate", "run", "iris", "--json")[1])["metric"] == "f1"
    again = cli("train", "--config", "run/config.yaml", "--out", "again", "--json")[1]
    assert json.loads(again)["scores"] == json.loads(out)["scores"]


def test_run_directories_are_numbered_and_named_safely(cli):
    table()
    for _ in range(2):
        assert cli("train", "iris", *FAST)[0] == 0
    assert cli("train", "./trees.csv", "--target", "species", "--model", "{name: mlp, hidden: [4]}", *FAST)[0] == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["iris-mlp-1", "iris-mlp-2", "trees-mlp-1"]


def test_a_config_repeats_a_run(cli):
    argv = ("--transfer", "{name: amto, period: 2, forms: [copy]}", "--methods", METHODS, "--batch_size", "16")
    first = cli("train", "iris", "--tasks", "3", "--epochs", "6", *argv, "--seed", "3", "--out", "old", "--json")[1]
    status, again, _ = cli("train", "--config", "old/config.yaml", "--out", "new", "--json")
    assert status == 0
    first, again = json.loads(first), json.loads(again)
    for part in ("selected", "scores", "estimate", "transfers", "seed"):
        assert again[part] == first[part], part
    assert Path("old/config.yaml").read_text() == Path("new/config.yaml").read_text()
    assert Path("old/model.safetensors").read_bytes() == Path("new/model.safetensors").read_bytes()


def test_flags_go_before_the_file(cli):
    Path("c.yaml").write_text(
        "data: iris\ntasks: 2\nepochs: 50\nholdout: 1e-1\noptimizer: {name: adamw, lr: 1e-3}\npatience: null\n"
    )
    status, _, _ = cli("train", "--config", "c.yaml", "--epochs", "1", "--val-fraction", "0.3", "--out", "run")
    assert status == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["data"], config["tasks"], config["epochs"], config["val_fraction"]) == ("iris", 2, 1, 0.3)
    assert config["holdout"] == 0.1
    assert config["optimizer"] == {"name": "adamw", "lr": 0.001}
    assert config["model"] == "mlp"


@pytest.mark.parametrize(
    ("candidates", "task", "words"),
    [
        ("ema", True, "the ema of task "),
        ("soup", False, "the soup of all 2 tasks, a mean of their parameters"),
    ],
)
def test_what_was_handed_back_is_said(cli, candidates, task, words):
    """Of a soup and of an average, had they been picked."""
    argv = ("train", "iris", *FAST, "--epochs", "20", "--transfer", "none", "--candidates", candidates, "--out", "run")
    assert cli(*argv)[0] == 0
    said = json.loads(Path("run/result.json").read_text())
    made = next(contender for contender in said["contenders"] if contender["kind"] != "task")
    assert made["members"] == ([0] if task else [0, 1])
    said["selected"] |= {"kind": made["kind"], "task": 0 if task else None, "score": made["score"]}
    Path("run/result.json").write_text(json.dumps(said))
    Path("run/SHA256SUMS").unlink()  # which would say that it was altered
    status, out, _ = cli("train", "--resume", "--out", "run")
    assert status == 0
    assert f"selected         {words}" in out
    assert "optimistic, since it was selected by" in out


def test_a_student_is_handed_back_without_being_selected_by_its_score(cli):
    status, out, _ = cli("train", "iris", *FAST, "--epochs", "8", "--transfer", "distil", "--out", "run")
    assert status == 0
    assert "selected          a model trained in the end on all unsealed rows, by their labels alone" in out
    assert "over 2 validation sets; says little, since it trained on their rows" in out
    assert "selection score" not in out
    assert " epochs of the tasks, stopped by epochs" in out
    assert "trained in the end on all unsealed rows" in Path("run/report.html").read_text()


def test_without_sealed_rows_it_says_so(cli):
    status, out, _ = cli("train", "iris", *FAST, "--holdout", "0")
    assert status == 0
    assert out.startswith("no clean estimate: holdout=0\n")


def test_findings_are_lines_unless_quiet(cli):
    frame = table(60)
    pd.concat([frame, frame]).to_csv("twice.csv", index=False)
    argv = ("train", "twice.csv", "--target", "species", *FAST)
    status, _, err = cli(*argv)
    assert status == 0
    assert all(line.startswith(("warning: ", "note: ")) for line in err.splitlines())
    assert "validation rows equal to a row their task trains on" in err
    assert cli(*argv, "--quiet")[2] == ""


def test_resume(cli):
    argv = ("train", "iris", *FAST, "--out", "run", "--resume", "--json")
    status, first, _ = cli(*argv)  # absent: starts
    assert status == 0
    before = files()
    status, again, _ = cli(*argv)  # finished: reports it
    assert status == 0
    assert json.loads(again) == json.loads(first)
    status, short, _ = cli("train", "--resume", "--out", "run", "--json")  # the run has its own configuration
    assert status == 0
    assert json.loads(short) == json.loads(first)
    status, out, err = cli("train", "iris", *FAST, "--seed", "1", "--out", "run", "--resume")
    assert (status, out) == (2, "")
    assert "seed" in err
    assert files() == before


def test_compare(cli):
    status, out, err = cli("compare", "iris", *FAST, *ARMS)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "accuracy on rows that no arm has seen, 2 seeds, 2 tasks"
    assert {line.split(" | ")[0] for line in lines[2:7]} == {
        "| arm",
        "|:---|" + "---:|" * 9,
        *(f"| {arm}" for arm in ("conventional", "all-rows", "papa")),
    }
    assert "Against all-rows over 2 seeds" in out
    folder = "runs/compare-iris-1"
    assert lines[-3:] == [
        f"table   {folder}/comparison.md",
        f"scores  {folder}/scores.csv",
        f"plots   {folder}/*.svg",
    ]
    assert Path(folder, "comparison.md").read_text() in out
    assert {path.name for path in Path(folder).glob("*.svg")} >= {"gaps.svg"}
    *told, recipe = [line for line in err.splitlines() if " of 6: " not in line]
    assert told == ["warning: sealed rows equal to a row that tasks use: 1 (rows 101)."]
    assert recipe.startswith("note: recipe for table data")
    progress = [line for line in err.splitlines() if " of 6: " in line]
    assert len(progress) == 6
    assert progress[0].startswith("1 of 6: seed 0, conventional 0.")
    assert " left" in progress[0]
    assert progress[5].startswith("6 of 6: seed 1, papa 0.")
    assert cli("compare", "iris", *FAST, *ARMS, "--quiet")[2] == ""
    assert Path("runs/compare-iris-2/comparison.md").exists()


def test_a_comparison_as_json_goes_on_and_is_repeated(cli):
    argv = ("compare", "iris", *FAST, *ARMS, "--test-share", "0.4", "--out", "it", "--json", "--quiet")
    status, out, err = cli(*argv)
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert {arm["arm"] for arm in said["arms"]} == {"conventional", "all-rows", "papa"}
    assert {arm["control"] for arm in said["arms"]} == {said["control"]} == {"all-rows"}
    assert set(said["arms"][0]["gap"]) == {"mean", "low", "high"}
    assert len(said["scores"]) == 6
    assert (said["metric"], said["seeds"], said["out"]) == ("accuracy", 2, "it")
    kept = Path("it/scores/papa-0.json").read_bytes()
    Path("it/scores/papa-1.json").unlink()
    status, again, _ = cli("compare", "--resume", "--out", "it", "--json", "--quiet")
    assert status == 0
    assert values_of(again) == values_of(out)
    assert Path("it/scores/papa-0.json").read_bytes() == kept
    status, repeated, _ = cli("compare", "--config", "it/comparison.yaml", "--out", "new", "--json", "--quiet")
    assert status == 0
    assert values_of(repeated) == values_of(out)
    status, other, _ = cli("compare", "--config", "it/comparison.yaml", "--test", "iris", "--out", "x", "--json")
    assert status == 0  # the rows named go before the share in the file
    assert json.loads(other)["test"] == "iris"
    assert values_of(other) != values_of(out)
    before = files()
    status, out, err = cli(*argv)
    assert (status, out) == (2, "")
    assert "already holds a comparison" in err
    status, out, err = cli("compare", "--resume", "--out", "it", "--epochs", "3")
    assert (status, out) == (2, "")
    assert "epochs" in err
    assert files() == before


def values_of(out):
    return {(score["arm"], score["seed"]): score["value"] for score in json.loads(out)["scores"]}


def test_arms_in_a_file_may_be_mappings(cli):
    Path("c.yaml").write_text(
        "data: iris\ntasks: 2\nepochs: 2\nseeds: 1\ncontrol: conventional\n"
        "arms: [conventional, teach+papa, {name: papa-soup, transfer: papa, candidates: soup}]\n"
    )
    status, out, _ = cli("compare", "--config", "c.yaml", "--json")
    assert status == 0
    said = json.loads(out)
    assert {arm["arm"] for arm in said["arms"]} == {"conventional", "teach+papa", "papa-soup"}
    assert said["control"] == "conventional"
    assert said["out"] == "runs/compare-iris-1"


def test_the_official_test_part_judges_unless_told_otherwise(cli, monkeypatch):
    asked = []

    @wraps(compare)
    def with_iris(model, data, test=None, **options):
        """Stands where a public set would have to be fetched."""
        asked.append((data, test))
        return compare(model, "iris", test=None if test is None else "iris", **options)

    monkeypatch.setattr("kinfold.comparing.compare", with_iris)
    argv = ("compare", "mnist1d", *FAST, "--seeds", "1", "--arms", "conventional,all-rows")
    status, _, err = cli(*argv)
    assert status == 0
    assert err.splitlines()[0] == (
        "note: judged by the official test part mnist1d:test; --test-share F sets rows aside in its place"
    )
    for more in (("--test-share", "0.3"), ("--test", "other.csv"), ("--test", "null")):
        assert "judged by" not in cli(*argv, *more)[2]
    assert cli("compare", "letter", *argv[2:])[0] == 0  # of this one no part is official
    assert asked == [
        ("mnist1d", "mnist1d:test"),
        ("mnist1d", None),
        ("mnist1d", "other.csv"),
        ("mnist1d", None),
        ("letter", None),
    ]


def test_the_commands_and_the_example_of_the_page_are_understood(cli, capsys):
    """They are too long to be run here: what is in them is checked without training."""
    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("kinfold compare ")]
    assert len(lines) >= 3
    for line in lines:
        given = _parse("compare", shlex.split(line)[2:])
        for arm in given.get("arms", "all-rows").split(","):
            assert resolve_arm(arm).name == arm
    found = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert found is not None
    Path("c.yaml").write_text(found[1])
    status, out, _ = cli("compare", "--config", "c.yaml", "--epochs", "1", "--seeds", "1", "--tasks", "2")
    assert status == 0
    assert "papa-soup" in out
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    exec(compile(found[1], "comparing.md", "exec"), {"__name__": "page"})
    assert "accuracy on rows that no arm has seen" in capsys.readouterr().out
    for name in set(re.findall(r"^\| `([\w-]+)`", page, re.MULTILINE)):
        assert name in CONTROLS


def stopped(argv, begun, number=signal.SIGINT):
    """What a command prints in a process of its own that is signalled once a file has come to be: (out, err)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kinfold", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests run as a shell's background job, SIGINT is ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(Path().glob(begun)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    return out, err


def test_an_interrupted_comparison_can_be_resumed(cli):
    argv = ["compare", "iris", "--tasks", "2", "--epochs", "60", "--arms", "conventional,papa", "--seeds", "40"]
    argv += ["--engine", "sequential", "--out", "my grid"]
    out, err = stopped(argv, "my grid/scores/conventional-*.json")
    assert out == ""
    *told, line = err.splitlines()
    assert all(" of 80: seed " in each or each.startswith(("note: ", "warning: ")) for each in told)
    assert line == "kinfold: interrupted; go on with: kinfold compare --resume --out 'my grid'"
    assert not Path("my grid/comparison.md").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_can_be_resumed(cli, number):
    argv = ["train", "iris", "--tasks", "2", "--epochs", "60", "--engine", "sequential", "--out", "my run"]
    out, err = stopped(argv, "my run/checkpoints/*.safetensors", number)
    assert out == ""
    *_, recipe, line = err.splitlines()  # findings of the audit come first
    assert recipe.startswith("note: recipe for table data: ")
    assert line == "kinfold: interrupted; go on with: kinfold train --resume --out 'my run'"
    assert not Path("my run/result.json").exists()
    if number == signal.SIGINT:
        status, resumed, _ = cli("train", "--resume", "--out", "my run", "--json")
        assert status == 0
        _, whole, _ = cli(*argv, "--out", "whole", "--json")
        assert json.loads(resumed)["scores"] == json.loads(whole)["scores"]
        assert Path("my run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_reader_that_stops_early_is_no_failure():
    command = f"{sys.executable} -m kinfold data list | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("0")
    assert done.stderr == ""


def test_a_failed_run_is_one_line_and_status_1(cli):
    status, out, err = cli("train", "iris", *FAST, "--optimizer", "{name: sgd, lr: 1e30}", "--quiet")
    assert (status, out) == (1, "")
    assert err.startswith("kinfold: no task ever had a finite score")
    assert len(err.splitlines()) == 1


def test_an_unexpected_error_is_one_line_unless_debugging(cli, monkeypatch):
    def broken(given):
        raise ZeroDivisionError("two\nlines \x1b[31m")

    monkeypatch.setitem(COMMANDS, "report", dataclasses.replace(COMMANDS["report"], run=broken))
    status, out, err = cli("report", "run")
    assert (status, out) == (1, "")
    assert err == (
        "kinfold: ZeroDivisionError: two lines \\x1b[31m (unexpected, perhaps a bug; KINFOLD_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("KINFOLD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["report", "run"])


def test_report_is_rewritten(cli):
    assert cli("train", "iris", *FAST, "--out", "run")[0] == 0
    before = Path("run/report.html").read_text()
    Path("run/report.html").unlink()
    assert cli("report", "run") == (0, "run/report.html\n", "")
    assert Path("run/report.html").read_text() == before


def test_a_report_with_rows(cli):
    assert cli("train", "iris", *FAST, "--out", "run")[0] == 0
    before = Path("run/report.html").read_text()
    status, _, err = cli("report", "run", "--rows", "wine")
    assert (status, err.count("\n")) == (2, 1)
    assert "rows: wine is not the data of the run, which were iris, or has changed since" in err
    assert Path("run/report.html").read_text() == before
    assert cli("report", "run", "--rows", "iris") == (0, "run/report.html\n", "")
    shown = Path("run/report.html").read_text()
    assert 'class="cards"' in shown
    assert 'class="cards"' not in before


def test_a_run_made_from_python(cli):
    X, y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2

    kinfold.fit(lambda: nn.Linear(3, 2), (X, y), tasks=2, epochs=2, out="objects")
    for argv in (("evaluate", "objects", "iris"), ("train", "--config", "objects/config.yaml", "--out", "new")):
        status, out, err = cli(*argv)
        assert (status, out) == (2, "")
        assert "Python object" in err
        assert len(err.splitlines()) == 1

    def half(outputs, targets):
        return 0.5

    kinfold.fit("mlp", (X, y), tasks=2, epochs=2, metric=half, out="metric")
    np.savez("d.npz", X=X.numpy(), y=y.numpy())
    status, out, _ = cli("evaluate", "metric", "d.npz")
    assert status == 0
    assert out.startswith("accuracy ")
    assert "the run's metric was a Python object; this is the default metric." in out


IRIS = "{class_path: torch.nn.Linear, init_args: {in_features: 4, out_features: %d}}"


def write_bad_files():
    """What the bad inputs below name."""
    frame = table(40)
    frame.assign(species="oak").to_csv("one_class.csv", index=False)
    frame.assign(when=range(40), species=["a"] * 20 + ["b"] * 20).to_csv("late_class.csv", index=False)
    frame.head(3).to_csv("few.csv", index=False)
    frame.assign(size=[1.0] * 39 + [np.inf]).to_csv("infinite.csv", index=False)
    frame.assign(species=[None, *frame.species[1:]]).to_csv("no_target.csv", index=False)
    Path("truncated.csv").write_text(Path("trees.csv").read_text().rstrip("\n").rsplit(",", 1)[0] + "\n")
    X, y = np.ones((40, 2)), np.arange(40) % 2
    np.savez("nan.npz", X=np.where(np.arange(80).reshape(40, 2) == 5, np.nan, X), y=y)
    np.savez("infinite_target.npz", X=X, y=np.where(y == 1, np.inf, 0.5))
    np.savez("good.npz", X=X, y=y)
    content = Path("good.npz").read_bytes()
    Path("truncated.npz").write_bytes(content[: len(content) // 2])
    Path("pickled.npz").write_bytes(b"\x80\x04K\x01.")
    Path("unknown_key.yaml").write_text("data: iris\ntaks: 3\n")
    Path("object.yaml").write_text("data: iris\nmodel: <torch.nn.modules.linear.Linear>\n")
    Path("null.yaml").write_text("data: iris\ntasks: null\n")
    Path("arms.yaml").write_text("data: iris\narms: [conventional, 3]\n")
    Path("sealed.yaml").write_text("data: iris\nholdout: 0.1\n")
    Path("holds_a_comparison").mkdir()
    Path("holds_a_comparison/comparison.yaml").write_text("data: iris\n")
    Path("text.yaml").write_text("tasks: many\ndata: iris\n")
    Path("list.yaml").write_text("- a\n")
    Path("broken.yaml").write_text("tasks: [1\n")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("holds_a_run").mkdir()
    Path("holds_a_run/config.yaml").write_text("data: iris\n")


BAD = {
    "data": (["train", "digts"], "did you mean 'digits'"),
    "no data": (["train"], "DATA"),
    "no file": (["train", "nothing.csv", "--target", "y"], "nothing.csv: no such file"),
    "model": (["train", "iris", "--model", "mpl"], "did you mean 'mlp'"),
    "rule": (["train", "iris", "--transfer", "amtoo"], "did you mean 'amto'"),
    "rule argument": (["train", "iris", "--transfer", "{name: amto, perod: 2}"], "did you mean 'period'"),
    "method": (["train", "iris", "--methods", "[mixed]"], "methods"),
    "splits": (["train", "iris", "--splits", "foo"], "splits"),
    "engine": (["train", "iris", "--engine", "fast"], "engine"),
    "device": (["train", "iris", "--device", "abacus"], "device"),
    "metric": (["train", "iris", "--metric", "acuracy"], "did you mean 'accuracy'"),
    "column": (["train", "trees.csv", "--target", "specis"], "did you mean 'species'"),
    "no target": (["train", "trees.csv"], "target"),
    "groups column": (["train", "trees.csv", "--target", "species", "--groups", "x"], "x"),
    "one class": (["train", "one_class.csv", "--target", "species"], "oak"),
    "class in validation only": (
        ["train", "late_class.csv", "--target", "species", "--times", "when", "--holdout", "0", "--tasks", "2"],
        "'b'",
    ),
    "NaN feature": (["train", "nan.npz"], "row 2"),
    "infinite feature": (["train", "infinite.csv", "--target", "species"], "size"),
    "missing target": (["train", "no_target.csv", "--target", "species"], "row 0"),
    "infinite target": (["train", "infinite_target.npz"], "row 1"),
    "few rows": (["train", "few.csv", "--target", "species"], "rows"),
    "narrow model": (["train", "iris", "--model", IRIS % 2], "model"),
    "wide model": (["train", "iris", "--model", IRIS % 5], "model"),
    "model input": (["train", "digits", "--model", IRIS % 10], "model"),
    "out holds a run": (["train", "iris", "--out", "holds_a_run"], "holds a run"),
    "out is not empty": (["train", "iris", "--out", "full"], "not empty"),
    "out is a file": (["train", "iris", "--out", "trees.csv"], "is a file"),
    "config key": (["train", "--config", "unknown_key.yaml"], "did you mean 'tasks'"),
    "config object": (["train", "--config", "object.yaml"], "Python object"),
    "config null": (["train", "--config", "null.yaml"], "tasks: is null"),
    "config type": (["train", "--config", "text.yaml"], "give a whole number"),
    "config list": (["train", "--config", "list.yaml"], "holds no keys"),
    "config broken": (["train", "--config", "broken.yaml"], "broken.yaml"),
    "config missing": (["train", "--config", "none.yaml"], "none.yaml: no such file"),
    "truncated row": (["train", "truncated.csv", "--target", "species"], "line 41"),
    "truncated archive": (["train", "truncated.npz"], "truncated.npz"),
    "pickle": (["train", "pickled.npz"], "pickled.npz"),
    "type": (["train", "iris", "--tasks", "2.5"], "tasks: is '2.5'; give a whole number"),
    "tasks": (["train", "iris", "--tasks", "0"], "tasks"),
    "share": (["train", "iris", "--val-fraction", "1.5"], "val_fraction"),
    "kind": (["train", "iris", "--kind", "cluster"], "classification, regression or null"),
    "brackets": (["train", "iris", "--transfer", "{name: amto"], "close its brackets"),
    "flag": (["train", "iris", "--taks", "3"], "--taks"),
    "resume without out": (["train", "iris", "--resume"], "--out"),
    "command": (["trian", "iris"], "did you mean 'train'"),
    "no run": (["evaluate", "full", "iris"], "holds no run"),
    "no run directory": (["predict", "nowhere", "iris", "--out", "p.csv"], "nowhere"),
    "no --out": (["predict", "full", "iris"], "out"),
    "report of nothing": (["report", "full"], "holds no run"),
    "arm": (["compare", "iris", "--arms", "conventional,amtoo"], "did you mean 'amto'"),
    "argument of an arm": (
        ["compare", "iris", "--arms", "[conventional, {name: x, transfre: papa}]"],
        "did you mean 'transfer'",
    ),
    "rule of an arm": (["compare", "iris", "--arms", "[{name: x, transfer: amtoo}]"], "did you mean 'amto'"),
    "name of an arm": (["compare", "iris", "--arms", "[{name: ../x, transfer: papa}]"], "slashes"),
    "arms twice": (["compare", "iris", "--arms", "papa,papa"], "each once"),
    "no arms": (["compare", "iris", "--arms", "[]"], "at least one"),
    "arms type": (["compare", "--config", "arms.yaml"], "arms: "),
    "control": (["compare", "iris", "--control", "papa", "--arms", "amto"], "not among the arms"),
    "seeds": (["compare", "iris", "--seeds", "0"], "at least 1"),
    "seeds type": (["compare", "iris", "--seeds", "many"], "give a whole number"),
    "test rows": (["compare", "iris", "--test", "none.csv"], "none.csv: no such file"),
    "test and share": (["compare", "iris", "--test", "iris", "--test-share", "0.3"], "leave out one"),
    "share of test rows": (["compare", "iris", "--test-share", "1.5"], "test_share"),
    "no test rows": (["compare", "iris", "--test-share", "0"], "test_share"),
    "compared data": (["compare", "digts"], "did you mean 'digits'"),
    "official test part": (["compare", "mnist1d", "--arms", "amtoo"], "did you mean 'amto'"),
    "rule of a comparison": (["compare", "iris", "--transfer", "papa"], "--transfer"),
    "key of a comparison": (["compare", "--config", "sealed.yaml"], "unknown name 'holdout'"),
    "no data to compare": (["compare"], "DATA"),
    "comparison without out": (["compare", "iris", "--resume"], "--out"),
    "out holds a comparison": (["compare", "iris", "--out", "holds_a_comparison"], "already holds a comparison"),
    "out holds no comparison": (["compare", "iris", "--out", "full"], "holds no comparison"),
    "control characters": (["train", "\x1b[31m\nx"], r"\x1b[31m"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(cli, case):
    write_bad_files()
    argv, expected = BAD[case]
    before = files()
    status, out, err = cli(*argv)
    assert status == 2, err
    assert out == ""
    assert err.startswith("kinfold: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert expected in err
    assert files() == before


def test_bad_input_to_a_finished_run(cli):
    table()
    assert cli("train", "trees.csv", "--target", "species", *FAST, "--out", "run")[0] == 0
    Path("strange.csv").write_text("size,colour,species\n1,red,elm\n")
    Path("narrow.csv").write_text("colour\nred\n")
    before = files()
    for argv, expected in (
        (("evaluate", "run", "strange.csv"), "elm"),
        (("evaluate", "run", "trees.csv", "--target", "x"), "x"),
        (("predict", "run", "narrow.csv", "--out", "p.csv"), "size"),
        (("predict", "run", "trees.csv", "--out", "p.txt"), ".txt"),
        (("predict", "run", "digits", "--out", "p.csv"), "kinfold"),
    ):
        status, out, err = cli(*argv)
        assert (status, out) == (2, ""), (argv, err)
        assert expected in err
        assert len(err.splitlines()) == 1
        assert files() == before
