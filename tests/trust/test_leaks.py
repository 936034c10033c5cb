"""No sealed row reaches anything before the estimate: the rows are watched, poisoned, and planted with the answer.

And the ledger is what a replay of the log by hand comes to, for every rule.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import kinfold
from kinfold import finishing
from kinfold.comparing import arms
from kinfold.data.base import TensorInputs
from kinfold.methods import METHODS
from kinfold.splits import Splits
from kinfold.transfer import RULES

N, T, SEALED = 96, 3, 24
EAGER: Mapping[str, Mapping[str, Any]] = {
    "amto": {"p_low": 1.0, "p_high": 1.0, "rows": "unexposed", "min_rows": 2},
    "papa": {"steps": 2},
    "papa-all": {"period": 1},
    "elastic": {"steps": 2},
    "exchange": {"period": 1},
    "shuffle": {"steps": 2},
    "merge-median": {"period": 1},
    "mfea": {"rmp": 1.0},
    "mfea-2": {"min_rows": 2},
    "distil": {"stages": (0.3, 0.6), "clean": 0.0},  # such that the student learns from what the tasks make of them
}
"""Settings with which rules act in so short a run."""
COMPOSED = (("teach", "papa"), ("amto", "shuffle"), ("teach-out-of-fold", "amto"), ("papa", "distil"))
ALL = (*((rule,) for rule in RULES), *COMPOSED)
ENGINES = ("sequential", "vectorised", "workers")
LATE = ("soup", "greedy-soup", "ema", "swa")
APART = {
    *("augment", "crop_flip_cutout", "cutmix"),  # for images
    *("bdwp", "hesso", "quantised_distillation"),  # with candidates of averaged parameters
    *("guidance", "mtard", "lanton"),  # with arguments, or an optimizer of their own
    "deepzero",  # slow
}
PLAIN = tuple(name for name in METHODS if name not in APART)


def spelled(rules: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": rule, **EAGER.get(rule, {})} for rule in rules]


def splits(n: int = N, sealed: int = SEALED) -> Splits:
    """Fixed, so that what stands in sealed rows cannot even choose which rows are sealed."""
    rng = np.random.default_rng(1)
    order = rng.permutation(n)
    masks = np.zeros((3, T, n), dtype=bool)
    masks[2, :, order[:sealed]] = True
    for t in range(T):
        rest = rng.permutation(order[sealed:])
        masks[1, t, rest[: len(rest) // 3]], masks[0, t, rest[len(rest) // 3 :]] = True, True
    return Splits(masks[0], masks[1], masks[2, 0])


def fit(data: Any, rules: Sequence[str] = ("none",), engine: str = "sequential", **options: Any) -> kinfold.Result:
    given: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [5], "batch_norm": True},
        "splits": splits(),
        "epochs": 5,
        "batch_size": 12,
        "seed": 2,
        "listen": lambda event: None,
    }
    return kinfold.fit(data=data, transfer=spelled(rules), engine=engine, **given | options)


# -- watched ------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Reading a sealed row fails, in this process and in those forked from it, until the estimate is made."""
    sealed, reading, judge = torch.from_numpy(splits().sealed), TensorInputs.rows, finishing._judged
    judged: list[int] = []

    def rows(self: TensorInputs, index: Tensor) -> Tensor:
        assert judged or not bool(sealed[index.cpu()].any()), "a sealed row was read"
        return reading(self, index)

    def judging(*arguments: Any) -> Any:
        judged.append(1)
        return judge(*arguments)

    monkeypatch.setattr(TensorInputs, "rows", rows)
    monkeypatch.setattr(finishing, "_judged", judging)
    yield judged
    assert judged == [1]  # and that is once


def covering(values: Sequence[Any], count: int) -> list[Any]:
    return list(itertools.islice(itertools.cycle(values), count))


CASES = list(
    zip(
        ALL,
        covering(ENGINES[:2], len(ALL)),
        covering((*PLAIN, ()), len(ALL)),
        covering((LATE[:2], LATE[2:], ()), len(ALL)),
        strict=True,
    )
)
CASES.append((("papa",), "workers", ("mixup", "label_smoothing", "ema"), LATE))
PRODUCT = list(itertools.product(ALL, ENGINES, (*PLAIN, ()), (LATE, ())))


def also_late(rules: Sequence[str], late: Any) -> Any:
    return () if "distil" in rules else late  # which hands back a student of its own


def classes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    return x, (x[:, 0] + rng.normal(size=N) > 0).astype(np.int64)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(("rules", "engine", "methods", "late"), CASES)
def test_no_sealed_row_is_read_before_the_estimate(rules: Any, engine: str, methods: Any, late: Any) -> None:
    result = fit(classes(), rules, engine, methods=methods, candidates=also_late(rules, late))
    assert result.estimate is not None
    assert result.estimate.clean


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(("rules", "engine", "methods", "late"), PRODUCT)
def test_no_sealed_row_is_read_in_any_combination(rules: Any, engine: str, methods: Any, late: Any) -> None:
    fit(classes(), rules, engine, methods=methods, candidates=also_late(rules, late))


@pytest.mark.usefixtures("watched")
def test_a_read_would_be_noticed() -> None:
    sealed = torch.from_numpy(splits().sealed.nonzero()[0])
    with pytest.raises(AssertionError, match="a sealed row was read"):
        TensorInputs(torch.zeros(N, 1)).rows(sealed[:1])
    fit(classes())


# -- poisoned -----------------------------------------------------------------------------------------------------


def poisoned(values: np.ndarray, poison: Any) -> np.ndarray:
    changed = values.copy()
    changed[splits().sealed] = poison
    return changed


def arrays(poison: bool, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = classes()
    return (poisoned(x, 1e30), poisoned(y, 1)) if poison else (x, y)


def values(poison: bool, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    x, _ = classes()
    y = (x[:, 0] - x[:, 1]).astype(np.float64)
    return (poisoned(x, 1e30), poisoned(y, -1e6)) if poison else (x, y)


def table(poison: bool, folder: Path) -> Path:
    """Numbers to scale, words to list, gaps to fill, free text to take words from; and a value to bring to scale."""
    rng, (x, _) = np.random.default_rng(3), classes()
    size = np.where(rng.random(N) < 0.1, np.nan, x[:, 0])
    place = rng.choice(["north", "south"], N).astype(object)
    said = np.array(
        [f"{a} and {b} were seen there" for a, b in rng.choice(["oak", "ash", "elm"], (N, 2))], dtype=object
    )
    price = 2 * x[:, 0] + rng.normal(size=N)
    if poison:
        size, place = poisoned(size, 1e30), poisoned(place, "nowhere else")
        said, price = poisoned(said, "unheard of words alone"), poisoned(price, 1e9)
    path = folder / f"table{poison}.csv"
    pd.DataFrame({"size": size, "place": place, "said": said, "price": price}).to_csv(path, index=False)
    return path


def gaps(poison: bool, folder: Path) -> Path:
    """Columns that have gaps among sealed rows alone: in all of them, or in some."""
    x, y = classes()
    one, other = x[:, :2].astype(np.float64).T
    if poison:
        one, other = poisoned(one, np.nan), np.where(splits().sealed & (other > 0), np.nan, other)
    path = folder / f"gaps{poison}.csv"
    pd.DataFrame({"one": one, "other": other, "kind": np.array(["a", "b"])[y]}).to_csv(path, index=False)
    return path


def pictures(poison: bool, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    rng, (_, y) = np.random.default_rng(5), classes()
    x = rng.integers(0, 200, (N, 3, 8, 8)).astype(np.uint8)
    return (poisoned(x, 255), poisoned(y, 0)) if poison else (x, y)


def npz(poison: bool, folder: Path) -> Path:
    x, y = arrays(poison, folder)
    path = folder / f"rows{poison}.npz"
    np.savez(path, x=x, y=y)
    return path


FORMATS: Mapping[str, tuple[Callable[[bool, Path], Any], Mapping[str, Any]]] = {
    "arrays": (arrays, {}),
    "values": (values, {}),
    "table": (table, {"target": "price", "texts": "said"}),
    "gaps": (gaps, {"target": "kind"}),
    "pictures": (pictures, {}),
    "npz": (npz, {}),
}


METHODS_OF = dict.fromkeys(("values", "table"), ("mixup",))  # labels are smoothed of classes alone


def without_sealed(result: kinfold.Result) -> tuple[Any, ...]:
    """All that a run came to, but for its estimate, what the clock says, and what the audit found in all rows."""
    timed = ("seconds",)
    history = [
        {name: value for name, value in event.items() if name not in timed}
        for event in result.history
        if event["event"] != "finding"
    ]
    said = {name: result.to_json()[name] for name in ("selected", "contenders", "scores", "transfers", "epochs_run")}
    weights = {name: value.tolist() for name, value in result.model.state_dict().items()}
    return repr(history), repr(said), weights, repr(result.encoder.spec())


def assert_blind(name: str, folder: Path, rules: Sequence[str], engine: str, **options: Any) -> None:
    make, own = FORMATS[name]
    runs = [fit(make(poison, folder), rules, engine, **own, **options) for poison in (False, True)]
    for one, other in zip(*map(without_sealed, runs), strict=True):
        assert one == other
    assert all(bool(value.isfinite().all()) for value in runs[1].model.state_dict().values())
    one, other = (run.estimate for run in runs)
    assert one is not None
    assert other is not None
    assert repr(one.value) != repr(other.value) or one.details["loss"] != other.details["loss"]  # which alone sees them


@pytest.mark.parametrize(
    ("name", "rules", "engine"),
    list(zip(FORMATS, itertools.cycle(ALL[1:]), itertools.cycle(ENGINES[:2]), strict=False)),
)
def test_what_sealed_rows_hold_changes_nothing_but_the_estimate(
    name: str, rules: Any, engine: str, tmp_path: Path
) -> None:
    assert_blind(name, tmp_path, rules, engine, methods=METHODS_OF.get(name, ("mixup", "label_smoothing")))


@pytest.mark.parametrize("rules", ALL)
def test_under_no_rule(rules: Any, tmp_path: Path) -> None:
    assert_blind("arrays", tmp_path, rules, "vectorised", candidates=also_late(rules, ("soup", "ema")))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rules", "engine"), list(itertools.product(FORMATS, ALL, ENGINES)))
def test_in_no_combination(name: str, rules: Any, engine: str, tmp_path: Path) -> None:
    assert_blind(name, tmp_path, rules, engine)


# -- the arms of a comparison -------------------------------------------------------------------------------------

ARMS = ("restarts", "refit", "ensemble", "all-rows", "all-rows-ema", "all-rows-once", "papa")


def compared(data: Any) -> kinfold.comparing.Comparison:
    given = {"splits": splits(), "epochs": 3, "batch_size": 12, "engine": "sequential", "tasks": T}
    network = {"name": "mlp", "hidden": [5], "batch_norm": True}
    return kinfold.compare(network, data, arms=ARMS, seeds=1, test_share=SEALED / N, **given)


def test_no_arm_reads_a_sealed_row_before_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, reading = torch.from_numpy(splits().sealed), TensorInputs.rows
    judging: list[str] = []

    def rows(self: TensorInputs, index: Tensor) -> Tensor:
        assert judging or not bool(sealed[index.cpu()].any()), "a sealed row was read"
        return reading(self, index)

    def within(module: Any, name: str) -> None:
        judge = getattr(module, name)

        def judged(*arguments: Any) -> Any:
            judging.append(name)
            try:
                return judge(*arguments)
            finally:
                judging.pop()

        monkeypatch.setattr(module, name, judged)

    monkeypatch.setattr(TensorInputs, "rows", rows)
    within(finishing, "_judged")
    within(arms, "_score")
    assert len(compared(classes()).scores) == len(ARMS)
    with pytest.raises(AssertionError, match="a sealed row was read"):
        TensorInputs(torch.zeros(N, 1)).rows(sealed.nonzero().flatten()[:1])


def test_what_sealed_rows_hold_changes_no_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[tuple[str, list[dict[str, Tensor]]]] = []
    score = arms._score

    def noting(arm: str, found: Sequence[torch.nn.Module], *others: Any) -> Any:
        models.append((arm, [model.state_dict() for model in found]))
        return score(arm, found, *others)

    monkeypatch.setattr(arms, "_score", noting)
    clean, other = (compared(arrays(poison, tmp_path)) for poison in (False, True))
    half = len(models) // 2
    assert {arm for arm, _ in models} >= set(ARMS)
    for (arm, one), (same, two) in zip(models[:half], models[half:], strict=True):
        assert arm == same
        assert all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)
    untouched = ("arm", "train_loss", "train_value", "visits", "kept")
    for one, two in zip(clean.scores, other.scores, strict=True):
        assert [getattr(one, name) for name in untouched] == [getattr(two, name) for name in untouched]
    assert [one.value for one in clean.scores] != [two.value for two in other.scores]  # which alone sees them


# -- planted ------------------------------------------------------------------------------------------------------


def planted(everywhere: bool) -> tuple[np.ndarray, np.ndarray, Splits]:
    """Labels by the toss of a coin, and a feature that is the label: on the sealed rows alone, or everywhere."""
    n, sealed = 300, splits(300, 150)
    rng = np.random.default_rng(11)
    y = rng.integers(0, 2, n)
    x = rng.choice([-1.0, 1.0], (n, 3)).astype(np.float32)
    tells = np.full(n, True) if everywhere else sealed.sealed
    x[tells, 0] = 2 * y[tells] - 1
    return x, y, sealed


@pytest.mark.parametrize("rules", ALL)
def test_an_answer_among_the_sealed_rows_does_not_raise_the_estimate(rules: Any) -> None:
    x, y, fixed = planted(everywhere=False)
    result = fit((x, y), rules, "vectorised", splits=fixed, epochs=8)
    assert result.estimate is not None
    # What the noise of the other rows makes of that feature is all that may be seen: hence not ½ to a hair.
    assert result.estimate.value < 0.5 + 4 * math.sqrt(0.25 / result.estimate.rows)


def test_it_would_if_it_were_seen() -> None:
    x, y, fixed = planted(everywhere=True)
    result = fit((x, y), ("papa",), "vectorised", splits=fixed, epochs=8)
    assert result.estimate is not None
    assert result.estimate.value > 0.95


# -- the ledger ---------------------------------------------------------------------------------------------------


def replayed(result: kinfold.Result, out_of_fold: bool) -> list[set[int]]:
    """What every task's best snapshot has seen, from the splits and the log alone, row by row.

    Moves of one event come at once. Those inside a period come before its score, as often as the log has it.
    """
    train, held = (
        [set(np.flatnonzero(row)) for row in mask] for mask in (result.splits.train, result.splits.validation)
    )
    seen, best = [set(rows) for rows in train], [set(rows) for rows in train]

    def moved(moves: Sequence[Mapping[str, Any]]) -> None:
        before = [frozenset(rows) for rows in seen]
        for move in moves:
            t = move["recipient"]
            if not move["accepted"]:
                continue
            for donor in move["donors"]:
                seen[t] |= before[donor]
            if move["form"] == "teach":
                others = set().union(*(held[s] for s in range(T) if s != t))
                seen[t] |= held[t] & others if out_of_fold else held[t]

    events = [event for event in result.history if event["event"] in ("period", "transfer")]
    for i, event in enumerate(events):
        if event["event"] == "transfer":
            if "times" not in event["transfers"][0]:
                moved(event["transfers"])
            continue
        inside = events[i + 1]["transfers"] if i + 1 < len(events) and events[i + 1]["event"] == "transfer" else []
        for _ in range(max((move.get("times", 0) for move in inside), default=0)):
            moved(inside)
        for t, improved in enumerate(event["improved"]):
            if improved:
                best[t] = set(seen[t])
    return best


def assert_replays(result: kinfold.Result, rules: Sequence[str]) -> None:
    best = replayed(result, "teach-out-of-fold" in rules)
    held = [set(np.flatnonzero(row)) for row in result.splits.validation]
    shares = [[len(seen & rows) / len(rows) for rows in held] for seen in best]
    np.testing.assert_allclose(result.scores.exposed.numpy(), shares, rtol=1e-12)
    unsealed = int((~result.splits.sealed).sum())
    tasks = [one.exposed for one in result.contenders if one.kind == "task"]
    np.testing.assert_allclose(tasks, [len(seen) / unsealed for seen in best], rtol=1e-12)
    sealed = set(np.flatnonzero(result.splits.sealed))
    assert not any(seen & sealed for seen in best)


@pytest.mark.parametrize("rules", ALL)
def test_the_ledger_is_what_the_log_comes_to(rules: Any) -> None:
    result = fit(classes(), rules, "vectorised", epochs=6)
    assert_replays(result, rules)
    learns = set(rules) - {"none", "distil"}
    assert bool(result.scores.exposed.diagonal().any()) == bool(learns)


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "engine", "seed"), list(itertools.product(ALL, ENGINES, range(3))))
def test_the_ledger_on_every_engine(rules: Any, engine: str, seed: int) -> None:
    assert_replays(fit(classes(), rules, engine, epochs=8, seed=seed), rules)


@pytest.mark.parametrize("rules", [("none",), ("amto",), ("papa",)])
def test_the_ledger_has_what_a_rescue_brings(rules: Any) -> None:
    x, y = classes()
    at = 0.05

    def falling(optimizer: torch.optim.Optimizer) -> Any:  # so that it diverges in the first period alone
        steep = optimizer.param_groups[0]["lr"] > 1
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda period: 1e-13 if steep and period else 1.0)

    optimizers = [partial(torch.optim.SGD, lr=rate) for rate in (at, 1e12, at)]
    network = {"name": "mlp", "hidden": [5]}
    result = fit((x, y), rules, optimizer=optimizers, scheduler=falling, model=network, rescue=2)
    assert result.transfers.rescues.tolist() == [0, 1, 0]
    periods = [event for event in result.history if event["event"] == "period"]
    assert any(event["improved"][1] for event in periods[1:])  # a snapshot that comes after the copy
    assert not periods[0]["improved"][1]
    # Where tasks train alone it starts again from what it was, and has seen no more.
    assert any(event.get("rule") == "rescue" for event in result.history) == (rules != ("none",))
    assert_replays(result, rules)
