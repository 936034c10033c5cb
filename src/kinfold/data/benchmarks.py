"""Public data sets by name. Those here are part of scikit-learn: nothing is downloaded.

- digits: 1,797 handwritten digits, 8×8 pixels (Alpaydin, Kaynak, UCI 1998)
- iris: 150 flowers (Fisher 1936)
- wine: 178 wines (Aeberhard, Forina, UCI 1991)
- breast-cancer: 569 tumours (Wolberg et al., UCI 1995)
- diabetes: 442 patients, regression (Efron et al., *Least angle regression*, 2004)
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from kinfold.data.arrays import from_arrays
from kinfold.data.base import Dataset
from kinfold.data.table import from_frame


def digits() -> Dataset:
    """Returns the digits as float32 images [1797, 1, 8, 8] from 0 to 1, and classes 0 … 9."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return from_arrays(bunch.images[:, None] / 16, bunch.target, name="digits")


def table(name: str, loader: str) -> Dataset:
    """Returns one of scikit-learn's tables, its classes by their names.

    Args:
        name: the data set's name here.
        loader: the function of `sklearn.datasets` that gives it.
    """
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, loader)(as_frame=True)
    targets = bunch.target.to_numpy()
    if "target_names" in bunch:
        targets = np.asarray(bunch.target_names)[targets]
    return from_frame(bunch.data, targets, name=name)


NAMES: dict[str, Callable[[], Dataset]] = {
    "breast-cancer": partial(table, "breast-cancer", "load_breast_cancer"),
    "diabetes": partial(table, "diabetes", "load_diabetes"),
    "digits": digits,
    "iris": partial(table, "iris", "load_iris"),
    "wine": partial(table, "wine", "load_wine"),
}
"""Every data set that needs no file, by its name on the command line."""
