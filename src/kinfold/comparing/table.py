"""The comparison's table and its words: from one record for each arm and seed to Markdown, CSV and sentences.

Everything is written so that above 0 means better, whatever the metric.
"""

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from jaxtyping import Float64

from kinfold.comparing.statistics import (
    LEVEL,
    Interval,
    Paired,
    average_ranks,
    corrected_resampled_t,
    holm,
    interval,
    paired_t,
)
from kinfold.errors import InputError, unknown
from kinfold.files import inert

CONVENTIONAL = "conventional"
"""The arm whose sample visits are the unit of the others'."""

_NOTHING = "–"
_EQUAL = 0.9  # share of an arm's sample visits from which a control counts as run at equal compute

_VERDICTS = {
    "better": "better beyond doubt",
    "level": "level",
    "worse": "worse beyond doubt",
    "open": "nothing can be said of",
}


@dataclass(frozen=True)
class Score:
    """What one arm came to on one seed.

    Attributes:
        arm: the arm's name.
        seed: the seed.
        value: the metric on the test rows, as it is shown to the user.
        train_loss: the returned model's loss on the rows that the arm could train on.
        train_value: its metric on them.
        visits: sample visits spent.
        seconds: wall-clock time spent.
        kept: which model was returned, such as `task 3`.
    """

    arm: str
    seed: int
    value: float
    train_loss: float
    train_value: float
    visits: int
    seconds: float
    kept: str


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its K seeds.

    Attributes:
        arm: the arm's name.
        seeds: K.
        inference: how many models answer at prediction; above 1 the arm is an upper reference and no candidate.
        is_control: whether the arm is a control, and not one whose worth is in question.
        mean: mean value on the test rows.
        low: lower end of its interval over seeds.
        high: upper end.
        control: the arm that the table sets all others against.
        against: by arm, for `control` and each control arm but this arm itself: how much better this one is.
        rank: mean rank over the seeds among the arms that are no upper reference, NaN for one that is.
        train_loss: loss on the rows the arm could train on.
        gap: generalization gap, how much worse the test rows are than those.
        sample_visits: mean number of sample visits.
        visits: the same in units of the conventional arm's; NaN without that arm.
        seconds: mean wall-clock time.
    """

    arm: str
    seeds: int
    inference: int
    is_control: bool
    mean: float
    low: float
    high: float
    control: str
    against: Mapping[str, Paired]
    rank: float
    train_loss: Interval
    gap: Interval
    sample_visits: float
    visits: float
    seconds: float

    @property
    def is_reference(self) -> bool:
        """Whether the arm is an upper reference."""
        return self.inference > 1

    @property
    def difference(self) -> Paired | None:
        """How much better than the control; None for the control itself."""
        return self.against.get(self.control)


def summary(
    scores: Sequence[Score],
    control: str,
    higher_is_better: bool,
    test_share: float | None,
    *,
    controls: Collection[str],
    inference: Mapping[str, int] | None = None,
) -> list[ArmSummary]:
    """Returns each arm's summary, the best mean first and the upper references last.

    Args:
        scores: one record for each arm and seed, in any order; every arm with the same seeds.
        control: the arm that the others are set against.
        higher_is_better: whether a higher value is better.
        test_share: share of the rows in the test set where each seed splits the data anew: differences then go
            through `corrected_resampled_t`. None for one fixed test set: they go through `paired_t`.
        controls: names of the arms that are controls; some may not have been run.
        inference: how many models answer at prediction, for arms where that is not 1.

    Raises:
        InputError: there are no scores, an arm lacks a seed or has it twice, the control was not run or is an
            upper reference, or the share is not in (0, 1).

    Example:
        >>> values = {"conventional": (90, 91, 90), "all-rows": (93, 93, 92), "teach": (94, 93, 94)}
        >>> scores = [
        ...     Score(arm, seed, float(value), 0.1, 99.0, 8000, 1.5, "task 0")
        ...     for arm, three in values.items()
        ...     for seed, value in enumerate(three)
        ... ]
        >>> found = summary(scores, "all-rows", True, None, controls=["conventional", "all-rows"])
        >>> [(s.arm, round(s.rank, 2)) for s in found]
        [('teach', 1.17), ('all-rows', 1.83), ('conventional', 3.0)]
        >>> round(found[0].difference.mean, 3), found[0].difference.wins
        (1.0, 2)
    """
    models = {} if inference is None else inference
    grid = _grid(scores)
    if control not in grid:
        raise unknown("control", control, grid)
    if models.get(control, 1) > 1:
        raise InputError(f"control: {control!r} answers with {models[control]} models; choose an arm of one model.")
    sign = 1 if higher_is_better else -1
    values = {arm: sign * _array(run.value for run in runs) for arm, runs in grid.items()}
    ranked = [arm for arm in grid if models.get(arm, 1) == 1]
    ranks = dict(zip(ranked, average_ranks(np.stack([values[arm] for arm in ranked], axis=1)), strict=True))
    opponents = list(dict.fromkeys([control, *(arm for arm in ranked if arm in controls)]))
    unit = _array(run.visits for run in grid[CONVENTIONAL]).mean() if CONVENTIONAL in grid else math.nan
    summaries = []
    for arm, runs in grid.items():
        visits = float(_array(run.visits for run in runs).mean())
        mean, low, high = interval(_array(run.value for run in runs))
        summaries.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                inference=models.get(arm, 1),
                is_control=arm in controls,
                mean=mean,
                low=low,
                high=high,
                control=control,
                against={
                    other: _compared(values[arm], values[other], test_share) for other in opponents if other != arm
                },
                rank=float(ranks.get(arm, math.nan)),
                train_loss=interval(_array(run.train_loss for run in runs)),
                gap=interval(_minus(sign * _array(run.train_value for run in runs), values[arm])),
                sample_visits=visits,
                visits=visits / unit if unit > 0 else math.nan,
                seconds=float(_array(run.seconds for run in runs).mean()),
            )
        )
    return sorted(summaries, key=lambda s: (s.is_reference, math.isnan(s.mean), -sign * s.mean))


def corrected_p(summaries: Sequence[ArmSummary], control: str) -> dict[str, float]:
    """Returns the p-value of each arm's difference to a control, corrected by Holm over the arms of one model.

    Args:
        summaries: from `summary`.
        control: an arm that the summaries are set against.

    Raises:
        InputError: the summaries are not set against that arm.
    """
    arms = [s for s in summaries if s.arm != control and not s.is_reference]
    for s in arms:
        if control not in s.against:
            raise unknown("control", control, s.against)
    p_values = holm(np.array([s.against[control].p for s in arms], dtype=np.float64))
    return {s.arm: float(p) for s, p in zip(arms, p_values, strict=True)}


def markdown(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    r"""Returns a Markdown table, its first column to the left and the others to the right.

    Example:
        >>> print(markdown([["a|b", "1"]], ["arm", "rank"]))
        | arm | rank |
        |:---|---:|
        | a\|b | 1 |
    """
    lines = [_line(columns), "|:---|" + "---:|" * (len(columns) - 1), *(_line(row) for row in rows)]
    return "\n".join(lines)


def to_markdown(summaries: Sequence[ArmSummary]) -> str:
    """Returns the comparison's table in Markdown, and under it how its figures were come by.

    Args:
        summaries: from `summary`, at least one.
    """
    control, digits = summaries[0].control, _digits(summaries)
    p_values = corrected_p(summaries, control)
    columns = (
        "arm",
        f"mean ({LEVEL:.0%} interval)",
        f"better than {control} by",
        "p",
        "wins–ties–losses",
        "mean rank",
        "training loss",
        "generalization gap",
        f"visits / {CONVENTIONAL}",
        "seconds",
    )
    rows = []
    for s in summaries:
        d = s.difference
        rows.append(
            (
                _title(s),
                _spanned(Interval(s.mean, s.low, s.high), f".{digits}f"),
                "control" if d is None else _spanned(Interval(d.mean, d.low, d.high), f"+.{digits}f"),
                _p(p_values.get(s.arm, math.nan)),
                "" if d is None else f"{d.wins}–{d.ties}–{d.losses}",
                _number(s.rank, ".2f"),
                _spanned(s.train_loss, ".3g"),
                _spanned(s.gap, f".{digits}f"),
                _number(s.visits, ".2f"),
                _number(s.seconds, ".1f"),
            )
        )
    return f"{markdown(rows, columns)}\n\n{' '.join(_notes(summaries))}\n"


def to_csv(scores: Sequence[Score]) -> str:
    """Returns the records as CSV with a header, numbers with all their digits, and no text a formula (`files.inert`).

    Example:
        >>> print(to_csv([Score("teach", 0, 93.5, 0.1, 99.0, 8000, 1.5, "task 3")]), end="")
        arm,seed,value,train_loss,train_value,visits,seconds,kept
        teach,0,93.5,0.1,99.0,8000,1.5,task 3
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(Score))
    writer.writerows(map(inert, astuple(score)) for score in scores)
    return buffer.getvalue()


def sentence(summaries: Sequence[ArmSummary], control: str) -> str:
    """Returns what helped, in plain sentences with figures.

    First the arms that are better than the control beyond doubt (p below 0.05, by Holm's correction
    over the arms of one model), level with it, and worse. Then whether transfer helped: the best
    arm that is no control against the strongest control, the one with the best mean, so that the choice flatters
    the control; Holm's correction is over the arms that are no controls. Last the upper references, which are never
    called better.

    Args:
        summaries: from `summary`, in its order.
        control: an arm that the summaries are set against.

    Raises:
        InputError: the summaries are not set against that arm.

    Example:
        >>> values = {"all-rows": (93, 93, 92, 93), "teach": (94, 95, 94, 94.5)}
        >>> scores = [
        ...     Score(arm, seed, float(value), 0.1, 99.0, 8000, 1.5, "task 0")
        ...     for arm, four in values.items()
        ...     for seed, value in enumerate(four)
        ... ]
        >>> found = summary(scores, "all-rows", True, None, controls=["all-rows"])
        >>> first, second = sentence(found, "all-rows").split(". ")
        >>> print(first)
        Against all-rows over 4 seeds: better beyond doubt: teach (+1.62, +0.86 to +2.39)
        >>> print(second.split(" for ")[0])
        Transfer helped here: teach scored 94.38 against 92.75
    """
    said = [_verdict_words(summaries, control), _transfer_words(summaries), _reference_words(summaries)]
    return " ".join(part for part in said if part)


def _grid(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Each arm's records in order of their seeds, which are the same for all."""
    if not scores:
        raise InputError("scores: there are none; run at least one arm on one seed.")
    grid: dict[str, dict[int, Score]] = {}
    for score in scores:
        runs = grid.setdefault(score.arm, {})
        if score.seed in runs:
            raise InputError(f"scores: arm {score.arm!r} has seed {score.seed} twice; give each once.")
        runs[score.seed] = score
    seeds = sorted({score.seed for score in scores})
    for arm, runs in grid.items():
        for seed in seeds:
            if seed not in runs:
                raise InputError(f"scores: arm {arm!r} lacks seed {seed}, which others have; run it too.")
    return {arm: [runs[seed] for seed in seeds] for arm, runs in grid.items()}


def _array(values: Iterable[float | int]) -> Float64[np.ndarray, " K"]:
    return np.array(list(values), dtype=np.float64)


def _compared(one: Float64[np.ndarray, " K"], other: Float64[np.ndarray, " K"], test_share: float | None) -> Paired:
    d = _minus(one, other)
    return paired_t(d) if test_share is None else corrected_resampled_t(d, test_share)


def _minus(one: Float64[np.ndarray, " K"], other: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    with np.errstate(invalid="ignore"):  # inf - inf, of two runs that diverged, is a NaN like any other
        return np.asarray(one - other)


def _verdict_words(summaries: Sequence[ArmSummary], control: str) -> str:
    p_values = corrected_p(summaries, control)
    if not p_values:
        return f"There is nothing to compare {control} with."
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    digits = _digits(summaries)
    for s in summaries:
        if s.arm in p_values:
            d = s.against[control]
            groups[_verdict(d, p_values[s.arm])].append(f"{s.arm} ({_difference(d, digits)})")
    said = "; ".join(f"{_VERDICTS[verdict]}: {', '.join(arms)}" for verdict, arms in groups.items() if arms)
    seeds = summaries[0].seeds
    return f"Against {control} over {seeds} seed{'s' if seeds > 1 else ''}: {said}."


def _verdict(d: Paired, p: float) -> str:
    if math.isnan(p):
        return "open"
    if p >= 1 - LEVEL:
        return "level"
    return "better" if d.mean > 0 else "worse"


def _transfer_words(summaries: Sequence[ArmSummary]) -> str:
    """Whether the best arm in question is ahead of the strongest control; nothing where one of the two is missing."""
    single = [s for s in summaries if not s.is_reference and math.isfinite(s.mean)]
    strongest = next((s for s in single if s.is_control), None)
    tried = [s for s in single if not s.is_control]
    if strongest is None or not tried:
        return ""
    name = strongest.arm
    p_values = corrected_p([s for s in summaries if not s.is_control], name)
    ahead = [s for s in tried if _verdict(s.against[name], p_values[s.arm]) == "better"]
    best = (ahead or tried)[0]
    d = best.against[name]
    digits = _digits(summaries)
    ours, theirs = _number(best.mean, f".{digits}f"), _number(strongest.mean, f".{digits}f")
    visits = ""
    if math.isfinite(best.visits):
        visits = f"; {best.visits:.1f} and {strongest.visits:.1f} times the visits of {CONVENTIONAL}"
    figures = f"({_difference(d, digits)}{visits})"
    if not ahead and d.mean <= 0:
        return (
            f"Transfer did not help here: {name}, the strongest control, scored {theirs} against {ours} for "
            f"{best.arm}, the best of the arms in question {figures}."
        )
    opening = "Transfer helped here" if ahead else "Whether transfer helped here is open"
    said = f"{opening}: {best.arm} scored {ours} against {theirs} for {name}, the strongest control {figures}."
    most = max(s.sample_visits for s in single if s.is_control)
    if most < _EQUAL * best.sample_visits:
        said += " No control was run at equal compute, so this may be the compute alone."
    return said


def _reference_words(summaries: Sequence[ArmSummary]) -> str:
    digits = _digits(summaries)
    said = [
        f"{s.arm} ({s.inference} times the inference) scored {_number(s.mean, f'.{digits}f')}"
        for s in summaries
        if s.is_reference
    ]
    return f"For reference only: {', '.join(said)}." if said else ""


def _notes(summaries: Sequence[ArmSummary]) -> list[str]:
    level, seeds = f"{LEVEL:.0%}", summaries[0].seeds
    notes = [f"{seeds} seeds, {level} intervals over seeds by Student's t." if seeds > 1 else "One seed, no intervals."]
    compared = [s.difference for s in summaries if s.difference is not None]
    if compared:
        test = (
            "the resampled t test corrected for rows that the seeds share (Nadeau and Bengio, 2003)"
            if compared[0].corrected
            else "the paired t test over seeds on one test set"
        )
        notes.append(f"Differences are paired by seed, above 0 where the arm is better, by {test}; p after Holm.")
    if any(s.is_reference for s in summaries):
        notes.append("An arm with several times the inference is an upper reference, and is not ranked or tested.")
    return notes


def _digits(summaries: Sequence[ArmSummary]) -> int:
    """Decimals that give the largest mean four significant digits."""
    largest = max((abs(s.mean) for s in summaries if math.isfinite(s.mean)), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest else 4


def _title(s: ArmSummary) -> str:
    return f"{s.arm} ({s.inference} × inference)" if s.is_reference else s.arm


def _difference(d: Paired, digits: int) -> str:
    form = f"+.{digits}f"
    ends = "" if math.isnan(d.low) else f", {_number(d.low, form)} to {_number(d.high, form)}"
    return _number(d.mean, form) + ends


def _spanned(x: Interval, form: str) -> str:
    ends = "" if math.isnan(x.low) else f" ({_number(x.low, form)} to {_number(x.high, form)})"
    return _number(x.mean, form) + ends


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return _NOTHING
    text = format(value, form)
    return format(0.0, form) if float(text) == 0 else text  # no -0.00


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else _number(value, ".3f")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
