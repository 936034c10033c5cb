"""Whoever wrote a run directory: reading it runs none of their code, and what is written holds none of the rows."""

import json
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import kinfold
from kinfold.assembling import resolve_trackers
from kinfold.cli import main
from kinfold.cli.keys import interrupted
from kinfold.data.table_files import write_table
from kinfold.errors import InputError
from kinfold.files import append_text, inert, read_json, read_json_lines, read_tensors, read_yaml, write_tensors
from kinfold.importing import is_part_name, load_callable, only_parts
from kinfold.limits import YAML_DEPTH
from kinfold.sklearn import KinfoldClassifier

MARK = "zq7marker"


def fitted(folder, **changed):
    """A small run on a table whose rows hold a marker."""
    frame = pd.DataFrame(
        {"a": np.arange(40.0), "b": [f"{MARK}{i}" for i in range(40)], "y": [f"class{i % 2}" for i in range(40)]}
    )
    settings = {"tasks": 2, "epochs": 2, "batch_size": 8, "engine": "sequential", "out": folder, "target": "y"}
    return kinfold.fit({"name": "mlp", "hidden": [4]}, frame, **(settings | changed))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust") / "run"
    fitted(folder)
    return folder


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module that Python finds, though not in the working directory; it leaves a trace when imported, or called."""
    name = f"kf_theirs_{abs(hash(str(tmp_path)))}"
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / f"{name}.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('imported').touch()\n"
        "def net():\n    Path('called').touch()\n    return nn.Flatten()\n"
        "def rows():\n    Path('called').touch()\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(installed), *sys.path])
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "torch:load",
        "torch:os.system",
        "torch.nn:Module.__class__",
        "torch.nn.functional:importlib.import_module",
        "torch.nn.functional.torch.hub.load",
        "torch.hub:load",
        "torch.utils.cpp_extension:load_inline",
        "kinfold.files:write_text",
        "kinfold.splits:save_splits",
        "kinfold.cli:main",
        "kinfold.__main__:main",
        "torch.nn.utils:parameters_to_vector",
        "torchmetrics.utilities.imports:RequirementCache",
        "numpy:load",
    ],
)
def test_a_run_directory_names_nothing_but_parts(name):
    with (
        only_parts("runs/theirs"),
        pytest.raises(InputError, match="loss: runs/theirs names .*; where you trust") as error,
    ):
        load_callable(name, "loss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn:CrossEntropyLoss",
        "torch.nn.functional:cross_entropy",
        "torch.optim.adamw:AdamW",
        "torch.optim.lr_scheduler.StepLR",
        "torchmetrics:Accuracy",
        "torchmetrics.classification.f_beta:MulticlassF1Score",
        "torchmetrics.functional.classification:multiclass_accuracy",
        "kinfold.transfer:AMTO",
        "kinfold.methods.mixup:Mixup",
        "kinfold.splits.saved:Saved",
    ],
)
def test_parts_can_be_named_by_anybody(name):
    with only_parts("runs/theirs"):
        assert callable(load_callable(name, "part"))


def test_what_the_user_names_is_the_users_own_will(theirs):
    assert callable(load_callable(f"{theirs}:net", "model"))
    assert callable(load_callable("torch:load", "data"))
    with only_parts("runs/theirs", [f"{theirs}:net"]):
        assert callable(load_callable(f"{theirs}:net", "model"))
        with pytest.raises(InputError, match="model: runs/theirs names"):
            load_callable(f"{theirs}:Path", "model")
        with only_parts("inner", ["os:system"]), pytest.raises(InputError, match="model: inner names 'os:system'"):
            load_callable("os:system", "model")


def test_of_the_working_directory_its_own_classes_and_functions_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = (
        "import os\nfrom functools import partial\nfrom torch import nn\n"
        "def net():\n    return nn.Flatten()\n"
        "now = partial(net)\n"
    )
    for module in ("kf_own", "kf_package/__init__", "runs/kf_sent", "runs/theirs/kf_sent"):
        path = tmp_path / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    with only_parts("runs/theirs"):
        for name in ("kf_own:net", "kf_own.net", "kf_package:net"):
            assert load_callable(name, "model")
        for name in (
            "kf_own:os.system",
            "kf_own:nn.Module.__class__",
            "kf_own:now",
            "runs.kf_sent:net",
            "runs.theirs.kf_sent:net",
        ):
            with pytest.raises(InputError, match=r"model: runs/theirs names .* give --trust"):
                load_callable(name, "model")
        for name in ("a" * 5000 + ":net", "語" * 100 + ":net", "kf_own/../kf_own:net"):  # too long for a file
            with pytest.raises(InputError, match=r"model: runs/theirs names .* give --trust") as error:
                load_callable(name, "model")
            assert len(str(error.value)) < 600
    for source in (".", "..", str(tmp_path), "kf_own.py"):  # sent along with what is read
        with only_parts(source), pytest.raises(InputError, match="model: .* names 'kf_own:net'"):
            load_callable("kf_own:net", "model")
    assert not {"runs.kf_sent", "runs.theirs.kf_sent"} & sys.modules.keys()


def rewritten(folder, file, change):
    """Changes a file of JSON or YAML in a run directory, as its maker would: with no checksum that gives it away."""
    folder.joinpath("SHA256SUMS").unlink(missing_ok=True)
    path = folder / file
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_evaluating_and_predicting_import_nothing_of_the_runs_maker(copied, theirs, tmp_path, capsys):
    pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"], "y": ["class0", "class1"]}).to_csv("rows.csv", index=False)
    words = {"evaluate": ["evaluate", "run", "rows.csv"], "predict": ["predict", "run", "rows.csv", "--out", "p.csv"]}
    rewritten(copied, "config.yaml", lambda said: said.update(loss=f"{theirs}:net"))
    assert main(words["evaluate"]) == 2
    assert f"loss: run names '{theirs}:net'" in capsys.readouterr().err
    rewritten(copied, "model.json", lambda said: said.update(model={"class_path": f"{theirs}:net"}))
    for verb in words.values():
        assert main(verb) == 2
        assert "give --trust" in capsys.readouterr().err
    with pytest.raises(InputError, match="trust=True"):
        kinfold.load(copied)
    assert main(["report", "run"]) == 0
    assert not Path("imported").exists()
    assert main([*words["predict"], "--trust"]) == 2  # it is asked for, and does not fit
    assert Path("called").exists()
    assert "does not fit" in capsys.readouterr().err


def test_exporting_imports_nothing_of_the_runs_maker(copied, theirs, tmp_path, capsys):
    words = ["export", "run", "--format", "onnx", "--out", "net.onnx"]
    rewritten(copied, "config.yaml", lambda said: said.update(data=f"{theirs}:rows"))
    assert main(words) == 2
    assert "the run's data cannot be read here" in capsys.readouterr().err
    with pytest.raises(InputError, match="give --trust"):
        kinfold.load(copied).export("onnx", tmp_path / "net.onnx")
    assert not Path("imported").exists()
    for given in (["--trust"], ["--rows", f"{theirs}:rows"]):
        Path("called").unlink(missing_ok=True)
        assert main([*words, *given]) != 0  # what it gives are no rows
        assert Path("called").exists()
    kinfold.load(copied).export("safetensors", tmp_path / "exported")
    rewritten(tmp_path / "exported", "model.json", lambda said: said.update(model=f"{theirs}:Path"))
    with pytest.raises(InputError, match="model: .*exported names"):
        kinfold.load(tmp_path / "exported")
    rewritten(tmp_path / "exported", "model.json", lambda said: said.update(history=[1]))
    with pytest.raises(InputError, match="line 1 is no event"):
        kinfold.load(tmp_path / "exported")


def test_a_saved_estimator_imports_nothing_of_its_maker(theirs, tmp_path):
    X = np.eye(8)
    path = KinfoldClassifier(epochs=1, tasks=2, random_state=0).fit(X, ["a", "b"] * 4).save(tmp_path / "estimator")
    rewritten(path, "model.json", lambda said: said.update(model={"class_path": f"{theirs}:net"}))
    with pytest.raises(InputError, match="trust=True"):
        KinfoldClassifier.load(path)
    assert not Path("imported").exists()
    with pytest.raises(InputError, match="does not fit"):
        KinfoldClassifier.load(path, trust=True)
    assert Path("called").exists()
    for damaged in ("[]", '{"estimator": "KinfoldClassifier", "params": 3}'):
        path.joinpath("estimator.json").write_text(damaged)
        with pytest.raises(InputError, match="load: "):
            KinfoldClassifier.load(path)


def test_a_run_directory_sends_nothing_to_its_maker(monkeypatch):
    for tracker in ("tensorboard", "mlflow"):  # as where they are installed
        monkeypatch.setattr(f"kinfold.tracking.{tracker}.check_installed", lambda *names: None)
    with only_parts("run", ["http://mine", "mlflow"]):
        assert resolve_trackers(["tensorboard"], Path())
        assert resolve_trackers({"name": "tensorboard"}, Path())
        for arguments in ({"name": "mlflow", "uri": "http://theirs"}, {"name": "tensorboard", "log_dir": "there"}):
            with pytest.raises(InputError, match="tracking: run names '(http://theirs|there)'"):
                resolve_trackers(arguments, Path())
        with pytest.raises(InputError, match=r"^(?!.* names )"):
            resolve_trackers([{"name": "mlflow", "uri": "http://mine", "unheard": 3}], Path())
    with only_parts("run", ["http://mine"]):
        for sending in ("wandb", ["tensorboard", "mlflow"], {"name": "mlflow", "uri": "http://mine"}):
            with pytest.raises(InputError, match="tracking: run names '(wandb|mlflow)', which sends the run elsewhere"):
                resolve_trackers(sending, Path())


def test_going_on_tells_no_tracker_of_the_makers_choice(copied, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    rewritten(copied, "config.yaml", lambda said: said.update(tracking="wandb", data="iris", target=None))
    (copied / "tracking").mkdir()
    (copied / "tracking" / "wandb.json").write_text('{"id": "mine", "through": 1}')
    of_run = "'run/tracking/wandb.json', which says which run of wandb to go on with"
    for given, names in (([], "'wandb', which sends the run elsewhere"), (["--tracking", "wandb"], of_run)):
        assert main(["train", "--resume", "--out", "run", *given]) == 2
        assert f"names {names}" in capsys.readouterr().err
    copied.joinpath("result.json").unlink()
    assert main(["train", "--resume", "--out", "run"]) == 2
    assert "names 'wandb'" in capsys.readouterr().err
    assert interrupted("train", Path("run"), {"data": "iris", "tracking": "wandb"}).endswith("--trust --out run")


def test_links_in_a_directory_that_is_gone_on_with_are_refused(copied, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    copied.joinpath("result.json").unlink()
    shutil.move(copied / "checkpoints", mine / "checkpoints")
    before = sorted(path.name for path in mine.rglob("*"))
    for name, leads_to in (("checkpoints", mine / "checkpoints"), (".lock", mine / "file"), ("tracking", mine)):
        (copied / name).symlink_to(leads_to)
        with pytest.raises(InputError, match=f"resume: .*{name} is a link to elsewhere"):
            fitted(copied, resume=True)
        (copied / name).unlink()
    (copied / "history.jsonl").replace(mine / "history.jsonl")
    (copied / "history.jsonl").symlink_to(mine / "history.jsonl")
    with pytest.raises(OSError, match="symbolic link|Too many levels"):
        append_text(copied / "history.jsonl", "more\n")
    assert sorted(path.name for path in mine.rglob("*") if path.name != "history.jsonl") == before


def test_going_on_imports_nothing_of_the_runs_maker(copied, theirs, capsys):
    rewritten(copied, "config.yaml", lambda said: said.update(data=f"{theirs}:rows", target=None))
    config = yaml.safe_load(Path("run", "config.yaml").read_text())
    Path("run", "result.json").unlink()
    assert main(["train", "--resume", "--out", "run"]) == 2
    assert f"data: run/config.yaml names '{theirs}:rows'" in capsys.readouterr().err
    assert not Path("imported").exists()
    for given in (["--trust"], ["--config", "run/config.yaml"], [f"{theirs}:rows"]):
        assert main(["train", *given, "--resume", "--out", "run"]) == 2
        assert "data: a int cannot be read" in capsys.readouterr().err
    assert interrupted("train", Path("run"), config).endswith("--resume --trust --out run")
    told = {"data": "digits", "tracking": [{"name": "mlflow", "uri": "http://mine"}]}
    assert interrupted("train", Path("run"), told).endswith("--resume --trust --out run")
    for changes, trusted in [
        ({"model": "pkg.nets.Net"}, True),
        ({"loss": {"class_path": "pkg.losses.Loss"}}, True),
        ({"model": {"name": "timm:resnet18", "pretrained": True}}, True),
        ({"model": {"name": "timm:resnet18.a1_in1k", "pretrained": False}}, False),
        ({"target": "price:usd", "groups": "a:b", "texts": ["c:d"]}, False),
        ({"optimizer": {"class_path": "torch.optim.AdamW"}, "splits": "mine.safetensors"}, False),
        ({"model": "kf_mine:net"}, False),
    ]:
        Path("kf_mine.py").touch()
        assert (" --trust " in interrupted("train", Path("run"), {"data": "digits", **changes})) == trusted
    for data in ("digits", "mnist1d:test", "torchvision:CIFAR10", "timm:resnet18"):
        assert interrupted("train", Path("run"), {"data": data}).endswith("train --resume --out run")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, said: said.pop("engine_name"),
        lambda tensors, said: said.pop("run"),
        lambda tensors, said: said["run"].update(stage=7),
        lambda tensors, said: said["run"].update(data=["x"]),
        lambda tensors, said: said["run"].update(unheard="of"),
        lambda tensors, said: tensors.pop("run/best"),
        lambda tensors, said: tensors.update(loose=torch.zeros(1)),
        lambda tensors, said: said.update(engine_name="torch:os.system"),
    ],
)
def test_a_checkpoint_that_somebody_changed_is_refused(copied, change):
    copied.joinpath("result.json").unlink()
    (*_, path) = sorted(copied.joinpath("checkpoints").glob("*.safetensors"))
    tensors, said = read_tensors(path)
    change(tensors, said)
    write_tensors(path, tensors, said)
    with pytest.raises(InputError, match="checkpoint .*is damaged or of another version|engine: unknown name") as error:
        fitted(copied, resume=True)
    assert "\n" not in str(error.value)


def test_a_hubs_models_bring_no_files_of_the_runs_maker():
    from kinfold.models import untrained
    from kinfold.models.hubs import check_hub_model

    check_hub_model("timm:hf-hub:them/theirs", {"checkpoint_path": "x.pth"})
    with only_parts("run"):
        check_hub_model("timm:resnet18", {"pretrained": False})
        check_hub_model("timm:resnet18.a1_in1k", {"drop_rate": 0.1, "out_indices": [1, 2], "act_layer": "relu"})
        for name, arguments in [
            ("timm:hf-hub:them/theirs", {}),
            ("timm:local-dir:theirs", {}),
            ("timm:resnet18", {"checkpoint_path": "x.pth"}),
            ("timm:resnet18", {"pretrained_cfg": {"url": "x"}}),
            ("timm:resnet18", {"weights": "../x"}),
            ("timm:resnet18", {"pretrained": True}),
            ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ]:
            with pytest.raises(InputError, match="model: run names"):
                check_hub_model(name, arguments)
    assert untrained({"name": "torchvision:resnet18", "weights": "DEFAULT"}) == {"name": "torchvision:resnet18"}
    assert untrained({"name": "mlp", "weights": 3}) == {"name": "mlp", "weights": 3}


def test_a_model_that_claims_to_be_huge_is_refused_before_it_is_built(copied):
    rewritten(copied, "model.json", lambda said: said.update(model={"name": "mlp", "hidden": [10**11]}))
    with pytest.raises(InputError, match="load: the model says 100000000000, and .* were saved of it"):
        kinfold.load(copied)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("model", {"hidden": [4096] * 500}, "does not fit what was saved, at '.*'"),
        ("target", {"outputs": 10**10}, "load: the model says 10000000000"),
        ("target", {"outputs": 4000}, "does not fit what was saved, at '.*'"),
        (
            "encoder",
            {"kind": "image", "shape": [3, 60_000, 60_000], "mean": [0.0], "std": [1.0]},
            "reads rows of shape",
        ),
    ],
)
def test_no_more_memory_is_asked_for_than_what_was_saved_takes(copied, monkeypatch, part, changes, said):
    def made(*sizes, **_):
        assert max(map(int, np.ravel(sizes))) < 1000, "memory is asked for"

    def changed(about):
        if part == "encoder":
            about["encoder"] = {"column": None, **changes}
        else:
            about[part].update(changes)

    rewritten(copied, "model.json", changed)
    monkeypatch.setattr("kinfold.result._filled", made)
    with pytest.raises(InputError, match=said):
        kinfold.load(copied)


def test_yaml_stays_as_small_as_it_looks(tmp_path):
    path = tmp_path / "a.yaml"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    merges = "a: &a {k: v}\n" + "".join(
        f"{name}: &{name} {{<<: [*{before}, *{before}, *{before}, *{before}]}}\n"
        for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
    )
    for content, message in [
        (bomb, "holds more than 20000 values"),
        (merges, "holds more than 20000 values"),
        ("&a [*a]", "contains itself"),
        (yaml.safe_dump({"model": bomb}), "holds more than 20000 values"),
        (yaml.safe_dump({"model": "- " * 60 + "x"}), "nests deeper than 40"),
        (yaml.safe_dump({"model": "[" * 9000}), "nests deeper than 40"),
        ("[" * (YAML_DEPTH + 2) + "]" * (YAML_DEPTH + 2), "nests deeper than 40"),
        ("[" * 20_000, "nests too deeply"),
        ("a: " + "x" * 2**18, "more than 262144 bytes"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        *((f"!!{tag}", "cannot be read as YAML") for tag in ("int ''", "bool x", "timestamp x")),
        ("\xff\xfe", "cannot be read as YAML"),
    ]:
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match=message) as error:
            read_yaml(path)
        assert "\n" not in str(error.value)
    path.write_text("a: &a {k: [1, 2]}\nb: {<<: *a, c: *a}\n")
    assert read_yaml(path) == {"a": {"k": [1, 2]}, "b": {"k": [1, 2], "c": {"k": [1, 2]}}}
    path.write_text("")
    assert read_yaml(path) is None


def test_json_that_nests_without_end_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nests too deeply"):
        read_json(path)
    path.write_text("[" * 100_000 + "\n1\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_json_lines(path)


def test_what_unpacks_to_too_much_is_refused_up_to_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from kinfold.data import read_features

    frame = pd.DataFrame({"a": ["x" * 1000] * 20_000, "b": np.arange(20_000)})
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    frame.to_feather(tmp_path / "a.feather", compression="zstd")
    np.savez_compressed(tmp_path / "a.npz", X=np.zeros((20_000, 100)))
    for name in ("a.parquet", "a.feather", "a.npz"):
        path = tmp_path / name
        assert path.stat().st_size < 10**6
        assert len(read_features(path)) == 20_000
        monkeypatch.setenv("KINFOLD_MAX_BYTES", str(10**6))
        with pytest.raises(InputError, match="raise KINFOLD_MAX_BYTES") as error:
            read_features(path)
        assert "\n" not in str(error.value)
        monkeypatch.delenv("KINFOLD_MAX_BYTES")
    np.savez(tmp_path / "plain.npz", X=np.zeros((20_000, 100)))
    np.random.default_rng(0).random((5000, 40)).tofile(tmp_path / "bytes")
    pd.DataFrame(np.fromfile(tmp_path / "bytes").reshape(-1, 40)).rename(columns=str).to_feather(
        tmp_path / "plain.feather", compression="uncompressed"
    )
    monkeypatch.setenv("KINFOLD_MAX_BYTES", str(10**6))
    for name in ("plain.npz", "plain.feather"):  # as large as what they hold
        assert (tmp_path / name).stat().st_size > 10**6
        assert len(read_features(tmp_path / name)) in (5000, 20_000)
    monkeypatch.delenv("KINFOLD_MAX_BYTES")
    for wrong in ("much", "0", "-1", "٣", "9" * 30):
        monkeypatch.setenv("KINFOLD_MAX_BYTES", wrong)
        with pytest.raises(InputError, match="KINFOLD_MAX_BYTES: is"):
            read_features(tmp_path / "a.npz")


def test_what_takes_nothing_in_a_file_counts_as_it_will_in_memory(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    from kinfold.data import read_features

    rows = 50_000
    empty = pa.table({"a": pa.nulls(rows)})
    truths = pa.table({f"b{i}": pa.array(np.zeros(rows, dtype=bool)) for i in range(4)})
    feather.write_feather(empty, tmp_path / "empty.feather", compression="uncompressed")
    feather.write_feather(truths, tmp_path / "truths.feather", compression="zstd")
    parquet.write_table(truths, tmp_path / "truths.parquet")
    for name in ("empty.feather", "truths.feather", "truths.parquet"):
        assert len(read_features(tmp_path / name)) == rows
        monkeypatch.setenv("KINFOLD_MAX_BYTES", str(8 * rows - 1))
        with pytest.raises(InputError, match="raise KINFOLD_MAX_BYTES"):
            read_features(tmp_path / name)
        monkeypatch.delenv("KINFOLD_MAX_BYTES")
    for held in ([[1, 2]], [{"k": 1}]):
        feather.write_feather(pa.table({"a": held}), tmp_path / "nested.feather")
        with pytest.raises(InputError, match="column 'a' holds lists or structures; drop it"):
            read_features(tmp_path / "nested.feather")


def test_an_array_in_an_archive_that_claims_more_than_there_is(tmp_path):
    from kinfold.data import read_features

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,), }"
    member = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", member)
    with pytest.raises(InputError, match="cannot be read as .npz"):
        read_features(tmp_path / "a.npz")


def test_a_picture_of_absurd_size_is_refused_up_to_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    from kinfold.data import ImageFiles

    path = tmp_path / "a.png"
    Image.new("1", (9000, 11_000)).save(path)
    with pytest.raises(InputError, match="has 9000 × 11000 pixels; make it smaller, or raise KINFOLD_MAX_PIXELS"):
        ImageFiles([path])
    monkeypatch.setenv("KINFOLD_MAX_PIXELS", "100000000")
    assert ImageFiles([path]).pixels((1, 8, 8)).shape == (1, 8, 8)


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path):
    frame = pd.DataFrame(
        {"prediction": ["=1+1", "@x", "+a", "-b", "\tc", "=d\n", "-7", "+1.5e3", "a=b", ""], "@n": [-1.5] * 10}
    )
    write_table(tmp_path / "a.csv", frame)
    text = (tmp_path / "a.csv").read_text()
    assert text.splitlines()[0] == "prediction,'@n"
    assert "'=1+1,-1.5" in text
    assert "\n-7,-1.5" in text
    assert "\n+1.5e3,-1.5" in text
    assert [inert(cell) for cell in (-3, None, 1.5, "=x")] == [-3, None, 1.5, "'=x"]


def test_the_report_shows_what_stands_in_a_run_and_runs_none_of_it(copied):
    script = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    def hostile(said):
        for key in ("data", "model", "engine", "device", "stopped"):
            said[key] = script
        said["scores"]["metric"] = script
        said["selected"]["criterion"] = script

    rewritten(copied, "result.json", hostile)
    rewritten(copied, "config.yaml", lambda said: said.update({script: script, "data": script}))
    with copied.joinpath("history.jsonl").open("a") as file:
        file.write('{"event": "note", "message": "<script>alert(1)</script>"}\n')
    assert main(["report", str(copied)]) == 0
    page = copied.joinpath("report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_names_cannot_steer_a_terminal(run, copied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"], "y": ["class0", "class1"]}).to_csv("rows.csv", index=False)
    escape = "\x1b]0;owned\x07\x1b[2J"
    rewritten(copied, "model.json", lambda said: said["target"].update(labels=[f"class0{escape}", "class1"]))
    main(["evaluate", "run", "rows.csv"])
    rewritten(copied, "model.json", lambda said: said["target"].update(labels=["class0", "class1"], name=escape))
    main(["evaluate", "run", "rows.csv"])
    rewritten(copied, "result.json", lambda said: said.update(scores=escape))
    main(["evaluate", "run", "rows.csv"])
    main(["report", "run"])
    shutil.rmtree("run")
    shutil.copytree(run, "run")
    rewritten(copied, "result.json", lambda said: said.update(engine=escape, device=escape, stopped=escape))
    rewritten(copied, "config.yaml", lambda said: said.update(data="iris"))
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run"]) == 0
    shown = capsys.readouterr()
    assert "owned" in shown.out
    assert "\x1b" not in shown.out + shown.err
    main(["report", "run"])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err


def test_a_run_opens_no_socket_and_leaves_no_rows(tmp_path, monkeypatch):
    def refused(*arguments, **named):
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    result = fitted(tmp_path / "run", transfer="amto", candidates=["soup"])
    result.predict(pd.DataFrame({"a": [1.0], "b": ["u"]}))
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"report.html", "history.jsonl", "result.json"} <= {path.name for path in written}
    holding = {path.name for path in written if MARK.encode() in path.read_bytes()}
    assert holding <= {"model.json"}  # the categories of a column, by which its encoder knows them again


def test_is_part_name_reads_names_alone():
    assert is_part_name("torchmetrics:Accuracy")
    assert not is_part_name("torch:load")
    assert not is_part_name("kinfold")
    assert not is_part_name("torch.nn:_x")
    assert not is_part_name("torch.nnx:y")
