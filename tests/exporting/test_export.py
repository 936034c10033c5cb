"""Exports: what is written gives what the model gives, says how to use it, and is whole or not there."""

import dataclasses
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import kinfold
from kinfold.cli import main
from kinfold.data import from_frame, from_pixels, from_series, from_texts, some_rows
from kinfold.errors import InputError, RunError
from kinfold.exporting import PROGRAMS, export
from kinfold.exporting.archive import torch_program
from kinfold.exporting.onnx import onnx_program
from kinfold.result import Result

ROWS = 1_000
QUICK: dict[str, Any] = {  # few rows train, all are checked
    "tasks": 2,
    "epochs": 1,
    "holdout": 0.8,
    "transfer": "none",
    "engine": "sequential",
}
WORDS = ["a", "good", "bad", "film", "plot", "dull", "nice", "what"]


def table(rows: int = ROWS) -> pd.DataFrame:
    draws = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "colour": draws.choice(["red", "blue", "green"], rows),
            "size": draws.normal(1e4, 1e3, rows),
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(draws.integers(0, 10**8, rows), unit="s"),
            "review": [" ".join(draws.choice(WORDS, 6)) for _ in range(rows)],
            "member": draws.random(rows) > 0.5,
            "town": draws.choice(["Ulm", "Bonn"], rows),
            "plum": np.where(draws.random(rows) > 0.5, "yes", "no"),
        }
    )
    for column in ("colour", "size", "when", "review"):
        frame.loc[draws.random(rows) < 0.1, column] = None
    frame.loc[rows - 1, "town"] = "Rome"
    return frame


def images(channels: int, side: int) -> kinfold.data.Dataset:
    draws = np.random.default_rng(1)
    pixels = draws.integers(0, 256, (ROWS, side, side, channels), dtype=np.uint8)
    return from_pixels(pixels, draws.integers(0, 3, ROWS))


def series() -> kinfold.data.Dataset:
    draws = np.random.default_rng(2)
    rows = [draws.normal(3, 2, (2, length)).astype(np.float32) for length in draws.integers(5, 25, ROWS)]
    rows[1][0, 2], rows[2][:, 0] = np.nan, np.nan
    return from_series(rows, draws.integers(0, 2, ROWS))


def texts() -> kinfold.data.Dataset:
    draws = np.random.default_rng(3)
    return from_texts(
        [" ".join(draws.choice(WORDS, n)) for n in draws.integers(1, 9, ROWS)], draws.integers(0, 2, ROWS)
    )


CASES: dict[str, Any] = {
    "mlp": lambda: ({"name": "mlp", "hidden": [16]}, kinfold.data.read("digits")),
    "lenet5": lambda: ("lenet5", images(1, 28)),
    "resnet20": lambda: ("resnet20", images(3, 8)),
    "lstm": lambda: ({"name": "lstm", "width": 8}, series()),
    "lstm-text": lambda: ({"name": "lstm", "width": 8}, texts()),
    "table": lambda: ({"name": "ft-transformer", "width": 16, "layers": 1}, from_frame(table(), "plum")),
}


def by_onnx(content: bytes, tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content)
    names = [each.name for each in session.get_inputs()]
    assert [each.shape[0] for each in session.get_inputs()] == ["batch"] * len(names)
    return session.run(None, dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True)))


def by_torch(content: bytes, tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    program = torch.export.load(io.BytesIO(content)).module()
    with torch.no_grad():
        return [output.numpy() for output in program(*tensors)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_programs_give_what_the_model_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    model, dataset = CASES[name]()
    result = kinfold.fit(model, dataset, **QUICK)
    features = some_rows(dataset.features, ROWS)
    tensors = result.encoder.program().tensors(features)
    logits, probabilities = result.outputs(features).numpy(), result.predict_proba(features)
    assert len(logits) == ROWS
    scale = np.abs(logits).max()
    onnx, about = onnx_program(result._finished(), "rows", features)
    archive, _ = torch_program(result._finished(), "rows", features)
    monkeypatch.setattr(torch, "load", None)  # nothing in an archive is unpickled
    for found in (by_onnx(onnx, tensors), by_torch(archive, tensors)):
        assert np.abs(found[0] - logits).max() <= 1e-5 * scale
        assert np.abs(found[1] - probabilities).max() <= 1e-5
    assert about["labels"] == list(dataset.target.labels or ())
    assert about["checked"]["rows"] == ROWS


def test_zeros_around_negative_numbers_are_their_maxima(tmp_path: Path) -> None:
    """A runtime that merges padding into pooling pads with -infinity instead."""
    pytest.importorskip("onnx")
    x = -1 - np.random.default_rng(0).random((40, 1, 4, 4)).astype(np.float32)

    def model() -> nn.Module:
        pool = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 1))
        return nn.Sequential(pool, nn.Flatten(), nn.Linear(16, 2))

    result = kinfold.fit(model, (x, np.arange(40) % 2), tasks=2, epochs=1, engine="sequential")
    onnx = result.export("onnx", tmp_path, rows=x).read_bytes()
    assert np.abs(by_onnx(onnx, (torch.from_numpy(x),))[0] - result.outputs(x).numpy()).max() < 1e-5


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Result:
    frame, folder = table(200), tmp_path_factory.mktemp("table")
    frame["size"] = frame["size"].round(3)
    frame.drop(columns="when").to_csv(folder / "rows.csv", index=False)
    return kinfold.fit("mlp", str(folder / "rows.csv"), target="plum", out=folder / "run", **{**QUICK, "holdout": 0.5})


def run_of(result: Result) -> str:
    return str(Path(result.config["data"]).parent / "run")


def test_the_description_alone_is_enough_for_a_table(tabular: Result, tmp_path: Path) -> None:
    """What stands in the ONNX file leads from raw rows to labels, without Kinfold."""
    onnx = pytest.importorskip("onnx")
    content = tabular.export("onnx", tmp_path).read_bytes()
    props = {each.key: each.value for each in onnx.load_from_string(content).metadata_props}
    about = json.loads(props["kinfold"])
    frame = pd.read_csv(tabular.config["data"])
    given = {each["name"]: np.zeros((len(frame), each["shape"][1]), each["type"]) for each in about["inputs"]}
    for column in about["preprocessing"]["columns"]:
        values, place = frame[column["name"]], column.get("place")
        if column["input"] == "numbers":
            given["numbers"][:, place] = values
        elif column["input"] == "codes":
            codes = [column["missing"] if pd.isna(v) else column["codes"].get(v, column["others"]) for v in values]
            given["codes"][:, place] = codes
        else:
            counts = [[np.nan if pd.isna(v) else v.split().count(w) for w in column["vocabulary"]] for v in values]
            given[column["input"]][:] = counts
    outputs = by_onnx(content, tuple(torch.from_numpy(values) for values in given.values()))
    assert [about["labels"][number] for number in outputs[1].argmax(1)] == tabular.predict(frame).tolist()
    assert json.loads((tmp_path / "model.onnx.json").read_text()) == about


def test_a_regression_and_a_model_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    result = kinfold.fit(lambda: nn.Linear(10, 1), "diabetes", tasks=2, epochs=1, precision="float64")
    for name in PROGRAMS:
        path = result.export(name, tmp_path)
        about = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert ([each["name"] for each in about["outputs"]], about["labels"]) == (["values"], None)
    X = kinfold.data.read_features("diabetes")
    tensors = result.encoder.program().tensors(X)
    expected = result.outputs(X).numpy()
    for found in (
        by_onnx((tmp_path / "model.onnx").read_bytes(), tensors),
        by_torch((tmp_path / "model.pt2").read_bytes(), tensors),
    ):
        assert np.abs(found[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_archives_hold_no_pickle(tabular: Result, tmp_path: Path) -> None:
    with zipfile.ZipFile(tabular.export("torch.export", tmp_path / "a.pt2")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (inputs,) = (content for name, content in members.items() if "sample_inputs" in name)
    assert inputs == b""
    configs = [content for name, content in members.items() if name.endswith("_config.json")]
    assert len(configs) == 2
    assert not any(b'"use_pickle": true' in content for content in configs)
    assert json.loads(members["kinfold.json"] if "kinfold.json" in members else _extra(members))["format"]


def _extra(members: dict[str, bytes]) -> bytes:
    (found,) = (content for name, content in members.items() if name.endswith("extra/kinfold.json"))
    return found


def test_safetensors_are_loaded_without_the_run(tabular: Result, tmp_path: Path, capsys: Any) -> None:
    folder = tabular.export("safetensors", tmp_path / "dist")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "MODEL_CARD.md"}
    loaded, frame = kinfold.load(folder), pd.read_csv(tabular.config["data"])
    assert torch.equal(loaded.outputs(frame), tabular.outputs(frame))
    assert (loaded.to_json(), loaded.target, loaded.source) == (tabular.to_json(), tabular.target, tabular.source)
    assert (len(loaded.splits), loaded.splits.tasks) == (0, 2)
    assert main(["predict", str(folder), tabular.config["data"], "--out", str(tmp_path / "p.csv")]) == 0
    assert pd.read_csv(tmp_path / "p.csv")["prediction"].tolist() == tabular.predict(frame).tolist()
    assert main(["evaluate", str(folder), tabular.config["data"]]) == 0
    again = loaded.export("safetensors", tmp_path / "again")
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_command(tabular: Result, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "new" / "plums.pt2"
    assert main(["export", run_of(tabular), "--format", "torch.export", "--out", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert sorted(path.name for path in target.parent.iterdir()) == ["plums.pt2", "plums.pt2.json", "plums.pt2.md"]
    before = target.read_bytes()
    again = ["export", run_of(tabular), "--format", "torch.export", "--out", str(target), "--rows", "iris"]
    assert main(again) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*again, "--force"]) == 2  # rows of another kind
    assert "has no column 'colour'" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main([*again[:-1], tabular.config["data"], "--force"]) == 0


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("onx", "x", "format: unknown name 'onx', did you mean 'onnx'"),
        ("onnx", "x.pt2", "x.pt2 ends '.pt2'; give a folder, or a file ending .onnx"),
        ("safetensors", "x.safetensors", "x.safetensors is a file, .* give a folder"),
    ],
)
def test_bad_exports_are_one_line(tabular: Result, tmp_path: Path, name: str, out: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tabular.export(name, tmp_path / out)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="is a run directory"):
        tabular.export("safetensors", run_of(tabular))
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_rows_are_one_line(tabular: Result, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("onnxruntime")  # whose absence is made up below, one package after another
    gone = dataclasses.replace(tabular, config=tabular.config | {"data": str(tmp_path / "gone.csv")})
    with pytest.raises(InputError, match=r"the run's data cannot be read here \(.*no such file\); give rows"):
        gone.export("torch.export", tmp_path)
    own = dataclasses.replace(tabular, config=tabular.config | {"data": "<DataFrame>"})
    with pytest.raises(InputError, match="were a Python object; give rows"):
        own.export("torch.export", tmp_path)
    assert own.export("torch.export", tmp_path, rows=pd.read_csv(tabular.config["data"])[:1]).exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"needs onnxscript; install it by: pip install 'kinfold\[onnx\]'"):
        tabular.export("onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_differs_is_not_written(tabular: Result, tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    wrong = dataclasses.replace(tabular._finished(), outputs=lambda x: tabular.outputs(x) * (1 + 2e-5))
    with pytest.raises(RunError, match="differs from the model by 2.0e-05 of the greatest of its logits on 200"):
        export(wrong, name, tmp_path)
    assert not list(tmp_path.iterdir())


class Choosing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def test_a_model_that_cannot_become_a_program(tmp_path: Path) -> None:
    result = kinfold.fit(lambda: Choosing(4, 3), "iris", engine="sequential", tasks=2, epochs=1)
    with pytest.raises(RunError, match="Choosing cannot become a program") as error:
        result.export("torch.export", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    result.export("safetensors", tmp_path)
    with pytest.raises(InputError, match="give load"):
        kinfold.load(tmp_path)


class Unwritable(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.linalg.eigvals(x[:, :, None] * x[:, None]).real.amax(1, keepdim=True)


def test_a_model_that_onnx_has_no_operation_for(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    result = kinfold.fit(lambda: Unwritable(4, 3), "iris", engine="sequential", tasks=2, epochs=1)
    with pytest.raises(RunError, match="Unwritable cannot become ONNX .* choose torch.export or safetensors") as error:
        result.export("onnx", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
