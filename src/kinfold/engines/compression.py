"""Codecs for what tasks send each other: fewer bytes for parameters that go from one task's holder to another's.

A codec is a pair of pure functions from a flat dictionary of tensors to another and back: what comes out says by itself
how it is read. What is encoded is a model's parameters, or better, how they differ from a reference that both sides
know (`Difference`). `Adaptive` chooses for every tensor how it is compressed, after L-GreCo (Markov, Alimohammadi,
Frantar, Alistarh, *L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep Learning*,
arXiv:2210.17357): a table of squared errors and bytes for each tensor and level, and a knapsack over them.

Legend: L tensors ("layers"), n numbers of one, c its channels of w numbers each, b bits, r rank.
"""

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import BFloat16 as BFloat16T
from jaxtyping import Float, Int32, Int64, Integer, Shaped, UInt8
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kinfold.config import resolve
from kinfold.errors import InputError, unknown

Tensors: TypeAlias = Mapping[str, Tensor]
Parts: TypeAlias = dict[str, Tensor]
"""What one tensor is sent as."""

BITS = (1, 2, 3, 4, 5, 6, 8)
SHARES = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
_GAUSSIAN_STEPS = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 8: 0.0308}
"""Step of the best uniform quantiser of a standard normal variable (Max, *Quantizing for Minimum Distortion*, IRE
Transactions on Information Theory 6, 1960, table II, and for 8 bits found in the same way)."""

_LEAST = 64  # numbers, below which a tensor is sent as it is: its head would outweigh what is saved
_INNER_BITS = 6  # of factors, and of the numbers that a sparse form keeps: what these forms leave out weighs more
_LARGEST_SIDE = 1024  # of a matrix that is factorised: a larger one takes longer than it saves
_BUCKETS = 10_000  # as in the authors' experiments
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Codec(abc.ABC):
    """Turns tensors into fewer bytes and back. Pure: the same tensors give the same bytes, and nothing is kept."""

    @abc.abstractmethod
    def encode(self, tensors: Tensors) -> dict[str, Tensor]:
        """Returns what is sent: tensors on the same devices, their short heads on the host."""

    @abc.abstractmethod
    def decode(self, tensors: Tensors) -> dict[str, Tensor]:
        """Returns, of what was encoded, the names, shapes and types, and about the values."""


@final
@dataclass(frozen=True)
class BFloat16(Codec):
    """Sends floating-point numbers with the 8 leading bits of their significand: half the bytes of float32.

    Example:
        >>> codec = BFloat16()
        >>> weights = {"w": torch.full((1000,), 0.1)}
        >>> bytes_of(codec.encode(weights)), round(float(codec.decode(codec.encode(weights))["w"][0]), 5)
        (2016, 0.1001)
    """

    def encode(self, tensors: Tensors) -> dict[str, Tensor]:
        return _joined({name: _halved(value) for name, value in tensors.items()})

    def decode(self, tensors: Tensors) -> dict[str, Tensor]:
        return {name: _read(parts) for name, parts in _parted(tensors).items()}


@final
@dataclass(frozen=True)
class Adaptive(Codec):
    """Chooses for each tensor how it is sent: the least bytes at no more squared error than one choice for all has.

    With e_lk the squared error and s_lk the bytes of tensor l at level k, and u the level of `bits` bits for all,

        min_k Σ_l s_{l k_l}    subject to    Σ_l e_{l k_l} ≤ α Σ_l e_{l u}

    is a knapsack, solved by dynamic programming over the error in 10,000 buckets. The levels are those of the
    `families`, and two that are always there, bfloat16 and the tensor as it is.

    - `bits`: 1 to 8 bits a number, evenly spaced levels, a step for each channel (index of the first axis).
    - `rank`: a matrix (the first axis by the others) as a product of two thin ones.
    - `sparsity`: the numbers of largest magnitude, and where they are.

    Sent as they are: tensors of fewer than 64 numbers, of whole numbers, and those with NaN or infinities.

    Attributes:
        bits: of the choice for all, that sets the error allowed: one of 1, 2, 3, 4, 5, 6, 8.
        alpha: α, by what factor the error may be larger; above 0.
        families: which levels there are. `rank` and `sparsity` save more bytes at the same error, but leave out the
            same small parts of what was learned each time; where whole models are replaced, that costs accuracy
            (docs/scaling.md).

    Example:
        >>> weights = {"w": torch.linspace(-1, 1, 4096).reshape(64, 64).sin()}
        >>> codec = Adaptive(bits=4)
        >>> sent = codec.encode(weights)
        >>> bytes_of(weights), bytes_of(sent) < 16384 / 7
        (16384, True)
        >>> bool((codec.decode(sent)["w"] - weights["w"]).abs().max() < 0.06)
        True
    """

    bits: int = 4
    alpha: float | int = 1.0
    families: tuple[str, ...] = ("bits",)

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"adaptive: bits is {self.bits!r}; give one of {', '.join(map(str, BITS))}.")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"adaptive: alpha is {self.alpha!r}; give a number above 0, such as 1.")
        for family in self.families:
            if family not in _FAMILIES:
                raise unknown("adaptive: families", family, _FAMILIES)

    def encode(self, tensors: Tensors) -> dict[str, Tensor]:
        plain = {name: _raw(value) for name, value in tensors.items() if not _compressible(value)}
        tables = {name: self._table(value) for name, value in tensors.items() if name not in plain}
        chosen = self._choice(list(tables.values()))
        best = {name: table[k].parts() for (name, table), k in zip(tables.items(), chosen, strict=True)}
        return _joined({name: plain[name] if name in plain else best[name] for name in tensors})

    def decode(self, tensors: Tensors) -> dict[str, Tensor]:
        return {name: _read(parts) for name, parts in _parted(tensors).items()}

    def _table(self, value: Float[Tensor, "*shape"]) -> list["_Level"]:
        """Returns how a tensor may be sent; the uniform choice is the first."""
        always = [_quantised(value, self.bits), _made(value, _halved(value)), _made(value, _raw(value))]
        return [*always, *(level for family in self.families for level in _FAMILIES[family](value))]

    def _choice(self, tables: Sequence[Sequence["_Level"]]) -> list[int]:
        errors = [[level.error for level in table] for table in tables]
        sizes = [[level.size for level in table] for table in tables]
        found = least_bytes(errors, sizes, self.alpha * sum(row[0] for row in errors))
        assert found is not None, "tensors as they are have no error"
        # With errors rounded up to buckets, the uniform choice may seem to miss a budget that it keeps.
        fewer = sum(row[0] for row in sizes) < sum(row[k] for row, k in zip(sizes, found, strict=True))
        return [0] * len(tables) if self.alpha >= 1 and fewer else found


@final
@dataclass(frozen=True, eq=False)
class Difference(Codec):
    """Sends how tensors x differ from a reference r that both sides know, as x − c r, by another codec.

    Parameters have no few large numbers and no low rank, but what training changed may have, and is smaller: the same
    bits then cost less error. c is the number that leaves least, ⟨x, r⟩ / ⟨r, r⟩, and is sent along: about 1 for a
    model, k for a sum of k models, 0 for what has nothing to do with the reference. What the other codec sends as it
    is comes back to rounding.

    Attributes:
        codec: what encodes the differences.
        reference: such as the start that all tasks share, one model's tensors by name. A tensor without a counterpart
            of its shape is sent without.

    Example:
        >>> codec = Difference(BFloat16(), reference={"w": torch.ones(1000)})
        >>> round(float(codec.decode(codec.encode({"w": torch.full((1000,), 3.001)}))["w"][0]), 5)
        3.001
    """

    codec: Codec
    reference: Tensors

    def encode(self, tensors: Tensors) -> dict[str, Tensor]:
        scales = {name: _scale(value, self._of(name, value)) for name, value in tensors.items()}
        changes = {
            name: value - scales[name] * self._of(name, value) for name, value in tensors.items() if scales[name]
        }
        sent = self.codec.encode({**tensors, **changes})
        return {**sent, _SCALES: torch.tensor(list(scales.values()), dtype=torch.float64)}

    def decode(self, tensors: Tensors) -> dict[str, Tensor]:
        scales = tensors[_SCALES].tolist()
        changes = self.codec.decode({key: value for key, value in tensors.items() if key != _SCALES})
        return {
            name: value + scale * self._of(name, value) if scale else value
            for (name, value), scale in zip(changes.items(), scales, strict=True)
        }

    def _of(self, name: str, value: Shaped[Tensor, "*shape"]) -> Tensor:
        known = self.reference.get(name)
        if known is None or known.shape != value.shape or not value.is_floating_point():
            return torch.zeros_like(value)
        return known.to(value)


_SCALES = "scales"  # no name of a part: these have a colon


def _scale(value: Shaped[Tensor, "*shape"], reference: Shaped[Tensor, "*shape"]) -> float:
    """Returns c, or 0 where that is not a number."""
    if not value.is_floating_point():
        return 0.0
    x, r = value.double().flatten(), reference.double().flatten()
    scale = float(x @ r) / float(r @ r) if bool(r.any()) else 0.0
    return scale if math.isfinite(scale) else 0.0


def _no_codec() -> None:
    return None


COMPRESSIONS: dict[str, Callable[..., Codec | None]] = {"none": _no_codec, "bf16": BFloat16, "adaptive": Adaptive}


def resolve_compression(spec: Any) -> Codec | None:
    """Returns the codec that is meant, or None for none.

    Args:
        spec: None, a name of `COMPRESSIONS`, a mapping such as `{name: adaptive, bits: 3}` (see `kinfold.config`), or
            a codec.

    Raises:
        InputError: an unknown name or argument, or something that is no codec.

    Example:
        >>> resolve_compression({"name": "adaptive", "bits": 3}).bits, resolve_compression("none")
        (3, None)
    """
    codec = None if spec is None else resolve("compression", spec, COMPRESSIONS)
    if codec is not None and not isinstance(codec, Codec):
        raise InputError(
            f"compression: is a {type(codec).__name__}; give one of {', '.join(COMPRESSIONS)}, or a codec."
        )
    return codec


def bytes_of(tree: Any) -> int:
    """Returns how many bytes the tensors of a tree hold.

    Example:
        >>> bytes_of({"a": [torch.zeros(3, dtype=torch.float64)], "b": 1})
        24
    """
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def least_bytes(
    errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: float, buckets: int = _BUCKETS
) -> list[int] | None:
    """Returns for each of L tensors the level with which all have the least bytes at an error within a budget.

    Dynamic programming over the error, rounded up to one of `buckets` parts of the budget: the budget is kept, and the
    bytes are no more than those of the best choice at an error within `budget · (1 − L / buckets)`.

    Args:
        errors: of each tensor, of each level; not below 0.
        sizes: bytes likewise.
        budget: for the sum of the errors.
        buckets: how finely errors are told apart.

    Returns:
        L indices of levels, or None where no choice is found that keeps the budget.

    Example:
        >>> least_bytes([[0.0, 1.0], [0.0, 5.0]], [[8, 2], [8, 1]], budget=5.0)
        [0, 1]
        >>> least_bytes([[0.0, 1.0], [0.0, 5.0]], [[8, 2], [8, 1]], budget=4.0)
        [1, 0]
    """
    fewest = np.zeros(buckets + 1)  # bytes of the tensors so far, by the most error that they may have
    chosen = np.zeros((len(errors), buckets + 1), dtype=np.intp)
    costs = [[_buckets_of(error, budget, buckets) for error in row] for row in errors]
    for layer, (row, bytes_of) in enumerate(zip(costs, sizes, strict=True)):
        before, fewest = fewest, np.full(buckets + 1, np.inf)
        for k in _worth_having(row, bytes_of):
            if row[k] > buckets:
                continue
            reached = np.full(buckets + 1, np.inf)
            reached[row[k] :] = before[: buckets + 1 - row[k]] + bytes_of[k]
            better = reached < fewest
            fewest[better], chosen[layer][better] = reached[better], k
    if not np.isfinite(fewest[-1]):
        return None
    levels, left = [], buckets
    for layer in reversed(range(len(errors))):
        k = int(chosen[layer, left])
        levels.append(k)
        left -= costs[layer][k]
    return levels[::-1]


def _buckets_of(error: float, budget: float, buckets: int) -> int:
    if error == 0:
        return 0
    # What is a whole number of buckets, to rounding, is not rounded up.
    return buckets + 1 if error > budget else math.ceil(error / budget * buckets - 1e-6)


def _worth_having(costs: Sequence[int], sizes: Sequence[int]) -> Iterator[int]:
    """Yields the levels, by rising cost, that have fewer bytes than all of lower cost."""
    least: float = math.inf
    for k in sorted(range(len(costs)), key=lambda k: (costs[k], sizes[k])):
        if sizes[k] < least:
            least = sizes[k]
            yield k


# -- forms of one tensor -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """One way of sending a tensor.

    Attributes:
        error: squared, of what comes out.
        size: bytes of its parts.
        parts: makes them, for the one that is chosen.
    """

    error: float
    size: int
    parts: Callable[[], Parts]


def _compressible(value: Shaped[Tensor, "*shape"]) -> bool:
    if value.dtype not in _DTYPES or value.numel() < _LEAST:
        return False
    return bool(value.float().square().sum().isfinite())  # errors are reckoned in float32


def _raw(value: Shaped[Tensor, "*shape"]) -> Parts:
    return {"raw": value}


def _halved(value: Shaped[Tensor, "*shape"]) -> Parts:
    if value.dtype not in _DTYPES or value.element_size() <= 2 or value.numel() < _LEAST:
        return _raw(value)
    half = value.to(torch.bfloat16)
    if not torch.equal(half.isfinite(), value.isfinite()):  # larger than any bfloat16
        return _raw(value)
    return {"head": _head(_HALVED, 0, value), "values": half}


def _made(value: Float[Tensor, "*shape"], parts: Parts) -> _Level:
    return _Level(_squared(value - _read(parts)), bytes_of(parts), lambda: parts)


def _quantised(value: Float[Tensor, "*shape"], bits: int) -> _Level:
    coded = _coded([_channels(value)], bits)
    return _level(coded.error, _head(_QUANTISED, bits, value), coded)


def _all_bits(value: Float[Tensor, "*shape"]) -> Iterator[_Level]:
    for bits in BITS:
        yield _quantised(value, bits)


def _all_ranks(value: Float[Tensor, "*shape"]) -> Iterator[_Level]:
    matrix = _channels(value)
    c, w = matrix.shape
    if not 1 < min(c, w) <= _LARGEST_SIDE:
        return
    wide = matrix if c <= w else matrix.mT
    directions = torch.linalg.eigh(wide @ wide.mT).eigenvectors.mT.flip(0)  # along which it is largest, first
    rank = 1
    while 2 * rank * (c + w) < c * w:
        along = directions[:rank]
        coded = _coded([along, along @ wide], _INNER_BITS)  # what belongs to one direction is a channel
        yield _level(_squared(wide - _product(coded.groups())), _head(_LOW_RANK, rank, value), coded)
        rank *= 2


def _all_shares(value: Float[Tensor, "*shape"]) -> Iterator[_Level]:
    flat = value.flatten().float()
    order = flat.abs().argsort(descending=True, stable=True)
    for share in SHARES:
        kept = order[: math.ceil(share * len(flat))].sort().values
        coded = _coded([flat[kept][None]], _INNER_BITS)
        error = coded.error + _squared(flat.index_fill(0, kept, 0.0))
        yield _level(error, _head(_SPARSE, len(kept), value), coded, _Places(kept, len(flat)))


_FAMILIES: dict[str, Callable[[Tensor], Iterator[_Level]]] = {
    "bits": _all_bits,
    "rank": _all_ranks,
    "sparsity": _all_shares,
}


def _level(error: float, head: Tensor, coded: "_Coded", places: "_Places | None" = None) -> _Level:
    def parts() -> Parts:
        return {"head": head, **({} if places is None else {"places": places.packed()}), **coded.parts()}

    size = bytes_of(head) + coded.size + (0 if places is None else places.size)
    return _Level(error, size, parts)


def _head(form: int, level: int, value: Float[Tensor, "*shape"]) -> Int32[Tensor, " _"]:
    return torch.tensor([form, level, _DTYPES.index(value.dtype), *value.shape], dtype=torch.int32)


def _read_halved(parts: Parts, level: int, shape: list[int]) -> Tensor:
    del level, shape
    return parts["values"]


def _read_quantised(parts: Parts, level: int, shape: list[int]) -> Tensor:
    return _decoded(parts, [_channels_of(shape)], level)[0]


def _read_low_rank(parts: Parts, level: int, shape: list[int]) -> Tensor:
    c, w = sorted(_channels_of(shape))
    wide = _product(_decoded(parts, [(level, c), (level, w)], _INNER_BITS))
    return wide if wide.shape == _channels_of(shape) else wide.mT


def _read_sparse(parts: Parts, level: int, shape: list[int]) -> Tensor:
    n = math.prod(shape)
    (values,) = _decoded(parts, [(1, level)], _INNER_BITS)
    return values.new_zeros(n).index_put((_Places.unpacked(parts["places"], level, n),), values[0])


_HALVED, _QUANTISED, _LOW_RANK, _SPARSE = range(4)
_READERS = (_read_halved, _read_quantised, _read_low_rank, _read_sparse)


def _read(parts: Parts) -> Tensor:
    if "raw" in parts:
        return parts["raw"]
    form, level, dtype, *shape = parts["head"].tolist()
    return _READERS[form](parts, level, shape).reshape(shape).to(_DTYPES[dtype])


def _joined(parts: Mapping[str, Parts]) -> dict[str, Tensor]:
    return {f"{name}:{part}": value for name, own in parts.items() for part, value in own.items()}


def _parted(encoded: Tensors) -> dict[str, Parts]:
    found: dict[str, Parts] = {}
    for key, value in encoded.items():
        name, _, part = key.rpartition(":")
        found.setdefault(name, {})[part] = value
    return found


def _squared(value: Float[Tensor, "*shape"]) -> float:
    return float(torch.linalg.vector_norm(value.float())) ** 2


def _product(factors: Sequence[Float[Tensor, "r _"]]) -> Float[Tensor, "c w"]:
    return factors[0].mT @ factors[1]


# -- numbers in few bits -----------------------------------------------------------------------------------------------


def _channels_of(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _channels(value: Float[Tensor, "*shape"]) -> Float[Tensor, "c w"]:
    return value.reshape(_channels_of(value.shape)).float()


@dataclass(frozen=True)
class _Coded:
    """Groups of channels, in numbers of a few bits."""

    codes: list[UInt8[Tensor, "_c _w"]]
    steps: list[BFloat16T[Tensor, " _c"]]
    bits: int
    error: float

    @property
    def size(self) -> int:
        """Bytes of the parts."""
        return _packed_size(sum(map(Tensor.numel, self.codes)), self.bits) + 2 * sum(map(len, self.steps))

    def parts(self) -> Parts:
        codes = torch.cat([own.flatten() for own in self.codes])
        return {"codes": _packed(codes, self.bits), "steps": torch.cat(self.steps)}

    def groups(self) -> list[Float[Tensor, "_c _w"]]:
        """Returns what comes out."""
        return [_from_codes(*pair, self.bits) for pair in zip(self.codes, self.steps, strict=True)]


def _coded(groups: Sequence[Float[Tensor, "_c _w"]], bits: int) -> _Coded:
    codes, steps, errors = zip(*(_quantise(rows, bits) for rows in groups), strict=True)
    return _Coded(list(codes), list(steps), bits, sum(errors))


def _decoded(parts: Parts, shapes: Sequence[tuple[int, int]], bits: int) -> list[Float[Tensor, "_c _w"]]:
    sizes = [c * w for c, w in shapes]
    codes = torch.split(_unpacked(parts["codes"], sum(sizes), bits), sizes)
    steps = torch.split(parts["steps"], [c for c, _ in shapes])
    return [_from_codes(own.view(shape), step, bits) for own, shape, step in zip(codes, shapes, steps, strict=True)]


def _quantise(rows: Float[Tensor, "c w"], bits: int) -> tuple[UInt8[Tensor, "c w"], BFloat16T[Tensor, " c"], float]:
    """Returns (codes, steps, squared error): x is about step · (code + ½ − 2^(b−1)).

    A channel's step is the best of three: one with which the last level is the largest number, one that is best for
    numbers normally distributed, and their geometric mean.
    """
    widest = rows.abs().amax(1) / (2 ** (bits - 1) - 0.5)
    normal = _GAUSSIAN_STEPS[bits] * rows.square().mean(1).sqrt()
    tried = torch.stack([widest, normal, (widest * normal).sqrt()]).to(torch.bfloat16)
    errors = torch.stack([(_from_codes(_to_codes(rows, s, bits), s, bits) - rows).square().sum(1) for s in tried])
    least, best = errors.min(0)
    steps = tried.gather(0, best[None])[0]
    return _to_codes(rows, steps, bits), steps, float(least.sum())


def _to_codes(rows: Float[Tensor, "c w"], steps: BFloat16T[Tensor, " c"], bits: int) -> UInt8[Tensor, "c w"]:
    half = 2 ** (bits - 1)
    scale = steps.float()[:, None]
    cells = (rows / torch.where(scale > 0, scale, 1.0)).floor_()  # a step of 0 is that of zeros
    return cells.clamp_(-half, half - 1).add_(half).to(torch.uint8)


def _from_codes(codes: Integer[Tensor, "c w"], steps: BFloat16T[Tensor, " c"], bits: int) -> Float[Tensor, "c w"]:
    return codes.float().add_(0.5 - 2 ** (bits - 1)).mul_(steps.float()[:, None])


@dataclass(frozen=True)
class _Places:
    """Which k of n numbers are kept: their places, or a mark for every number where that is shorter."""

    kept: Int64[Tensor, " k"]
    n: int

    @property
    def size(self) -> int:
        """Bytes when packed."""
        return min(_packed_size(len(self.kept), _bits_of(self.n)), _packed_size(self.n, 1))

    def packed(self) -> UInt8[Tensor, " _"]:
        if not _marked(len(self.kept), self.n):
            return _packed(self.kept, _bits_of(self.n))
        marks = torch.zeros(self.n, dtype=torch.uint8, device=self.kept.device)
        return _packed(marks.index_fill_(0, self.kept, 1), 1)

    @staticmethod
    def unpacked(packed: UInt8[Tensor, " _"], k: int, n: int) -> Int64[Tensor, " k"]:
        """Returns the places."""
        if not _marked(k, n):
            return _unpacked(packed, k, _bits_of(n)).long()
        return _unpacked(packed, n, 1).nonzero().flatten()


def _marked(k: int, n: int) -> bool:
    return _packed_size(n, 1) < _packed_size(k, _bits_of(n))


def _bits_of(n: int) -> int:
    return (n - 1).bit_length()


def _packed_size(n: int, bits: int) -> int:
    return -(-n * bits // 8)


def _packed(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " m"]:
    """Returns whole numbers below 2^bits, their bits one after another, in m bytes."""
    if bits == 8:
        return codes.to(torch.uint8)
    planes = ((codes[:, None] >> torch.arange(bits, dtype=codes.dtype, device=codes.device)) & 1).to(torch.uint8)
    padded = torch.nn.functional.pad(planes.flatten(), (0, -planes.numel() % 8)).view(-1, 8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def _unpacked(packed: UInt8[Tensor, " m"], n: int, bits: int) -> Integer[Tensor, " n"]:
    """Returns the n numbers that `_packed` was given."""
    if bits == 8:
        return packed
    planes = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    wide = torch.uint8 if bits < 8 else torch.int64
    digits = planes.flatten()[: n * bits].view(n, bits).to(wide)
    return (digits << torch.arange(bits, dtype=wide, device=packed.device)).sum(1, dtype=wide)
