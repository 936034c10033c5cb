"""A step of training recorded once as a flat program of tensor operations, and replayed.

Of a step of small models most is not arithmetic: module calls, `torch.vmap`'s layers, the building of an autograd
graph. What is recorded (by `torch.fx`'s `make_fx`) is the operations that reach the kernels, those of the backward pass
included; replaying calls them in the same order, but for a few that are rearranged or left out (see `simplify`).

A recording holds what Python did when it was made. It is made only where nothing but the tensors handed in can change
what a step does, as far as that can be seen: see `Recorder`.
"""

import enum
import logging
import random as python_random
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from kinfold import random
from kinfold.engines.base import Job, Precision
from kinfold.engines.simplify import simplify
from kinfold.methods.base import Batch, Params, State
from kinfold.processes import give_back, signals_held

Gradients: TypeAlias = tuple[Float[Tensor, " *k"], Params, Params]
"""(losses, gradients, what has come of the pass: buffers, and the methods' new state) of one task, or of k stacked."""

Step: TypeAlias = Callable[[Params, Params, Params, Batch, list[State], Int64[Tensor, " *k"]], Gradients]
"""From parameters, frozen parameters, buffers, a batch, the methods' states and keys to what an optimizer needs."""

_TOLERANCE: Mapping[Precision, float] = {"float64": 1e-8, "float32": 1e-3, "bf16": 3e-2}

_LARGEST = 1000
"""Elements of the largest container or array whose changes are looked for."""

_LOOKS = {True: 3, False: 100}
"""Periods from which on a recorded look saves more than it costs to make, of models that pool their maxima or not."""

_LOOKS_TOGETHER = 400
"""Tasks times periods from which on a recorded look of all tasks together saves more than it costs to make."""

_CONSTANT = (
    *(type, enum.Enum, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(torch.dtype, torch.device, torch.Size, torch.memory_format),
)
"""Kinds of values that do not change."""

_VALUES = (bool, int, float, complex, str, bytes, type(None))
"""Kinds whose values are compared themselves."""

_CONTAINERS = frozenset({list, tuple, set, frozenset, dict, OrderedDict})
"""Kinds that are alike where they are empty."""

_AS_THEY_ARE = frozenset(_VALUES)
"""The same, for a look at the exact type."""

_HANDED_IN = frozenset({"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"})
"""Attributes of modules that hold parameters and buffers; the last two are those of recurrent layers."""

_LOG = logging.getLogger("kinfold")


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """A step as a flat program of tensor operations.

    Attributes:
        replay: from a step's tensors (see `tensors_of`) to its losses, its gradients, and what else has come of it.
        grads: names of the gradients, in order.
        passed: names of the rest, likewise.
        forms: (shape, strides, type, device) of each gradient, its strides before the program was simplified.
        differentiated: whether it has to be replayed where gradients may be asked for.
    """

    replay: Callable[..., list[Tensor]]
    grads: list[str]
    passed: list[str]
    forms: list[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]]
    differentiated: bool

    def __call__(self, *given: Tensor) -> Gradients:
        """Returns what the step returns, from its tensors."""
        with torch.no_grad():
            losses, *rest = self.run(given)
        return losses, dict(zip(self.grads, rest, strict=False)), self.of_the_pass(rest)

    def run(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Replays the program, where gradients are not asked for."""
        if not self.differentiated:
            return self.replay(*given)
        with torch.enable_grad():
            return self.replay(*given)

    def of_the_pass(self, rest: Sequence[Tensor]) -> Params:
        """Returns what has come of a pass besides gradients by name, from all that a replay gives but the losses."""
        return dict(zip(self.passed, rest[len(self.grads) :], strict=True))

    def unwritten(self) -> Params:
        """Returns tensors like the gradients, with whatever their memory holds."""
        made = (torch.empty_strided(size, strides, dtype=kind, device=on) for size, strides, kind, on in self.forms)
        return dict(zip(self.grads, made, strict=True))


@final
class Recorder:
    """Calls a step, or replays its recording.

    It stays with calling the step where a recording could go wrong: where a forward pass changes an attribute of a
    module, or moves the global random state of Python or NumPy; where an attribute is of a kind whose changes cannot
    be seen, such as a generator or an object of the user's own; where modules have hooks; where the loss is the user's
    own; where the step cannot be recorded at all (control flow or sizes that depend on data); and where the
    recording's numbers are not the step's, on the batch it was made with and on another. Before every segment of
    training, attributes are looked at again (`refresh`), and where one has changed the recordings are dropped. What it
    cannot see is a global variable that a module reads.

    Args:
        step: what is called; it may differentiate, and may use the global random generators of torch.
        watched: the model, and the methods.
        tolerance: how far a recording's results may be from the step's, relative to their norm: sums are taken in
            another order.
        possible: whether to record at all.

    Attributes:
        possible: whether steps are recorded, as far as is known.
        latest: the recording that the last call replayed, or None where it called the step.
    """

    def __init__(self, step: Step, watched: Sequence[object], tolerance: float, possible: bool = True):
        self._step, self._watched, self._tolerance, self.possible = step, watched, tolerance, possible
        self._programs: dict[Hashable, Recording] = {}
        self._seen: Hashable = None
        self.latest: Recording | None = None

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
        self.latest = None
        if not (record and self.possible):
            return self._step(*arguments)
        tensors = tensors_of(*arguments)
        key = _key(tensors, batch, kind)
        program = self._programs.get(key)
        if program is None:
            # An interrupt that comes upon torch while it traces may end the process, and not only the run.
            with signals_held(), random.seeded_everywhere("recording"), random.seeded(keys.device, "recording"):
                program = self._record(arguments)
            if program is None:
                return self._step(*arguments)
            self._programs[key] = program
        self.latest = program
        return program(*tensors)

    def find(self, tensors: Sequence[Tensor], batch: Batch, kind: Hashable) -> Recording | None:
        """Returns the recording that a call would replay, if there is one already.

        Args:
            tensors: of the call's arguments (see `tensors_of`).
            batch: what it would train on.
            kind: as in a call.
        """
        return self._programs.get(_key(tensors, batch, kind))

    def refresh(self) -> bool:
        """Drops the recordings if an attribute of a module has changed since they were made; returns whether."""
        changed = False
        if self._programs:
            try:
                changed = _attributes(self._watched) != self._seen
            except _UnknownError:
                changed, self.possible = True, False
        if changed:
            self._programs = {}
        return changed

    def _record(self, arguments: tuple[Any, ...]) -> Recording | None:
        """Returns a recording of the step, or None and gives up recording for good."""
        program = None
        try:
            # What a first pass makes, such as a table of positions, is there then.
            self._step(*_with_own_rows(arguments))
            before = (_attributes(self._watched), _python_state())
            if not _hooked(self._watched):
                program = _program(self._step, _with_own_rows(arguments))
                others = _with_other_rows(arguments)
                alike = all(_alike(self._step, program, given, self._tolerance) for given in (arguments, others))
                self._seen = before[0]
                if not alike or before != (_attributes(self._watched), _python_state()):
                    program = None
        except torch.OutOfMemoryError:  # says nothing of whether the step can be recorded
            raise
        except Exception as error:  # whatever a model, its loss or its methods do that cannot be recorded
            _LOG.debug("steps of training are not recorded: %s", error)
            program = None
        self.possible = program is not None
        give_back()  # the passes that were compared took more than one does
        return program


def recorder_of(job: Job, model: nn.Module, step: Step) -> Recorder:
    """Returns what records the steps of a job, or only calls them where its loss is the user's own."""
    loss = job.objective.score_loss  # as it was given
    while isinstance(loss, partial):
        loss = loss.func
    home = type(loss).__module__ if isinstance(loss, nn.Module) else getattr(loss, "__module__", "")
    return Recorder(step, (model, *job.methods), _TOLERANCE[job.precision], home.partition(".")[0] == "torch")


def looker_of(job: Job, model: nn.Module, look: Step) -> Recorder:
    """Returns what records passes that only look, where the periods to come repay it, on a CPU.

    Models that pool their maxima are other and faster operations then; of others little more than the cost of Python is
    saved. Other tasks change nothing, or a task's scores would hang on them.
    """
    pools = any(isinstance(layer, nn.MaxPool2d) for layer in model.modules())
    pays = job.device.type == "cpu" and job.periods >= _LOOKS[pools]
    # A replay is under the autocast of the looks, and would cast once more what the model keeps in float32.
    return Recorder(look, (model,), _TOLERANCE[job.precision], pays and job.precision != "bf16")


def joint_looker_of(job: Job, model: nn.Module, look: Step, pays: bool) -> Recorder:
    """Returns what records a pass in which all tasks look together, where that is faster and the run is long enough.

    Args:
        job: of these tasks.
        model: their common structure.
        look: a pass of all tasks.
        pays: whether it is faster, but for its recording.
    """
    long = job.tasks > 1 and job.tasks * job.periods >= _LOOKS_TOGETHER
    return Recorder(look, (model,), _TOLERANCE[job.precision], pays and long and job.precision != "bf16")


def _key(tensors: Sequence[Tensor], batch: Batch, kind: Hashable) -> Hashable:
    """What a step's recording is kept by: the forms of its tensors."""
    layout = tensors[0].stride()  # of rows side by side, or copied from here and there
    return (kind, layout, *[part is None for part in batch[4:]], *[value.shape for value in tensors])


def _program(step: Step, arguments: tuple[Any, ...]) -> Recording:
    """Returns the recording, a function of the tensors alone."""
    tensors = tensors_of(*arguments)
    leaves, structure = tree_flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    names: list[list[str]] = []

    def flat(*given: Tensor) -> list[Tensor]:
        for place, value in zip(places, given, strict=True):
            leaves[place] = value
        losses, grads, buffers = step(*tree_unflatten(leaves, structure))
        names[:] = [list(grads), list(buffers)]
        return [losses, *grads.values(), *buffers.values()]

    # The forms of tensors are noted in a mode that `make_fx` else makes for each, a third of its time.
    with torch.enable_grad(), tracing(TracingContext(FakeTensorMode())):
        module = make_fx(flat)(*tensors)
    if any(map(_sized_by_data, module.graph.nodes)):
        raise ValueError("a tensor's size depends on data")
    simplify(module.graph)
    of_grads, of_the_pass = names
    (results,) = next(node for node in reversed(module.graph.nodes) if node.op == "output").args
    values = [node.meta["val"] for node in results[1 : 1 + len(of_grads)]]
    forms = [(value.shape, value.stride(), value.dtype, value.device) for value in values]
    differentiated = _keeps_where_differentiated(module.graph)
    for node in module.graph.nodes:
        node.meta.clear()  # they would keep the values of the recording alive
    module.recompile()
    return Recording(module.forward, of_grads, of_the_pass, forms, differentiated)


def _keeps_where_differentiated(graph: fx.Graph) -> bool:
    """Whether an operation keeps what its backward pass wants only where gradients may be asked for: oneDNN's LSTM."""
    return any(node.target is torch.ops.aten.mkldnn_rnn_layer.default for node in graph.nodes)


def _sized_by_data(node: fx.Node) -> bool:
    """Whether the size of an operation's result follows from numbers, of which a recording has those of one batch."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.dynamic_output_shape not in node.target.tags:
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    masks = [part for part in node.args[1] if isinstance(part, fx.Node)] if isinstance(node.args[1], Sequence) else []
    return any(mask.meta["val"].dtype in (torch.bool, torch.uint8) for mask in masks)


def _with_own_rows(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with a copy of the batch's inputs: a model may write to what it is given."""
    *before, batch, states, keys = arguments
    return (*before, batch._replace(x=tree_map(torch.clone, batch.x)), states, keys)


def _with_other_rows(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with half of each batch's rows in the place of the others."""
    *before, batch, states, keys = arguments
    axis = keys.ndim
    count = batch.y.shape[axis]
    order = torch.arange(count, device=keys.device) // 2

    def changed(part: Any) -> Any:
        rows = isinstance(part, Tensor) and part.ndim > axis and part.shape[axis] == count
        return part.index_select(axis, order) if rows else part

    return (*before, Batch(*(tree_map(changed, part) for part in batch)), states, keys)


def _alike(one: Step, other: Recording, arguments: tuple[Any, ...], tolerance: float) -> bool:
    """Whether a step and its recording give the same but for rounding, drawing the same."""
    device = arguments[-1].device
    with random.seeded(device, "recording"), torch.enable_grad():
        expected, _ = tree_flatten(one(*_with_own_rows(arguments)))
    with random.seeded(device, "recording"):
        given, _ = tree_flatten(other(*tensors_of(*_with_own_rows(arguments))))
    return all(_close(a, b, tolerance) for a, b in zip(expected, given, strict=True))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    apart, size = _norm(a - b), _norm(a)
    if not bool(apart.isfinite() & size.isfinite()):  # looked for only here, in copies
        if not torch.equal(a.isfinite(), b.isfinite()):
            return False
        apart, size = (_norm(value.double().nan_to_num(0.0, 0.0, 0.0)) for value in (a - b, a))
    return bool(apart <= tolerance * size + tolerance * 1e-3)


def _norm(value: Tensor) -> Tensor:
    """In float64; not of a copy in it, which of the gradients was the most memory that a run took."""
    norm: Tensor = torch.linalg.vector_norm(value if value.is_floating_point() else value.double(), dtype=torch.float64)
    return norm


def tensors_of(
    params: Params, frozen: Params, buffers: Params, batch: Batch, states: list[State], keys: Int64[Tensor, " *k"]
) -> list[Tensor]:
    """The arguments' tensors in the order in which `tree_flatten` has them, in less time than it takes."""
    found = [*params.values(), *frozen.values(), *buffers.values(), *tensors_in(batch)]
    for state in states:
        found.extend(state.values())
    found.append(keys)
    return found


def tensors_in(batch: Batch) -> list[Tensor]:
    """A batch's tensors, in the order in which `tensors_of` has them."""
    found: list[Tensor] = []
    for part in batch:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, tuple):
            found.extend(part)
    return found


def _modules_of(watched: Sequence[object]) -> Iterator[nn.Module]:
    for one in watched:
        if isinstance(one, nn.Module):
            yield from one.modules()


def _hooked(watched: Sequence[object]) -> bool:
    return any(
        (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
        for module in _modules_of(watched)
    )


class _UnknownError(Exception):
    """An attribute of which it cannot be seen whether it has changed."""


def _attributes(watched: Sequence[object]) -> Hashable:
    """What could change a step besides the tensors handed in.

    Raises:
        _UnknownError: an attribute is of a kind whose changes cannot be seen.
    """
    methods = (one for one in watched if not isinstance(one, nn.Module))
    return tuple(
        (name, _plain(value))
        for one in (*_modules_of(watched), *methods)
        for name, value in getattr(one, "__dict__", {}).items()
        if name not in _HANDED_IN
    )


def _plain(value: Any) -> Hashable:
    """A stand-in for a value that is equal as long as the value is."""
    kind = type(value)
    if kind in _AS_THEY_ARE:  # most are, or are empty: a module has a dozen of containers for hooks
        same: Hashable = value
        return same
    if kind in _CONTAINERS and not value:
        return kind, ()
    if isinstance(value, (*_VALUES, *_CONSTANT)):
        return value if isinstance(value, Hashable) else id(value)
    if isinstance(value, (Tensor, nn.Module)):  # a module is watched by itself
        return id(value), value._version if isinstance(value, Tensor) else 0
    if isinstance(value, np.ndarray) and value.size <= _LARGEST:
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, (list, tuple, set, frozenset, Mapping)) and len(value) <= _LARGEST:
        parts = value.items() if isinstance(value, Mapping) else value
        return type(value), tuple(_plain(part) for part in parts)
    if isinstance(value, partial):
        return _plain(value.func), _plain(value.args), _plain(value.keywords)
    raise _UnknownError(f"an attribute is a {type(value).__name__}")


def _python_state() -> Hashable:
    """Where the random generators of Python and of NumPy stand."""
    numbers = np.random.get_state(legacy=True)  # noqa: NPY002  # looked at, not drawn from
    return python_random.getstate(), tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in numbers)
