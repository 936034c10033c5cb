import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kinfold
from kinfold import random
from kinfold.errors import InputError
from kinfold.methods import MKOR, Trainer
from kinfold.methods.mkor import preconditioned, sherman_morrison, updated_inverse, watched

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def test_the_inverse_is_that_of_the_dense_factor():
    factor = inverse = torch.eye(6, dtype=F64)
    for step in range(50):
        v = drawn(6, seed=step)
        # The dense factor has the inverse that has decayed, and the new statistic.
        factor = torch.linalg.inv(0.95 * torch.linalg.inv(factor) + 0.05 * torch.eye(6, dtype=F64)) + torch.outer(v, v)
        inverse = updated_inverse(inverse, v)
        torch.testing.assert_close(inverse, torch.linalg.inv(factor), rtol=1e-9, atol=1e-12)
        assert torch.linalg.eigvalsh(inverse).min() > 0
    v = drawn(6, seed=99)
    torch.testing.assert_close(sherman_morrison(inverse, v), torch.linalg.inv(factor + torch.outer(v, v)))


@pytest.mark.parametrize("biased", [True, False])
def test_a_preconditioned_gradient_is_as_long_as_it_was(biased):
    weight, bias = drawn(4, 3, 2), drawn(4, seed=1) if biased else None
    square = [drawn(n, n, seed=n) for n in (6 + biased, 4)]
    A, G = (torch.linalg.inv(part @ part.T + torch.eye(len(part))) for part in square)
    new, new_bias = preconditioned(weight, bias, A, G)
    both = weight.flatten(1) if bias is None else torch.cat([weight.flatten(1), bias[:, None]], 1)
    dense = torch.linalg.solve(torch.linalg.inv(G), both) @ A
    given = new.flatten(1) if bias is None else torch.cat([new.flatten(1), new_bias[:, None]], 1)
    torch.testing.assert_close(F.normalize(given.flatten(), dim=0), F.normalize(dense.flatten(), dim=0))
    lengths = [
        sum(float(part.norm()) for part in parts if part is not None) for parts in ((weight, bias), (new, new_bias))
    ]
    assert lengths[0] == pytest.approx(lengths[1])
    zero, _ = preconditioned(torch.zeros(4, 6, dtype=F64), None, torch.eye(6, dtype=F64), G)
    assert torch.equal(zero, torch.zeros(4, 6, dtype=F64))


def reference(module, x, y, batches, rate, every):
    """MKOR with SGD in a plain loop with dense inverses."""
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    factors = [
        [torch.eye(layer.in_features + 1, dtype=F64), torch.eye(layer.out_features, dtype=F64)] for layer in layers
    ]
    for step, rows in enumerate(batches):
        met, given = [], []
        hidden = x[rows]
        for layer in module:
            if isinstance(layer, nn.Linear):
                met.append(torch.cat([hidden.detach().mean(0), torch.ones(1, dtype=F64)]))
            hidden = layer(hidden)
            if isinstance(layer, nn.Linear):
                hidden.retain_grad()
                given.append(hidden)
        module.zero_grad()
        F.cross_entropy(hidden, y[rows]).backward()
        with torch.no_grad():
            for layer, pair, a, out in zip(layers, factors, met, given, strict=True):
                if step % every == 0:
                    for i, v in enumerate((a, out.grad.sum(0))):
                        eye = torch.eye(len(v), dtype=F64)
                        decayed = torch.linalg.inv(0.95 * torch.linalg.inv(pair[i]) + 0.05 * eye)
                        pair[i] = eye if step == 0 else decayed + torch.outer(v, v)
                both = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
                new = torch.linalg.inv(pair[1]) @ both @ torch.linalg.inv(pair[0])
                length = [part[:, :-1].norm() + part[:, -1].norm() for part in (both, new)]
                new = new * (length[0] / length[1])
                layer.weight -= rate * new[:, :-1]
                layer.bias -= rate * new[:, -1]


def test_a_run_is_that_of_the_plain_loop_with_dense_inverses():
    x, y = drawn(40, 5), torch.arange(40) % 3
    with random.seeded(torch.device("cpu"), "mkor"):
        module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    other = copy.deepcopy(module)
    trainer = Trainer(module, torch.optim.SGD(module.parameters(), lr=0.1), [MKOR(every=2)], x, y, batch_size=8)
    batches = list(trainer.batches())
    for rows in batches:
        trainer.step(rows)
    reference(other, x, y, batches, rate=0.1, every=2)
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hybrid", [False, True])
def test_engines_agree(hybrid):
    def fitted(engine):
        options = {"tasks": 3, "epochs": 2, "seed": 1, "precision": "float64", "transfer": "amto", "accumulate": 2}
        method = MKOR(every=2, hybrid=hybrid, window=8, gain=0.3)
        return kinfold.fit(network, "digits", engine=engine, methods=[method], **options)

    one, other = fitted("sequential"), fitted("vectorised")
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-8, atol=1e-11)


def test_both_inverses_of_a_layer_begin_anew():
    method, state = MKOR(every=1), {"steps": torch.tensor(5), "pending": torch.tensor(1.0)}
    for start, n in (("inverse_a/", 3), ("inverse_g/", 2)):
        state |= {f"{start}0": 2.5 * torch.eye(n), f"mean_{start}0": 1e-3 * torch.ones(n)}
        state |= {f"anew_{start}0": torch.tensor(False)}
    params = {"0.weight": torch.ones(2, 3)}
    _, state = method.before_step(params, params, state)
    assert bool(state["anew_inverse_a/0"])
    assert torch.equal(state["inverse_g/0"], torch.eye(2))  # it was told of by the other, in the same step
    _, state = method.before_step(params, params, state)
    assert torch.equal(state["inverse_a/0"], torch.eye(3))
    assert not bool(state["anew_inverse_a/0"])
    _, again = MKOR(every=4).before_step(params, params, state)  # at step 7 nothing is due
    assert torch.equal(again["inverse_a/0"], torch.eye(3))
    assert int(again["steps"]) == 8


def test_the_hybrid_falls_back_for_good():
    state = {
        "second_order": torch.tensor(True),
        "loss_sum": torch.tensor(0.0),
        "loss_before": torch.tensor(torch.inf),
        "seen": torch.tensor(0),
    }
    told = []
    for loss in (1.0, 0.8, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1):
        state |= watched(torch.tensor(loss), state, window=2, gain=0.1)
        told.append(bool(state["second_order"]))
    assert told == [True, True, True, True, True, False, False, False]
    names = {"inverse_a/0": torch.eye(3), "inverse_g/0": torch.eye(2), "steps": torch.tensor(1)}
    names |= {f"mean_{n}": torch.zeros(len(v)) for n, v in list(names.items())[:2]} | {"pending": torch.tensor(1.0)}
    names |= {f"anew_{n}": torch.tensor(False) for n in ("inverse_a/0", "inverse_g/0")}
    grads = {"0.weight": drawn(2, 3).float()}
    names["inverse_a/0"] = torch.diag(torch.tensor([1.0, 0.5, 0.1]))
    assert torch.equal(MKOR(hybrid=True).before_step(grads, grads, state | names)[0]["0.weight"], grads["0.weight"])
    moved = MKOR().before_step(grads, grads, names)[0]["0.weight"]
    assert not torch.allclose(moved, grads["0.weight"])


def test_misuse():
    for options, message in (
        ({"every": 0}, "every is 0"),
        ({"window": 0}, "window is 0"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"largest": 1}, "largest is 1"),
        ({"gain": -1}, "gain is -1"),
    ):
        with pytest.raises(InputError, match=f"mkor: {message}"):
            MKOR(**options)
    with pytest.raises(InputError, match="'2' is no linear layer .* has '1', '3'"):
        kinfold.fit(network, "digits", tasks=1, epochs=1, methods=[MKOR(layers=("2",))])
