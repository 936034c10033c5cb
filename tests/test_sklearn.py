import inspect
import logging
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, ShuffleSplit, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn

import kinfold
from kinfold.errors import InputError
from kinfold.files import read_json, write_json
from kinfold.sklearn import EXPECTED_FAILED_CHECKS, KinfoldClassifier, KinfoldRegressor, default_epochs
from kinfold.transfer import AMTO

DOCS = Path(__file__).parents[1] / "docs" / "sklearn.md"
QUICK = {"tasks": 2, "epochs": 6, "engine": "sequential", "transfer": "none"}
CHECKED = {**QUICK, "tasks": 1, "module": {"name": "mlp", "hidden": [32]}, "optimizer": {"name": "adamw", "lr": 0.02}}


class Narrow(nn.Module):
    """A user's own network, of the sizes of the data."""

    def __init__(self, input_shape, outputs, width=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(int(np.prod(input_shape)), width), nn.ReLU(), nn.Linear(width, outputs)
        )

    def forward(self, x):
        return self.layers(x)


def blobs(rows=60, features=3, seed=0):
    X = np.random.default_rng(seed).normal(size=(rows, features))
    return X, np.where(X[:, 0] > 0, "yes", "no")


def quick(**params):
    return KinfoldClassifier(**{**QUICK, "random_state": 0, **params})


def mixed_table(rows=80, seed=0):
    rng = np.random.default_rng(seed)
    size, town = rng.normal(50, 20, rows), rng.choice(["Bonn", "Ulm", "Linz"], rows)
    answer = np.where((size > 50) ^ (town == "Ulm"), "buys", "leaves")
    size[::7] = np.nan
    return pd.DataFrame({"size": size, "town": town, "new": rng.random(rows) > 0.5}), answer


# -- scikit-learn's own checks ------------------------------------------------------------------------------------


@parametrize_with_checks(
    [KinfoldClassifier(**CHECKED), KinfoldRegressor(**CHECKED)],
    expected_failed_checks=lambda estimator: dict(EXPECTED_FAILED_CHECKS),
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of checks that are skipped, and of what checks do on purpose
@pytest.mark.parametrize("make", [KinfoldClassifier, KinfoldRegressor])
def test_the_checks_pass_with_default_parameters(make):
    outcomes = check_estimator(make(), expected_failed_checks=dict(EXPECTED_FAILED_CHECKS))
    assert {each["check_name"] for each in outcomes if each["status"] == "xfail"} == set(EXPECTED_FAILED_CHECKS)
    assert sum(each["status"] == "passed" for each in outcomes) > 40


def test_what_is_expected_to_fail_is_explained():
    assert list(EXPECTED_FAILED_CHECKS) == ["check_sample_weight_equivalence_on_dense_data"]
    assert all(len(reason) > 40 for reason in EXPECTED_FAILED_CHECKS.values())


# -- among scikit-learn's tools -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [load_wine, load_breast_cancer])
def test_a_grid_over_tasks_and_transfer(data):
    X, y = data(return_X_y=True)
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("net", KinfoldClassifier(epochs=3, optimizer__lr=0.02, random_state=0))]
    )
    grid = {"net__tasks": [2, 3], "net__transfer": ["amto", "distil"]}
    search = GridSearchCV(pipeline, grid, cv=ShuffleSplit(1, test_size=0.3, random_state=0), error_score="raise")
    search.fit(X, y)
    assert search.score(X, y) > 0.9
    net = search.best_estimator_["net"]
    assert net.result_.splits.tasks == search.best_params_["net__tasks"]
    assert net.result_.config["transfer"] == search.best_params_["net__transfer"]


def test_a_grid_over_nested_parameters():
    X, y = blobs()
    grid = {"module__hidden": [(3,), (5,)], "optimizer__lr": [0.01]}
    search = GridSearchCV(quick(), grid, cv=2, error_score="raise").fit(X, y)
    (width,) = search.best_params_["module__hidden"]
    assert search.best_estimator_.module_[1].out_features == width
    assert search.best_estimator_.result_.config["optimizer"]["lr"] == 0.01


def test_a_pipeline_with_a_column_transformer():
    X, y = mixed_table(160)
    columns = make_column_transformer((StandardScaler(), ["size"]), (OneHotEncoder(), ["town"]), remainder="drop")
    model = make_pipeline(columns, quick(epochs=15, optimizer__lr=0.02))
    filled = X.fillna({"size": 50.0})
    assert cross_val_score(model, filled, y, cv=2, error_score="raise").mean() > 0.75
    assert model.fit(filled, y).predict(filled.iloc[:3]).dtype.kind == "U"


def test_calibration():
    X, y = blobs()
    calibrated = CalibratedClassifierCV(quick(), cv=2).fit(X, y)
    probabilities = calibrated.predict_proba(X)
    assert probabilities.shape == (60, 2)
    assert calibrated.score(X, y) > 0.8


# -- data ---------------------------------------------------------------------------------------------------------


def test_a_mixed_table_with_gaps_needs_no_preparation():
    X, y = mixed_table()
    model = quick(epochs=20, optimizer__lr=0.02).fit(X, y)
    assert model.score(X, y) > 0.85
    assert list(model.feature_names_in_) == ["size", "town", "new"]
    assert model.n_features_in_ == 3
    expected = model.predict(X)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert (model.predict(X.to_numpy()) == expected).all()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X.rename(columns={"town": "city"}))
    with pytest.raises(ValueError, match="feature"):
        model.predict(X[["size", "town"]])


def test_a_table_of_numbers_is_the_array_it_holds():
    X, y = blobs()
    frame = pd.DataFrame(X, columns=["a", "b", "c"], index=np.repeat(7, len(X)))
    expected = quick().fit(X, y).predict_proba(X)
    assert np.array_equal(quick().fit(frame, y).predict_proba(frame), expected)
    with pytest.raises(ValueError, match="contains NaN"):
        quick().fit(frame.mask(frame > 2), y)


@pytest.mark.parametrize(
    "labels", [["no", "yes"], np.array(["no", "yes"], dtype=object), [False, True], [-1, 1], [1.0, 2.0]]
)
def test_labels_come_back_as_they_were(labels):
    X, y = blobs()
    y = np.asarray(labels)[(y == "yes").astype(int)]
    model = quick(epochs=10).fit(X, y)
    assert model.classes_.dtype == y.dtype
    assert model.classes_.tolist() == list(labels)
    predicted = model.predict(X)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.8
    assert (model.classes_[model.predict_proba(X).argmax(1)] == predicted).all()


def test_rows_may_have_any_shape():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    y = (X[:, 0].mean((1, 2)) > 127).astype(int)
    model = quick().fit(X, y)
    assert model.result_.encoder.kind == "image"
    assert model.predict(X).shape == (40,)
    rates = rng.normal(size=(40, 2, 5))
    assert KinfoldRegressor(**QUICK, random_state=0).fit(rates, rates.sum((1, 2))).predict(rates).shape == (40,)


def test_what_is_predicted_for_a_row_does_not_hang_on_the_others():
    X, y = blobs(200)
    model = quick(module__hidden=(64,)).fit(X, y)
    whole = model.predict_proba(X)
    np.testing.assert_allclose(np.concatenate([model.predict_proba(row[None]) for row in X]), whole, rtol=1e-12)


def test_bad_data():
    X, y = blobs()
    with pytest.raises(InputError, match=r"y: every row that counts is of the class 'yes'; give two classes"):
        quick().fit(X, np.full(60, "yes"))
    with pytest.raises(InputError, match=r"sample_weight: row 3 has -1\.0"):
        quick().fit(X, y, sample_weight=np.where(np.arange(60) == 3, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"every row has the weight 0|at least one non-zero"):
        quick().fit(X, y, sample_weight=np.zeros(60))
    table, answer = mixed_table()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        quick().fit(table, answer[:-1])
    with pytest.raises(NotFittedError):
        quick().predict(X)


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "table"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_row_of_weight_zero_is_as_if_absent(form, kind):
    X, y = blobs(80) if form == "array" else mixed_table(80)
    y = y if kind == "classification" else np.random.default_rng(2).normal(size=80)
    make = KinfoldClassifier if kind == "classification" else KinfoldRegressor
    weights = np.random.default_rng(1).integers(0, 3, 80).astype(float)
    kept = weights > 0

    def losses(model):
        return [event["train_loss"] for event in model.result_.history if event["event"] == "period"]

    fresh = make(**QUICK, random_state=0)
    zeros, absent = clone(fresh).fit(X, y, weights), clone(fresh).fit(X[kept], y[kept], weights[kept])
    assert losses(zeros) == losses(absent)
    assert np.array_equal(zeros.predict(X), absent.predict(X))
    unweighted = clone(fresh).fit(X[kept], y[kept])
    assert losses(unweighted) != losses(absent)
    ones = clone(fresh).fit(X[kept], y[kept], np.full(int(kept.sum()), 3.0))
    assert losses(ones) == losses(unweighted)


@pytest.mark.parametrize("transfer", ["none", "distil", "teach"])
def test_weights_decide_between_labels_that_contradict(transfer):
    X = np.zeros((120, 2))
    y, weights = np.repeat([0, 1], 60), np.repeat([1.0, 9.0], 60)
    given = {"tasks": 2, "epochs": 12, "batch_size": 30, "transfer": transfer, "random_state": 0, "optimizer__lr": 0.03}
    found = KinfoldClassifier(**given).fit(X, y, weights).predict_proba(X[:1])[0, 1]
    assert found == pytest.approx(0.9, abs=0.05)
    target = KinfoldRegressor(**given).fit(X, y, weights).predict(X[:1])
    assert target[0] == pytest.approx(0.9, abs=0.08)


def test_class_weight_moves_predictions():
    rng = np.random.default_rng(0)
    y = (rng.random(200) < 0.1).astype(int)
    X = rng.normal(size=(200, 2)) + y[:, None]
    found = {
        name: quick(class_weight=weight, optimizer__lr=0.02).fit(X, y).predict(X).mean()
        for name, weight in {"plain": None, "balanced": "balanced", "given": {0: 1.0, 1: 30.0}}.items()
    }
    assert found["plain"] < 0.1
    assert 0.1 < found["balanced"] < found["given"]
    without = quick(class_weight={0: 1, 1: 0}).fit(X, y)
    assert without.classes_.tolist() == [0, 1]
    assert without.result_.splits.train.shape[1] == (y == 0).sum()


# -- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ({"a": 1.0, "b": -2.0}, "class_weight: class 'b' has -2.0; give finite numbers of at least 0"),
        ({"a": float("nan"), "b": 1.0}, "class_weight: class 'a' has nan"),
        ({"a": 1.0, "b": float("inf")}, "class_weight: class 'b' has inf"),
        ({"a": 0, "b": 0.0}, "class_weight: every class of the rows has the weight 0; give one above 0"),
    ],
)
def test_class_weights_that_are_none(weight, said):
    with pytest.raises(InputError, match=said):
        quick(class_weight=weight).fit(np.arange(8.0)[:, None], ["a", "b"] * 4)


def test_parameters_nested_ones_included():
    model = KinfoldClassifier("mlp", module__hidden=(3,), optimizer__lr=0.1, class_weight="balanced")
    params = model.get_params()
    assert params["module__hidden"] == (3,)
    assert params["class_weight"] == "balanced"
    assert params["tasks"] == 4
    copied = clone(model)
    assert copied.get_params() == params
    model.set_params(optimizer__lr=0.2, tasks=3)
    assert (model.optimizer__lr, model.tasks) == (0.2, 3)
    assert copied.optimizer__lr == 0.1
    assert list(inspect.signature(KinfoldClassifier).parameters)[:3] == ["module", "class_weight", "tasks"]
    assert repr(model).startswith("KinfoldClassifier(class_weight='balanced', module__hidden=(3,)")
    with pytest.raises(ValueError, match="Invalid parameter 'task'"):
        model.set_params(task=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        KinfoldRegressor(epoch=3)


def test_parameters_are_those_of_fit_with_its_defaults():
    own = inspect.signature(KinfoldRegressor).parameters
    theirs = inspect.signature(kinfold.fit).parameters
    renamed = {"module", "random_state", "callbacks"}
    assert set(own) - set(theirs) == renamed
    assert set(theirs) - set(own) == {
        *("model", "data", "seed", "listen"),  # by other names, or handed to fit
        *("target", "groups", "times", "kind", "texts", "out", "resume"),  # for files
        *("tracking", "resources", "compression", "asynchronous"),  # of long runs, on clusters
    }
    other = {name for name in set(own) - renamed if own[name].default != theirs[name].default}
    assert other == {"tasks", "holdout", "epochs", "batch_size"}


def test_arguments_reach_the_run():
    X, y = blobs(80)
    given = {
        "tasks": 3,
        "val_fraction": 0.3,
        "holdout": 0.2,
        "epochs": 3,
        "patience": 2,
        "batch_size": 8,
        "optimizer": torch.optim.Adam,
        "scheduler": "linear",
        "loss": "cross_entropy",
        "splits": "shuffle",
        "transfer": "papa",
        "methods": "mixup",
        "candidates": "soup",
        "start": "independent",
        "better": "loss",
        "criterion": "worst",
        "accumulate": 2,
        "clip_norm": 1.0,
        "engine": "sequential",
        "precision": "float64",
        "device": "cpu",
    }
    nested = {"optimizer__lr": 0.02, "transfer__alpha": 0.9, "methods__alpha": 0.3, "module__hidden": (5,)}
    result = KinfoldClassifier(**given, **nested, random_state=7).fit(X, y).result_
    assert result.estimate.rows == 16
    assert result.engine == "sequential"
    config = result.config
    described = {
        "optimizer": {"class_path": "torch.optim.adam:Adam", "init_args": {"lr": 0.02}},
        "transfer": {"name": "papa", "alpha": 0.9},
        "methods": {"name": "mixup", "alpha": 0.3},
    }
    for name, value in given.items():
        assert config[name] == described.get(name, value), name
    assert config["model"] == {"name": "mlp", "hidden": [5]}
    assert config["seed"] == 7


def test_parts_of_every_form():
    X, y = blobs()
    with torch.random.fork_rng():
        made = Narrow((3,), 2, width=3)
    for module, width in (
        (Narrow, 6),
        (partial(Narrow, width=5), 5),
        (made, 3),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}, None),
    ):
        extra = {"module__width": 6} if module is Narrow else {}
        model = quick(module=module, transfer=AMTO, transfer__period=2, **extra).fit(X, y)
        if width is not None:
            assert model.module_.layers[1].out_features == width
        assert "period': 2" in str(model.result_.config["transfer"])
    model = quick(loss=nn.CrossEntropyLoss, loss__label_smoothing=0.1, optimizer__lr=0.05).fit(X, y)
    assert model.result_.config["optimizer"] == {"name": "adamw", "lr": 0.05}
    with pytest.raises(InputError, match="module__width: module is a Narrow; arguments go with"):
        quick(module=made, module__width=3).fit(X, y)
    with pytest.raises(InputError, match="unknown name 'amtoo', did you mean 'amto'"):
        quick(transfer="amtoo").fit(X, y)


def test_random_state():
    X, y = blobs()

    def fitted(random_state):
        return quick(random_state=random_state).fit(X, y).predict_proba(X)

    expected = fitted(3)
    assert np.array_equal(fitted(np.int64(3)), expected)
    assert not np.array_equal(fitted(4), expected)
    assert not np.array_equal(fitted(None), fitted(None))
    drawn = np.random.RandomState(5)
    first, second = fitted(drawn), fitted(drawn)
    assert not np.array_equal(first, second)
    assert np.array_equal(fitted(np.random.RandomState(5)), first)


def test_epochs_where_nobody_says():
    X, y = blobs()
    assert quick(epochs=None, patience=1).fit(X, y).result_.config["epochs"] == default_epochs(60, 32) == 30
    assert quick(epochs=None, patience=1, batch_size="auto").fit(X, y).result_.config["epochs"] == 100


def test_callbacks_hear_every_event(caplog):
    X, y = blobs()
    heard, counted = [], []
    with caplog.at_level(logging.INFO, logger="kinfold"):
        model = quick(callbacks=[heard.append, lambda event: counted.append(1)]).fit(np.round(X), y)
    assert heard == model.result_.history
    assert len(counted) == len(heard)
    assert [event["period"] for event in heard if event["event"] == "period"] == list(range(1, 7))
    # Rows that stand twice are worth a word, but a search fits too often for warnings.
    assert {record.levelname for record in caplog.records} == {"INFO"}
    heard.clear()
    assert quick(callbacks=heard.append).fit(X, y).result_.history == heard
    with pytest.raises(InputError, match="callbacks: 3 cannot be called"):
        quick(callbacks=[3]).fit(X, y)


# -- regression ---------------------------------------------------------------------------------------------------


def test_several_outputs_in_any_unit():
    X = np.random.default_rng(0).normal(size=(120, 3))
    y = np.stack([1e4 + 500 * X[:, 0], 1e-3 * X[:, 1]], 1)
    model = KinfoldRegressor(tasks=2, epochs=15, optimizer__lr=0.02, random_state=0).fit(X, y)
    assert model.predict(X).shape == (120, 2)
    assert model.score(X, y) > 0.9
    assert model.result_.scores.metric == "r2"
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert KinfoldRegressor(**QUICK).fit(X, y[:, :1]).predict(X).shape == (120,)


def test_constant_targets_are_learned():
    X, _ = blobs(12)
    found = KinfoldRegressor(**QUICK, random_state=0).fit(X, np.full(12, 5.0)).predict(X)
    assert found == pytest.approx(5.0, abs=0.7)


# -- keeping an estimator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["mlp", Narrow])
def test_pickle_and_joblib(module, tmp_path):
    X, y = blobs()
    model = quick(module=module).fit(X, y)
    expected = model.predict_proba(X)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), expected)
    joblib.dump(model, tmp_path / "model.joblib")
    assert np.array_equal(joblib.load(tmp_path / "model.joblib").predict_proba(X), expected)


def test_a_directory_without_pickle(tmp_path):
    X, y = mixed_table()
    model = quick(class_weight={"buys": 2.0, "leaves": 1.0}, optimizer__lr=0.01, module__hidden=(7,)).fit(X, y)
    path = model.save(tmp_path / "run")
    assert not [file for file in path.rglob("*") if file.suffix in (".pkl", ".joblib", ".pt")]
    again = KinfoldClassifier.load(path)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.classes_.dtype == model.classes_.dtype
    assert list(again.feature_names_in_) == ["size", "town", "new"]
    assert again.class_weight == model.class_weight
    assert np.array_equal(again.fit(X, y).predict_proba(X), model.predict_proba(X))
    with pytest.raises(InputError, match="holds a KinfoldClassifier; load it by that class"):
        KinfoldRegressor.load(path)
    with pytest.raises(InputError, match="already holds a run"):
        model.save(path)
    with pytest.raises(InputError, match="holds no estimator"):
        KinfoldClassifier.load(tmp_path)
    said = read_json(path / "estimator.json")
    del said["classes_type"]
    write_json(path / "estimator.json", said)
    with pytest.raises(InputError, match="is damaged"):
        KinfoldClassifier.load(path)


def test_a_directory_of_a_network_of_the_users_own(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = X[:, :2] * [1.0, 100.0]

    def make(input_shape, outputs, width):
        return Narrow(input_shape, outputs, width)

    model = KinfoldRegressor(make, module__width=3, **QUICK, random_state=0, callbacks=[print]).fit(X, y)
    path = model.save(tmp_path / "run")
    with pytest.raises(InputError, match="model was a Python object"):
        KinfoldRegressor.load(path)
    with torch.random.fork_rng():
        other = Narrow((3,), 2, 3)
    for module, nested in ((make, {}), (partial(Narrow, width=3), {}), (other, {})):
        again = KinfoldRegressor.load(path, module=module, **nested)
        assert np.array_equal(again.predict(X), model.predict(X))
    assert KinfoldRegressor.load(path, module=make).module__width == 3


# -- documentation ------------------------------------------------------------------------------------------------


def test_the_page_runs(tmp_path):
    """As a user runs it: by itself, without types being checked."""
    sources = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(sources) > 3
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(sources)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs" / "towns" / "report.html").exists()
