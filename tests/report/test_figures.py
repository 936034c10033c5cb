import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

import kinfold
from kinfold.errors import InputError
from kinfold.report import figures

MLP = {"name": "mlp", "hidden": [8]}


@pytest.fixture(scope="module")
def data():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(90, 4)).astype(np.float32)
    return x, np.where(x[:, 0] > 0, "<b>oak</b>", "a$h")


@pytest.fixture(scope="module")
def result(data):
    return kinfold.fit(MLP, data, tasks=3, epochs=3, transfer={"name": "amto", "p_low": 1.0, "p_high": 1.0})


@pytest.mark.parametrize("kind", ["curves", "scores", "transfers", "calibration"])
def test_every_kind_draws_and_pyplot_hears_of_none(result, data, kind):
    figure = result.plot(kind, rows=data if kind == "calibration" else None)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(written := io.BytesIO(), format="svg")
    assert written.getvalue()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_curves_are_the_history(result):
    left, right = result.plot("curves").axes
    periods = [event for event in result.history if event["event"] == "period"]
    for axes, name in ((left, "train_loss"), (right, "metric")):
        drawn = [line.get_ydata() for line in axes.get_lines()]
        assert np.array_equal(np.stack(drawn, 1), [event[name] for event in periods])


def test_a_student_has_a_curve_of_its_own(data):
    taught = kinfold.fit(MLP, data, tasks=2, epochs=4, transfer="distil")
    left, right = taught.plot().axes
    epochs = [event["train_loss"] for event in taught.history if event["event"] == "student"]
    assert list(left.get_lines()[-1].get_ydata()) == epochs
    assert len(right.get_lines()) == 2


def test_the_matrix_marks_what_was_exposed(result):
    axes = result.plot("scores").axes[0]
    hatched = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in axes.patches if p.get_hatch()}
    assert hatched == set(zip(*np.nonzero(result.scores.exposed.numpy()), strict=True))
    (frame,) = [patch for patch in axes.patches if not patch.get_hatch()]
    assert round(frame.get_y() + 0.5) == result.selected.task
    assert len(axes.texts) == 9


def test_the_graph_has_an_arrow_for_each_pair(result):
    axes = result.plot("transfers").axes[0]
    offered = {
        (move["recipient"], donor)
        for event in result.history
        if event["event"] == "transfer"
        for move in event["transfers"]
        for donor in move["donors"]
    }
    assert len(axes.patches) == len(offered) > 0
    solid = [patch for patch in axes.patches if patch.get_linestyle() in ("-", "solid")]
    assert len(solid) == int((result.transfers.by_pair > 0).sum())


def test_calibration_by_hand(result, data):
    x, y = data
    right = result.predict(x) == y
    sure = result.predict_proba(x).max(1)
    above, below = result.plot("calibration", rows=(x, y)).axes
    line = above.get_lines()[1]
    place = np.clip(np.ceil(sure * 15).astype(int) - 1, 0, 14)
    assert line.get_xdata() == pytest.approx([sure[place == b].mean() for b in np.unique(place)])
    assert line.get_ydata() == pytest.approx([right[place == b].mean() for b in np.unique(place)])
    assert sum(bar.get_height() for bar in below.patches) == 90


def test_calibration_of_the_sealed_rows(result, data):
    sealed = result.splits.sealed
    above, below = result.plot("calibration").axes
    again, _ = result.plot("calibration", rows=(data[0][sealed], data[1][sealed])).axes
    assert np.array_equal(above.get_lines()[1].get_xydata(), again.get_lines()[1].get_xydata())
    assert sum(bar.get_height() for bar in below.patches) == sealed.sum()
    assert above.get_title() == f"{sealed.sum()} sealed rows"


def test_what_cannot_be_drawn(result, data):
    with pytest.raises(InputError, match="did you mean 'scores'"):
        result.plot("score")
    with pytest.raises(InputError, match=r"kept no calibration; give rows=\(x, y\)"):
        replace(result, diagnostics=None).plot("calibration")
    with pytest.raises(InputError, match="scores takes no rows"):
        result.plot("scores", rows=data)
    with pytest.raises(InputError, match="'elm' is no class of the run"):
        result.plot("calibration", rows=(data[0][:1], ["elm"]))
    with pytest.raises(InputError, match="2 rows and 1 targets"):
        result.plot("calibration", rows=(data[0][:2], ["a$h"]))
    alone = kinfold.fit(MLP, data, tasks=2, epochs=1, transfer="none", holdout=0)
    with pytest.raises(InputError, match="nothing was transferred"):
        alone.plot("transfers")
    line = kinfold.fit(MLP, (data[0], data[0][:, 0]), tasks=2, epochs=1)
    with pytest.raises(InputError, match="a regression"):
        line.plot("calibration", rows=(data[0], data[0][:, 0]))
    with pytest.raises(InputError, match="a regression"):
        line.plot("calibration")


@pytest.mark.parametrize("tasks", [1, 2, 16])
def test_any_number_of_tasks(tasks):
    draws = np.random.default_rng(0)
    square = draws.random((tasks, tasks))
    square[0, 0] = np.nan
    made = [
        figures.curves(
            draws.random((1, tasks)), np.full((1, tasks), np.nan), np.array([1]), np.zeros((0, 2)),
            metric="a $x$ b", selected=None,
        ),
        figures.score_matrix(square, (square > 0.5).astype(float), metric="m", selected=None),
        figures.transfer_graph((square > 0.5).astype(int), (square > 0.2).astype(int)),
    ]  # fmt: skip
    assert all(figure._repr_png_() for figure in made)


def test_a_result_in_a_notebook(result, data):
    html = result._repr_html_()
    assert html.count("<tr>") == 6
    assert f"accuracy {result.estimate.value:.4g}, 95 % interval" in html
    assert "task" in html
    assert html.count("color") == html.count("color: inherit") == 1  # the page's own, light or dark
    assert "none: holdout=0" in kinfold.fit(MLP, data, tasks=2, epochs=1, holdout=0)._repr_html_()

    def oak(outputs, targets):
        return 0.5

    oak.__name__ = "<script>"
    named = kinfold.fit(MLP, data, tasks=2, epochs=1, metric=oak)
    assert "<script>" not in named._repr_html_()
    assert "&lt;script&gt;" in named._repr_html_()
