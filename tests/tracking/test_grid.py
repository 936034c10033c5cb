import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kinfold.tracking.grid import Grid, after, line_of, live_grid, plain_grid, render, seconds_left


def experiment(done, of, seed, seconds, **values):
    return {"event": "experiment", "seed": seed, "done": done, "of": of, "values": values, "seconds": seconds}


EVENTS = (
    {"event": "note", "message": "judged by [bold]it[/bold] \x1b[31m"},
    experiment(1, 4, 0, 2.0, conventional=0.9),
    experiment(2, 4, 0, 30.0, restarts=0.92, ensemble=0.95),
    experiment(3, 4, 1, 4.0, conventional=0.8),
)


def played(events):
    grid = Grid()
    for event in events:
        grid = after(grid, event)
    return grid


def text(renderable):
    stream = io.StringIO()
    Console(file=stream, width=100).print(renderable)
    return stream.getvalue()


def test_a_grid_follows_the_events():
    assert played(EVENTS[:1]) == Grid()
    assert played(EVENTS) == Grid(
        done=3,
        of=4,
        values={"conventional": (0.9, 0.8), "restarts": (0.92,), "ensemble": (0.95,)},
        seconds={("conventional",): (2.0, 4.0), ("restarts", "ensemble"): (30.0,)},
    )


def test_the_rest_takes_what_each_experiment_took_before():
    assert math.isnan(seconds_left(Grid()))
    assert seconds_left(played(EVENTS[:2])) == 3 * 2.0  # nothing is known of the others yet
    assert seconds_left(played(EVENTS[:3])) == 2.0 + 30.0
    assert seconds_left(played(EVENTS)) == 30.0
    assert seconds_left(played([*EVENTS, experiment(4, 4, 1, 5.0, restarts=0.9, ensemble=0.9)])) == 0.0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.lists(st.floats(0.1, 10.0), min_size=1, max_size=5))
def test_with_steady_times_the_estimate_is_exact_after_the_first_seed(seeds, seconds):
    grid, left = Grid(), seeds * math.fsum(seconds)
    of = seeds * len(seconds)
    for done in range(1, of + 1):
        seed, k = divmod(done - 1, len(seconds))
        grid = after(grid, experiment(done, of, seed, seconds[k], **{f"arm{k}": 0.5}))
        left -= seconds[k]
        if done >= len(seconds):
            assert seconds_left(grid) == pytest.approx(left, abs=1e-9)


def test_what_is_shown():
    assert text(render(Grid(), 3.2)).split()[-4:] == ["0/…", "experiments", "3.2", "s"]
    lines = [line.split() for line in text(render(played(EVENTS), 150.0)).splitlines()]
    assert lines[0] == ["arm", "seeds", "last", "mean"]
    assert lines[1] == ["conventional", "2", "0.8000", "0.8500"]
    assert lines[3] == ["ensemble", "1", "0.9500", "0.9500"]
    assert " ".join(lines[4]).endswith("3/4 experiments 2 min; about 30 s left")
    done = played([*EVENTS, experiment(4, 4, 1, 9000.0, restarts=float("nan"), ensemble=12345.6)])
    lines = text(render(done, 9100.0)).splitlines()
    assert lines[2].split() == ["restarts", "2", "–", "–"]
    assert lines[3].split()[2] == "1.235e+04"
    assert lines[4].rstrip().endswith("4/4 experiments  2 h 32 min")


def test_an_arm_cannot_steer_the_terminal():
    event = experiment(1, 1, 0, 1.0, **{"a\x1b[31m[bold]": 0.5})
    grid = after(Grid(), event)
    assert line_of(grid, event) == "1 of 1: seed 0, a\\x1b[31m[bold] 0.5000 in 1.0 s"
    assert "a\\x1b[31m[bold]" in text(render(grid, 1.0))


def test_lines_where_there_is_no_terminal(capsys):
    with plain_grid() as listen:
        for event in EVENTS:
            listen(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "note: judged by [bold]it[/bold] \\x1b[31m",
        "1 of 4: seed 0, conventional 0.9000 in 2.0 s; about 6.0 s left",
        "2 of 4: seed 0, restarts 0.9200, ensemble 0.9500 in 30 s; about 32 s left",
        "3 of 4: seed 1, conventional 0.8000 in 4.0 s; about 30 s left",
    ]


def test_on_a_terminal():
    stream = io.StringIO()
    with live_grid(Console(file=stream, force_terminal=True, width=100)) as listen:
        for event in EVENTS:
            listen(event)
    shown = stream.getvalue()
    assert "note: judged by [bold]it[/bold] \\x1b[31m" in shown
    assert "3/4 experiments" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_the_terminal_is_given_back_on_an_error():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), live_grid(Console(file=stream, force_terminal=True)):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in stream.getvalue()
