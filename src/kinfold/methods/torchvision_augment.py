"""Augmentation by torchvision's transforms (v2), where torchvision is installed; by the built-in set where it is not.

What models read are standard units and no colours from 0 to 1, so the transforms are those that hold in any unit: they
move, turn and zoom an image, mirror it, and erase a rectangle (Zhong et al., *Random erasing data augmentation*,
arXiv:1708.04896).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State, image
from kinfold.methods.image_augment import CropFlipCutout

Transform: TypeAlias = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class TorchvisionAugment(Method):
    """Each image is moved, turned and zoomed at random, maybe mirrored, and may lose a rectangle.

    What torchvision draws from the global generator follows from the task's key, and leaves the generator as it was.
    Images are transformed one by one, on the device they are on.

    Attributes:
        degrees: the greatest turn, to either side.
        shift: the greatest shift, as a share of the image's sides.
        zoom: the greatest change of size: 0.1 gives sizes from 0.9 to 1.1.
        flip: whether to mirror left-right with probability 1/2 (not for digits or letters).
        erase: with which probability a rectangle of 2 to 33 % of the image is set to zero.

    Raises:
        InputError: torchvision cannot be imported, or an attribute is out of range.
    """

    degrees: float | int = 10
    shift: float | int = 0.1
    zoom: float | int = 0.1
    flip: bool = True
    erase: float | int = 0.25

    def __post_init__(self) -> None:
        for argument, most in (("degrees", 180), ("shift", 1), ("zoom", 0.9), ("erase", 1)):
            value = getattr(self, argument)
            if not 0 <= value <= most:
                raise InputError(f"augment: {argument} is {value!r}; give a number from 0 to {most}.")
        if _v2() is None:
            raise InputError(
                "methods: torchvision cannot be imported; install it by: pip install 'kinfold[vision]', or choose "
                "crop_flip_cutout."
            )

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        del state
        augmented: Tensor = _EachImage.apply(image(batch.x), key, self._transform())  # type: ignore[no-untyped-call]
        return batch._replace(x=augmented)

    def _transform(self) -> Transform:
        v2 = _v2()
        assert v2 is not None  # or there would be no such method
        affine = v2.RandomAffine(
            self.degrees,
            translate=(self.shift, self.shift),
            scale=(1 - self.zoom, 1 + self.zoom),
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        flip = [v2.RandomHorizontalFlip()] if self.flip else []
        transform: Transform = v2.Compose([*flip, affine, v2.RandomErasing(self.erase)])
        return transform


def best_augmentation(**arguments: Any) -> Method:
    """Returns torchvision's augmentation where it can be imported, else the built-in one.

    A run that is to be repeated elsewhere names one of the two: `crop_flip_cutout`, or the class
    `kinfold.methods.TorchvisionAugment`.

    Args:
        arguments: of the one that is chosen.
    """
    return CropFlipCutout(**arguments) if _v2() is None else TorchvisionAugment(**arguments)


def _v2() -> ModuleType | None:
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except Exception:  # one that does not fit torch fails in its own ways
        return None


class _EachImage(torch.autograd.Function):
    """A transform of Python's, applied image by image; `torch.vmap` applies it task by task."""

    @staticmethod
    def forward(x: Float[Tensor, "B C H W"], key: Int64[Tensor, ""], transform: Transform) -> Float[Tensor, "B C H W"]:
        with random.seeded(x.device, "augment", int(key)):
            return torch.stack([transform(each) for each in x])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del inputs
        ctx.mark_non_differentiable(output)  # images are not what is learned

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, None]:
        del ctx, gradients
        return None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], x: Tensor, key: Tensor, transform: Transform
    ) -> tuple[Tensor, int]:
        images = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        keys = key.expand(info.batch_size) if in_dims[1] is None else key.movedim(in_dims[1], 0)
        each = (_EachImage.apply(*pair, transform) for pair in zip(images, keys, strict=True))  # type: ignore[no-untyped-call]
        return torch.stack(list(each)), 0
