import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "generalization"))

import cells
import tune
from cells import CELLS, SOURCES, UNDER, Cell, SmallFCN, Tuned, draw

import kinfold
from kinfold import random
from kinfold.data import from_series, read
from kinfold.errors import InputError
from kinfold.models import factory
from kinfold.splits import Splits

CPU = torch.device("cpu")
SHAPES = {"fashion-mnist": (1, 28, 28), "cifar-10": (3, 32, 32), "forda": (1, 500), "japanese-vowels": (12, 29)}


@pytest.fixture
def short_series(monkeypatch):
    """In place of MNIST-1D: constant series that tell the row's number, 60 for training and 40 for tests."""

    def numbered(name, labels=None):
        rows = np.arange(60, 100) if name.endswith(":test") else np.arange(60)
        return from_series(np.repeat(rows[:, None], 5, axis=1), rows % 2, name=name, labels=labels)

    monkeypatch.setattr(cells, "read", numbered)
    cells._whole.cache_clear()
    yield
    cells._whole.cache_clear()


def test_there_are_ten_data_sets_of_four_natures():
    assert set(SOURCES) == {cell.data for cell in CELLS.values()}
    assert len(SOURCES) >= 10
    assert {source.form for source in SOURCES.values()} == {"image", "table", "series", "text"}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_every_cell_has_a_recipe(cell):
    chosen = cells.recipe(cell)
    assert chosen.epochs >= 1
    assert chosen.optimizer["lr"] > 0
    if cell.length == "under":
        twin = cells.recipe(dataclasses.replace(cell, length="full"))
        assert chosen.epochs == max(1, round(twin.epochs / UNDER))
        assert chosen.methods == twin.methods
        assert chosen.optimizer["weight_decay"] == twin.optimizer["weight_decay"]


def test_an_untuned_cell_is_told():
    with pytest.raises(InputError, match="digits-77"):
        cells.recipe(Cell("digits", 77))


def test_an_unknown_cell_is_told():
    with pytest.raises(InputError, match="did you mean 'digits-300'"):
        cells.select(["digits-30"])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([0.0, 0.1, 0.2]))
def test_rows_are_apart_and_only_labelled_ones_are_noisy(seed, noise):
    sample = draw(Cell("digits", 300, noise), seed)
    whole = read("digits")
    place = {row.numpy().tobytes(): number for number, row in enumerate(whole.features)}
    assert len(place) == len(whole)  # no two digits are alike, so that a row can be found again
    rows = [place[row.numpy().tobytes()] for row in sample.dataset.features]
    assert sorted(rows) == list(range(len(whole)))
    clean = whole.target.values[torch.tensor(rows)]
    wrong = (sample.dataset.target.values != clean).numpy()
    assert int((~sample.test).sum()) == 300
    assert int(wrong[~sample.test].sum()) == round(300 * noise)
    assert not wrong[sample.test].any()
    shares = np.bincount(clean[:300].numpy()) / 300 - np.bincount(whole.target.values.numpy()) / len(whole)
    assert np.abs(shares).max() < 1 / 300


def test_a_seed_gives_the_same_rows_and_another_gives_others():
    cell = Cell("digits", 300, 0.1)
    first, again, other = draw(cell, 0), draw(cell, 0), draw(cell, 1)
    assert torch.equal(first.dataset.features, again.dataset.features)
    assert torch.equal(first.dataset.target.values, again.dataset.target.values)
    assert not torch.equal(first.dataset.features, other.dataset.features)


def test_official_test_rows_are_the_same_for_every_seed(short_series):
    cell = Cell("mnist1d", 30)
    numbers = [np.array([int(row[0, 0]) for row in draw(cell, seed).dataset.features]) for seed in (0, 1)]
    assert all((each[:30] < 60).all() for each in numbers)
    assert set(numbers[0][:30]) != set(numbers[1][:30])
    assert all(each[30:].tolist() == list(range(60, 100)) for each in numbers)


def test_too_many_rows_are_told(short_series):
    with pytest.raises(InputError, match="61 are wanted of 60"):
        draw(Cell("mnist1d", 61), 0)


def test_all_rows_may_be_drawn(short_series):
    assert len(draw(Cell("mnist1d", 60), 0).labelled()) == 60


def test_a_sample_is_trained_on_and_its_test_rows_give_the_estimate():
    sample = draw(Cell("digits", 300), 0)
    labelled = np.flatnonzero(~sample.test)
    train, validation = np.zeros((2, 1, len(sample.test)), dtype=bool)
    train[0, labelled[60:]] = validation[0, labelled[:60]] = True
    splits = Splits(train, validation, sample.test)
    arguments = dataclasses.asdict(Tuned(0.05, 5e-4, 0.1, 2).recipe(Cell("digits", 300)))
    result = kinfold.fit(data=sample.dataset, splits=splits, transfer="none", **arguments)
    assert result.estimate.rows == len(sample.test) - 300
    assert result.epochs_run == 2


@pytest.mark.parametrize("data", SHAPES)
def test_networks_fit_their_rows(data):
    labels = {"forda": 2, "japanese-vowels": 9}.get(data, 10)
    with random.seeded(CPU, 0):
        model = factory(SOURCES[data].model, SHAPES[data], labels)()
    assert model(torch.zeros(2, *SHAPES[data])).shape == (2, labels)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_does_not_change_what_a_small_fcn_says(stride):
    with random.seeded(CPU, 0):
        model = SmallFCN(2, 3, stride=stride).eval()
        x = torch.randn(4, 2, 9)
    short = model(x, torch.ones(4, 9))
    padded = model(torch.nn.functional.pad(x, (0, 6)), torch.arange(15).expand(4, 15).lt(9).float())
    torch.testing.assert_close(short, padded)


def test_a_learning_rate_beyond_the_grid_is_tried_at_its_edge():
    start = Tuned(0.1, 0.0, 0.0, 10)
    inside = tune.Search(lambda tuned: -abs(tuned.lr - 0.2))
    assert tune.best_rate(inside, start, (0.1, 0.2, 0.4)).lr == 0.2
    assert len(inside.tried) == 3
    beyond = tune.Search(lambda tuned: tuned.lr)
    assert tune.best_rate(beyond, start, (0.1, 0.2, 0.4)).lr == pytest.approx(1.2)
    assert len(beyond.tried) == 4


def test_full_training_has_the_fewest_epochs_that_are_as_good():
    cell = Cell("digits", 300)
    flat = tune.Search(lambda tuned: 0.9 - tuned.label_smoothing)
    assert tune.tune_full(flat, cell).epochs == round(SOURCES["digits"].epochs / 2)
    rising = tune.Search(lambda tuned: tuned.epochs / 1000 + tuned.weight_decay)
    chosen = tune.tune_full(rising, cell)
    assert chosen.epochs == 2 * SOURCES["digits"].epochs
    assert chosen.weight_decay == max(tune.DECAYS["sgd"])
    assert tune.tune_under(rising, cell, chosen).epochs == round(chosen.epochs / UNDER)
