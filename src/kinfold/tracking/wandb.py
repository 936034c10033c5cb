"""Weights & Biases: one run, which holds the curves of all tasks.

One and not T + 1: W&B knows no parent of runs. The estimate, the hyper-parameters and the model are the run's, a sweep
or a table of the project has a line for each run, and the tasks' curves of one quantity stand beside each other in a
section of that name. What belongs together beyond that, such as seeds, `group` is for.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from kinfold.errors import InputError
from kinfold.tracking.base import Ending, Session, Status, Told, TrackedRun, Tracker, check_installed, task_name

_EXIT: dict[Status, int] = {"finished": 0, "failed": 1, "interrupted": 130}


@final
@dataclass(frozen=True)
class WandB(Tracker):
    """Writes a run for Weights & Biases, or sends it there.

    Attributes:
        project: its name.
        entity: the user or team; default that of the login.
        group: of runs that belong together, or None.
        mode: `online`, `offline` or `disabled`; default what `WANDB_MODE` says, else `online` where somebody is logged
            in, and `offline` where nobody is: `wandb sync` sends what was written then.
        files: whether the configuration, the report, the history and the model go there in the end, too.

    Example:
        >>> WandB(mode="on").check(None)
        Traceback (most recent call last):
        kinfold.errors.InputError: tracking: the mode of wandb is 'on'; give online, offline or disabled.
    """

    project: str = "kinfold"
    entity: str | None = None
    group: str | None = None
    mode: str | None = None
    files: bool = True

    name = "wandb"

    def check(self, folder: Path | None) -> None:
        if self.mode not in ("online", "offline", "disabled", None):
            raise InputError(f"tracking: the mode of wandb is {self.mode!r}; give online, offline or disabled.")
        check_installed(self.name, "wandb")

    def start(self, run: TrackedRun) -> Session:
        self.check(run.folder)
        return _Session(self, run)


@final
class _Session(Session):
    def __init__(self, tracker: WandB, run: TrackedRun):
        import wandb

        mode: Any = tracker.mode
        if mode is None and "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        if run.folder is not None:
            run.folder.mkdir(parents=True, exist_ok=True)
        self._tasks, self._files = run.tasks, tracker.files
        # W&B does not say what of a run it holds, so that it is kept with the run.
        self._through = self._before = -1 if run.kept is None else int(run.kept["through"])
        self._run = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group,
            name=run.name,
            id=None if run.kept is None else str(run.kept["id"]),
            resume=None if run.kept is None else "allow",
            reinit="create_new",  # the caller may have a run of their own
            dir=None if run.folder is None else str(run.folder),
            config=dict(run.config),
            mode=mode,
            job_type="train",
            # Nothing of what the user's own code prints, or of the code, leaves.
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )
        for of_best in (run.score, "estimate/value"):
            self._run.define_metric(of_best, summary="last")

    @property
    def where(self) -> str:
        return f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def identity(self) -> dict[str, Any]:
        return {"id": self._run.id, "through": self._through}

    def tell(self, told: Sequence[Told]) -> None:
        rows: dict[int, dict[str, float]] = {}
        for one in told:
            for point in one.points:
                if point.period > self._before:
                    of_task = "" if point.task is None else f"/{task_name(point.task, self._tasks)}"
                    rows.setdefault(point.period, {})[f"{point.name}{of_task}"] = point.value
        for period in sorted(rows):
            self._run.log(rows[period], step=period)
            self._through = max(self._through, period)

    def end(self, ending: Ending) -> None:
        import wandb

        self._run.summary.update(dict(ending.values))
        for task, values in enumerate(ending.task_values):
            self._run.summary.update({f"{name}/{task_name(task, self._tasks)}": v for name, v in values.items()})
        if ending.moves:
            columns = ["recipient", "donor", "proposed", "accepted"]
            table = wandb.Table(columns=columns, data=[list(move) for move in ending.moves])
            self._run.log({"transfers/by_pair": table}, step=ending.period)
        if self._files:
            name = re.sub(r"[^\w.-]", "-", self._run.name or self._run.id, flags=re.ASCII)
            artifact = wandb.Artifact(name=f"{name}-run", type="kinfold-run")
            for path in ending.files:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=_EXIT[status])
