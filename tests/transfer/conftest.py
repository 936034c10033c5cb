import pytest
import torch

from kinfold.transfer import View

T, N = 3, 12


@pytest.fixture
def make_view():
    """Returns a maker of views of three tasks and twelve rows, of which the last is sealed."""

    def make(**changes):
        validation = torch.zeros(T, N, dtype=torch.bool)
        for t, rows in enumerate([(0, 1, 2, 3), (2, 3, 4, 5), (6, 7, 8, 9)]):
            validation[t, list(rows)] = True
        unsealed = torch.arange(N) < N - 1
        given = {
            "period": 1,
            "epochs": 10,
            "metric": torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64),
            "loss": torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64),
            "train_loss": torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64),
            "sound": torch.ones(T, dtype=torch.bool),
            "improved": torch.tensor([True, False, True]),
            "validation": validation,
            "exposed": unsealed & ~validation,
            "unsealed": unsealed,
            "targets": torch.arange(N) % 2 * unsealed,
            "classes": 2,
        }
        return View(**{**given, **changes})

    return make
