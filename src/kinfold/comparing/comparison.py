"""`compare`: named arms on one data set over several seeds, at equal compute, and what is to be said of them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool

from kinfold import files
from kinfold.assembling import (
    BY_RECIPE,
    Assembled,
    Prepared,
    assemble,
    check,
    configuration,
    is_auto,
    row_info,
)
from kinfold.comparing.arms import SET_BY_ARM, Arm, Trial, resolve_arm
from kinfold.comparing.charts import critical_difference, differences, gaps, write_svg
from kinfold.comparing.statistics import nemenyi_critical_difference
from kinfold.comparing.table import CONVENTIONAL, ArmSummary, Score, sentence, summary, to_csv, to_markdown
from kinfold.config import describe
from kinfold.data import read
from kinfold.data.base import Dataset, fingerprint
from kinfold.engines import choose_engine
from kinfold.errors import InputError, RunError
from kinfold.fitting import ABOUT_THE_RUN, alone_in, fit
from kinfold.splits import draw_splits
from kinfold.splits.pick import check_share
from kinfold.yaml_files import yaml_text

ARMS = (CONVENTIONAL, "restarts", "all-rows", "amto", "papa", "teach", "distil", "ensemble")
"""The arms that are compared where none are named."""

_OWN = (*SET_BY_ARM, "holdout", "seed")

Listener: TypeAlias = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Comparison:
    """What arms came to.

    Attributes:
        metric: the name of what they are judged by.
        scores: one record for each arm and seed.
        summaries: one for each arm, the best first.
        sentence: what helped, in words.
        config: what was compared, and how.
    """

    metric: str
    scores: tuple[Score, ...]
    summaries: tuple[ArmSummary, ...]
    sentence: str
    config: dict[str, Any]

    def to_markdown(self) -> str:
        """Returns the table and the words."""
        about = (
            f"{self.metric} on rows that no arm has seen, {self.config['seeds']} seeds, {self.config['tasks']} tasks"
        )
        return f"{about}\n\n{to_markdown(self.summaries)}\n{self.sentence}\n"

    def write(self, directory: Path) -> None:
        """Writes `comparison.md`, `scores.csv`, and the plots that there is something to plot for."""
        files.write_text(directory / "comparison.md", self.to_markdown())
        files.write_text(directory / "scores.csv", to_csv(self.scores))
        ranks = {s.arm: s.rank for s in self.summaries if not s.is_reference and not math.isnan(s.rank)}
        seeds = self.summaries[0].seeds
        if len(ranks) > 1 and seeds > 1:
            distance = nemenyi_critical_difference(len(ranks), seeds)
            chart = critical_difference(ranks, distance, describe="Mean ranks of the arms")
            write_svg(directory / "critical-difference.svg", chart)
        control = self.summaries[0].control
        against = {s.arm: s.difference for s in self.summaries if s.difference is not None}
        if against and seeds > 1:
            chart = differences(against, control, describe=f"Differences to {control}")
            write_svg(directory / "differences.svg", chart)
        losses, gap = ({s.arm: getattr(s, name) for s in self.summaries} for name in ("train_loss", "gap"))
        write_svg(
            directory / "gaps.svg", gaps(losses, gap, describe="Training loss and generalization gap of the arms")
        )


def compare(
    model: Any,
    data: Any,
    *,
    arms: Sequence[str | Mapping[str, Any]] = ARMS,
    seeds: int = 5,
    test: Any = None,
    test_share: float | int = 0.3,
    control: str | None = None,
    out: str | Path | Callable[[], Path] | None = None,
    resume: bool = False,
    listen: Listener | None = None,
    **options: Any,
) -> Comparison:
    """Runs named arms on one data set over several seeds, at equal compute counted in sample visits.

    Args:
        model: as for `kinfold.fit`.
        data: as for `kinfold.fit`.
        arms: names of controls (`kinfold.comparing.arms.CONTROLS`) and transfer rules, or mappings of a name and
            arguments of `fit`.
        seeds: K; the arms run with the seeds 0 … K − 1.
        test: labelled rows that nothing else touches, in any form that `data` takes, the same for every seed; or
            None, and every seed seals a share of the rows anew.
        test_share: that share.
        control: the arm that the others are set against; default `all-rows` where it runs, else the first arm.
        out: directory for the table, the plots and each run's record; None writes nothing. Or a function that gives
            one, which is asked when all has been checked.
        resume: go on with the comparison in `out`; with none there, start.
        listen: is told of every experiment that ends.
        options: further arguments of `kinfold.fit`, for every arm.

    Raises:
        InputError: something given cannot be used; nothing has been trained then.
        RunError: an arm could not be finished.

    Example:
        >>> found = compare("mlp", "iris", arms=["conventional", "all-rows"], seeds=2, tasks=2, epochs=2)
        >>> sorted(summary.arm for summary in found.summaries)
        ['all-rows', 'conventional']
    """
    given = fit_arguments(model, data, **options) | {"holdout": test_share if test is None else 0.0}
    check(given)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds: is {seeds!r}; give a whole number of at least 1.")
    lines = [resolve_arm(arm) for arm in arms]
    names = [arm.name for arm in lines]
    if not lines or len(set(names)) < len(names):
        raise InputError(f"arms: are {', '.join(names) or 'none'}; give at least one, and each once.")
    able = [arm.name for arm in lines if not arm.reference]
    if not able:
        raise InputError(f"arms: {', '.join(names)} answers with several models; add one of one model to compare with.")
    if control is None:
        control = "all-rows" if "all-rows" in able else able[0]
    if control not in able:
        raise InputError(
            f"control: {control!r} is not among the arms of one model; add it, or name one of {', '.join(able)}."
        )
    if test is None:
        check_share("test_share", test_share)
    config = {
        **{name: value for name, value in configuration(given).items() if name not in _OWN},
        "arms": describe(list(arms)),
        "seeds": seeds,
        **({"test_share": float(test_share)} if test is None else {"test": _named(test)}),
        "control": control,
    }
    folder = None if out is None or callable(out) else Path(out)
    _check_folder(folder, config, resume)
    assembled = assemble(given)
    chosen = {name: assembled.config[name] for name in BY_RECIPE if is_auto(given[name])}
    tasks = assembled.job.tasks  # a splitter may fix its own
    given, config = {**given, **chosen, "tasks": tasks}, {**config, **chosen}
    held = None if test is None else _test_rows(test, assembled.prepared)
    share = _share_of_test(lines, given, assembled, seeds) if held is None else None
    for arm in lines:
        if arm.changes:
            assemble({**given, **arm.changes})  # refuses what the arm cannot be trained with
    # Refuses what cannot be trained.
    engine, note = choose_engine(
        str(given["engine"]), assembled.job, resources=given["resources"], compression=given["compression"]
    )
    engine.close()
    if listen is not None:
        for event in assembled.told if note is None else [*assembled.told, {"event": "note", "message": note}]:
            listen(event)
    if callable(out):
        folder = Path(out())
        resume = False
    with alone_in(folder):
        if folder is not None:
            _check_folder(folder, config, resume)  # what another process has done there since the first look
            _open(folder, config, assembled.prepared, held)
        scores = _run(lines, seeds, given, held, folder, listen)
        metric = assembled.job.objective.metric
        summaries = summary(
            scores,
            control,
            metric.higher_is_better,
            share,
            controls=[arm.name for arm in lines if arm.control],
            inference={arm.name: int(given["tasks"]) for arm in lines if arm.reference},
        )
        said = sentence(summaries, control)
        found = Comparison(metric.name, tuple(scores), tuple(summaries), said, {**config, "tasks": tasks})
        if folder is not None:
            with files.writing(folder):
                found.write(folder)
    return found


def fit_arguments(model: Any, data: Any, **options: Any) -> dict[str, Any]:
    """Returns all arguments of `kinfold.fit` by name, with its defaults, but for those about where a run is kept.

    Raises:
        InputError: an option is unknown, or the comparison's own to set.

    Example:
        >>> fit_arguments("mlp", "iris", tasks=3)["tasks"]
        3
    """
    for name in (*ABOUT_THE_RUN, *_OWN):
        if name in options:
            whose = "an arm's own to set" if name in SET_BY_ARM else "the comparison's own to set"
            raise InputError(f"{name}: is {whose}; leave it out.")
    try:
        bound = inspect.signature(fit).bind(model, data, **options)
    except TypeError as error:
        raise InputError(f"compare: {error}.") from None
    bound.apply_defaults()
    given = {name: value for name, value in bound.arguments.items() if name not in ABOUT_THE_RUN}
    return {**given, "transfer": "none", "holdout": 0.0}


def _named(test: Any) -> str:
    return str(test) if isinstance(test, (str, Path)) else f"<{type(test).__qualname__}>"


def _test_rows(test: Any, prepared: Prepared) -> Dataset:
    """The test set, its classes numbered as the data's are."""
    target = prepared.dataset.target
    written = prepared.encoder.written
    held = read(test, target=target.name, kind=target.kind, labels=target.labels, written=written)
    if held.target.outputs != target.outputs:
        raise InputError(f"test: has {held.target.outputs} targets, and the data has {target.outputs}; give the same.")
    prepared.encoder.encode(held.features)  # so that rows which do not fit are refused now
    return held


def _share_of_test(arms: Sequence[Arm], given: Mapping[str, Any], assembled: Assembled, seeds: int) -> float | None:
    """Returns which share of the rows each seed seals anew; None where every seed seals the same ones.

    Raises:
        InputError: no rows are sealed, or an arm's own splits seal others than the rest.
    """
    info = row_info(assembled.prepared.dataset)
    kept = ("splits", "tasks", "val_fraction", "holdout")

    def sealed(arguments: Mapping[str, Any], seed: int) -> Bool[np.ndarray, " N"]:
        spec, tasks, val_fraction, holdout = (arguments[name] for name in kept)
        return draw_splits(info, spec, tasks=tasks, val_fraction=val_fraction, holdout=holdout, seed=seed).sealed

    masks = [sealed(given, seed) for seed in range(seeds)]
    if not all(mask.any() for mask in masks):
        raise InputError("splits: they seal no rows to judge arms by; give test, or other splits.")
    for arm in arms:
        changes = {} if arm.changes is None else arm.changes
        if any(name in changes for name in kept) and not all(
            np.array_equal(mask, sealed({**given, **changes}, seed)) for seed, mask in enumerate(masks)
        ):
            raise InputError(
                f"arms: {arm.name}: its splits seal other rows than the other arms'; give splits that do not."
            )
    anew = seeds == 1 or not all(np.array_equal(masks[0], mask) for mask in masks[1:])
    return float(np.mean(masks)) if anew else None


def _open(folder: Path, config: Mapping[str, Any], prepared: Prepared, test: Dataset | None) -> None:
    """Begins to write, or refuses to go on with other rows, of which `comparison.yaml` may say only their type."""
    record = folder / "scores" / "data.json"
    known = {
        "data": prepared.fingerprint,
        "test": None if test is None else fingerprint(test, test.fingerprints()),
    }
    if record.exists() and files.read_json(record) != known:
        raise InputError(f"resume: the data has changed since the comparison in {folder} began; give another out.")
    with files.writing(folder):
        files.clear_halves(folder)
        files.write_text(folder / "comparison.yaml", yaml_text(files.jsonable(dict(config))))
        files.write_json(record, known)


def _run(
    arms: Sequence[Arm],
    seeds: int,
    given: Mapping[str, Any],
    test: Dataset | None,
    folder: Path | None,
    listen: Listener | None,
) -> list[Score]:
    """Every experiment on every seed, those on record left out, in order of the seeds."""
    names = {arm.name for arm in arms}
    experiments = {arm.experiment: arm.run for arm in arms}
    scores: list[Score] = []
    done = 0
    for seed in range(seeds):
        for name, run in experiments.items():
            record = None if folder is None else folder / "scores" / f"{name}-{seed}.json"
            if record is not None and record.exists():
                found = {arm: Score(**_read(score)) for arm, score in files.read_json(record).items()}
            else:
                try:
                    found = run(Trial({**given, "seed": seed}, test))
                except RunError:  # no task ever had a finite score: the arm has none, and the others go on
                    found = {arm.name: _diverged(arm.name, seed) for arm in arms if arm.experiment == name}
                if record is not None and folder is not None:
                    with files.writing(folder):
                        files.write_json(record, {arm: asdict(score) for arm, score in found.items()})
            mine = {arm: score for arm, score in found.items() if arm in names}
            scores += mine.values()
            done += 1
            if listen is not None:
                listen(
                    {
                        "event": "experiment",
                        "seed": seed,
                        "done": done,
                        "of": seeds * len(experiments),
                        "values": {arm: score.value for arm, score in mine.items()},
                        "seconds": max(score.seconds for score in mine.values()),
                    }
                )
    return scores


def _diverged(arm: str, seed: int) -> Score:
    return Score(arm, seed, math.nan, math.nan, math.nan, 0, 0.0, "diverged")


def _read(score: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in score.items()}


def _check_folder(folder: Path | None, config: Mapping[str, Any], resume: bool) -> None:
    if folder is None:
        if resume:
            raise InputError("resume: there is no directory to resume from; give out.")
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a directory.")
    record = folder / "comparison.yaml"
    if not record.exists():
        if folder.exists() and files.entries(folder):
            raise InputError(f"out: {folder} is not empty and holds no comparison; choose another directory.")
        return
    if not resume:
        raise InputError(f"out: {folder} already holds a comparison; choose another directory, or give resume.")
    files.check_links(folder)
    before = files.read_yaml(record)
    if isinstance(before, dict):
        before = {"rescue": 0, **before}  # versions that did not know of it let tasks go on as they were
    for name, value in files.jsonable(dict(config)).items():
        if is_auto(value):  # what was chosen for it is what the comparison has
            continue
        if not isinstance(before, dict) or before.get(name) != value:
            was = before.get(name) if isinstance(before, dict) else None
            raise InputError(
                f"resume: {name} is {value!r}, and the comparison in {folder} has {was!r}; "
                "give the same, or another out."
            )
