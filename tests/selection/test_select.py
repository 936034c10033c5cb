import math

import pytest
import torch
from scipy.stats import rankdata

from kinfold.errors import InputError
from kinfold.selection import CRITERIA, overall, select

NAN = math.nan
#              mean   worst
S = [
    [0.9, 0.9, 0.3],  # 0.7    0.3
    [0.7, 0.7, 0.6],  # 0.667  0.6
    [0.8, 0.8, 0.4],  # 0.667  0.4
]


def matrix(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("mean", [0.7, 2 / 3, 2 / 3]),
        ("worst", [0.3, 0.6, 0.4]),
        ("rank", [-(1 + 1 + 3) / 3, -(3 + 3 + 1) / 3, -2.0]),
        # sd = √(Σ(x − mean)² / 2): √0.12, √(1/300), √(4/75)
        (
            "lower",
            [
                mean - 1.645 * math.sqrt(variance / 3)
                for mean, variance in [(0.7, 0.12), (2 / 3, 1 / 300), (2 / 3, 4 / 75)]
            ],
        ),
    ],
)
def test_criteria_by_hand(criterion, expected):
    torch.testing.assert_close(overall(matrix(S), criterion), torch.tensor(expected, dtype=torch.float64))


def test_ranks_share_ties_as_scipy_has_it():
    scores = torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    expected = -rankdata(-scores.numpy(), axis=0).mean(axis=1)
    torch.testing.assert_close(overall(scores, "rank"), torch.from_numpy(expected))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_with_a_nan_has_no_score_and_comes_last(criterion):
    scores = matrix([[NAN, 0.9], [0.1, 0.1], [0.2, 0.2]])
    assert overall(scores, criterion).isnan().tolist() == [True, False, False]
    assert select(scores, torch.zeros_like(scores), criterion) == 2
    assert select(torch.zeros_like(scores), scores, criterion) == 1
    assert select(scores * NAN, scores, criterion) == 0


def test_a_nan_ranks_behind_every_number_on_its_set():
    assert overall(matrix([[NAN, 0.1], [-math.inf, 0.2], [0.5, 0.3]]), "rank")[1:].tolist() == [-2.0, -1.0]


def test_a_lower_bound_needs_two_sets_to_differ_from_the_mean():
    two, one = matrix([[0.9, 0.5], [0.6, 0.6]]), matrix([[0.9], [0.5]])
    expected = torch.tensor([0.7 - 1.645 * 0.2, 0.6], dtype=torch.float64)  # sd √0.08, over √2
    torch.testing.assert_close(overall(two, "lower"), expected)
    assert overall(one, "lower").tolist() == [0.9, 0.5]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_set_and_one_model_are_enough(criterion):
    assert select(matrix([[0.3], [0.4]]), matrix([[0.0], [0.0]]), criterion) == 1
    assert select(matrix([[0.3, 0.1]]), matrix([[0.0, 1.0]]), criterion) == 0


def test_ties_go_to_the_lower_loss_and_then_to_the_first():
    tied = matrix([[0.1, 0.7, 0.3], [0.3, 0.7, 0.1], [0.3, 0.7, 0.1]])
    assert select(tied, matrix([[0.5] * 3, [0.4] * 3, [0.4] * 3])) == 1
    assert select(tied, matrix([[0.5] * 3] * 3)) == 0


@pytest.mark.parametrize(("criterion", "expected"), [("mean", 1), ("worst", 0)])
def test_losses_are_made_one_number_by_the_same_criterion(criterion, expected):
    level = matrix([[0.5, 0.5]] * 2)
    losses = matrix([[0.5, 0.5], [0.1, 0.8]])
    assert select(level, losses, criterion) == expected
    assert select(matrix([[0.9, 0.9], [0.1, 0.1]]), losses, criterion, better="loss") == expected


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="criterion: unknown name 'median'"):
        overall(matrix(S), "median")
    with pytest.raises(InputError, match="better: unknown name"):
        select(matrix(S), matrix(S), better="accuracy")
