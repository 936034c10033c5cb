"""How long does one training step of T models take, in each of Kinfold's engines and in its peers?

    python benchmarks/speed/steps.py [--models mlp lenet5 resnet20 lstm] [--tasks 1 2 4 8 16 32 64]
        [--contestants NAME …] [--alternations 7] [--seconds 0.5] [--device cpu|cuda] [--precision float32|bf16]
        [--limit-seconds 20] [--records FILE] [--out FILE.md] [--table-only]

A cell is a model and T. All contestants of a cell take turns in one process (`cell.py`), and each one's memory is
measured in a process of its own (`memory.py`). Cells on record are not measured again, so that the command can be
stopped and started, and several calls with other models and T make one table. The table and its plots are of all
cells on record that were measured on the same device in the same precision.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cell import add_options
from steps_table import Cell, plots, table
from work import STRUCTURES

from kinfold.comparing.charts import write_svg
from kinfold.files import json_line, read_json_lines, write_text

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "steps.jsonl"
TASKS = (1, 2, 4, 8, 16, 32, 64)


def on_record(path: Path, device: str, precision: str) -> list[Cell]:
    """Returns the cells measured so far."""
    records = read_json_lines(path) if path.exists() else []
    return [Cell(**record) for record in records if (record["device"], record["precision"]) == (device, precision)]


def append(path: Path, record: Any) -> None:
    """Adds a line to a file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(record) + "\n")


def called(script: str, *arguments: object) -> Any:
    """Returns what a script of this benchmark prints as JSON; None, with a word, where it failed."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        print(f"{' '.join(command[1:])} ended with status {found.returncode}", file=sys.stderr, flush=True)
        return None
    return json.loads(found.stdout)


def measure(model: str, tasks: int, given: argparse.Namespace, smaller: list[Cell]) -> Cell | None:
    """Returns a cell's record: times, and memory of those that took part; None where it could not be measured."""
    too_slow = {
        name: f"a step takes too long from T = {cell.tasks} on"
        for cell in reversed(smaller)
        for name, why in cell.skipped.items()
        if why.startswith("a step takes")
    }
    cell = ["--model", model, "--tasks", tasks, "--device", given.device, "--precision", given.precision]
    options = ["--alternations", given.alternations, "--seconds", given.seconds, "--limit-seconds", given.limit_seconds]
    skips = [word for name, why in too_slow.items() for word in ("--skip", name, why)]
    found = called("cell.py", *cell, *options, *skips, "--contestants", *given.contestants)
    if found is None:
        return None
    memory, need = {}, None
    for name in given.contestants:
        if name not in found["skipped"]:
            held = called("memory.py", *cell, "--contestant", name)
            if held is not None and "grown" in held:
                memory[name], need = held["grown"], held["needed"]
    return Cell(model, tasks, given.device, given.precision, **found, memory=memory, needed=need)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--tasks", nargs="*", type=int, default=TASKS)
    add_options(parser)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    parser.add_argument("--table-only", action="store_true", help="of what is on record")
    given = parser.parse_args()
    cells = on_record(given.records, given.device, given.precision)
    failed = False
    for model in () if given.table_only else given.models:
        for tasks in sorted(given.tasks):
            if any((cell.model, cell.tasks) == (model, tasks) for cell in cells):
                continue
            smaller = sorted((c for c in cells if c.model == model and c.tasks < tasks), key=lambda c: c.tasks)
            cell = measure(model, tasks, given, smaller)
            failed |= cell is None
            if cell is not None:
                append(given.records, vars(cell))
                cells.append(cell)
    if not cells:
        raise SystemExit(f"records: {given.records} has no cell of {given.device} in {given.precision}.")
    text = table(cells)
    print(text)
    if given.out:
        write_text(given.out, text)
        for model, chart in plots(cells).items():
            write_svg(given.out.with_name(f"{given.out.stem}-{model}.svg"), chart)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
