"""What plans do to stacked tensors (`kinfold.engines.moves`)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold import random
from kinfold.engines.moves import blended, donors_of, layers_of, moved
from kinfold.transfer import Cross, Mix, Tune

NAMES = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.running_mean", "body.1.num_batches_tracked", "scale"]
LAYERS = layers_of(NAMES)


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
