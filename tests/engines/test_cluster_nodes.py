"""The engine `cluster` on several nodes, which go and come: all of them on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinfold.engines import Engine, Job
from kinfold.engines.sequential import Sequential
from kinfold.transfer import AMTO, PAPA, Rule, TeachRule, Together

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster as Nodes  # noqa: E402

from kinfold.engines.cluster import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("own_modules"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

STORE = 100 * 2**20
EAGER = AMTO(p_low=1.0, p_high=1.0)  # tries at every transfer point


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without CPUs; tests add the others, with one CPU each."""
    there = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    yield there
    ray.shutdown()
    there.shutdown()


def add(nodes: Any, count: int = 1) -> None:
    for _ in range(count):
        nodes.add_node(num_cpus=1, object_store_memory=STORE)


def remove(nodes: Any, number: str) -> None:
    """As if its power were cut."""
    (node,) = [node for node in nodes.worker_nodes if node.node_id == number]
    nodes.remove_node(node, allow_graceful=False)


def connect(nodes: Any) -> None:
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")


def rich_job(lab: SimpleNamespace) -> Job:
    return lab.make_job(tasks=5, model=lambda: lab.network(batch_norm=True), sizes=(44, 37, 21, 30, 44))


class Watched:
    """Starts the engine, and has something done in the middle of certain calls, given by their numbers among all."""

    def __init__(self, moments: dict[int, Callable[[Cluster], Any]]):
        self.count, self._moments = 0, dict(moments)

    def __call__(self, job: Job) -> Engine:
        engine = Cluster(job, grace=60.0)
        for name in ("_call", "_run"):
            setattr(engine._shares, name, partial(self._asked, engine, getattr(engine._shares, name)))
        return engine

    def _asked(self, engine: Cluster, original: Callable[..., Any], *arguments: Any) -> Any:
        reference = original(*arguments)
        self.count += 1
        if self.count in self._moments:
            self._moments.pop(self.count)(engine)
        return reference


def notes_of(run: Any) -> list[str]:
    """The notes of a run, which are taken out of its events."""
    notes = [event["message"] for event in run.events if event["event"] == "note"]
    run.events[:] = [event for event in run.events if event["event"] != "note"]
    return notes


@pytest.mark.parametrize(
    ("rule", "calls"),
    [(EAGER, 90), (Together((TeachRule(cool=2.0), PAPA(steps=2))), 180)],
    ids=["amto", "teach and papa"],
)
def test_nodes_are_killed_at_five_random_moments(lab: SimpleNamespace, nodes: Any, rule: Rule, calls: int) -> None:
    add(nodes, 3)
    connect(nodes)
    draws = torch.Generator().manual_seed(7)
    moments = sorted((20 + torch.randperm(calls, generator=draws)[:5]).tolist())

    def kill(engine: Cluster) -> None:
        share = int(torch.randint(len(engine._shares.tasks), (), generator=draws))
        remove(nodes, engine._shares.home(share).node)
        add(nodes)

    watched = Watched(dict.fromkeys(moments, kill))
    on_nodes = lab.train(watched, rich_job(lab), rule, epochs=6)
    assert not watched._moments, watched.count
    notes = notes_of(on_nodes)
    assert sum("was lost in period" in note for note in notes) == 5
    lab.assert_agree(lab.train(Sequential, rich_job(lab), rule, epochs=6), on_nodes)
    on_nodes.engine.close()


def test_a_node_that_joins_is_used(lab: SimpleNamespace, nodes: Any) -> None:
    add(nodes)
    connect(nodes)
    watched = Watched({25: lambda engine: add(nodes, 2)})
    on_nodes = lab.train(watched, rich_job(lab), EAGER)
    (note,) = notes_of(on_nodes)
    assert "the tasks are shared out anew, among 3 actors instead of 1" in note
    assert len({on_nodes.engine._shares.home(share).node for share in range(3)}) == 3
    lab.assert_agree(lab.train(Sequential, rich_job(lab), EAGER), on_nodes)
    on_nodes.engine.close()


def command(out: Path, address: str | None, *more: str) -> "subprocess.Popen[str]":
    arguments = ["digits", "--tasks", "4", "--epochs", "40", "--precision", "float64", "--transfer", "amto"]
    arguments += ["--model", "mlp", "--out", str(out), "--quiet", *more]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "kinfold", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "KINFOLD_TEST_RUN": str(out), **({} if address is None else {"RAY_ADDRESS": address})},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_period(process: "subprocess.Popen[str]", out: Path, period: int) -> None:
    until = time.monotonic() + 300
    history, checkpoints = out / "history.jsonl", out / "checkpoints"
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        done = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
        if any(event.get("period", 0) >= period for event in done) and any(checkpoints.glob("*")):
            return
        time.sleep(0.02)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = process.communicate(timeout=400)
    return process.returncode, said


def test_a_driver_that_is_killed_goes_on_with_another_number_of_actors(tmp_path: Path, nodes: Any) -> None:
    add(nodes, 3)
    process = command(tmp_path / "run", nodes.address, "--engine", "cluster")
    wait_for_period(process, tmp_path / "run", 4)
    process.kill()
    process.wait()
    nodes.remove_node(nodes.worker_nodes.copy().pop())
    assert finish(command(tmp_path / "run", nodes.address, "--engine", "cluster", "--resume")) == (0, "")
    assert finish(command(tmp_path / "whole", None, "--engine", "sequential")) == (0, "")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "run")]
    assert results[0]["transfers"] == results[1]["transfers"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    process = command(tmp_path / "run", None, "--engine", "cluster")
    wait_for_period(process, tmp_path / "run", 2)
    process.send_signal(number)
    code, said = finish(process)
    assert code == 130
    assert said.startswith("kinfold: interrupted; go on with: kinfold train --resume")
    until = time.monotonic() + 60
    while (left := left_of(tmp_path / "run")) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def left_of(out: Path) -> list[int]:
    """Processes that the driver of a run has started, and that go on without it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if f"KINFOLD_TEST_RUN={out}".encode() in environment:
            found.append(int(path.name))
    return found
