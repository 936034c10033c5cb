import pytest
import torch

from kinfold.errors import InputError
from kinfold.methods import LabelSmoothing

KEY = torch.tensor(0)


def test_by_hand(images):
    y = LabelSmoothing(0.3).batch(images, {}, KEY).y
    torch.testing.assert_close(y[:3], torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    # Once more: 0.7 · 0.8 + 0.1 and 0.7 · 0.1 + 0.1.
    again = LabelSmoothing(0.3).batch(images._replace(y=y), {}, KEY).y
    torch.testing.assert_close(again[0], torch.tensor([0.66, 0.17, 0.17]))


def test_nothing_else_changes(images):
    smoothed = LabelSmoothing(0).batch(images, {}, KEY)
    assert torch.equal(smoothed.y.argmax(1), images.y)
    assert smoothed._replace(y=images.y) == images


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_epsilon_is_a_share(epsilon):
    with pytest.raises(InputError, match="label_smoothing: epsilon is"):
        LabelSmoothing(epsilon)


def test_numbers_cannot_be_smoothed(images):
    with pytest.raises(InputError, match="for classification"):
        LabelSmoothing().batch(images._replace(y=torch.zeros(5), classes=None), {}, KEY)
