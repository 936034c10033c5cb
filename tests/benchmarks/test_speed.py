import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "speed"))

import limit
from cell import turn, warm_up
from check import TOLERANCE, ends, furthest
from contestants import CannotRunError, Contestant
from limit import Convolution, Product, layers
from steps import append, on_record
from steps_table import Cell, plots, spread, table
from work import BATCH, make_work

from kinfold.engines import products


class Fake(Contestant):
    """Counts its steps, and takes a given time for each by the fake clock."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.calls = clock, seconds, []

    def run(self, steps):
        self.calls.append(steps)
        self.clock["now"] += steps * self.seconds

    def parameters(self):
        return {}


@pytest.fixture
def clock(monkeypatch):
    now = {"now": 0.0}
    monkeypatch.setattr("cell.time.perf_counter", lambda: now["now"])
    return now


def a_cell(tasks=2, **changes):
    seconds = {"loop": [4.0, 2.0, 6.0], "jax": [2.0, 2.0, 2.0], "vectorised": [1.0, 1.0, 1.5]}
    limits = {"limit": [0.5, 0.5, 0.5], "limit-together": [1.0, 1.0, 1.0]}
    return Cell(
        **{
            **{"model": "mlp", "tasks": tasks, "device": "cpu", "precision": "float32", "threads": 2},
            **{"seconds": seconds | limits, "skipped": {"workers": "no fork"}, "notes": {}},
            **{"memory": {"loop": 4_000_000}, "needed": 1_000_000},
            **changes,
        }
    )


@pytest.mark.parametrize("model", ["mlp", "lenet5"])
@pytest.mark.parametrize("contestant", ["vectorised", "workers", "processes"])
def test_contestants_do_the_same_work(model, contestant):
    plain = ends(model, 2, 2, "loop")
    assert furthest(plain, ends(model, 2, 0, "loop")) > 5 * TOLERANCE
    assert furthest(plain, ends(model, 2, 2, contestant)) <= TOLERANCE


def test_batches_are_rows_of_each_task_s_own():
    work = make_work("mlp", 3)
    assert work.batches.shape[1:] == (3, BATCH)
    for t in range(3):
        rows = work.batches[:, t].flatten()
        assert len(rows.unique()) == len(rows)
        assert bool(work.job.train[t][rows].all())
    assert not torch.equal(work.batches[:, 0], work.batches[:, 1])


def test_a_turn_lasts_as_long_as_asked_and_gives_the_time_of_a_step(clock):
    fake = Fake(clock, 0.25)
    assert turn(fake, 2, 1.2) == pytest.approx(0.25)
    assert fake.calls == [2, 2, 2]


@pytest.mark.parametrize(("step", "block"), [(0.001, 64), (0.02, 16), (0.4, 1)])
def test_blocks_are_shorter_than_turns(clock, step, block):
    assert warm_up(Fake(clock, step), seconds=0.5, limit=1.0) == block


def test_a_contestant_that_is_too_slow_is_left_out(clock):
    with pytest.raises(CannotRunError, match="a step takes 3 s"):
        warm_up(Fake(clock, 3.0), seconds=0.5, limit=1.0)


def test_ratios_are_taken_within_a_turn_and_the_table_says_who_is_missing():
    text = table([a_cell()])
    row = next(line for line in text.splitlines() if "vectorised" in line and line.startswith("| 2"))
    cells = [part.strip() for part in row.strip("|").split("|")]
    assert cells[4] == "4.00 (3.00–4.00)"  # of 4, 2 and 4; the ratio of the medians happens to be the same
    assert cells[5] == "2.00 (1.67–2.00)"  # of 2, 2 and 1.33, to jax
    assert cells[6] == "1.00 (1.00–1.00)"  # itself, the only engine
    assert cells[7] == "50 (42–50) %"
    assert "- T = 2, workers: no fork" in text
    assert "| 2.00 |" in next(line for line in text.splitlines() if line.startswith("| 2 | loop"))
    assert set(plots([a_cell(), a_cell(4)])) == {"mlp"}


def test_spread_is_median_and_quartiles():
    assert spread(np.arange(1.0, 6.0)) == "3.00 (2.00–4.00)"


def test_records_come_back_by_device_and_precision(tmp_path):
    path = tmp_path / "records" / "steps.jsonl"
    for cell in (a_cell(), a_cell(4, precision="bf16")):
        append(path, vars(cell))
    assert on_record(path, "cpu", "float32") == [a_cell()]
    assert on_record(tmp_path / "none", "cpu", "float32") == []


def test_products_of_an_mlp_are_those_of_its_layers():
    work = make_work("mlp", 1)
    found = layers(work.starts()[0], work.inputs[:BATCH])
    assert [(p.m, p.k, p.n) for p in found] == [
        *((64, 64, 128), (128, 64, 64)),  # no gradient with respect to the data
        *((64, 128, 128), (128, 64, 128), (64, 128, 128)),
        *((64, 128, 10), (10, 64, 128), (64, 10, 128)),
    ]


def test_multiplications_of_convolutions_and_of_an_lstm():
    counts = {}
    for model in ("lenet5", "lstm"):
        work = make_work(model, 1)
        found = layers(work.starts()[0], work.inputs[:BATCH])
        flat = [p for layer in found for p in (layer.products() if isinstance(layer, Convolution) else [layer])]
        counts[model] = sum(p.m * p.k * p.n * p.times for p in flat)
    first, second, dense = 64 * 784 * 6 * 25, 64 * 100 * 16 * 150, 64 * (400 * 120 + 120 * 84 + 84 * 10)
    assert counts["lenet5"] == 2 * first + 3 * second + 3 * dense
    assert counts["lstm"] == 64 * 64 * 512 * (2 * 4 + 3 * 128) + 3 * 64 * 128 * 10


@pytest.mark.parametrize("product", [Product(3, 4, 5), Product(3, 4, 5, left=True), Product(3, 4, 5, right=True)])
def test_all_forms_of_a_product_multiply_the_same(product):
    made, generator = [], torch.Generator().manual_seed(0)

    def make(*shape):
        made.append(torch.randn(*shape, generator=generator))
        return made[-1]

    forms = list(limit._product_forms(product, 2, make))
    assert len(forms) == (4 if products.halves_vectors() else 2)
    left = made[0].mT if product.left else made[0]
    right = made[1].mT if product.right else made[1]
    for form in forms:
        made[2].zero_()
        form()
        assert torch.allclose(made[2], left @ right, atol=1e-6)


def test_the_limit_of_every_structure_runs_and_gives_the_threads_back():
    before = torch.get_num_threads()
    for model in ("mlp", "lenet5"):
        limit.Limit(make_work(model, 2)).run(1)
    assert torch.get_num_threads() == before
