"""The stages at which a method enters one task's training. A method sees one task and never T.

Every stage is a pure function of tensors, with the method's state handed in and out, so that an engine can call
it in a loop or lift it over all tasks with `torch.vmap`. What is random comes from the key (`kinfold.random`).

The loop of one task, with the stages in capitals; a chain of methods enters each in the order given, and in LOSS
the first is the outermost:

```
state = START(parameters)
for each period:
    order = DRAW(order of the task's rows, state)            # on the host, once a period
    for batch in order:
        batch        = BATCH(batch, state, key)              # augment, mix, soften
        loss         = LOSS(inner, model, batch, state, key) # add terms, or replace
        value, grads = GRADIENTS(value_and_grad, parameters, state, key)
        grads        = BEFORE_STEP(parameters, grads, state)
        parameters   = optimizer step
        parameters   = AFTER_STEP(parameters, state)         # masks, averages
    score with EVALUATION(parameters, state)
    parameters = PERIOD_END(parameters, state, score)
the selected model's parameters = EXPORT(parameters, state)
```

Legend: B batch, C classes or outputs.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from kinfold.errors import InputError

State: TypeAlias = dict[str, Tensor]
Params: TypeAlias = dict[str, Tensor]
Rows: TypeAlias = Tensor | tuple[Tensor, ...]
Model: TypeAlias = Callable[[Rows], Tensor]


class Batch(NamedTuple):
    """What one step of one task sees.

    Attributes:
        x: inputs, [B, …] or a tuple of such.
        y: targets: int64 [B] classes, float [B, C] probabilities (once softened or mixed), or float values.
        row: [B] row numbers.
        classes: C, or None for regression.
        labelled: [B] 1.0 where y may be used, 0.0 where only `soft` may; None where all rows are labelled.
        soft: [B, C] soft targets from other tasks, or None.
        soft_weight: weight of the soft targets, one or [B], or None.
        weight: [B] how much each row counts in the batch's loss; None where all count alike.
    """

    x: Rows
    y: Shaped[Tensor, "B *C"]
    row: Int64[Tensor, " B"]
    classes: int | None = None
    labelled: Float[Tensor, " B"] | None = None
    soft: Float[Tensor, "B C"] | None = None
    soft_weight: Float[Tensor, "*B"] | None = None
    weight: Float[Tensor, " B"] | None = None

    def first(self) -> "Batch":
        """Returns the first task's batch of several tasks' batches that are stacked."""
        x = tuple(part[0] for part in self.x) if isinstance(self.x, tuple) else self.x[0]
        parts = (self.labelled, self.soft, self.soft_weight, self.weight)
        rest = (None if part is None else part[0] for part in parts)
        return Batch(x, self.y[0], self.row[0], self.classes, *rest)


Inner: TypeAlias = Callable[[Model, Batch], Tensor]
ValueAndGrad: TypeAlias = Callable[[Params], tuple[Tensor, Params]]


class Method:
    """Changes how one task trains. Every stage defaults to doing nothing; a subclass overrides what it needs."""

    def start(self, params: Params) -> State:
        """Returns the state before the first step."""
        del params
        return {}

    def draw(self, order: Int64[Tensor, " n"], state: State, key: Int64[Tensor, ""]) -> Int64[Tensor, " m"]:
        """Returns which rows to visit this period, in order, given the task's own rows in the keyed order."""
        del state, key
        return order

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        """Returns the batch to train on."""
        del state, key
        return batch

    def loss(self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Tensor:
        """Returns the loss, a scalar. `inner(model, batch)` is the loss without this method."""
        del state, key
        return inner(model, batch)

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Tensor, Params]:
        """Returns (loss, gradients). `value_and_grad(params)` may be called more than once, or not at all."""
        del state, key
        return value_and_grad(params)

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        """Returns the gradients that the optimizer gets, and the new state."""
        del params
        return grads, state

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        """Returns the parameters after the optimizer's step, and the new state."""
        return params, state

    def evaluation(self, params: Params, state: State) -> Params:
        """Returns the parameters to score, and to keep if they are the best so far."""
        del state
        return params

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        """Returns parameters and state after a period that scored (metric, loss)."""
        del score
        return params, state

    def export(self, params: Params, state: State) -> Params:
        """Returns the parameters of the model that is handed to the user."""
        del state
        return params


def overrides(method: Method, stage: str) -> bool:
    """Returns whether the method does anything at the stage; engines skip those at which none does."""
    return getattr(type(method), stage) is not getattr(Method, stage)


def probabilities(batch: Batch, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B C"]:
    """Returns the batch's targets as probabilities: one-hot where they are class numbers, else as they are.

    Raises:
        InputError: the targets are not classes.
    """
    if batch.classes is None:
        raise InputError("methods: this method is for classification, and the target is a number.")
    if batch.y.is_floating_point():
        return batch.y
    return (batch.y[:, None] == torch.arange(batch.classes, device=batch.y.device)).to(dtype)


def image(x: Rows) -> Float[Tensor, "B channels H W"]:
    """Returns the inputs if they are a batch of images.

    Raises:
        InputError: they are something else.
    """
    if isinstance(x, tuple) or x.ndim != 4 or not x.is_floating_point():
        shape = "several tensors" if isinstance(x, tuple) else f"shape {tuple(x.shape[1:])}"
        raise InputError(f"methods: this method is for images (channels, height, width), and a row has {shape}.")
    return x
