"""No sealed row is ever read before the estimate, and the ledger is what a replay of the history says."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kinfold
from kinfold.data.arrays import ArrayDataset, ArrayEncoder
from kinfold.data.base import Inputs, TensorInputs
from kinfold.data.targets import make_target
from kinfold.result import Result
from kinfold.transfer import RULES


class Spied(Inputs):
    """Writes down every row that is asked for."""

    def __init__(self, inputs: TensorInputs, seen: list[Tensor]):
        self.inputs, self.seen = inputs, seen

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: Tensor) -> Tensor:
        self.seen.append(index.flatten().unique())
        return self.inputs.rows(index)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Spied":
        return Spied(self.inputs.to(device, dtype), self.seen)


@dataclass(frozen=True)
class SpiedEncoder(ArrayEncoder):
    seen: Any = None

    def encode(self, features: Any) -> Any:
        return Spied(super().encode(features), self.seen)


@dataclass(frozen=True)
class SpiedData(ArrayDataset):
    seen: Any = None
    fitted: Any = None

    def fit(self, rows: Any) -> SpiedEncoder:
        self.fitted.append(torch.from_numpy(rows))
        return SpiedEncoder(tuple(self.features.shape[1:]), False, self.seen)


def spied(seed: int, seen: list[Tensor], fitted: list[Tensor], n: int = 60) -> SpiedData:
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(n, 4)).astype(np.float32)
    y = (x[:, 0] + 0.5 * draws.normal(size=n) > 0).astype(int) + (x[:, 1] > 0.3)
    return SpiedData("spied", torch.from_numpy(x), make_target(y), seen=seen, fitted=fitted)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6, bias=False), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 1000), engine=st.sampled_from(["auto", "sequential"]))
@settings(max_examples=4, deadline=None)
def test_sealed_rows_are_read_once_at_the_end(rule: str, seed: int, engine: str) -> None:
    """Not in a batch, an encoder's fit, a soft target, a statistic, a trial, a score, or a lazy layer's example."""
    seen: list[Tensor] = []
    fitted: list[Tensor] = []
    result = kinfold.fit(
        lazy, spied(seed, seen, fitted), tasks=3, epochs=3, batch_size=16, transfer=rule, engine=engine, seed=seed
    )
    sealed = torch.from_numpy(result.splits.sealed)
    assert int(sealed.sum()) == 6
    assert not bool(sealed[torch.cat(fitted + seen[:-1])].any())
    assert torch.equal(seen[-1], sealed.nonzero().flatten())
    assert len(seen) > 10


def replayed(result: Result) -> Tensor:
    """Exposure shares by a walk through the history, on sets of row numbers."""
    validation = [set(np.flatnonzero(mask).tolist()) for mask in result.splits.validation]
    exposed = [set(np.flatnonzero(mask).tolist()) for mask in result.splits.train]
    best = [set(rows) for rows in exposed]
    for event in result.history:
        if event["event"] == "period":
            best = [set(exposed[t]) if better else best[t] for t, better in enumerate(event["improved"])]
        elif event["event"] == "transfer":
            before = [set(rows) for rows in exposed]
            for move in event["transfers"]:
                if move["accepted"]:
                    to = exposed[move["recipient"]]
                    to.update(*(before[donor] for donor in move["donors"]))
                    if move["form"] == "teach":  # it also draws its own validation rows, without their labels
                        to |= validation[move["recipient"]]
    return torch.tensor([[len(rows & own) / len(own) for own in validation] for rows in best], dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_the_ledger_is_a_replay_of_the_history(rule: str, seed: int) -> None:
    result = kinfold.fit(
        {"name": "mlp", "hidden": [6]}, spied(seed, [], []), tasks=4, epochs=4, batch_size=16, transfer=rule, seed=seed
    )
    torch.testing.assert_close(result.scores.exposed, replayed(result), rtol=0, atol=1e-12)
    assert bool((result.scores.exposed.diagonal() == 0).all()) or rule != "none"
    by_pair = torch.zeros(4, 4, dtype=torch.int64)
    for event in result.history:
        for move in event.get("transfers", ()):
            for donor in move["donors"] if move["accepted"] else ():
                by_pair[move["recipient"], donor] += 1
    assert torch.equal(result.transfers.by_pair, by_pair)
