import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.tasks.order import row_orders, steps_in


@st.composite
def masks(draw):
    """Training and unlabelled rows [T, N] that do not overlap, with at least one training row a task."""
    T, N = draw(st.integers(1, 4)), draw(st.integers(2, 25))
    kinds = torch.tensor(draw(st.lists(st.lists(st.integers(0, 2), min_size=N, max_size=N), min_size=T, max_size=T)))
    kinds[:, 0] = 0
    return kinds == 0, kinds == 1


@settings(deadline=None, max_examples=60)
@given(masks=masks(), seed=st.integers(0, 5), period=st.integers(1, 5))
def test_each_task_visits_its_own_rows_in_the_order_of_all(masks, seed, period):
    train, _ = masks
    everything = row_orders(seed, period, torch.ones(1, train.shape[1], dtype=torch.bool))[0]
    place = torch.argsort(everything)
    for order, own in zip(row_orders(seed, period, train), train, strict=True):
        assert torch.equal(order.sort().values, own.nonzero().flatten())
        assert (place[order].diff() > 0).all()


@settings(deadline=None, max_examples=60)
@given(masks=masks(), seed=st.integers(0, 5))
def test_unlabelled_rows_come_in_and_the_period_keeps_its_length(masks, seed):
    train, unlabelled = masks
    everything = row_orders(seed, 1, torch.ones(1, train.shape[1], dtype=torch.bool))[0]
    for t, order in enumerate(row_orders(seed, 1, train, unlabelled)):
        pool = [row for row in everything.tolist() if train[t, row] or unlabelled[t, row]]
        assert order.tolist() == pool[: int(train[t].sum())]


def test_the_order_is_new_in_every_period_and_for_every_seed():
    train = torch.ones(1, 50, dtype=torch.bool)
    orders = {tuple(row_orders(seed, period, train)[0].tolist()) for seed in range(3) for period in range(1, 4)}
    assert len(orders) == 9


def test_steps():
    assert [steps_in(rows, 4) for rows in (1, 3, 4, 7, 8, 11)] == [1, 1, 1, 1, 2, 2]
