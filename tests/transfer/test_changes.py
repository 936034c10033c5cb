"""What each kind of change reads, and what is left of it for some tasks."""

from dataclasses import replace

import pytest
import torch

from kinfold.errors import InputError, RunError
from kinfold.transfer import BinaryCross, Cross, Elastic, Median, Mix, Move, Restart, Shuffle, Teach, Tune


def tasks(*members):
    """The truth values of three tasks, true of those named."""
    return torch.tensor([t in members for t in range(3)])


def pairs(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def names(truth):
    """[T] as the tasks of which it is true, [T, T] as these of every task."""
    if truth.ndim == 1:
        return truth.nonzero().flatten().tolist()
    return [row.nonzero().flatten().tolist() for row in truth]


KEYS = torch.tensor([5, 6, 7])
MIX = Mix(doubles([0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.0, 0.75, 0.25]))
CROSS = Cross(torch.tensor([1, 2, 1]), doubles(0.25, 0.5, 0.75), KEYS)
BINARY = BinaryCross(torch.tensor([1, 2, 1]), doubles(1.0, 2.0, 3.0), KEYS)
MEDIAN = Median(pairs([1, 1, 1], [0, 0, 1], [0, 1, 1]))
ELASTIC = Elastic(doubles(0.5, 0.25, 0.125), doubles(0.3, 0.2, 0.1))
SHUFFLE = Shuffle(tasks(0, 1, 2), 0.5, 0.25, 9)
TEACH = Teach(
    targets=torch.zeros(3, 4, 2),
    weight=doubles([0.5, 0.25, 0.0, 0.5], [0.25, 0.0, 0.25, 0.125], [0.0, 0.75, 0.0, 0.0]),
    teachers=pairs([0, 1, 1], [0, 0, 1], [0, 1, 0]),
    unlabelled=pairs([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]),
)
TUNE = Tune({"lr": doubles(0.1, 0.2, 0.4), "momentum": doubles(0.9, 0.8, 0.7)})
RESTART = Restart(tasks(1, 2))


def test_what_changes_are_by_default():
    assert (CROSS.unit, TEACH.temperature, TUNE.relative) == ("layer", 1.0, False)
    assert (RESTART.key, RESTART.best) == (0, False)
    tried = [type(change) for change in (MIX, CROSS, BINARY, MEDIAN, ELASTIC, SHUFFLE, RESTART) if change.tried]
    assert tried == [Mix, Cross, BinaryCross, Median, Elastic, Shuffle, Restart]
    assert not TEACH.tried
    assert not TUNE.tried


@pytest.mark.parametrize(
    ("change", "lineage"),
    [
        (MIX, [[1, 2], [2], [1]]),
        (CROSS, [[1], [2], [1]]),
        (replace(CROSS, source=torch.tensor([-1, 0, -1])), [[], [0], []]),
        (BINARY, [[1], [2], [1]]),
        (replace(BINARY, source=torch.tensor([-1, 0, -1])), [[], [0], []]),
        (MEDIAN, [[1, 2], [2], [1]]),
        (ELASTIC, [[1, 2], [0, 2], [0, 1]]),
        # Who only pulls on the centre learns nothing, and yet is learned from.
        (replace(ELASTIC, rate=doubles(0.0, 0.25, 0.0)), [[], [0, 2], []]),
        (SHUFFLE, [[1, 2], [0, 2], [0, 1]]),
        (replace(SHUFFLE, tasks=tasks(0, 2)), [[2], [], [0]]),
        (TEACH, [[1, 2], [2], [1]]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_who_learns_from_whom(change, lineage):
    assert names(change.lineage()) == lineage
    assert [(move.recipient, list(move.donors)) for move in change.moves()] == [
        (t, donors) for t, donors in enumerate(lineage) if donors
    ]
    if change.tried:
        assert names(change.touched()) == [t for t, donors in enumerate(lineage) if donors]


def test_what_moves_no_knowledge():
    for change in (TUNE, RESTART):
        assert change.lineage() is None
        assert change.moves() == []
    assert TUNE.touched() is None
    assert TEACH.touched() is None
    assert names(RESTART.touched()) == [1, 2]


def test_the_lines_of_the_log():
    assert MIX.moves() == [Move(0, (1, 2), "mix", 0.5), Move(1, (2,), "copy", 0.0), Move(2, (1,), "blend", 0.25)]
    both = Mix(doubles([0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    assert both.moves() == [Move(0, (1, 2), "mix", 0.0)]  # a copy is of one
    assert [(move.form, move.amount) for move in CROSS.moves()] == [("crossover-layer", r) for r in (0.25, 0.5, 0.75)]
    assert replace(CROSS, unit="parameter").moves()[0].form == "crossover-parameter"
    assert [(move.form, move.amount) for move in BINARY.moves()] == [("crossover-binary", e) for e in (1.0, 2.0, 3.0)]
    assert [(move.form, move.amount) for move in MEDIAN.moves()] == [("median", own) for own in (1.0, 0.0, 1.0)]
    assert [(move.form, move.amount) for move in ELASTIC.moves()] == [("elastic", r) for r in (0.5, 0.25, 0.125)]
    assert [(move.form, move.amount) for move in SHUFFLE.moves()] == [("shuffle", 0.5)] * 3
    assert [(move.form, move.amount) for move in TEACH.moves()] == [("teach", most) for most in (0.5, 0.25, 0.75)]


def test_a_mix_is_left_alone_row_by_row():
    left = MIX.only(tasks(0, 2))
    assert left.weights.tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.75, 0.25]]
    assert left.weights.dtype == torch.float64
    assert MIX.leaving(tasks(1)).weights.tolist() == left.weights.tolist()


def test_a_mix_without_a_donor_shares_out_the_rest_anew():
    """Of who has nothing else left, nothing changes; and no row that does not read the donor."""
    third = 1.0 / 3.0
    rows = [[0.0, 0.25, 0.75], [0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]
    assert Mix(doubles(*rows)).without(tasks(2)).weights.tolist() == [[0.0, 1.0, 0.0], [third, 2 * third, 0.0], rows[2]]
    assert MIX.without(tasks(2)).weights.tolist() == [[2 * third, third, 0.0], [0.0, 1.0, 0.0], [0.0, 0.75, 0.25]]
    assert MIX.without(tasks(1)).weights.tolist() == [[2 * third, 0.0, third], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert MIX.without(tasks()).weights.tolist() == MIX.weights.tolist()
    # A row that reads nobody who is set aside is kept to the last bit, also where its sum is off by rounding.
    off = [[1.0, 0.0, 0.0], [0.1, 0.7, 0.2 + 1e-7], [0.0, 0.0, 1.0]]
    assert Mix(doubles(*off)).without(tasks(1)).weights.tolist() == off


@pytest.mark.parametrize("row", [[0.5, 0.25, 0.0], [0.5, 0.5, 0.25], [1.0, 0.0, 1e-3], [torch.nan, 1.0, 0.0]])
def test_rows_of_a_mix_that_do_not_sum_to_one_are_refused(row):
    with pytest.raises(InputError, match="Mix: rows of the weights must sum to 1"):
        Mix(doubles([1.0, 0.0, 0.0], row, [0.0, 0.0, 1.0]))


@pytest.mark.parametrize("change", [CROSS, BINARY], ids=["layer", "binary"])
def test_a_crossover_for_some_tasks_or_without_some(change):
    assert change.only(tasks(0, 2)).source.tolist() == [1, -1, 1]
    assert change.leaving(tasks(0)).source.tolist() == [-1, 2, 1]
    assert change.without(tasks(1)).source.tolist() == [-1, 2, -1]
    assert change.without(tasks(2)).source.tolist() == [1, -1, 1]
    # Who has no donor reads nobody, whoever is set aside.
    assert replace(change, source=torch.tensor([0, -1, 0])).without(tasks(1)).source.tolist() == [0, -1, 0]
    assert replace(change, source=torch.tensor([-1, 0, 1])).without(tasks(0)).source.tolist() == [-1, -1, 1]
    # What is drawn for the others stays as it was.
    assert change.only(tasks(0)).keys is change.without(tasks(0)).keys is change.keys


def test_a_median_for_some_tasks_or_without_some():
    assert names(MEDIAN.only(tasks(0, 1)).members) == [[0, 1, 2], [2], []]
    assert names(MEDIAN.leaving(tasks(0)).members) == [[], [2], [1, 2]]
    # Who is set aside still has a say in what becomes of itself.
    assert names(MEDIAN.without(tasks(2)).members) == [[0, 1], [], [1, 2]]
    assert names(MEDIAN.without(tasks(0)).members) == names(MEDIAN.members)


def test_an_elastic_pull_without_some_tasks_and_past_others():
    """Set aside, a task neither pulls nor is pulled; left as it is, it still pulls on the centre."""
    without = ELASTIC.without(tasks(1))
    assert (without.rate.tolist(), without.centre_rate.tolist()) == ([0.5, 0.0, 0.125], [0.3, 0.0, 0.1])
    leaving = ELASTIC.leaving(tasks(1))
    assert (leaving.rate.tolist(), leaving.centre_rate.tolist()) == ([0.5, 0.0, 0.125], [0.3, 0.2, 0.1])


def test_a_shuffle_without_some_tasks():
    for left in (SHUFFLE.without(tasks(1)), SHUFFLE.leaving(tasks(1))):
        assert names(left.tasks) == [0, 2]
        assert (left.rate, left.last_rate, left.key) == (0.5, 0.25, 9)
    # Nobody comes to take part by being set aside or left as it is.
    two = replace(SHUFFLE, tasks=tasks(0, 1))
    assert names(two.without(tasks(1, 2)).tasks) == names(two.leaving(tasks(1, 2)).tasks) == [0]


@pytest.mark.parametrize("change", [ELASTIC, SHUFFLE], ids=["elastic", "shuffle"])
def test_what_is_one_for_all_cannot_be_for_some(change):
    with pytest.raises(RunError, match=f"{type(change).__name__} changes tasks at one moment"):
        change.only(tasks(0))


def test_a_lesson_for_some_tasks():
    left = TEACH.only(tasks(0, 2))
    assert left.weight.tolist() == [[0.5, 0.25, 0.0, 0.5], [0.0] * 4, [0.0, 0.75, 0.0, 0.0]]
    assert names(left.teachers) == [[1, 2], [], [1]]
    assert names(left.unlabelled) == [[0], [], [2]]
    assert replace(TEACH, weight=doubles(0.5, 0.25, 0.75)).only(tasks(1)).weight.tolist() == [0.0, 0.25, 0.0]
    assert TEACH.leaving(tasks(0)) is TEACH  # a lesson is no parameter


def test_options_for_some_tasks():
    left = TUNE.only(tasks(1)).values
    assert {name: value.nan_to_num(nan=-1.0).tolist() for name, value in left.items()} == {
        "lr": [-1.0, 0.2, -1.0],
        "momentum": [-1.0, 0.8, -1.0],
    }
    factors = replace(TUNE, relative=True).leaving(tasks(1))
    assert factors.relative
    assert factors.values["lr"].isnan().tolist() == [False, True, False]


def test_a_restart_for_some_tasks():
    best = replace(RESTART, key=3, best=True).only(tasks(0, 1))
    assert (names(best.tasks), best.key, best.best) == ([1], 3, True)
    assert names(RESTART.leaving(tasks(1)).tasks) == [2]


@pytest.mark.parametrize("change", [TEACH, TUNE, RESTART], ids=["teach", "tune", "restart"])
def test_what_reads_no_parameters_has_nobody_to_set_aside(change):
    assert change.without(tasks(1)) is change
