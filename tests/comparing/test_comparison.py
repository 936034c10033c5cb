"""`compare`: what is trained and when, what is written, and what is refused."""

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import kinfold
from kinfold import files
from kinfold.comparing import CONTROLS, Comparison, arms, compare
from kinfold.comparing.statistics import corrected_resampled_t, paired_t
from kinfold.comparing.table import ArmSummary, to_markdown
from kinfold.errors import InputError
from kinfold.transfer import PAPA

MLP = {"name": "mlp", "hidden": [4]}
SMALL: dict[str, Any] = {"tasks": 2, "epochs": 2, "batch_size": 8, "engine": "sequential", "seeds": 2}
CHEAP = ("conventional", "all-rows-once")


class StoppedError(Exception):
    """Stands for the end of the process."""


def rows(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)


def go(names: Any = CHEAP, **changes: Any) -> Comparison:
    return compare(**{"model": MLP, "data": rows(), "arms": names, **SMALL, **changes})


def of(found: Comparison, arm: str) -> ArmSummary:
    return next(summary for summary in found.summaries if summary.arm == arm)


def values(found: Comparison, arm: str) -> list[float]:
    return [score.value for score in found.scores if score.arm == arm]


def untimed(found: Comparison) -> list[tuple[Any, ...]]:
    return [(s.arm, s.seed, s.value, s.train_loss, s.train_value, s.visits, s.kept) for s in found.scores]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the training, and are looked at in one test."""

    def write(found: Comparison, directory: Path) -> None:
        files.write_text(directory / "comparison.md", found.to_markdown())

    monkeypatch.setattr(Comparison, "write", write)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained, as it happens: `tasks` for a run of tasks, `rows` for a run on all rows."""
    done: list[str] = []
    for name, word in (("carry_out", "tasks"), ("train_student", "rows")):
        original = getattr(arms, name)

        def noting(*given: Any, original: Any = original, word: str = word, **options: Any) -> Any:
            done.append(word)
            return original(*given, **options)

        monkeypatch.setattr(arms, name, noting)
    return done


@pytest.mark.usefixtures("no_plots")
def test_arms_share_what_is_trained_for_them(trained: list[str], tmp_path: Path) -> None:
    """Seven lines: a run of tasks for three, with one on all rows for one of these; two on all rows for three."""
    names = ("conventional", "restarts", "ensemble", "refit", "all-rows", "all-rows-ema", "all-rows-swa")
    trainings = ("conventional", "restarts", "all-rows", "all-rows-averaged")
    heard: list[dict[str, Any]] = []
    found = go(names, out=tmp_path / "found", listen=heard.append)
    assert trained == ["tasks", "tasks", "rows", "rows", "rows"] * 2
    assert [(score.arm, score.seed) for score in found.scores] == [
        (arm, seed)
        for seed in range(2)
        for arm in ("conventional", "restarts", "ensemble", "refit", "all-rows", "all-rows-ema", "all-rows-swa")
    ]
    assert [(event["event"], event["seed"], event["done"], event["of"]) for event in heard] == [
        ("experiment", i // 4, i + 1, 8) for i in range(8)
    ]
    assert list(heard[1]["values"]) == ["restarts", "ensemble", "refit"]
    assert heard[1]["values"]["refit"] == found.scores[3].value
    assert all(event["seconds"] > 0 for event in heard)
    assert {path.name for path in (tmp_path / "found" / "scores").iterdir()} == {
        "data.json",
        *(f"{name}-{seed}.json" for name in trainings for seed in range(2)),
    }

    # Equal compute: an arm that has less is said to have; none has more but for what says so.
    tasks = of(found, "restarts").sample_visits
    assert of(found, "conventional").sample_visits == tasks / 2
    assert of(found, "restarts").visits == 2.0
    assert tasks - 40 < of(found, "all-rows").sample_visits <= tasks  # an epoch over all rows is 40 visits
    assert of(found, "refit").sample_visits > tasks

    assert (found.metric, of(found, "restarts").control) == ("accuracy", "all-rows")
    assert of(found, "ensemble").is_reference
    assert found.summaries[-1].arm == "ensemble"
    assert math.isnan(of(found, "ensemble").rank)
    assert of(found, "refit").is_control
    assert found.sentence.startswith("Against all-rows over 2 seeds: ")
    assert "For reference only: ensemble (2 times the inference)" in found.sentence


def test_only_what_was_asked_for_is_shown() -> None:
    found = go(("refit", "ensemble", "none", "amto"))
    assert {score.arm for score in found.scores} == {"refit", "ensemble", "none", "amto"}
    assert (found.config["control"], found.config["arms"]) == ("refit", ["refit", "ensemble", "none", "amto"])
    assert [of(found, arm).is_control for arm in ("refit", "none", "amto")] == [True, True, False]


def test_every_seed_seals_rows_anew() -> None:
    found = go(("conventional", "amto"), test_share=0.4)
    for seed in range(2):
        for arm, changes in (("conventional", {"tasks": 1, "transfer": "none"}), ("amto", {"tasks": 2})):
            options = {
                "epochs": 2,
                "batch_size": 8,
                "transfer": "amto",
                "engine": "sequential",
                "seed": seed,
                "holdout": 0.4,
            }
            estimate = kinfold.fit(MLP, rows(), **{**options, **changes}).estimate
            assert estimate is not None
            assert estimate.rows == 24
            assert values(found, arm)[seed] == pytest.approx(estimate.value)
    difference = np.array(values(found, "amto")) - np.array(values(found, "conventional"))
    assert repr(of(found, "amto").difference) == repr(corrected_resampled_t(difference, 0.4))  # NaN is no NaN's equal


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to learn from, and others with another scale, one label fewer and a category that is new."""
    draws = np.random.default_rng(1)
    frame = pd.DataFrame({"size": draws.normal(size=90), "site": draws.choice(["a", "b"], 90)})
    frame["kind"] = np.select([frame["size"] > 0.5, frame["site"] == "a"], ["oak", "elm"], "ash")
    train, test = frame[:60].reset_index(drop=True), frame[60:].reset_index(drop=True)
    test = test[test["kind"] != "ash"].assign(size=lambda rows: rows["size"] * 10).reset_index(drop=True)
    test.loc[0, "site"] = "c"
    return train, test


def test_a_test_set_that_is_the_same_for_every_seed(tmp_path: Path) -> None:
    train, test = frames()
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    for data, held in ((train, test), (str(tmp_path / "train.csv"), str(tmp_path / "test.csv"))):
        found = go(data=data, test=held, target="kind")
        for seed in range(2):
            options = {"tasks": 1, "epochs": 2, "batch_size": 8, "seed": seed, "transfer": "none", "holdout": 0}
            result = kinfold.fit(MLP, data, target="kind", **options)
            right = result.predict(test.drop(columns="kind")) == test["kind"].to_numpy()
            assert values(found, "conventional")[seed] == pytest.approx(right.mean())
        assert of(found, "all-rows-once").sample_visits == 2 * 56  # all sixty are there to be trained on
        difference = np.array(values(found, "all-rows-once")) - np.array(values(found, "conventional"))
        assert repr(of(found, "all-rows-once").difference) == repr(paired_t(difference))
    assert found.config["test"] == str(tmp_path / "test.csv")


def test_regression() -> None:
    x, _ = rows()
    found = go(("restarts", "ensemble", "all-rows", "distil"), data=(x, x[:, 0] - x[:, 1]), clip_norm=1.0)
    assert found.metric == "r2"
    assert all(math.isfinite(score.value) for score in found.scores)
    assert [score.kept for score in found.scores if score.arm == "distil"] == ["distilled"] * 2


def test_lower_may_be_better() -> None:
    error = kinfold.Metric("error", lambda o, t: float((o.argmax(1) != t).double().mean()), higher_is_better=False)
    found, shares = go(metric=error), go()
    assert found.summaries[0].mean == min(s.mean for s in found.summaries)
    for arm in CHEAP:
        assert values(found, arm) == pytest.approx([1 - value for value in values(shares, arm)])


@pytest.mark.usefixtures("no_plots")
def test_what_is_auto_is_chosen_once(tmp_path: Path) -> None:
    found = go(model="auto", batch_size="auto", optimizer="auto", out=tmp_path / "found")
    assert all(math.isfinite(score.value) for score in found.scores)
    assert found.config["model"] == "mlp"  # what was chosen stands there, and is gone on with
    assert files.read_yaml(tmp_path / "found" / "comparison.yaml")["model"] == found.config["model"]
    resumed = go(model="auto", batch_size="auto", optimizer="auto", out=tmp_path / "found", resume=True)
    assert untimed(resumed) == untimed(found)


def test_a_splitter_with_its_own_number() -> None:
    found = go(("conventional", "restarts", "ensemble"), splits={"name": "kfold", "folds": 2, "repeats": 1}, tasks=8)
    assert of(found, "restarts").visits == 2.0
    assert of(found, "ensemble").inference == 2


def test_what_is_written(tmp_path: Path) -> None:
    found = go(("conventional", "all-rows", "amto"), out=tmp_path / "found")
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names == {
        *("comparison.yaml", "comparison.md", "scores.csv", "scores"),
        *("critical-difference.svg", "differences.svg", "gaps.svg"),
    }
    page = (tmp_path / "found" / "comparison.md").read_text(encoding="utf-8")
    assert page == found.to_markdown()
    assert page.startswith("accuracy on rows that no arm has seen, 2 seeds, 2 tasks\n")
    assert to_markdown(found.summaries) in page
    assert page.endswith(f"{found.sentence}\n")
    with (tmp_path / "found" / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["arm"], int(line["seed"]), float(line["value"])) for line in lines] == [
        (score.arm, score.seed, score.value) for score in found.scores
    ]
    for path in (tmp_path / "found").glob("*.svg"):
        assert path.read_text(encoding="utf-8").startswith(("<?xml", "<svg")), path
    config = files.read_yaml(tmp_path / "found" / "comparison.yaml")
    assert config == files.jsonable(found.config)
    assert (config["seeds"], config["control"], config["tasks"]) == (2, "all-rows", 2)
    assert "test" not in config


def test_one_seed_has_no_differences_to_draw(tmp_path: Path) -> None:
    go(seeds=1, out=tmp_path / "found")
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names == {"comparison.yaml", "comparison.md", "scores.csv", "scores", "gaps.svg"}


def test_nothing_is_written_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    go(seeds=1)
    assert not any(tmp_path.iterdir())


MINE = {"name": "mine", "transfer": PAPA(steps=2), "candidates": ["soup"]}


@pytest.mark.usefixtures("no_plots")
def test_resumed_arm_by_arm_and_seed_by_seed(tmp_path: Path, trained: list[str]) -> None:
    names = ("conventional", "refit", "restarts", MINE)
    whole = go(names, out=tmp_path / "found")
    before = contents(tmp_path / "found")
    assert trained == ["tasks", "tasks", "rows", "tasks"] * 2
    trained.clear()

    def again(listen: Any = None) -> Comparison:
        return go(names, out=tmp_path / "found", resume=True, listen=listen)

    heard: list[dict[str, Any]] = []
    assert untimed(again(heard.append)) == untimed(whole)
    assert trained == []
    assert [event["done"] for event in heard] == [1, 2, 3, 4, 5, 6]  # those on record are told of, too
    assert contents(tmp_path / "found") == before

    for record, needed in (("restarts-1", ["tasks", "rows"]), ("mine-0", ["tasks"])):
        (tmp_path / "found" / "scores" / f"{record}.json").unlink()
        assert untimed(again()) == untimed(whole)
        assert trained == needed
        trained.clear()


@pytest.mark.usefixtures("no_plots")
def test_stopped_and_gone_on_with(tmp_path: Path, trained: list[str]) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["done"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        go(out=tmp_path / "found", listen=stop)
    assert not (tmp_path / "found" / "comparison.md").exists()
    assert trained == ["tasks", "rows", "tasks"]
    resumed = go(out=tmp_path / "found", resume=True)
    assert trained == ["tasks", "rows", "tasks", "rows"]
    assert untimed(resumed) == untimed(go())
    assert (tmp_path / "found" / "comparison.md").exists()


@pytest.mark.usefixtures("no_plots")
def test_what_is_not_there_is_started(tmp_path: Path) -> None:
    assert untimed(go(seeds=1, out=tmp_path / "found", resume=True)) == untimed(go(seeds=1))


@pytest.mark.usefixtures("no_plots")
def test_a_value_that_is_not_defined_survives_its_record(tmp_path: Path) -> None:
    undefined = kinfold.Metric("undefined", lambda o, t: math.nan if len(t) == 18 else 0.5)  # on the test rows
    found = go(metric=undefined, out=tmp_path / "found")
    again = go(metric=undefined, out=tmp_path / "found", resume=True)
    for one in (found, again):
        assert all(math.isnan(score.value) and score.train_value == 0.5 for score in one.scores)
    record = json.loads((tmp_path / "found" / "scores" / "conventional-0.json").read_text())
    assert record["conventional"]["value"] is None


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "resume: epochs is 9, and the comparison in .* has 2; give the same, or another out"),
        ({"seeds": 3}, "resume: seeds is 3"),
        ({"arms": CHEAP[::-1], "control": "conventional"}, "resume: arms is"),
        ({"arms": ["conventional", {**MINE, "transfer": PAPA(steps=3)}]}, "resume: arms is"),
        ({"test_share": 0.5}, "resume: test_share is 0.5"),
        ({"control": "all-rows-once"}, "resume: control is"),
        ({"data": (rows()[0] + 1, rows()[1])}, "resume: the data has changed since the comparison in .* began"),
        ({"data": (rows()[0], 2 - rows()[1])}, "resume: the data has changed"),
        ({"resume": False}, "already holds a comparison; choose another directory, or give resume"),
    ],
)
def test_another_comparison_is_not_gone_on_with(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    names: list[Any] = ["conventional", MINE] if "PAPA" in str(changes) else list(CHEAP)
    go(names, seeds=1, out=tmp_path / "found")
    before = contents(tmp_path / "found")
    with pytest.raises(InputError, match=message) as error:
        go(**{"names": names, "seeds": 1, "out": tmp_path / "found", "resume": True, **changes})
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "found") == before


@pytest.mark.usefixtures("no_plots")
def test_other_test_rows_are_not_gone_on_with(tmp_path: Path) -> None:
    x, y = rows(90)
    given = {"data": (x[:60], y[:60]), "seeds": 1, "out": tmp_path / "found"}
    go(test=(x[60:], y[60:]), **given)
    assert go(test=(x[60:], y[60:]), resume=True, **given).config["test"] == "<tuple>"
    with pytest.raises(InputError, match="resume: the data has changed"):
        go(test=(x[61:], y[61:]), resume=True, **given)


def saved(sealed: int) -> kinfold.splits.Splits:
    """Two splits of sixty rows, of which the last are sealed."""
    number = np.arange(60)
    validation = np.stack([number < 10, (number >= 10) & (number < 20)])
    return kinfold.splits.Splits(~validation & (number < 60 - sealed), validation, number >= 60 - sealed)


X, Y = rows()
WIDE = (np.zeros((9, 5), dtype=np.float32), np.arange(9) % 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("conventionl",)}, "arms: unknown name 'conventionl'"),
        ({"names": ()}, "arms: are none; give at least one"),
        ({"names": ("amto", "teach", "amto")}, "arms: are amto, teach, amto; give at least one, and each once"),
        ({"names": ("amto", {"name": "amto", "period": 2})}, "arms: amto: unknown name 'period'"),
        ({"names": ("conventional", {"name": "mine", "transfer": "amtoo"})}, "transfer: unknown name 'amtoo'"),
        ({"names": ("conventional", {"name": "mine", "epochs": 0})}, "epochs: is 0"),
        ({"names": ("conventional", "amto+papa-all")}, "together: 'amto' and 'papa-all' both propose"),
        ({"names": ("ensemble",)}, "arms: ensemble answers with several models; add one of one model"),
        ({"names": ("ensemble", "amto"), "control": "ensemble"}, "control: 'ensemble' is not among the arms of one"),
        ({"control": "teach"}, "control: 'teach' is not among .* name one of conventional, all-rows-once"),
        ({"seeds": 0}, "seeds: is 0; give a whole number of at least 1"),
        ({"test_share": 0}, "test_share: must be above 0 and below 1, not 0"),
        ({"test_share": 1.0}, "test_share: must be above 0 and below 1, not 1.0"),
        ({"transfer": "amto"}, "transfer: is an arm's own to set; leave it out"),
        ({"candidates": "soup"}, "candidates: is an arm's own to set; leave it out"),
        ({"names": ("conventional", {"name": "mine", "epochs": 0}), "test": (X, Y)}, "epochs: is 0"),
        ({"holdout": 0.1}, "holdout: is the comparison's own"),
        ({"seed": 1}, "seed: is the comparison's own"),
        ({"epoch": 3}, "compare: got an unexpected keyword argument 'epoch'"),
        ({"model": "mpl"}, "model: unknown name 'mpl'"),
        ({"data": "digitz"}, "data: unknown name 'digitz'"),
        ({"test": WIDE}, "X: rows have shape"),
        ({"test": (X, np.array(["no", "yes"])[Y % 2])}, "y: "),
        ({"test": (X, X[:, :2]), "data": (X, X[:, 0])}, "test: has 2 targets, and the data has 1; give the same"),
        ({"splits": saved(0)}, "splits: they seal no rows to judge arms by; give test, or other splits"),
        ({"names": ("conventional", {"name": "mine", "splits": saved(9)})}, "arms: mine: its splits seal other rows"),
        ({"resume": True, "out": None}, "resume: there is no directory to resume from; give out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained_or_written(
    tmp_path: Path, trained: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        go(**{"out": tmp_path / "found", **changes})
    assert "\n" not in str(error.value)
    assert trained == []
    assert not any(tmp_path.iterdir())


def test_an_out_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; give a directory"):
        go(out=tmp_path / "file")
    with pytest.raises(InputError, match="is not empty and holds no comparison"):
        go(out=tmp_path)


class Sick(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.nan


@pytest.mark.usefixtures("no_plots")
def test_an_arm_that_diverges_has_no_value_and_the_others_go_on(tmp_path: Path) -> None:
    sick = {"name": "sick", "transfer": "amto", "model": partial(Sick, 4, 3)}
    found = go(("conventional", sick), out=tmp_path / "found")
    assert [score.kept for score in found.scores] == ["task 0", "diverged"] * 2
    assert all(math.isnan(score.value) == (score.arm == "sick") for score in found.scores)
    assert of(found, "conventional").rank == 1.0
    again = go(("conventional", sick), out=tmp_path / "found", resume=True)
    assert repr(untimed(again)) == repr(untimed(found))


def test_the_default_arms_are_there() -> None:
    from kinfold.comparing import ARMS

    lines = [arms.resolve_arm(name) for name in ARMS]
    assert len({line.name for line in lines}) == len(lines)
    assert {"conventional", "all-rows"} <= {line.name for line in lines} & set(CONTROLS)
