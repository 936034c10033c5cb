"""Does MKOR need fewer steps? Steps to a training loss on MNIST-1D, against tuned SGD and Adam; and its inverses.

python benchmarks/methods/mkor.py [--seeds 5] [--out benchmarks/methods/mkor.md]
"""

from functools import partial

import torch
from common import Records, arguments, difference, write
from convergence import BATCH, Arm, network, note, table

from kinfold import random
from kinfold.data import read
from kinfold.methods import MKOR, Trainer

TARGET, EPOCHS = 0.5, 50
SGD = partial(torch.optim.SGD, momentum=0.9)
SGD_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
ADAM_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
ARMS = {
    "SGD, momentum 0.9": Arm(SGD, SGD_RATES),
    "Adam": Arm(torch.optim.Adam, ADAM_RATES),
    "MKOR over SGD": Arm(SGD, SGD_RATES, (MKOR(),)),
    "MKOR-H over SGD": Arm(SGD, (0.05,), (MKOR(hybrid=True, window=250, gain=0.02),)),  # the rate of MKOR
}


def dense_error(dtype: torch.dtype, steps: int = 500) -> float:
    """The greatest relative error of any inverse while training, against the inverse of the dense factor in float64."""
    dataset = read("mnist1d")
    x, y = torch.as_tensor(dataset.features).to(dtype).reshape(-1, 40), torch.as_tensor(dataset.target.values)
    with random.seeded(torch.device("cpu"), "mkor"):
        module = network().to(dtype)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.1), [MKOR(every=10)], x, y, batch_size=BATCH)
    factors: dict[str, torch.Tensor] = {}
    worst, batches = 0.0, list(trainer.batches())
    for step in range(steps):
        trainer.step(batches[step % len(batches)])
        if step % 10:
            continue
        state = trainer.states[0]
        for name in [name for name in state if name.startswith("inverse_")]:
            eye, v = torch.eye(len(state[name]), dtype=torch.float64), state[f"mean_{name}"].double()
            if step == 0:
                factors[name] = eye
            else:
                factors[name] = torch.linalg.inv(0.95 * torch.linalg.inv(factors[name]) + 0.05 * eye) + torch.outer(
                    v, v
                )
            exact = torch.linalg.inv(factors[name])
            worst = max(worst, float((state[name].double() - exact).norm() / exact.norm()))
    return worst


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    records = Records(given.records)
    errors = {
        str(dtype).removeprefix("torch."): records(f"dense {dtype}", partial(dense_error, dtype))
        for dtype in (torch.float32, torch.float64)
    }
    sgd, adam, *arms = ARMS
    body, steps = table(ARMS, [sgd, adam], records, given.seeds, EPOCHS, TARGET)
    dense = (
        "The inverses that MKOR keeps, against the inverse of the dense factor in float64, at every update of 500\n"
        f"steps: greatest relative error {', '.join(f'{error:.1e} in {dtype}' for dtype, error in errors.items())}."
    )
    apart = [f"{arm} {difference(steps[arm], steps[sgd])} and {difference(steps[arm], steps[adam])}" for arm in arms]
    sentence = f"Steps to the loss, less those of tuned SGD and of tuned Adam: {'; '.join(apart)}."
    text = f"{note(given.seeds, EPOCHS, TARGET)}\n\n{body}\n\n{dense}"
    write(given.out, "MKOR: steps to a training loss on MNIST-1D", sentence, text)


if __name__ == "__main__":
    main()
