"""Projected gradient descent on the inputs: attacks, adversarial training, and accuracy under attack.

Madry, Makelov, Schmidt, Tsipras, Vladu, *Towards Deep Learning Models Resistant to Adversarial Attacks* (ICLR 2018,
arXiv:1706.06083, section 2.1), in the norm ℓ∞.

Legend: B batch, N rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Context, Inner, Method, Model, Params, Rows, State, probabilities


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B *shape"],
    key: Int64[Tensor, ""],
    *,
    epsilon: float | int,
    step: float | int,
    steps: int,
    low: Float[Tensor, "*range"] | None = None,
    high: Float[Tensor, "*range"] | None = None,
) -> Float[Tensor, "B *shape"]:
    """Returns rows near the given ones that have a high loss: within ε in each number, and within the range.

    x ← clip(x + step · sign ∇loss(x)), so many times, from x + U(−ε, ε). Works in a plain loop and inside `torch.vmap`.

    Args:
        loss: from rows to the sum of their losses, a scalar; a mean will do.
        x: [B, …].
        key: of the start.
        epsilon: ε, in the units of `x`.
        step: likewise.
        steps: how many.
        low: the least that rows may hold, such that it broadcasts to them; None for no bound.
        high: likewise the most.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> pgd(lambda x: x.sum(), x, random.key(0), epsilon=0.3, step=0.2, steps=3)[0]
        tensor([0.3000, 0.3000, 0.3000])
    """
    least, most = x - epsilon, x + epsilon
    least = least if low is None else torch.maximum(least, low)
    most = most if high is None else torch.minimum(most, high)

    def clipped(x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, most), least)

    start = 2.0 * random.uniform(key, x.shape, torch.float64).to(x.dtype) - 1.0
    # Nothing of what is differentiated outside is recorded; `grad` itself knows how to be asked within.
    with torch.no_grad():
        attacked = clipped(x + epsilon * start)
        for _ in range(steps):
            attacked = clipped(attacked + step * torch.func.grad(loss)(attacked).sign())
    return attacked.detach()


def accuracy_under_attack(
    network: nn.Module,
    x: Float[Tensor, "N *shape"],
    y: Int64[Tensor, " N"],
    *,
    epsilon: float | int,
    step: float | int,
    steps: int = 20,
    low: Float[Tensor, "*range"] | None = None,
    high: Float[Tensor, "*range"] | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> float:
    """Returns the share of rows that are still told right after `pgd` on the cross-entropy; `network` in eval mode.

    Args:
        network: gives [N, C] logits.
        x: rows.
        y: their classes.
        epsilon: as in `pgd`.
        step: likewise.
        steps: likewise; 20 makes what papers call PGD-20.
        low: likewise.
        high: likewise.
        seed: of the starts.
        batch_size: rows at a time.

    Example:
        >>> network = nn.Linear(1, 2, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(torch.tensor([[0.0], [1.0]]))
        >>> x, y = torch.tensor([[0.2], [0.6]]), torch.tensor([1, 1])
        >>> accuracy_under_attack(network, x, y, epsilon=0.3, step=0.1)
        0.5
    """
    right = 0
    for begin in range(0, len(y), batch_size):
        rows, classes = x[begin : begin + batch_size], y[begin : begin + batch_size]

        def loss(rows: Tensor, classes: Tensor = classes) -> Tensor:
            return F.cross_entropy(network(rows), classes, reduction="sum")

        key = random.key(seed, "attack", begin).to(x.device)
        rows = pgd(loss, rows, key, epsilon=epsilon, step=step, steps=steps, low=low, high=high)
        with torch.no_grad():
            right += int((network(rows).argmax(1) == classes).sum())
    return right / len(y)


@final
@dataclass(frozen=True)
class Attack:
    """What an adversary may do to a batch.

    Attributes:
        epsilon: ε, how far each number may be moved, in the units that the model reads.
        steps: of gradient ascent.
        step: in the same units; default ε / 4, which is what 2/255 is to the usual 8/255.

    Raises:
        InputError: one of them is out of range.
    """

    epsilon: float | int
    steps: int = 10
    step: float | int | None = None

    def __post_init__(self) -> None:
        for argument, value in (("epsilon", self.epsilon), ("step", 0 if self.step is None else self.step)):
            if not 0.0 <= value < math.inf:
                raise InputError(f"attack: {argument} is {value!r}; give a number of 0 or more.")
        if self.steps < 0:
            raise InputError(f"attack: steps is {self.steps!r}; give 0 or more.")

    def on(self, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Float[Tensor, "B *shape"]:
        """Returns the batch's rows as an adversary would give them.

        It knows the network as it would be scored, batch-norm statistics and all, and maximises the cross-entropy;
        labels that may not be used are not: such rows are moved at random. Rows stay in the range of `reach`.
        """
        fixed = model.with_params({}).evaluating()
        x = tensor_of(batch.x)
        target = probabilities(batch, x.dtype)
        target = target if batch.labelled is None else target * batch.labelled[:, None]

        def loss(x: Tensor) -> Tensor:
            output = torch.log_softmax(fixed(x), 1)
            return -(target.to(output.dtype) * output).sum()

        step = self.epsilon / 4 if self.step is None else self.step
        given = (state["own/low"].to(x.dtype), state["own/high"].to(x.dtype))
        return pgd(loss, x, key, epsilon=self.epsilon, step=step, steps=self.steps, low=given[0], high=given[1])


@final
@dataclass(frozen=True)
class AdversarialTraining(Method):
    """Trains on the rows that `pgd` makes of each batch (Madry et al., 2018) in the place of the batch itself.

    Rows stay within the range of the task's own training rows, channel by channel, and random starts are keyed. A
    batch costs `steps` further passes forward and back.

    Attributes:
        epsilon: ε, how far each number may be moved, in the units that the model reads: of standardised pixels,
            8/255 is 8/255 over their standard deviation.
        steps: of the attack.
        step: its size; default ε / 4.

    Raises:
        InputError: one of them is out of range.

    Example:
        >>> AdversarialTraining(epsilon=0.1).steps
        10
    """

    epsilon: float | int = 0.1
    steps: int = 10
    step: float | int | None = None

    def __post_init__(self) -> None:
        self._attack()

    def start(self, params: Params, context: Context) -> State:
        del params
        return reach(context)

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Float[Tensor, ""]:
        return inner(model, batch._replace(x=self._attack().on(model, batch, state, key)))

    def _attack(self) -> Attack:
        return Attack(self.epsilon, self.steps, self.step)


def reach(context: Context) -> State:
    """Returns the range of a task's own training rows, of each channel, shaped to broadcast to rows.

    Raises:
        InputError: rows are no single tensor of floating-point numbers, or the targets are no classes.
    """
    if context.classes is None:
        raise InputError("methods: attacks are for classification, and the target is a number.")
    low = high = None
    for batch in context.batches():
        x = tensor_of(batch.x).flatten(2) if tensor_of(batch.x).ndim > 2 else tensor_of(batch.x)[..., None]
        least, most = x.amin((0, 2)), x.amax((0, 2))
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    assert low is not None
    assert high is not None
    shape = (len(low), *[1] * (tensor_of(batch.x).ndim - 2))
    return {"own/low": low.reshape(shape), "own/high": high.reshape(shape)}


def tensor_of(x: Rows) -> Float[Tensor, "B *shape"]:
    """Returns the rows if an adversary can move them: one tensor of floating-point numbers, with channels.

    Raises:
        InputError: they are something else.
    """
    if isinstance(x, tuple) or not x.is_floating_point() or x.ndim < 2:
        raise InputError("methods: attacks are for rows that are one tensor of floating-point numbers; leave them out.")
    return x
