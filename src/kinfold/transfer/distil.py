"""Distil: tasks train alone, and what they know of rows they never saw teaches one student on all rows.

Random splits leave every row to some task as validation. Such a task has not seen the row's label, so its
prediction says how believable that label is, and the tasks together say how noisy the labels are. The student's
targets are then the posterior over each row's true class: where labels are clean they are the labels, where they
are not they are what the tasks hold against them. The cross-fitted prediction of noise is that of confident learning
(Northcutt, Jiang, Chuang, arXiv:1911.00068); a posterior as target is bootstrapping (Reed et al., arXiv:1412.6596)
with the weights worked out; a last student on all rows is distillation (Hinton, Vinyals, Dean, arXiv:1503.02531).
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError
from kinfold.transfer.base import Lesson, Need, Plan, Rule, State, View, check_shares

SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Temperatures at which the tasks' predictions are tried: small networks are over-confident, short runs too modest."""
RATES = (*(0.005 * i for i in range(20)), *(0.1 + 0.02 * i for i in range(26)))
"""Rates of label noise that are tried."""


@final
@dataclass(frozen=True)
class Distil(Rule):
    """Tasks train alone for a first part of the budget; a student on all unsealed rows has the rest.

    With p(c) the mean over the tasks that hold a row in validation of softmax(output / s), its label y and the
    rate of label noise η, spread evenly over the other C − 1 classes, the posterior of the row's true class is

        q(c) ∝ p(c) · (1 − η if c = y else η / (C − 1)),

    averaged over s and η by their likelihood Π [(1 − η) p(y) + η (1 − p(y)) / (C − 1)] over the rows that some task
    held out, all values on a grid being equally likely before. After a short first stage η is looked at: where it is
    surely below `clean` the labels can be believed, and the student learns from these with all that is left. Else the
    tasks train on, so that they know more, and are asked again; if in the end η is not below `clean`, the student's
    targets are q. A row that no task held out keeps its label; in regression all do.

    Attributes:
        stages: shares of the budget that the tasks have: the first in any case, each further one unless labels are
            surely clean by then. The student has the rest.
        clean: rate of noise below which labels are believed: with probability 0.975 before the last stage, by its
            expectation after it.

    Example:
        >>> Distil().student, Distil(stages=(0.2, 0.4)).due(period=1, epochs=10)
        (True, False)
    """

    name = "distil"
    needs: ClassVar[frozenset[Need]] = frozenset({"predictions"})
    moves: ClassVar[bool] = False
    until = 0.0
    stages: tuple[float | int, ...] = (0.1, 0.6)
    clean: float | int = 0.04

    def __post_init__(self) -> None:
        check_shares(self.name, clean=self.clean)
        if not self.stages or min(self.stages) <= 0 or not self.student:
            raise InputError(
                f"distil: stages is {self.stages!r}; give shares above 0 that leave something for the student."
            )

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
        # Beside another rule, a task may have heard of a label that it holds out; then it cannot judge it.
        held_out = (view.validation & ~view.exposed)[:, rows] & sound[:, None]
        if not bool(held_out.any()):
            return Lesson(
                note="labels: no task is left that has not heard of them; the student learns from them as they are"
            )
        belief = true_classes(outputs, view.targets[rows], held_out)
        said = f"labels: {100 * belief.rate:.3g} % of them seem wrong, at most {100 * belief.upper:.3g} %"
        if (belief.rate if last else belief.upper) < self.clean:
            return Lesson(note=f"{said}; the student learns from the labels as they are")
        if not last:
            return None
        targets = outputs.new_zeros(len(view.unsealed), view.classes)
        targets[rows] = belief.posterior
        return Lesson(targets, note=f"{said}; the student learns from what the tasks make of them")


@dataclass(frozen=True)
class Belief:
    """What tasks make of labels that they have not seen.

    Attributes:
        posterior: [m, C] probabilities of each row's true class.
        rate: expected rate of label noise.
        upper: the rate below which it lies with probability 0.975.
    """

    posterior: Float[Tensor, "m C"]
    rate: float
    upper: float


def true_classes(outputs: Float[Tensor, "T m C"], labels: Int64[Tensor, " m"], held_out: Bool[Tensor, "T m"]) -> Belief:
    """Returns what the tasks make of the rows' labels; see `Distil`.

    Args:
        outputs: every task's logits.
        labels: the rows' labels.
        held_out: whether a task did not train on a row.

    Example:
        >>> outputs = 4.0 * torch.eye(2)[torch.arange(80) % 2].expand(2, 80, 2)  # both tasks are sure of 0 1 0 1 …
        >>> labels = torch.arange(80) % 2
        >>> labels[:20] = 0  # ten of the eighty are wrong, which is not much to go by
        >>> belief = true_classes(outputs, labels, torch.ones(2, 80, dtype=bool))
        >>> belief.posterior[:4].argmax(1), round(belief.rate, 2)
        (tensor([0, 1, 0, 1]), 0.08)
    """
    C = outputs.shape[-1]
    known = held_out.any(0)
    labelled = torch.nn.functional.one_hot(labels, C).to(outputs.dtype)
    if not bool(known.any()):
        return Belief(labelled, 0.0, 1.0)
    rates = torch.tensor(RATES, dtype=outputs.dtype)[:, None]
    beliefs = [_mean_prediction(outputs[:, known], held_out[:, known], s) for s in SCALES]
    of_label = torch.stack([(p * labelled[known]).sum(1) for p in beliefs])
    likelihood = (1 - rates) * of_label[:, None] + rates * (1 - of_label[:, None]) / (C - 1)
    weight = torch.softmax(likelihood.clamp_min(1e-12).log().sum(-1).flatten(), 0).view(len(SCALES), len(RATES))
    mean = torch.zeros_like(beliefs[0])
    for i, j in (weight > 1e-4).nonzero().tolist():
        joint = beliefs[i] * torch.where(labelled[known] > 0, 1 - RATES[j], RATES[j] / (C - 1))
        total = joint.sum(1, keepdim=True)
        mean += weight[i, j] * torch.where(total > 0, joint / total.clamp_min(1e-300), labelled[known])
    posterior = labelled.clone()
    posterior[known] = mean / mean.sum(1, keepdim=True)
    of_rate = weight.sum(0)
    upper = RATES[int((of_rate.cumsum(0) < 0.975).sum())]
    return Belief(posterior, float((of_rate * rates[:, 0]).sum()), upper)


def _mean_prediction(
    outputs: Float[Tensor, "T m C"], held_out: Bool[Tensor, "T m"], scale: float
) -> Float[Tensor, "m C"]:
    """The mean of the probabilities that those tasks give which held a row out."""
    weights = held_out[..., None].to(outputs.dtype)
    p = torch.softmax(torch.where(held_out[..., None], outputs, 0.0) / scale, -1)
    return (p * weights).sum(0) / weights.sum(0)
