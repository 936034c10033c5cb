"""Keyed randomness: every random number is a pure function of a key, and no generator is carried along.

A key is a 0-dimensional int64 tensor made from the seed and a few words (purpose, epoch, task, …). The bits
are a counter passed through the finaliser of SplitMix64 (Steele, Lea, Flood, *Fast splittable pseudorandom
number generators*, OOPSLA 2014), written in wrapping int64 arithmetic. So the same draw comes out on every
device, in every engine, inside `torch.vmap` as well as in a loop, and a resumed run needs no generator state.

Example:
    >>> k = key(0, "order", 3)
    >>> bool((permutation(k, 5).sort().values == torch.arange(5)).all())
    True
"""

import hashlib
import math
import random as stdlib_random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Key = Int64[Tensor, ""]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, 2^64 / golden ratio, the increment of SplitMix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_DIGITS = {torch.float32: 24, torch.float64: 53}


def seed_of(*words: int | str) -> int:
    """Returns a 63-bit seed that is a hash of the words; stable over processes and versions of Python.

    Args:
        words: what the draw is for, such as `(seed, "splits", task)`.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def key(*words: int | str) -> Key:
    """Returns the key that belongs to the words (see `seed_of`)."""
    return torch.tensor(seed_of(*words), dtype=torch.int64)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64's own shift would drag the sign along


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def fold_in(k: Int64[Tensor, "*keys"], word: int | Int64[Tensor, "*keys"]) -> Int64[Tensor, "*keys"]:
    """Returns a key for a sub-purpose, for one key or each of several: an unrelated stream for each `word`."""
    if isinstance(word, int):  # wrapped to 64 bits here: a tensor would cost a copy to the device at every step
        return _mix(k * _MIX_1 + (((word + 1) * _GOLDEN + 2**63) % 2**64 - 2**63))
    return _mix(k * _MIX_1 + (word + 1) * _GOLDEN)


def bits(k: Key, shape: Sequence[int]) -> Int64[Tensor, "*shape"]:
    """Returns 64 random bits for each element of `shape`, as int64."""
    counter = torch.arange(1, math.prod(shape) + 1, device=k.device, dtype=torch.int64)
    return _mix(_mix(k) + counter * _GOLDEN).reshape(tuple(shape))


def uniform(k: Key, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """Returns numbers drawn uniformly from [0, 1), as float32 or float64, with all the digits these hold."""
    digits = _DIGITS[dtype]
    return _logical_shift(bits(k, shape), 64 - digits).to(dtype) * 2.0**-digits


def randint(k: Key, high: int, shape: Sequence[int] = ()) -> Int64[Tensor, "*shape"]:
    """Returns whole numbers drawn uniformly from 0 … `high` − 1 (bias under high / 2^53)."""
    return (uniform(k, shape, torch.float64) * high).to(torch.int64)


def permutation(k: Key, n: int) -> Int64[Tensor, " n"]:
    """Returns 0 … n − 1 in random order."""
    return torch.argsort(bits(k, (n,)), stable=True)


def log_gamma(k: Key, shape_parameter: float | int, tries: int = 16) -> Float64[Tensor, ""]:
    """Returns the logarithm of one draw from Gamma(a, 1), by Marsaglia and Tsang's method (ACM TOMS 26, 2000).

    The logarithm, because draws of a small `a` lie below the least positive number. A fixed number of tries
    stands where the method loops, so that it can be lifted; each fails with a probability under 0.05, and after
    sixteen failures the mean is returned.
    """
    a = shape_parameter + 1.0 if shape_parameter < 1.0 else shape_parameter
    d = a - 1.0 / 3.0
    u = uniform(fold_in(k, 0), (3, tries), torch.float64).clamp_min(2.0**-53)
    normal = torch.sqrt(-2.0 * torch.log(u[0])) * torch.cos(2.0 * math.pi * u[1])
    v = (1.0 + normal / math.sqrt(9.0 * d)) ** 3
    accept = (v > 0) & (torch.log(u[2]) < 0.5 * normal**2 + d - d * v + d * torch.log(v.clamp_min(1e-300)))
    first = torch.argmax(accept.to(torch.int8))
    value = torch.where(accept.any(), d * v.gather(0, first.reshape(1)).reshape(()), torch.full_like(u[0, 0], a))
    result = torch.log(value)
    if shape_parameter < 1.0:
        boost = uniform(fold_in(k, 1), (), torch.float64).clamp_min(2.0**-53)
        result = result + torch.log(boost) / shape_parameter
    return result


def beta(k: Key, a: float | int, b: float | int) -> Float64[Tensor, ""]:
    """Returns one draw x / (x + y) from Beta(a, b), with x ~ Gamma(a, 1) and y ~ Gamma(b, 1)."""
    return torch.sigmoid(log_gamma(fold_in(k, 0), a) - log_gamma(fold_in(k, 1), b))


def generator(*words: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by the words, for host-side code that wants torch's own draws."""
    return torch.Generator().manual_seed(seed_of(*words))


@contextmanager
def seeded(device: torch.device, *words: int | str) -> Iterator[None]:
    """Seeds the global generators of the CPU and of `device`, and gives the caller's state back on leaving.

    For code that is not ours and draws from the global generator: parameter initialisation, dropout.
    """
    with Draws(device, *words).going_on():
        yield


def states(device: torch.device) -> list[Tensor]:
    """Returns the states of the global generators of the CPU and of `device`; a draw changes them.

    Example:
        >>> with seeded(torch.device("cpu"), 0):
        ...     before = states(torch.device("cpu"))
        ...     draw = torch.rand(1)
        ...     torch.equal(before[0], states(torch.device("cpu"))[0])
        False
    """
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@final
class Draws:
    """What code that is not ours draws from the global generators, in stretches with other code between them.

    Args:
        device: whose generator is seeded, besides the CPU's.
        words: what the draws are for (see `seed_of`).

    Example:
        >>> draws, other = Draws(torch.device("cpu"), 0), Draws(torch.device("cpu"), 0)
        >>> with draws.going_on():
        ...     whole = torch.rand(2)
        >>> with other.going_on():
        ...     first = torch.rand(1)
        >>> with other.going_on():
        ...     bool((torch.cat([first, torch.rand(1)]) == whole).all())
        True
    """

    def __init__(self, device: torch.device, *words: int | str):
        self._cuda = device if device.type == "cuda" else None
        self._seed = seed_of(*words)
        self._left: tuple[Tensor, Tensor | None] | None = None

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Sets the generators where the last stretch left them, and gives the caller's state back on leaving."""
        cuda = self._cuda
        with torch.random.fork_rng([] if cuda is None else [cuda]):
            if self._left is None:
                torch.default_generator.manual_seed(self._seed)  # `torch.manual_seed` would move those of all devices
                if cuda is not None:
                    with torch.cuda.device(cuda):
                        torch.cuda.manual_seed(self._seed)
            else:
                state, on_device = self._left
                torch.set_rng_state(state)
                if cuda is not None and on_device is not None:
                    torch.cuda.set_rng_state(on_device, cuda)
            yield
            self._left = torch.get_rng_state(), None if cuda is None else torch.cuda.get_rng_state(cuda)


@contextmanager
def seeded_everywhere(*words: int | str) -> Iterator[None]:
    """Seeds the global generators of torch (the CPU's), NumPy and Python, and gives their states back on leaving.

    For a user's code that draws from any of them: what a data set does at random to an item.
    """
    python, numpy_state = stdlib_random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's, not ours
    with seeded(torch.device("cpu"), *words):
        seed = seed_of(*words)
        stdlib_random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            stdlib_random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
