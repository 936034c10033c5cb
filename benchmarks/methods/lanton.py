"""Do rates by the noise of layers speed Muon up? Steps to a training loss on MNIST-1D, LANTON against tuned Muon.

python benchmarks/methods/lanton.py [--seeds 5] [--out benchmarks/methods/lanton.md]
"""

from common import Records, arguments, difference, write
from convergence import Arm, note, table

from kinfold.methods import LANTON
from kinfold.tasks.muon import MuonWithAdamW

TARGET, EPOCHS = 0.5, 20
RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
ARMS = {
    "Muon": Arm(MuonWithAdamW, RATES),
    "LANTON over Muon": Arm(MuonWithAdamW, RATES, (LANTON(),)),
}


def main() -> None:
    given = arguments(__doc__.splitlines()[0], __file__)
    body, steps = table(ARMS, ["Muon"], Records(given.records), given.seeds, EPOCHS, TARGET)
    sentence = (
        f"Steps to the loss, less those of tuned Muon: LANTON {difference(steps['LANTON over Muon'], steps['Muon'])}."
    )
    text = f"{note(given.seeds, EPOCHS, TARGET)}\n\n{body}"
    write(given.out, "LANTON: steps to a training loss on MNIST-1D, over Muon", sentence, text)


if __name__ == "__main__":
    main()
