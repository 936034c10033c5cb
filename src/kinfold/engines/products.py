"""Matrix products by oneDNN, on processors whose vectors MKL uses by half.

PyTorch multiplies float32 matrices by MKL, which takes AVX-512 on Intel's processors alone. On others that have it
oneDNN, which PyTorch brings for convolutions, is the faster where matrices are large enough to outweigh its slower
calls.

Legend: M, K and N the heights and widths of factors.
"""

import functools
import platform
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 3_000_000
"""M·K·N from which on oneDNN's call was the faster, for all that a linear layer multiplies and with few threads."""


@functools.cache
def halves_vectors() -> bool:
    """Returns whether MKL leaves half of this processor's vectors empty, and oneDNN can be called instead."""
    both = all(library.is_available() for library in (torch.backends.mkl, torch.backends.mkldnn))
    return both and torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() == "AuthenticAMD"


def mm(first: Float[Tensor, "M K"], second: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """Returns A B.

    Example:
        >>> mm(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.]])
    """
    return addmm(None, first, second)


def addmm(
    bias: Float[Tensor, " N"] | None, first: Float[Tensor, "M K"], second: Float[Tensor, "K N"]
) -> Float[Tensor, "M N"]:
    """Returns A B + bias, of each column.

    Example:
        >>> addmm(torch.tensor([0.5]), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.5000]])
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(first, second.t(), bias, "none", [], "")
    return product


def _vendor() -> str:
    """The processor's maker as the processor says it, where the system hands that on."""
    known = Path("/proc/cpuinfo")
    said = known.read_text(encoding="utf-8", errors="replace") if known.is_file() else platform.processor()
    return next((vendor for vendor in ("AuthenticAMD", "GenuineIntel") if vendor in said), "")
