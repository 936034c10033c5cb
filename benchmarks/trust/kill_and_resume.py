"""Kills training runs at random moments, resumes each, and compares where they end with a run left in peace.

    python benchmarks/trust/kill_and_resume.py [--kills 10] [--epochs 200] [--seed 0] [--out FILE.md]

Each run is a process of `python -m kinfold train digits`, ended by SIGKILL at a moment drawn uniformly over the
duration of the undisturbed run (start-up and the writing of checkpoints included), and gone on with by `--resume`.
Equal means bit for bit: `model.safetensors`, every tensor and value of the last checkpoint, `history.jsonl` and
`result.json`, all but for the times in them. The exit status is 1 where a run is not equal.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import kinfold
from kinfold.files import read_json, read_json_lines, read_tensors, write_text


def command(epochs: int, out: Path | str) -> list[str]:
    """The command that is killed; `--quiet` keeps its progress off the terminal."""
    settings = ["--tasks", "8", "--epochs", str(epochs), "--seed", "0", "--quiet"]
    return ["-m", "kinfold", "train", "digits", *settings, "--out", str(out)]


def train(epochs: int, out: Path, *flags: str, kill_after: float | None = None) -> float:
    """Runs the command, to its end or until it is killed; returns the seconds it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command(epochs, out), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # one thread: sums are then taken in one order
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return time.monotonic() - began
    if process.returncode != 0:
        raise SystemExit(f"{shlex.join(command(epochs, out))} failed: {said.decode()}")
    return time.monotonic() - began


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint, or None before the first."""
    return max((run / "checkpoints").glob("period-*.safetensors"), default=None)


def reached(run: Path) -> str:
    """Where a killed run stood, as its files say."""
    if (run / "result.json").exists():
        return "finished" if (run / "report.html").exists() else "finished but for the report"
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return "before the first period" if run.exists() else "before anything was written"
    writing = any((run / "checkpoints").glob(".*.part"))
    return f"period {int(checkpoint.stem.split('-')[1])}" + (", writing a checkpoint" if writing else "")


def untimed(value: Any) -> Any:
    """JSON without the numbers that are times or follow from them, or the memory of one process."""
    if isinstance(value, dict):
        timed = ("seconds", "samples_per_second", "peak_memory_bytes")
        return {k: untimed(v) for k, v in value.items() if k not in timed and not k.endswith("_seconds")}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def differences(one: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same, bit for bit."""
    found = []
    if (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes():
        found.append("model.safetensors")
    if untimed(read_json(one / "result.json")) != untimed(read_json(other / "result.json")):
        found.append("result.json")
    if untimed(read_json_lines(one / "history.jsonl")) != untimed(read_json_lines(other / "history.jsonl")):
        found.append("history.jsonl")
    paths = last_checkpoint(one), last_checkpoint(other)
    if None in paths or paths[0].name != paths[1].name:
        return [*found, "checkpoints"]
    (tensors, values), (others, other_values) = (read_tensors(path) for path in paths if path is not None)
    bits = [{name: (v.dtype, v.shape, v.numpy().tobytes()) for name, v in part.items()} for part in (tensors, others)]
    if bits[0] != bits[1] or json.dumps(untimed(values)) != json.dumps(untimed(other_values)):
        found.append("last checkpoint")
    if not (other / "report.html").exists():
        found.append("report.html is missing")
    if any(other.rglob(".*.part")) or (other / ".lock").exists():
        found.append("a temporary file is left")
    return found


def processor() -> str:
    """The model of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill training runs at random moments, resume and compare them.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    table, equal = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        duration = train(arguments.epochs, whole)
        for kill in range(1, arguments.kills + 1):
            run, moment = Path(scratch, f"kill{kill}"), moments.uniform(0.0, duration)
            while train(arguments.epochs, run, kill_after=moment) < moment:  # it ended first: nothing was killed
                shutil.rmtree(run)
                moment = moments.uniform(0.0, moment)
            where = reached(run)
            train(arguments.epochs, run, "--resume")
            found = differences(whole, run)
            equal += not found
            table.append(f"| {kill} | {moment:.2f} | {where} | {'yes' if not found else 'no: ' + ', '.join(found)} |")
            print(table[-1], flush=True)
    result = f"{equal} of {arguments.kills} runs, killed and resumed, ended bit for bit as the undisturbed one."
    page = [
        "# Kill and resume",
        "",
        result,
        "",
        f"- each run: `python {shlex.join(command(arguments.epochs, 'DIR'))}`, {duration:.1f} s undisturbed",
        f"- this table: `python {shlex.join(['benchmarks/trust/kill_and_resume.py', *sys.argv[1:]])}`",
        f"- kinfold {kinfold.__version__}, torch {torch.__version__}, Python {platform.python_version()}, one thread",
        f"- {os.cpu_count()} cores of {processor()}",
        f"- {datetime.date.today().isoformat()}",
        "",
        "| kill | after, seconds | killed at | equal |",
        "|---|---|---|---|",
        *table,
    ]
    write_text(arguments.out, "\n".join(page) + "\n")
    print(result)
    return 0 if equal == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
