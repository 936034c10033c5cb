"""Random crop, mirror and cutout, the usual augmentation of small images.

Crop and mirror as in He et al. (*Deep Residual Learning*, CVPR 2016, section 4.2); cutout after DeVries and
Taylor (arXiv:1708.04552). Written with gathers, so that one program serves all tasks on any device.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Method, State, image


@final
@dataclass(frozen=True)
class CropFlipCutout(Method):
    """Each image is shifted, maybe mirrored, and loses a square.

    Attributes:
        padding: pixels of zero padding, and so the greatest shift in each direction; 0 for no crop.
        flip: whether to mirror left-right with probability 1/2 (not for digits or letters).
        cutout: side of the square that is set to zero, in pixels; 0 for none. Its centre is uniform over the
            image, so it may hang over the edge, as in the paper.

    Example:
        >>> batch = Batch(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([0, 1]), classes=2)
        >>> CropFlipCutout(padding=1, cutout=2).batch(batch, {}, random.key(0)).x.shape
        torch.Size([2, 1, 8, 8])
    """

    padding: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        for argument, pixels in (("padding", self.padding), ("cutout", self.cutout)):
            if not isinstance(pixels, int) or pixels < 0:
                raise InputError(f"crop_flip_cutout: {argument} is {pixels!r}, it counts pixels; give 0 or more.")

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        del state
        x = image(batch.x)
        B, _, H, W = x.shape
        rows = torch.arange(H, device=x.device).expand(B, H)
        columns = torch.arange(W, device=x.device).expand(B, W)
        if self.flip:
            mirrored = random.bits(random.fold_in(key, 0), (B, 1)) < 0
            columns = torch.where(mirrored, W - 1 - columns, columns)
        if self.padding:
            shift = random.randint(random.fold_in(key, 1), 2 * self.padding + 1, (2, B, 1))
            x = F.pad(x, (self.padding,) * 4)
            rows, columns = rows + shift[0], columns + shift[1]
        each = torch.arange(B, device=x.device)[:, None, None]
        x = x.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        if self.cutout:
            centre = random.uniform(random.fold_in(key, 2), (2, B, 1))
            inside_y = (torch.arange(H, device=x.device) + 0.5 - centre[0] * H).abs() < self.cutout / 2
            inside_x = (torch.arange(W, device=x.device) + 0.5 - centre[1] * W).abs() < self.cutout / 2
            x = x * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])
        return batch._replace(x=x)
