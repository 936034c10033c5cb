"""Soups: averages of the tasks' best snapshots (Wortsman et al., *Model soups*, ICML 2022, arXiv:2203.05482).

They need models that lie in one low-loss region: tasks from a shared start, or held together by a rule.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from kinfold.candidates.base import Built, Candidate, Finished, measure_batch_norm
from kinfold.methods.base import State


@final
@dataclass(frozen=True)
class Soup(Candidate):
    """The uniform soup: the mean of all tasks' best snapshots, batch-norm statistics measured anew.

    A task that never had a finite score stays out of any soup: its best snapshot is no more than its start.

    Example:
        >>> Soup().name
        'soup'
    """

    name = "soup"

    def build(self, finished: Finished, watched: State) -> list[Built]:
        del watched
        scored = _scored(finished)
        return [_soup(finished, scored)] if len(scored) > 1 else []


@final
@dataclass(frozen=True)
class GreedySoup(Candidate):
    """The greedy soup (there, recipe 1): the best task first, then each next best that does not make it worse.

    Better means what it means for the run: the criterion over all validation sets, or the mean where that is `rank`.

    Example:
        >>> GreedySoup().name
        'greedy-soup'
    """

    name = "greedy-soup"

    def build(self, finished: Finished, watched: State) -> list[Built]:
        del watched
        scores = {t: finished.overall(finished.members[t]) for t in _scored(finished)}
        order = sorted((t for t in scores if not math.isnan(scores[t])), key=lambda t: scores[t], reverse=True)
        if len(order) < 2:
            return []
        chosen, best = order[:1], scores[order[0]]
        for t in order[1:]:
            score = finished.overall(_soup(finished, [*chosen, t]).model)
            if score >= best:  # a NaN is not
                chosen, best = [*chosen, t], score
        return [_soup(finished, chosen)] if len(chosen) > 1 else []  # alone, it is a task's model


def _scored(finished: Finished) -> list[int]:
    """The tasks that ever had a finite score."""
    return (~finished.progress.best.isnan().any(1)).nonzero().flatten().tolist()


def _soup(finished: Finished, members: Sequence[int]) -> Built:
    model = averaged([finished.members[t] for t in members])
    exposed = finished.progress.best_exposed[list(members)].any(0)
    measure_batch_norm(model, finished.job, exposed & finished.unsealed, words=("soup",))
    return Built("soup", model.cpu(), exposed, tuple(sorted(members)))


def averaged(models: Sequence[nn.Module]) -> nn.Module:
    """Returns the mean of some models of one structure; what is not floating comes from the first.

    Example:
        >>> one, other = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> bool(averaged([one, other]).weight == (one.weight + other.weight) / 2)
        True
    """
    result = copy.deepcopy(models[0])
    tensors = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
    own = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, value in own.items():
            if value.is_floating_point():
                value.copy_(torch.stack([each[name].to(torch.float64) for each in tensors]).mean(0))
    return result
