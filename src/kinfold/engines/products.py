"""Matrix products that MKL takes too long for, in other ways.

PyTorch multiplies float32 matrices by MKL, which takes AVX-512 on Intel's processors alone. There it takes up to two
and a half times as long as need be where the second factor is transposed in memory, as a linear layer's weight is, and
sums have more terms than there are columns; not so where they are taken in parts.

On others that have AVX-512 oneDNN, which PyTorch brings for convolutions, takes half of the time where matrices are
large enough to outweigh its slower calls. PyTorch hands float32 products to oneDNN where these may be rounded to
bfloat16 (`torch.backends.mkldnn.matmul.fp32_precision`), and oneDNN rounds where a processor has matrix units (AMX) for
it. On those that are meant here there are none, and what is multiplied stays float32: it is tried once, before it is
relied on.

For what shapes either is the faster was measured on one processor of each kind (benchmarks/speed/forms.md,
benchmarks/speed/intel/forms.md).

Legend: T tasks; M, K and N the heights and widths of factors.
"""

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinfold import random

_LEAST = 1_300_000
"""Multiplications of a thread from which on oneDNN's call was the faster."""

_VECTORS = 32
"""Columns of a product take MKL about as long as the next multiple of so many: two vectors."""

_FEW_COLUMNS, _MANY_COLUMNS = 48, 188
"""Columns of a product between which MKL's AVX-512 is slow for sums of more terms than there are columns."""

_FEW_ROWS, _MANY_TERMS = 16, 24
"""Of fewer rows it is so up to as many terms for each."""

_LEAST_IN_PARTS = 250_000
"""Multiplications of a thread from which on sums in parts outweigh their further calls."""


def is_faster(first: torch.Size, second: torch.Size) -> bool:
    """Returns whether oneDNN multiplies factors [*T, M, K] and [*T, K, N] the faster, on this machine's threads.

    Example:
        >>> is_faster(torch.Size([64, 64]), torch.Size([64, 128]))
        False
    """
    columns = -(-second[-1] // _VECTORS) * _VECTORS
    return halves_vectors() and first.numel() * columns >= _LEAST * torch.get_num_threads()


@functools.cache
def halves_vectors() -> bool:
    """Returns whether MKL leaves half of this processor's vectors empty, and oneDNN can be called instead."""
    both = all(library.is_available() for library in (torch.backends.mkl, torch.backends.mkldnn))
    there = both and hasattr(torch.backends.mkldnn, "matmul")  # from PyTorch 2.9 on
    return there and _has_avx512("AuthenticAMD") and _keeps_float32()


def is_faster_in_parts(first: torch.Size, second: torch.Size) -> bool:
    """Returns whether factors [T, M, K] and [T, K, N], the second transposed in memory, are multiplied faster in parts.

    Example:
        >>> is_faster_in_parts(torch.Size([8, 64, 64]), torch.Size([8, 64, 128]))
        False
    """
    (_, rows, terms), columns = first, second[-1]
    slow = _FEW_COLUMNS <= columns <= _MANY_COLUMNS and rows < columns < terms
    slow = slow and (rows >= _FEW_ROWS or terms < _MANY_TERMS * rows)
    return slow and first.numel() * columns >= _LEAST_IN_PARTS * torch.get_num_threads() and fills_vectors()


@functools.cache
def fills_vectors() -> bool:
    """Returns whether MKL multiplies by AVX-512 here."""
    library: Any = torch.backends.mkl
    return library.is_available() and _has_avx512("GenuineIntel")


def mm(first: Float[Tensor, "M K"], second: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """Returns A B.

    Example:
        >>> mm(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.]])
    """
    return _by_onednn(torch.mm, first, second)


def addmm(bias: Float[Tensor, " N"], first: Float[Tensor, "M K"], second: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """Returns A B + bias, of each column.

    Example:
        >>> addmm(torch.tensor([0.5]), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.5000]])
    """
    return _by_onednn(torch.addmm, bias, first, second)


def bmm(first: Float[Tensor, "T M K"], second: Float[Tensor, "T K N"]) -> Float[Tensor, "T M N"]:
    """Returns A B of each task.

    Example:
        >>> bmm(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [4.0]]]))
        tensor([[[11.]]])
    """
    return _by_onednn(torch.bmm, first, second)


def bmm_in_parts(first: Float[Tensor, "T M K"], second: Float[Tensor, "T K N"]) -> Float[Tensor, "T M N"]:
    """Returns A B of each task, the sums taken over N terms or fewer at a time.

    Example:
        >>> bmm_in_parts(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [4.0]]]))
        tensor([[[11.]]])
    """
    count = math.ceil(second.shape[1] / second.shape[2])
    (left, right), *others = zip(first.tensor_split(count, 2), second.tensor_split(count, 1), strict=True)
    product = torch.bmm(left, right)
    for left, right in others:
        product.baddbmm_(left, right)
    return product


def _by_onednn(multiply: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """Multiplies by oneDNN, but where the user has allowed other roundings: then as they have.

    The setting is the process's. It is as it was when the product is there; meanwhile torch does not tell, in other
    threads either, what `torch.get_float32_matmul_precision` asks for.
    """
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = "unknown" if setting is None else setting.fp32_precision
    if before not in ("none", "ieee"):
        return multiply(*factors)
    try:
        setting.fp32_precision = "bf16"
        return multiply(*factors)
    finally:
        setting.fp32_precision = "none"
        if before != "none" and setting.fp32_precision != before:  # it was set here, and not for all of torch
            setting.fp32_precision = before


def _keeps_float32() -> bool:
    """Whether the products of numbers that bfloat16 cannot hold come out as if multiplied in float64."""
    draw = random.generator(0, "products")
    first, second = (torch.rand(2, 64, 64, generator=draw, dtype=torch.float32, device="cpu") for _ in range(2))
    exact = first.double() @ second.double()
    given = (bmm(first, second), torch.stack([mm(*factors) for factors in zip(first, second, strict=True)]))
    return all(torch.allclose(product.double(), exact, rtol=1e-5) for product in given)


def _has_avx512(vendor: str) -> bool:
    """Whether this is a processor of a maker, by `_vendor`, and PyTorch uses its AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() == vendor


def _vendor() -> str:
    """The processor's maker as the processor says it, where the system hands that on."""
    known = Path("/proc/cpuinfo")
    said = known.read_text(encoding="utf-8", errors="replace") if known.is_file() else platform.processor()
    return next((vendor for vendor in ("AuthenticAMD", "GenuineIntel") if vendor in said), "")
