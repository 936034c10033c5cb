"""Many models of one structure, trained on many splits at once and teaching each other; the best one is kept.

Kinfold trains one network structure on many random splits of one labelled data set at once, lets the training
runs teach each other while they train, and hands back the single model that does best across all the validation
sets, with an honest estimate of how good it is.

It implements the framework of *A Novel DNN Training Framework via Data Sampling and Multi-Task Optimization*
(Zhang, Qin, Pan, Sellis, arXiv:2007.01016).

Example:
    >>> import kinfold
    >>> result = kinfold.fit("mlp", "iris", tasks=3, epochs=5)
    >>> result.estimate.metric
    'accuracy'
"""

from typing import TYPE_CHECKING, Any

from kinfold._version import __version__
from kinfold.errors import InputError, RunError

if TYPE_CHECKING:
    from kinfold.comparing import compare
    from kinfold.fitting import fit
    from kinfold.result import Result, load
    from kinfold.tasks.objective import Metric

_LAZY = {
    "compare": "kinfold.comparing",
    "fit": "kinfold.fitting",
    "load": "kinfold.result",
    "Result": "kinfold.result",
    "Metric": "kinfold.tasks.objective",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for, so that `kinfold --help` is quick."""
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    try:
        return importlib.import_module(f"kinfold.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"kinfold.{name}":
            raise
        raise AttributeError(f"module 'kinfold' has no attribute {name!r}") from None


__all__ = ["InputError", "Metric", "Result", "RunError", "__version__", "compare", "fit", "load"]
