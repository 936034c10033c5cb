import pytest
import torch

from kinfold.errors import InputError
from kinfold.methods import EMA


def test_the_average_is_scored_and_the_task_trains_as_it_would(context):
    """From 1 by 2 and 5: d is 2/11 and 3/12 while it warms up."""
    method = EMA(0.99)
    state = method.start({"w": torch.tensor([1.0])}, context)
    expected = 1.0
    for value, d in ((2.0, 2 / 11), (5.0, 3 / 12)):
        params, state = method.after_step({"w": torch.tensor([value])}, state)
        expected = d * expected + (1 - d) * value
        assert params["w"] == value
    assert method.evaluation({"w": torch.tensor([5.0])}, state)["w"] == pytest.approx(expected)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_is_checked(decay):
    with pytest.raises(InputError, match="ema: decay is"):
        EMA(decay)
