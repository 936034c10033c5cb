"""Training methods: how one task trains. Each method is one file; `METHODS` names them."""

from collections.abc import Callable

from kinfold.methods.base import Batch as Batch
from kinfold.methods.base import Context as Context
from kinfold.methods.base import Method as Method
from kinfold.methods.cutmix import CutMix as CutMix
from kinfold.methods.ema import EMA as EMA
from kinfold.methods.image_augment import CropFlipCutout as CropFlipCutout
from kinfold.methods.label_smoothing import LabelSmoothing as LabelSmoothing
from kinfold.methods.mixup import Mixup as Mixup
from kinfold.methods.networks import FrozenNetwork as FrozenNetwork
from kinfold.methods.plain import Trainer as Trainer
from kinfold.methods.sam import SAM as SAM
from kinfold.methods.torchvision_augment import TorchvisionAugment as TorchvisionAugment
from kinfold.methods.torchvision_augment import best_augmentation as best_augmentation

METHODS: dict[str, Callable[..., Method]] = {
    "label_smoothing": LabelSmoothing,
    "mixup": Mixup,
    "cutmix": CutMix,
    "sam": SAM,
    "ema": EMA,
    "crop_flip_cutout": CropFlipCutout,
    "augment": best_augmentation,
}
