"""The loop of a run: train, score, snapshot, transfer, checkpoint, until done. Readable from top to bottom.

Legend: T tasks, N rows.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from kinfold import random
from kinfold.checkpoint import Checkpoints
from kinfold.diverging import Health, donor_of, hidden, rescue, rough_losses, told, without
from kinfold.engines import Engine, Job
from kinfold.errors import RunError
from kinfold.selection.better import better
from kinfold.selection.ledger import Ledger
from kinfold.tasks.order import Segment
from kinfold.transfer.base import Outcome, Plan, Rule, State, View

Event: TypeAlias = dict[str, Any]
Listener: TypeAlias = Callable[[Event], None]


@dataclass
class Progress:
    """Where a run stands after a period; with the engine's state, all that resuming needs.

    Attributes:
        period: periods done.
        stage: which stage of the tasks' training these belong to, the last of them (see `Rule.stages`).
        best: [T, 2] (metric, loss) of each task's best snapshot; NaN before the first.
        stage_best: [T, 2] (metric, loss) of each task's best period of the present stage, which patience goes by.
        stale: [T] periods of the stage since then.
        ledger: rows that each task has been exposed to.
        best_exposed: [T, N] what the ledger said when the best snapshot was taken.
        rule: the transfer rule's state.
        scores: [T, 2] of the last period; NaN before the first, and where a task has diverged.
        health: how the tasks are.
        steps: batches done, by the task with the most.
        proposed: moves proposed so far.
        accepted: moves accepted so far.
        by_pair: [T, T] accepted moves, recipient by donor (a move from several donors counts for each).
        train_seconds: spent training.
        transfer_seconds: spent planning, trying and applying transfers.
        wall_seconds: spent in all.
        data: fingerprint of the data, by which resuming knows them again.
    """

    best: Float[Tensor, "T 2"]
    stage_best: Float[Tensor, "T 2"]
    stale: Int64[Tensor, " T"]
    ledger: Ledger
    best_exposed: Bool[Tensor, "T N"]
    rule: State
    by_pair: Int64[Tensor, "T T"]
    scores: Float[Tensor, "T 2"]
    health: Health
    period: int = 0
    stage: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0
    train_seconds: float = 0.0
    transfer_seconds: float = 0.0
    wall_seconds: float = 0.0
    data: str = ""

    @classmethod
    def start(cls, job: Job, rule: Rule, data: str = "") -> "Progress":
        """Returns the state before the first period."""
        T = job.tasks
        return cls(
            best=torch.full((T, 2), math.nan, dtype=torch.float64),
            stage_best=torch.full((T, 2), math.nan, dtype=torch.float64),
            stale=torch.zeros(T, dtype=torch.int64),
            ledger=Ledger.start(job.train),
            best_exposed=job.train.clone(),
            rule=rule.start(T),
            by_pair=torch.zeros(T, T, dtype=torch.int64),
            scores=torch.full((T, 2), math.nan, dtype=torch.float64),
            health=Health.start(T),
            data=data,
        )

    def begin_stage(self, stage: int) -> None:
        """Begins a further stage, with a schedule and patience of its own."""
        self.stage = stage
        self.stage_best = torch.full_like(self.stage_best, math.nan)
        self.stale = torch.zeros_like(self.stale)

    def note_scores(
        self, tasks: slice, scores: Float[Tensor, "k 2"], improved: Bool[Tensor, " k"], by: Literal["metric", "loss"]
    ) -> None:
        """Notes what some tasks scored at the end of a period.

        Args:
            tasks: these.
            scores: (metric, loss) of each.
            improved: whether a best snapshot has been taken of a task.
            by: what decides first (see `kinfold.selection.better.better`).
        """
        self.scores = self.scores.clone()  # a rule may keep what it was shown
        self.scores[tasks] = scores
        self.best[tasks] = torch.where(improved[:, None], scores, self.best[tasks])
        self.best_exposed[tasks] = torch.where(improved[:, None], self.ledger.exposed[tasks], self.best_exposed[tasks])
        best = self.stage_best[tasks]
        ahead = better(scores[:, 0], scores[:, 1], best[:, 0], best[:, 1], by=by)
        self.stage_best[tasks] = torch.where(ahead[:, None], scores, best)
        self.stale[tasks] = torch.where(ahead, 0, self.stale[tasks] + 1)

    def note_moves(self, plan: Plan, outcome: Outcome) -> None:
        """Counts what a plan proposed, and what of it was accepted."""
        for change in plan.changes:
            lineage = change.lineage()
            if lineage is not None:
                taken = lineage & outcome.accepted[:, None] if change.tried else lineage
                self.proposed += int(lineage.any(1).sum())
                self.accepted += int(taken.any(1).sum())
                self.by_pair += taken

    def worn_out(self, patience: int | None) -> bool:
        """Returns whether all tasks have gone so many periods without improving."""
        return patience is not None and bool((self.stale >= patience).all())

    def check_scored(self) -> None:
        """Raises RunError where no task ever had a finite score."""
        if bool(self.best.isnan().any(1).all()):
            raise RunError(
                "no task ever had a finite score: training diverged (lower the learning rate, or set clip_norm), or "
                "the metric is not defined on the validation rows (R² of a constant target)."
            )

    def save(self, engine: Engine, checkpoints: Checkpoints) -> None:
        """Has a checkpoint written."""
        tensors, values = engine.state()
        tensors = {f"engine/{name}": value for name, value in tensors.items()}
        tensors |= {f"rule/{name}": value for name, value in self.rule.items()}
        tensors |= {"run/exposed": self.ledger.exposed}
        tensors |= {f"run/{name}": getattr(self, name) for name in _TENSORS}
        tensors |= {f"health/{name}": value for name, value in vars(self.health).items()}
        own = {name: getattr(self, name) for name in _PLAIN}
        checkpoints.save(self.period, tensors, {"run": own, "engine": values, "engine_name": engine.name})

    @classmethod
    def load(cls, engine: Engine, tensors: dict[str, Tensor], values: Any) -> "Progress":
        """Puts a checkpoint's state back into the engine, and returns where the run stands."""
        parts: dict[str, dict[str, Any]] = {"engine": {}, "rule": {}, "run": {}, "health": {}}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        engine.restore(parts["engine"], values["engine"])
        ledger = Ledger(parts["run"].pop("exposed"))
        # A checkpoint of a version that looked at nobody's health has none.
        health = dataclasses.replace(Health.start(len(ledger.exposed)), **parts["health"])
        return cls(ledger=ledger, rule=parts["rule"], health=health, **parts["run"], **values["run"])


_TENSORS = ("best", "stage_best", "stale", "best_exposed", "by_pair", "scores")
_PLAIN = (
    "period",
    "stage",
    "steps",
    "proposed",
    "accepted",
    "train_seconds",
    "transfer_seconds",
    "wall_seconds",
    "data",
)


def run(
    engine: Engine,
    job: Job,
    rule: Rule,
    progress: Progress,
    *,
    epochs: int,
    patience: int | None,
    rescues: int = 0,
    unsealed: Bool[Tensor, " N"],
    listen: Listener,
    checkpoints: Checkpoints | None = None,
    cap: int | None = None,
) -> str:
    """Trains until every task has gone `patience` periods without improving, or `epochs` is reached.

    Args:
        engine: started on `job`, and restored if `progress` is not at its start.
        job: what is trained.
        rule: the transfer rule.
        progress: where the run stands; brought up to date in place.
        epochs: the cap, and the length of the schedule.
        patience: periods without improvement, or None to run to the cap.
        rescues: how often a task that diverges starts again; 0 for none to be looked at, but for those with
            parameters or losses that are not finite, which rules leave out.
        unsealed: [N] rows that may be used.
        listen: is told of every period and transfer.
        checkpoints: where to write the state after a period, where one is due, and after the last; None for nowhere.
        cap: what listeners are told of as the cap, where these epochs are those of a first stage.

    Returns:
        Why it stopped, `epochs` or `patience`.

    Raises:
        RunError: no task ever had a finite score, or all have diverged and been started again before.
    """
    transfers = _Transfers(engine, job, rule, progress, epochs, unsealed, listen, rescues)
    if rescues:
        look_at_start(engine, job, progress)
    while progress.period < epochs and not progress.worn_out(patience):
        began, transferring = time.perf_counter(), progress.transfer_seconds
        progress.period += 1
        rates = engine.options()["lr"]
        train_loss = transfers.train_period()
        trained = time.perf_counter() - (progress.transfer_seconds - transferring)
        scores, before = engine.score(), progress.health.aside
        known = scores if not rescues else judged(progress.health, train_loss, scores)
        improved = better(known[:, 0], known[:, 1], progress.best[:, 0], progress.best[:, 1], by=job.better)
        engine.snapshot(improved)
        progress.note_scores(slice(0, job.tasks), known, improved, job.better)
        engine.end_period(scores)
        scored = time.perf_counter()
        shown = epochs if cap is None else cap
        listen(period_event(job, progress.period, shown, train_loss, known, improved, rates, scored - began))
        tell_of_notes(engine, listen, progress.period)
        transfers.tell_of_period()
        told = time.perf_counter()
        last = progress.period == epochs or progress.worn_out(patience)
        aside = progress.health.aside
        again = torch.zeros_like(aside)
        if rescues and bool(aside.any()):
            again = transfers.start_again(before, last)
        if job.tasks > 1 and not last and rule.due(progress.period, epochs):
            transfers.at_period_end(train_loss, improved, aside, again)
        progress.train_seconds += trained - began
        applied = time.perf_counter()
        progress.transfer_seconds += applied - told
        progress.wall_seconds += applied - began
        if checkpoints is not None and (last or checkpoints.due()):
            progress.save(engine, checkpoints)
            progress.wall_seconds += time.perf_counter() - applied  # the next checkpoint has it
    progress.check_scored()
    return "epochs" if progress.period >= epochs else "patience"


def tell_of_notes(engine: Engine, listen: Listener, period: int) -> None:
    """Passes on what an engine has to tell the user of a period; if that runs again, it is taken out with it."""
    for message in engine.notes():
        listen({"event": "note", "message": message, "period": period})


def look_at_start(engine: Engine, job: Job, progress: Progress) -> None:
    """Notes how the tasks are before their first period, if that is to come."""
    if not progress.period:
        began = time.perf_counter()
        progress.health.begin(engine.score()[:, 1], rough_losses(job))
        progress.wall_seconds += time.perf_counter() - began


def judged(health: Health, train_loss: Float[Tensor, " T"], scores: Float[Tensor, "T 2"]) -> Float[Tensor, "T 2"]:
    """Returns the scores, with NaN for those who have diverged in a period: nothing and nobody goes by theirs."""
    diverged = health.after_period(train_loss, scores[:, 1])
    return torch.where(diverged[:, None], math.nan, scores)


class _Transfers:
    """The transfer points of a run, inside periods and at their ends."""

    def __init__(
        self,
        engine: Engine,
        job: Job,
        rule: Rule,
        progress: Progress,
        epochs: int,
        unsealed: Bool[Tensor, " N"],
        listen: Listener,
        rescues: int,
    ):
        self._engine, self._job, self._rule, self._progress = engine, job, rule, progress
        self._epochs, self._unsealed, self._listen, self._rescues = epochs, unsealed, listen, rescues
        self._targets = open_targets(job, unsealed)
        # Transfers inside the period, those alike once, with how many there were: one line of the log for each.
        self._inside: dict[tuple[bytes, ...], tuple[Plan, Outcome, int]] = {}

    def train_period(self) -> Float[Tensor, " T"]:
        """Trains for a period, with the transfers that lie inside it; returns each task's mean loss."""
        engine, progress, period = self._engine, self._progress, self._progress.period
        counts = engine.steps(period)
        most = int(counts.max())
        every = self._rule.steps if self._job.tasks > 1 and self._rule.running(period, self._epochs) else None
        if every is None:
            progress.steps += most
            return engine.train(Segment(period))
        total = torch.zeros(self._job.tasks, dtype=torch.float64)
        first = 0
        while first < most:
            last = min(most, first + every - progress.steps % every)
            loss = engine.train(Segment(period, first, last))
            total += loss * (counts.clamp(max=last) - first).clamp_min(0)
            progress.steps += last - first
            first = last
            if progress.steps % every == 0:
                began = time.perf_counter()
                nobody = torch.zeros(self._job.tasks, dtype=torch.bool)
                done = self._transfer(loss, nobody, progress.health.aside, nobody, step=last)
                if done is not None:
                    alike = _alike(*done)
                    self._inside[alike] = (*done, 1 + self._inside[alike][2] if alike in self._inside else 1)
                progress.transfer_seconds += time.perf_counter() - began
        return total / counts

    def tell_of_period(self) -> None:
        """Tells of the transfers inside the period, once the period itself has been told of."""
        moves = [
            {**move, "times": times}
            for plan, outcome, times in self._inside.values()
            for move in logged(plan, outcome, self._job)
        ]
        self._inside = {}
        if moves:
            self._tell(moves, None, self._rule.name)

    def start_again(self, before: Bool[Tensor, " T"], last: bool) -> Bool[Tensor, " T"]:
        """Has those go on that have diverged in the period, as often as they may; returns [T] who does.

        Args:
            before: [T] who had been set aside before it.
            last: whether no period is to come in which they could.

        Raises:
            RunError: all have, and none may be started again.
        """
        engine, job, progress, health = self._engine, self._job, self._progress, self._progress.health
        diverged = health.aside
        again = diverged & (health.rescues < self._rescues) & (not last)
        if bool(diverged.all()) and not last and not bool(again.any()):
            raise RunError(
                f"all tasks diverged by period {progress.period}, after {self._rescues} rescues each; lower the "
                "learning rate, or set clip_norm (the last checkpoint is of a period before)."
            )
        # Where tasks train alone, as the controls of a comparison do, they learn nothing of each other this way either.
        donor = donor_of(progress.scores, job.better) if self._rule.until > 0 else None
        rates = engine.options()["lr"]
        new = (diverged & (again | ~before)).nonzero().flatten().tolist()
        if new:
            self._listen(told(progress.period, new, again.nonzero().flatten().tolist(), donor, rates))
        if bool(again.any()):
            plan = rescue(again, donor)
            outcome = self._carry_out(plan)
            health.started_again(again)
            progress.stale = torch.where(again, 0, progress.stale)
            moves = logged(plan, outcome, job)
            if moves:
                self._tell(moves, None, "rescue")
        return again

    def at_period_end(
        self,
        train_loss: Float[Tensor, " T"],
        improved: Bool[Tensor, " T"],
        aside: Bool[Tensor, " T"],
        again: Bool[Tensor, " T"],
    ) -> None:
        """Plans and carries out what is due after a period.

        Args:
            train_loss: [T] of the period.
            improved: [T] whose best score it brought.
            aside: [T] those whose numbers nobody is to see.
            again: [T] those of them that have just been started again, and go on from there.
        """
        done = self._transfer(train_loss, improved, aside, again, step=None)
        if done is not None:
            plan, outcome = done
            moves = logged(plan, outcome, self._job)
            if moves or plan.note is not None:
                self._tell(moves, plan.note, self._rule.name)

    def _transfer(
        self,
        train_loss: Float[Tensor, " T"],
        improved: Bool[Tensor, " T"],
        aside: Bool[Tensor, " T"],
        again: Bool[Tensor, " T"],
        step: int | None,
    ) -> tuple[Plan, Outcome] | None:
        """One transfer point; returns what was planned and what became of it."""
        engine, job, rule, progress = self._engine, self._job, self._rule, self._progress
        norms = engine.norms()
        metric, loss = torch.where(aside[:, None], math.nan, progress.scores).unbind(1)
        sound = norms.isfinite() & train_loss.isfinite() & ~aside  # a model may give NaN with finite parameters
        if self._rescues:
            if step is not None:  # at its end, the whole period has told
                sound &= progress.health.inside(train_loss, norms)
            aside = ~sound
        view = View(
            period=progress.period,
            epochs=self._epochs,
            metric=metric,
            loss=loss,
            train_loss=torch.where(aside, math.nan, train_loss),
            sound=sound,
            improved=improved,
            validation=job.validation,
            exposed=progress.ledger.exposed,
            unsealed=self._unsealed,
            targets=self._targets,
            options=engine.options(),
            step=step,
            classes=job.objective.classes,
            predict=hidden(engine.predict, aside) if "predictions" in rule.needs else None,
            losses=hidden(partial(open_losses, engine.losses, self._unsealed), aside)
            if "losses" in rule.needs
            else None,
        )
        draws = random.generator(job.seed, "transfer", progress.period, *([] if step is None else [step]))
        plan, progress.rule = rule.plan(view, progress.rule, draws)
        if plan is None:
            return None
        check_rows(rule, plan, self._unsealed)
        plan = without(plan, aside, again)
        outcome = self._carry_out(plan)
        progress.rule = rule.learn(plan, outcome, progress.rule)
        return plan, outcome

    def _carry_out(self, plan: Plan) -> Outcome:
        """Has the engine apply a plan, and the books follow."""
        job, progress = self._job, self._progress
        outcome = self._engine.apply(plan, progress.period)
        progress.health.taught(plan, job.objective.classes)
        # The ledger follows from the plan itself and from what was accepted; no rule can leave it out.
        everyone = torch.ones(job.tasks, dtype=torch.bool)  # the lineage already leaves out what was not accepted
        progress.ledger = progress.ledger.after(plan.lineage(outcome.accepted), everyone, plan.taught_rows())
        progress.note_moves(plan, outcome)
        return outcome

    def _tell(self, moves: list[Event], note: str | None, rule: str) -> None:
        self._listen(transfer_event(self._progress.period, rule, moves, note))


def open_targets(job: Job, unsealed: Bool[Tensor, " N"]) -> Shaped[Tensor, "N *K"]:
    """Returns the targets with those of sealed rows blanked."""
    return torch.where(unsealed.view(-1, *[1] * (job.targets.ndim - 1)), job.targets, 0)


def open_losses(
    losses: Callable[[Int64[Tensor, " m"]], Float[Tensor, "T m"]],
    unsealed: Bool[Tensor, " N"],
    rows: Int64[Tensor, " m"],
) -> Float[Tensor, "T m"]:
    """Returns the tasks' losses on the rows.

    Raises:
        RunError: one of them is sealed, whose label nobody may hear of.
    """
    if not bool(unsealed[rows].all()):
        raise RunError("transfer: the rule asked for the loss on sealed rows; they are for the estimate alone.")
    return losses(rows)


def check_rows(rule: Rule, plan: Plan, unsealed: Bool[Tensor, " N"]) -> None:
    """Raises RunError where a plan has to do with sealed rows."""
    for rows in (plan.trial, plan.taught_rows()):
        if rows is not None and bool((rows & ~unsealed).any()):
            raise RunError(f"transfer: {rule.name} planned with sealed rows; they are for the estimate alone.")


def period_event(
    job: Job,
    period: int,
    epochs: int,
    train_loss: Float[Tensor, " T"],
    scores: Float[Tensor, "T 2"],
    improved: Bool[Tensor, " T"],
    rates: Float[Tensor, " T"],
    seconds: float,
) -> Event:
    """Returns what listeners are told of a period of all tasks."""
    return {
        "event": "period",
        "period": period,
        "epochs": epochs,
        "train_loss": train_loss.tolist(),
        "metric": [job.objective.metric.oriented(value) for value in scores[:, 0].tolist()],
        "loss": scores[:, 1].tolist(),
        "improved": improved.tolist(),
        "lr": rates.tolist(),
        "seconds": seconds,
    }


def transfer_event(period: int, rule: str, moves: list[Event], note: str | None) -> Event:
    """Returns what listeners are told of a period's transfers (see `logged`)."""
    event = {"event": "transfer", "period": period, "rule": rule, "transfers": moves}
    return event if note is None else {**event, "note": note}


def _alike(plan: Plan, outcome: Outcome) -> tuple[bytes, ...]:
    """What two plans have in common that change the same tasks from the same donors in the same way."""
    parts = [outcome.accepted]
    kinds = []
    for change in plan.changes:
        kinds.append(type(change).__name__.encode())
        lineage = change.lineage()
        if lineage is not None:
            parts.append(lineage)
    return (*kinds, *(part.cpu().numpy().tobytes() for part in parts))


def logged(plan: Plan, outcome: Outcome, job: Job) -> list[Event]:
    """Returns a plan's moves as lines of the transfer log, with the scores that decided."""

    def shown(score: Float[Tensor, " 2"]) -> list[float] | None:
        metric, loss = score.tolist()
        return None if math.isnan(metric) and math.isnan(loss) else [job.objective.metric.oriented(metric), loss]

    return [
        {
            **vars(move),
            "donor": move.donors[0] if len(move.donors) == 1 else None,
            "before": None if move.form == "teach" else shown(outcome.before[move.recipient]),
            "after": None if move.form == "teach" else shown(outcome.after[move.recipient]),
            "accepted": move.form == "teach" or bool(outcome.accepted[move.recipient]),
        }
        for move in plan.moves()
    ]
