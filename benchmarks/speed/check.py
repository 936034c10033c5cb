"""Checks that all contestants do the same work: the same starts and batches lead to the same parameters.

    python benchmarks/speed/check.py [--models mlp lenet5 resnet20 lstm] [--tasks 2] [--steps 3]

Prints by how much each contestant's parameters differ at most from the plain loop's, after a few steps in float32. The
exit status is 1 where that is more than 0.001; the steps move parameters by ten times as much and more.
"""

import argparse

import torch
from contestants import CONTESTANTS, CannotRunError
from work import STRUCTURES, make_work

TOLERANCE = 1e-3


def ends(model: str, tasks: int, steps: int, contestant: str) -> dict[str, torch.Tensor]:
    """Returns the parameters {name: [T, …]} where a contestant ends after so many steps."""
    runner = CONTESTANTS[contestant](make_work(model, tasks))
    try:
        runner.run(steps)
        return runner.parameters()
    finally:
        runner.close()


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference between parameters of the same name; infinite where a name is missing."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    failed = False
    plain = {model: ends(model, given.tasks, given.steps, "loop") for model in given.models}
    for name in CONTESTANTS:  # JAX, beside whose threads no process should fork, comes last
        for model in given.models:
            try:
                difference = furthest(ends(model, given.tasks, given.steps, name), plain[model])
            except CannotRunError as error:
                print(f"{name}, {model}: {error}", flush=True)
                continue
            failed |= not difference <= TOLERANCE
            print(f"{name}, {model}: {difference:.1e}", flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
