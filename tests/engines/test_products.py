"""Large products by oneDNN, where MKL uses half of a processor."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kinfold import random
from kinfold.engines import products
from kinfold.engines.simplify import simplify

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture(params=[True, False])
def halved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "halves_vectors", lambda: request.param)
    return bool(request.param)


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """A linear layer's results and all of its gradients."""
    at = [value.detach().requires_grad_() for value in (x, weight, bias)]
    y = torch.nn.functional.linear(*at)
    return [y, *torch.autograd.grad(y.square().sum(), at)]


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = random.generator(0, "test")
    return [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]


def recorded(given: list[Tensor]) -> GraphModule:
    module = make_fx(layer)(*given)
    simplify(module.graph)
    module.recompile()
    return module


def test_a_layer_by_onednn_is_torchs(halved: bool) -> None:
    given = draws((64, 400), (120, 400), (120,))
    module = recorded(given)
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(products.addmm) == halved
    assert targets.count(products.mm) == 2 * halved
    for ours, torchs in zip(module.forward(*given), layer(*given), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-2)
        assert ours.stride() == torchs.stride()


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        (((64, 40), (12, 40), (12,)), torch.float32),
        (((64, 400), (120, 400), (120,)), torch.float64),
    ],
    ids=["small", "float64"],
)
def test_others_stay_with_mkl(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "halves_vectors", lambda: True)
    targets = {node.target for node in recorded(draws(*shapes, dtype=dtype)).graph.nodes}
    assert targets.isdisjoint({products.mm, products.addmm})


def test_stacked_products_stay_with_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "halves_vectors", lambda: True)
    given = draws((2, 64, 400), (2, 400, 120))
    module = make_fx(torch.bmm)(*given)
    simplify(module.graph)
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == [torch.bmm]


@pytest.mark.parametrize(
    ("said", "capability", "halves"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        ("BogoMIPS\t: 50.00\n", "DEFAULT", False),
    ],
)
def test_which_processors_those_are(said: str, capability: str, halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.is_file", lambda _: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: said)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    products.halves_vectors.cache_clear()
    try:
        assert products.halves_vectors() == halves
    finally:
        products.halves_vectors.cache_clear()
