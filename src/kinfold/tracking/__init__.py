"""Where a run reports to while it runs: a file of its history, the terminal, a notebook, and experiment trackers.

Nothing here imports torch, or a tracker's package, until it is used: the command line's help has this package.
"""

from kinfold.tracking.base import Ending as Ending
from kinfold.tracking.base import Move as Move
from kinfold.tracking.base import Point as Point
from kinfold.tracking.base import Session as Session
from kinfold.tracking.base import Status as Status
from kinfold.tracking.base import Told as Told
from kinfold.tracking.base import TrackedRun as TrackedRun
from kinfold.tracking.base import Tracker as Tracker
from kinfold.tracking.mlflow import MLflow as MLflow
from kinfold.tracking.tensorboard import TensorBoard as TensorBoard
from kinfold.tracking.wandb import WandB as WandB

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
