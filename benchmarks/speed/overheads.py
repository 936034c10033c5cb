"""What a run costs besides its training steps: evaluation, transfer, ledger, logging, checkpoints, beginning and end.

    python benchmarks/speed/overheads.py [--against SRC] [--repeats 7] [--cases NAME …] [--rules NAME …] [--out FILE.md]

Each run is a `kinfold.fit` with a run directory, so every period is checkpointed and logged. Seams between the
package's parts are timed, each by what it takes itself and not in seams within it; nothing in the package knows of it.
Rules alternate, and so do two source trees where another is given (`--against`, a folder that holds `kinfold`), each
in a warm process of its own. Imports are not counted.
"""

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

import kinfold
import kinfold.fitting
import kinfold.student
from kinfold import checkpoint, finishing
from kinfold import run as loop
from kinfold.data.benchmarks import digits
from kinfold.engines import Job
from kinfold.engines.local import LocalEngine
from kinfold.engines.workers import Workers
from kinfold.selection.ledger import Ledger
from kinfold.tasks.state import build_starts

RULES = ("none", "distil", "amto", "papa", "teach")
CASES: dict[str, dict[str, Any]] = {
    "digits, MLP, T = 8": {"model": "mlp", "data": "digits", "tasks": 8, "epochs": 60},
    "digits, MLP, T = 16": {"model": "mlp", "data": "digits", "tasks": 16, "epochs": 60},
    "digits at 28×28, LeNet-5, T = 8": {"model": "lenet5", "data": "digits28", "tasks": 8, "epochs": 10},
    "letter, MLP, T = 8": {"model": "mlp", "data": "letter", "tasks": 8, "epochs": 4},
}
EACH_PERIOD = ("evaluation", "transfer", "ledger", "logging", "checkpoints", "loop")
BESIDE = ("beside", "products")
ONCE = ("set-up", "end")


class Clock:
    """Seconds spent under each name, where what is nested within counts for itself alone."""

    def __init__(self) -> None:
        self._home = threading.get_ident()
        self._start()

    def _start(self) -> None:
        self.job: Job | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._names, self._since = ["set-up"], time.perf_counter()

    def _lap(self) -> None:
        now = time.perf_counter()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, timed under `name`; on another thread, that it runs beside the training."""

        @functools.wraps(function)
        def around(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._home:
                began = time.thread_time()
                try:
                    return function(*arguments, **named)
                finally:
                    self.seconds["beside"] += time.thread_time() - began
            self._lap()
            self._names.append(name)
            if name == "loop":  # what no seam covers is set-up before it and belongs to the end after it
                self._names[0] = "end"
            try:
                return function(*arguments, **named)
            finally:
                self._lap()
                self._names.pop()

        return around

    def noted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Returns what trains the tasks of a job, and notes which."""

        @functools.wraps(run)
        def around(engine: Any, job: Job, *arguments: Any, **named: Any) -> Any:
            self.job = job
            return run(engine, job, *arguments, **named)

        return around

    def run(self, fit: Callable[[], Any], epochs: int) -> dict[str, float]:
        """Returns the seconds of a whole run under each name, and of what `bare_products` times for each epoch."""
        self._start()
        fit()
        self._lap()
        return {**self.seconds, "products": epochs * bare_products(self.job) if self.job else math.nan}


def install(clock: Clock) -> None:
    """Puts the clock around the seams."""

    def around(owner: Any, name: str, *functions: str) -> None:
        for function in functions:
            if function in vars(owner):
                setattr(owner, function, clock.timed(name, vars(owner)[function]))

    for engine in (LocalEngine, Workers):
        around(engine, "training", "train", "steps")  # the first to ask draws the order of a period's rows
        around(engine, "evaluation", "score", "snapshot")
    around(loop._Transfers, "transfer", "_transfer")
    around(loop._Transfers, "logging", "_tell", "tell_of_period")
    around(Ledger, "ledger", "after")
    around(kinfold.fitting._History, "logging", "__call__")
    around(loop.Progress, "checkpoints", "save")
    around(checkpoint.Checkpoints, "checkpoints", "save", "__exit__", "_write")
    kinfold.fitting.run = clock.noted(kinfold.fitting.run)
    around(kinfold.fitting, "loop", "run")
    around(finishing, "loop", "train_student")
    around(kinfold.fitting, "end", "finish")


def bare_products(job: Job) -> float:
    """Returns the seconds of scoring all models once, were it their products alone, each layer's in its faster form."""
    (model,) = build_starts(job.model, 1, False, job.seed)
    model.eval()
    calls: list[list[Callable[[], Any]]] = []

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...], _: object) -> None:
        x = given[0]
        if isinstance(layer, nn.Linear):
            stack = torch.ones(job.tasks, x.numel() // x.shape[-1], x.shape[-1])
            weights = torch.ones(job.tasks, *layer.weight.shape).mT
            together = functools.partial(torch.bmm, stack, weights)
            calls.append([together, lambda: [torch.mm(*factors) for factors in zip(stack, weights, strict=True)]])
        elif isinstance(layer, nn.Conv2d):
            weights, how = torch.ones(job.tasks, *layer.weight.shape), (None, layer.stride, layer.padding)
            calls.append([lambda: [nn.functional.conv2d(x, weight, *how) for weight in weights]])

    hooks = [layer.register_forward_hook(note) for layer in model.modules()]
    with torch.no_grad():
        model(job.inputs.rows(job.validation[0].nonzero().flatten()).float())
        for hook in hooks:
            hook.remove()
        return sum(min(map(_seconds, forms)) for forms in calls)


def _seconds(call: Callable[[], Any]) -> float:
    """The median of some calls."""
    found = []
    for _ in range(12):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])  # the first find caches cold


def digits28() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, [1797, 1, 8, 8], enlarged to the pictures that LeNet-5 is usually given."""
    dataset = digits()
    pictures = torch.as_tensor(dataset.features, dtype=torch.float32)
    return torch.nn.functional.interpolate(pictures, (28, 28), mode="bilinear"), dataset.target.values


def measure() -> None:
    """Answers requests, one JSON line each: {"case", "rule", "seed"} → seconds under each name."""
    clock = Clock()
    install(clock)
    made = {"digits28": digits28()}
    for line in sys.stdin:
        asked = json.loads(line)
        case = CASES[asked["case"]]
        folder = Path(tempfile.mkdtemp(dir=asked["folder"]))
        given = {**case, "data": made.get(case["data"], case["data"]), "transfer": asked["rule"], "seed": asked["seed"]}
        seconds = clock.run(functools.partial(kinfold.fit, **given, out=folder / "run"), case["epochs"])
        shutil.rmtree(folder)
        print(json.dumps(seconds), flush=True)


class Side:
    """A warm process that measures one source tree."""

    def __init__(self, source: Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--measure"],
            env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, float]:
        """Returns the seconds of one run under each name."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the measuring process ended with {self._process.wait()}")
        return dict(json.loads(line))


def quartiles(values: list[float], digits: int = 1) -> str:
    """A median with the quartiles around it."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(runs: list[dict[str, float]], epochs: int) -> list[str]:
    """The cells of one rule and tree."""

    def share(run: dict[str, float], *names: str) -> float:
        return 100 * sum(run.get(name, 0.0) for name in names) / run["training"]

    every = [quartiles([share(run, *EACH_PERIOD) for run in runs])]
    every += [f"{statistics.median(share(run, name) for run in runs):.1f}" for name in (*EACH_PERIOD, *BESIDE)]
    once = [f"{1000 * statistics.median(run.get(name, 0.0) for run in runs):.0f}" for name in ONCE]
    return [f"{1000 * statistics.median(run['training'] / epochs for run in runs):.0f}", *every, *once]


def table(found: dict[tuple[str, str, str], list[dict[str, float]]]) -> list[str]:
    """The lines of the page's tables, one table a case."""
    lines = []
    for case in dict.fromkeys(case for case, _, _ in found):
        head = [
            "rule",
            "tree",
            "training, ms an epoch",
            "all together",
            *EACH_PERIOD,
            *BESIDE,
            *(f"{n}, ms" for n in ONCE),
        ]
        lines += ["", f"## {case}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for (of, rule, tree), runs in found.items():
            if of == case:
                lines.append(f"| {rule} | {tree} | {' | '.join(row(runs, CASES[case]['epochs']))} |")
    return lines


ABOUT = """# What a run costs besides training

A period is one epoch, scored, logged and checkpointed. Medians over the runs, in percent of the training time of the
same run, to which the drawing of the order of its rows belongs; quartiles in brackets. `evaluation` is scoring on the
validation rows and keeping best snapshots, `transfer` planning, trying and applying what the rule asks for, `loop` the
rest of the loop; `beside` is processor time of the thread that writes checkpoints, which takes nothing from training
where a core is free, and is in no sum. Nor is `products`, about the least that one scoring of all models can take: the
products of their linear and convolutional layers alone, by PyTorch's own calls in the faster of two forms, measured
after the run. A run's `set-up` (data, splits, audit, trying the model) and `end` (scores of all models on all
validation sets, estimate, report) are paid once, whatever the number of epochs.

Scoring every epoch on a fifth of the rows is a forward pass over a quarter as many rows as are trained on: 8 % of the
operations of training, where a step is three forward passes. So the evaluation alone can be above 5 %; a rule that
tries candidates before it takes them scores twice, and one that teaches asks for a pass over all rows besides.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a run costs besides its training steps.")
    parser.add_argument("--against", type=Path, help="folder of another kinfold to alternate with")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure()
    here = Path(kinfold.__file__).parents[1]
    sides = {"now": Side(here)} if arguments.against is None else {"before": Side(arguments.against), "now": Side(here)}
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(-1, arguments.repeats):  # the first time warms up
            for case in arguments.cases:
                for rule in arguments.rules:
                    for tree, side in sides.items():
                        seconds = side.ask(case=case, rule=rule, seed=max(repeat, 0), folder=folder)
                        if repeat >= 0:
                            found.setdefault((case, rule, tree), []).append(seconds)
            if found:  # after every alternation, so that a long table may be cut short
                page = [ABOUT, provenance(), f"{repeat + 1} alternations.", *table(found)]
                arguments.out.write_text("\n".join(page) + "\n", encoding="utf-8")
    print(arguments.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
