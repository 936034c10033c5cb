"""Writes the first inputs of the fuzzers: `python tests/fuzz/seeds.py`, one small whole file or two a reader.

What the fuzzers found beside these lies in the same folders, as `found-*`.
"""

import gzip
import io
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save

import kinfold
from kinfold.transfer import AMTO

CORPUS = Path(__file__).parent / "corpus"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def picture(form: str, mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    colours = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(colours).convert(mode).save(file, form, **options)
    return file.getvalue()


def table(form: str) -> bytes:
    file = io.BytesIO()
    frame = pd.DataFrame(
        {"a": [1.5, None, 3.0], "b": ["x", "y", None], "c": pd.Categorical(["u", "v", "u"]), "y": [0, 1, 0]}
    )
    if form == "parquet":
        frame.to_parquet(file, engine="pyarrow", index=False)
    else:
        frame.to_feather(file)
    return file.getvalue()


def saved_rows() -> dict[str, bytes]:
    """The files of a small data set of pictures, as `save_to_disk` of `datasets` writes them."""
    import datasets

    features = datasets.Features({"i": datasets.Image(), "l": datasets.ClassLabel(names=["u", "v"])})
    pixels = np.arange(4 * 27, dtype=np.uint8).reshape(4, 3, 3, 3)
    rows = datasets.Dataset.from_dict({"i": list(pixels), "l": [0, 1, 0, 1]}, features=features)
    with tempfile.TemporaryDirectory() as folder:
        rows.save_to_disk(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def wav(tag: int, bits: int, channels: int = 1, rate: int = 8000) -> bytes:
    sound = bytes(range(64)) * (bits // 8)
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(sound)) + sound
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def run_directory() -> dict[str, bytes]:
    """The files of a small finished run."""
    X = np.arange(48, dtype=np.float32).reshape(24, 2) / 48
    frame = pd.DataFrame({"a": X[:, 0], "b": ["u", "v"] * 12, "y": ["yes", "no", "no"] * 8})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        kinfold.fit(
            {"name": "mlp", "hidden": [2]},
            frame,
            target="y",
            tasks=2,
            epochs=2,
            batch_size=8,
            transfer=AMTO(),
            engine="sequential",
            out=out,
        )
        files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".html"}
        (*_, checkpoint) = sorted(out.joinpath("checkpoints").glob("*.safetensors"))
        return {**files, "checkpoint": checkpoint.read_bytes()}


CONFIG = """\
data: table.csv
target: y
tasks: 4
val_fraction: 0.2
optimizer: {name: adamw, lr: 0.001}
scheduler: cosine
loss: {class_path: torch.nn.CrossEntropyLoss, init_args: {label_smoothing: 0.1}}
metric: {class_path: torchmetrics.classification.MulticlassAccuracy, init_args: {num_classes: 3}}
transfer: [teach, {name: papa, alpha: 0.98}]
methods: [mixup, {class_path: kinfold.methods.LabelSmoothing, init_args: {epsilon: 0.1}}]
model: {name: mlp, hidden: [8, 8]}
candidates: [soup, ema]
batch_size: auto
patience: null
"""

TS = """\
# a remark
@problemName x
@timeStamps false
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true up down
@data
1,?,3:4,5,6:up
7,8,9:0,1e2,-3:down
"""


def seeds() -> dict[str, list[bytes]]:
    """Returns the first inputs by reader (see `fuzzing.TARGETS`)."""
    run = run_directory()
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, 4, 3, 3) + bytes(range(36))
    record = bytes(range(256)) * 12
    masks = {
        "train": torch.tensor([[1, 1, 0, 0]]),
        "validation": torch.tensor([[0, 0, 1, 0]]),
        "sealed": torch.tensor([0, 0, 0, 1]),
    }
    about = {"about": json.dumps({"format": "kinfold splits", "version": 1})}
    return {
        "csv": [b"a;b;y\n1;u;0\n2.5;'v, w';1\n;NA;0\n", b'a,"b ""c""",y\r\n1,"two\nlines",yes\r\n-2,x,no\r\n'],
        "tsv": [b"1\t0.5\t-1e3\tNaN\n2\t1\t2\t3\n", b"a\ty\n1\tu\n2\tv\n"],
        "tab": [b"topic\tbody\tn\nd\tstring\tc\nclass\t\tmeta\nspace\tto the moon\t1\nsea\t?\t2\n"],
        "jsonl": [b'{"text": "a b", "label": 1, "n": null}\n{"text": "c \\u00e9", "label": 0, "n": 2.5}\n'],
        "ts": [TS.encode(), b"@targetLabel true\n@data\n1,2:0.5\n3:1e3\n"],
        "parquet": [table("parquet")],
        "arrow": [table("arrow")],
        "saved rows": [saved_rows()["data-00000-of-00001.arrow"]],
        "npz": [npz(X=np.eye(3, dtype=np.float32), y=np.array([0, 1, 0]))],
        "npz member": [npy(np.eye(3, dtype=np.float32)), npy(np.arange(12, dtype=">i2").reshape(3, 2, 2))],
        "npy": [npy(np.eye(3, dtype=np.float32)), npy(np.zeros((3, 2, 2), dtype=np.uint8))],
        "idx": [images, struct.pack(">BBBBII", 0, 0, 13, 2, 4, 2) + np.ones(8, ">f4").tobytes()],
        "idx.gz": [gzip.compress(images, mtime=0)],
        "idx.gz content": [images],
        "cifar": [b"\3" + record + b"\4" + record],
        "image": [
            picture("PNG", "RGBA"),
            picture("PNG", "P"),
            picture("JPEG", "RGB"),
            picture("GIF", "P"),
            picture("BMP", "RGB"),
            picture("TIFF", "RGB", compression="tiff_lzw"),
            picture("TIFF", "F"),
            picture("WEBP", "RGB"),
            picture("PPM", "L"),
        ],
        "wav": [wav(1, 16), wav(1, 24, 2, 44_100), wav(3, 32), wav(1, 8, rate=16_000)],
        "yaml": [
            b"a: &x [1, 2.5, null, true]\nb: *x\nc: {<<: {d: 2020-01-01}, e: !!binary aGk=}\nf: |\n  text\n",
            b"? [k]\n: !!set {x, y}\n",
            run["config.yaml"],
        ],
        "config": [CONFIG.encode()],
        "parts of a run": [CONFIG.encode(), b"loss: {class_path: torch:os.system, init_args: {command: 'true'}}\n"],
        "splits": [save({name: mask.to(torch.uint8) for name, mask in masks.items()}, about)],
        "checkpoint": [run["checkpoint"]],
        "history.jsonl": [run["history.jsonl"]],
        "result.json": [run["result.json"]],
        "model.json": [run["model.json"]],
        "model.safetensors": [run["model.safetensors"]],
        "config.yaml": [run["config.yaml"]],
    }


def write() -> None:
    """Writes the seeds."""
    for name, contents in seeds().items():
        folder = CORPUS / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            (folder / f"seed-{number}").write_bytes(content)
    beside = CORPUS / "saved-rows-beside"
    beside.mkdir(exist_ok=True)
    for name, content in saved_rows().items():
        if not name.endswith(".arrow"):
            (beside / name).write_bytes(content)


if __name__ == "__main__":
    write()
