"""The physical limit of a step: its matrix products, and the bytes that must move anyway, at this machine's rates.

Products: of every linear, convolutional and recurrent layer the forward product, the gradient with respect to the
weight and, but for the first layer, with respect to the input; each in the fastest of several forms. These are a loop
over the models and their stack, by PyTorch's calls, where its library uses half of a processor's vectors by oneDNN,
and where it is slow to sum many terms in parts; and, for convolutions, PyTorch's own calls, by all threads together;
and the same by one thread for its share of the models, as if threads did not hinder each other, which is what processes
come close to. Operands, and results where the form can, lie in memory that is there already. Copies: what the optimizer
reads and writes, and the batch. What a network does between its layers counts nothing.

Legend: T tasks, B batch, [m, k] @ [k, n] the product of one model.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

import torch
from contestants import Contestant
from torch import Tensor, nn
from work import BATCH, Work

from kinfold.engines import products

Call: TypeAlias = Callable[[], object]

_LARGEST = 2**25  # bytes of one operand; where the stack is larger, some tasks share a buffer
_TRIES, _LEAST_SECONDS = 3, 0.02


@dataclass(frozen=True)
class Product:
    """`times` products [m, k] @ [k, n] of one model in one step.

    `left` and `right` say whether an operand lies transposed in memory.
    """

    m: int
    k: int
    n: int
    times: int = 1
    left: bool = False
    right: bool = False


@dataclass(frozen=True)
class Convolution:
    """One convolution of one model in one step, of a batch x [B, C, h, w]; `first` needs no gradient of x."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int
    padding: int
    out: tuple[int, ...]
    first: bool

    def products(self) -> list[Product]:
        """Returns its products once x is unfolded into columns (im2col)."""
        maps, columns = self.weight[0], self.weight[1] * self.weight[2] * self.weight[3]
        pixels = self.out[0] * self.out[2] * self.out[3]
        forward = Product(maps, columns, pixels)
        gradients = [Product(maps, pixels, columns, right=True), Product(columns, maps, pixels, left=True)]
        return [forward, *gradients[: 1 if self.first else 2]]


def layers(model: nn.Module, x: Tensor) -> list[Product | Convolution]:
    """Returns what one model multiplies in one training step on a batch x, layer by layer."""
    found: list[Product | Convolution] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        x, first = given[0], not given[0].requires_grad
        if isinstance(layer, nn.Linear):
            found.extend(_linear(x.numel() // x.shape[-1], layer.in_features, layer.out_features, first))
        elif isinstance(layer, nn.Conv2d):
            shapes = (tuple(x.shape), tuple(layer.weight.shape))
            stride, padding = layer.stride[0], int(layer.padding[0])
            found.append(Convolution(*shapes, stride, padding, tuple(output.shape), first))
        elif isinstance(layer, nn.LSTM):
            found.extend(_lstm(*x.shape, layer.hidden_size, first))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def _linear(rows: int, inputs: int, outputs: int, first: bool) -> list[Product]:
    forward = Product(rows, inputs, outputs, right=True)
    gradients = [Product(outputs, rows, inputs, left=True), Product(rows, outputs, inputs)]
    return [forward, *gradients[: 1 if first else 2]]


def _lstm(B: int, steps: int, inputs: int, width: int, first: bool) -> list[Product]:
    """All steps' inputs at once; the state step by step, but for its weight's gradient."""
    gates = 4 * width
    return [
        *_linear(B * steps, inputs, gates, first),
        Product(B, width, gates, times=steps, right=True),
        Product(B, gates, width, times=steps),
        Product(gates, B * steps, width, left=True),
    ]


@final
class Limit(Contestant):
    """Does the products and copies of a step, and nothing else.

    Args:
        work: the work whose limit it is.
        shared_out: whether one thread's share of the models may stand for all threads' work.
    """

    def __init__(self, work: Work, shared_out: bool = True):
        self._device = work.job.device
        self._threads = torch.get_num_threads() if work.job.device.type == "cpu" else 1
        dtype = torch.bfloat16 if work.job.precision == "bf16" else torch.float32
        make = partial(torch.ones, device=self._device, dtype=dtype)
        model = work.starts()[0]
        size = work.tasks * sum(p.numel() for p in model.parameters())
        self._together: list[Call] = []
        self._alone: list[Call] = []
        share = -(-work.tasks // self._threads)
        for layer in layers(model, work.inputs[:BATCH]):
            of_share = _forms(layer, share, make) if shared_out and self._threads > 1 else iter(())
            self._take_fastest(_forms(layer, work.tasks, make), of_share)
        copies = [
            _optimizer_copies(torch.ones(3, size, device=self._device)),
            _batch_copy(torch.ones(2, work.tasks * BATCH, *work.inputs.shape[1:], device=self._device)),
        ]
        for copy in copies:  # small ones are done before a second thread has woken up
            self._take_fastest(iter([copy]), iter([copy]))

    def run(self, steps: int) -> None:
        with torch.no_grad():
            self._run(self._together, steps)
            with _threads(1):
                self._run(self._alone, steps)

    def parameters(self) -> dict[str, Tensor]:
        return {}

    def _run(self, calls: list[Call], steps: int) -> None:
        for _ in range(steps):
            for call in calls:
                call()
        self._wait()

    def _take_fastest(self, together: Iterator[Call], alone: Iterator[Call]) -> None:
        """Forms are made, timed and let go one by one, since all at once they may not fit in memory."""
        best, least = self._fastest(together)
        with _threads(1):
            best_alone, least_alone = self._fastest(alone)
        if best_alone is not None and least_alone < least:
            self._alone.append(best_alone)
        elif best is not None:
            self._together.append(best)

    def _fastest(self, forms: Iterator[Call]) -> tuple[Call | None, float]:
        best, least = None, float("inf")
        for form in forms:
            seconds = self._seconds(form)
            if seconds < least:
                best, least = form, seconds
        return best, least

    def _seconds(self, form: Call) -> float:
        """The least mean time of a call over some tries."""
        tries = []
        with torch.no_grad():
            form()
            for _ in range(_TRIES):
                calls, began = 0, time.perf_counter()
                while (spent := time.perf_counter() - began) < _LEAST_SECONDS:
                    form()
                    self._wait()
                    calls += 1
                tries.append(spent / calls)
        return min(tries)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def _forms(layer: Product | Convolution, T: int, make: Callable[..., Tensor]) -> Iterator[Call]:
    """Yields the ways of doing a layer's products for T models."""
    if isinstance(layer, Product):
        yield from _product_forms(layer, T, make)
        return
    for i in range(4):  # each product by the same kind of form
        yield partial(_in_turn, [_last_up_to(i, _product_forms(product, T, make)) for product in layer.products()])
    for layout in (torch.contiguous_format, torch.channels_last):
        yield partial(_in_turn, [_convolution_form(layer, make, layout)] * T)


def _product_forms(product: Product, T: int, make: Callable[..., Tensor]) -> Iterator[Call]:
    a, b, out = (product.m, product.k), (product.k, product.n), (product.m, product.n)
    bytes_of_one = 4 * max(x * y for x, y in (a, b, out))
    held = max(1, min(T, _LARGEST // bytes_of_one))
    left = make(held, *a[::-1]).mT if product.left else make(held, *a)
    right = make(held, *b[::-1]).mT if product.right else make(held, *b)
    result = make(held, *out)

    def loop() -> None:
        for _ in range(product.times):
            for t in range(T):
                torch.mm(left[t % held], right[t % held], out=result[t % held])

    def stack() -> None:
        for _ in range(product.times):
            torch.bmm(left, right, out=result)

    def in_parts(first: Tensor, second: Tensor) -> None:
        for _ in range(product.times):
            products.bmm_in_parts(first, second)

    forms = [loop, stack] if held == T else [loop]
    yield from forms
    if result.device.type == "cpu" and products.halves_vectors():
        yield from (partial(_by_onednn, form) for form in forms)
    for first, second in ((left, right), (right.mT, left.mT)):
        plain = result.device.type == "cpu" and result.dtype == torch.float32 and second.mT.is_contiguous()
        if plain and held == T and products.is_faster_in_parts(first.shape, second.shape):
            yield partial(in_parts, first, second)


def _by_onednn(form: Call) -> None:
    """Multiplies float32 by oneDNN, which on some processors is twice as fast as the library behind `torch.mm`."""
    setting: Any = torch.backends.mkldnn.matmul
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    form()
    setting.fp32_precision = before


def _last_up_to(i: int, forms: Iterator[Call]) -> Call:
    """Returns the i-th form, or the last where there are fewer."""
    return list(forms)[: i + 1][-1]


def _convolution_form(layer: Convolution, make: Callable[..., Tensor], layout: torch.memory_format) -> Call:
    x, weight, grad = (make(*shape).to(memory_format=layout) for shape in (layer.x, layer.weight, layer.out))
    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    wanted = [not layer.first, True, False]

    def call() -> None:
        nn.functional.conv2d(x, weight, None, stride, padding)
        torch.ops.aten.convolution_backward(grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, wanted)

    return call


def _optimizer_copies(values: Tensor) -> Call:
    """Reads parameter, gradient and momentum, and writes parameter and momentum: five passes over memory."""
    param, grad, momentum = values
    half = len(param) // 2

    def copies() -> None:
        momentum.copy_(grad)
        param.copy_(momentum)
        param[:half].copy_(grad[:half])

    return copies


def _batch_copy(rows: Tensor) -> Call:
    return lambda: rows[1].copy_(rows[0])


def _in_turn(forms: list[Call]) -> None:
    for form in forms:
        form()
