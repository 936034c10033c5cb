"""Which operations of a recorded step are faster in Kinfold's forms than in PyTorch's, and are the right ones taken?

    python benchmarks/speed/forms.py [--alternations 7] [--block-seconds 0.02] [--out FILE.md]

A recorded step has forms of its own for some operations on a CPU, for shapes within limits that were set by such
measurements. Where limits are right, what is taken has a ratio below one, and what is not has none far below. Operands
lie in memory that is there already; results are new memory, as in a step.

Legend: T tasks, B batch, C channels or classes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import numpy as np
import torch
from steps_table import spread
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

from kinfold import random
from kinfold.comparing.table import markdown
from kinfold.engines import convolving, few_classes, pooling, products, simplify_classes
from kinfold.engines.simplify import simplify
from kinfold.files import write_text
from kinfold.processes import using_threads

Call: TypeAlias = Callable[[], object]
B = 64
ABOUT = """A recorded step takes some operations in forms of its own, within limits of shapes. The form and what a step
would do otherwise take turns here, whether the form is taken or not. *Otherwise* is PyTorch's own operation, for a
convolution of data with its pooling one of the faster pooling, and for the last layer all that a recorded step has, but
for the turning. Times are microseconds; those of both ways are of a forward and a backward pass."""


@dataclass(frozen=True)
class Pair:
    """One operation in two forms.

    Attributes:
        kind: of operation.
        shape: of it.
        otherwise: what a step would do without.
        form: the one of Kinfold's own.
        taken: whether a recorded step takes it.
    """

    kind: str
    shape: str
    otherwise: Call
    form: Call
    taken: bool


def pairs() -> Iterator[Pair]:
    """Yields all of them, for the present number of threads."""
    if products.halves_vectors():  # on others oneDNN may round
        for T in (1, 2, 4, 8, 16, 64):
            for k, n in ((64, 128), (128, 128), (128, 10), (10, 128)):
                yield _product(T, B, k, n)
        for m, k, n in ((B, 784, 128), (B, 256, 120), (B, 784, 512), (128, B, 784), (1000, 64, 128), (1000, 128, 10)):
            yield _product(None, m, k, n)
    if products.fills_vectors():
        for T, m, k, n in (
            *((4, 10, 128, 64), (8, 10, 128, 64), (64, 10, 128, 64), (64, 10, 64, 64), (8, 10, 256, 64)),
            *((8, 64, 784, 128), (8, 32, 784, 128), (8, 64, 784, 64), (8, 64, 784, 256), (8, 32, 128, 100)),
            *((8, 128, 784, 128), (64, 16, 64, 32)),
        ):
            yield _product_in_parts(T, m, k, n)
    for rows, classes in (
        *((64, 10), (256, 2), (256, 3), (256, 5), (256, 10), (512, 10), (512, 15), (512, 16)),
        *((4096, 2), (4096, 3), (4096, 5), (4096, 10)),
    ):
        yield _softmax(rows, classes)
    for T in (4, 8, 64):
        yield _last_layer(T, 2)
        yield _last_layer(T, 10)
    for channels, side in ((6, 28), (16, 10), (64, 16)):
        yield _pooling(channels, side)
    for inputs, outputs, kernel, side in (
        *((1, 6, 5, 28), (1, 32, 3, 28), (3, 6, 5, 32), (3, 16, 3, 32), (3, 32, 3, 32)),
        *((4, 6, 5, 32), (4, 16, 3, 32), (8, 16, 3, 32)),
    ):
        yield _pooled_convolution(inputs, outputs, kernel, side)
    for images, inputs, outputs, kernel in (
        *((B, 6, 16, 5), (B, 8, 16, 5), (B, 16, 32, 5), (B, 6, 16, 3)),
        *((128, 6, 16, 5), (256, 6, 16, 5), (512, 6, 16, 5), (128, 6, 16, 3)),
    ):
        yield _weight_gradient(images, inputs, outputs, kernel)


def _product(T: int | None, m: int, k: int, n: int) -> Pair:
    stack = () if T is None else (T,)
    first, second = draw(*stack, m, k), draw(*stack, n, k).mT
    otherwise, form = (torch.mm, products.mm) if T is None else (torch.bmm, products.bmm)
    name = f"{'' if T is None else f'{T} × '}[{m}, {k}] [{k}, {n}]"
    taken = products.is_faster(first.shape, second.shape)
    return Pair("product by oneDNN", name, partial(otherwise, first, second), partial(form, first, second), taken)


def _product_in_parts(T: int, m: int, k: int, n: int) -> Pair:
    first, second = draw(T, m, k), draw(T, n, k).mT
    name, taken = f"{T} × [{m}, {k}] [{k}, {n}]", products.is_faster_in_parts(first.shape, second.shape)
    forms = (partial(multiply, first, second) for multiply in (torch.bmm, products.bmm_in_parts))
    return Pair("product in parts", name, *forms, taken)


def _softmax(rows: int, classes: int) -> Pair:
    x, grad = draw(rows, classes), draw(rows, classes)

    def both(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return lambda: backward(grad, forward(x))

    otherwise = both(
        lambda x: torch._log_softmax(x, 1, False),
        lambda grad, logs: torch._log_softmax_backward_data(grad, logs, 1, logs.dtype),
    )
    form = both(few_classes.log_softmax, few_classes.log_softmax_backward)
    recorded = simplified(lambda x: torch.log_softmax(x, 1), x)
    return Pair(
        "softmax by rows, both ways",
        f"[{rows}, {classes}]",
        otherwise,
        form,
        few_classes.log_softmax in calls(recorded),
    )


def _last_layer(T: int, classes: int) -> Pair:
    """All that a step does from the last layer's input to its gradients, with the product turned around, and not."""

    def loss(weight: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        return -torch.log_softmax(hidden @ weight.mT, 1).gather(1, y[:, None]).mean()

    def step(weight: Tensor, hidden: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        leaves = [weight.detach().requires_grad_(), hidden.detach().requires_grad_()]
        return torch.autograd.grad(torch.vmap(loss)(*leaves, y).sum(), leaves)

    y = torch.arange(T * B).view(T, B) % classes
    given = draw(T, classes, 128), draw(T, B, 128), y
    form = simplified(step, *given)
    with mock.patch.object(simplify_classes, "_can_be_turned", return_value=False):
        otherwise = simplified(step, *given)
    turned = any(node.target is torch._log_softmax and node.args[1] == 1 for node in form.graph.nodes)
    return Pair(
        "last layer and loss",
        f"{T} × [{B}, 128] [128, {classes}]",
        partial(otherwise, *given),
        partial(form, *given),
        turned,
    )


def _pooling(channels: int, side: int) -> Pair:
    x, grad = draw(B, channels, side, side), draw(B, channels, side // 2, side // 2)

    def otherwise() -> Tensor:
        _, index = nn.functional.max_pool2d(x, 2, return_indices=True)
        how = [2, 2], [2, 2], [0, 0], [1, 1], False
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *how, index)

    def form() -> Tensor:
        return pooling.max_pool_backward(grad, x, pooling.max_pool(x)[1])

    taken = pooling.max_pool in calls(simplified(lambda x: nn.functional.max_pool2d(x, 2), x))
    return Pair("2×2 max pooling, both ways", f"[{B}, {channels}, {side}, {side}]", otherwise, form, taken)


def _pooled_convolution(inputs: int, outputs: int, kernel: int, side: int) -> Pair:
    """Of images that are data, against a convolution with the faster pooling after it."""
    x, weight = draw(B, inputs, side, side), draw(outputs, inputs, kernel, kernel)
    grad, half = draw(B, outputs, side // 2, side // 2), kernel // 2
    how = [1, 1], [half, half], [1, 1], False, [0, 0], 1

    def otherwise() -> object:
        y = torch.convolution(x, weight, None, *how)
        _, picked = pooling.max_pool(y)
        of_y = pooling.max_pool_backward(grad, y, picked)
        return torch.ops.aten.convolution_backward(of_y, x, weight, None, *how, [False, True, False])

    def form() -> object:
        _, candidates, picked = convolving.convolve_and_pool(x, weight, None, [half, half])
        return convolving.convolve_and_pool_backward(grad, x, weight, candidates, picked, [half, half])

    recorded = simplified(
        lambda x, weight: nn.functional.max_pool2d(nn.functional.conv2d(x, weight, padding=half), 2), x, weight
    )
    name = f"[{B}, {inputs}, {side}, {side}], {outputs} of {kernel}×{kernel}"
    return Pair(
        "convolution of data and pooling, both ways",
        name,
        otherwise,
        form,
        convolving.convolve_and_pool in calls(recorded),
    )


def _weight_gradient(images: int, inputs: int, outputs: int, kernel: int) -> Pair:
    side = 14
    x, weight = draw(images, inputs, side, side), draw(outputs, inputs, kernel, kernel)
    grad = draw(images, outputs, side + 1 - kernel, side + 1 - kernel)
    how = [1, 1], [0, 0], [1, 1], False, [0, 0], 1

    def otherwise(grad: Tensor, x: Tensor, weight: Tensor) -> object:
        return torch.ops.aten.convolution_backward(grad, x, weight, [outputs], *how, [True, True, True])

    taken = convolving.convolve_backward in calls(simplified(otherwise, grad, x, weight))
    name = f"[{images}, {inputs}, {side}, {side}], {outputs} of {kernel}×{kernel}"
    form = partial(convolving.convolve_backward, grad, x, weight)
    return Pair("gradients of a convolution", name, partial(otherwise, grad, x, weight), form, taken)


def draw(*shape: int) -> Tensor:
    """Returns normal numbers, the same for the same shape."""
    return torch.randn(shape, generator=random.generator(0, "forms", *shape))


def simplified(function: Callable[..., object], *given: Tensor) -> GraphModule:
    """Returns a function as a recorded step would have it."""
    module = make_fx(function)(*given)
    simplify(module.graph)
    module.recompile()
    return module


def calls(module: GraphModule) -> set[object]:
    """Returns what a recording calls."""
    return {node.target for node in module.graph.nodes}


def measured(pair: Pair, alternations: int, block_seconds: float) -> tuple[list[float], list[float]]:
    """Returns the seconds of a call without the form and with it, a number for each turn."""
    forms = (pair.otherwise, pair.form)
    with torch.no_grad():
        counts = [
            max(1, round(block_seconds / _seconds(form, max(1, round(1e-3 / _seconds(form, 3)))))) for form in forms
        ]
        turns = [
            [_seconds(form, count) for form, count in zip(forms, counts, strict=True)] for _ in range(alternations)
        ]
    return [otherwise for otherwise, _ in turns], [form for _, form in turns]


def _seconds(form: Call, count: int) -> float:
    """Of a call."""
    began = time.perf_counter()
    for _ in range(count):
        form()
    return (time.perf_counter() - began) / count


def table(alternations: int, block_seconds: float) -> str:
    """Measures all pairs, and returns the page."""
    lines = []
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        with using_threads(threads):
            for pair in pairs():
                otherwise, form = measured(pair, alternations, block_seconds)
                ratio = spread(np.array(form) / np.array(otherwise))
                times = [f"{1e6 * float(np.median(seconds)):.4g}" for seconds in (otherwise, form)]
                lines.append([pair.kind, pair.shape, str(threads), *times, ratio, "yes" if pair.taken else "no"])
                print(*lines[-1], sep=" | ", file=sys.stderr, flush=True)
    heads = ["operation", "shape", "threads", "otherwise, µs", "the form, µs", "ratio", "taken"]
    head = "# Forms of single operations on a CPU"
    about = f"Medians over {alternations} alternations; of the ratio with quartiles in brackets. {ABOUT}"
    return f"{head}\n\n{provenance()}\n\n{about}\n\n{markdown(lines, heads)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--block-seconds", type=float, default=0.02, help="how long a form is called in one turn")
    parser.add_argument("--out", type=Path, help="where to write the table; default: print it")
    given = parser.parse_args()
    page = table(given.alternations, given.block_seconds)
    if given.out is None:
        print(page)
    else:
        write_text(given.out, page)


if __name__ == "__main__":
    main()
