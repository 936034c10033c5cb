"""Puts hostile files before every reader, guided by what code they reach, and counts what the readers do with them.

    python benchmarks/trust/fuzz.py [--inputs 10000] [--only NAME] [--jobs 2] [--keep FOLDER] [--out FILE.md]

Every reader is fuzzed by Atheris (libFuzzer; `pip install atheris`) in a process of its own. Its inputs begin with
those of `tests/fuzz/corpus`; those that reach new code are changed further, and half of all are made by the changes of
`tests/fuzz/fuzzing.py`, which knows tokens of the formats. What counts as a finding is said there, too; besides, a
process may take no more than 3 GiB of address space beyond what it has after importing, and one that dies, or gives no
answer for ten minutes, is a finding. Findings are written to FOLDER. The exit status is 1 where there is one.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "fuzz"), str(ROOT / "benchmarks")]

INSTRUMENTED = (
    "kinfold.data",
    "kinfold.files",
    "kinfold.limits",
    "kinfold.config",
    "kinfold.importing",
    "kinfold.result",
)
with atheris.instrument_imports(include=[*INSTRUMENTED, "kinfold.report", "kinfold.cli.keys", "csv", "zipfile"]):
    import fuzzing

from provenance import provenance  # noqa: E402  # after what is to be instrumented

for package in ("torchmetrics.classification", "torchvision.datasets", "datasets", "timm"):
    with contextlib.suppress(ImportError):  # or the first input that names it pays for its import
        importlib.import_module(package)
MEMORY = 3 * 2**30
LONGEST = 1 << 14
PATIENCE_S = 600


def fuzz(name: str, inputs: int, folder: Path) -> None:
    """Fuzzes one target and ends the process; the counts are in `folder/counts.json`, the findings beside it."""
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    verdicts: Counter[str] = Counter()
    slowest = 0.0
    kept, rng = fuzzing.seeds(name), random.Random(name)
    workplace = fuzzing.workplace(name, folder)
    judge = workplace.__enter__()

    def changed(content: bytes, longest: int, seed: int) -> bytes:
        if rng.random() < 0.5:
            return atheris.Mutate(content, longest)  # type: ignore[no-any-return]
        return fuzzing.mutated([content, rng.choice(kept)] if content else kept, rng)[:longest]

    def one(content: bytes) -> None:
        nonlocal slowest
        began = time.process_time()
        verdict = judge.verdict(content)
        slowest = max(slowest, time.process_time() - began)
        verdicts[verdict] += 1
        if verdict not in ("read", "refused") and verdicts[verdict] == 1:
            (folder / f"finding-{len(verdicts)}").write_bytes(content)
        if verdicts.total() >= inputs:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            said = {"verdicts": verdicts, "slowest": slowest, "peak": peak}
            (folder / "counts.json").write_text(json.dumps(said), encoding="utf-8")
            workplace.__exit__(None, None, None)
            os._exit(0)

    found, first = folder / "found", folder / "first"  # inputs that reached new code, and those it begins with
    for each in (found, first):
        each.mkdir()
    for number, content in enumerate(kept):
        (first / str(number)).write_bytes(content)
    flags = (
        f"-max_len={LONGEST}",
        "-len_control=0",
        f"-timeout={PATIENCE_S}",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=0",
        "-seed=1",
    )
    atheris.Setup([sys.argv[0], *flags, str(found), str(first)], one, custom_mutator=changed)
    atheris.Fuzz()


def in_child(name: str, inputs: int, keep: Path | None) -> dict[str, Any]:
    """Fuzzes one target in a process of its own; returns what it counted."""
    with tempfile.TemporaryDirectory() as place:
        folder, log = Path(place), Path(place, "log")
        process = os.fork()
        if process == 0:
            with log.open("wb") as told:
                os.dup2(told.fileno(), 1)
                os.dup2(told.fileno(), 2)
            fuzz(name, inputs, folder)
        os.waitpid(process, 0)
        counts = folder / "counts.json"
        if not counts.exists():
            said = {"verdicts": {f"died: {log.read_text(errors='replace').strip()[-300:]}": 1}, "slowest": 0, "peak": 0}
        else:
            said = json.loads(counts.read_text(encoding="utf-8"))
        if keep is not None:
            for path in [*folder.glob("finding-*"), *folder.glob("crash-*"), *folder.glob("timeout-*")]:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name.replace(' ', '-')}-{path.name}").write_bytes(path.read_bytes())
        said["reached"] = len(list((folder / "found").iterdir()))
        print(name, said, file=sys.stderr, flush=True)
        return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", action="append")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| reader | inputs | read | refused | findings | reached new code | slowest | peak memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    print(*lines, sep="\n", flush=True)
    findings: Counter[str] = Counter()
    names = arguments.only or [*fuzzing.TARGETS]
    with ThreadPoolExecutor(arguments.jobs) as pool:  # of threads that wait, each for its process
        counted = pool.map(lambda name: in_child(name, arguments.inputs, arguments.keep), names)
        results = dict(zip(names, counted, strict=True))
    for name, said in results.items():
        verdicts = Counter(said["verdicts"])
        others = {verdict: count for verdict, count in verdicts.items() if verdict not in ("read", "refused")}
        findings.update({f"{name}: {verdict}": count for verdict, count in others.items()})
        lines.append(
            f"| {name} | {verdicts.total():,} | {verdicts['read']:,} | {verdicts['refused']:,} "
            f"| {sum(others.values())} | {said['reached']} | {said['slowest']:.2f} s | {said['peak']} MiB |"
        )
        print(lines[-1], *others, sep="\n  ", flush=True)
    listed = [f"- {count} × {verdict}" for verdict, count in findings.items()] or ["No findings."]
    text = "\n".join(["# Hostile files", "", provenance(), "", WHAT, "", *lines, "", *listed, ""])
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    return 1 if findings else 0


WHAT = f"""\
Each reader is given files that Atheris makes of the kept ones, guided by the code they reach, in a process of its own.
A finding is anything but reading a file or refusing it with one line: another exception, {fuzzing.SECONDS} s of
processor time, a write outside of the reader's folder, a process, a socket, more than {MEMORY >> 30} GiB beyond what
the process takes after importing. Peak memory contains that: PyTorch and the rest, some 350 MiB."""


if __name__ == "__main__":
    sys.exit(main())
