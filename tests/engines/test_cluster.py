"""The engine `cluster` is the other engines' equal, whatever becomes of its actors."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from kinfold.assembling import assemble
from kinfold.comparing.comparison import fit_arguments
from kinfold.data.base import TensorInputs
from kinfold.engines import Engine, Job, choose, choose_engine
from kinfold.engines.sequential import Sequential
from kinfold.engines.vectorised import Vectorised
from kinfold.errors import InputError, RunError
from kinfold.methods.base import Context, Method, Params, State
from kinfold.run import Progress, run
from kinfold.tasks.order import Segment
from kinfold.transfer import AMTO, PAPA, Mix, PAPAAll, Plan, Rule, TeachRule, Together

ray = pytest.importorskip("ray")

from kinfold.engines.cluster import Cluster, placement  # noqa: E402
from kinfold.engines.cluster.actors import Done  # noqa: E402
from kinfold.engines.cluster.placement import Resources, parse_resources  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("own_modules"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

EAGER = AMTO(p_low=1.0, p_high=1.0)  # tries at every transfer point


class Wide(TensorInputs):
    """Rows of which a model reads the beginning; so many bytes that Ray does not send them along with a call."""

    def rows(self, index: Tensor) -> Tensor:
        return super().rows(index)[..., :5]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Wide":
        return Wide(self.values.to(device, dtype))


def rich_job(lab: SimpleNamespace) -> Job:
    """Five tasks of unequal sizes that start apart, with batch norm, and a metric that is an object with state."""
    job = lab.make_job(
        tasks=5,
        model=lambda: lab.network(batch_norm=True),
        sizes=(44, 37, 21, 30, 44),
        metric=MulticlassF1Score(num_classes=3, average="macro"),
    )
    return dataclasses.replace(job, inputs=Wide(nn.functional.pad(job.inputs.values, (0, 4091))))


class Reused:
    """One engine that begins again for every test: to start actors takes seconds."""

    def __init__(self) -> None:
        self.engine: Cluster | None = None

    def __call__(self, job: Job) -> Cluster:
        if self.engine is None:
            self.engine = Cluster(job, resources="cpus=1", grace=60.0)
            self._start = copy.deepcopy(self.engine.state())
        self.engine.reschedule(job.scheduler)
        self.engine.restore(*copy.deepcopy(self._start))
        return self.engine


@pytest.fixture(scope="module")
def reused(cpus: None) -> Iterator[Reused]:
    made = Reused()
    yield made
    if made.engine is not None:
        made.engine.close()


RULES: dict[str, Rule | None] = {
    "none": None,
    "amto": EAGER,
    "papa": PAPA(steps=3),
    "teach": TeachRule(),
    "teach and papa": Together((TeachRule(cool=2.0), PAPA(steps=2))),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_is_that_of_the_loop(lab: SimpleNamespace, reused: Reused, rule: str) -> None:
    on_actors = lab.train(reused, rich_job(lab), RULES[rule])
    assert [(own.start, own.stop) for own in on_actors.engine._shares.tasks] == [(0, 2), (2, 5)]
    lab.assert_agree(lab.train(Sequential, rich_job(lab), RULES[rule]), on_actors)


@pytest.mark.parametrize("blown", [(3,), (0, 1, 2, 3, 4)], ids=["from another", "from their own best"])
def test_tasks_that_diverge_are_rescued(lab: SimpleNamespace, reused: Reused, blown: tuple[int, ...]) -> None:
    one, other = (lab.train(make, rich_job(lab), lab.Planting(blown), rescues=2) for make in (Sequential, reused))
    rescues = [int(t in blown) for t in range(5)]
    assert one.progress.health.rescues.tolist() == other.progress.health.rescues.tolist() == rescues
    lab.assert_agree(one, other)


def test_a_further_stage(lab: SimpleNamespace, reused: Reused) -> None:
    """Its schedule is a function that has to be sent, and that actors begin with from then on."""
    engines = [Sequential(rich_job(lab)), reused(rich_job(lab))]
    for engine in engines:
        engine.train(Segment(1))
        engine.end_period(engine.score())
        engine.reschedule(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.5**done))
        engine.train(Segment(2))
        engine.end_period(engine.score())
        engine.train(Segment(3, 0, 1))
    ray.kill(engines[1]._shares.home(0).actor)
    for engine in engines:
        engine.train(Segment(3, 1))
        engine.end_period(engine.score())
    assert engines[1].options()["lr"].tolist() == [0.1 * 0.25] * 5
    lab.assert_close(engines[0].state()[0], engines[1].state()[0])
    (note,) = engines[1].notes()
    assert "lost in period 3 with tasks 0 to 1" in note


def test_what_is_asked_between_periods(lab: SimpleNamespace, reused: Reused) -> None:
    rows = torch.tensor([3, 1, 60])
    one, other = Sequential(rich_job(lab)), reused(rich_job(lab))

    def answers(engine: Engine) -> list[Any]:
        return [
            engine.score(),
            *(ask(rows, best) for ask in (engine.predict, engine.losses) for best in (False, True)),
            *(engine.sound(best) for best in (False, True)),
            engine.options(),
            engine.visits(),
            engine.steps(2),
            engine.method_states(),
            engine.export(3).state_dict(),
        ]

    for period in (1, 2):
        lab.assert_close(answers(one), answers(other))
        for engine in (one, other):
            engine.train(Segment(period, 0, 2))
            engine.train(Segment(period, 2))
            engine.snapshot(torch.tensor([True, period == 1, False, True, True]))
            engine.end_period(engine.score())
    lab.assert_close(answers(one), answers(other))


def test_what_travels_is_counted(lab: SimpleNamespace, reused: Reused) -> None:
    engine = reused(rich_job(lab))
    engine.traffic()
    weights = torch.eye(5, dtype=torch.float64)
    weights[3:] = weights[0].clone()  # two recipients at the other actor, to which the donor goes once
    weights[1] = weights[0].clone()
    outcome = engine.apply(Plan((Mix(weights),), moments="keep"), period=1)
    assert outcome.accepted.tolist() == [False, True, False, True, True]
    tensors, _ = engine.state()
    model = [value[0] for name, value in tensors.items() if name.split("/")[0] in ("params", "buffers")]
    assert engine.traffic() == {"models": sum(value.numel() * value.element_size() for value in model)}
    assert engine.traffic() == {}


def in_shared_memory(engine: Any) -> tuple[bool, int]:
    """Whether the rows lie in memory that is mapped from the node's object store; their bytes."""
    values = engine.inputs.values
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= values.data_ptr() < last:
            return "/dev/shm" in line or "plasma" in line, values.numel() * values.element_size()
    return False, 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_actors_read_the_data_in_one_place(lab: SimpleNamespace, reused: Reused) -> None:
    found = reused(rich_job(lab))._ask(in_shared_memory)
    assert found == [(True, 64 * 4096 * 8)] * 2


# -- losses ----------------------------------------------------------------------------------------------------------


class Killer:
    """Kills an actor in the middle of calls to it, given by their numbers among all."""

    def __init__(self, engine: Cluster, calls: dict[int, int]):
        self.count, self._calls, self._shares = 0, calls, engine._shares
        self._originals = {name: getattr(engine._shares, name) for name in ("_call", "_run")}
        for name in self._originals:
            setattr(engine._shares, name, partial(self._asked, name))

    def _asked(self, name: str, *arguments: Any) -> Any:
        reference = self._originals[name](*arguments)
        self.count += 1
        if self.count in self._calls:
            ray.kill(self._shares.home(self._calls.pop(self.count)).actor)
        return reference

    def stop(self) -> None:
        for name in self._originals:
            delattr(self._shares, name)


def notes_of(run: Any) -> list[str]:
    """The notes of a run, which are taken out of its events."""
    notes = [event["message"] for event in run.events if event["event"] == "note"]
    run.events[:] = [event for event in run.events if event["event"] != "note"]
    return notes


def test_a_run_that_loses_actors_is_the_same(lab: SimpleNamespace, reused: Reused) -> None:
    killers: list[Killer] = []

    def begun(job: Job) -> Cluster:
        engine = reused(job)
        # In the first period, and in the last but one: such a run asks some 80 times.
        killers.append(Killer(engine, {13: 0, 60: 1}))
        return engine

    on_actors = lab.train(begun, rich_job(lab), EAGER)
    killers[0].stop()
    assert not killers[0]._calls
    notes = notes_of(on_actors)
    assert len(notes) == 2
    assert all("an actor on node" in note and "lost in period" in note for note in notes)
    lab.assert_agree(lab.train(Sequential, rich_job(lab), EAGER), on_actors)


def test_a_loss_in_the_middle_of_a_plan_takes_all_back(lab: SimpleNamespace, reused: Reused) -> None:
    rule, killers = PAPA(steps=3), []

    def begun(job: Job) -> Cluster:
        engine = reused(job)
        original, engine._shares._carry_out = engine._shares._carry_out, None

        def carry_out(plan: Plan, period: int) -> Any:
            engine._shares._carry_out = original
            killers.append(Killer(engine, {3: 1}))
            return original(plan, period)

        engine._shares._carry_out = carry_out
        return engine

    on_actors = lab.train(begun, rich_job(lab), rule)
    killers[0].stop()
    del on_actors.engine._shares._carry_out
    (note,) = notes_of(on_actors)
    assert "done again for all tasks" in note
    lab.assert_agree(lab.train(Sequential, rich_job(lab), rule), on_actors)


def test_without_room_the_others_take_over_until_there_is_some(lab: SimpleNamespace, reused: Reused) -> None:
    one, other = Sequential(rich_job(lab)), reused(rich_job(lab))
    other._shares._grace = 0.0
    taker = ray.remote(num_cpus=1)(Taker)
    for engine in (one, other):
        engine.train(Segment(1))
        engine.train(Segment(2, 0, 1))
    lost = other._shares.home(1)
    lost.end()
    taken = taker.remote()
    ray.get(taken.there.remote())
    for engine in (one, other):
        engine.train(Segment(2, 1))
        engine.train(Segment(3, 0, 2))
    assert len(other._shares.tasks) == 1
    ray.kill(taken)
    for engine in (one, other):
        engine.train(Segment(3, 2))
        engine.end_period(engine.score())
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0.0) < 1.0:
        assert time.monotonic() < until
        time.sleep(0.1)
    for engine in (one, other):
        engine.train(Segment(4))
    lab.assert_close(one.state()[0], other.state()[0])
    assert len(other._shares.tasks) == 2
    lost_note, *shared_out = other.notes()
    assert "lost in period 2 with tasks 2 to 4" in lost_note
    assert "among 2 actors instead of 1" in shared_out[-1]
    other._shares._grace = 60.0


class Taker:
    def there(self) -> None:
        """Takes the CPU by being there."""


def test_a_straggler_is_named_once(lab: SimpleNamespace, reused: Reused) -> None:
    engine = reused(rich_job(lab))
    for period in range(1, 6):
        engine._spent = {0: (100, 1.0), 1: (100, 1.0 if period == 1 else 3.0)}
        engine._name_stragglers()
    (note,) = engine.notes()
    assert "takes 3.0 times as long for a row" in note


def test_what_trains_is_what_the_actors_have(
    lab: SimpleNamespace, reused: Reused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what the driver has."""
    engine = reused(rich_job(lab))
    assert engine.trained_on() == torch.device("cpu")
    monkeypatch.setattr(engine._crew, "resources", Resources(1, 0.5))
    assert engine.trained_on() == torch.device("cuda")


# -- what goes wrong -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fails(Method):
    """In an actor, where there is a Ray worker."""

    how: Callable[[], Any]

    def start(self, params: Params, context: Context) -> State:
        return {"steps": torch.zeros((), dtype=torch.int64)}

    def draw(self, order: Tensor, state: State, key: Tensor) -> Tensor:
        return self.how() or order


class Unstartable:
    """A host on a node where something is not installed."""

    def __init__(self, cpus: int, gpu: bool) -> None:
        raise ModuleNotFoundError("No module named 'kinfold'")

    def node(self) -> str:
        return ""


def bad_input() -> None:
    raise InputError("methods: the user's fault.")


def broken() -> None:
    raise ValueError("two\nlines")


def test_a_copy_that_is_lost_with_the_original(lab: SimpleNamespace, reused: Reused) -> None:
    engine = reused(rich_job(lab))
    for period in (1, 2, 3):
        engine.train(Segment(period))
    ray.kill(engine._crew.keepers()[0].actor)
    engine._shares.home(1).end()
    first, last = engine._shares.tasks[1].start, engine._shares.tasks[1].stop - 1
    with pytest.raises(
        RunError, match=rf"^engine: what tasks {first} to {last} had learned was lost.* checkpoint with resume"
    ):
        engine.score()
    reused.engine = None


@pytest.mark.usefixtures("cpus")
def test_what_fails_in_an_actor_is_the_users_to_mend(
    lab: SimpleNamespace, reused: Reused, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reused.engine is not None:  # its CPUs
        reused.engine.close()
        reused.engine = None
    engine = Cluster(lab.make_job(methods=(Fails(broken),)), resources="cpus=2")
    with pytest.raises(
        RunError, match=r"^engine: training or scoring some of the tasks failed \(ValueError: two lines"
    ):
        engine.train(Segment(1))
    with pytest.raises(RunError, match="it has been closed"):
        engine.score()
    with pytest.raises(
        InputError, match=r"^resources: cpus=64,gpus=0 is free on no node of the cluster \(1 up: cpus=2"
    ):
        Cluster(lab.make_job(), resources="cpus=64")
    with pytest.raises(InputError, match=r"^engine: cluster cannot send the model.*\(TypeError: cannot pickle"):
        Cluster(lab.make_job(model=partial(nn.Linear, 5, 3, device=threading.Lock())))
    with monkeypatch.context() as patch:
        patch.setattr(placement, "Host", Unstartable)
        with pytest.raises(InputError, match=r"^engine: actors cannot start \(.*No module named 'kinfold'\); see that"):
            Cluster(lab.make_job(), resources="cpus=2")
    assert ray.is_initialized()  # which is not the engine's to stop


def test_what_is_wrong_with_resources() -> None:
    assert parse_resources(None, gpus=1) == Resources(1, 1)
    assert parse_resources("cpus=2, gpus=0.25") == Resources(2.0, 0.25)
    for text, message in (
        ("cpus", "resources: 'cpus' cannot be read at 'cpus'; write"),
        ("cpus=1,cpus=2", "cannot be read at 'cpus=2'"),
        ("tpus=1", "cannot be read at 'tpus=1'"),
        ("cpus=nan", "cannot be read at 'cpus=nan'"),
        ("gpus=2", "an actor trains on one GPU"),
        ("cpus=0", "'cpus=0' takes nothing"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            parse_resources(text)


class Convolving(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3))


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize(("model", "kind"), [(None, Vectorised), (Convolving, Sequential), (Dropping, Sequential)])
def test_what_each_actor_runs(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, model: Any, kind: Any) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(choose, "_cluster", lambda *arguments: chosen.append(arguments[1:]) or Sequential(arguments[0]))
    choose_engine("cluster", lab.make_job(model=lab.network if model is None else model), resources="cpus=2")
    assert chosen == [(kind, "cpus=2", None)]


def test_without_ray(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kinfold.engines.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^engine: cluster needs Ray.*pip install 'kinfold\[cluster\]'\.$"):
        choose_engine("cluster", lab.make_job())


def test_settings_of_a_ray_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    before = dict(os.environ)
    with placement._settings():
        assert os.environ == {**before, "RAY_worker_niceness": "0"}
    assert os.environ == before


def test_resources_are_for_actors(lab: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"^resources: 'cpus=1' is for the engine cluster, and engine is 'auto'"):
        choose_engine("auto", lab.make_job(), resources="cpus=1")


@pytest.mark.usefixtures("cpus")
def test_means_are_sent_compressed_and_not_by_way_of_the_driver(
    reused: Reused, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reused.engine is not None:  # its CPUs
        reused.engine.close()
        reused.engine = None
    rule, tasks, epochs = PAPAAll(period=1, until=1.0), 4, 3
    assembled = assemble(fit_arguments("mlp", "digits", tasks=tasks, epochs=epochs))
    job = assembled.job
    unsealed = torch.ones(len(job.inputs), dtype=torch.bool)
    engine, _ = choose_engine("cluster", job, compression="adaptive")
    assert isinstance(engine, Cluster)
    brought, fetch = [], ray.get

    def counted(references: Any, **options: Any) -> Any:
        found = fetch(references, **options)
        brought.append(size_of(found))
        return found

    monkeypatch.setattr(ray, "get", counted)
    progress = Progress.start(job, rule)
    run(engine, job, rule, progress, epochs=epochs, patience=None, unsealed=unsealed, listen=[].append)
    monkeypatch.undo()
    moved, module = engine.traffic(), engine.export(0)
    engine.close()
    assert progress.accepted == tasks * (epochs - 1)
    assert moved.keys() == {"sums"}
    whole = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    assert 4 * moved["sums"] < 2 * whole * (epochs - 1)  # a sum to the other actor, and the mean back
    assert 0 < sum(brought) < whole
    assert float(progress.best[:, 0].min()) > 0.6


def size_of(found: Any) -> int:
    """Bytes in what the driver is given, of tensors and of what was pickled."""
    if isinstance(found, Done):
        return size_of(found.answer)
    if isinstance(found, (list, tuple)):
        return sum(map(size_of, found))
    return len(found) if isinstance(found, bytes) else getattr(found, "nbytes", 0)


# -- a whole run -----------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path) -> None:
    """A Ray of its own, which is gone when it ends."""
    running = []
    for engine in ("sequential", "cluster"):  # beside each other: the latter waits a lot, for processes to start
        arguments = ["digits", "--engine", engine, "--tasks", "3", "--epochs", "3", "--precision", "float64"]
        arguments += ["--transfer", "amto", "--model", "mlp", "--out", str(tmp_path / engine), "--quiet", "--json"]
        command = [sys.executable, "-m", "kinfold", "train", *arguments]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    results = []
    for process in running:
        found, said = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, "")
        results.append(json.loads(found))
    one, other = results
    assert other["engine"] == "cluster"
    assert one["estimate"]["value"] == other["estimate"]["value"]
    assert one["transfers"] == other["transfers"]
    for matrix in ("matrix", "loss_matrix"):
        exact, same = (torch.tensor(found["scores"][matrix], dtype=torch.float64) for found in results)
        torch.testing.assert_close(exact, same, rtol=1e-9, atol=1e-12)
    models = [load_file(tmp_path / engine / "model.safetensors") for engine in ("sequential", "cluster")]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-9, atol=1e-12)
