import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from kinfold.data import from_torch
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
