"""`kinfold.fit`: what may be given, what comes out, and what happens when it cannot."""

import copy
import inspect
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassCohenKappa

import kinfold
from kinfold import files, random
from kinfold.candidates import CANDIDATES, ExponentialAverage, StochasticAverage
from kinfold.errors import InputError, RunError
from kinfold.splits.base import Splits
from kinfold.tasks.order import steps_in
from kinfold.transfer import AMTO, PAPA, Distil, PAPAAll, TeachRule, Together

SMALL: dict[str, Any] = {"tasks": 3, "epochs": 3, "batch_size": 16}
MLP = {"name": "mlp", "hidden": [8]}


def rows(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)


class Pairs(TorchDataset[Any]):
    def __init__(self) -> None:
        self.x, self.y = rows()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.x[i]), int(self.y[i])


def linear() -> nn.Module:
    return nn.Linear(4, 3)


def test_the_forms_of_data_are_one() -> None:
    x, y = rows()
    forms = [(x, y), (torch.from_numpy(x), torch.from_numpy(y)), (x.tolist(), y.tolist()), Pairs()]
    forms.append(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)))
    results = [kinfold.fit(MLP, form, **SMALL) for form in forms]
    for result in results[1:]:
        assert torch.equal(result.scores.loss_matrix, results[0].scores.loss_matrix)
    assert results[2].config["data"] == "<tuple>"  # not the rows themselves


def test_what_comes_out() -> None:
    x, y = rows()
    result = kinfold.fit(MLP, (x, y), transfer="amto", **SMALL)
    assert not result.model.training
    assert {value.device.type for value in result.model.state_dict().values()} == {"cpu"}
    assert result.estimate is not None
    assert (result.estimate.rows, result.estimate.clean, result.estimate.level) == (8, True, 0.95)
    assert result.estimate.low <= result.estimate.value <= result.estimate.high
    sealed = result.splits.sealed
    assert result.estimate.value == pytest.approx((result.predict(x[sealed]) == y[sealed]).mean())
    assert [e["period"] for e in result.history if e["event"] == "period"] == [1, 2, 3]
    assert (result.epochs_run, result.stopped) == (3, "epochs")
    batches = [int(mask.sum()) // 16 for mask in result.splits.train]
    assert result.cost["sample_visits"] == 3 * 16 * sum(batches)
    assert 0 < result.cost["train_seconds"] <= result.cost["wall_seconds"]
    assert result.selected.score == pytest.approx(float(result.scores.matrix.mean(1).max()))
    assert torch.equal(result.scores.own, result.scores.matrix.diagonal())


def test_the_score_matrix_is_of_the_exported_models() -> None:
    x, y = rows()
    result = kinfold.fit(MLP, (x, y), transfer="amto", **SMALL)
    for j, validation in enumerate(result.splits.validation):
        outputs = result.outputs(x[validation])
        task = result.selected.task
        accuracy = float((outputs.argmax(1).numpy() == y[validation]).mean())
        assert accuracy == pytest.approx(float(result.scores.matrix[task, j]))
        loss = float(nn.functional.cross_entropy(outputs, torch.from_numpy(y[validation])))
        assert loss == pytest.approx(float(result.scores.loss_matrix[task, j]), rel=1e-5)


def test_labels_come_back_as_the_user_wrote_them() -> None:
    x, y = rows()
    words = np.array(["low", "mid", "zenith"])[y]
    result = kinfold.fit(MLP, (x, words), **SMALL)
    predicted, probabilities = result.predict(x), result.predict_proba(x)
    assert set(predicted) <= {"low", "mid", "zenith"}
    assert result.target.labels == ("low", "mid", "zenith")
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-12)
    assert (np.array(result.target.labels)[probabilities.argmax(1)] == predicted).all()
    numbers = kinfold.fit(MLP, (x, 10 * y - 5), **SMALL)
    assert set(numbers.predict(x).tolist()) <= {-5, 5, 15}


def test_regression() -> None:
    x, _ = rows()
    result = kinfold.fit({"name": "mlp", "hidden": [8]}, (x, x[:, 0] * 2 + 1), **{**SMALL, "epochs": 8})
    assert (result.scores.metric, result.target.labels) == ("r2", None)
    assert result.predict(x).shape == (80,)
    with pytest.raises(InputError, match="predict_proba: the run was a regression; use predict"):
        result.predict_proba(x)
    both = kinfold.fit({"name": "mlp", "hidden": [8]}, (x, x[:, :2]), **SMALL)
    assert both.predict(x).shape == (80, 2)


def test_no_holdout_no_estimate() -> None:
    result = kinfold.fit(MLP, rows(), holdout=0, **SMALL)
    assert result.estimate is None
    assert not result.splits.sealed.any()
    assert result.to_json()["estimate"] is None


def test_a_module_is_every_tasks_start_and_stays_as_it_was() -> None:
    with random.seeded(torch.device("cpu"), 0):
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    before, identity = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    # Nothing moves at a learning rate of zero: what comes out is what went in.
    kept = kinfold.fit(model, rows(), optimizer=partial(torch.optim.SGD, lr=0.0), **SMALL)
    for name, value in kept.model.state_dict().items():
        assert torch.equal(value, before[name])
    result = kinfold.fit(model, rows(), **SMALL)
    assert torch.equal(result.model[0].weight, before["0.weight"])
    assert not result.model[0].weight.requires_grad
    assert not torch.equal(result.model[1].weight, before["1.weight"])
    assert [id(p) for p in model.parameters()] == identity
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_factory_is_called_once_a_task_or_once() -> None:
    calls = []

    def make() -> nn.Module:
        calls.append(torch.initial_seed())
        return linear()

    found = []
    for transfer in ("amto", "distil"):  # whose student starts by itself
        for start in ("independent", "shared"):
            kinfold.fit(make, rows(), engine="sequential", start=start, transfer=transfer, **SMALL)
            found.append(len(set(calls)))
            calls.clear()
    assert found == [3, 1, 4, 2]


def test_patience_stops() -> None:
    still = kinfold.fit(MLP, rows(), optimizer=partial(torch.optim.SGD, lr=0.0), patience=2, transfer="none", tasks=3)
    assert (still.stopped, still.epochs_run) == ("patience", 3)
    moving = kinfold.fit(MLP, rows(), patience=2, transfer="amto", **{**SMALL, "epochs": 2})
    assert (moving.stopped, moving.epochs_run) == ("epochs", 2)


def test_one_task_has_nobody_to_learn_from() -> None:
    for rule in ("amto", "teach", "none"):
        result = kinfold.fit(MLP, rows(), **{**SMALL, "tasks": 1, "transfer": rule})
        assert result.transfers.proposed == 0
        assert result.scores.matrix.shape == (1, 1)
        assert result.engine == "sequential"
        assert not [event for event in result.history if event["event"] == "transfer"]


def test_transfers_stop_in_the_last_tenth() -> None:
    rule = AMTO(p_low=1.0, p_high=1.0)
    result = kinfold.fit(MLP, rows(), transfer=rule, **{**SMALL, "epochs": 10})
    periods = {event["period"] for event in result.history if event["event"] == "transfer"}
    assert periods == set(range(1, 10))
    assert result.transfers.proposed == 3 * 9


def test_rules_act_together(tmp_path: Path) -> None:
    """However it is written, it is the same run; and the configuration says enough to repeat it."""
    parts = [TeachRule(), PAPA(alpha=0.5, steps=2)]
    spelled: list[Any] = [Together(tuple(parts)), parts, ["teach", {"name": "papa", "alpha": 0.5, "steps": 2}]]
    results = [
        kinfold.fit(MLP, rows(), transfer=spec, out=tmp_path / str(i), **SMALL) for i, spec in enumerate(spelled)
    ]
    for i, result in enumerate(results):
        assert torch.equal(result.scores.loss_matrix, results[0].scores.loss_matrix)
        written = files.read_yaml(tmp_path / str(i) / "config.yaml")["transfer"]
        assert isinstance(written, list)
        again = kinfold.fit(MLP, rows(), transfer=written, **SMALL)
        assert torch.equal(again.scores.loss_matrix, results[0].scores.loss_matrix)
    events = [event for event in results[0].history if event["event"] == "transfer"]
    assert {event["rule"] for event in events} == {"teach+papa"}
    assert {move["form"] for event in events for move in event["transfers"]} == {"teach", "mix"}
    by_name = kinfold.fit(MLP, rows(), transfer="teach+papa", out=tmp_path / "run", **SMALL)
    assert by_name.config["transfer"] == "teach+papa"
    assert kinfold.fit(MLP, rows(), transfer="teach+papa", out=tmp_path / "run", resume=True, **SMALL).epochs_run == 3
    alone = kinfold.fit(MLP, rows(), transfer="teach", **SMALL)
    assert not torch.equal(results[0].scores.loss_matrix, alone.scores.loss_matrix)
    assert torch.equal(kinfold.fit(MLP, rows(), transfer=["teach"], **SMALL).scores.matrix, alone.scores.matrix)


def test_candidates_however_they_are_written(tmp_path: Path) -> None:
    """It is the same run; and the configuration says enough to repeat it."""
    given: dict[str, Any] = {"transfer": "none", **SMALL}
    spelled: list[Any] = [
        [ExponentialAverage(0.5), StochasticAverage()],
        (ExponentialAverage(decay=0.5), "swa"),
        [{"name": "ema", "decay": 0.5}, {"class_path": "kinfold.candidates:StochasticAverage"}],
    ]
    results = [
        kinfold.fit(MLP, rows(), candidates=spec, out=tmp_path / str(i), **given) for i, spec in enumerate(spelled)
    ]
    contenders = results[0].contenders
    assert [one.name for one in contenders] == ["task"] * 3 + ["ema"] * 3 + ["swa"] * 3
    for i, result in enumerate(results):
        assert result.contenders == contenders
        written = files.read_yaml(tmp_path / str(i) / "config.yaml")["candidates"]
        assert kinfold.fit(MLP, rows(), candidates=written, **given).contenders == contenders
        assert kinfold.load(tmp_path / str(i)).contenders == contenders
    for name in CANDIDATES:
        one = kinfold.fit(MLP, rows(), candidates=name, **given)
        assert {contender.name for contender in one.contenders} <= {"task", name}
        assert torch.equal(one.scores.loss_matrix, results[0].scores.loss_matrix)  # they only watch
        assert one.config["candidates"] == name


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_candidates_are_scored_like_the_tasks(engine: str) -> None:
    names = ["soup", "greedy-soup", "ema", "swa"]
    result = kinfold.fit(MLP, rows(), candidates=names, transfer="amto", engine=engine, **SMALL)
    by_name = {one.name: one for one in result.contenders}
    assert by_name["soup"].members == (0, 1, 2)
    assert all(0 <= one.score <= 1 for one in result.contenders)
    tasks = [one for one in result.contenders if one.kind == "task"]
    assert [one.members for one in tasks] == [(0,), (1,), (2,)]
    assert [one.score for one in tasks] == pytest.approx(result.scores.matrix.mean(1).tolist())
    assert result.selected.score == max(one.score for one in result.contenders)
    if "greedy-soup" in by_name:
        assert by_name["greedy-soup"].score >= max(one.score for one in tasks)


def test_a_soup_of_one_is_no_soup() -> None:
    names = ["soup", "greedy-soup", "ema"]
    result = kinfold.fit(MLP, rows(), candidates=names, transfer="none", **{**SMALL, "tasks": 1})
    assert [one.name for one in result.contenders] == ["task", "ema"]


def visits_allowed(result: kinfold.Result, epochs: int, batch_size: int) -> int:
    """What the tasks would have visited, had they had all epochs."""
    return epochs * sum(steps_in(int(mask.sum()), batch_size) * batch_size for mask in result.splits.train)


LONG = {**SMALL, "epochs": 20}


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_a_student_has_what_the_tasks_left(engine: str) -> None:
    result = kinfold.fit(MLP, rows(), transfer="distil", engine=engine, **LONG)
    assert (result.selected.kind, result.selected.task) == ("distilled", None)
    assert result.contenders[-1].kind == "distilled"
    assert result.contenders[-1].exposed == 1.0
    assert result.selected.score == result.contenders[-1].score
    assert result.estimate is not None
    assert (result.estimate.rows, result.estimate.clean) == (8, True)
    assert result.transfers.proposed == 0
    allowed, epoch = visits_allowed(result, 20, 16), 64  # of 72 unsealed rows
    assert allowed - epoch < result.cost["sample_visits"] <= allowed
    students = [event for event in result.history if event["event"] == "student"]
    assert len(students) == students[-1]["epochs"] > 1
    assert result.epochs_run == len([event for event in result.history if event["event"] == "period"]) < 20
    assert [event["period"] for event in result.history if "period" in event] == sorted(
        event["period"] for event in result.history if "period" in event
    )
    (note,) = [event for event in result.history if event["event"] == "note"]
    assert note["message"].startswith("labels: ")
    assert note["period"] == result.epochs_run + 1
    assert students[-1]["train_loss"] < students[0]["train_loss"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_student_keeps_within_a_short_budget(epochs: int) -> None:
    """Of a single epoch nothing can be left to it."""
    result = kinfold.fit(MLP, rows(), transfer=Distil((0.1, 0.8), clean=0.0), **{**SMALL, "epochs": epochs})
    assert result.cost["sample_visits"] <= visits_allowed(result, epochs, 16)
    assert (result.selected.kind == "distilled") == (epochs > 1)
    assert result.epochs_run == max(1, epochs - 1)


def test_sealed_rows_have_no_part_in_a_student() -> None:
    """With noisy labels, so that it is taught: whatever the sealed rows hold, it is the same model."""
    x, y = rows(120)
    sealed, number = np.arange(120) >= 100, np.arange(120)
    validation = np.stack([(number % 4 == t) & ~sealed for t in range(4)])
    splits = Splits(~validation & ~sealed, validation, sealed)
    noisy = np.where(np.random.default_rng(1).random(120) < 0.3, (y + 1) % 3, y)
    others = x.copy()
    others[sealed] *= 100
    flipped = np.where(sealed, (noisy + 1) % 3, noisy)
    results = [
        kinfold.fit(MLP, data, transfer=Distil(clean=0.0), splits=splits, **{**SMALL, "epochs": 8})
        for data in ((x, noisy), (others, flipped))
    ]
    assert "the student learns from what the tasks make of them" in str(results[0].history)
    for name, value in results[0].model.state_dict().items():
        assert torch.equal(results[1].model.state_dict()[name], value)
    assert results[0].estimate != results[1].estimate
    assert all(result.estimate is not None and result.estimate.clean for result in results)


def test_a_student_needs_tasks_to_learn_of() -> None:
    result = kinfold.fit(MLP, rows(), transfer="distil", **{**SMALL, "tasks": 1})
    assert (result.selected.kind, result.epochs_run) == ("task", 3)
    assert result.cost["sample_visits"] == visits_allowed(result, 3, 16)
    assert not [event for event in result.history if event["event"] in ("student", "note")]


def test_a_student_of_values() -> None:
    x, _ = rows()
    result = kinfold.fit(MLP, (x, x[:, 0] * 2 + 1), transfer="distil", **LONG)
    assert result.selected.kind == "distilled"
    assert result.estimate is not None
    assert result.estimate.value > 0.5


def test_a_student_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    result = kinfold.fit(MLP, rows(), transfer="distil", out=tmp_path / "run", **LONG)
    assert [one.kind for one in result.contenders] == ["task"] * 3 + ["distilled"]
    assert result.save(tmp_path / "again").exists()
    for folder in ("run", "again"):
        loaded = kinfold.load(tmp_path / folder)
        assert (loaded.contenders, loaded.selected) == (result.contenders, result.selected)
        assert loaded.to_json() == result.to_json()
        for name, value in result.model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value)


def test_own_loss_metric_and_splits() -> None:
    x, y = rows()

    def brier(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.softmax(1) - nn.functional.one_hot(targets, 3)).square().sum(1).mean()

    given = kinfold.fit(MLP, (x, y), **SMALL).splits
    metric = MulticlassCohenKappa(num_classes=3)
    result = kinfold.fit(MLP, (x, y), loss=brier, metric=metric, splits=given, **{**SMALL, "tasks": 8})
    assert result.scores.metric == "MulticlassCohenKappa"
    assert (result.splits.train == given.train).all()
    assert result.splits.tasks == 3  # the splitter's own count
    lower = kinfold.Metric("error", lambda o, t: float((o.argmax(1) != t).double().mean()), higher_is_better=False)
    errors, shares = kinfold.fit(MLP, (x, y), metric=lower, **SMALL), kinfold.fit(MLP, (x, y), **SMALL)
    torch.testing.assert_close(errors.scores.matrix, 1 - shares.scores.matrix)
    assert (errors.selected.task, errors.epochs_run) == (shares.selected.task, shares.epochs_run)
    assert errors.selected.score == pytest.approx(1 - shares.selected.score)


def test_seeds() -> None:
    one, again, other = (kinfold.fit(MLP, rows(), seed=seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(one.scores.loss_matrix, again.scores.loss_matrix)
    assert not (one.splits.train == other.splits.train).all()


class Diverges(nn.Linear):
    """Gives NaN where it started with a negative first weight."""

    def __init__(self, always: bool) -> None:
        super().__init__(4, 3)
        self.register_buffer("sick", (self.weight[0, 0].detach() < 0) | torch.tensor(always))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.sick, torch.nan, super().forward(x))


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
@pytest.mark.parametrize("transfer", ["none", "amto", "teach", "teach-out-of-fold", PAPA(steps=2), PAPAAll(period=1)])
def test_a_task_that_diverges_does_not_harm_the_others(engine: str, transfer: Any) -> None:
    make, settings = partial(Diverges, False), {**SMALL, "tasks": 5, "epochs": 4, "start": "independent"}
    result = kinfold.fit(make, rows(), engine=engine, transfer=transfer, rescue=0, **settings)
    losses = [event["loss"] for event in result.history if event["event"] == "period"]
    sick = [t for t in range(5) if losses[0][t] is None]
    assert 0 < len(sick) < 5
    assert result.selected.task not in sick
    sound = [t for t in range(5) if t not in sick]
    assert all(losses[-1][t] is not None for t in sound)
    assert bool(result.scores.matrix[sound].isfinite().all())
    assert math.isfinite(result.selected.score)
    for event in result.history:
        for move in event.get("transfers", ()):
            assert not (move["accepted"] and set(move["donors"]) & set(sick))


@pytest.mark.parametrize("transfer", ["amto", "teach", PAPA(steps=2)])
def test_what_made_a_task_diverge_goes_with_what_it_was(transfer: Any) -> None:
    """A copy has the donor's buffers too, so nobody is sick from then on, and everybody may be learned from."""
    make, settings = partial(Diverges, False), {**SMALL, "tasks": 5, "epochs": 4, "start": "independent"}
    result = kinfold.fit(make, rows(), transfer=transfer, **settings)
    first, *later = [event["loss"] for event in result.history if event["event"] == "period"]
    sick = [t for t in range(5) if first[t] is None]
    assert 0 < len(sick) < 5
    assert result.transfers.rescues.tolist() == [int(t in sick) for t in range(5)]
    assert not any(loss is None for losses in later for loss in losses)
    assert bool(result.scores.matrix.isfinite().all())
    for event in result.history:
        for move in event.get("transfers", ()):
            if event["period"] == 1:
                assert not (move["accepted"] and set(move["donors"]) & set(sick))


def test_all_tasks_diverging_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no task ever had a finite score"):
        kinfold.fit(partial(Diverges, True), rows(), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mpl"}, "model: unknown name 'mpl', did you mean 'mlp'"),
        ({"model": 3}, "model: is a int"),
        ({"model": partial(nn.Linear, 4, 4)}, "model: it gives 4 numbers a row, and the data has 3 classes"),
        ({"model": partial(nn.Linear, 5, 3)}, "model: a training step on rows of shape"),
        ({"data": "digitz"}, "data: unknown name 'digitz'"),
        ({"data": (rows()[0], rows()[1][:5])}, "y: has 5 targets for 80 rows"),
        ({"data": (rows()[0] * np.nan, rows()[1])}, "X: row 0, column 0 is nan"),
        ({"transfer": "amtoo"}, "transfer: unknown name 'amtoo'"),
        ({"transfer": {"name": "amto", "period": 0}}, "period is 0"),
        ({"transfer": 3}, "transfer: is a int; give a rule"),
        ({"transfer": "teach+papaa"}, "transfer: unknown name 'papaa', did you mean 'papa'"),
        ({"transfer": ["teach", 3]}, "transfer: is a int; give a rule"),
        ({"transfer": ["teach", {"name": "papa", "alpha": 2}]}, r"transfer\[1\]: papa: alpha is 2"),
        ({"transfer": "amto+papa-all"}, "together: 'amto' and 'papa-all' both propose parameters"),
        ({"transfer": []}, "together: rules has 0; give two or more"),
        ({"candidates": "soup"}, "candidates: with transfer 'distil' its student is handed back, whatever they score"),
        ({"candidates": "soupp"}, "candidates: unknown name 'soupp', did you mean 'soup'"),
        ({"candidates": ["soup", 3]}, "candidates: 3 is not a candidate; give some of ema, greedy-soup, soup, swa"),
        ({"candidates": AMTO()}, "candidates: is a AMTO; give one or several of ema"),
        ({"candidates": 3}, "candidates: is a int; give one or several of ema, greedy-soup, soup, swa"),
        ({"candidates": {"name": "ema", "decay": 1}}, "candidates: ema: decay is 1; give a number from 0 to below 1"),
        ({"candidates": [{"name": "swa", "first": 3}]}, r"candidates\[0\].first: unknown name 'first'"),
        ({"transfer": {"name": "distil", "stages": [1.0]}}, "transfer: distil: stages is"),
        ({"transfer": "distil+distil"}, "together: 'distil' and 'distil' are of one kind"),
        ({"methods": ["mixupp"]}, r"methods\[0\]: unknown name 'mixupp'"),
        ({"methods": [3]}, "methods: 3 is not a method"),
        ({"methods": 3}, "methods: is a int; give one or several of accelat, adversarial, augment, "),
        ({"methods": ["crop_flip_cutout"]}, "this method is for images"),
        ({"optimizer": "sdg"}, "optimizer: unknown name 'sdg'"),
        ({"optimizer": 3}, "optimizer: is a int"),
        ({"scheduler": "cosin"}, "scheduler: unknown name 'cosin'"),
        ({"engine": "vectorized"}, "engine: unknown name"),
        ({"splits": "strat"}, "splits: unknown"),
        ({"criterion": "median"}, "criterion: unknown name 'median'"),
        ({"better": "accuracy"}, "better: unknown name"),
        ({"precision": "float16"}, "precision: unknown name"),
        ({"start": "together"}, "start: unknown name"),
        ({"device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({"tasks": 0}, "tasks: is 0; give a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs: is 1.5"),
        ({"batch_size": True}, "batch_size: is True"),
        ({"patience": 0}, "patience: is 0"),
        ({"accumulate": -1}, "accumulate: is -1"),
        ({"clip_norm": 0}, "clip_norm: is 0"),
        ({"holdout": 1.5}, "holdout"),
        ({"val_fraction": 0}, "val_fraction"),
        ({"resume": True, "out": None}, "resume: there is no run directory"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": MLP, "data": rows(), "out": tmp_path / "run", **SMALL, **changes}
    unchecked = inspect.unwrap(kinfold.fit)  # without the types that are checked under test, as users call it
    with pytest.raises(InputError, match=message) as caught:
        unchecked(**given)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_an_out_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; give a directory"):
        kinfold.fit(MLP, rows(), out=tmp_path / "file", **SMALL)
    with pytest.raises(InputError, match="is not empty and holds no run"):
        kinfold.fit(MLP, rows(), out=tmp_path, **SMALL)
    kinfold.fit(MLP, rows(), out=tmp_path / "run", **SMALL)
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds a run"):
        kinfold.fit(MLP, rows(), out=tmp_path / "run", **SMALL)
    assert kept == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_nothing_is_written_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinfold.fit(MLP, rows(), **SMALL)
    assert not any(tmp_path.iterdir())


_STATES = """
import random, sys
import numpy, torch
import rich.style  # scikit-learn imports it, and on import it draws a number
import kinfold

def states():
    return torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate()

before = states()
for engine in ("sequential", "vectorised"):
    out = f"{sys.argv[1]}/{engine}"
    model = {"name": "mlp", "hidden": [8], "dropout": 0.3}
    kinfold.fit(model, "iris", tasks=3, epochs=2, engine=engine, methods=["mixup"], out=out)
    kinfold.load(out).predict(kinfold.data.read_features("iris"))
assert states() == before
"""


def test_the_callers_random_state_is_untouched(tmp_path: Path) -> None:
    """In a process of its own: the checks of types under test draw from Python's generator themselves."""
    subprocess.run([sys.executable, "-c", _STATES, str(tmp_path)], check=True)


def test_events_are_heard_as_they_are_kept(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    result = kinfold.fit(MLP, rows(), out=tmp_path / "run", listen=heard.append, **SMALL)
    assert heard == result.history
    assert kinfold.load(tmp_path / "run").history == heard


def test_events_have_the_contracts_keys_and_order() -> None:
    """A period, the transfers inside it, those at its end; and after the last one the student."""
    rule = Together((AMTO(p_low=1.0, p_high=1.0), PAPA(steps=2), Distil()))
    x, y = rows()
    history = kinfold.fit(MLP, (np.concatenate([x, x[:5]]), np.append(y, y[:5])), transfer=rule, **LONG).history
    keys = {
        "finding": {"kind", "severity", "message", "tasks", "count", "rows"},
        "note": {"message", "period"},
        "period": {"period", "epochs", "train_loss", "metric", "loss", "improved", "lr", "seconds"},
        "transfer": {"period", "rule", "transfers"},
        "student": {"period", "epoch", "epochs", "train_loss", "lr", "seconds"},
    }
    assert {event["event"] for event in history} == set(keys)
    for event in history:
        assert set(event) - {"event"} == keys[event["event"]]
    move = {"recipient", "donors", "donor", "form", "amount", "before", "after", "accepted"}
    first = [event for event in history if event.get("period") == 1]
    assert [event["event"] for event in first] == ["period", "transfer", "transfer"]
    inside, at_end = (event["transfers"] for event in first[1:])
    assert {line["form"] for line in inside} == {"mix"}
    assert all(set(line) == {*move, "times"} and line["times"] >= 1 for line in inside)
    assert all(line["before"] is None and line["after"] is None for line in inside)
    assert all(set(line) == move and len(line["before"]) == len(line["after"]) == 2 for line in at_end)
    kinds = [event["event"] for event in history]
    assert (
        kinds.index("note") == kinds.index("student") - 1 > max(i for i, kind in enumerate(kinds) if kind == "period")
    )


def test_a_fallback_is_said(tmp_path: Path) -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() > 0 else -x)

    heard: list[dict[str, Any]] = []
    result = kinfold.fit(partial(Branching, 4, 3), rows(), transfer="none", listen=heard.append, **SMALL)
    assert result.engine == "sequential"
    (note,) = [event["message"] for event in heard if event["event"] == "note"]
    assert note.startswith("engine: sequential, since")


def test_models_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_models.py").write_text("from torch import nn\n\n\ndef linear():\n    return nn.Linear(4, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = kinfold.fit("users_models:linear", rows(), out=tmp_path / "run", **SMALL)
    loaded = kinfold.load(tmp_path / "run")
    assert (loaded.predict(rows()[0]) == result.predict(rows()[0])).all()


def test_splits_may_be_given(tmp_path: Path) -> None:
    train, validation = np.zeros((2, 80), bool), np.zeros((2, 80), bool)
    train[:, :40], validation[0, 40:60], validation[1, 50:70] = True, True, True
    splits = Splits(train, validation, np.arange(80) >= 70)
    result = kinfold.fit(MLP, rows(), splits=splits, **SMALL)
    assert result.estimate is not None
    assert result.estimate.rows == 10
    assert bool((result.scores.exposed == 0).all())  # no task trains on a row that any validates on
