import json
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import kinfold
from kinfold.data import encoder_from_spec, from_torch, streamed, wrapped
from kinfold.data.items import StreamedItems
from kinfold.data.wrapped import torch_features
from kinfold.errors import InputError


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


X = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        ([1, 0, 1], "classification"),
        (["b", "a", "b"], "classification"),
        ([np.int64(1), np.int64(0), np.int64(1)], "classification"),
        (list(torch.tensor([1, 0, 1])), "classification"),
        ([0.5, 1.5, 2.5], "regression"),
        (list(torch.rand(3, 2, generator=torch.Generator().manual_seed(0))), "regression"),
    ],
)
@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist()])
def test_items(y, kind, convert):
    dataset = from_torch(Listed([(convert(x), each) for x, each in zip(X, y, strict=True)]), name="mine")
    assert torch.equal(dataset.features, X)
    assert dataset.features.dtype == torch.float32
    assert dataset.target.kind == kind
    assert dataset.name == "mine"


def test_the_fast_path_equals_the_slow_one():
    whole = TensorDataset(X.double(), torch.tensor([1, 0, 1]))
    fast, slow = from_torch(whole), from_torch(Subset(whole, [0, 1, 2]))
    assert torch.equal(fast.features, slow.features)
    assert torch.equal(fast.target.values, slow.target.values)


def test_features_alone():
    assert torch.equal(torch_features(Listed([(x, 0) for x in X])), X)
    assert torch.equal(torch_features(Listed(list(X))), X)
    assert torch.equal(torch_features(TensorDataset(X)), X)


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Listed([(X[0], 0), (X[1, :1], 1)]), r"x of item 1 has shape \[1\] where item 0 has \[2\]"),
        (Listed([(X[0], X[0]), (X[1], X[1, :1])]), r"y of item 1 has shape \[1\]"),
        (Listed([(X[0], 0), (X[1],)]), r"item 1 is a tuple; every item must be an \(x, y\) pair"),
        (Listed([X[0]]), "item 0 is a Tensor"),
        (Listed([("text", 0), ("text", 1)]), "x of item 0 cannot become a tensor"),
        (Listed([]), "no items"),
        (Endless(), "no length"),
    ],
)
def test_bad_datasets(dataset, message):
    with pytest.raises(InputError, match=message):
        from_torch(dataset)


def small_pieces(monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 4)
    monkeypatch.setattr(wrapped, "_LOOKED_AT", 8)


def blobs(n=60, dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = (60 * torch.rand(n, 1, 3, 3, generator=draws) + 120 * y.view(-1, 1, 1, 1)).to(dtype)
    return x, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int16])
@pytest.mark.parametrize("words", [False, True])
def test_items_that_stay_where_they_are(monkeypatch, dtype, words):
    small_pieces(monkeypatch)
    x, y = blobs(dtype=dtype)
    items = [(each, ["a", "b"][int(label)] if words else label) for each, label in zip(x, y, strict=True)]
    held, lazy = (from_torch(Listed(items), in_memory=in_memory, num_workers=2) for in_memory in (True, False))
    assert (len(lazy), lazy.form, lazy.target.labels) == (60, held.form, held.target.labels)
    assert torch.equal(lazy.target.values, held.target.values)
    assert np.array_equal(lazy.fingerprints(), held.fingerprints())
    encoder = lazy.fit(np.arange(50))
    assert encoder == held.fit(np.arange(50))
    index = torch.tensor([[3, 50], [50, 7]])
    inputs = encoder.encode(lazy.features)
    assert isinstance(inputs, StreamedItems)
    assert inputs.form[1] == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    for to in (torch.float32, torch.float64):
        one, other = (each.to(torch.device("cpu"), to).rows(index) for each in (inputs, encoder.encode(held.features)))
        assert torch.equal(one, other)
        assert one.dtype == other.dtype == to


def test_a_run_on_items_that_stay_where_they_are(monkeypatch):
    small_pieces(monkeypatch)
    items = Listed(list(zip(*blobs(), strict=True)))
    given = {"tasks": 2, "epochs": 2, "batch_size": 8, "engine": "sequential"}
    model = {"name": "mlp", "hidden": [4]}
    lazy = from_torch(items, in_memory=False, num_workers=2)
    result = kinfold.fit(model, lazy, **given)
    again = kinfold.fit(model, items, **given)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    encoder, x = encoder_from_spec(json.loads(json.dumps(result.encoder.spec()))), blobs()[0]
    assert encoder == again.encoder
    assert np.array_equal(result.predict(lazy.features), again.predict(x))
    assert np.array_equal(result.predict(x), again.predict(x))
    assert not multiprocessing.active_children()


class Augmented(Listed):
    def __getitem__(self, number):
        x, y = self.items[number]
        return x + random.random() + np.random.rand() + torch.rand(()), y  # noqa: NPY002


def test_what_items_draw_is_drawn_alike_outside_training(monkeypatch):
    small_pieces(monkeypatch)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002  # Python's own is beartype's to draw from
    items = Augmented(list(zip(*blobs(), strict=True)))
    one, other = (from_torch(items, in_memory=False, num_workers=workers) for workers in (0, 2))
    assert np.array_equal(one.fingerprints(), other.fingerprints())
    inputs = one.fit(np.arange(9)).encode(one.features)
    row = torch.tensor([3])
    assert torch.equal(inputs.rows(row), inputs.rows(row))
    assert not torch.equal(next(inputs.read([row], key=1)), next(inputs.read([row], key=2)))
    assert state == np.random.get_state()[1].tolist()  # noqa: NPY002


class Broken(Listed):
    def __getitem__(self, number):
        if number == 2:
            raise OSError("no such\nsector")
        return super().__getitem__(number)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Listed([(X[0], 0), (X[1, :1], 1)]), r"x of item 1 is torch.float32 of shape \[1\] where item 0 is .* \[2\]"),
        (Listed([(X[0], 0), (X[1].double(), 1)]), "x of item 1 is torch.float64 of"),
        (Listed([(X[0], 0), (X[1] / 0, 1)]), "x of item 1 has a number that is no finite float32"),
        (Listed([(X[0], 0), (X[1],)]), r"item 1 is a tuple; every item must be an \(x, y\) pair"),
        (Listed([(X[0, 0], 0), (X[0, 0], 1)]), r"x of item 0 is torch.float32 of shape \[\]; give real features"),
        (Listed([("text", 0), ("text", 1)]), "x of item 0 cannot become a tensor"),
        (Broken([(X[0], 0)] * 3), r"item 2 of Broken cannot be read \(OSError: no such sector\)"),
        (Listed([]), "no items"),
        (Endless(), "no length"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_datasets_that_are_not_held(monkeypatch, dataset, message, num_workers):
    monkeypatch.setattr(wrapped, "_LOOKED_AT", 1)
    with pytest.raises(InputError, match=message) as error:
        from_torch(dataset, in_memory=False, num_workers=num_workers)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()
