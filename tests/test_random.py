import math
import random as stdlib_random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold import random

WORD = 2**64 - 1


def splitmix64_finaliser(z: int) -> int:
    """Steele, Lea, Flood (2014), figure 17, in Python's own whole numbers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def reference_bits(key: int, n: int) -> list[int]:
    start = splitmix64_finaliser(key & WORD)
    return [splitmix64_finaliser((start + (i + 1) * 0x9E3779B97F4A7C15) & WORD) for i in range(n)]


@settings(deadline=None, max_examples=50)
@given(key=st.integers(-(2**63), 2**63 - 1))
def test_bits_are_splitmix64(key):
    drawn = random.bits(torch.tensor(key), (2, 3)).flatten().tolist()
    assert [value & WORD for value in drawn] == reference_bits(key, 6)


def test_the_published_first_numbers_of_splitmix64_from_seed_0():
    # What Vigna's splitmix64.c prints first for the state 0, without the scrambling of the key.
    state = [0x9E3779B97F4A7C15, 2 * 0x9E3779B97F4A7C15 & WORD]
    mixed = random._mix(torch.tensor([value - 2**64 if value >> 63 else value for value in state]))
    assert [value & WORD for value in mixed.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_seeds_depend_on_every_word_its_type_and_its_place():
    words = [(0,), ("0",), (0, 1), (1, 0), ("01",), (0, "1"), ()]
    seeds = [random.seed_of(*each) for each in words]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert random.seed_of(0, "splits", 3) == 4502274296443877819  # as in every earlier version


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform(dtype):
    u = random.uniform(random.key("uniform"), (20_000,), dtype)
    assert u.dtype == dtype
    assert bool(((u >= 0) & (u < 1)).all())
    # Mean and variance of U(0, 1) within five standard errors.
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 20_000)
    assert abs(float(u.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / 20_000)
    assert (torch.histc(u.double(), 10, 0, 1) / 2000 - 1).abs().max() < 0.12


def test_randint_gives_every_number_alike():
    drawn = random.randint(random.key("randint"), 7, (14_000,))
    counts = torch.bincount(drawn, minlength=7)
    assert len(counts) == 7
    assert (counts / 2000 - 1).abs().max() < 0.1


def test_permutation_is_one_and_moves_everything_everywhere():
    places = torch.stack([random.permutation(random.key("permutation", i), 4) for i in range(2000)])
    assert (places.sort(1).values == torch.arange(4)).all()
    for place in range(4):
        assert (torch.bincount(places[:, place]) / 500 - 1).abs().max() < 0.2


@pytest.mark.parametrize("a", [0.3, 1.0, 2.5])
def test_gamma_has_its_mean_and_variance(a):
    keys = torch.stack([random.key("gamma", i) for i in range(4000)])
    x = torch.vmap(lambda k: random.log_gamma(k, a))(keys).exp()
    assert abs(float(x.mean()) - a) < 5 * math.sqrt(a / 4000)
    # Var of the sample variance: (μ₄ − σ⁴)/n with μ₄ = 3a² + 6a.
    assert abs(float(x.var()) - a) < 5 * math.sqrt((2 * a**2 + 6 * a) / 4000)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (1, 1), (2.0, 5.0)])
def test_beta_has_its_mean_and_variance(a, b):
    keys = torch.stack([random.key("beta", i) for i in range(4000)])
    x = torch.vmap(lambda k: random.beta(k, a, b))(keys)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert abs(float(x.mean()) - a / (a + b)) < 5 * math.sqrt(variance / 4000)
    assert abs(float(x.var()) - variance) < 0.1 * variance


def test_beta_of_a_tiny_parameter_is_all_or_nothing_and_never_nan():
    drawn = torch.stack([random.beta(random.key(i), 1e-4, 1e-4) for i in range(200)])
    assert ((drawn < 1e-6) | (drawn > 1 - 1e-6)).float().mean() > 0.98
    assert 60 < int((drawn > 0.5).sum()) < 140


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: random.bits(k, (3,)),
        lambda k: random.uniform(k, (2, 2)),
        lambda k: random.randint(k, 5, (4,)),
        lambda k: random.permutation(k, 6),
        lambda k: random.beta(k, 0.4, 0.4),
        lambda k: random.fold_in(k, 3),
    ],
)
def test_vmap_draws_what_a_loop_draws(draw):
    keys = torch.stack([random.key("lift", t) for t in range(5)])
    together, alone = torch.vmap(draw)(keys), torch.stack([draw(k) for k in keys])
    torch.testing.assert_close(together, alone, rtol=1e-12 if together.is_floating_point() else 0, atol=0)


def test_fold_in_gives_unrelated_streams():
    k = random.key("streams")
    streams = torch.stack([random.uniform(random.fold_in(k, word), (4000,), torch.float64) for word in range(4)])
    off = torch.corrcoef(streams) - torch.eye(4, dtype=torch.float64)
    assert off.abs().max() < 5 / math.sqrt(4000)
    keys = [int(random.fold_in(random.fold_in(k, a), b)) for a in range(20) for b in range(20)]
    assert len(set(keys)) == 400
    assert int(random.fold_in(random.fold_in(k, 1), 2)) != int(random.fold_in(random.fold_in(k, 2), 1))


def test_fold_in_takes_many_keys_at_once():
    keys = torch.stack([random.key(t) for t in range(3)])
    assert random.fold_in(keys, 7).tolist() == [int(random.fold_in(k, 7)) for k in keys]


def test_generators_follow_from_their_words():
    draws = [torch.rand(3, generator=random.generator(*words)) for words in [(1, "a"), (1, "a"), (2, "a")]]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_seeded_gives_the_state_back_even_after_an_error():
    before = torch.random.get_rng_state()
    with random.seeded(torch.device("cpu"), 0, "init"):
        first = torch.rand(4)

    def fails():
        with random.seeded(torch.device("cpu"), 0, "init"):
            assert torch.equal(first, torch.rand(4))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert torch.equal(before, torch.random.get_rng_state())


def test_draws_go_on_where_they_were_left():
    device = torch.device("cpu")
    with random.seeded(device, 0, "a"):
        whole = torch.rand(6)
    draws, other, parts = random.Draws(device, 0, "a"), random.Draws(device, 1, "a"), []
    for _ in range(3):
        with draws.going_on():
            parts.append(torch.rand(2))
        with other.going_on():
            torch.rand(5)
    assert torch.equal(torch.cat(parts), whole)


def test_all_global_generators_are_seeded_and_given_back():
    def draw():
        return stdlib_random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    states = stdlib_random.getstate(), np.random.get_state()  # noqa: NPY002
    drawn = []
    for words in [(1, 2), (1, 2), (1, 3)]:
        with random.seeded_everywhere(*words):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
    assert stdlib_random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1][1])  # noqa: NPY002


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seeded_moves_only_the_device_that_it_is_given():
    before = torch.cuda.get_rng_state()
    with random.seeded(torch.device("cpu"), 0):
        assert torch.equal(before, torch.cuda.get_rng_state())
    with random.seeded(torch.device("cuda"), 0):
        first = torch.rand(4, device="cuda")
    with random.seeded(torch.device("cuda"), 0):
        assert torch.equal(first, torch.rand(4, device="cuda"))
    assert torch.equal(before, torch.cuda.get_rng_state())
