"""An ordered chain of methods, and one task's pass through it, which engines lift and a plain loop calls.

Numbers of methods begin what has come of a pass beside buffers: `/i/name` is the new state `name` of method i.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import GRAD, STAGES, TRAIN, Batch, Inner, Method, State, ValueAndGrad, overrides
from kinfold.methods.gradients import BIAS, INPUTS, Differentiate, settled
from kinfold.methods.model import Forward, Hooks, Model, Params, Passed, looking_back, measuring


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A structure, and how it is called.

    Attributes:
        module: the structure; its own numbers are not used.
        forward: from one task's tensors and inputs to (output, buffers after the pass).
    """

    module: nn.Module
    forward: Forward


@final
class Chain:
    """Methods in order.

    Args:
        methods: the first is the outermost where one goes around another.

    Raises:
        InputError: two of them do not go together, or a method is none.

    Example:
        >>> from kinfold.methods import LabelSmoothing, Mixup
        >>> chain = Chain([LabelSmoothing(), Mixup()])
        >>> chain.has("batch"), chain.has("loss"), [i for i, _ in chain.at("batch")]
        (True, False, [0, 1])
    """

    def __init__(self, methods: Iterable[Method]):
        self.methods = tuple(methods)
        check_chain(self.methods)
        self._at = {
            stage: tuple((i, method) for i, method in enumerate(self.methods) if overrides(method, stage))
            for stage in STAGES
        }
        # What takes the place of the parameters comes first, or it would undo what others make of them.
        self._at["evaluation"] = tuple(sorted(self._at["evaluation"], key=lambda at: not at[1].substitutes))

    def at(self, stage: str) -> tuple[tuple[int, Method], ...]:
        """Returns (number, method) of those that do something at a stage, in the order in which they do."""
        return self._at[stage]

    def has(self, *stages: str) -> bool:
        """Returns whether any method does something at any of the stages."""
        return any(self._at[stage] for stage in stages)

    def weights(self, params: Params, states: Sequence[State]) -> Params:
        """Returns what the forward pass sees of the parameters."""
        for i, method in self._at["weights"]:
            params = method.weights(params, states[i])
        return params

    def evaluation(self, params: Params, states: Sequence[State]) -> Params:
        """Returns what is scored of the parameters, as the forward pass sees it."""
        for i, method in self._at["evaluation"]:
            params = method.evaluation(params, states[i])
        return self.weights(params, states)

    def loss(
        self,
        network: Network,
        inner: Inner,
        at: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: Sequence[State],
        key: Int64[Tensor, ""],
        aside: bool = False,
    ) -> tuple[Float[Tensor, ""], Params]:
        """Returns one task's loss, and what has come of the pass: buffers, and new state of the methods.

        Args:
            network: the structure.
            inner: the loss without methods.
            at: what may be differentiated: parameters; trained state as `/i/train/name`; virtual biases of layers.
            frozen: parameters that are not trained.
            buffers: before the pass.
            batch: as it was read.
            states: one a method.
            key: of the step.
            aside: whether batch-norm statistics stay.
        """
        passed, hooks = Passed(buffers), []
        params = at
        if any(name.startswith("/") for name in at):
            params = {name: value for name, value in at.items() if not name.startswith("/")}
            states = [_with_trained(i, state, at) for i, state in enumerate(states)]
            biases = {name.removeprefix(BIAS): value for name, value in at.items() if name.startswith(BIAS)}
            if biases:
                hooks.append(measuring(biases, passed))
        for i, method in self._at["batch"]:
            batch = method.batch(batch, states[i], random.fold_in(key, 3 * i))
        hooks = [*self._backward(params, states), *hooks]  # whose inputs are those of the pass
        seen = self.weights(params, states)
        model = Model(network.module, network.forward, seen, frozen, passed, tuple(hooks))
        model = model.aside() if aside else model
        news: Params = {}
        for i, method in reversed(self._at["loss"]):
            inner = partial(_wrapped, method, inner, states[i], random.fold_in(key, 3 * i + 1), f"/{i}/", news)
        value = inner(model, batch)
        inputs = {INPUTS + name: mean for name, mean in passed.inputs.items()}
        return value, {**passed.buffers, **news, **inputs}

    def _backward(self, params: Params, states: Sequence[State]) -> list[Hooks]:
        return [looking_back(method.backward_weights(params, states[i])) for i, method in self._at["backward_weights"]]

    def value_and_grad(
        self,
        network: Network,
        inner: Inner,
        differentiate: Differentiate,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: Sequence[State],
        key: Int64[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Params, Params]:
        """Returns one task's (loss, gradients, what has come of the passes), with the gradient stages around it."""
        main, aside = (
            partial(self._loss_at, network, inner, frozen, buffers, batch, states, key, beside)
            for beside in (False, True)
        )
        step = ValueAndGrad(main, differentiate, network.module, aside, self.trained(states), passed=dict(buffers))
        plain = step
        news: Params = {}
        for i, method in self._at["gradients"]:
            own = partial(_around, method, step, states[i], random.fold_in(key, 3 * i + 2), f"/{i}/", news)
            step = plain.around(own)
        value, grads = step(params)
        return value, grads, {**plain.passed, **news}

    def _loss_at(
        self,
        network: Network,
        inner: Inner,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: Sequence[State],
        key: Int64[Tensor, ""],
        aside: bool,
        at: Params,
    ) -> tuple[Tensor, Params]:
        return self.loss(network, inner, at, frozen, buffers, batch, states, key, aside)

    def rate(self, states: Sequence[State]) -> Float[Tensor, ""]:
        """Returns what the schedule's learning rates are multiplied by, in float64 on the host."""
        factor = torch.ones((), dtype=torch.float64)
        for i, method in self._at["rate"]:
            factor = factor * method.rate(states[i]).to("cpu", torch.float64)
        return factor

    def trained(self, states: Sequence[State]) -> Params:
        """Returns the methods' trainable state as `/i/train/name`."""
        return {f"/{i}/{n}": value for i, state in enumerate(states) for n, value in state.items() if n[:6] == TRAIN}

    def trained_grads(self, states: Sequence[State]) -> Params:
        """Returns the gradients with respect to that, which are state as well, as `/i/grad/name`."""
        return {
            f"/{i}/{n}": value
            for i, state in enumerate(states)
            for n, value in state.items()
            if n.startswith(GRAD) and TRAIN + n.removeprefix(GRAD) in state
        }

    def settled(self, grads: Params, passed: Params, states: Sequence[State]) -> Params:
        """Returns the parameters' gradients; those of trained state become state themselves."""
        return settled(grads, passed, self.trained(states))


def check_chain(methods: Sequence[Method]) -> None:
    """Checks that methods go together.

    Raises:
        InputError: one says that it does not go with another, two say what the backward pass sees, or trainable
            state has no place for its gradient.
    """
    for one, other in combinations(methods, 2):
        pairs = ((one, other), (other, one))
        if any(name_of(b) in a.conflicts for a, b in pairs):
            raise InputError(f"methods: {name_of(one)} and {name_of(other)} do not go together; leave one of them out.")
        if all(overrides(method, "backward_weights") for method in (one, other)):
            raise InputError(
                f"methods: {name_of(one)} and {name_of(other)} both choose the weights of the backward pass; "
                "leave one of them out."
            )


def check_state(method: Method, state: State) -> State:
    """Returns a method's state at the start.

    Raises:
        InputError: it is none, or trainable state has no place for its gradient.
    """
    for name, value in state.items():
        if name.startswith(TRAIN):
            needed = GRAD + name.removeprefix(TRAIN)
            if needed not in state or state[needed].shape != value.shape:
                raise InputError(
                    f"methods: {name_of(method)} has state {name!r}, so it needs {needed!r} of the same shape; make it "
                    "in start."
                )
    return state


def name_of(method: Method) -> str:
    """Returns the name of a method's class, by which others name it in `conflicts`."""
    return type(method).__name__


def step_by(optimizer: Optimizer, factor: float) -> None:
    """Steps an optimizer by its learning rates times a factor, of which schedules hear nothing.

    Raises:
        InputError: the optimizer has no learning rate.
    """
    if factor == 1.0:
        optimizer.step()
        return
    if "lr" not in optimizer.param_groups[0]:
        raise InputError("methods: the optimizer has no learning rate for a method to set; give another optimizer.")
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def news_of(passed: Mapping[str, Tensor], i: int) -> State:
    """Returns the new state of method i, out of what has come of a pass."""
    start = f"/{i}/"
    return {name.removeprefix(start): value for name, value in passed.items() if name.startswith(start)}


def buffers_of(passed: Mapping[str, Tensor]) -> Params:
    """Returns the buffers, out of what has come of a pass."""
    return {name: value for name, value in passed.items() if not name.startswith("/")}


def _with_trained(i: int, state: State, at: Params) -> State:
    return {name: at.get(f"/{i}/{name}", value) for name, value in state.items()}


def _wrapped(
    method: Method,
    inner: Inner,
    state: State,
    key: Int64[Tensor, ""],
    start: str,
    news: Params,
    model: Model,
    batch: Batch,
) -> Tensor:
    given = method.loss(inner, model, batch, state, key)
    if isinstance(given, Tensor):
        return given
    value, new = given
    news.update({start + name: part.detach() for name, part in new.items()})
    return value


def _around(
    method: Method,
    step: Callable[[Params], tuple[Tensor, Params]],
    state: State,
    key: Int64[Tensor, ""],
    start: str,
    news: Params,
    params: Params,
) -> tuple[Tensor, Params]:
    value, grads, *new = method.gradients(step, params, state, key)  # type: ignore[arg-type]
    for own in new:
        news.update({start + name: part.detach() for name, part in own.items()})
    return value, grads
