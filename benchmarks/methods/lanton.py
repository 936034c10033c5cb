"""Do rates by the noise of layers speed Muon up? Steps to a training loss on MNIST-1D, LANTON against tuned Muon.

python benchmarks/methods/lanton.py [--seeds 5] [--out benchmarks/methods/lanton.md]
"""

from common import Records, arguments, write
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
    body = table(ARMS, ["Muon"], Records(given.records), given.seeds, EPOCHS, TARGET)
    text = f"{note(given.seeds, EPOCHS, TARGET)}\n\n{body}"
    write(given.out, "LANTON: steps to a training loss on MNIST-1D, over Muon", SENTENCE, text)


SENTENCE = (
    "A null: LANTON needs as many steps to the loss as tuned Muon, each half as long again. It ends at a lower\n"
    "training loss at the same rate, as Muon does at half of it on the seeds of the tuning, and is no more accurate\n"
    "on validation rows."
)


if __name__ == "__main__":
    main()
