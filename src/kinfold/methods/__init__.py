"""Training methods: how one task trains. Each method is one file; `METHODS` names them."""

from collections.abc import Callable
from functools import partial

from kinfold.methods.accelat import AccelAT as AccelAT
from kinfold.methods.base import Batch as Batch
from kinfold.methods.base import Context as Context
from kinfold.methods.base import Method as Method
from kinfold.methods.bdwp import BDWP as BDWP
from kinfold.methods.cutmix import CutMix as CutMix
from kinfold.methods.cyclical_curriculum import CyclicalCurriculum as CyclicalCurriculum
from kinfold.methods.dataset_quantization import DatasetQuantization as DatasetQuantization
from kinfold.methods.deepzero import DeepZero as DeepZero
from kinfold.methods.ema import EMA as EMA
from kinfold.methods.guidance import Guidance as Guidance
from kinfold.methods.hesso import HESSO as HESSO
from kinfold.methods.image_augment import CropFlipCutout as CropFlipCutout
from kinfold.methods.label_smoothing import LabelSmoothing as LabelSmoothing
from kinfold.methods.lanton import LANTON as LANTON
from kinfold.methods.mixup import Mixup as Mixup
from kinfold.methods.mkor import MKOR as MKOR
from kinfold.methods.mtard import MTARD as MTARD
from kinfold.methods.networks import FrozenNetwork as FrozenNetwork
from kinfold.methods.pgd import AdversarialTraining as AdversarialTraining
from kinfold.methods.plain import Trainer as Trainer
from kinfold.methods.quantised_distillation import QuantisedDistillation as QuantisedDistillation
from kinfold.methods.sam import SAM as SAM
from kinfold.methods.torchvision_augment import TorchvisionAugment as TorchvisionAugment
from kinfold.methods.torchvision_augment import best_augmentation as best_augmentation

METHODS: dict[str, Callable[..., Method]] = {
    "accelat": AccelAT,
    "adversarial": AdversarialTraining,
    "augment": best_augmentation,
    "bdwp": BDWP,
    "crop_flip_cutout": CropFlipCutout,
    "cutmix": CutMix,
    "cyclical_curriculum": CyclicalCurriculum,
    "dataset_quantization": DatasetQuantization,
    "deepzero": DeepZero,
    "ema": EMA,
    "guidance": Guidance,
    "hesso": HESSO,
    "label_smoothing": LabelSmoothing,
    "lanton": LANTON,
    "mixup": Mixup,
    "mkor": MKOR,
    "mkor_h": partial(MKOR, hybrid=True),
    "mtard": MTARD,
    "quantised_distillation": QuantisedDistillation,
    "sam": SAM,
}
