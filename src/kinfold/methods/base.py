"""The stages at which a method enters one task's training. A method sees one task and never T.

Every stage is a pure function of tensors, with the method's state handed in and out, so that an engine can call
it in a loop or lift it over all tasks with `torch.vmap`. What is random comes from the key (`kinfold.random`). A stage
that no method overrides is skipped, and costs nothing.

The loop of one task, with the stages in capitals; a chain of methods enters each in the order given, and in LOSS
the first is the outermost, in GRADIENTS the last:

```
state = START(parameters, context)                            # on the host; context: structure, own training rows, …
for each period:
    order = DRAW(order of the task's rows, state, key)        # on the host, once a period; may return fewer or more
    factor = RATE(state)                                      # on the schedule's learning rates
    for rows in order, a batch at a time:
        def value_and_grad(parameters):
            batch    = BATCH(rows, state, key)                # augment, mix, soften
            model    = structure with WEIGHTS(parameters, state)          # what the forward pass sees: masks, grids
                       and BACKWARD_WEIGHTS(parameters, state)            # what gradients to layers' inputs see
            loss, state = LOSS(inner, model, batch, state, key)           # add terms, or replace
            return loss, its gradients with respect to parameters and state "train/…", which go to state "grad/…"
        loss, grads, state = GRADIENTS(value_and_grad, parameters, state, key)
        once in `accumulate` batches, with the mean of their gradients, clipped:
            grads, state      = BEFORE_STEP(parameters, grads, state)
            before            = parameters
            parameters        = optimizer step by the schedule's learning rates times factor
            parameters, state = UPDATE(before, parameters, state)         # scale or project the step
            parameters, state = AFTER_STEP(parameters, state)             # masks, averages
        a transfer inside the period, as at its end
    score with WEIGHTS(EVALUATION(parameters, state), state)
    if it is the best so far: best = these parameters, and the state
    state = ROW_LOSSES(own training rows, losses on them, state)
    parameters, state = PERIOD_END(parameters, state, score)
    if a transfer proposes other parameters to the task:
        state      = the donors' (see below)
        parameters, state = AFTER_TRANSFER(parameters, state) # masks again, stale statistics anew
        try these as they would be scored, and keep or drop both
the selected model = REBUILD(structure with EXPORT(best parameters, state), state)  # may be a smaller module
```

What a transfer does to a state is said by the name of each tensor in it:

| name | after a transfer |
|---|---|
| `…/<parameter>`, shaped like that parameter (`average/0.weight`) | the same copy, mixture or mask as the parameter |
| `own/…` | stays the task's: what it knows of its own rows |
| any other | whole, from the donor with the largest weight |

Two more prefixes have a meaning: `train/x` is a trainable tensor of the method's own, and the gradient of the loss with
respect to it is in `grad/x` after every batch, and the mean of `accumulate` batches when the optimizer steps; START
makes both, and BEFORE_STEP or AFTER_STEP steps it by a rule of the method's own. Tensors keep shape and dtype for the
whole run, and are shaped alike for all tasks: what is known of rows is stored by their numbers, [N] (`Context.count`).

Legend: B batch, C classes or outputs, N rows of the data, n the task's training rows, m some of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.methods.gradients import ValueAndGrad as ValueAndGrad
from kinfold.methods.model import LayerMeans as LayerMeans
from kinfold.methods.model import Model as Model
from kinfold.methods.model import Params as Params
from kinfold.methods.model import Rows as Rows
from kinfold.methods.model import State as State
from kinfold.methods.model import linear_layers as linear_layers
from kinfold.methods.model import straight_through as straight_through
from kinfold.methods.model import within as within

OWN = "own/"
"""Begins the names of state that no transfer moves."""

TRAIN, GRAD = "train/", "grad/"
"""Begin the names of trainable state, and of its gradients."""


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
"""The loss without a method: what the user gave, or what the methods after this one have made of it."""


@final
@dataclass(frozen=True, eq=False)
class Context:
    """What START may know of its task, besides the parameters. Rows are the task's own training rows, never others.

    Attributes:
        model: of the parameters at the start; call `model.evaluating()(x)`, or `model.with_params(…)`. Its `module` is
            the structure: to be read, not trained, and its own numbers are not used.
        rows: [n] numbers of the task's training rows, in ascending order.
        count: N, of all rows there are: what is known of rows is stored [N], by their numbers.
        read: from row numbers to the batch of them; read when called.
        loss: from a model and a batch to the loss without any method.
        classes: C, or None for regression.
        periods: that the run is to take at most.
        steps: batches of one period of all the task's rows.
        batch_size: B.
        key: of what START draws.
    """

    model: Model
    rows: Int64[Tensor, " n"]
    count: int
    read: Callable[[Int64[Tensor, " m"]], Batch]
    loss: Inner
    classes: int | None
    periods: int
    steps: int
    batch_size: int
    key: Int64[Tensor, ""]

    @property
    def module(self) -> nn.Module:
        """The structure, a template."""
        return self.model.module

    def batch(self, rows: Int64[Tensor, " m"]) -> Batch:
        """Returns some of the task's training rows.

        Raises:
            InputError: others are among them.
        """
        if not bool(torch.isin(rows, self.rows.to(rows.device)).all()):
            raise InputError("methods: a method asked for rows that its task does not train on; give some of rows.")
        return self.read(rows)

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """Yields all training rows in order, so many at a time; default four batches, since nothing is trained."""
        for rows in torch.split(self.rows, 4 * self.batch_size if size is None else size):
            yield self.read(rows)


class Method:
    """Changes how one task trains. Every stage defaults to doing nothing; a subclass overrides what it needs.

    Attributes:
        conflicts: names of the classes of methods that cannot be in one chain with this one, for whatever reason;
            it is enough that one of two names the other.
        differentiates: whether its gradients are derivatives of the loss. Where they are not, parameters that no
            derivative reaches are trained, too.
        substitutes: whether `evaluation` gives other parameters, whatever it is given. It then goes before the methods
            that change what they are given, wherever it stands in the chain.
    """

    conflicts: ClassVar[frozenset[str]] = frozenset()
    differentiates: ClassVar[bool] = True
    substitutes: ClassVar[bool] = False

    # -- before training ------------------------------------------------------------------------------------------

    def start(self, params: Params, context: Context) -> State:
        """Returns the state before the first step, on the parameters' device; also that of a task that is restarted."""
        del params, context
        return {}

    # -- once a period, on the host -------------------------------------------------------------------------------

    def draw(self, order: Int64[Tensor, " n"], state: State, key: Int64[Tensor, ""]) -> Int64[Tensor, " m"]:
        """Returns which rows to visit this period, in order, given the task's own rows in the keyed order.

        There may be fewer or more than there were, and some more than once; at least one. State is on the CPU.
        """
        del state, key
        return order

    def rate(self, state: State) -> Float[Tensor, ""]:
        """Returns what the schedule's learning rates are multiplied by until the next period or transfer."""
        del state
        return torch.ones(())

    # -- in every batch -------------------------------------------------------------------------------------------

    def batch(self, batch: Batch, state: State, key: Int64[Tensor, ""]) -> Batch:
        """Returns the batch to train on."""
        del state, key
        return batch

    def weights(self, params: Params, state: State) -> Params:
        """Returns the parameters that the forward pass sees, in training and where the task is scored.

        Gradients go through it to the parameters (see `straight_through`). The optimizer and transfers change what is
        given, the master parameters; what is exported is what is returned.
        """
        del state
        return params

    def backward_weights(self, params: Params, state: State) -> Params:
        """Returns other weights, by which the gradient goes back to layers' inputs, of as many layers as differ.

        They are constants: no gradient goes to them. The layers are linear, or convolutions without groups, and the
        weights are given by the parameters' names. One method of a chain may do so.
        """
        del params, state
        return {}

    def loss(
        self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]
    ) -> Tensor | tuple[Tensor, State]:
        """Returns the loss, a scalar; or (loss, new state), of as many names as change.

        `inner(model, batch)` is the loss without this method. `model(x)` gives outputs [B, C], `model.tapped(x, names)`
        also what layers gave, `model.with_params(params)(x)` those of other parameters. No gradient goes through new
        state.
        """
        del state, key
        return inner(model, batch)

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Tensor, Params] | tuple[Tensor, Params, State]:
        """Returns (loss, gradients); or (loss, gradients, new state), of as many names as change.

        `value_and_grad(params)` may be called more than once, or not at all; `.layers(params, names)` also gives
        layers' mean inputs and output gradients, `.value(params)` and `.values(params, many)` give losses alone.
        """
        del state, key
        return value_and_grad(params)

    # -- in every step of the optimizer ---------------------------------------------------------------------------

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        """Returns the gradients that the optimizer gets, and the new state."""
        del params
        return grads, state

    def update(self, before: Params, params: Params, state: State) -> tuple[Params, State]:
        """Returns the parameters after the step, and the new state, given those before and after the optimizer's."""
        del before
        return params, state

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        """Returns the parameters after the optimizer's step, and the new state."""
        return params, state

    # -- at the end of a period -----------------------------------------------------------------------------------

    def evaluation(self, params: Params, state: State) -> Params:
        """Returns the parameters to score, and to keep if they are the best so far; `weights` is applied to them."""
        del state
        return params

    def row_losses(self, rows: Int64[Tensor, " n"], losses: Float[Tensor, " n"], state: State) -> State:
        """Returns the new state, given the losses on the task's own training rows, as it would be scored.

        To override it is to ask for them: each period has a pass over these rows more. It is called task by task.
        """
        del rows, losses
        return state

    def period_end(self, params: Params, state: State, score: Float[Tensor, " 2"]) -> tuple[Params, State]:
        """Returns parameters and state after a period that scored (metric, loss) on the validation rows."""
        del score
        return params, state

    # -- after a transfer, and at the end -------------------------------------------------------------------------

    def after_transfer(self, params: Params, state: State) -> tuple[Params, State]:
        """Returns parameters and state that keep what the method promises, given those a transfer has put together.

        Called for tasks to which a plan proposes anything, before the proposal is tried; a restarted task's are fresh.
        """
        return params, state

    def export(self, params: Params, state: State) -> Params:
        """Returns the parameters of the model that is handed to the user, given those that were scored best."""
        del state
        return params

    def rebuild(self, module: nn.Module, state: State) -> nn.Module:
        """Returns the module that is handed to the user, given the one with the exported parameters, which is its own.

        It may be smaller, by layers with fewer channels, say. Its outputs must be those of the given one: this is
        checked on training rows. `state` is the task's, as it was when it was scored best. Layers keep their names.
        """
        del state
        return module


STAGES = (
    *("start", "draw", "rate", "batch", "weights", "backward_weights", "loss", "gradients", "before_step", "update"),
    *("after_step", "evaluation", "row_losses", "period_end", "after_transfer", "export", "rebuild"),
)
"""Names of all stages."""


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
