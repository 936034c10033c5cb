import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.selection import Ledger, exposed_share


def bits(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator) < 0.3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), T=st.integers(1, 5), n=st.integers(1, 9), with_rows=st.booleans())
def test_against_sets_of_rows(seed, T, n, with_rows):
    g = torch.Generator().manual_seed(seed)
    ledger = Ledger.start(bits(g, T, n))
    sets = [set(row.nonzero().flatten().tolist()) for row in ledger.exposed]
    for _ in range(3):
        lineage, accepted, rows = bits(g, T, T), bits(g, T), bits(g, T, n)
        after = ledger.after(lineage, accepted, rows if with_rows else None)
        before = [set(seen) for seen in sets]
        for t in range(T):
            if accepted[t]:
                for s in range(T):
                    if lineage[t, s]:
                        sets[t] |= before[s]
                if with_rows:
                    sets[t] |= set(rows[t].nonzero().flatten().tolist())
        assert [set(row.nonzero().flatten().tolist()) for row in after.exposed] == sets
        assert (after.exposed | ~ledger.exposed).all()  # it only grows
        ledger = after


def test_nothing_is_changed_in_place():
    train = torch.eye(2, dtype=torch.bool)
    ledger = Ledger.start(train)
    ledger.after(torch.ones(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), ~train)
    assert torch.equal(ledger.exposed, torch.eye(2, dtype=torch.bool))
    train.fill_(True)
    assert not ledger.exposed.all()


def test_who_learns_of_no_further_row_leaves_the_ledger_as_it_is():
    ledger = Ledger(torch.tensor([[True, True, True], [True, True, False]]))
    both = torch.tensor([True, True])
    assert ledger.after(torch.tensor([[False, True], [False, False]]), both) is ledger  # the second learns nothing
    learned = ledger.after(torch.tensor([[False, False], [True, False]]), both)
    assert learned.exposed.all()
    assert not ledger.exposed.all()


def test_more_donors_than_a_byte_counts():
    T = 300
    ledger = Ledger.start(torch.ones(T, 1, dtype=torch.bool) & (torch.arange(T) > 0)[:, None])
    accepted = torch.arange(T) == 0
    assert ledger.after(torch.ones(T, T, dtype=torch.bool), accepted).exposed[0].all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(1, 4), T=st.integers(1, 3))
def test_exposed_share_is_a_share_of_each_sets_rows(seed, K, T):
    g = torch.Generator().manual_seed(seed)
    exposed, validation = bits(g, K, 12), bits(g, T, 12)
    validation[:, 0] = True
    share = exposed_share(exposed, validation)
    for k in range(K):
        for j in range(T):
            seen = sum(bool(exposed[k, i]) for i in range(12) if validation[j, i])
            torch.testing.assert_close(share[k, j].item(), seen / int(validation[j].sum()))
