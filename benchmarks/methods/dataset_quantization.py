"""Dataset quantization: MLPs on a tenth, a fifth and 60 % of Fashion-MNIST's rows, chosen by it and at random.

    python benchmarks/methods/dataset_quantization.py [--seeds 5]

Random subsets are as balanced over classes as the chosen ones, and training on them takes as many steps. A seed has its
own split of 6,000 rows (a fifth is for validation), its own choice among its training rows, and its own initial
parameters; the 10,000 test rows serve for the table alone. Learning rates are tuned for random subsets, on validation
rows of other seeds. Features are pixels, or the hidden layer of an MLP trained on MNIST: other data, as the authors'
are of a network trained on ImageNet.
"""

from functools import partial

import torch
from common import Records, Trained, accuracy, arguments, arrays, difference, interval, trained, write
from torch import nn

from kinfold.methods import DatasetQuantization

TUNING, RATES = 1000, (0.001, 0.003)
EPOCHS = {0.1: 60, 0.2: 40, 0.6: 20, 1.0: 20}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    record, ((x, y), test) = Records(given.records), arrays("fashion-mnist")
    rows = (x[:6000], y[:6000])

    def run(share: float, lr: float, seeds: int, seed: int, *methods, rows=rows) -> Trained:
        adam = partial(torch.optim.Adam, lr=lr)
        own = {"seeds": seeds, "seed": seed, "epochs": EPOCHS[share], "methods": methods, "optimizer": adam}
        return trained(mlp, rows, batch_size=100, **own)

    def tuned(share: float) -> float:
        def value(lr: float) -> float:
            return sum(run(share, lr, 2, TUNING, DatasetQuantization(share, bins=1)).scores)

        found = {lr: record(f"tune {share} {lr}", lambda lr=lr: value(lr)) for lr in RATES}
        return max(found, key=lambda lr: found[lr])

    kept: list[nn.Module] = []

    def of_mnist() -> nn.Module:
        if not kept:
            x, y = arrays("mnist")[0]
            kept.append(run(1.0, 0.001, 1, 0, rows=(x[:6000], y[:6000])).models[0][:3])
        return kept[0]

    arms = {
        "random": lambda share: [DatasetQuantization(share, bins=1)],
        "chosen by pixels": lambda share: [DatasetQuantization(share)],
        "chosen by features of MNIST": lambda share: [DatasetQuantization(share, features=of_mnist())],
    }

    def scores(share: float, lr: float, methods) -> list[float]:
        return [accuracy(model, test) for model in run(share, lr, given.seeds, 0, *methods).models]

    lines = [
        f"MLP 784-100-10, Adam on a cosine, batch 100; {given.seeds} seeds, 95 % intervals.\n",
        "| share of the rows | epochs | rows | test accuracy, % | over random rows |",
        "|---|---|---|---|---|",
    ]
    said = []
    for share in (0.1, 0.2, 0.6):
        lr = tuned(share)
        found = {
            arm: record(f"{share} {arm}", lambda s=share, lr=lr, m=make: scores(s, lr, m(s)))
            for arm, make in arms.items()
        }
        for arm, values in found.items():
            gain = "" if arm == "random" else difference(values, found["random"])
            lines.append(f"| {100 * share:.0f} % | {EPOCHS[share]} | {arm} | {interval(values)} | {gain} |")
        gains = [difference(found[arm], found["random"]) for arm in list(arms)[1:]]
        said.append(f"{gains[0]} and {gains[1]} points at {100 * share:.0f} %")
    whole = record("1.0", lambda: scores(1.0, tuned(1.0), []))
    lines.append(f"| 100 % | {EPOCHS[1.0]} | all | {interval(whole)} | |")
    sentence = (
        "On Fashion-MNIST with a small MLP, rows chosen by dataset quantization are not clearly better than random "
        f"ones of the same number; by pixels and by features of MNIST they give {', '.join(said)}."
    )
    write(given.out, "Dataset quantization", sentence, "\n".join(lines))


if __name__ == "__main__":
    main()
