"""A run's figures in words: what was picked, why, and how far to trust it. From JSON values to sentences."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np

Json: TypeAlias = dict[str, Any]

NOTHING = "–"

_CRITERIA = {
    "mean": "the best mean over all validation sets",
    "worst": "the best score on its worst validation set",
    "rank": "the best mean rank over all validation sets",
    "lower": "the best lower confidence bound over all validation sets",
}
_INTERVALS = {
    "wilson": "Wilson's score interval",
    "bca": "a BCa bootstrap interval",
    "percentile": "a bootstrap percentile interval",
}


@dataclass(frozen=True)
class Scale:
    """How scores of a metric are written: accuracies in percent, others as they are.

    Attributes:
        metric: the metric's name.
        factor: what scores are multiplied by.
        unit: what follows the number.
        digits: the number's format.
    """

    metric: str
    factor: float
    unit: str
    digits: str

    @classmethod
    def of(cls, metric: str) -> "Scale":
        """Returns the scale of a metric by its name."""
        return cls(metric, 100.0, "\u00a0%", ".1f") if metric == "accuracy" else cls(metric, 1.0, "", "#.3g")

    @property
    def title(self) -> str:
        """The metric as it heads an axis or a column, with its unit."""
        return f"{self.metric} (%)" if self.unit else self.metric

    def text(self, score: float | int | None) -> str:
        """Returns a score with its unit, or a dash where there is none."""
        return f"{score * self.factor:{self.digits}}{self.unit}" if present(score) else NOTHING

    def difference(self, score: float | int) -> str:
        """Returns the size of a difference between two scores, such as `1.2 points`."""
        return f"{abs(score) * self.factor:.1f} points" if self.unit else f"{abs(score):.2g}"


def present(value: float | int | None) -> TypeGuard[float | int]:
    """Returns whether there is a finite number."""
    return value is not None and math.isfinite(value)


def decimal(value: float | int | None, digits: str = ".4g") -> str:
    """Returns a number as text: whole ones with commas, others by the format; a dash where there is none.

    Example:
        >>> decimal(412000), decimal(0.12345), decimal(None)
        ('412,000', '0.1235', '–')
    """
    if not present(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:{digits}}"


def percent(share: float | int | None) -> str:
    r"""Returns a share in percent; what is neither none nor all is never written as 0 or 100.

    Example:
        >>> [percent(share).replace("\u00a0", " ") for share in (0.5, 0.0004, 0.9999, 1)]
        ['50 %', '<1 %', '>99 %', '100 %']
    """
    if not present(share):
        return NOTHING
    if 0 < share < 0.01:
        return "<1\u00a0%"
    return ">99\u00a0%" if 0.99 < share < 1 else f"{100 * share:.0f}\u00a0%"


def memory(value: float | int | None) -> str:
    """Returns bytes in MiB or GiB."""
    if not present(value):
        return NOTHING
    return f"{value / 2**20:,.0f} MiB" if value < 10 * 2**30 else f"{value / 2**30:,.1f} GiB"


def duration(value: float | int | None) -> str:
    """Returns seconds as a person says them.

    Example:
        >>> duration(31.25), duration(4000), duration(8000)
        ('31.2 s', '67 min', '2 h 13 min')
    """
    if not present(value):
        return NOTHING
    if value < 120:
        return f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def mean(scores: Sequence[float | int | None]) -> float | None:
    """Returns the mean, or None where a score is missing: a mean of the others would be of other sets."""
    return float(np.mean(np.asarray(scores, dtype=np.float64))) if all(map(present, scores)) else None


def picked(result: Json) -> Json | None:
    """Returns the contender that was handed back; None where the selection fits several, or none.

    Args:
        result: what `result.json` holds.
    """
    selected = result["selected"]
    fitting = [
        contender
        for contender in result["contenders"]
        if (contender["kind"], contender["score"]) == (selected["kind"], selected["score"])
        and (selected["task"] is None or contender["members"] == [selected["task"]])
    ]
    return fitting[0] if len(fitting) == 1 else None


def picked_words(result: Json) -> str:
    """Returns what was handed back, in words.

    Args:
        result: what `result.json` holds.

    Example:
        >>> picked_words({"tasks": 8, "contenders": [], "selected": {"kind": "task", "task": 3, "score": 0.9}})
        'task 3 of 8'
    """
    selected, tasks, contender = result["selected"], result["tasks"], picked(result)
    name = selected["kind"] if contender is None else contender["name"]
    if selected["kind"] == "distilled":
        if contender is not None and not contender["members"]:
            return "a model trained in the end on all unsealed rows, by their labels alone"
        return f"a model distilled from all {tasks} tasks, trained on all unsealed rows"
    if selected["kind"] == "average":
        return f"the {name} of task {selected['task']}, an average of its parameters over time"
    if selected["kind"] == "soup":
        return f"the {name} of {_members(contender, tasks)}, a mean of their parameters"
    return f"task {selected['task']} of {tasks}"


def _members(contender: Json | None, tasks: int) -> str:
    members = [] if contender is None else [str(task) for task in contender["members"]]
    if not members:
        return "some tasks"
    return f"all {tasks} tasks" if len(members) == tasks else f"tasks {', '.join(members[:-1])} and {members[-1]}"


def selection(result: Json) -> str:
    """Returns the sentence that says which model was picked, and why."""
    selected, tasks = result["selected"], result["tasks"]
    if tasks == len(result["contenders"]) == 1:
        return "There was one task, and its best model was taken."
    what = picked_words(result)
    what = what[0].upper() + what[1:]
    if selected["kind"] == "distilled":
        return f"{what}; handed back whatever the others score, for no unsealed row is left to compare it on."
    if selected["kind"] == "task":
        what = f"{what} (0 to {tasks - 1})"
    why = _CRITERIA.get(selected["criterion"], f"the criterion {selected['criterion']!r}")
    return f"{what}, picked for {why}."


def interval(estimate: Json, scale: Scale) -> Json:
    """Returns the interval of an estimate in two sentences: `what` it says, and `how` it was come by."""
    rows = f"{decimal(estimate['rows'])} sealed rows"
    if not (present(estimate["low"]) and present(estimate["high"])):
        return {"what": "There is no interval: the rows are too few, or too alike, to tell.", "how": f"From {rows}."}
    low, high = scale.text(estimate["low"]), scale.text(estimate["high"])
    method = _INTERVALS.get(str((estimate.get("details") or {}).get("interval")), "An interval")
    return {
        "what": f"On new rows like these, expect {scale.metric} between {low} and {high}.",
        "how": f"{method[0].upper()}{method[1:]} of {100 * estimate['level']:g} % from {rows}, taken as drawn "
        "independently.",
    }


def validation_mean(result: Json) -> float | None:
    """Returns the selected model's mean score over all validation sets; None where it is not known."""
    selected = result["selected"]
    if selected["kind"] == "task":
        return mean(result["scores"]["matrix"][selected["task"]])
    return selected["score"] if selected["criterion"] == "mean" else None


def optimism(result: Json, scale: Scale) -> Iterator[str]:
    """Yields sentences: how the score that selected and the clean estimate differ, and why."""
    selected, tasks, estimate = result["selected"], result["tasks"], result["estimate"]
    score = validation_mean(result)
    if score is None:
        return
    sets = f"The mean over the {tasks} validation sets" if tasks > 1 else "The validation set"
    if estimate is not None and present(estimate["value"]):
        gap = score - estimate["value"]
        against = f"{scale.difference(gap)} {'lower' if gap > 0 else 'higher'}" if gap else "the same"
        yield f"{sets} said {scale.text(score)}; the sealed rows say {scale.text(estimate['value'])}, {against}."
        ends = (estimate["low"], estimate["high"])
        if gap and all(map(present, ends)) and ends[0] <= score <= ends[1]:
            yield "That is within the interval: chance alone could make the difference."
    else:
        yield f"{sets} said {scale.text(score)}."
    if selected["kind"] == "distilled":
        yield "The validation score says little: the model had trained on the rows behind it."
        return
    yield "The validation score chose the model, and so tends to flatter it."
    seen = mean(result["scores"]["exposed"][selected["task"]]) if selected["kind"] == "task" else None
    if seen is not None and seen > 0:
        yield (
            f"Of the rows behind it, {percent(seen)} had been trained on, by the selected model or by one it "
            "had learned from."
        )
    contender = picked(result)
    if selected["kind"] != "task" and contender is not None:
        yield (
            f"Of the unsealed rows, {percent(contender['exposed'])} had been trained on by a model that is in it, "
            "or by one that these had learned from."
        )


def rule_name(config: Mapping[str, Any]) -> str:
    """Returns the transfer rule as a configuration names it, several joined by +; or "" where it is not known.

    Example:
        >>> rule_name({"transfer": ["teach", {"name": "papa", "alpha": 0.9}]}), rule_name({})
        ('teach+papa', '')
    """
    spec = config.get("transfer", "")
    names = []
    for part in spec if isinstance(spec, list) else [spec]:
        known = part.get("name") or part.get("class_path") or "" if isinstance(part, Mapping) else part
        names.append(str(known))
    return "+".join(names)
