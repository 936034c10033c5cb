"""What a newcomer gets wrong: one line that says what, where, and what to do; and nothing half-written."""

import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kinfold.cli import main


def write_files():
    """What the mistakes below name."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=60)
    frame = pd.DataFrame({"size": size, "species": np.where(size > 0, "oak", "ash")})
    frame.to_csv("trees.csv", index=False)
    frame.assign(id=range(60), note=[f"number {i} by the road" for i in range(60)]).to_csv("ids.csv", index=False)
    frame.assign(species="oak").to_csv("one.csv", index=False)
    frame.assign(species=[None, *frame.species[1:]]).to_csv("gap.csv", index=False)
    frame.assign(when=[1] * 30 + [2] * 30).to_csv("when.csv", index=False)
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("a,b\n")
    Path("book.xlsx").write_bytes(b"PK")
    Path("photos").mkdir()
    Path("blunders_net.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Linear(1, 2)\n"
        "def wide(): return nn.Linear(4, 7)\n"
        "def bad(): raise KeyError('weights')\n"
        "number = 3\n"
    )
    Path("done").mkdir()
    with redirect_stdout(StringIO()) as config:
        main(["train", "iris", "--epochs", "3", "--print-config"])
    Path("done/config.yaml").write_text(config.getvalue())


TABLE = ("train", "trees.csv", "--target", "species")
MISTAKES = {
    "no command": (("--tasks", "3"), "--tasks: comes after a command, such as kinfold train --tasks"),
    "a misspelt command": (("trian", "iris"), "did you mean 'train'"),
    "a misspelt flag": (("train", "iris", "--taks", "3"), "--taks: unknown flag, did you mean --tasks?"),
    "a flag with =": (("train", "iris", "--epoch=3"), "--epoch: unknown flag, did you mean --epochs?"),
    "a word too many": (("train", "my", "table.csv"), "table.csv: unknown argument; quote what has spaces"),
    "a flag without its value": (("train", "iris", "--tasks"), "--tasks: expected one argument"),
    "a word for a number": (("train", "iris", "--epochs", "ten"), "epochs: is 'ten'; give a whole number or auto"),
    "a misspelt column": (("train", "trees.csv", "--target", "specis"), "did you mean 'species'"),
    "a column in other letters": (("train", "trees.csv", "--target", "SPECIES"), "did you mean 'species'"),
    "no target": (("train", "trees.csv"), "target: name the column of trees to predict. Columns: size, species"),
    "a misspelt file": (("train", "tres.csv", "--target", "species"), "no such file; did you mean 'trees.csv'?"),
    "no such file": (("train", "zzz.csv", "--target", "species"), "data: zzz.csv: no such file."),
    "a spreadsheet": (("train", "book.xlsx", "--target", "a"), "save it as CSV"),
    "an empty file": (("train", "empty.csv", "--target", "a"), "empty.csv: line 1 is empty"),
    "no rows": (("train", "header.csv", "--target", "b"), "header.csv: has column names and no rows"),
    "an empty folder": (("train", "photos"), "photos holds nothing that is known"),
    "an identifier as target": (
        ("train", "ids.csv", "--target", "id"),
        "each of the 60 rows has a label of its own, so none can be learned",
    ),
    "a text as target": (("train", "ids.csv", "--target", "note"), "each of the 60 rows has a label of its own"),
    "words to be regressed on": ((*TABLE, "--kind", "regression"), "regression needs numbers"),
    "one class": (("train", "one.csv", "--target", "species"), "every row has the label 'oak'"),
    "a gap in the target": (("train", "gap.csv", "--target", "species"), "row 0 has no value; fill it or drop the row"),
    "tasks for more times than there are": (
        ("train", "when.csv", "--target", "species", "--times", "when", "--tasks", "50", "--holdout", "0"),
        "tasks: 50 ordered splits need as many different times",
    ),
    "ordered without times": ((*TABLE, "--splits", "ordered"), "say which column or array holds each row's time"),
    "a share in per cent": (("train", "iris", "--val-fraction", "20"), "val_fraction: must be above 0 and below 1"),
    "a misspelt rule": (("train", "iris", "--transfer", "papas"), "did you mean 'papa'"),
    "rules with a comma": (("train", "iris", "--transfer", "teach, papa"), "several together are written 'teach+papa'"),
    "an optimizer in other letters": (("train", "iris", "--optimizer", "adamW"), "did you mean 'adamw'"),
    "an argument in words": (
        ("train", "iris", "--optimizer", "{name: adam, lr: high}"),
        "optimizer.lr: is 'high'; give a number",
    ),
    "a loss for values": (("train", "iris", "--loss", "mse"), "loss: 'mse' is for regression, and "),
    "a metric for values": (("train", "iris", "--metric", "r2"), "metric: 'r2' is for regression, and "),
    "a metric for classes": (("train", "diabetes", "--metric", "accuracy"), "'accuracy' is for classification"),
    "no rows in a batch": (
        ("train", "iris", "--batch-size", "0"),
        "batch_size: is 0; give a whole number of at least 1",
    ),
    "a network by nothing but its module": (("train", "iris", "--model", "blunders_net"), "package.module:factory"),
    "a network by its file": (
        ("train", "iris", "--model", "blunders_net.py:net"),
        "names a file; name the module, 'blunders_net:net'",
    ),
    "a module that is not there": (
        ("train", "iris", "--model", "blunders_nets:net"),
        "No module named 'blunders_nets'",
    ),
    "a misspelt factory": (("train", "iris", "--model", "blunders_net:nett"), "did you mean 'net'?"),
    "a factory that fails": (
        ("train", "iris", "--model", "blunders_net:bad"),
        "kinfold: model: 'blunders_net:bad' failed (KeyError: 'weights').",
    ),
    "no factory": (("train", "iris", "--model", "blunders_net:number"), "is a int; name a function or a class"),
    "a network of the wrong width": (
        ("train", "iris", "--model", "blunders_net:wide"),
        "it gives 7 numbers a row, and the data has 3 classes; make its last layer 3 wide",
    ),
    "a network for other rows": (
        ("train", "iris", "--model", "blunders_net.net"),
        "training step on rows of shape (4,)",
    ),
    "a network for pictures": (("train", "iris", "--model", "lenet5"), "kinfold: model: lenet5 needs images"),
    "no GPU": (("train", "iris", "--device", "cuda"), "device: 'cuda' cannot be used here"),
    "a GPU by another name": (("train", "iris", "--device", "gpu:1"), "a GPU is 'cuda:1'"),
    "a criterion by another name": (("train", "iris", "--criterion", "median"), "criterion: unknown name 'median'"),
    "a folder that cannot be made": (
        ("train", "iris", "--out", "trees.csv/x"),
        "out: trees.csv/x cannot be written to",
    ),
    "a folder with a run": (("train", "iris", "--out", "done"), "already holds a run"),
    "to go on with another configuration": (
        ("train", "--resume", "--out", "done", "--epochs", "4"),
        "resume: epochs is 4, and the run in done has 3",
    ),
    "a run that is not there": (("predict", "nowhere", "iris", "--out", "p.csv"), "nowhere is not a directory"),
    "an unknown shell": (("completion", "tcsh"), "invalid choice: 'tcsh'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_helps(cli, monkeypatch, case):
    write_files()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "blunders_net", raising=False)
    argv, expected = MISTAKES[case]
    if case == "no GPU" and torch.version.cuda is not None:
        pytest.skip("there may be one")
    before = sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in str(path))
    status, out, err = cli(*argv)
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert expected in err
    assert sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in str(path)) == before


def test_a_batch_of_more_rows_than_there_are_is_told(cli):
    status, _, err = cli("train", "iris", "--batch-size", "1000", "--tasks", "2", "--epochs", "1", "--out", "run")
    assert status == 0
    assert "note: batch_size 1000 is more than the 108 rows a task trains on: they are one batch" in err
