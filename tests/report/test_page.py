import copy
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

import kinfold
from kinfold.errors import InputError
from kinfold.report import render, write_report
from kinfold.report.beside import Beside
from kinfold.report.rows import Shown

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """A page's elements and text; fails on a tag that is not closed, or closed out of turn."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(self.text.split())  # no-break spaces become spaces, too

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of turn"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data}"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def check_self_contained(html: str) -> None:
    assert "http:" not in html.lower()
    assert "https:" not in html.lower()
    assert "<script" not in html
    for _, attributes in Page(html).elements:
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)


def test_the_answer_comes_first(make_run):
    text = Page(render(*make_run())).text
    head = text[text.index("accuracy, estimated") : text.index("Training loss of each task")]
    assert "accuracy, estimated once on 180 sealed rows" in head
    assert "95.4 %" in head
    assert "On new rows like these, expect accuracy between 91.2 % and 97.9 %." in head
    assert "Clean:" in head
    assert "Task 0 of 3 (0 to 2), picked for the best mean over all validation sets." in head
    assert "The mean over the 3 validation sets said 97.0 %; the sealed rows say 95.4 %, 1.6 points lower." in head
    assert "53 % had been trained on" in head  # (0 + 0.8 + 0.8) / 3
    assert "One run cannot tell what its transfer brought ( amto )" in head
    assert "kinfold compare digits --model mlp --tasks 3 --epochs 4 --arms conventional,all-rows,amto" in head


def test_every_part_is_there(make_run):
    page = Page(render(*make_run()))
    for words in (
        "digits · mlp",
        "its best snapshot, kept from period 2",
        "Every model that might have been handed back",
        "3 in all",
        "3 of 9 proposed transfers were accepted",
        "copy amto 9 3",
        "teach teach 4 4",
        "Squares are lessons from several tasks",
        "Loss 0.1357",
        "Calibration error 0.075",  # of the diagnostics' bins: (30 · 0.2 + 150 · 0.05) / 180
        "165 of 180 rows right; most often, no was taken for yes (12 times)",
        "its mean confidence was 88 %, and it was right on 87 %",
        "42 no yes 5.25 <1 % 99 %",
        "3 yes yes right 0.5 61 % 61 %",
        "kinfold report RUN --rows DATA",
        "yes 0.864 0.975 17",
        "warning 2 rows are equal",
        "engine: vectorised is fastest",
        "ended by patience",
        "31.2 s",
        "67 min",
        "2 h 13 min",
        "412,000",
        "17,123",
        "412 MiB",
        "optimizer.init_args.lr 0.05",
    ):
        assert words in page.text, words


def test_the_page_is_self_contained_and_described(make_run):
    html = render(*make_run())
    check_self_contained(html)
    page = Page(html)
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) == 8 == page.count("figure") == page.count("figcaption")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for x in drawings:
        assert x["role"] == "img"
        assert set(x["aria-labelledby"].split()) <= set(ids)
    for _, attributes in page.elements:
        assert (attributes.get("href") or "#answer").removeprefix("#") in ids
    assert {"width=device-width, initial-scale=1", "light dark"} <= {x.get("content") for _, x in page.elements}
    assert page.count("table") == page.count("caption")
    assert all(x.get("scope") in ("row", "col") for tag, x in page.elements if tag == "th")
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 == headings.count(1)
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_every_score_is_in_the_table(make_run):
    run = make_run()
    html = render(*run)
    table = html[html.index('<caption class="unseen">Score, and share of the rows seen before') :]
    cells = re.findall(r"<td>([^<]*)", table[: table.index("</table>")])
    scores, exposed = (run.result["scores"][name] for name in ("matrix", "exposed"))
    assert [cell.replace("\u00a0", " ") for cell in cells] == [
        f"{100 * score:.1f} %{', 80 % seen' if seen else ''}"
        for row, share in zip(scores, exposed, strict=True)
        for score, seen in zip(row, share, strict=True)
    ]


def test_rendering_is_deterministic(make_run):
    assert render(*make_run()) == render(*make_run())


def test_nothing_a_user_named_becomes_markup(make_run):
    hostile = "<script>alert('&')</script>$x^2$\"onload=\""
    result, history, _ = copy.deepcopy(make_run(metric=hostile))
    result["data"] = result["model"] = result["engine"] = hostile
    result["selected"] |= {"criterion": hostile}
    result["estimate"]["details"]["per_class"][0]["label"] = hostile
    diagnostics = copy.deepcopy(make_run().result["diagnostics"])
    diagnostics["labels"] = [hostile, "<b>", "&amp;"]
    diagnostics["hardest"][0] |= {"target": hostile, "predicted": "<i>"}
    result["diagnostics"] = diagnostics
    for event in history:
        if event["event"] == "transfer":
            event["rule"] = hostile
            for transfer in event["transfers"]:
                transfer["form"] = hostile
        elif event["event"] in ("note", "finding"):
            event["message"] = hostile
    beside = Beside(hostile, (hostile,), ((hostile,),), hostile, hostile, (hostile,), hostile)
    shown = {
        42: Shown(text=hostile, values=((hostile, hostile),), more=hostile),
        3: Shown(image=("data:image/png;base64,AAAA", 8, 8)),
    }
    html = render(result, history, {hostile: hostile}, beside=beside, shown=shown)
    check_self_contained(html)
    assert Page(html).text.count(hostile) >= 20  # shown as it was written


def test_without_sealed_rows_there_is_no_number_to_quote(make_run):
    page = Page(render(*make_run(holdout=False)))
    assert "No clean estimate: holdout=0" in page.text
    assert "The mean over the 3 validation sets said 97.0 %. The validation score chose the model" in page.text
    assert "Clean:" not in page.text
    assert "On the validation rows Not clean: no rows were sealed" in page.text
    assert "had trained on 25 % of them" in page.text
    assert "sealed rows say" not in page.text


def test_an_exposed_estimate_is_called_so(make_run):
    result, *rest = copy.deepcopy(make_run())
    result["estimate"]["clean"] = False
    text = Page(render(result, *rest)).text
    assert "Not clean:" in text
    assert " Clean:" not in text


def test_one_task(make_run):
    page = Page(render(*make_run(tasks=1)))
    assert "There was one task, so nothing to transfer." in page.text
    assert "The validation set said 97.0 %; the sealed rows say 95.4 %" in page.text
    assert page.count("figure") == 5  # what rows said, two learning curves, confusion and calibration
    assert "Nothing was transferred in this run." in page.text


def test_many_tasks_and_a_long_history_stay_small(make_run):
    html = render(*make_run(tasks=128, periods=400))
    check_self_contained(html)
    assert len(html) < 800_000
    text = Page(html).text
    assert "Of 128 tasks, all but the selected one are grey." in text
    assert "20 of 400 periods; history.jsonl has all." in text
    assert "A mark stands for up to 23 periods" in text


def test_no_transfers(make_run):
    result, history, config = copy.deepcopy(make_run())
    result["transfers"] = {"proposed": 0, "accepted": 0, "by_pair": [[0] * 3] * 3}
    history = [event for event in history if event["event"] != "transfer"]
    page = Page(render(result, history, config))
    assert "No transfers were tried." in page.text
    assert page.count("figure") == 6


def test_regression_is_not_in_percent(make_run):
    result, *rest = copy.deepcopy(make_run(metric="r2"))
    result["estimate"]["details"] = {"loss": 0.25}
    text = Page(render(result, *rest)).text
    assert "0.954" in text
    assert "said 0.970; the sealed rows say 0.954, 0.016 lower." in text
    assert "points" not in text
    assert "Calibration" not in text
    assert "Confusion" not in text
    assert "half of the predictions are within 1 of the truth" in text
    assert "7 0.7 -0.3 1" in text
    assert "The loss is the squared error." in text


def test_missing_scores_are_dashes_not_crashes(make_run):
    result, history, config = copy.deepcopy(make_run())
    for key in ("matrix", "loss_matrix"):
        result["scores"][key] = [[None] * 3] * 3
    result["scores"]["own"] = [None] * 3
    result["estimate"] |= {
        "value": None,
        "low": None,
        "high": float("nan"),
        "details": {"loss": None, "per_class": None},
    }
    for event in history:
        if event["event"] == "period":
            event |= {"train_loss": [None, 1.0, float("nan")], "metric": [None] * 3}
    result["cost"] = {"wall_seconds": None}
    result["diagnostics"]["hardest"][0] |= {"loss": None, "probability": None}
    page = Page(render(result, history, config))
    assert "nan" not in page.text.lower()
    assert "There is no interval" in page.text
    assert "Wall time –" in page.text
    assert "Peak memory –" in page.text


def rows_of(html: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, tags taken out."""
    table = html[html.index(f">{heading}</h2>") :].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [re.sub("<[^>]*>", "", cell).replace("\u00a0", " ").strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in rows
    ]


def test_the_contenders_are_listed_and_the_picked_one_is_marked(make_run):
    run = make_run()
    assert rows_of(render(*run), "Contenders") == [
        ["task 0", "task", "0", "97.0 %", "80 %", "picked"],
        ["task 1", "task", "1", "90.0 %", "81 %", ""],
        ["task 2", "task", "2", "90.0 %", "82 %", ""],
    ]
    result, *rest = copy.deepcopy(run)
    result["contenders"].append({"kind": "soup", "name": "soup", "members": [0, 2], "score": None, "exposed": 1.0})
    assert rows_of(render(result, *rest), "Contenders")[-1] == ["soup", "soup", "0, 2", "–", "100 %", ""]


def other_pick(make_run, kind, name, task, members, **run):
    """A run that handed back no task's own model."""
    result, *rest = copy.deepcopy(make_run(**run))
    contender = {"kind": kind, "name": name, "members": members, "score": 0.98, "exposed": 0.9}
    result["contenders"] += [contender | {"name": "another", "score": 0.5}, contender]
    result["selected"] = {"kind": kind, "task": task, "criterion": "mean", "score": 0.98}
    return (result, *rest)


@pytest.mark.parametrize(
    ("kind", "name", "task", "members", "words"),
    [
        (
            "soup",
            "greedy-soup",
            None,
            [0, 2],
            "The greedy-soup of tasks 0 and 2, a mean of their parameters, picked for",
        ),
        ("soup", "soup", None, [0, 1, 2], "The soup of all 3 tasks, a mean of their parameters, picked for the best"),
        ("average", "ema", 1, [1], "The ema of task 1, an average of its parameters over time, picked for the best"),
    ],
)
def test_a_pick_that_is_no_task(make_run, kind, name, task, members, words):
    run = other_pick(make_run, kind, name, task, members)
    html = render(*run)
    page = Page(html)
    assert words in page.text
    assert "The mean over the 3 validation sets said 98.0 %; the sealed rows say 95.4 %, 2.6 points lower." in page.text
    assert "The validation score chose the model" in page.text
    assert "Of the unsealed rows, 90 % had been trained on by a model that is in it" in page.text
    assert "The frame is" not in page.text  # no task's own model was selected
    assert "best snapshot" not in page.text
    assert ("The thick line is task 1, whose average was selected." in page.text) is (task == 1)
    assert "own validation set" not in html
    assert [row[-1] for row in rows_of(html, "Contenders")] == ["", "", "", "", "picked"]


def test_two_that_the_selection_fits_are_neither_marked_nor_named(make_run):
    result, *rest = other_pick(make_run, "soup", "greedy-soup", None, [0, 2])
    result["contenders"][-2] |= {"name": "soup", "score": 0.98}
    html = render(result, *rest)
    assert not any(row[-1] for row in rows_of(html, "Contenders"))
    assert "The soup of some tasks, a mean of their parameters, picked for" in Page(html).text


def test_a_student(make_run):
    result, history, *rest = other_pick(make_run, "distilled", "distilled", None, [0, 1, 2])
    del result["contenders"][-2]
    bare = Page(render(result, history, *rest))
    epochs = [{"event": "student", "period": 4 + e, "epoch": e, "epochs": 3, "train_loss": 1 / e} for e in (1, 2, 3)]
    history += epochs
    html = render(result, history, *rest)
    page = Page(html)
    assert page.count("figure") == bare.count("figure") + 1
    assert "Training loss of the student: the model that was trained" in page.text
    assert "A model distilled from all 3 tasks, trained on all unsealed rows; handed back whatever" in page.text
    assert "Epochs on all rows 3, of one model in the end" in page.text
    assert "Epochs on all rows" not in bare.text
    assert "The validation score says little: the model had trained on the rows behind it." in page.text
    assert "The validation score chose the model" not in page.text
    assert "A distilled model has trained on all of them" in page.text
    assert "thick line" not in page.text
    assert "The frame is" not in page.text
    assert rows_of(html, "Contenders")[-1] == ["distilled", "distilled", "0, 1, 2", "98.0 %", "90 %", "picked"]


def test_one_task_with_an_average(make_run):
    page = Page(render(*other_pick(make_run, "average", "swa", 0, [0], tasks=1)))
    assert "The swa of task 0, an average of its parameters over time, picked for" in page.text
    assert "The validation set said 98.0 %; the sealed rows say 95.4 %" in page.text


def test_moves_inside_a_period_count_as_often_as_they_were_made(make_run):
    result, history, *rest = copy.deepcopy(make_run())
    for event in history:
        if event["event"] == "transfer":
            for transfer in event["transfers"]:
                transfer["times"] = 10
    html = render(result, history, *rest)
    assert "copy amto 90 30" in Page(html).text
    assert "130 transfers to 3 of 3 tasks in periods 1 to 4, 70 of them accepted." in html


def test_interrupted_before_the_first_period(make_run):
    result, _, config = copy.deepcopy(make_run())
    result |= {"stopped": "interrupted", "epochs_run": 0}
    text = Page(render(result, [], config)).text
    assert "Interrupted after 0 periods" in text
    assert "No period was finished." in text
    assert "Nothing found when the splits were checked" in text


def test_a_run_of_a_version_without_diagnostics(make_run):
    result, *rest = copy.deepcopy(make_run())
    del result["diagnostics"]
    text = Page(render(result, *rest)).text
    assert "kept neither the confusion matrix nor the hardest rows" in text
    assert "Calibration error 0.0246" in text
    assert "yes 0.864 0.975 17" in text
    result["estimate"] = None
    assert "kept neither the confusion matrix nor the hardest rows" in Page(render(result, *rest)).text


@pytest.mark.parametrize("classes", [17, 40, 300])
def test_many_classes(make_run, classes):
    result, *rest = copy.deepcopy(make_run())
    cells = [[c, c, 9] for c in range(classes)] + [[c, (c + 1) % classes, 2] for c in range(classes)]
    result["diagnostics"] |= {"labels": [f"class {c}" for c in range(classes)], "confusion": cells}
    html = render(result, *rest)
    page = Page(html)
    assert "Confusion matrix" in page.text
    assert len(html) < 120_000
    assert "class 0 taken for class 1 2" in page.text
    assert ("40 of 300 confusions" in page.text) is (classes == 300)
    assert page.count("figure") == (8 if classes <= 64 else 7)


def test_several_targets(make_run):
    result, *rest = copy.deepcopy(make_run(metric="r2"))
    found = result["diagnostics"]
    found["points"] = [[row, [target, 2.0], [predicted, 1.0]] for row, target, predicted in found["points"]]
    found["hardest"] = [{"row": 1, "target": [1.0, 2.0], "predicted": [0.5, None], "loss": 0.5}]
    text = Page(render(result, *rest)).text
    assert "Predicted against true values, target 1" in text
    assert "the squared error, over each target's variance" in text
    assert "1 1, 2 0.5, – 0.5" in text


def test_what_transfer_brought(make_run):
    beside = Beside(
        "accuracy", ("arm", "mean"), (("amto", "0.9"),), "How.", "It helped.", ("tasks 8 and not 3",), "amto"
    )
    text = Page(render(*make_run(), beside=beside)).text
    assert "What transfer brought It helped. Another setting: the comparison beside this run has tasks 8" in text
    assert "This run is one of the arm amto . It measured accuracy." in text
    assert "arm mean amto 0.9 How." in text
    assert "kinfold compare" not in text
    result, history, config = make_run()
    assert "kinfold.comparing.compare tells" in Page(render(result, history, {**config, "model": "<module>"})).text


@pytest.fixture
def run_directory(make_run, tmp_path):
    run = make_run()
    (tmp_path / "result.json").write_text(json.dumps(run.result))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run.config, sort_keys=False))
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in run.history))
    return tmp_path


def test_write_report(run_directory, make_run):
    run = make_run()
    path = write_report(run_directory)
    assert path == run_directory / "report.html"
    assert path.read_text(encoding="utf-8") == render(*run)


@pytest.mark.parametrize("line", ['{"event": "per\n{}', "[1]", '{"period": 1}'])
def test_a_damaged_history_is_named_by_file_and_line(run_directory, line):
    history = run_directory / "history.jsonl"
    lines = len(history.read_text().splitlines())
    with history.open("a") as file:
        file.write(line)
    with pytest.raises(InputError, match=rf"history\.jsonl: line {lines + 1} is no[^\n]*resume the run") as caught:
        write_report(run_directory)
    assert "\n" not in str(caught.value)
    assert not (run_directory / "report.html").exists()


def test_a_last_line_that_a_crash_cut_off_is_left_out(run_directory, make_run):
    with (run_directory / "history.jsonl").open("a") as file:
        file.write('{"event": "per')
    assert write_report(run_directory).read_text(encoding="utf-8") == render(*make_run())


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "history.jsonl"])
def test_a_missing_file_is_named(run_directory, name):
    (run_directory / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(run_directory)


def test_the_rows_are_shown_if_they_are_the_runs(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.random((60, 3)).astype(np.float32)
    data = (X, np.array(["no", "yes"])[(X[:, 0] > 0.5).astype(int)])
    kinfold.fit("mlp", data, tasks=2, epochs=2, holdout=0.2, out=tmp_path / "run")
    before = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    page = Page(write_report(tmp_path / "run", data).read_text(encoding="utf-8"))
    hardest = json.loads((tmp_path / "run" / "result.json").read_text())["diagnostics"]["hardest"]
    assert len(hardest) == 12
    for each in hardest:
        for value in X[each["row"]]:
            assert f" {value:.6g} " in page.text
            assert f" {value:.6g} " not in before.text
    with pytest.raises(InputError, match="rows: arrays is not the data of the run"):
        write_report(tmp_path / "run", (X + 1, data[1]))


def test_rows_of_a_run_that_kept_no_hardest_ones(run_directory, make_run):
    result = {**make_run().result, "diagnostics": None}
    (run_directory / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="rows: .* is of a version that kept no hardest rows; leave them out"):
        write_report(run_directory, "digits")
