import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kinfold.tracking.progress import Board, LiveProgress, after, message_of, print_message, printable, render


def period(number, loss, metric, improved):
    return {
        "event": "period",
        "period": number,
        "train_loss": loss,
        "metric": metric,
        "improved": improved,
        "seconds": 0.5,
        "epochs": 10,
    }


EVENTS = (
    {"event": "finding", "severity": "warning", "message": "two [bold]rows[/bold] are\nequal \x1b[31m"},
    period(1, [0.9, None], [0.5, None], [True, False]),
    {
        "event": "transfer",
        "period": 1,
        "rule": "amto",
        "transfers": [
            {"recipient": 1, "donors": [0], "form": "copy", "accepted": True},
            {"recipient": 0, "donors": [1], "form": "copy", "accepted": False},
        ],
    },
    period(2, [0.7, 0.8], [0.4, 0.6], [False, True]),
)


def played(events):
    board = Board()
    for event in events:
        board = after(board, event)
    return board


def text(renderable):
    stream = io.StringIO()
    Console(file=stream, width=100).print(renderable)
    return stream.getvalue()


def test_a_board_follows_the_events():
    board = played(EVENTS)
    assert board == Board(
        epochs=10,
        period=2,
        seconds=1.0,
        train_loss=(0.7, 0.8),
        score=(0.4, 0.6),
        best=(0.5, 0.6),
        improved=(False, True),
        proposed=(1, 1),
        accepted=(0, 1),
    )


def test_what_is_shown():
    assert "preparing" in text(render(Board(3)))
    lines = text(render(played(EVENTS))).splitlines()
    assert lines[0].split() == ["task", "training", "loss", "validation", "best", "transfers", "taken"]
    assert lines[1].split() == ["0", "0.7000", "0.4000", "0.5000", "0", "of", "1"]
    assert lines[2].split() == ["1", "0.8000", "0.6000", "*", "0.6000", "1", "of", "1"]
    assert lines[3].split()[-4:] == ["2/10", "epochs", "2", "epochs/s"]
    assert text(render(played(EVENTS[:2]))).splitlines()[2].split() == ["1", "–", "–", "–", "0", "of", "0"]


def test_moves_inside_a_period_are_counted_by_their_times():
    """Of 3 and 2 refused, 1 at a period's end."""
    moves = [
        {"recipient": 0, "donors": [1], "form": "mix", "accepted": True, "times": 3},
        {"recipient": 0, "donors": [1], "form": "mix", "accepted": False, "times": 2},
        {"recipient": 0, "donors": [1], "form": "copy", "accepted": True},
        {"recipient": 1, "donors": [0], "form": "mix", "accepted": False, "times": 4},
    ]
    board = played((*EVENTS[1:2], {"event": "transfer", "period": 1, "rule": "papa", "transfers": moves}))
    assert (board.proposed, board.accepted) == ((6, 4), (4, 0))


def student(epoch, loss):
    return {
        "event": "student",
        "period": 2 + epoch,
        "epoch": epoch,
        "epochs": 5,
        "train_loss": loss,
        "lr": 0.1,
        "seconds": 0.1,
    }


def test_a_student_has_a_bar_of_its_own():
    tasks = played(EVENTS)
    board = played((*EVENTS, student(1, 0.9), student(2, 0.8)))
    assert board.student == (2, 5, 0.8)
    assert (board.period, board.seconds, board.score) == (tasks.period, tasks.seconds, tasks.score)
    assert "one model on all rows" not in text(render(tasks))
    (line,) = [line for line in text(render(board)).splitlines() if "one model on all rows" in line]
    assert "2/5 epochs" in line
    assert "training loss 0.8000" in line
    assert "training loss –" in text(render(played((*EVENTS, student(3, None)))))


def test_only_findings_and_notes_have_a_line(capsys):
    for event in EVENTS:
        print_message(event)
    assert capsys.readouterr() == ("", "warning: two [bold]rows[/bold] are\\nequal \\x1b[31m\n")
    assert message_of({"event": "note", "message": "m"}) == "note: m"
    assert message_of(EVENTS[1]) is None


def test_on_a_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with LiveProgress(console) as listen:
        for event in EVENTS:
            listen(event)
    assert listen.board == played(EVENTS)
    shown = stream.getvalue()
    assert "[bold]rows[/bold]" in shown
    assert "\\x1b[31m" in shown
    assert "2/10 epochs" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_the_terminal_is_given_back_on_an_error():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LiveProgress(Console(file=stream, force_terminal=True)):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in stream.getvalue()


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_printable_text_is_one_line_that_steers_nothing(words):
    safe = printable(words)
    assert safe.isprintable()
    assert len(safe.splitlines()) <= 1
    assert printable(safe) == safe
