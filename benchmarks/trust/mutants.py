"""Would the tests notice? Breaks the code that decides, one place at a time, and runs its tests on each broken copy.

    python benchmarks/trust/mutants.py [--sample 400] [--seed 0] [--only splits] [--out benchmarks/trust/mutants.json]

A mutant differs from the code in one operator, number, truth value, argument or statement, outside documentation,
annotations and messages. Of all there are, `--sample` are drawn, each as likely as the others. It is killed where a
doctest or a test of its file fails or, if those all pass, one of its package, or where it takes ten times as long.
What survives is listed with its line; mutants.md says of each why that is so.

Processes are forked from one that has imported everything but Kinfold, and find it in a copy of `src`.
"""

import argparse
import ast
import contextlib
import doctest
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("selection", "splits", "transfer", "checkpoint")
TESTED_BY = {
    **dict.fromkeys(("drawn", "grouped", "kfold", "ordered", "shuffle", "stratified"), "tests/splits/test_drawn.py"),
    "__init__": "tests/splits/test_resolve.py",
}
"""Of files of `splits` whose tests are not named after them."""
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Mult,
}
_LEFT_OUT = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)
_NAMES = {
    "any": "all",
    "all": "any",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "argmax": "argmin",
    "zeros": "ones",
    "ones": "zeros",
    "sum": "prod",
    "mean": "sum",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    "isfinite": "isnan",
    "isnan": "isfinite",
    "floor": "ceil",
    "ceil": "floor",
}


@dataclass(frozen=True)
class Mutant:
    """One change to one file."""

    file: str
    line: int
    was: str
    now: str
    source: str


def mutants(file: str) -> list[Mutant]:
    """Returns all mutants of a file, in the order of their lines."""
    tree = ast.parse((ROOT / "src" / "kinfold" / file).read_text())
    found = []
    for node, where in list(_places(tree)):
        for change in _changes(node):
            kind = type(node)
            before = {name: value[:] if isinstance(value, list) else value for name, value in vars(node).items()}
            was = _text(node)
            change(node)
            found.append(Mutant(file, where, was, _text(node), ast.unparse(tree)))
            vars(node).update(before)
            node.__class__ = kind
    return found


def _text(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:110]


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Yields what may be changed, with its line: no documentation, annotation, message, table of names or type."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "names", "bases"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, _LEFT_OUT):
                continue
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                continue
            yield node, getattr(node, "lineno", getattr(tree, "lineno", 0))
            yield from _places(node)


def _changes(node: ast.AST) -> Iterator[Callable[[Any], Any]]:
    if isinstance(node, ast.Compare):
        yield lambda n: n.ops.__setitem__(0, _SWAPS[type(n.ops[0])]())
    elif (isinstance(node, (ast.BoolOp, ast.BinOp)) and type(node.op) in _SWAPS and not _is_text(node)) or (
        isinstance(node, ast.AugAssign) and type(node.op) in _SWAPS
    ):
        yield lambda n: setattr(n, "op", _SWAPS[type(n.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        double = ast.Not if isinstance(node.op, ast.Not) else ast.Invert
        yield lambda n: setattr(n, "operand", ast.UnaryOp(double(), n.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield lambda n: setattr(n, "attr", _NAMES[n.attr])
    elif isinstance(node, ast.Name) and node.id in ("any", "all", "min", "max"):
        yield lambda n: setattr(n, "id", _NAMES[n.id])
    elif isinstance(node, ast.IfExp):
        yield lambda n: (lambda body, other: (setattr(n, "body", other), setattr(n, "orelse", body)))(n.body, n.orelse)
    elif isinstance(node, ast.If):
        yield lambda n: setattr(n, "test", ast.Constant(False))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield lambda n: setattr(n, "__class__", ast.Break if isinstance(n, ast.Continue) else ast.Continue)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield lambda n: setattr(n, "value", ast.Constant(None))


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(part, ast.JoinedStr) or _is_string(part) for part in ast.walk(node))


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def files() -> list[str]:
    """Returns the files of the packages that are broken, from `src/kinfold`."""
    folder = ROOT / "src" / "kinfold"
    paths = [path for package in PACKAGES for path in sorted((folder / package).glob("*.py"))]
    return [str(path.relative_to(folder)) for path in [*paths, folder / "checkpoint.py"]]


def stages(file: str) -> list[list[str]]:
    """Returns the tests of a file, then those of its package."""
    path = Path(file)
    if path.parent == Path():
        return [[f"tests/test_{path.stem}.py"]]
    own = ROOT / "tests" / path.parent / f"test_{path.stem}.py"
    fallback = TESTED_BY.get(path.stem) if path.parent.name == "splits" else None
    first = str(own.relative_to(ROOT)) if own.exists() else fallback
    rest = [str(one.relative_to(ROOT)) for one in sorted((ROOT / "tests" / path.parent).glob("test_*.py"))]
    whole = [one for one in rest if one != first]
    return [whole] if first is None else [[first], whole]


@dataclass(frozen=True)
class Step:
    """Tests that a mutant has to pass, after the file's doctests where those come first."""

    tests: list[str]
    doctests: bool
    seconds: int
    left_out: list[str]


def survives(file: str, step: Step) -> tuple[bool, float, str]:
    """Returns whether a file passes a step; the processor's seconds; and what the tests print."""
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (step.seconds, step.seconds))
                signal.alarm(30 * step.seconds)
                code = (_doctests(file) if step.doctests else 0) or _tests(step.tests, step.left_out)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status, used = os.wait4(pid, 0)
        said.seek(0)
        return status == 0, used.ru_utime + used.ru_stime, said.read()


def _doctests(file: str) -> int:
    name = ".".join(("kinfold", *Path(file).with_suffix("").parts)).removesuffix(".__init__")
    return int(doctest.testmod(importlib.import_module(name)).failed > 0)


def _tests(tests: list[str], deselected: list[str]) -> int:
    import pytest

    quiet = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    left_out = [word for test in deselected for word in ("--deselect", test)]
    return int(pytest.main([*quiet, *ignored, *left_out, *tests]))


def preload() -> None:
    """Imports what Kinfold and its tests do, so that forked processes need not."""
    import beartype.claw
    import hypothesis.extra.numpy
    import jaxtyping
    import pandas
    import pytest
    import safetensors.torch
    import scipy.stats
    import sklearn.model_selection
    import torch
    import torchmetrics
    import yaml

    del beartype, hypothesis, pandas, pytest, safetensors, scipy, sklearn, torchmetrics, yaml
    torch.set_num_threads(1)
    # Checking types at run time kills many a mutant, and takes longer than the tests: here it is they that are asked.
    jaxtyping.install_import_hook = lambda *_: None


def steps_of(file: str, own: bool) -> list[Step]:
    """Returns what is asked of a file's mutants, having run it on the file as it is."""
    steps = []
    for number, tests in enumerate(stages(file)[:1] if own else stages(file)):
        step = Step(tests, number == 0, 600, [])
        while True:  # what fails without a mutant says nothing of one
            passed, seconds, said = survives(file, step)
            failing = [line.split()[1] for line in said.splitlines() if line.startswith("FAILED")]
            if passed or not failing:
                break
            print(f"{file}: left out, since they fail by themselves: {failing}", flush=True)
            step = replace(step, left_out=step.left_out + failing)
        if passed:
            steps.append(replace(step, seconds=10 + int(10 * seconds)))
        else:
            print(f"{file}: its tests do not run\n{said[-3000:]}", flush=True)
    return steps


class Copied:
    """A copy of `src` that processes forked from here find Kinfold in."""

    def __init__(self, folder: Path):
        self._src = folder / "src"
        shutil.copytree(ROOT / "src", self._src, ignore=shutil.ignore_patterns("__pycache__"))
        sys.path[:] = [str(self._src), *(path for path in sys.path if Path(path) != ROOT / "src")]
        os.environ["PYTHONPATH"] = str(self._src)
        self._tick = int(time.time()) - 10**7

    def write(self, file: str, source: str) -> None:
        """Compiled files are known by whole seconds: whatever is written has one of its own."""
        path = self._src / "kinfold" / file
        path.write_text(source)
        self._tick += 1
        os.utime(path, (self._tick, self._tick))


def drawn(sample: int, seed: int, only: str) -> list[Mutant]:
    """Returns so many of all mutants, each as likely as the others, in the order of the draw."""
    everything = [mutant for file in files() if only in file for mutant in mutants(file)]
    return random.Random(seed).sample(everything, min(sample, len(everything)))


def interval(killed: int, of: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share.

    Example:
        >>> [round(end, 3) for end in interval(90, 100)]
        [0.826, 0.945]
    """
    z, share = 1.96, killed / of
    centre, width = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (centre - width) / (1 + z * z / of), (centre + width) / (1 + z * z / of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--own", action="store_true", help="ask a file's own tests alone, not those of its package")
    parser.add_argument("--again", type=Path, help="a table of before, of which only what survived is run again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "trust" / "mutants.json")
    given = parser.parse_args()
    os.chdir(ROOT)
    chosen, rows, steps = drawn(given.sample, given.seed, given.only), [], dict[str, list[Step]]()
    if given.again is not None:
        left = {(row["file"], row["line"], row["was"]) for row in json.loads(given.again.read_text()) if not row["by"]}
        chosen = [one for one in chosen if (one.file, one.line, one.was) in left]
    preload()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        copied = Copied(Path(folder))
        for mutant in chosen:  # of a draw that is cut short, the beginning is a draw too
            if mutant.file not in steps:
                steps[mutant.file] = steps_of(mutant.file, given.own)
            copied.write(mutant.file, mutant.source)
            by = next((" ".join(step.tests) for step in steps[mutant.file] if not survives(mutant.file, step)[0]), None)
            copied.write(mutant.file, (ROOT / "src" / "kinfold" / mutant.file).read_text())
            row = {name: value for name, value in asdict(mutant).items() if name != "source"} | {"by": by}
            rows.append(row)
            print(json.dumps(row), flush=True)
            given.out.write_text(json.dumps(rows, indent=0) + "\n")
    killed = sum(row["by"] is not None for row in rows)
    low, high = interval(killed, len(rows))
    print(f"{killed} of {len(rows)} killed: {killed / len(rows):.1%}, 95 % interval {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
