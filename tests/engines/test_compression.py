"""Codecs: what comes out, how many bytes go through, and the choice among levels against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinfold.config import describe
from kinfold.engines import compression
from kinfold.engines.compression import (
    BITS,
    Adaptive,
    BFloat16,
    Codec,
    Difference,
    bytes_of,
    least_bytes,
    resolve_compression,
)
from kinfold.engines.exchange import InProcess, carry_out
from kinfold.engines.sequential import Sequential
from kinfold.engines.sharing import start_share
from kinfold.errors import InputError
from kinfold.tasks.order import Segment
from kinfold.transfer import Mix, Plan

ALL = ("bits", "rank", "sparsity")
CODECS = [
    BFloat16(),
    Adaptive(bits=1),
    *(Adaptive(bits=bits, families=ALL) for bits in (1, 4, 8)),
    Adaptive(families=()),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model() -> dict[str, Tensor]:
    """Four layers and what goes with them; one is of low rank, one sparse."""
    sparse = torch.zeros(40, 60)
    sparse.view(-1)[:: 2400 // 30] = 3.0
    return {
        "conv.weight": normal(8, 3, 5, 5, seed=1),
        "conv.bias": normal(8, seed=2),
        "low.weight": normal(64, 2, seed=3) @ normal(2, 90, seed=4),
        "sparse.weight": sparse,
        "head.weight": 0.01 * normal(10, 64, seed=5),
        "head.bias": normal(100, seed=6),
    }


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))


def error(codec: Codec, tensors: dict[str, Tensor]) -> float:
    out = codec.decode(codec.encode(tensors))
    return sum(float((out[name] - value).square().sum()) for name, value in tensors.items())


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_names_shapes_and_types_come_back_and_the_same_bytes_each_time(codec):
    tensors = model() | {"double": normal(70, seed=7).double(), "half": normal(9, 9, seed=8).half()}
    before = {name: value.clone() for name, value in tensors.items()}
    sent, again = codec.encode(tensors), codec.encode(tensors)
    out = codec.decode(sent)
    assert list(out) == list(tensors)
    for name, value in tensors.items():
        assert (out[name].shape, out[name].dtype) == (value.shape, value.dtype)
        assert torch.equal(value, before[name])
    assert sent.keys() == again.keys()
    assert all(torch.equal(sent[key], again[key]) for key in sent)
    assert bytes_of(sent) < bytes_of(tensors)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_is_not_finite_or_small_or_whole_is_sent_as_it_is(codec):
    broken = normal(20, 20)
    broken[3, 4] = math.nan
    endless = normal(20, 20, seed=1)
    endless[0, 0], endless[1, 1] = math.inf, -math.inf
    tensors = {
        "broken": broken,
        "endless": endless,
        "huge": torch.full((100,), 1e300, dtype=torch.float64),
        "largest": torch.full((100,), torch.finfo(torch.float32).max),
        "small": normal(63),
        "scalar": torch.tensor(0.3),
        "empty": torch.zeros(0, 5),
        "count": torch.arange(200),
        "flags": torch.arange(200) % 3 == 0,
    }
    out = codec.decode(codec.encode(tensors))
    for name, value in tensors.items():
        if isinstance(codec, BFloat16) and name in ("broken", "endless", "huge"):
            continue  # half the bytes can say NaN and infinity, see below
        assert torch.equal(out[name].nan_to_num(nan=7.0), value.nan_to_num(nan=7.0)), name
    for name in ("broken", "endless"):
        assert torch.equal(out[name].isnan(), tensors[name].isnan())
        assert torch.equal(out[name].isposinf(), tensors[name].isposinf())
        assert torch.equal(out[name].isneginf(), tensors[name].isneginf())


def test_bfloat16_is_half_the_bytes_and_rounds():
    value = normal(50, 50)
    sent = BFloat16().encode({"w": value})
    head = 4 * (3 + 2)
    assert bytes_of(sent) == 2 * 2500 + head
    assert torch.equal(BFloat16().decode(sent)["w"], value.bfloat16().float())


@pytest.mark.parametrize("bits", BITS)
def test_bytes_and_error_of_bits(bits):
    """Of 30 channels of 81 normal numbers: the bytes by hand, the error that Max's quantiser has, a little less."""
    value = normal(30, 9, 9)
    level = compression._quantised(value, bits)
    parts = level.parts()
    assert bytes_of(parts) == level.size == math.ceil(30 * 81 * bits / 8) + 2 * 30 + 4 * (3 + 3)
    came = compression._read(parts)
    assert level.error == pytest.approx(float((came - value).square().sum()), rel=1e-4)
    expected = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495, 6: 0.001041, 8: 8.77e-05}[bits]
    assert level.error / value.numel() <= 1.06 * expected


def test_numbers_at_the_levels_come_back_exactly():
    """Four levels of a step of ½: by 2 bits they are all there is."""
    value = torch.tensor([-0.75, -0.25, 0.25, 0.75]).repeat(20).reshape(2, 40)
    level = compression._quantised(value, 2)
    assert level.error == 0.0
    assert torch.equal(compression._read(level.parts()), value)


@pytest.mark.parametrize("family", compression._FAMILIES)
def test_the_table_says_what_is_sent(family):
    for name, value in model().items():
        for level in compression._FAMILIES[family](value):
            parts = level.parts()
            assert level.size == bytes_of(parts), name
            found = float((compression._read(parts) - value).square().sum())
            assert level.error == pytest.approx(found, rel=1e-3, abs=1e-5), name


@given(st.integers(1, 20), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_packing_keeps_whole_numbers(bits, count, seed):
    draws = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (count,), generator=draws)
    packed = compression._packed(codes.to(torch.uint8) if bits <= 8 else codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(count * bits / 8)
    assert torch.equal(compression._unpacked(packed, count, bits).long(), codes)


@given(st.integers(64, 400), st.data())
@settings(max_examples=30, deadline=None)
def test_places_come_back_in_the_shorter_form(n, data):
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    places = compression._Places(kept, n)
    packed = places.packed()
    assert len(packed) == places.size <= math.ceil(n / 8)
    assert torch.equal(compression._Places.unpacked(packed, len(kept), n), kept)


def test_forms_fit_what_they_are_for():
    tensors = model()
    by_rank = Adaptive(bits=4, families=("rank",)).encode({"w": tensors["low.weight"]})
    by_share = Adaptive(bits=4, families=("sparsity",)).encode({"w": tensors["sparse.weight"]})
    by_bits = Adaptive(bits=4, families=("bits",))
    assert 5 * bytes_of(by_rank) < bytes_of(by_bits.encode({"w": tensors["low.weight"]}))
    assert 5 * bytes_of(by_share) < bytes_of(by_bits.encode({"w": tensors["sparse.weight"]}))
    tall = {"w": tensors["low.weight"].mT.contiguous()}  # the longer side first
    codec = Adaptive(bits=4, families=("rank",))
    assert bytes_of(codec.encode(tall)) < bytes_of(by_bits.encode(tall)) / 5
    assert error(codec, tall) <= error(by_bits, tall) * (1 + 1e-4)


def uniform(tensors: dict[str, Tensor], bits: int) -> tuple[float, int]:
    levels = [compression._quantised(v, bits) for v in tensors.values() if v.numel() >= 64]
    small = sum(4 * v.numel() for v in tensors.values() if v.numel() < 64)
    return sum(level.error for level in levels), sum(level.size for level in levels) + small


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("alpha", [0.1, 1, 3.0])
def test_the_error_is_within_alpha_of_the_uniform_choice_and_the_bytes_are_fewer(bits, alpha):
    tensors = model()
    codec = Adaptive(bits, alpha, ALL)
    allowed, most = uniform(tensors, bits)
    assert error(codec, tensors) <= alpha * allowed * (1 + 1e-3)
    if alpha >= 1:
        assert bytes_of(codec.encode(tensors)) <= most


def test_the_choice_of_a_codec_is_that_of_brute_force():
    """Four layers, every level of each: no choice within the error has fewer bytes than the codec's."""
    tensors = {name: value for name, value in model().items() if value.numel() >= 64 and name != "head.bias"}
    assert len(tensors) == 4
    codec = Adaptive(bits=3, families=("bits", "rank"))
    tables = [codec._table(value) for value in tensors.values()]
    budget = sum(table[0].error for table in tables)
    least = min(
        sum(level.size for level in chosen)
        for chosen in itertools.product(*tables)
        if sum(level.error for level in chosen) <= budget
    )
    assert bytes_of(codec.encode(tensors)) == least


def brute(errors: list[list[float]], sizes: list[list[int]], budget: float) -> float:
    """The least bytes within the budget, of all choices."""
    choices = itertools.product(*(range(len(row)) for row in errors))
    return min(
        (
            sum(row[k] for row, k in zip(sizes, chosen, strict=True))
            for chosen in choices
            if sum(row[k] for row, k in zip(errors, chosen, strict=True)) <= budget
        ),
        default=math.inf,
    )


def total(table: list[list[float]] | list[list[int]], chosen: list[int]) -> float:
    return sum(row[k] for row, k in zip(table, chosen, strict=True))


FOUR_LAYERS = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 1000)), min_size=1, max_size=5), min_size=4, max_size=4
)


@given(FOUR_LAYERS, st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_the_knapsack_is_brute_force_where_errors_are_whole_buckets(table, budget):
    errors, sizes = ([[level[i] for level in row] for row in table] for i in (0, 1))
    found = least_bytes([[float(e) for e in row] for row in errors], sizes, float(budget), buckets=budget)
    least = brute(errors, sizes, budget)
    if found is None:
        assert least == math.inf
        return
    assert total(errors, found) <= budget
    assert total(sizes, found) == least


@given(FOUR_LAYERS, st.integers(0, 2**32), st.floats(0.5, 60))
@settings(max_examples=100, deadline=None)
def test_the_knapsack_keeps_the_budget_and_is_nearly_brute_force_at_any_errors(table, seed, budget):
    draws = np.random.default_rng(seed)
    errors = [[level[0] * draws.uniform(0.1, 1.0) for level in row] for row in table]
    sizes = [[level[1] for level in row] for row in table]
    found = least_bytes(errors, sizes, budget, buckets=1000)
    with_room = brute(errors, sizes, budget * (1 - 4 / 1000))
    if found is None:
        assert with_room == math.inf
        return
    assert total(errors, found) <= budget * (1 + 1e-6)
    assert brute(errors, sizes, budget * (1 + 1e-6)) <= total(sizes, found) <= with_room


def test_the_knapsack_without_any_error_allowed_or_any_tensor():
    assert least_bytes([[1.0, 0.0], [0.0, 0.0]], [[1, 9], [5, 4]], 0.0) == [1, 1]
    assert least_bytes([[1.0]], [[1]], 0.0) is None
    assert least_bytes([], [], 1.0) == []
    assert Adaptive().encode({}) == {}


def test_a_tensor_of_zeros_stays_so():
    out = Adaptive(bits=1).decode(Adaptive(bits=1).encode({"w": torch.zeros(30, 30)}))["w"]
    assert torch.equal(out, torch.zeros(30, 30))


def test_differences_from_a_reference_cost_less_error_for_the_same_bits():
    start = {"w": normal(30, 30), "same": normal(50), "other": normal(3, 3), "count": torch.arange(3)}
    now = {
        "w": start["w"] + 0.01 * normal(30, 30, seed=1),
        "same": start["same"] + 1,
        "other": normal(100, seed=2),  # of another shape: no reference
        "count": torch.arange(3) + 5,
        "new": normal(8, 8, seed=3),
    }
    plain, differing = Adaptive(bits=4), Difference(Adaptive(bits=4), start)
    assert error(differing, {"w": now["w"]}) < 1e-3 * error(plain, {"w": now["w"]})
    out = differing.decode(differing.encode(now))
    assert list(out) == list(now)
    assert torch.equal(out["count"], now["count"])
    for name, value in now.items():
        torch.testing.assert_close(out[name], value, atol=0.5, rtol=0)
        assert out[name].dtype == value.dtype


def test_differences_from_a_multiple_of_the_reference():
    """A sum of three models, and something that has nothing to do with them, are not made worse."""
    start = {"w": normal(30, 30)}
    small = {"w": 1e-3 * normal(30, 30, seed=1)}
    three = {"w": 3 * start["w"] + small["w"]}
    plain, differing = Adaptive(bits=4, families=("bits",)), Difference(Adaptive(bits=4, families=("bits",)), start)
    assert error(differing, three) == pytest.approx(error(plain, small), rel=0.05)
    assert error(differing, small) == pytest.approx(error(plain, small), rel=0.05)
    assert bytes_of(differing.encode(three)) == bytes_of(plain.encode(three)) + 8


@pytest.mark.parametrize("shared", [True, False])
def test_what_goes_between_shares_is_coded_as_it_differs_from_the_common_start(lab, shared):
    """Half of the tasks take a model of the other share; the less has changed, the less is lost."""
    job = lab.make_job(tasks=4, model=wide, shared_start=shared)
    shares = [slice(0, 2), slice(2, 4)]
    engines = [start_share(Sequential, job, tasks) for tasks in shares]
    assert [bool(engine.start) for engine in engines] == [shared] * 2
    for name, value in engines[0].start.items():
        assert torch.equal(value, engines[1].start[name])
        assert torch.equal(value, engines[1].stack.params[name][1])
    for engine in engines:
        engine.train(Segment(1, 0, 1))
    before = [{name: value.detach().clone() for name, value in engine.stack.params.items()} for engine in engines]
    transport = InProcess(engines)
    onto_first = Mix(torch.eye(4, dtype=torch.float64)[[2, 1, 2, 3]])
    carry_out(Plan((onto_first,), moments="keep"), 1, shares, transport, Adaptive(bits=4))
    (kind, moved), *others = transport.traffic().items()
    assert (kind, others) == ("models", [])
    assert moved < bytes_of({name: value[0] for name, value in before[1].items()}) / 2
    lost = sum(float((engines[0].stack.params[name][0] - before[1][name][0]).square().sum()) for name in before[1])
    size = sum(float(before[1][name][0].square().sum()) for name in before[1])
    assert (lost / size < 1e-4) == shared
    assert lost > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_differences_leave_what_is_not_finite(bad):
    value = normal(30, 30)
    value[0, 0] = bad
    codec = Difference(Adaptive(), {"w": normal(30, 30, seed=1)})
    out = codec.decode(codec.encode({"w": value}))["w"]
    torch.testing.assert_close(out, value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, None),
        ("none", None),
        ("bf16", BFloat16()),
        ("adaptive", Adaptive()),
        ({"name": "adaptive", "bits": 2, "families": ["rank"]}, Adaptive(bits=2, families=("rank",))),
        (describe(Adaptive(alpha=2.0)), Adaptive(alpha=2.0)),
        (Adaptive(bits=1), Adaptive(bits=1)),
    ],
)
def test_compressions_by_name(spec, expected):
    assert resolve_compression(spec) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("bf61", "compression: unknown name 'bf61', did you mean 'bf16'?"),
        ({"name": "adaptive", "bits": 7}, "compression: adaptive: bits is 7"),
        ({"name": "adaptive", "alpha": 0}, "compression: adaptive: alpha is 0"),
        ({"name": "adaptive", "families": ["rnak"]}, "compression: adaptive: families: unknown name 'rnak'"),
        ({"name": "adaptive", "level": 3}, "compression.level: unknown name 'level'"),
        (3, "compression: is a int"),
    ],
)
def test_bad_compressions(spec, says):
    with pytest.raises(InputError) as raised:
        resolve_compression(spec)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)
