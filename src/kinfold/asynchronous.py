"""The loop of an asynchronous run: every share of the tasks goes through its periods at its own pace.

What `kinfold.run` does for all tasks at once is done here for one share, when that has ended a period: its scores are
noted, it publishes copies of its tasks, and the rule plans for these, from the newest that is known of all others. What
a task has learned from a copy is what the copy's task had been exposed to when it was published.

Shares meet where a checkpoint is due, and at the end. A share is never more than a few periods ahead of the slowest
(stale synchronous parallel: Ho et al., *More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server*, NeurIPS 2013): what is learned from a copy far behind is worth little.

Legend: T tasks, N rows, A shares, k tasks of one of them, m rows asked for, C classes or outputs.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold import random
from kinfold.checkpoint import Checkpoints
from kinfold.diverging import hidden, told, without
from kinfold.engines import Engine, Job
from kinfold.engines.apart import Apart, Moving, Shown, Snapshot, Uneven, show
from kinfold.engines.exchange import Handle
from kinfold.errors import InputError, RunError
from kinfold.living import Lived, live
from kinfold.run import (
    Event,
    Listener,
    Progress,
    check_rows,
    logged,
    look_at_start,
    open_losses,
    open_targets,
    period_event,
    tell_of_notes,
    transfer_event,
)
from kinfold.selection.ledger import Ledger
from kinfold.transfer import RULES, Rule
from kinfold.transfer.base import Outcome, Plan, State, View

LEAD = 8
"""Periods that a share may be ahead of the slowest, and that lie between two meetings, at least."""


def check_asynchronous(engine: str, rule: Rule) -> None:
    """Raises InputError where tasks cannot be trained each share at its own pace.

    Args:
        engine: its name.
        rule: which must not need tasks to be at the same point.

    Example:
        >>> from kinfold.transfer import PAPA
        >>> check_asynchronous("cluster", PAPA())
        Traceback (most recent call last):
        kinfold.errors.InputError: asynchronous: papa needs all tasks at the same step; choose none, amto, distil, ...
    """
    if engine != "cluster":
        raise InputError(f"asynchronous: it is for the engine cluster, and engine is {engine!r}; leave it out.")
    if not _goes_alone(rule):
        known = ", ".join(name for name, make in RULES.items() if _goes_alone(make()))
        raise InputError(f"asynchronous: {rule.name} needs all tasks at the same step; choose {known}.")


def _goes_alone(rule: Rule) -> bool:
    return rule.alone and rule.steps is None


def run_asynchronously(
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
    """Does what `kinfold.run.run` does, each share of the tasks at its own pace; it is not reproducible.

    All tasks are trained for as many periods. Listeners are told of a period when the slowest share has ended it, and
    then of its transfers. Where all tasks are worn out, those behind still catch up with those ahead.

    Args:
        engine: as in `run`, of shares.
        job: likewise.
        rule: likewise (see `check_asynchronous`).
        progress: likewise.
        epochs: likewise.
        patience: likewise.
        rescues: likewise 0 for none to be looked at; with any other number, those that diverge are set aside until a
            rule brings them back, and none starts again.
        unsealed: likewise.
        listen: likewise.
        checkpoints: likewise; one is written where the shares meet.
        cap: likewise.

    Returns:
        Why it stopped, `epochs` or `patience`.

    Raises:
        RunError: no task ever had a finite score, or a share was lost.
    """
    assert isinstance(engine, Uneven)
    if rescues:
        look_at_start(engine, job, progress)
    if progress.period < epochs and not progress.worn_out(patience):
        with engine.apart() as apart:
            how = (epochs, patience, rescues > 0, unsealed, listen, checkpoints, cap)
            _Going(apart, engine, job, rule, progress, *how).go()
    progress.check_scored()
    return "epochs" if progress.period >= epochs else "patience"


@final
@dataclass(frozen=True, eq=False)
class _Try:
    """A plan for the tasks of a share, and what was known when it was made: other shares go on meanwhile.

    Attributes:
        share: its number.
        plan: what is left of it for these tasks.
        learn: [T] those of them for whom all of it is carried out.
        state: the rule's, after it has planned.
        exposed: the ledger as it was when the copies were published.
        ages: [T] how many periods ago that was.
        donors: the copies that the plan learns from.
        moving: slots of the share's own optimizers.
    """

    share: int
    plan: Plan
    learn: Bool[Tensor, " T"]
    state: State
    exposed: Ledger
    ages: Int64[Tensor, " T"]
    donors: Mapping[int, Snapshot]
    moving: Moving


@final
class _Known:
    """What the driver knows of all tasks: the newest, of different periods.

    Attributes:
        period: [T] in which a copy of a task was published; −1 for never.
        exposed: what the tasks had been exposed to then.
        snapshots: the copies, by task.
        moving: slots of each share's optimizers that move with parameters.
        train_loss: [T] of the last period; NaN before the first.
        improved: [T] whether that improved the best score.
        sound: [T] whether a task can pass something on.
        options: of the optimizers → [T].
    """

    def __init__(self, job: Job, rows: Int64[Tensor, " m"] | None):
        T = job.tasks
        self.period = torch.full((T,), -1)
        self.exposed = Ledger.start(job.train)
        self.snapshots: dict[int, Snapshot] = {}
        self.moving: dict[int, Moving] = {}
        self.train_loss = torch.full((T,), math.nan, dtype=torch.float64)
        self.improved = torch.zeros(T, dtype=torch.bool)
        self.sound = torch.zeros(T, dtype=torch.bool)
        self.options: dict[str, Float[Tensor, " T"]] = {}
        self._rows, self._outputs = rows, torch.empty(0)

    def hear(self, own: slice, shown: Shown, sound: Bool[Tensor, " k"]) -> None:
        """Takes what a share has shown of its tasks, and whether these can pass something on."""
        T = len(self.period)
        self.sound = _with(self.sound, own, sound)
        for name, value in shown.options.items():
            before = self.options.get(name, torch.full((T,), math.nan, dtype=value.dtype))
            self.options[name] = _with(before, own, value)
        if shown.outputs is not None:
            if not self._outputs.numel():
                self._outputs = shown.outputs.new_full((T, *shown.outputs.shape[1:]), math.nan)
            self._outputs[own] = shown.outputs

    def options_at(self, own: slice) -> dict[str, Float[Tensor, " T"]]:
        """Returns the options, with learning rates as schedules have them where a share is now.

        That of a task which was last heard of in another period is what its schedule reckons from, by the share
        that is left of what those of the share's own tasks reckon from.
        """
        if "initial_lr" not in self.options:  # there is no schedule
            return dict(self.options)
        rate, initial = self.options["lr"], self.options["initial_lr"]
        left = (rate[own] / initial[own]).nanmedian()  # NaN for those that are 0 for good
        other = (self.period != self.period[own.start]) & left.isfinite()
        return self.options | {"lr": torch.where(other, initial * left, rate)}

    def predict(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "T m C"]:
        """Returns what the published copies give for some rows; NaN where a task has published none."""
        assert self._rows is not None
        place = torch.searchsorted(self._rows, rows).clamp_max(len(self._rows) - 1)
        if not torch.equal(self._rows[place], rows):
            raise RunError("transfer: the rule asked for predictions on sealed rows; they are for the estimate alone.")
        return self._outputs[:, place]


@final
class _Going:
    """Shares on their way from one meeting to the next."""

    def __init__(
        self,
        apart: Apart,
        engine: Engine,
        job: Job,
        rule: Rule,
        progress: Progress,
        epochs: int,
        patience: int | None,
        looking: bool,
        unsealed: Bool[Tensor, " N"],
        listen: Listener,
        checkpoints: Checkpoints | None,
        cap: int | None,
    ):
        self._apart, self._engine, self._job, self._rule, self._progress = apart, engine, job, rule, progress
        self._epochs, self._patience, self._unsealed, self._listen = epochs, patience, unsealed, listen
        self._checkpoints, self._cap, self._looking = checkpoints, epochs if cap is None else cap, looking
        self._shares = range(len(apart.tasks))
        self._asked: dict[Handle, Callable[[Any], None]] = {}  # what is done with the answer
        self._ended = [progress.period] * len(self._shares)
        self._begun = list(self._ended)
        self._until, self._over = epochs, False  # where they meet; whether that is for the last time
        self._met = -LEAD if progress.period == 0 else progress.period
        # By period, until all shares have ended it: what each has told of it, and what was transferred.
        self._lived: dict[int, dict[int, tuple[Lived, bool]]] = {}
        self._moves: dict[int, list[Event]] = {}
        self._notes: dict[int, str] = {}  # which speak of all tasks: that of the plan made first
        self._told, self._since, self._planned = progress.period, time.perf_counter(), 0.0
        self._rows = unsealed.nonzero().flatten() if {*rule.needs} and self._exchanging() else None
        self._known = _Known(job, self._rows)
        self._targets = open_targets(job, unsealed)

    def go(self) -> None:
        """Trains until all shares have met for the last time."""
        if self._progress.period and self._exchanging():  # what others may learn from until it has ended another
            asked = [self._apart.transport.ask(share, show, self._rows) for share in self._shares]
            for share, shown in enumerate(self._apart.transport.get(asked)):
                self._publish(share, shown, shown.sound)
        over = False
        while not over:
            self._go_on()
            while self._asked:
                handle = self._apart.transport.first([*self._asked])
                (answer,) = self._apart.transport.get([handle])
                self._asked.pop(handle)(answer)
            over = self._meet()

    def _go_on(self) -> None:
        """Has shares begin their next period that wait for nothing, and are not too far ahead."""
        for share in self._shares:
            waits = self._begun[share] > self._ended[share] or self._ended[share] == self._until
            if waits or self._ended[share] - min(self._ended) >= LEAD:
                continue
            self._begun[share] += 1
            progress, own = self._progress, self._apart.tasks[share]
            health = progress.health.of(own) if self._looking else None
            given = (self._begun[share], progress.best[own], health, self._rows)
            asked = self._apart.transport.ask(share, live, *given)
            self._asked[asked] = partial(self._note, share)

    def _note(self, share: int, lived: Lived) -> None:
        """Notes what a share has done in a period, and has it transfer what is due."""
        progress, own, period = self._progress, self._apart.tasks[share], self._begun[share]
        if lived.health is not None:
            progress.health = progress.health.among(own, lived.health)
        progress.note_scores(own, lived.scores, lived.improved, self._job.better)
        self._known.train_loss = _with(self._known.train_loss, own, lived.train_loss.double())
        self._known.improved = _with(self._known.improved, own, lived.improved)
        worn_out = self._patience is not None and bool((progress.stale[own] >= self._patience).all())
        untold = replace(lived, shown=replace(lived.shown, outputs=None))  # which would take much for so long
        self._lived.setdefault(period, {})[share] = untold, worn_out
        for message in lived.notes:
            self._listen({"event": "note", "message": message, "period": period})
        self._publish(share, lived.shown, lived.shown.sound & lived.train_loss.isfinite())
        if self._job.tasks > 1 and period < self._epochs and self._rule.due(period, self._epochs):
            self._plan(share)
        else:
            self._end(share)

    def _publish(self, share: int, shown: Shown, sound: Bool[Tensor, " k"]) -> None:
        known, own = self._known, self._apart.tasks[share]
        known.hear(own, shown, sound & ~self._progress.health.aside[own])
        known.moving[share] = shown.moving
        known.period = _with(known.period, own, torch.full_like(known.period[own], self._begun[share]))
        known.exposed = Ledger(_with(known.exposed.exposed, own, self._progress.ledger.exposed[own]))
        if self._exchanging():
            known.snapshots |= self._apart.publish(share, shown.moving)

    def _exchanging(self) -> bool:
        """Whether there is a transfer to come, of any share."""
        left = range(min(self._ended) + 1, self._epochs)
        return self._job.tasks > 1 and any(self._rule.due(period, self._epochs) for period in left)

    # -- transfers -----------------------------------------------------------------------------------------------------

    def _plan(self, share: int) -> None:
        """Has the rule plan, and the share's tasks try what is for them."""
        began = time.perf_counter()
        progress, rule, period = self._progress, self._rule, self._begun[share]
        draws = random.generator(self._job.seed, "transfer", period)
        plan, state = rule.plan(self._view(share), progress.rule, draws)
        own = _mask(self._apart.tasks[share], self._job.tasks)
        progress.rule = rule.merged(progress.rule, state, own)
        if plan is not None and plan.note is not None:
            self._notes.setdefault(period, plan.note)
        attempt = None if plan is None else self._attempt(share, plan, own, state)
        self._planned += time.perf_counter() - began
        if attempt is None:
            self._end(share)
            return
        asked = self._apart.consider(share, attempt.plan, period, attempt.donors)
        if asked is None:
            nobody = Outcome.nothing(int(own.sum()))
            self._learn(attempt, nobody)
        else:
            self._asked[asked] = partial(self._learn, attempt)

    def _attempt(self, share: int, plan: Plan, own: Bool[Tensor, " T"], state: State) -> _Try:
        """What of a plan is for a share, but for tasks that are to learn from one that has published nothing yet."""
        known = self._known
        check_rows(self._rule, plan, self._unsealed)
        published, everyone = known.period >= 0, torch.ones_like(own)
        plan = without(plan, self._aside(), ~everyone)
        left = plan.only(own, published)
        donors = left.lineage(everyone).any(0).nonzero().flatten().tolist()
        learn = own & ~(plan.lineage(everyone) & ~published).any(1)
        return _Try(
            share,
            left,
            learn,
            state,
            known.exposed,
            self._begun[share] - known.period,
            {donor: known.snapshots[donor] for donor in donors},
            known.moving[share],
        )

    def _learn(self, attempt: _Try, outcome: Outcome) -> None:
        """Notes what became of a plan, and has the share do the rest of it."""
        progress, rule, share, plan = self._progress, self._rule, attempt.share, attempt.plan
        own, period, among = self._apart.tasks[share], self._begun[attempt.share], Outcome.nothing(self._job.tasks)
        among.accepted[own], among.before[own], among.after[own] = outcome.accepted, outcome.before, outcome.after
        progress.rule = rule.merged(progress.rule, rule.learn(plan, among, attempt.state), attempt.learn)
        # The share's own rows are in the ledger of the copies as they are now: it has published in this very period.
        everyone = torch.ones_like(attempt.learn)
        after = attempt.exposed.after(plan.lineage(among.accepted), everyone, plan.taught_rows())
        progress.ledger = Ledger(_with(progress.ledger.exposed, own, after.exposed[own]))
        health = replace(progress.health)
        health.taught(plan, self._job.objective.classes)
        progress.health = progress.health.among(own, health.of(own))
        progress.note_moves(plan, among)
        moves = [{**move, "ages": attempt.ages[[*move["donors"]]].tolist()} for move in logged(plan, among, self._job)]
        self._moves.setdefault(period, []).extend(moves)
        asked = self._apart.follow(share, plan, period, attempt.donors, among.accepted, attempt.moving)
        self._apart.transport.count()
        if asked:
            self._asked[asked[-1]] = lambda _: self._end(share)
        else:
            self._end(share)

    def _view(self, share: int) -> View:
        progress, known, needs, aside = self._progress, self._known, self._rule.needs, self._aside()
        return View(
            period=self._begun[share],
            epochs=self._epochs,
            metric=progress.scores[:, 0],
            loss=progress.scores[:, 1],
            train_loss=torch.where(aside, math.nan, known.train_loss),
            sound=known.sound,
            improved=known.improved,
            validation=self._job.validation,
            exposed=known.exposed.exposed,
            unsealed=self._unsealed,
            targets=self._targets,
            options=known.options_at(self._apart.tasks[share]),
            classes=self._job.objective.classes,
            predict=hidden(known.predict, aside) if "predictions" in needs else None,
            losses=hidden(partial(open_losses, self._losses, self._unsealed), aside) if "losses" in needs else None,
        )

    def _aside(self) -> Bool[Tensor, " T"]:
        """[T] whose numbers nobody is to see; of a task that has published nothing, there are none."""
        known = self._known
        return (known.period >= 0) & ~known.sound & self._looking

    def _losses(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "T m"]:
        targets = self._job.targets[rows]
        return torch.stack([self._job.objective.row_losses(own, targets) for own in self._known.predict(rows)])

    # -- what all have done --------------------------------------------------------------------------------------------

    def _end(self, share: int) -> None:
        """A share has done all of a period."""
        self._ended[share] = self._begun[share]
        while self._told < min(self._ended):
            self._tell()
        if self._until == self._epochs and self._due():
            self._until = max(self._begun)
        self._go_on()

    def _tell(self) -> None:
        """Tells of a period that all have done."""
        self._told += 1
        progress, now = self._progress, time.perf_counter()
        found = self._lived.pop(self._told)
        lived = [found[share][0] for share in self._shares]
        spent, self._since = now - self._since, now
        progress.wall_seconds += spent
        progress.transfer_seconds += self._planned
        progress.train_seconds += spent - self._planned
        progress.steps += max(one.steps for one in lived)
        self._planned = 0.0
        self._listen(
            period_event(
                self._job,
                self._told,
                self._cap,
                torch.cat([one.train_loss for one in lived]),
                torch.cat([one.scores for one in lived]),
                torch.cat([one.improved for one in lived]),
                torch.cat([one.rates for one in lived]),
                spent,
            )
        )
        new = torch.cat([one.diverged for one in lived]).nonzero().flatten().tolist()
        if new:
            self._listen(told(self._told, new, [], None, torch.cat([one.rates for one in lived])))
        moves, note = self._moves.pop(self._told, []), self._notes.pop(self._told, None)
        if moves or note is not None:
            self._listen(transfer_event(self._told, self._rule.name, moves, note))
        if all(worn_out for _, worn_out in found.values()):
            self._until, self._over = max(self._begun), True

    def _due(self) -> bool:
        far = min(self._ended) - self._met >= LEAD
        return self._checkpoints is not None and far and self._checkpoints.due()

    def _meet(self) -> bool:
        """All have ended the same period: writes a checkpoint; returns whether it was the last."""
        progress = self._progress
        progress.period = self._apart.period = self._met = self._until
        tell_of_notes(self._engine, self._listen, progress.period)
        last = progress.period == self._epochs or self._over
        if self._over and self._patience is not None:  # who improved while others caught up is no less at its end
            progress.stale = progress.stale.clamp_min(self._patience)
        if self._checkpoints is not None:
            began = time.perf_counter()
            progress.save(self._engine, self._checkpoints)
            progress.wall_seconds += time.perf_counter() - began  # the next checkpoint has it
            self._since = time.perf_counter()
        self._until = self._epochs
        return last


def _with(before: Tensor, own: slice, new: Tensor) -> Tensor:
    """A tensor of all tasks with other rows for some; the one before stays, and who was given it keeps it."""
    after = before.clone()
    after[own] = new
    return after


def _mask(tasks: slice, total: int) -> Bool[Tensor, " T"]:
    return _with(torch.zeros(total, dtype=torch.bool), tasks, torch.ones(tasks.stop - tasks.start, dtype=torch.bool))
