"""Products by oneDNN, where MKL uses half of a processor, and in parts, where it is slow."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold import random
from kinfold.engines import products
from kinfold.engines.simplify import simplify

SETTING = pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="needs PyTorch 2.9")


@pytest.fixture(params=[True, False])
def halved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "halves_vectors", lambda: request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return bool(request.param)


@pytest.fixture
def precision() -> Iterator[Any]:
    """Whose settings are as they were when the test ends."""
    setting = torch.backends.mkldnn.matmul
    yield setting
    setting.fp32_precision = "none"
    torch.backends.fp32_precision = "none"


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """A linear layer's results and all of its gradients."""
    at = [value.detach().requires_grad_() for value in (x, weight, bias)]
    y = torch.nn.functional.linear(*at)
    return [y, *torch.autograd.grad(y.square().sum(), at)]


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = random.generator(0, "test")
    return [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]


def recorded(function: Callable[..., object], given: list[Tensor]) -> GraphModule:
    module = make_fx(function)(*given)
    simplify(module.graph)
    module.recompile()
    return module


def calls(module: GraphModule) -> set[object]:
    return {node.target for node in module.graph.nodes}


def product(first: Tensor, second: Tensor) -> Tensor:
    return first @ second


def test_large_products_are_taken(halved: bool) -> None:
    targets = [node.target for node in recorded(layer, draws((64, 400), (120, 400), (120,))).graph.nodes]
    assert targets.count(products.addmm) == halved
    assert targets.count(products.mm) == 2 * halved


@pytest.mark.parametrize(
    ("first", "second", "threads", "taken"),
    [
        ((8, 64, 64), (8, 64, 128), 1, True),
        ((8, 64, 64), (8, 64, 128), 8, False),  # which have less to do each
        ((8, 64, 128), (8, 128, 10), 1, True),  # ten columns take as long as thirty-two
        ((8, 64, 10), (8, 10, 128), 1, False),
    ],
)
def test_stacked_products_are_taken_by_what_a_thread_multiplies(
    first: tuple[int, ...], second: tuple[int, ...], threads: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "halves_vectors", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    targets = [node.target for node in recorded(product, draws(first, second)).graph.nodes]
    assert (products.bmm in targets) == taken


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (draws((64, 400), (400, 120), dtype=torch.float64), "it is for float32"),
        ([draws((800, 400))[0][::2], *draws((400, 120))], "rows that do not lie side by side would be copied"),
    ],
)
def test_others_stay_with_mkl(given: list[Tensor], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "halves_vectors", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    targets = [node.target for node in recorded(product, given).graph.nodes]
    assert products.mm not in targets, why


@pytest.mark.skipif(not products.halves_vectors(), reason="needs a processor whose vectors MKL uses by half")
def test_a_layer_by_onednn_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    given = draws((64, 400), (120, 400), (120,))
    assert products.addmm in [node.target for node in recorded(layer, given).graph.nodes]
    exact = layer(*(value.double() for value in given))
    for ours, torchs, best in zip(recorded(layer, given).forward(*given), layer(*given), exact, strict=True):
        assert (ours - best).norm() < 1e-6 * best.norm()
        assert ours.stride() == torchs.stride()


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9))
def test_parts_make_the_product(tasks: int, rows: int, terms: int, columns: int) -> None:
    first, second = draws((tasks, rows, terms), (tasks, columns, terms), dtype=torch.float64)
    second = second.mT
    assert torch.allclose(products.bmm_in_parts(first, second), first @ second, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "terms", "columns", "taken"),
    [
        (10, 128, 64, True),
        (10, 64, 64, False),  # no more terms than columns
        (10, 240, 64, False),  # many for few rows, which MKL does otherwise
        (16, 784, 128, True),
        (128, 784, 128, False),
        (64, 784, 189, False),
        (16, 128, 47, False),
    ],
)
def test_which_products_go_in_parts(
    rows: int, terms: int, columns: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "fills_vectors", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    first, second = draws((8, rows, terms), (8, columns, terms))
    module = recorded(lambda a, b: a @ b.mT, [first, second])
    assert (products.bmm_in_parts in calls(module)) == taken
    assert torch.allclose(module(first, second), first @ second.mT, rtol=1e-4, atol=1e-4)


def test_others_are_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    first, second = draws((8, 16, 784), (8, 128, 784))
    as_it_lies = second.mT.contiguous()
    for fills, function, factors in (
        (False, lambda a, b: a @ b.mT, [first, second]),
        (True, lambda a, b: a @ b.mT, [first.double(), second.double()]),
        (True, product, [first, as_it_lies]),
    ):
        monkeypatch.setattr(products, "fills_vectors", lambda: fills)  # noqa: B023  # asked at once
        assert products.bmm_in_parts not in calls(recorded(function, factors))


@SETTING
@pytest.mark.parametrize(
    ("own", "of_all", "during"),
    [("none", "none", "bf16"), ("ieee", "none", "bf16"), ("none", "ieee", "bf16"), ("tf32", "none", "tf32")],
)
def test_the_users_setting_is_kept(own: str, of_all: str, during: str, precision: Any) -> None:
    seen = []

    def multiply(first: Tensor, second: Tensor) -> Tensor:
        seen.append(precision.fp32_precision)
        return first @ second

    torch.backends.fp32_precision = of_all
    precision.fp32_precision = own
    products._by_onednn(multiply, torch.ones(1, 1), torch.ones(1, 1))
    assert seen == [during]
    torch.backends.fp32_precision = "tf32"
    assert precision.fp32_precision == ("tf32" if own == "none" else own)


@SETTING
def test_the_users_setting_is_kept_where_a_product_fails(precision: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        products._by_onednn(torch.mm, torch.ones(2, 3), torch.ones(2, 3))
    assert precision.fp32_precision == "none"


@pytest.mark.parametrize(
    ("said", "capability", "halves", "fills"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True, False),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False, False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False, True),
        ("vendor_id\t: GenuineIntel\n", "AVX2", False, False),
        ("BogoMIPS\t: 50.00\n", "DEFAULT", False, False),
    ],
)
def test_which_processors_those_are(
    said: str, capability: str, halves: bool, fills: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlib.Path.is_file", lambda _: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: said)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", None, raising=False)
    monkeypatch.setattr(products, "_keeps_float32", lambda: True)
    for asked, expected in ((products.halves_vectors, halves), (products.fills_vectors, fills)):
        asked.cache_clear()
        try:
            assert asked() == expected
        finally:
            asked.cache_clear()


@SETTING
def test_none_is_meant_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products._keeps_float32() or not products.halves_vectors()
    monkeypatch.setattr(products, "bmm", lambda *factors: torch.bmm(*(f.bfloat16() for f in factors)).float())
    assert not products._keeps_float32()
