"""Distil: tasks train alone, and what they know of rows they never saw teaches one student on all rows.

Random splits leave every row to some task as validation. Such a task has not seen the row's label, so its
prediction says how believable that label is, and the tasks together say how noisy the labels are. The student's
targets are then the posterior over each row's true class: where labels are clean they are the labels, where they
are not they are what the tasks hold against them. The cross-fitted prediction of noise is that of confident learning
(Northcutt, Jiang, Chuang, arXiv:1911.00068); a posterior as target is bootstrapping (Reed et al., arXiv:1412.6596)
with the weights worked out; a last student on all rows is distillation (Hinton, Vinyals, Dean, arXiv:1503.02531).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError
from kinfold.transfer.base import Lesson, Need, Plan, Rule, State, View, check_shares

SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Temperatures at which the tasks' predictions are tried: small networks are over-confident, short runs too modest."""
RATES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Rates of label noise that are tried."""


@final
@dataclass(frozen=True)
class Distil(Rule):
    """Tasks train alone for a first part of the budget; a student on all unsealed rows has the rest.

    With p(c) the mean over the tasks that hold a row in validation of softmax(output / s), its label y and the
    rate of label noise η, spread evenly over the other C − 1 classes, the posterior of the row's true class is

        q(c) ∝ p(c) · (1 − η if c = y else η / (C − 1)),

    and (s, η) have the greatest likelihood Π [(1 − η) p(y) + η (1 − p(y)) / (C − 1)] over the rows that some task
    held out. After a short first stage η is looked at: where it is below `clean` the labels can be believed, and the
    student learns from these with all that is left. Else the tasks train for a second stage, so that they know
    more, and the student's targets are q. A row that no task held out keeps its label; in regression all do.

    Attributes:
        probe: share of the budget that the tasks have in any case.
        further: share that they have besides where labels are noisy.
        clean: rate of noise below which labels are believed.

    Example:
        >>> Distil().stages, Distil().student
        ((0.1, 0.4), True)
    """

    name = "distil"
    needs: ClassVar[frozenset[Need]] = frozenset({"predictions"})
    moves: ClassVar[bool] = False
    until = 0.0
    probe: float | int = 0.1
    further: float | int = 0.4
    clean: float | int = 0.04

    def __post_init__(self) -> None:
        check_shares(self.name, clean=self.clean)
        for argument, value in (("probe", self.probe), ("further", self.further)):
            if not 0.0 < value < 1.0:
                raise InputError(f"distil: {argument} is {value!r}; give a number between 0 and 1.")
        if self.probe + self.further >= 1.0:
            raise InputError(
                f"distil: probe and further are {self.probe!r} and {self.further!r}, which leaves nothing for the "
                "student; lower one."
            )
        object.__setattr__(self, "stages", (self.probe, self.further))

    def plan(self, view: View, state: State, generator: torch.Generator) -> tuple[Plan | None, State]:
        del view, generator
        return None, state

    def graduate(self, view: View, state: State, last: bool) -> Lesson | None:
        del state
        if view.classes is None:
            return Lesson()
        assert view.predict is not None  # `needs` asks for them
        rows = view.unsealed.nonzero().flatten()
        outputs = view.predict(rows).double()
        sound = outputs.isfinite().flatten(1).all(1)  # a diverged task has nothing to teach
        held_out = view.validation[:, rows] & sound[:, None]
        posterior, scale, rate = true_classes(outputs, view.targets[rows], held_out)
        said = f"labels: {100 * rate:.3g} % of them seem wrong (predictions at temperature {scale:g})"
        if rate < self.clean:
            return Lesson(note=f"{said}; the student learns from the labels as they are")
        if not last:
            return None
        targets = outputs.new_zeros(len(view.unsealed), view.classes)
        targets[rows] = posterior
        return Lesson(targets, note=f"{said}; the student learns from what the tasks make of them")


def true_classes(
    outputs: Float[Tensor, "T m C"], labels: Int64[Tensor, " m"], held_out: Bool[Tensor, "T m"]
) -> tuple[Float[Tensor, "m C"], float, float]:
    """Returns (posterior over each row's true class, temperature s, noise rate η); see `Distil`.

    Args:
        outputs: every task's logits.
        labels: the rows' labels.
        held_out: whether a task did not train on a row.

    Example:
        >>> outputs = 4.0 * torch.eye(2)[[0, 1, 0, 1]].expand(2, 4, 2)  # both tasks are sure of 0 1 0 1
        >>> posterior, _, rate = true_classes(outputs, torch.tensor([0, 1, 0, 0]), torch.ones(2, 4, dtype=bool))
        >>> posterior.argmax(1), rate
        (tensor([0, 1, 0, 1]), 0.25)
    """
    C = outputs.shape[-1]
    teachers = held_out.sum(0)
    known = teachers > 0
    labelled = torch.nn.functional.one_hot(labels, C).to(outputs.dtype)
    if not bool(known.any()):
        return labelled, 1.0, 0.0
    best, scale, rate, believed = -math.inf, 1.0, 0.0, labelled
    for s in SCALES:
        p = torch.softmax(torch.where(held_out[..., None], outputs, 0.0) / s, -1) * held_out[..., None]
        p = p.sum(0) / teachers.clamp_min(1)[:, None]
        of_label = (p * labelled).sum(1)[known]
        for eta in RATES:
            likelihood = (1 - eta) * of_label + eta * (1 - of_label) / (C - 1)
            score = float(likelihood.clamp_min(1e-12).log().mean())
            if score > best:
                best, scale, rate, believed = score, s, eta, p
    posterior = believed * torch.where(labelled > 0, 1 - rate, rate / (C - 1))
    total = posterior.sum(1, keepdim=True)
    sure = known[:, None] & (total > 0)
    return torch.where(sure, posterior / total.clamp_min(1e-300), labelled), scale, rate
