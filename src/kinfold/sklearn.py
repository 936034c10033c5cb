"""Estimators for scikit-learn: `kinfold.fit` behind `fit`, `predict` and `score`.

`KinfoldClassifier` and `KinfoldRegressor` go where scikit-learn's own estimators go: into a `Pipeline`, a
`GridSearchCV`, `cross_val_score`, a `CalibratedClassifierCV`. They seal no rows by default, since the cross-validation
around them is what estimates.

An array reaches the network as it is, and so does a pandas `DataFrame` whose columns are all numbers. Any other is a
table: its numbers are standardised, its words one-hot encoded, its gaps filled (`kinfold.data.TableEncoder`). Targets
of regression are trained on in standard units, whatever theirs are.

Example:
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_wine(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), KinfoldClassifier("mlp", module__hidden=(32,), random_state=0))
    >>> bool(cross_val_score(model, X, y, cv=3).mean() > 0.9)
    True
"""

import copy
import inspect
import logging
import math
import numbers
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import check_random_state, check_X_y, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor, nn

from kinfold import files
from kinfold.assembling import Auto
from kinfold.config import describe, is_object
from kinfold.data import ArrayDataset, Dataset, Kind, TableDataset, TableEncoder, from_frame, read, weighted
from kinfold.engines import Precision
from kinfold.errors import InputError
from kinfold.fitting import fit
from kinfold.importing import one_line
from kinfold.models import MODELS
from kinfold.models.hubs import hub_of
from kinfold.result import load, model_outputs
from kinfold.run import Event, Listener

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn 1.5 has it as a method

    def validate_data(estimator: Any, /, X: Any, y: Any = "no_validation", **checks: Any) -> Any:
        """Returns what scikit-learn 1.6's function of this name does."""
        whole = not checks.pop("skip_check_array", False)
        return estimator._validate_data(
            X, y, cast_to_ndarray=whole, **(checks if whole else {"reset": checks["reset"]})
        )


__all__ = ["EXPECTED_FAILED_CHECKS", "KinfoldClassifier", "KinfoldRegressor", "default_epochs"]

EXPECTED_FAILED_CHECKS: Mapping[str, str] = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row of weight 2 counts like two equal rows in expectation, and not to the last bit: the two would be split "
        "and batched apart"
    ),
}
"""scikit-learn's checks that no learner by random splits and batches passes, with the reason; hand it to
`sklearn.utils.estimator_checks.parametrize_with_checks` or `check_estimator`, which ask for it since scikit-learn 1.6.
The sparse twin of the check is not run, since sparse input is refused."""

Estimator = TypeVar("Estimator", bound="KinfoldEstimator")
Constructor = TypeVar("Constructor", bound=Callable[..., None])
Callbacks: TypeAlias = Listener | Iterable[Listener] | None

_LOG = logging.getLogger("kinfold")
_SAVED = "estimator.json"
_RATE = 0.003
_MAKERS = ("module", "optimizer", "scheduler")
_PARTS = (*_MAKERS, "loss", "metric", "splits", "transfer", "methods", "candidates")
"""Parameters that take arguments of their own, as `optimizer__lr`; the makers are called later, and more than once."""


def default_epochs(rows: int, batch_size: int) -> int:
    """Returns how many epochs an estimator trains where nobody says: about 300 batches' worth, from 10 to 30 epochs.

    Args:
        rows: of the data.
        batch_size: rows in a batch.

    Example:
        >>> [default_epochs(rows, batch_size=32) for rows in (100, 640, 10_000)]
        [30, 15, 10]
    """
    return min(30, max(10, math.ceil(300 / max(1, rows // batch_size))))


def _by_name(*others: Callable[..., None]) -> Callable[[Constructor], Constructor]:
    """Has a constructor say by name what it takes, and what those take that it passes the rest on to.

    What scikit-learn knows of parameters it reads from there. It asks that a constructor take whatever it is given,
    which is looked at when it is used to fit.
    """

    def mark(constructor: Constructor) -> Constructor:
        everyone: tuple[Callable[..., None], ...] = (constructor, *others)
        taken = [one for each in everyone for one in inspect.signature(each).parameters.values()]
        named = {one.name: one for one in reversed(taken) if one.kind is not inspect.Parameter.VAR_KEYWORD}
        own = sorted(named.values(), key=lambda one: (one.kind, taken.index(one)))
        constructor.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        constructor.__no_type_check__ = True  # type: ignore[attr-defined]  # at run time
        return constructor

    return mark


class KinfoldEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share. Every parameter but these five is that of `kinfold.fit`, with its default there.

    Parameters that name a part take arguments of their own, after two underscores: `module__hidden=(64,)`,
    `optimizer__lr=0.01`, `transfer__period=2`. They go with a name, with a class and with a function, and can be
    searched over like any other.

    Args:
        module: the network: a name (`mlp`, `tabular-resnet`, `lenet5`; docs/models.md), a class or a function that
            makes an `nn.Module`, `package.module:factory`, or a module, whose parameters are every task's start.
            What a class or a function calls `input_shape` and `outputs`, without a default, it is given.
        tasks: T, how many splits and models.
        val_fraction: share of the rows that a task validates on.
        holdout: share of the rows that is sealed for `result_.estimate`. By default none: the cross-validation around
            the estimator is to be the estimate, and has rows of its own.
        epochs: cap, and length of the schedule. None for `default_epochs`: few, on few rows.
        patience: stop when every task has gone this many periods without improving.
        rescue: how often a task that diverges starts again.
        batch_size: rows of one task in one batch.
        optimizer: a name, a class or a function from parameters to an optimizer; None for AdamW with a learning rate
            of 0.003, which bears features in their own units better than plain SGD does.
        scheduler: see `kinfold.fit`.
        loss: likewise.
        metric: likewise. Default accuracy; or R², which counts as 0 where a task's validation targets are all equal.
        splits: likewise.
        transfer: likewise.
        methods: likewise.
        candidates: likewise.
        start: likewise.
        better: likewise.
        criterion: likewise.
        accumulate: likewise.
        clip_norm: likewise.
        engine: likewise. `auto` measures only where training takes longer than about 20 seconds; from then on, fits
            with the same `random_state` may differ by rounding, unless an engine is named.
        precision: likewise.
        device: likewise.
        random_state: a whole number makes fits repeatable, a `RandomState` is drawn from once a fit, None takes a new
            seed each time (from the operating system; the global random state is never used).
        callbacks: a function, or several, called with every event of the run (docs/contracts.md).
        nested: arguments of parts, as above.

    Attributes:
        result_: the run's `kinfold.Result`: score matrix, history, cost; its estimate where rows were sealed.
        module_: the selected network, in eval mode on the CPU; those of `kinfold.models` in float64, so that what is
            predicted for a row does not depend on the rows beside it.
        n_features_in_: columns of X.
        feature_names_in_: their names, where X was a table with names that are text.
    """

    _kind: ClassVar[Kind]

    @_by_name()
    def __init__(
        self,
        module: Any = "mlp",
        *,
        tasks: int = 4,
        val_fraction: float | int = 0.2,
        holdout: float | int = 0,
        epochs: int | Auto | None = None,
        patience: int | None = None,
        rescue: int = 2,
        batch_size: int | Auto = 32,
        optimizer: Any = None,
        scheduler: Any = "cosine",
        loss: Any = None,
        metric: Any = None,
        splits: Any = None,
        transfer: Any = "distil",
        methods: Any = (),
        candidates: Any = (),
        start: Literal["independent", "shared"] = "shared",
        better: Literal["metric", "loss"] = "metric",
        criterion: str = "mean",
        accumulate: int = 1,
        clip_norm: float | int | Auto | None = None,
        engine: str = "auto",
        precision: Precision = "float32",
        device: str = "auto",
        random_state: Any = None,
        callbacks: Callbacks = None,
        **nested: Any,
    ):
        self.module = module
        self.tasks = tasks
        self.val_fraction = val_fraction
        self.holdout = holdout
        self.epochs = epochs
        self.patience = patience
        self.rescue = rescue
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = loss
        self.metric = metric
        self.splits = splits
        self.transfer = transfer
        self.methods = methods
        self.candidates = candidates
        self.start = start
        self.better = better
        self.criterion = criterion
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.engine = engine
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.callbacks = callbacks
        for name, value in nested.items():
            if not _is_nested(name):
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}")
            setattr(self, name, value)

    # -- parameters -----------------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns all parameters, the nested ones that were given included."""
        own: dict[str, Any] = super().get_params(deep=deep)
        return own | {name: value for name, value in vars(self).items() if _is_nested(name)}

    def set_params(self: Estimator, **params: Any) -> Estimator:
        """Sets parameters, nested ones included; returns the estimator.

        Raises:
            ValueError: one is unknown.
        """
        super().set_params(**{name: value for name, value in params.items() if not _is_nested(name)})
        for name, value in params.items():
            if _is_nested(name):
                setattr(self, name, value)
        return self

    def _part(self, argument: str) -> Any:
        """One of `_PARTS` as `kinfold.fit` takes it, with its nested arguments."""
        prefix = f"{argument}__"
        given = {name[len(prefix) :]: value for name, value in vars(self).items() if name.startswith(prefix)}
        spec = getattr(self, argument)
        if argument == "optimizer" and spec is None:
            return {"name": "adamw", "lr": _RATE, **given}
        return _with_arguments(argument, spec, given)

    # -- training -------------------------------------------------------------------------------------------------

    def _fit(self, dataset: Dataset) -> None:
        """Trains on rows of positive weight."""
        random_state = self.random_state
        if random_state is None:
            seed = secrets.randbits(31)
        elif isinstance(random_state, numbers.Integral):
            seed = int(random_state)
        else:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        epochs, size = self.epochs, self.batch_size
        if epochs is None:
            known = isinstance(size, (int, np.integer)) and size >= 1
            epochs = default_epochs(len(dataset), int(size)) if known else "auto"
        metric = self._part("metric")
        self.result_ = fit(
            self._part("module"),
            dataset,
            tasks=self.tasks,
            val_fraction=self.val_fraction,
            holdout=self.holdout,
            epochs=epochs,
            patience=self.patience,
            rescue=self.rescue,
            batch_size=self.batch_size,
            optimizer=self._part("optimizer"),
            scheduler=self._part("scheduler"),
            loss=self._part("loss"),
            metric="finite_r2" if metric is None and self._kind == "regression" else metric,
            splits=self._part("splits"),
            transfer=self._part("transfer"),
            methods=self._part("methods"),
            candidates=self._part("candidates"),
            start=self.start,
            better=self.better,
            criterion=self.criterion,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
            engine=self.engine,
            precision=self.precision,
            device=self.device,
            seed=seed,
            listen=partial(_tell, _several(self.callbacks)),
        )
        self._ready()

    def _ready(self) -> None:
        own = self.module["name"] if isinstance(self.module, Mapping) and "name" in self.module else self.module
        vouched = isinstance(own, str) and own in MODELS
        self.module_ = copy.deepcopy(self.result_.model).double() if vouched else self.result_.model

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Float64[np.ndarray, " N"] | None]:
        """Returns (rows, targets, weights or None), checked as scikit-learn does, without rows of weight 0."""
        several = self._kind == "regression"
        if _is_mixed(X):
            X, y = validate_data(self, X, y, skip_check_array=True, reset=True)
            stand_in = np.zeros((len(X), 1))  # of the columns nothing is asked here: the encoder takes what it can
            y = check_X_y(stand_in, y, multi_output=several, y_numeric=several, ensure_min_samples=2)[1]
        else:
            X, y = validate_data(
                self, X, y, multi_output=several, y_numeric=several, allow_nd=True, ensure_min_samples=2
            )
        if sample_weight is None:
            return X, y, None
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
        kept = weights > 0
        if (weights < 0).any():
            row = int((weights < 0).argmax())
            raise InputError(f"sample_weight: row {row} has {weights[row]}; give numbers of at least 0.")
        if not kept.any():  # which later versions of scikit-learn have refused before
            raise InputError("sample_weight: every row has the weight 0; give one above 0 at least.")
        return _taken(X, kept), y[kept], weights[kept]

    # -- prediction -----------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Float64[Tensor, "N C"]:
        """The network's outputs: logits, or values."""
        check_is_fitted(self, "result_")
        encoder = self.result_.encoder
        if isinstance(encoder, TableEncoder):
            rows = validate_data(self, X, skip_check_array=True, reset=False)
            if not isinstance(X, pd.DataFrame):  # scikit-learn has warned that its columns have no names
                names = [column.name for column in encoder.columns]
                rows = pd.DataFrame(np.asarray(rows), columns=names).infer_objects()
        else:
            rows = validate_data(self, X, allow_nd=True, reset=False)
        inputs = encoder.encode(rows)
        return model_outputs(self.module_, inputs, torch.arange(len(inputs))).double()

    # -- persistence ----------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> Path:
        """Writes the fitted estimator to a directory, without pickle: the run (`Result.save`) and `estimator.json`.

        Returns:
            The directory's path.

        Raises:
            InputError: the directory holds a run already.
        """
        check_is_fitted(self, "result_")
        path = self.result_.save(directory)
        files.write_json(path / _SAVED, {"estimator": type(self).__name__, **self._said()})
        return path

    def _said(self) -> dict[str, Any]:
        """What `estimator.json` holds besides the estimator's name."""
        params = self.get_params(deep=False)
        names = getattr(self, "feature_names_in_", None)
        return {
            "params": {name: describe(params[name]) for name in params if name not in ("class_weight", "callbacks")},
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else names.tolist(),
        }

    @classmethod
    def load(cls: type[Estimator], directory: str | Path, *, trust: bool = False, **params: Any) -> Estimator:
        """Returns the fitted estimator that `save` wrote.

        Args:
            directory: where it is.
            trust: whether to import what the directory names, whatever it is; see `kinfold.load`. Fitting again imports
                what the parameters name: where they are another's, look at `get_params()` first.
            params: parameters that a file cannot hold, such as a `module` that is a class of your own session. Of
                these only the module is needed to predict; the others, left out, have their defaults should it be
                fitted again.

        Raises:
            InputError: there is no estimator of this class, a file is damaged, or the network cannot be rebuilt.

        Example:
            >>> import tempfile
            >>> X, y = np.eye(8), ["a", "b"] * 4
            >>> fitted = KinfoldClassifier(epochs=2, tasks=2, random_state=0).fit(X, y)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     again = KinfoldClassifier.load(fitted.save(f"{folder}/run"))
            >>> bool((again.predict(X) == fitted.predict(X)).all())
            True
        """
        path = Path(directory)
        if not (path / _SAVED).exists():
            raise InputError(f"load: {path} holds no estimator; give the directory that {cls.__name__}.save wrote.")
        said = files.read_json(path / _SAVED)
        its = said.get("estimator") if isinstance(said, dict) else None
        if its != cls.__name__:
            raise InputError(f"load: {path} holds a {its}; load it by that class.")
        try:
            kept = {name: value for name, value in said["params"].items() if not is_object(value)}
            if isinstance(params.get("module"), nn.Module):  # which takes no arguments any more
                kept = {name: value for name, value in kept.items() if not name.startswith("module__")}
            estimator: Estimator = cls(**{**kept, **params})
            module = estimator._part("module")
            own = "module" in params and not isinstance(module, (str, Mapping))
            estimator.result_ = load(path, copy.deepcopy(module) if own else None, trust=trust)
            estimator.n_features_in_ = said["n_features_in"]
            if said["feature_names_in"] is not None:
                estimator.feature_names_in_ = np.array(said["feature_names_in"], dtype=object)
            estimator._remember(said)
        except InputError:
            raise
        except Exception as error:  # anything may stand in a file that somebody has changed
            raise InputError(f"load: {path / _SAVED} is damaged or of another version ({one_line(error)}).") from error
        estimator._ready()
        return estimator

    def _remember(self, said: Mapping[str, Any]) -> None:
        """Takes what a subclass added to `_said`."""


@final
class KinfoldClassifier(ClassifierMixin, KinfoldEstimator):  # type: ignore[misc]  # as above
    """A classifier: the class of the largest output. `predict_proba` is the softmax of the outputs.

    Args:
        module: the network; see `KinfoldEstimator`.
        class_weight: weights of the classes, {label: number of at least 0}, or "balanced" for the inverse of their
            share. They go into the loss, and into the scores on validation rows by which models are kept and picked.
        params: the other parameters of `KinfoldEstimator`.

    Attributes:
        classes_: the labels, sorted; columns of `predict_proba`. One that has only rows of weight 0 is none of them.

    Example:
        >>> model = KinfoldClassifier(optimizer__lr=0.01, epochs=20, random_state=0)
        >>> X = np.array([[0.0], [0.1], [0.2], [0.3], [0.7], [0.8], [0.9], [1.0]])
        >>> model.fit(X, ["no"] * 4 + ["yes"] * 4).predict([[0.0], [1.0]])
        array(['no', 'yes'], dtype='<U3')
    """

    _kind = "classification"

    @_by_name(KinfoldEstimator.__init__)
    def __init__(self, module: Any = "mlp", *, class_weight: Any = None, **params: Any):
        super().__init__(module, **params)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "KinfoldClassifier":
        """Trains on labelled rows.

        Args:
            X: [N, …] numbers, or a pandas DataFrame.
            y: [N] labels.
            sample_weight: [N] how much each row counts, in the loss and in the scores on validation rows; a row of
                weight 0 is as if absent.

        Raises:
            InputError: a parameter, or the data, cannot be used; one class alone is left.
            RunError: all tasks diverged.
        """
        X, y, weights = self._checked(X, y, sample_weight)
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise InputError(
                f"y: every row that counts is of the class {classes.tolist()[0]!r}; give two classes or more."
            )
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            wrong = ~(np.isfinite(by_class) & (by_class >= 0))
            if wrong.any():
                row = int(wrong.argmax())
                raise InputError(
                    f"class_weight: class {y[row : row + 1].tolist()[0]!r} has {by_class[row]}; give finite numbers of "
                    "at least 0."
                )
            weights = by_class if weights is None else weights * by_class
            kept = weights > 0
            if not kept.any():
                raise InputError("class_weight: every class of the rows has the weight 0; give one above 0 at least.")
            X, y, weights = _taken(X, kept), y[kept], weights[kept]
        dataset = _dataset(X, y, self._kind, classes)
        self._fit(dataset if _alike(weights) else weighted(dataset, weights))
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> Shaped[np.ndarray, " N"]:
        """Returns the label of each row's largest output."""
        numbers_of_classes = self._outputs(X).argmax(1).numpy()
        labels: np.ndarray = self.classes_[numbers_of_classes]
        return labels

    def predict_proba(self, X: Any) -> Float[np.ndarray, "N C"]:
        """Returns the classes' probabilities, in the order of `classes_`."""
        probabilities: np.ndarray = torch.softmax(self._outputs(X), 1).numpy()
        return probabilities

    def _said(self) -> dict[str, Any]:
        weight = self.class_weight
        pairs = list(weight.items()) if isinstance(weight, Mapping) else None
        return {
            **super()._said(),
            "class_weight": describe(weight if pairs is None else pairs),
            "classes_type": self.classes_.dtype.str,
        }

    def _remember(self, said: Mapping[str, Any]) -> None:
        self.classes_ = np.array(self.result_.target.labels, dtype=said["classes_type"])
        if self.class_weight is None:
            weight = said["class_weight"]
            self.class_weight = dict(weight) if isinstance(weight, list) else weight


@final
class KinfoldRegressor(MultiOutputMixin, RegressorMixin, KinfoldEstimator):  # type: ignore[misc]  # as above
    """A regressor of one or several targets. Parameters are those of `KinfoldEstimator`.

    Example:
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> model = KinfoldRegressor(epochs=30, random_state=0).fit(X, 1000 + 300 * X[:, 0])
        >>> bool(model.score(X, 1000 + 300 * X[:, 0]) > 0.9)
        True
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "KinfoldRegressor":
        """Trains on rows with values.

        Args:
            X: [N, …] numbers, or a pandas DataFrame.
            y: [N] or [N, K] values.
            sample_weight: [N] how much each row counts, in the loss and in the scores on validation rows; a row of
                weight 0 is as if absent.

        Raises:
            InputError: a parameter, or the data, cannot be used.
            RunError: all tasks diverged.
        """
        X, y, weights = self._checked(X, y, sample_weight)
        y = y.astype(np.float64)
        if y.ndim == 2 and y.shape[1] == 1:
            said = "A column-vector y was passed when a 1d array was expected; it is taken as one, see ravel()."
            warnings.warn(said, DataConversionWarning, stacklevel=2)
            y = y.ravel()
        dataset = _dataset(X, y, self._kind, None)
        self._fit(dataset if _alike(weights) else weighted(dataset, weights))
        return self

    def predict(self, X: Any) -> Float[np.ndarray, "N *K"]:
        """Returns each row's value, [N], or values, [N, K]."""
        values: np.ndarray = self._outputs(X).numpy()
        return values[:, 0] if self.result_.target.outputs == 1 else values


class _Rows(ArrayDataset):
    """Rows that reach the network as they are, whose targets are trained on in standard units all the same."""

    standardised = True


def _dataset(X: Any, y: Shaped[np.ndarray, "N *K"], kind: Kind, classes: Shaped[np.ndarray, " C"] | None) -> Dataset:
    labels = None if classes is None else classes.tolist()
    if isinstance(X, pd.DataFrame):
        table: TableDataset = from_frame(X, y, kind=kind, labels=labels)
        return table
    dataset = read((X, y), kind=kind, labels=labels)
    if kind == "regression" and type(dataset) is ArrayDataset:
        return _Rows(dataset.name, dataset.features, dataset.target)
    return dataset


def _is_mixed(X: Any) -> bool:
    """Whether it is a table with a column that is not of numbers."""
    return isinstance(X, pd.DataFrame) and not all(map(pd.api.types.is_numeric_dtype, X.dtypes))


def _taken(X: Any, rows: Bool[np.ndarray, " N"]) -> Any:
    return X.loc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def _alike(weights: Float64[np.ndarray, " N"] | None) -> bool:
    """Whether all rows count alike, and so need no weights."""
    return weights is None or bool((weights == weights[0]).all())


def _is_nested(name: str) -> bool:
    part, marks, argument = name.partition("__")
    return part in _PARTS and bool(marks) and bool(argument)


def _with_arguments(argument: str, spec: Any, given: Mapping[str, Any]) -> Any:
    """Returns a part with arguments, in the form in which `kinfold.fit` takes it.

    Example:
        >>> _with_arguments("transfer", "amto", {"period": 2})
        {'name': 'amto', 'period': 2}
    """
    if isinstance(spec, type) and argument not in _MAKERS:
        return spec(**given)
    if not given:
        return spec
    if isinstance(spec, str):
        path = ":" in spec and hub_of(spec) is None if argument == "module" else ":" in spec or "." in spec
        return {"class_path": spec, "init_args": dict(given)} if path else {"name": spec, **given}
    if isinstance(spec, Mapping):
        if "class_path" not in spec:
            return {**spec, **given}
        return {**spec, "init_args": {**(spec.get("init_args") or {}), **given}}
    if callable(spec) and not isinstance(spec, nn.Module):
        return partial(spec, **given)
    name, kind = next(iter(given)), type(spec).__name__
    raise InputError(f"{argument}__{name}: {argument} is a {kind}; arguments go with a name, a class or a function.")


def _several(callbacks: Any) -> tuple[Listener, ...]:
    if callbacks is None:
        return ()
    found = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for one in found:
        if not callable(one):
            raise InputError(f"callbacks: {one!r} cannot be called; give functions of one event.")
    return found


def _tell(callbacks: tuple[Listener, ...], event: Event) -> None:
    """Passes an event on; logs what `kinfold.fit` would warn of, but quietly, since a search fits many times."""
    if event["event"] == "note" or event.get("severity") == "warning":
        _LOG.info("%s", event["message"])
    for callback in callbacks:
        callback(event)
