import pytest
import torch
import torch.nn.functional as F

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import CropFlipCutout


def reference(x, key, padding, flip, cutout):
    """Image by image and pixel by pixel: crop a window of the padded image, mirror it, cut a square out."""
    B, _, H, W = x.shape
    mirrored = [bits < 0 for bits in random.bits(random.fold_in(key, 0), (B, 1)).flatten().tolist()]
    shifts = random.randint(random.fold_in(key, 1), 2 * padding + 1, (2, B, 1)).reshape(2, B).tolist()
    centres = random.uniform(random.fold_in(key, 2), (2, B, 1)).reshape(2, B).tolist()
    images = []
    for b in range(B):
        image = x[b]
        if padding:
            top, left = shifts[0][b], shifts[1][b]
            image = F.pad(image, (padding,) * 4)[:, top : top + H, left : left + W]
        if flip and mirrored[b]:
            image = torch.flip(image, (2,))
        image = image.clone()
        for i in range(H):
            for j in range(W):
                down, along = abs(i + 0.5 - centres[0][b] * H), abs(j + 0.5 - centres[1][b] * W)
                if cutout and down < cutout / 2 and along < cutout / 2:
                    image[:, i, j] = 0
        images.append(image)
    return torch.stack(images)


OPTIONS = [(0, False, 0), (2, False, 0), (0, True, 0), (0, False, 3), (3, True, 2), (7, True, 20)]


@pytest.mark.parametrize(("padding", "flip", "cutout"), OPTIONS)
def test_against_the_reference_alone_and_under_vmap(images, padding, flip, cutout):
    method = CropFlipCutout(padding, flip, cutout)
    keys = torch.stack([random.key("augment", t) for t in range(4)])
    expected = torch.stack([reference(images.x, key, padding, flip, cutout) for key in keys])
    alone = torch.stack([method.batch(images, {}, key).x for key in keys])
    together = torch.vmap(lambda key: method.batch(images, {}, key).x)(keys)
    assert torch.equal(alone, expected)
    assert torch.equal(together, expected)


def test_a_square_of_the_given_side_is_cut(images):
    ones = images._replace(x=torch.ones(5, 1, 40, 40))
    lost = [
        1600 - int(CropFlipCutout(padding=0, flip=False, cutout=6).batch(ones, {}, random.key(i)).x[b].sum())
        for i in range(20)
        for b in range(5)
    ]
    assert max(lost) == 36  # whole where it does not hang over the edge
    assert sum(each == 36 for each in lost) > 50
    assert min(lost) >= 9


def test_half_are_mirrored_and_nothing_else_changes(images):
    method, count = CropFlipCutout(padding=0), 0
    for i in range(100):
        batch = method.batch(images, {}, random.key(i))
        for new, old in zip(batch.x, images.x, strict=True):
            same, turned = torch.equal(new, old), torch.equal(new, torch.flip(old, (2,)))
            assert same or turned
            count += turned
        assert batch._replace(x=images.x) == images
    assert 200 < count < 300


@pytest.mark.parametrize(
    "x", [torch.zeros(5, 4), torch.zeros(5, 1, 4, 4, dtype=torch.uint8), (torch.zeros(5, 1, 4, 4),)]
)
def test_what_is_no_image_is_refused(images, x):
    with pytest.raises(InputError, match="for images"):
        CropFlipCutout().batch(images._replace(x=x), {}, random.key(0))


@pytest.mark.parametrize(("name", "value"), [("padding", -1), ("cutout", -2), ("padding", 1.5), ("cutout", "two")])
def test_pixels_are_whole_numbers(name, value):
    method = CropFlipCutout()
    object.__setattr__(method, name, value)  # past the checks of types under test, as a value from YAML comes
    with pytest.raises(InputError, match=f"crop_flip_cutout: {name} is {value!r}"):
        method.__post_init__()
