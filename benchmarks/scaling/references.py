"""What is best coded: parameters, or how they differ from something that both sides know.

    python benchmarks/scaling/references.py [--out benchmarks/scaling/references.md]

Trains LeNet-5 on Fashion-MNIST by PAPA as `compress.py` does, and codes the first task's model after some periods
against several references, with and without the forms that L-GreCo chooses from.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from compress import EPOCHS, assembled
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import files
from kinfold.comparing.table import markdown
from kinfold.engines.compression import Adaptive, bytes_of
from kinfold.engines.sequential import Sequential
from kinfold.run import Event, Progress, run
from kinfold.transfer import PAPA

PERIODS = (1, 3, EPOCHS)
FAMILIES = {"bits": ("bits",), "and sparsity": ("bits", "sparsity"), "and rank": ("bits", "sparsity", "rank")}


def trained() -> list[dict[str, Tensor]]:
    """Returns the tasks' parameters [T, …] at their start and after every period."""
    whole = assembled(PAPA(), seed=0)
    engine = Sequential(whole.job)
    found = [_now(engine)]

    def note(event: Event) -> None:
        if event["event"] == "period":
            found.append(_now(engine))

    rule = whole.remaining.rule
    unsealed = torch.from_numpy(~whole.prepared.splits.sealed)
    progress = Progress.start(whole.job, rule)
    run(engine, whole.job, rule, progress, epochs=EPOCHS, patience=None, unsealed=unsealed, listen=note)
    return found


def _now(engine: Sequential) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.stack.params.items()}


def references(found: list[dict[str, Tensor]], period: int) -> Mapping[str, dict[str, Tensor]]:
    """Returns what the first task's model may be reckoned from."""
    before = found[period - 1]
    return {
        "nothing": {name: torch.zeros_like(value[0]) for name, value in before.items()},
        "the common start": {name: value[0] for name, value in found[0].items()},
        "itself, a period before": {name: value[0] for name, value in before.items()},
        "the mean, a period before": {name: value.mean(0) for name, value in before.items()},
    }


def rows(found: list[dict[str, Tensor]]) -> list[list[str]]:
    """Returns the table's rows."""
    lines = []
    for period in PERIODS:
        model = {name: value[0] for name, value in found[period].items()}
        for title, reference in references(found, period).items():
            change = {name: value - reference[name] for name, value in model.items()}
            row = [f"{title}, period {period}"]
            for families in FAMILIES.values():
                sent = Adaptive(families=families).encode(change)
                row.append(f"{bytes_of(model) / bytes_of(sent):.1f}")
            came = Adaptive().decode(sent)  # by the last of them, all forms
            lost = sum(float((came[name] - value).square().sum()) for name, value in change.items())
            row.append(f"{(lost / sum(float(value.square().sum()) for value in model.values())) ** 0.5:.2%}")
            lines.append(row)
    return lines


def page() -> str:
    """Returns the whole page."""
    about = f"""Times fewer bytes than float32 for one model, by the adaptive codec at the error of 4 bits for all, with
more and more forms to choose from; and the error of the last, as a share of the model's norm (root mean squares).
LeNet-5 on Fashion-MNIST, trained by PAPA for {EPOCHS} periods as for compress.md; one seed."""
    table = markdown(rows(trained()), ["reckoned from", *FAMILIES, "error"])
    return "\n\n".join(["# What is best coded", provenance(), about, table]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("references.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    files.write_text(given.out, page())


if __name__ == "__main__":
    main()
