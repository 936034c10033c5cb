"""A step of training recorded once as a flat program of tensor operations, and replayed.

Of a step of small models most is not arithmetic: module calls, `torch.vmap`'s layers, the building of an autograd
graph. What is recorded (by `torch.fx`'s `make_fx`) is the operations that reach the kernels, those of the backward pass
included; replaying calls them in the same order, but for a few that are rearranged or left out (see `simplify`).

A recording holds what Python did when it was made. It is made only where nothing but the tensors handed in can change
what a step does, as far as that can be seen: see `Recorder`.
"""

import logging
import random as python_random
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from kinfold import random
from kinfold.engines.base import Job
from kinfold.engines.simplify import simplify
from kinfold.methods.base import Batch, Params, State

Gradients: TypeAlias = tuple[Float[Tensor, " *k"], Params, Params]
"""(losses, gradients, buffers after the pass) of one task, or of k of them stacked."""

Step: TypeAlias = Callable[[Params, Params, Params, Batch, list[State], Int64[Tensor, " *k"]], Gradients]
"""From parameters, frozen parameters, buffers, a batch, the methods' states and keys to what an optimizer needs."""

_MOST = 16
"""Recordings of one engine, each for tensors of other shapes."""

_HANDED_IN = frozenset({"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"})
"""Attributes of modules that hold parameters and buffers; the last two are those of recurrent layers."""

_LOG = logging.getLogger("kinfold")


@final
class Recorder:
    """Calls a step, or replays its recording.

    It stays with calling the step where a recording could go wrong: where a forward pass changes an attribute of a
    module, or moves Python's or NumPy's random state; where modules have hooks; where the loss is a function of the
    user's own; where the step cannot be recorded at all (control flow that depends on data), or the recording's
    numbers are not the step's. Between segments of training, attributes are looked at again (`refresh`), and where one
    has changed the recordings are dropped. What it cannot see is a global variable that a module reads.

    Args:
        step: what is called; it may differentiate, and may use the global random generators of torch.
        modules: the model and, where it is one, the loss.
        possible: whether to record at all.

    Attributes:
        possible: whether steps are recorded, as far as is known.
    """

    def __init__(self, step: Step, modules: Sequence[nn.Module], possible: bool = True):
        self._step, self._modules, self.possible = step, modules, possible
        self._programs: dict[Hashable, Callable[..., Gradients]] = {}
        self._seen: Hashable = None

    def __call__(
        self,
        params: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        states: list[State],
        keys: Int64[Tensor, " *k"],
        kind: Hashable,
        record: bool,
    ) -> Gradients:
        """Returns what the step returns.

        Args:
            params: trainable parameters.
            frozen: parameters that are not trained.
            buffers: before the pass.
            batch: what to train on.
            states: the methods'.
            keys: of the methods' draws.
            kind: whatever else the step depends on.
            record: whether a recording may be used, and made where there is none. For one and the same step always
                the same, or a resumed run would not end where an uninterrupted one does: sums are taken in another
                order.
        """
        arguments = (params, frozen, buffers, batch, states, keys)
        if not (record and self.possible):
            return self._step(*arguments)
        tensors = _tensors(*arguments)
        shapes = (kind, *[part is None for part in batch[4:]], *[value.shape for value in tensors])
        program = self._programs.get(shapes)
        if program is None:
            if len(self._programs) == _MOST:
                return self._step(*arguments)
            with random.seeded(keys.device, "recording"):
                program = self._record(arguments, tensors)
            if program is None:
                return self._step(*arguments)
            self._programs[shapes] = program
        with torch.no_grad():
            return program(*tensors)

    def refresh(self) -> bool:
        """Drops the recordings if an attribute of a module has changed since they were made; returns whether."""
        changed = bool(self._programs) and _attributes(self._modules) != self._seen
        if changed:
            self._programs = {}
        return changed

    def _record(self, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Callable[..., Gradients] | None:
        """Returns a recording of the step, or None and gives up recording for good."""
        before = (_attributes(self._modules), _python_state())
        self.possible = not any(_hooks(module) for top in self._modules for module in top.modules())
        program = None
        if self.possible:
            try:
                program = _program(self._step, arguments, tensors)
                self.possible = _alike(self._step, program, arguments, tensors)
            except Exception as error:  # whatever a model, its loss or its methods do that cannot be recorded
                _LOG.debug("steps of training are not recorded: %s", error)
                self.possible = False
        self.possible = self.possible and before == (_attributes(self._modules), _python_state())
        self._seen = before[0]
        return program if self.possible else None


def recorder_of(job: Job, model: nn.Module, step: Step) -> Recorder:
    """Returns what records the steps of a job, or only calls them where its loss is a function of the user's own."""
    loss = job.objective.score_loss  # as it was given
    while isinstance(loss, partial):
        loss = loss.func
    if isinstance(loss, nn.Module):
        return Recorder(step, (model, loss))
    known = getattr(loss, "__module__", "").partition(".")[0] == "torch"
    return Recorder(step, (model,), possible=known)


def _program(step: Step, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Callable[..., Gradients]:
    """Returns the recording, a function of the tensors alone."""
    leaves, structure = tree_flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    names: list[list[str]] = []

    def flat(*given: Tensor) -> list[Tensor]:
        for place, value in zip(places, given, strict=True):
            leaves[place] = value
        losses, grads, buffers = step(*tree_unflatten(leaves, structure))
        names[:] = [list(grads), list(buffers)]
        return [losses, *grads.values(), *buffers.values()]

    with torch.enable_grad():
        module = make_fx(flat)(*tensors)
    simplify(module.graph)
    for node in module.graph.nodes:
        node.meta.clear()  # they would keep the values of the recording alive
    module.recompile()
    replay, (of_grads, of_buffers) = module.forward, names

    def program(*given: Tensor) -> Gradients:
        losses, *rest = replay(*given)
        count = len(of_grads)
        return losses, dict(zip(of_grads, rest, strict=False)), dict(zip(of_buffers, rest[count:], strict=True))

    return program


def _alike(one: Step, other: Callable[..., Gradients], arguments: tuple[Any, ...], tensors: list[Tensor]) -> bool:
    """Whether a step and its recording give the same, drawing the same."""
    device = tensors[0].device
    with random.seeded(device, "recording"), torch.enable_grad():
        expected, _ = tree_flatten(one(*arguments))
    with random.seeded(device, "recording"), torch.no_grad():
        given, _ = tree_flatten(other(*tensors))
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in zip(expected, given, strict=True))


def _tensors(
    params: Params, frozen: Params, buffers: Params, batch: Batch, states: list[State], keys: Int64[Tensor, " *k"]
) -> list[Tensor]:
    """The arguments' tensors in the order in which `tree_flatten` has them, in less time than it takes."""
    found = [*params.values(), *frozen.values(), *buffers.values()]
    for part in batch:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, tuple):
            found.extend(part)
    for state in states:
        found.extend(state.values())
    found.append(keys)
    return found


def _hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _attributes(modules: Sequence[nn.Module]) -> Hashable:
    """What of the modules' attributes could change a forward pass, besides parameters and buffers."""
    return tuple(
        (name, _plain(value))
        for top in modules
        for module in top.modules()
        for name, value in vars(module).items()
        if name not in _HANDED_IN
    )


def _plain(value: Any) -> Hashable:
    """A stand-in for a value that is equal as long as the value is."""
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value), tuple(_plain(part) for part in value)
    if isinstance(value, Mapping):
        return tuple((_plain(key), _plain(part)) for key, part in value.items())
    return id(value)


def _python_state() -> Hashable:
    """Where the random generators of Python and of NumPy stand."""
    numbers = np.random.get_state(legacy=True)  # noqa: NPY002  # looked at, not drawn from
    return python_random.getstate(), tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in numbers)
