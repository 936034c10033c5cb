"""Methods in an ordinary PyTorch loop: one module, its optimizer, its rows, and the same stages as in a run.

Legend: B batch, C classes or outputs, N rows, m some of them.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from kinfold import random
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Context, Method, Model, Params, Rows
from kinfold.methods.chain import Chain, Network, buffers_of, check_state, news_of, step_by
from kinfold.methods.gradients import by_autograd
from kinfold.methods.model import forward


@final
class Trainer:
    """Trains one module with a chain of methods; the loop, the optimizer and its schedule are the caller's.

    Args:
        module: is trained in place.
        optimizer: of its parameters.
        methods: in order.
        x: all training rows, N.
        y: [N] class numbers, or float values.
        batch_size: B.
        periods: that are planned, for methods that plan ahead.
        row_loss: from (outputs [B, C], targets) to the rows' losses [B]; default cross-entropy, or squared error. It
            must take probabilities [B, C] where methods soften targets.
        seed: of everything drawn.

    Raises:
        InputError: the methods do not go together, or the optimizer steps nothing of the module.

    Example:
        >>> from kinfold.methods import LabelSmoothing
        >>> module = nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> x, y = torch.ones(8, 2), torch.arange(8) % 3
        >>> trainer = Trainer(module, optimizer, [LabelSmoothing(0.1)], x, y, batch_size=4, periods=2)
        >>> for period in range(2):
        ...     losses = [trainer.step(rows) for rows in trainer.batches()]
        ...     trainer.end_period(metric=0.5, loss=float(losses[-1]))
        >>> trainer.export()(x).shape
        torch.Size([8, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        methods: Iterable[Method],
        x: Rows,
        y: Shaped[Tensor, "N *C"],
        *,
        batch_size: int = 64,
        periods: int = 1,
        row_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
    ):
        self.module, self.optimizer, self.chain = module, optimizer, Chain(methods)
        self._x, self._y, self._size, self._seed = x, y, min(batch_size, len(y)), seed
        self._classes = None if y.is_floating_point() else int(y.max()) + 1
        default = _squared_error if y.is_floating_point() else _cross_entropy
        self._row_loss = default if row_loss is None else row_loss
        self._network = Network(module, partial(forward, module))
        self._params: Params = {name: value for name, value in module.named_parameters() if value.requires_grad}
        stepped = {id(value) for group in optimizer.param_groups for value in group["params"]}
        if not stepped & {id(value) for value in self._params.values()}:
            raise InputError("optimizer: it steps no parameter of the module; make it of module.parameters().")
        self._period, self._steps = 1, 0
        self._key = random.key(seed, "method", 0).to(y.device)
        rows = torch.arange(len(y), device=y.device)
        steps = max(1, len(y) // batch_size)
        self.states = []
        for i, method in enumerate(self.chain.methods):
            given = (rows, len(y), self._read, self._inner, self._classes, periods, steps, batch_size)
            context = Context(Model.of(module), *given, random.key(seed, "start method", 0, i).to(y.device))
            self.states.append(check_state(method, method.start(self._now(), context)))

    def batches(self) -> Iterator[Int64[Tensor, " B"]]:
        """Yields the rows of each batch of this period; the last short one is dropped where there are others."""
        order = random.permutation(random.key(self._seed, "order", self._period), len(self._y))
        for i, method in self.chain.at("draw"):
            state = {name: value.cpu() for name, value in self.states[i].items()}
            order = method.draw(order, state, random.key(self._seed, "draw", 0, self._period, i))
        size = min(self._size, len(order))
        for step in range(max(1, len(order) // size)):
            yield order[step * size : (step + 1) * size].to(self._y.device)

    def step(self, rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Takes one step on some rows; returns the loss before it."""
        self.module.train()
        tensors = self._params, self._frozen(), dict(self.module.named_buffers())
        key = random.fold_in(random.fold_in(self._key, self._period), self._steps)
        value, grads, passed = self.chain.value_and_grad(
            self._network, self._inner, by_autograd, *tensors, self._read(rows), self.states, key
        )
        self.states = [state | news_of(passed, i) for i, state in enumerate(self.states)]
        self._write(tensors[2], buffers_of(passed))
        for i, method in self.chain.at("before_step"):
            grads, self.states[i] = method.before_step(self._now(), grads, self.states[i])
        before = self._now()
        for name, parameter in self._params.items():
            parameter.grad = grads.get(name)
        step_by(self.optimizer, float(self.chain.rate(self.states)))
        for i, method in self.chain.at("update"):
            params, self.states[i] = method.update(before, self._now(), self.states[i])
            self._write(self._params, params)
        for i, method in self.chain.at("after_step"):
            params, self.states[i] = method.after_step(self._now(), self.states[i])
            self._write(self._params, params)
        self._steps += 1
        return value

    def end_period(self, metric: float | int, loss: float | int) -> None:
        """Ends a period, of which the caller has scored `scored()` on rows of its own."""
        if self.chain.has("row_losses"):
            with torch.no_grad():
                x = self._x if isinstance(self._x, tuple) else (self._x,)
                losses = self._row_loss(self.scored()(*x), self._y)
            rows = torch.arange(len(self._y), device=self._y.device)
            for i, method in self.chain.at("row_losses"):
                self.states[i] = method.row_losses(rows, losses, self.states[i])
        score = torch.tensor([metric, loss], dtype=next(iter(self._params.values())).dtype, device=self._y.device)
        for i, method in self.chain.at("period_end"):
            params, self.states[i] = method.period_end(self._now(), self.states[i], score)
            self._write(self._params, params)
        self._period, self._steps = self._period + 1, 0

    def scored(self) -> nn.Module:
        """Returns a copy of the module as it is to be scored, in eval mode."""
        return self._copy(self.chain.evaluation(self._now(), self.states))

    def export(self) -> nn.Module:
        """Returns the module to be handed on, which may be a smaller one, in eval mode."""
        params = self.chain.evaluation(self._now(), self.states)
        for i, method in self.chain.at("export"):
            params = method.export(params, self.states[i])
        module = self._copy(params)
        for i, method in self.chain.at("rebuild"):
            module = method.rebuild(module, self.states[i])
        return module.eval()

    def _copy(self, params: Params) -> nn.Module:
        module = copy.deepcopy(self.module).eval()
        self._write(module.state_dict(keep_vars=True), params)
        return module

    def _read(self, rows: Int64[Tensor, " m"]) -> Batch:
        x = tuple(part[rows] for part in self._x) if isinstance(self._x, tuple) else self._x[rows]
        return Batch(x, self._y[rows], rows, self._classes)

    def _inner(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        return self._row_loss(model(batch.x), batch.y).mean()

    def _now(self) -> Params:
        return {name: value.detach().clone() for name, value in self._params.items()}

    def _frozen(self) -> Params:
        return {name: value for name, value in self.module.named_parameters() if not value.requires_grad}

    @staticmethod
    def _write(mine: Params, new: Params) -> None:
        with torch.no_grad():
            for name, value in new.items():
                mine[name].copy_(value)


def _cross_entropy(outputs: Float[Tensor, "B C"], y: Shaped[Tensor, "B *C"]) -> Float[Tensor, " B"]:
    return F.cross_entropy(outputs, y.to(outputs.dtype) if y.is_floating_point() else y, reduction="none")


def _squared_error(outputs: Float[Tensor, "B C"], y: Float[Tensor, "B *C"]) -> Float[Tensor, " B"]:
    return (outputs - y.reshape(outputs.shape)).square().mean(1)
