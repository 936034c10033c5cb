"""Data of different natures, end to end through the command line, each with a test part that training never sees.

    python benchmarks/generalization/kinds.py [--only NAME ...] [--out FILE]

Sets come from `kinfold data get`. Where there is an official test part, the figure is `kinfold evaluate` on it; else
it is the estimate on the sealed rows. Every run is one process, and its memory is that process's peak.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance


@dataclass(frozen=True)
class Case:
    """A run, and what it is to reach.

    Attributes:
        data: the set's name.
        flags: what `kinfold train` gets beside it.
        above: accuracy to exceed; None where the run only has to end.
        test: whether the set has an official test part.
    """

    data: str
    flags: str
    above: float | None
    test: bool = True


CASES = (
    Case("mnist", "--model lenet5 --tasks 4 --epochs 3", 0.975),
    Case("fashion-mnist", "--model lenet5 --tasks 4 --epochs 3", 0.85),
    Case("cifar-10", "--model resnet20 --tasks 4 --epochs 2 --holdout 0.9", None),
    Case("letter", "--model mlp --tasks 4 --holdout 0.2", 0.90, test=False),
    Case("magic", "--tasks 4 --holdout 0.2", 0.85, test=False),
    Case(
        "20newsgroups",
        "--model '{name: textcnn, width: 64, maps: 64}' --optimizer '{name: adamw, lr: 0.003}' --batch-size 32 "
        "--tasks 4 --epochs 7 --holdout 0",
        0.70,
    ),
    Case("sms-spam", "--tasks 4 --holdout 0.2", 0.97, test=False),
    Case("forda", "--model fcn --tasks 4 --epochs 3", 0.85),
    Case("japanese-vowels", "--tasks 4", 0.93),
)


def line(case: Case, folder: Path) -> str:
    command = ["kinfold", "train", case.data, *shlex.split(case.flags)]
    began = time.perf_counter()
    _kinfold(*command[1:], "--out", str(folder), "--quiet")
    seconds = time.perf_counter() - began
    result = json.loads((folder / "result.json").read_text())
    found, rows = result["estimate"], "sealed rows"
    if case.test:
        found, rows = json.loads(_kinfold("evaluate", str(folder), f"{case.data}:test", "--json")), "test part"
        found = found.get("estimate", found)
    reached = case.above is None or found["value"] > case.above
    goal = "runs" if case.above is None else f"> {100 * case.above:.1f} %"
    return (
        f"| {case.data} | `{shlex.join(command)}` | {100 * found['value']:.1f} % "
        f"({100 * found['low']:.1f} to {100 * found['high']:.1f}) | {found['rows']} {rows} | {goal} "
        f"| {'yes' if reached else '**no**'} | {seconds:.0f} | {result['cost']['peak_memory_bytes'] / 2**30:.2f} "
        f"| {result['engine']} |"
    )


def _kinfold(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kinfold", *arguments], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[case.data for case in CASES])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = []
    for case in CASES:
        if case.data in given.only:
            with tempfile.TemporaryDirectory() as folder:
                lines.append(line(case, Path(folder, "run")))
            print(lines[-1], file=sys.stderr, flush=True)
    text = (
        f"# Data of different natures\n\n{provenance()}\n\n"
        "Accuracy with its 95 % interval (Wilson), on rows that neither training nor selection saw. Seconds: of\n"
        "the whole command; GiB the peak of its resident memory.\n\n"
        "| data | command | accuracy | on | goal | reached | seconds | GiB | engine |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
