"""Do differences of losses train a network? A small MLP on digits: DeepZero against first order.

    python benchmarks/methods/deepzero.py [--seeds 5] [--out benchmarks/methods/deepzero.md]

A fifth of the rows is for testing and touched by nothing else; each seed has a validation split, a start and an order
of its own, the same in every arm. The learning rate is tuned for the first-order control, on its validation rows with
seeds that are not scored, and every arm uses it: DeepZero is not tuned. All arms take the same steps.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import Data, Records, accuracy, arguments, difference, interval, trained, write
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call

from kinfold import random
from kinfold.data import read
from kinfold.methods import DeepZero, Method
from kinfold.methods.deepzero import coordinate_gradient

EPOCHS, BATCH, TUNED_ON = 30, 64, 3
RATES = (0.025, 0.05, 0.1, 0.2, 0.4)
STEPS = (1e-1, 5e-2, 5e-3, 5e-4, 5e-5)
FIRST = "first order"
ARMS: dict[str, tuple[Method, ...]] = {
    FIRST: (),
    "all coordinates": (DeepZero(density=1.0),),
    "half of the weights, drawn every period": (DeepZero(density=0.5, shuffle=1),),
    "a tenth, drawn every period": (DeepZero(density=0.1, shuffle=1),),
    "a tenth, by ZO-GraSP at the start": (DeepZero(density=0.1, shuffle=0),),
}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))


def digits() -> tuple[Data, Data]:
    dataset = read("digits")
    x, y = torch.as_tensor(dataset.features).float().reshape(-1, 1, 8, 8), torch.as_tensor(dataset.target.values)
    rows, test = train_test_split(torch.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    return (x[rows], y[rows]), (x[test], y[test])


def run(methods: tuple[Method, ...], rate: float, seeds: int, seed: int) -> dict[str, object]:
    (rows, test), sgd = digits(), partial(torch.optim.SGD, lr=rate, momentum=0.9)
    options = {"epochs": EPOCHS, "batch_size": BATCH, "methods": methods, "seed": seed}
    found = trained(mlp, rows, seeds=seeds, optimizer=sgd, **options)
    scores = [accuracy(model, test) for model in found.models]
    return {"validation": found.scores, "test": scores, "seconds": found.seconds}


def estimated(module: nn.Module, name: str, x: Tensor, y: Tensor, mu: float) -> Tensor:
    """The differences along all coordinates of one parameter."""
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss(value: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, {**params, name: value}, x), y)

    with torch.no_grad():
        every = torch.arange(params[name].numel())
        return coordinate_gradient(torch.vmap(loss), params[name], every, mu)


def cosine(module: nn.Module, x: Tensor, y: Tensor, mu: float) -> float:
    """The cosine of the differences to the true gradient."""
    module.zero_grad()
    F.cross_entropy(module(x), y).backward()
    pairs = [(estimated(module, n, x, y, mu).flatten(), v.grad.flatten()) for n, v in module.named_parameters()]
    differences, true = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(F.cosine_similarity(differences, true, dim=0))


def cosines(make: Callable[[], nn.Module], seeds: int) -> dict[str, list[float]]:
    """Each seed's cosine at the start and after two epochs, by μ."""
    found: dict[str, list[float]] = {}
    (rows, classes), _ = digits()
    for seed in range(seeds):
        with random.seeded(torch.device("cpu"), "cosine", seed):
            module = make()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        order = random.permutation(random.key("cosine", seed), len(classes))
        x, y = rows[order], classes[order]
        for when in ("at the start", "after two epochs"):
            for mu in STEPS:
                found.setdefault(f"{when}, {mu:g}", []).append(cosine(module, x[:BATCH], y[:BATCH], mu))
            for some in [*torch.arange(len(y)).split(BATCH)] * 2:
                optimizer.zero_grad()
                F.cross_entropy(module(x[some]), y[some]).backward()
                optimizer.step()
    return found


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    records, seeds = Records(given.records), given.seeds
    angles = {
        name: records(f"cosine {name} {seeds}", partial(cosines, make, seeds))
        for name, make in (("MLP 64-16-10", mlp), ("CNN", cnn))
    }
    tuned = {rate: records(f"tune {rate}", partial(run, (), rate, TUNED_ON, 1000)) for rate in RATES}
    rate = max(tuned, key=lambda rate: sum(tuned[rate]["validation"]))
    scores = {
        name: records(f"{name} {rate} {seeds}", partial(run, methods, rate, seeds, 0)) for name, methods in ARMS.items()
    }
    control = scores[FIRST]["test"]
    lines = [
        "| gradient | test accuracy, % | less first order | seconds of one core, one network |",
        "|---|---|---|---|",
    ]
    for name, one in scores.items():
        gap = "" if name == FIRST else difference(one["test"], control)
        lines.append(f"| {name} | {interval(one['test'])} | {gap} | {one['seconds']:.1f} |")
    lines += ["", f"| least cosine to the true gradient of {seeds} | {' | '.join(f'μ = {mu:g}' for mu in STEPS)} |"]
    lines += ["|---|" + "---|" * len(STEPS)]
    for name, found in angles.items():
        for when in ("at the start", "after two epochs"):
            least = [min(found[f"{when}, {mu:g}"]) for mu in STEPS]
            lines.append(f"| {name}, {when} | {' | '.join(f'{value:.4f}' for value in least)} |")
    note = (
        f"{seeds} seeds, {EPOCHS} epochs of batches of {BATCH}, SGD with momentum 0.9 and a cosine from {rate}, tuned\n"
        "for the first order; mean ± half width of the 95 % interval (Student's t; differences paired). Cosines in\n"
        "float32, of all coordinates, on one batch."
    )
    gaps = [f"{name} {difference(one['test'], control)}" for name, one in scores.items() if name != FIRST]
    sentence = f"Points of test accuracy, less those of the first order: {'; '.join(gaps)}."
    write(given.out, "DeepZero: a network trained by differences of losses", sentence, note + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
