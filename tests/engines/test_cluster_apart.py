"""The engine `cluster` where every actor goes at its own pace."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kinfold
from kinfold import asynchronous
from kinfold.asynchronous import run_asynchronously
from kinfold.engines.local import LocalEngine
from kinfold.errors import RunError
from kinfold.living import Lived, live
from kinfold.run import Progress
from kinfold.transfer import AMTO

ray = pytest.importorskip("ray")

from kinfold.engines.cluster import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("own_modules", "cpus"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

EAGER = AMTO(p_low=1.0, p_high=1.0)  # tries at every transfer point


def late(engine: LocalEngine, *given: Any) -> Lived:
    """A period, for which the share of the first task takes longer."""
    time.sleep(0.4 if engine._first == 0 else 0.1)
    return live(engine, *given)


def run_apart(lab: SimpleNamespace, engine: Cluster, job: Any, **how: Any) -> SimpleNamespace:
    events: list[dict[str, Any]] = []
    progress, unsealed = Progress.start(job, EAGER), torch.arange(lab.N) < lab.N - 4
    given = {"epochs": 6, "patience": None, "listen": events.append, **how}
    run_asynchronously(engine, job, EAGER, progress, unsealed=unsealed, **given)
    return SimpleNamespace(events=events, progress=progress)


def test_a_slow_actor_holds_nobody_up(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "live", late)
    job = lab.make_job(tasks=5, model=lambda: lab.network(batch_norm=True), sizes=(44, 37, 21, 30, 44))
    engine = Cluster(job, grace=60.0)
    run = run_apart(lab, engine, job)
    assert [event["period"] for event in run.events if event["event"] == "period"] == [1, 2, 3, 4, 5, 6]
    ages: dict[bool, list[int]] = {True: [], False: []}  # by whether the recipient's actor is slow
    for event in run.events:
        for move in event["transfers"] if event["event"] == "transfer" else ():
            slow = move["recipient"] < 2
            ages[slow] += [age for donor, age in zip(move["donors"], move["ages"], strict=True) if (donor < 2) != slow]
    assert max(ages[False]) > 0
    assert min(ages[True]) < 0
    assert int(engine.visits()) == 6 * sum(size // 10 * 10 for size in (44, 37, 21, 30, 44))
    assert engine.traffic()["models"] > 0

    # What is lost after the end goes back to where all have met.
    rows = torch.arange(9)
    before = engine.predict(rows), engine.predict(rows, best=True)
    ray.kill(engine._shares.home(1).actor)
    lab.assert_close(before, (engine.predict(rows), engine.predict(rows, best=True)))
    (note,) = engine.notes()
    assert "was lost in period 7 with tasks 2 to 4" in note

    # And what is lost on the way ends the run.
    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "period" and event["period"] == 2:
            ray.kill(engine._shares.home(0).actor)

    with pytest.raises(RunError, match=r"^engine: the actor of tasks 0 to 1 on node .* was lost, .* with resume\.$"):
        run_apart(lab, engine, job, listen=kill)
    with pytest.raises(RunError, match="it has been closed"):
        engine.visits()


@pytest.mark.slow
def test_fit_goes_on_with_other_actors(tmp_path: Path) -> None:
    out, how = tmp_path / "run", {"tasks": 4, "epochs": 12, "engine": "cluster", "transfer": EAGER, "seed": 2}

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "period" and event["period"] == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kinfold.fit("mlp", "iris", **how, asynchronous=True, out=out, listen=interrupt)
    result = kinfold.fit("mlp", "iris", **how, asynchronous=True, resources="cpus=2", out=out, resume=True)
    periods = [event["period"] for event in result.history if event["event"] == "period"]
    assert periods == [*range(1, 13)]
    assert result.epochs_run == 12
    moves = [move for event in result.history if event["event"] == "transfer" for move in event["transfers"]]
    assert result.transfers.proposed == len(moves) > 0
    assert all(len(move["ages"]) == len(move["donors"]) for move in moves)
    for event, after in itertools.pairwise(result.history):
        assert after.get("period", 0) >= event.get("period", 0)
    assert (out / "report.html").exists()
