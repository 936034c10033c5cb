import pytest
import torch

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import Batch, CutMix


def test_pixels_and_targets_come_from_the_same_two_rows(images):
    """Rows are constant images of their own number, so that each pixel says whose it is."""
    for i in range(30):
        numbers = torch.arange(5, dtype=torch.float64)
        plain = images._replace(x=numbers.view(5, 1, 1, 1).expand(5, 2, 6, 8), y=torch.arange(5), classes=5)
        cut = CutMix().batch(plain, {}, random.key(i))
        for row in range(5):
            shares = torch.stack([(cut.x[row] == number).double().mean() for number in range(5)])
            torch.testing.assert_close(cut.y[row].double(), shares, rtol=1e-6, atol=1e-6)
        box = cut.x[0] != 0
        assert bool((box == (box.any(2, keepdim=True) & box.any(1, keepdim=True) & box.any(0))).all())  # a rectangle
        assert cut._replace(x=plain.x, y=plain.y) == plain


def test_areas_are_as_drawn():
    """With α = 1 the area is uniform but for what hangs over the edge: for the inner half of boxes it is whole."""
    batch = Batch(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 32, 32), torch.arange(2), torch.arange(2), classes=2)
    shares = torch.stack([CutMix().batch(batch, {}, random.key(i)).y[0, 0] for i in range(300)])
    assert 0.6 < float(shares.mean()) < 0.9
    assert float(shares.min()) < 0.3
    never = CutMix(probability=0.0).batch(batch, {}, random.key(1))
    assert torch.equal(never.x, batch.x)
    torch.testing.assert_close(never.y, torch.eye(2))


@pytest.mark.parametrize(("name", "value"), [("alpha", 0), ("alpha", float("inf")), ("probability", 1.5)])
def test_arguments_are_checked(name, value):
    with pytest.raises(InputError, match=f"cutmix: {name} is"):
        CutMix(**{name: value})


def test_what_is_no_image_is_refused(images):
    with pytest.raises(InputError, match="for images"):
        CutMix().batch(images._replace(x=torch.zeros(5, 4)), {}, random.key(0))
