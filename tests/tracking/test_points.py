import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.tracking import Move, Point
from kinfold.tracking.points import MAX_PAIRED, Curves, clean_name, ending_of, flattened

ACC = "validation/accuracy"


def period(number, loss=(0.5, 0.75), metric=(0.25, None)):
    event = {"event": "period", "period": number, "train_loss": list(loss), "metric": list(metric)}
    return event | {"loss": [1.0] * len(loss), "lr": [0.1] * len(loss), "seconds": 2.0}


def transfer(number, *moves):
    named = ("recipient", "donors", "accepted", "times")
    return {"event": "transfer", "period": number, "transfers": [dict(zip(named, m, strict=False)) for m in moves]}


def test_a_period_by_hand():
    points = Curves(2, ACC).points(period(3))
    assert set(points) == {
        Point(0, "train/loss", 3, 0.5),
        Point(1, "train/loss", 3, 0.75),
        Point(None, "train/loss", 3, 0.625),
        Point(0, "validation/loss", 3, 1.0),
        Point(1, "validation/loss", 3, 1.0),
        Point(None, "validation/loss", 3, 1.0),
        Point(0, ACC, 3, 0.25),  # task 1 has none, and so there is no mean
        Point(0, "lr", 3, 0.1),
        Point(1, "lr", 3, 0.1),
        Point(None, "lr", 3, 0.1),
        Point(None, "period_seconds", 3, 2.0),
    }


def test_transfers_are_counted_and_given_once_a_period():
    curves = Curves(2, ACC)
    curves.points(period(1))
    assert curves.points(transfer(1, (0, [1], True, 4), (1, [0], False))) == ()
    assert curves.points(transfer(1, (1, [0], True))) == ()
    points = [point for point in curves.points(period(2)) if point.name.startswith("transfers/")]
    assert set(points) == {
        Point(0, "transfers/proposed", 1, 4),
        Point(0, "transfers/accepted", 1, 4),
        Point(1, "transfers/proposed", 1, 2),
        Point(1, "transfers/accepted", 1, 1),
        Point(None, "transfers/proposed", 1, 6),
        Point(None, "transfers/accepted", 1, 5),
        Point(0, "transfers/proposed_from_task-1", 1, 4),
        Point(0, "transfers/accepted_from_task-1", 1, 4),
        Point(1, "transfers/proposed_from_task-0", 1, 2),
        Point(1, "transfers/accepted_from_task-0", 1, 1),
    }
    assert curves.moves() == (Move(0, 1, 4, 4), Move(1, 0, 2, 1))
    assert curves.rest() == ()
    curves.points(transfer(2, (0, [1], False)))
    assert Point(0, "transfers/proposed", 2, 5) in curves.rest()


def test_many_tasks_have_no_curves_of_pairs_but_all_moves():
    T = MAX_PAIRED + 1
    curves = Curves(T, ACC)
    curves.points(period(1, [1.0] * T, [1.0] * T))
    curves.points(transfer(1, (0, list(range(1, T)), True)))
    assert not [point for point in curves.rest() if "_from_" in point.name]
    assert len(curves.moves()) == T - 1


def test_a_student_and_the_machine():
    curves = Curves(1, ACC)
    student = {"event": "student", "period": 9, "train_loss": 0.5, "lr": None}
    assert curves.points(student) == (Point(None, "student/train_loss", 9, 0.5),)
    machine = {"event": "system", "period": 9, "process_bytes": 2e6}
    assert curves.points(machine) == (Point(None, "system/process_memory_megabytes", 9, 2.0),)
    assert curves.points({"event": "note", "message": "x"}) == ()
    assert curves.period == 9


MOVES = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), unique=True), st.booleans()), max_size=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(MOVES, max_size=3)), min_size=1, max_size=5))
def test_no_curve_has_two_points_at_one_place(periods):
    curves, points = Curves(3, ACC), []
    for number, (several,) in enumerate(periods, 1):
        points += curves.points(period(number, [1.0] * 3, [1.0] * 3))
        for moves in several:
            points += curves.points(transfer(number, *moves))
    points += curves.rest()
    places = [(point.task, point.name, point.period) for point in points]
    assert len(places) == len(set(places))
    last = {(p.task, p.name): p.value for p in points}
    assert last.get((None, "transfers/proposed"), 0) == sum(len(m) for (several,) in periods for m in several)


def test_names_and_leaves():
    assert clean_name("é$ (x)/y") == "-- -x-/y"
    config = {"a": {"b": {"c": True}, "d": []}, "e": [{"name": "x"}], "f": None, "g": {}, "h": "words"}
    assert flattened(config) == {"a.b.c": True, "a.d": "[]", "e": '[{"name": "x"}]', "g": "{}", "h": "words"}


def test_an_ending_leaves_out_what_is_not_there(tmp_path: Path):
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "splits.safetensors").write_text("rows")
    result = {
        "tasks": 2,
        "estimate": None,
        "selected": {"score": None},
        "epochs_run": 3,
        "cost": {"wall_seconds": 1.5},
        "scores": {
            "own": [0.5, None],
            "matrix": [[0.5, 1.0], [None, 1.0]],
            "loss_matrix": [[2.0, 3.0], [4.0, 5.0]],
            "exposed": [[0.0, 1.0], [1.0, 0.0]],
        },
    }
    ending = ending_of(json.loads(json.dumps(result)), Curves(2, ACC), tmp_path)
    assert ending.values == {"epochs_run": 3.0, "cost/wall_seconds": 1.5}
    own = {"final/own_score": 0.5, "final/own_loss": 2.0, "final/mean_score": 0.75, "final/exposed_share": 0.5}
    assert ending.task_values == (own, {"final/own_loss": 5.0, "final/exposed_share": 0.5})
    assert [path.name for path in ending.files] == ["result.json"]
