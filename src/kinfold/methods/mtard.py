"""MTARD: a student learns robustness from one teacher and accuracy from another, and neither gets the upper hand.

Zhao, Yu, Sun, Zhang, Wei, *Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation* (ECCV 2022),
and its code (zhaoshiji123/MTARD).

Legend: B batch, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, State
from kinfold.methods.networks import FrozenNetwork
from kinfold.methods.pgd import Attack, reach


@final
@dataclass(frozen=True)
class MTARD(Method):
    """The loss becomes w' · KL(robust teacher ‖ student) on attacked rows + w · KL(clean teacher ‖ student) on clean.

    Rows are attacked by `pgd` on the student's cross-entropy, which is all that labels enter; soft targets of other
    tasks do not enter. w' = 1 − w, and w follows the relative losses (see `balanced`). A batch costs the attack, two
    passes of the student and one of each teacher.

    Attributes:
        robust_teacher: a module, or a factory of one without arguments, that was trained adversarially.
        clean_teacher: likewise, that was trained on clean rows.
        epsilon: ε, how far each number may be moved, in the units that the model reads.
        steps: of the attack.
        step: its size; default ε / 4.
        eta: η, how fast the weights move.
        beta: β, how much they heed the losses.

    Raises:
        InputError: a number is out of range.

    Example:
        >>> MTARD(nn.Linear(4, 3), nn.Linear(4, 3), epsilon=0.2).eta
        0.025
    """

    conflicts = frozenset({"AdversarialTraining"})

    robust_teacher: nn.Module | Callable[[], nn.Module]
    clean_teacher: nn.Module | Callable[[], nn.Module]
    epsilon: float | int = 0.1
    steps: int = 10
    step: float | int | None = None
    eta: float | int = 0.025
    beta: float | int = 1.0
    teachers: tuple[FrozenNetwork, FrozenNetwork] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._attack()
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"mtard: eta is {self.eta!r}; give a number from 0 to 1.")
        if not 0.0 <= self.beta < math.inf:
            raise InputError(f"mtard: beta is {self.beta!r}; give a number of 0 or more.")
        teachers = (FrozenNetwork(self.robust_teacher), FrozenNetwork(self.clean_teacher))
        object.__setattr__(self, "teachers", teachers)

    def start(self, params: Params, context: Context) -> State:
        number = next(iter(params.values())).new_zeros(())
        return {**reach(context), "clean_weight": number + 0.5, "first_robust": number, "first_clean": number}

    def loss(
        self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], State]:
        del inner
        x = batch.x
        attacked = self._attack().on(model, batch, state, key)
        robust_teacher, clean_teacher = self.teachers
        with torch.no_grad():
            robust_target, clean_target = robust_teacher(attacked), clean_teacher(x)
        robust = divergence(robust_target, model(attacked), batch.weight)
        clean = divergence(clean_target, model(x), batch.weight)
        firsts, dtype = (state["first_robust"], state["first_clean"]), state["clean_weight"].dtype
        now = Losses(robust.detach().to(dtype), clean.detach().to(dtype))
        first = Losses(*(torch.where(old > 0, old, new) for old, new in zip(firsts, now, strict=True)))
        weight = balanced(state["clean_weight"], now, first, self.eta, self.beta)
        news = {"clean_weight": weight, "first_robust": first.robust, "first_clean": first.clean}
        return (1.0 - weight).to(robust.dtype) * robust + weight.to(clean.dtype) * clean, news

    def _attack(self) -> Attack:
        return Attack(self.epsilon, self.steps, self.step)


class Losses(NamedTuple):
    """The student's two losses, each against its teacher.

    Attributes:
        robust: on attacked rows.
        clean: on clean ones.
    """

    robust: Float[Tensor, ""]
    clean: Float[Tensor, ""]


def balanced(
    weight: Float[Tensor, ""], now: Losses, first: Losses, eta: float | int = 0.025, beta: float | int = 1.0
) -> Float[Tensor, ""]:
    """Returns the next weight w of the clean loss; that of the robust one is 1 − w.

    w ← w − η (w − r / (r + r')), with r = (L / L₀)^β of the clean loss and r' of the robust one: what has fallen less
    since the start is to count more.

    Args:
        weight: w; 0.5 at the start.
        now: L, of this batch.
        first: L₀, of the first one.
        eta: η.
        beta: β.

    Example:
        >>> one = torch.tensor(1.0)
        >>> balanced(one / 2, Losses(one / 4, 3 * one / 4), Losses(one, one), eta=0.5)
        tensor(0.6250)
    """
    tiny = torch.finfo(weight.dtype).tiny
    robust, clean = ((new / old.clamp_min(tiny)) ** beta for new, old in zip(now, first, strict=True))
    return weight - eta * (weight - clean / (robust + clean).clamp_min(tiny))


def divergence(
    teacher: Float[Tensor, "B C"], student: Float[Tensor, "B C"], counts: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """Returns the mean over rows of KL(teacher ‖ student), of logits, in nats.

    Args:
        teacher: logits, constants.
        student: logits.
        counts: [B] how much each row counts; default all alike.
    """
    target = torch.log_softmax(teacher.detach().to(student.dtype), 1)
    each = (target.exp() * (target - torch.log_softmax(student, 1))).sum(1)
    if counts is None:
        return each.mean()
    share = (counts / counts.sum()).to(each.dtype)
    return (each * share).sum()
