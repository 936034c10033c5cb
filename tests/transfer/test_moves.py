"""What plans do to stacked tensors (`kinfold.engines.moves`)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold import random
from kinfold.engines.moves import blended, donors_of, layers_of, moved, pulled
from kinfold.transfer import BinaryCross, Cross, Elastic, Median, Mix, Shuffle, Tune

NAMES = [
    "body.0.weight",
    "body.0.bias",
    "body.1.weight",
    "body.1.running_mean",
    "body.1.num_batches_tracked",
    "scale",
]
LAYERS = layers_of([name for name in NAMES if "running" not in name and "num_" not in name], NAMES[3:5])


def stack(tasks=3):
    """Every number tells its task and its tensor."""
    shapes = [(4, 5), (4,), (4,), (4,), (), ()]
    return {
        name: torch.full((tasks, *shape), 10.0 * i, dtype=torch.float64 if "num" not in name else torch.int64)
        + torch.arange(tasks).view(-1, *[1] * len(shape)) * 100
        for i, (name, shape) in enumerate(zip(NAMES, shapes, strict=True))
    }


def carried_out(changes, before):
    result = before
    for change in changes:
        result = {name: moved(change, name, before[name], value, LAYERS) for name, value in result.items()}
    return result


def mix(*rows):
    return Mix(torch.tensor(rows, dtype=torch.float64))


def cross(source, rate, unit, seed=0):
    keys = torch.stack([random.key("cross", seed, t) for t in range(len(source))])
    return Cross(torch.tensor(source), torch.full((len(source),), rate, dtype=torch.float64), keys, unit)


def binary(source, eta=2.0, seed=0):
    keys = torch.stack([random.key("binary", seed, t) for t in range(len(source))])
    return BinaryCross(torch.tensor(source), torch.full((len(source),), eta, dtype=torch.float64), keys)


def median(*members):
    return Median(torch.tensor(members, dtype=torch.bool))


def shuffle(rate, last_rate=None, tasks=(True, True, True), key=0):
    return Shuffle(torch.tensor(tasks), rate, rate if last_rate is None else last_rate, key)


def apart(*shape, seed=0):
    """Numbers of which no two are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_layers_are_modules():
    assert [LAYERS[name] for name in NAMES] == [0, 0, 1, 1, 1, 2]


def test_a_mix_is_the_weighted_sum_and_leaves_its_input_alone():
    before, W = stack(), [[0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0]]
    kept = {name: value.clone() for name, value in before.items()}
    after = carried_out([mix(*W)], before)
    for name, value in before.items():
        assert torch.equal(value, kept[name])
        assert after[name].dtype == value.dtype
        if value.is_floating_point():
            expected = torch.tensordot(torch.tensor(W, dtype=torch.float64), value, 1)
            torch.testing.assert_close(after[name], expected)


def test_whole_numbers_come_from_the_largest_weight():
    before = {NAMES[4]: torch.tensor([3, 7, 20])}
    after = carried_out([mix([0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.25, 0.25, 0.5])], before)
    assert after[NAMES[4]].tolist() == [7, 7, 20]
    assert donors_of(mix([0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.25, 0.25, 0.5])).tolist() == [1, 1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_zero_weights_never_spread_a_divergence(bad):
    before = stack()
    before["scale"][1] = bad
    before[NAMES[0]][1] = bad
    after = carried_out([mix([0.5, 0, 0.5], [0, 0, 1], [0, 0, 1])], before)
    assert after["scale"].tolist() == [150.0, 250.0, 250.0]
    assert after[NAMES[0]].isfinite().all()
    spread = carried_out([mix([0.5, 0.5, 0], [0, 1, 0], [0, 0, 1])], before)["scale"]
    assert not spread[0].isfinite()  # what is asked for is not hidden


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=3, max_size=3))
def test_a_mix_stays_between_its_donors(rows):
    weights = torch.tensor(rows, dtype=torch.float64)
    after = carried_out([Mix(weights / weights.sum(1, keepdim=True))], stack())
    assert (after["scale"] >= 50 - 1e-9).all()
    assert (after["scale"] <= 250 + 1e-9).all()


def test_crossover_by_layer_moves_whole_layers():
    before, seen = stack(2), set()
    for seed in range(60):
        after = carried_out([cross([1, -1], 0.5, "layer", seed)], before)
        took = []
        for layer in range(3):
            members = [name for name in NAMES if LAYERS[name] == layer]
            from_1 = [torch.equal(after[name][0], before[name][1]) for name in members]
            from_0 = [torch.equal(after[name][0], before[name][0]) for name in members]
            assert all(from_1) or all(from_0)
            took.append(all(from_1))
        seen.add(tuple(took))
        assert all(torch.equal(after[name][1], before[name][1]) for name in NAMES)
    assert len(seen) == 8  # layers are drawn apart


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_crossover_by_parameter_draws_for_every_number(rate):
    before = {"a.weight": torch.zeros(2, 100, 200), "b.weight": torch.zeros(2, 100, 200)}
    for value in before.values():
        value[1] = 1.0
    change, layers = cross([1, -1], rate, "parameter"), layers_of(before)
    after = {name: moved(change, name, value, value, layers)[0] for name, value in before.items()}
    for value in after.values():
        assert abs(float(value.mean()) - rate) <= 5 * math.sqrt(rate * (1 - rate) / 20_000)
    if 0 < rate < 1:  # tensors of one shape are drawn apart
        assert abs(float((after["a.weight"] * after["b.weight"]).mean()) - rate**2) < 0.02


@pytest.mark.parametrize("unit", ["layer", "parameter"])
def test_equal_keys_draw_equal_masks(unit):
    before = stack()
    one = carried_out([cross([1, 2, 0], 0.5, unit, 4)], before)
    same = carried_out([cross([1, 2, 0], 0.5, unit, 4)], before)
    others = [carried_out([cross([1, 2, 0], 0.5, unit, seed)], before) for seed in range(5, 15)]
    assert all(torch.equal(one[name], same[name]) for name in NAMES)
    assert any(not torch.equal(one[name], other[name]) for other in others for name in NAMES)


def test_donors_are_read_as_they_were_and_own_parts_as_they_are():
    before = {"scale": torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)}
    copy = mix([0, 1, 0], [0, 0, 1], [0, 0, 1])  # 0 ← 1, 1 ← 2
    assert carried_out([copy, cross([-1, -1, 1], 1.0, "layer")], before)["scale"].tolist() == [2.0, 4.0, 2.0]
    # The second mix blends task 0's candidate (2.0, from the copy) with task 2 as it was.
    blend = mix([0.5, 0, 0.5], [0, 1, 0], [0, 0, 1])
    assert carried_out([copy, blend], before)["scale"].tolist() == [3.0, 4.0, 4.0]
    assert carried_out([blend, copy], before)["scale"].tolist() == [2.0, 4.0, 4.0]


def test_other_changes_move_nothing():
    before = stack()
    after = carried_out([Tune({"lr": torch.ones(3)})], before)
    assert all(after[name] is before[name] for name in NAMES)


def test_which_candidates_are_mixtures():
    assert blended(mix([0, 1, 0], [0.5, 0, 0.5], [0, 0, 1]), 3).tolist() == [False, True, False]
    assert blended(cross([1, -1, 0], 0.5, "layer"), 3).tolist() == [True, False, True]
    assert not blended(Tune({}), 3).any()
    assert blended(binary([1, -1, 0]), 3).tolist() == [True, False, True]
    assert blended(median([1, 1, 0], [0, 1, 0], [1, 1, 0]), 3).tolist() == [True, False, True]
    assert blended(shuffle(0.5, tasks=(True, False, True)), 3).tolist() == [True, False, True]
    rate = torch.tensor([0.5, 0.0, 0.5])
    assert blended(Elastic(rate, rate), 3).tolist() == [True, False, True]


def test_medians_by_hand():
    before = {"scale": torch.tensor([[1.0, 50.0], [2.0, 20.0], [40.0, 30.0], [8.0, 80.0]])}
    everyone, three, two = [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 1]
    after = carried_out([median(everyone, three, two, [0, 0, 0, 1])], before)["scale"]
    # Of four: the mean of the middle two. Task 2 takes the median of others alone; task 3 has no others.
    assert after.tolist() == [[5.0, 40.0], [2.0, 30.0], [4.5, 65.0], [8.0, 80.0]]


def test_a_median_needs_no_sound_outsider_and_leaves_whole_numbers():
    before = stack()
    before["scale"][1] = math.nan
    after = carried_out([median([1, 0, 1], [1, 0, 1], [0, 0, 1])], before)
    assert after["scale"].tolist() == [100.0 * 1 + 50.0, 150.0, 250.0]
    assert torch.equal(after[NAMES[4]], before[NAMES[4]])
    assert all(after[name].dtype == before[name].dtype for name in NAMES)


@settings(deadline=None, max_examples=25)
@given(tasks=st.integers(2, 7), seed=st.integers(0, 1000))
def test_a_median_is_the_median_whatever_the_order_of_the_tasks(tasks, seed):
    before, everyone = apart(tasks, 3, 4, seed=seed), median(*[[1] * tasks] * tasks)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    expected = torch.quantile(before, 0.5, dim=0)
    for given_ in (before, before[order]):
        after = moved(everyone, "w", given_, given_, {"w": 0})
        torch.testing.assert_close(after, expected.expand(tasks, 3, 4), rtol=1e-12, atol=0)


def test_an_elastic_pull_by_hand():
    before = torch.tensor([[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]], dtype=torch.float64)
    rate = torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64)
    centre_rate = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    # Without a centre yet, it is the mean of those that pull on it: tasks 0 and 1.
    after, centre = pulled(Elastic(rate, centre_rate), before, before, None)
    assert after.tolist() == [[1.5, 15.0], [3.0, 30.0], [6.5, 65.0]]
    assert centre.tolist() == [2.0 - 0.5 + 0.25, 20.0 - 5.0 + 2.5]
    again, moved_on = pulled(Elastic(rate, centre_rate), after, after, centre)
    # Both go by the centre as it was: 1.5 − 0.5 (1.5 − 1.75), 6.5 − 0.25 (6.5 − 1.75).
    assert again[:, 0].tolist() == [1.625, 3.0, 5.3125]
    assert float(moved_on[0]) == 1.75 + 0.5 * (1.5 - 1.75) + 0.25 * (3.0 - 1.75)
    assert before[0].tolist() == [1.0, 10.0]


@settings(deadline=None, max_examples=25)
@given(rate=st.floats(0.0, 0.3), seed=st.integers(0, 1000))
def test_a_symmetric_pull_keeps_the_sum_of_tasks_and_centre(rate, seed):
    before, centre = apart(3, 2, 2, seed=seed), apart(2, 2, seed=seed + 1)
    change = Elastic(torch.full((3,), rate, dtype=torch.float64), torch.full((3,), rate, dtype=torch.float64))
    after, new = pulled(change, before, before, centre)
    torch.testing.assert_close(after.sum(0) + new, before.sum(0) + centre, rtol=1e-12, atol=1e-12)
    # All spreads shrink by the share of the pull, and nobody is pulled past the centre.
    torch.testing.assert_close(after - centre, (1.0 - rate) * (before - centre), rtol=1e-12, atol=1e-12)


def test_an_elastic_pull_leaves_out_who_does_not_take_part():
    before = torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64)
    takes_part = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    after, centre = pulled(Elastic(takes_part, takes_part), before, before, None)
    assert after[[0, 2]].tolist() == [1.5, 2.5]
    assert float(centre) == 2.0


def test_a_shuffle_draws_its_share_of_each_layer_and_permutes_the_tasks_there():
    """Five layers of 4,000 numbers, p from 0.4 down to 0; a drawn number stays with its task once in three."""
    before = {f"{layer}.weight": apart(3, 40, 100, seed=layer) for layer in range(5)}
    layers = layers_of(before)
    for layer, (name, value) in enumerate(before.items()):
        after = moved(shuffle(0.4, 0.0, key=9), name, value, value, layers)
        assert torch.equal(after.sort(0).values, value.sort(0).values)  # at every number, the tasks' values
        rate = 0.4 * (1.0 - layer / 4)
        others = (after != value).double().mean(dim=(1, 2))
        expected = rate * 2 / 3
        assert (others - expected).abs().max() <= 5 * math.sqrt(expected * (1 - expected) / 4000)
        unmoved = (after == value).all(0).double().mean()  # not drawn, or permuted by the identity
        assert abs(float(unmoved) - (1 - rate * 5 / 6)) <= 5 * math.sqrt(rate * 5 / 6 / 4000)


def test_a_shuffle_takes_each_permutation_equally_often():
    before = torch.arange(3, dtype=torch.float64)[:, None].expand(3, 6000)
    after = moved(shuffle(1.0), "a.weight", before, before, {"a.weight": 0})
    codes, counts = (after * torch.tensor([[1.0], [10.0], [100.0]])).sum(0).unique(return_counts=True)
    assert codes.tolist() == [12.0, 21.0, 102.0, 120.0, 201.0, 210.0]
    assert (counts - 1000).abs().max() <= 5 * math.sqrt(1000 * 5 / 6)


@settings(deadline=None, max_examples=25)
@given(
    tasks=st.lists(st.booleans(), min_size=2, max_size=6),
    rate=st.floats(0, 1),
    last=st.floats(0, 1),
    key=st.integers(0, 2**62),
)
def test_a_shuffle_keeps_every_number_and_leaves_the_others_out(tasks, rate, last, key):
    before = {"a.weight": apart(len(tasks), 5, 4), "b.weight": apart(len(tasks), 3, seed=1)}
    kept = {name: value.clone() for name, value in before.items()}
    out = ~torch.tensor(tasks)
    for name, value in before.items():
        change = shuffle(rate, last, tasks, key)
        after = moved(change, name, value, value, layers_of(before))
        assert torch.equal(value, kept[name])
        assert torch.equal(after.sort(0).values, value.sort(0).values)
        assert torch.equal(after[out], value[out])
        assert torch.equal(after, moved(change, name, value, value, layers_of(before)))


def test_shuffles_differ_by_key_and_tensor_and_spread_no_divergence():
    before = apart(3, 20, 20)
    one, other = (moved(shuffle(0.5, key=key), "a", before, before, {"a": 0}) for key in (1, 2))
    assert not torch.equal(one, other)
    assert not torch.equal(one, moved(shuffle(0.5, key=1), "b", before, before, {"b": 0}))
    before[1] = math.nan
    after = moved(shuffle(1.0, tasks=(True, False, True)), "a", before, before, {"a": 0})
    assert after[[0, 2]].isfinite().all()
    alone = moved(shuffle(1.0, tasks=(False, False, True)), "a", before, before, {"a": 0})
    assert alone is before


def test_a_shuffle_moves_parameters_that_are_one_number():
    before = apart(3)
    after = moved(shuffle(1.0, key=1), "scale", before, before, {"scale": 0})
    assert torch.equal(after.sort().values, before.sort().values)


def test_a_shuffle_leaves_whole_numbers():
    before = torch.arange(12).reshape(3, 4)
    assert moved(shuffle(1.0), "a", before, before, {"a": 0}) is before


def betas(key, name, shape, eta):
    """β number by number, from the formula, with the very u that the engine draws."""
    u = random.uniform(random.fold_in(key, random.seed_of(name)), shape, torch.float64)
    flat = [
        (2 * x) ** (1 / (eta + 1)) if x <= 0.5 else (1 / (2 - 2 * x)) ** (1 / (eta + 1)) for x in u.flatten().tolist()
    ]
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize("eta", [0.0, 2.0, 15.0])
def test_binary_crossover_by_hand(eta):
    before, change = apart(3, 4, 5), binary([2, -1, 0], eta, seed=3)
    after = moved(change, "w", before, before, {"w": 0})
    for t, s in ((0, 2), (2, 0)):
        beta = betas(change.keys[t], "w", (4, 5), eta)
        expected = 0.5 * ((1 + beta) * before[t] + (1 - beta) * before[s])
        torch.testing.assert_close(after[t], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(after[1], before[1])


def test_binary_children_are_symmetric_about_their_parents():
    """Two parents with one key between them have the two children of the paper: their mean is the parents'."""
    before = apart(2, 30, 30)
    key = random.key("shared")
    change = BinaryCross(torch.tensor([1, 0]), torch.full((2,), 2.0, dtype=torch.float64), torch.stack([key, key]))
    children = moved(change, "w", before, before, {"w": 0})
    torch.testing.assert_close(children.sum(0), before.sum(0), rtol=1e-12, atol=1e-12)
    spread = ((children[0] - children[1]) / (before[0] - before[1])).flatten()
    # β: positive; below 1 (between the parents) as often as above; P(β ≤ x) = ½ x^(η+1) there.
    assert (spread > 0).all()
    assert abs(float((spread < 1).double().mean()) - 0.5) <= 5 * 0.5 / 30
    assert abs(float((spread < 0.5).double().mean()) - 0.5**4) <= 5 * math.sqrt(0.5**4) / 30


def test_a_larger_eta_stays_closer_and_whole_numbers_stay():
    before = apart(2, 50, 50)
    far = [
        float((moved(binary([1, -1], eta), "w", before, before, {"w": 0})[0] - before[0]).abs().median())
        for eta in (1.0, 5.0, 50.0)
    ]
    assert far[0] > far[1] > far[2] > 0
    whole = torch.arange(4).reshape(2, 2)
    assert moved(binary([1, 0]), "w", whole, whole, {"w": 0}) is whole


@pytest.mark.parametrize(
    "change",
    [binary([1, -1, -1]), median([1, 1, 0], [0, 1, 0], [0, 0, 1]), shuffle(1.0, tasks=(True, True, False))],
    ids=["binary", "median", "shuffle"],
)
def test_new_moves_read_donors_as_they_were(change):
    """Task 1 becomes a copy of task 2 in the same plan, and that is not what task 0 learns from."""
    copy = mix([1, 0, 0], [0, 0, 1], [0, 0, 1])
    before = {name: value for name, value in stack().items() if value.ndim > 1}
    alone, after = carried_out([change], before), carried_out([copy, change], before)
    for name in before:
        assert torch.equal(after[name][0], alone[name][0])
