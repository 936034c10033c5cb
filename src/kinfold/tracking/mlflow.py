"""MLflow: one parent run, and a nested run for each task. `mlflow-skinny` is enough."""

import contextlib
import getpass
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from kinfold._version import __version__
from kinfold.errors import InputError
from kinfold.tracking.base import Ending, Session, Status, Told, TrackedRun, Tracker, check_installed, task_name
from kinfold.tracking.points import flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STATUS: Mapping[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_METRICS, _PARAMS = 1000, 100  # at once, as MLflow allows
_SQLITE = "sqlite:///"


@final
@dataclass(frozen=True)
class MLflow(Tracker):
    """Sends a run to an MLflow server, or writes it to a store of one's own.

    Attributes:
        experiment: its name; made where there is none.
        uri: of the tracking server or store; default what `MLFLOW_TRACKING_URI` says, else the SQLite file `mlflow.db`
            beside the run directory, so that runs which lie together are one store. A password does not belong here,
            since `config.yaml` keeps it: `MLFLOW_TRACKING_URI` may have it, or `MLFLOW_TRACKING_PASSWORD`.
        files: whether the configuration, the report, the history and the model go there in the end, too.

    Example:
        >>> MLflow(uri="postgresql://me:secret@host/db").check(None)
        Traceback (most recent call last):
        kinfold.errors.InputError: tracking: the uri of mlflow has a password, which config.yaml would keep; set \
MLFLOW_TRACKING_URI instead.
    """

    experiment: str = "kinfold"
    uri: str | None = None
    files: bool = True

    name = "mlflow"

    def check(self, folder: Path | None) -> None:
        if self.uri is not None and urlsplit(self.uri).password is not None:
            raise InputError(
                "tracking: the uri of mlflow has a password, which config.yaml would keep; set MLFLOW_TRACKING_URI "
                "instead."
            )
        uri = self._uri(folder)
        is_database = uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")
        check_installed(self.name, "mlflow", *(("sqlalchemy", "alembic") if is_database else ()))

    def start(self, run: TrackedRun) -> Session:
        self.check(run.folder)
        with _quiet():
            return _Session(self, self._uri(run.folder), run)

    def _uri(self, folder: Path | None) -> str:
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is not None:
            return uri
        if folder is None:
            raise InputError("tracking: mlflow has nowhere to write; give out, its uri, or MLFLOW_TRACKING_URI.")
        return f"{_SQLITE}{folder.resolve().parent / 'mlflow.db'}"


@final
class _Session(Session):
    def __init__(self, tracker: MLflow, uri: str, run: TrackedRun):
        from mlflow import MlflowClient

        if uri.startswith(_SQLITE):
            Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        self._client, self._shown_uri, self._files = (
            MlflowClient(tracking_uri=uri),
            _without_password(uri),
            tracker.files,
        )
        self._experiment, self._name = tracker.experiment, run.name
        self._last: dict[tuple[str, str], int] = {}
        self._resumed = run.kept is not None and run.kept["uri"] == self._shown_uri
        if self._resumed and run.kept is not None:
            self._parent, self._children = str(run.kept["run"]), list(map(str, run.kept["tasks"]))
            for one in (self._parent, *self._children):
                self._client.update_run(one, status="RUNNING")
        else:
            self._parent, self._children = self._new_runs(run, uri)

    @property
    def where(self) -> str:
        return f"experiment {self._experiment!r} of {self._shown_uri}, run {self._name!r}"

    def identity(self) -> dict[str, Any]:
        return {"uri": self._shown_uri, "run": self._parent, "tasks": self._children}

    def tell(self, told: Sequence[Told]) -> None:
        from mlflow.entities import Metric

        metrics: dict[str, list[Metric]] = {}
        for one in told:
            for point in one.points:
                run = self._parent if point.task is None else self._children[point.task]
                if point.period > self._last_step(run, point.name):
                    metric = Metric(point.name, point.value, round(1000 * one.seconds), point.period)
                    metrics.setdefault(run, []).append(metric)
        for run, some in metrics.items():
            for first in range(0, len(some), _METRICS):
                self._client.log_batch(run, metrics=some[first : first + _METRICS])

    def end(self, ending: Ending) -> None:
        from mlflow.entities import Metric, RunTag

        now, selected = round(1000 * time.time()), ending.result["selected"]
        said = {"kinfold.selected": selected["kind"], "kinfold.stopped": ending.result["stopped"]}
        self._client.log_batch(self._parent, tags=[RunTag(key, str(value)) for key, value in said.items()])
        for run, values in zip((self._parent, *self._children), (ending.values, *ending.task_values), strict=True):
            self._client.log_batch(run, [Metric(name, value, now, ending.period) for name, value in values.items()])
        if ending.moves:
            columns = zip(*ending.moves, strict=True)
            names = ("recipient", "donor", "proposed", "accepted")
            table = {name: list(column) for name, column in zip(names, columns, strict=True)}
            self._client.log_dict(self._parent, table, "transfers.json")
        for path in ending.files if self._files else ():
            self._client.log_artifact(self._parent, str(path), "model" if path.name.startswith("model.") else None)

    def close(self, status: Status) -> None:
        for run in (*self._children, self._parent):
            self._client.set_terminated(run, _STATUS[status])

    def _new_runs(self, run: TrackedRun, uri: str) -> tuple[str, list[str]]:
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

        experiment = _experiment(self._client, self._experiment, uri)
        about = {
            MLFLOW_SOURCE_NAME: "kinfold",
            MLFLOW_SOURCE_TYPE: "LOCAL",
            MLFLOW_USER: _user(),
            "kinfold.version": __version__,
        }
        parent = self._client.create_run(experiment, run_name=run.name, tags=about).info.run_id
        children = [
            self._client.create_run(
                experiment,
                run_name=task_name(task, run.tasks),
                tags={**about, MLFLOW_PARENT_RUN_ID: parent, "kinfold.task": str(task)},
            ).info.run_id
            for task in range(run.tasks)
        ]
        params = [Param(name, str(leaf)) for name, leaf in flattened(run.config).items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(parent, params=params[first : first + _PARAMS])
        for task, child in enumerate(children):
            self._client.log_batch(child, params=[Param("task", str(task))])
        return parent, children

    def _last_step(self, run: str, name: str) -> int:
        """The last step of a curve that the store holds already; −1 where it has none."""
        if not self._resumed:
            return -1
        if (run, name) not in self._last:
            history = self._client.get_metric_history(run, name)
            self._last[run, name] = max((metric.step for metric in history), default=-1)
        return self._last[run, name]


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """Returns the id of the experiment, made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # MLflow would put files into ./mlruns, wherever this process happens to be.
        local = uri.startswith(_SQLITE)
        beside = Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts" / name if local else None
        try:
            return str(client.create_experiment(name, None if beside is None else beside.as_uri()))
        except MlflowException:  # another run has made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(f"tracking: the experiment {name!r} of mlflow is deleted; restore it, or name another.")
    return str(found.experiment_id)


def _without_password(uri: str) -> str:
    """The URI as it may be shown and kept."""
    parts = urlsplit(uri)
    return uri if parts.password is None else uri.replace(f":{parts.password}@", "@", 1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for the one who runs it
        return "unknown"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps MLflow from telling, table by table, how it makes a new SQLite file."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
