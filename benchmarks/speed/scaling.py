"""What does a training step cost each task, the more there are of them?

    python benchmarks/speed/scaling.py [--model mlp] [--tasks 1 2 4 8 16 32 64] [--contestant auto]
        [--alternations 15] [--seconds 0.4] [--out FILE.md]

All T take turns in one process, in an order drawn anew every time, so that a machine that drifts meets all alike:
between the cells of `steps.py`, which are measured one after another, it does not.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from cell import turn, warm_up
from contestants import CONTESTANTS
from steps_table import spread
from work import STRUCTURES, make_work

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold.comparing.table import markdown
from kinfold.files import write_text

ABOUT = """Microseconds of a training step for each task: medians over the turns with quartiles. The ratio is the median
over turns of that to the row above within one turn: under 1 where a task costs less the more there are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=STRUCTURES, default="mlp")
    parser.add_argument("--tasks", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--contestant", choices=CONTESTANTS, default="auto")
    parser.add_argument("--alternations", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a turn, at least")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    given = parser.parse_args()
    runners, seconds = {}, {tasks: [] for tasks in given.tasks}
    for tasks in given.tasks:
        runner = CONTESTANTS[given.contestant](make_work(given.model, tasks))
        runners[tasks] = runner, warm_up(runner, given.seconds, limit=60.0)
    order, draw = list(runners), random.Random(0)
    for _ in range(given.alternations):
        draw.shuffle(order)
        for tasks in order:
            seconds[tasks].append(turn(*runners[tasks], given.seconds) / tasks)
    rows, before = [], None
    for tasks, (runner, _) in runners.items():
        own = np.array(seconds[tasks])
        rows.append(
            [str(tasks), runner.note, spread(1e6 * own, ".0f"), "–" if before is None else spread(own / before)]
        )
        before = own
        runner.close()
    head = f"# What a step costs each task: {STRUCTURES[given.model].says}, {given.contestant}"
    text = "\n\n".join([head, provenance(), ABOUT, markdown(rows, ["T", "engine", "µs a task", "ratio"])]) + "\n"
    print(text)
    if given.out:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
