"""What a plan's changes do to stacked tensors: pure functions from the state before to a candidate.

Donors are read as they were before the plan; a task's own part is its candidate so far, so that changes compose.
Legend: T tasks, K units (layers, or numbers).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.transfer.base import Change, Cross, Mix


def layers_of(names: Iterable[str]) -> dict[str, int]:
    """Returns the number of the layer (module) that each tensor belongs to, in the order of the names."""
    numbers: dict[str, int] = {}
    return {name: numbers.setdefault(name.rpartition(".")[0], len(numbers)) for name in names}


def moved(
    change: Change,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    """Returns one stacked tensor after one change.

    Args:
        change: a `Mix` or `Cross`; others leave tensors as they are.
        name: of the tensor.
        before: the state before the plan.
        candidate: the state after the changes so far.
        layers: see `layers_of`; must be the same for every tensor of a model.
    """
    if isinstance(change, Mix):
        return _mixed(change, before, candidate)
    if isinstance(change, Cross):
        return _crossed(change, name, before, candidate, layers)
    return candidate


def donors_of(change: Mix) -> Int64[Tensor, " T"]:
    """Returns [T] the donor whose indivisible state (step counts, whole-number buffers) each task takes."""
    return change.weights.argmax(1).cpu()


def blended(change: Change, tasks: int) -> Bool[Tensor, " T"]:
    """Returns [T] whether a task's candidate is a mixture, whose batch-norm statistics nobody has measured."""
    if isinstance(change, Mix):
        return ((change.weights != 0).sum(1) > 1).cpu()
    if isinstance(change, Cross):
        return (change.source >= 0).cpu()
    return torch.zeros(tasks, dtype=torch.bool)


def _mixed(
    change: Mix, before: Shaped[Tensor, "T *shape"], candidate: Shaped[Tensor, "T *shape"]
) -> Shaped[Tensor, "T *shape"]:
    result = candidate.clone()
    for t, weights in enumerate(change.weights):
        donors = weights.nonzero().flatten()
        largest = int(weights.argmax())
        if donors.tolist() == [t]:
            continue
        if len(donors) == 1 or not before.is_floating_point():
            result[t] = before[largest] if largest != t else candidate[t]
            continue
        values = before[donors.to(before.device)]
        own = (donors == t).nonzero().flatten().tolist()
        if own:
            values[own[0]] = candidate[t]
        result[t] = torch.tensordot(weights[donors].to(values), values, 1)
    return result


def _crossed(
    change: Cross,
    name: str,
    before: Shaped[Tensor, "T *shape"],
    candidate: Shaped[Tensor, "T *shape"],
    layers: dict[str, int],
) -> Shaped[Tensor, "T *shape"]:
    result = candidate.clone()
    for t in (change.source >= 0).nonzero().flatten().tolist():
        key, rate = change.keys[t].cpu(), float(change.rate[t])
        if change.unit == "layer":
            drawn = random.uniform(key, (max(layers.values()) + 1,), torch.float64) < rate
            mask = drawn[layers[name]].to(before.device)
        else:
            of_tensor = random.fold_in(key, random.seed_of(name)).to(before.device)
            mask = random.uniform(of_tensor, before.shape[1:], torch.float64) < rate
        result[t] = torch.where(mask, before[change.source[t]], candidate[t])
    return result
