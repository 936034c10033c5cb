"""What a run hands back: one model, the score matrix, the estimate, and how it came about.

Legend: T tasks, N rows, C classes or outputs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from kinfold import files
from kinfold._version import __version__
from kinfold.config import is_object, names_in
from kinfold.data import encoder_from_spec
from kinfold.data.base import Encoder, Inputs, Kind, Label
from kinfold.errors import InputError, unknown
from kinfold.exporting import MODEL_CARD, Finished, export, model_card
from kinfold.importing import is_part_name, one_line, only_parts
from kinfold.limits import max_pixels
from kinfold.models import MODELS, Rescaled, factory, sized, untrained
from kinfold.models.resizing import resize
from kinfold.report import picked_words, write_report
from kinfold.selection import Diagnostics, Estimate
from kinfold.selection.estimate import calibration_bins
from kinfold.splits.base import Splits
from kinfold.splits.saved import load_splits, save_splits
from kinfold.tasks.state import is_lazy, materialise
from kinfold.yaml_files import yaml_text

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from matplotlib.figure import Figure

_ROWS_AT_ONCE = 1024
_SMALL = 4096  # numbers that need no parameter for each, such as a length of which means are taken
_SHRUNK = 100  # times: how much larger a network may have been that was made smaller
_CHANNELS = 4  # the most of a picture

_SUMMED = ("config.yaml", "splits.safetensors", "history.jsonl", "model.safetensors", "model.json")
"""Files of a finished run that it is read from, besides `result.json`."""


@dataclass(frozen=True)
class Scores:
    """Every task's best model on every task's validation rows.

    Attributes:
        metric: its name; the numbers are in its own direction.
        matrix: S [T, T], S[t, j] is model t on validation set j.
        loss_matrix: [T, T] likewise.
        own: [T] the diagonal of S.
        exposed: [T, T] share of a cell's rows that the model, or anything it learned from, has trained on.
    """

    metric: str
    matrix: Float[Tensor, "T T"]
    loss_matrix: Float[Tensor, "T T"]
    own: Float[Tensor, " T"]
    exposed: Float[Tensor, "T T"]


@dataclass(frozen=True)
class Selected:
    """Which candidate was handed back.

    Attributes:
        kind: `task`, `soup`, `average` or `distilled`.
        task: its number, where it is one task's model.
        criterion: how the score matrix was made one number.
        score: that number, in the metric's own direction (for `rank`, the mean rank). It was selected by, so it
            is optimistic: it is not an estimate.
    """

    kind: str
    task: int | None
    criterion: str
    score: float


@dataclass(frozen=True)
class Contender:
    """One model that might have been handed back.

    Attributes:
        kind: `task`, `soup`, `average` or `distilled`.
        name: the candidate's, such as `greedy-soup`; else the kind again.
        members: the tasks that are in it.
        score: by the run's criterion over all validation sets, as in `Selected`. Of a distilled model it says
            little, which has trained on these rows; NaN for its `rank`, which the others have among themselves.
        exposed: share of the unsealed rows that it, or anything it learned from, has trained on.
    """

    kind: str
    name: str
    members: tuple[int, ...]
    score: float
    exposed: float


@dataclass(frozen=True)
class Transfers:
    """How much knowledge moved.

    Attributes:
        proposed: moves that were tried.
        accepted: moves that were taken.
        by_pair: [T, T] accepted moves, recipient by donor; a lesson from several teachers counts for each.
        rescues: [T] how often a task diverged and was started again.
    """

    proposed: int
    accepted: int
    by_pair: Int64[Tensor, "T T"]
    rescues: Int64[Tensor, " T"]


@dataclass(frozen=True)
class Target:
    """What the model predicts, without the rows.

    Attributes:
        kind: classification or regression.
        outputs: C.
        labels: class c as the user wrote it; None for regression.
        name: the column's name, or None.
    """

    kind: Kind
    outputs: int
    labels: tuple[Label, ...] | None
    name: str | None


@dataclass(frozen=True)
class Source:
    """What the model was trained on, without the rows.

    Attributes:
        name: the data set's.
        rows: how many there were, sealed ones included.
        sealed: how many of them were set aside for the estimate.
        fingerprint: SHA-256 of all rows and targets, in order: by it one knows the same data again. Empty where a run
            of an older version did not note it.
    """

    name: str
    rows: int
    sealed: int
    fingerprint: str


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: the selected model, in eval mode, on the CPU.
        selected: which one it is.
        contenders: all that might have been it.
        scores: the score matrix.
        estimate: its score on the sealed rows, used this once; None with `holdout=0`: there is no clean estimate.
        transfers: how much knowledge moved.
        history: one entry a period, transfer, audit finding and note, unpacked as it is asked for.
        cost: wall_seconds, train_seconds, transfer_seconds, sample_visits, samples_per_second, peak_memory_bytes.
        config: the complete configuration, as in `config.yaml`.
        splits: sealed rows, and the tasks' training and validation rows; of an export, which has none, no rows.
        encoder: the fitted preprocessing.
        target: what is predicted.
        engine: the engine that ran.
        device: where it ran.
        epochs_run: periods trained.
        stopped: `patience` or `epochs`.
        source: what the model was trained on.
        diagnostics: the selected model's outputs on the sealed rows, in figures; None for runs that did not keep them.
        untrusted: the directory that it was loaded from, unless that is trusted: what it names is not imported.
        rebuilt: whether a method handed out a module with layers of other sizes than the structure has.
    """

    model: nn.Module
    selected: Selected
    contenders: tuple[Contender, ...]
    scores: Scores
    estimate: Estimate | None
    transfers: Transfers
    history: Sequence[dict[str, Any]]
    cost: dict[str, float | int]
    config: dict[str, Any]
    splits: Splits
    encoder: Encoder
    target: Target
    engine: str
    device: str
    epochs_run: int
    stopped: str
    source: Source
    diagnostics: Diagnostics | None = None
    untrusted: str | None = None
    rebuilt: bool = False

    def predict(self, x: Any) -> Shaped[np.ndarray, "N *K"]:
        """Returns the predicted classes as the user wrote them, or the predicted values.

        Args:
            x: N rows in the form the run was given them: an array, a tensor, a `DataFrame` …

        Raises:
            InputError: the rows do not fit what the run was trained on.
        """
        outputs = self.outputs(x)
        if self.target.labels is not None:
            labels: np.ndarray = np.array(self.target.labels)[outputs.argmax(1).numpy()]
            return labels
        values: np.ndarray = outputs.double().numpy()
        return values[:, 0] if self.target.outputs == 1 else values

    def predict_proba(self, x: Any) -> Float[np.ndarray, "N C"]:
        """Returns the classes' probabilities, in the order of `target.labels`.

        Raises:
            InputError: the run was a regression, or the rows do not fit.
        """
        if self.target.labels is None:
            raise InputError("predict_proba: the run was a regression; use predict.")
        probabilities: np.ndarray = torch.softmax(self.outputs(x).double(), 1).numpy()
        return probabilities

    def outputs(self, x: Any) -> Float[Tensor, "N C"]:
        """Returns the model's raw outputs: logits, or values."""
        inputs = self.encoder.encode(x)
        return model_outputs(self.model, inputs, torch.arange(len(inputs)))

    def plot(self, kind: str = "curves", rows: tuple[Any, Any] | None = None) -> "Figure":
        """Returns a matplotlib figure, which a notebook shows; pyplot does not know of it.

        Args:
            kind: `curves`, the tasks' training loss and validation score by period; `scores`, every task's model on
                every task's validation rows, with the cells marked that it was exposed to; `transfers`, who taught
                whom; `calibration`, how often the model is right at each level of confidence.
            rows: for `calibration` alone: labelled rows (x, y) that the model has not seen, y as the run was given it;
                default the rows that the run kept figures of (`diagnostics`): the sealed ones, where there are any.

        Raises:
            InputError: the kind is unknown, or there is nothing to draw.

        Example:
            >>> import kinfold
            >>> result = kinfold.fit("mlp", "iris", tasks=3, epochs=5)
            >>> len(result.plot("scores").axes)  # the matrix, and its scale of colours
            2
        """
        if kind not in _PLOTS:
            raise unknown("kind", kind, _PLOTS)
        if rows is not None and kind != "calibration":
            raise InputError(f"plot: {kind} takes no rows; leave them out.")
        return _PLOTS[kind](self, rows)

    def _repr_html_(self) -> str:
        """A small table for notebooks, in the page's own colours."""
        estimate, selected = self.estimate, self.selected
        if estimate is None:
            said = "none: holdout=0"
        else:
            ends = "" if estimate.low is None or estimate.high is None else f"{estimate.low:.4g} to {estimate.high:.4g}"
            interval = f", {100 * estimate.level:g} % interval {ends}" if ends else ""
            clean = "sealed rows" if estimate.clean else "sealed rows, not clean"
            said = f"{estimate.metric} {estimate.value:.4g}{interval} ({estimate.rows} {clean})"
        distilled, own = selected.kind == "distilled", [f"{score:.4g}" for score in self.scores.own.tolist()]
        but = "says little, since it trained on their rows" if distilled else "optimistic, since it was selected by"
        rows = {
            "estimate": said,
            "selected": picked_words(self.to_json()),
            "validation score"
            if distilled
            else "selection score": f"{selected.score:.4g} by {selected.criterion}; {but}",
            f"own {self.scores.metric} of the tasks": ", ".join(own if len(own) <= 16 else [*own[:16], "…"]),
            "transfers": f"{self.transfers.accepted} accepted of {self.transfers.proposed}",
            "trained": f"{self.epochs_run} epochs in {self.cost['wall_seconds']:.3g} s, stopped by {self.stopped}",
        }
        left = ' style="text-align: left"'
        lines = (f"<tr><th scope=row{left}>{escape(k)}</th><td{left}>{escape(v)}</td></tr>" for k, v in rows.items())
        style = "color: inherit"  # which a table does not by itself on every page
        return f'<table style="{style}"><caption>Kinfold\'s result</caption><tbody>{"".join(lines)}</tbody></table>'

    def to_json(self) -> dict[str, Any]:
        """Returns `result.json` as JSON values (see docs/contracts.md)."""
        said: dict[str, Any] = files.jsonable(
            {
                "version": __version__,
                "seed": self.config["seed"],
                "engine": self.engine,
                "device": self.device,
                "precision": self.config["precision"],
                "data": _text(self.config["data"]),
                "model": _text(self.config["model"]),
                "tasks": self.splits.tasks,
                "epochs_run": self.epochs_run,
                "stopped": self.stopped,
                "selected": asdict(self.selected),
                "contenders": [asdict(contender) for contender in self.contenders],
                "scores": asdict(self.scores),
                "estimate": None if self.estimate is None else asdict(self.estimate),
                "diagnostics": None if self.diagnostics is None else asdict(self.diagnostics),
                "transfers": asdict(self.transfers),
                "cost": self.cost,
            }
        )
        return said

    def save(self, directory: str | Path) -> Path:
        """Writes the run directory, report included; returns its path.

        Raises:
            InputError: the directory holds a run already.
        """
        path = Path(directory)
        if (path / "config.yaml").exists():
            raise InputError(f"save: {path} already holds a run; choose another directory.")
        write_start(path, self.config, self.splits)
        lines = [files.json_line(event) + "\n" for event in self.history]
        files.write_text(path / "history.jsonl", "".join(lines))
        self.write_end(path)
        return path

    def write_end(self, directory: Path) -> None:
        """Writes what is known at the end of a run: the model, checksums, `result.json` and the report.

        A run is finished when `result.json` is there. What it rests on is on the disk before it is.
        """
        finished = self._finished()
        said = files.json_text(finished.said)
        files.sync(directory / "history.jsonl")
        files.write_tensors(directory / "model.safetensors", finished.tensors())
        files.write_json(directory / "model.json", finished.about)
        files.write_text(directory / MODEL_CARD, model_card(finished))
        sums = {name: files.sha256((directory / name).read_bytes()) for name in _SUMMED}
        files.write_sums(directory, sums | {"result.json": files.sha256(said.encode())})
        files.write_text(directory / "result.json", said)
        write_report(directory)

    def export(self, format: str, out: str | Path, *, rows: Any = None, force: bool = False) -> Path:
        """Writes the model with its preprocessing and its labels for use elsewhere, and a model card beside it.

        Args:
            format: `safetensors` (with JSON, for `kinfold.load`), `torch.export` (a .pt2 program) or `onnx`.
            out: the folder to write into; for a program also the file, ending `.pt2` or `.onnx`.
            rows: by which a program is checked against the model: raw rows, labelled or not, or the name or path of
                such; default the run's own data. A thousand of them are used.
            force: whether what is there is replaced.

        Returns:
            What was written: the folder, or the program's file.

        Raises:
            InputError: an unknown format, something is there already, a package is missing, or rows are needed.
            RunError: the model cannot become a program, or what was made differs from the model.
        """
        theirs = self.untrusted
        with nullcontext() if theirs is None else only_parts(theirs, names_in(rows)):
            return export(self._finished(), format, Path(out), rows=rows, force=force)

    def _finished(self) -> Finished:
        about = {
            "model": self.config["model"],
            "rescaled": isinstance(self.model, Rescaled),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "target": asdict(self.target),
            "encoder": self.encoder.spec(),
            "source": asdict(self.source),
        }
        if self.rebuilt:
            about["rebuilt"] = True
        return Finished(
            model=self.model,
            encoder=self.encoder,
            labels=self.target.labels,
            outputs=self.outputs,
            about=files.jsonable(about),
            said=self.to_json(),
            config=self.config,
            history=self.history,
        )


def _plot_curves(result: Result, rows: None) -> "Figure":
    from kinfold.report import figures

    periods = [event for event in result.history if event["event"] == "period"]
    epochs = [event for event in result.history if event["event"] == "student"]
    if not periods:
        raise InputError("plot: the history has no periods to draw curves of.")

    def table(name: str) -> Float[np.ndarray, "P T"]:
        return np.asarray([event[name] for event in periods], dtype=np.float64)

    student = [[event["period"], event["train_loss"]] for event in epochs]
    return figures.curves(
        table("train_loss"),
        table("metric"),
        np.asarray([event["period"] for event in periods]),
        np.asarray(student, dtype=np.float64).reshape(-1, 2),
        metric=result.scores.metric,
        selected=result.selected.task,
    )


def _plot_scores(result: Result, rows: None) -> "Figure":
    from kinfold.report import figures

    scores, selected = result.scores, result.selected
    framed = selected.task if selected.kind == "task" else None
    return figures.score_matrix(scores.matrix.numpy(), scores.exposed.numpy(), metric=scores.metric, selected=framed)


def _plot_transfers(result: Result, rows: None) -> "Figure":
    from kinfold.report import figures

    proposed = np.zeros((result.splits.tasks, result.splits.tasks), dtype=np.int64)
    for event in result.history:
        for move in event["transfers"] if event["event"] == "transfer" else ():
            proposed[move["recipient"], move["donors"]] += move.get("times", 1)
    if not proposed.any():
        raise InputError("plot: nothing was transferred between the tasks; there is no graph to draw.")
    return figures.transfer_graph(result.transfers.by_pair.numpy(), proposed)


def _plot_calibration(result: Result, rows: tuple[Any, Any] | None) -> "Figure":
    from kinfold.report import figures

    labels = result.target.labels
    if labels is None:
        raise InputError("plot: the run was a regression, which has no confidence to calibrate.")
    if rows is None:
        kept = result.diagnostics
        if kept is None or kept.calibration is None:
            raise InputError("plot: the run kept no calibration; give rows=(x, y), which the model has not seen.")
        return figures.calibration(kept.calibration, rows=f"{kept.rows} {kept.source} rows")
    x, y = rows
    numbers = {label: number for number, label in enumerate(labels)}
    given = np.asarray(y).tolist()
    strange = [label for label in given if label not in numbers]
    if strange:
        raise InputError(f"plot: rows: {strange[0]!r} is no class of the run; its classes are {_listed(labels)}.")
    outputs = result.outputs(x)
    if len(outputs) != len(given) or not given:
        raise InputError(f"plot: rows: {len(outputs)} rows and {len(given)} targets; give one for each row.")
    bins = calibration_bins(outputs, torch.tensor([numbers[label] for label in given]))
    return figures.calibration(bins, rows=f"{len(given)} rows")


def _listed(labels: Sequence[Label]) -> str:
    few = ", ".join(repr(label) for label in labels[:5])
    return few if len(labels) <= 5 else f"{few} …"


_PLOTS: Mapping[str, Callable[[Result, Any], "Figure"]] = {
    "curves": _plot_curves,
    "scores": _plot_scores,
    "transfers": _plot_transfers,
    "calibration": _plot_calibration,
}
"""What `Result.plot` draws."""


def model_outputs(model: nn.Module, inputs: Inputs, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m C"]:
    """Returns the outputs of one model in eval mode, where it is, a chunk of rows at a time; on the CPU."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    inputs, rows = inputs.to(first.device, first.dtype), rows.to(first.device)
    outputs = []
    with torch.no_grad():
        for x in inputs.batches(torch.split(rows, _ROWS_AT_ONCE)):
            outputs.append((model(*x) if isinstance(x, tuple) else model(x)).cpu())
    whole = torch.cat(outputs)
    return whole[:, None] if whole.ndim == 1 else whole


def write_start(directory: Path, config: Mapping[str, Any], splits: Splits) -> None:
    """Writes what is known at the start of a run: configuration and splits."""
    files.write_text(directory / "config.yaml", yaml_text(dict(config)))
    save_splits(splits, directory / "splits.safetensors")


def finished(directory: str | Path) -> Path:
    """Returns the path of a directory that holds a finished run, whose files are as they were written.

    Raises:
        InputError: it does not, or one of its files is damaged.
    """
    path = Path(directory)
    if not path.is_dir():
        raise InputError(f"run: {path} is not a directory; give the directory that `kinfold train` wrote.")
    if not (path / "result.json").exists():
        if (path / "config.yaml").exists():
            raise InputError(f"run: {path} holds an unfinished run; go on with kinfold train --resume --out {path}.")
        raise InputError(f"run: {path} holds no run; give the directory that `kinfold train` wrote.")
    files.check_sums(path)
    return path


def load(
    directory: str | Path, model: nn.Module | Callable[..., nn.Module] | None = None, *, trust: bool = False
) -> Result:
    """Returns a finished run from its directory, or a model from an export.

    An export (`Result.export`, format `safetensors`) has no splits' rows, and of the history findings and notes alone.

    Args:
        directory: a run directory, or the folder of an export.
        model: a module of the run's structure, whose parameters are overwritten, or a factory of it; for runs whose
            model was given as a Python object. Models given by name or as `package.module:factory` are rebuilt.
        trust: whether to import what the directory names, whatever it is. By default nothing is imported but parts of
            Kinfold, torch and torchmetrics, and modules of the working directory, whose classes and functions count as
            the caller's own. So a directory can be loaded whoever wrote it, where nothing else of theirs lies in the
            working directory (docs/trust-hostile.md).

    Raises:
        InputError: the directory holds no finished run, a file is damaged, or the model cannot be rebuilt.
    """
    path = Path(directory)
    with nullcontext() if trust else only_parts(str(path)):
        return _loaded(path, model, trust)


def _loaded(path: Path, model: nn.Module | Callable[..., nn.Module] | None, trust: bool) -> Result:
    exported = not (path / "config.yaml").exists() and (path / "model.json").exists()
    about = files.read_json(path / "model.json") if exported else files.read_json(finished(path) / "model.json")
    tensors, _ = files.read_tensors(path / "model.safetensors")
    try:
        if exported:
            said, config = about["result"], about["config"]
            history = files.events_of(about["history"], path / "model.json")
            splits = _no_rows(said["tasks"])
        else:
            said, history = files.read_json(path / "result.json"), files.read_events(path / "history.jsonl")
            config, splits = files.read_yaml(path / "config.yaml"), load_splits(path / "splits.safetensors")
        target = Target(**{**about["target"], "labels": _tuple(about["target"]["labels"])})
        encoder = encoder_from_spec(about["encoder"])
        if model is None:
            make = partial(_rebuilt, about["model"], encoder, target.outputs)
        elif isinstance(model, nn.Module):
            make = partial(_itself, model)
        else:
            make = partial(_built, sized(model, encoder.input_shape, target.outputs))
        whole = partial(_whole, make, encoder.input_shape, target.outputs if about["rescaled"] else None)
        if not trust:
            _check_sizes([about["model"] if model is None else None, encoder.hints, target.outputs], encoder, tensors)
            if model is None:
                _check_shapes(whole, tensors, _is_ours(about["model"]), about.get("rebuilt", False))
        model = whole()
        if about.get("rebuilt", False):
            resize(model, tensors)
        scores, transfers = said["scores"], said["transfers"]
        result = Result(
            model=_filled(model, tensors),
            selected=Selected(**{**said["selected"], "score": _number(said["selected"]["score"])}),
            contenders=tuple(
                Contender(one["kind"], one["name"], tuple(one["members"]), _number(one["score"]), one["exposed"])
                for one in said["contenders"]
            ),
            scores=Scores(scores["metric"], *(_matrix(scores[k]) for k in ("matrix", "loss_matrix", "own", "exposed"))),
            estimate=None if said["estimate"] is None else _estimate(said["estimate"]),
            transfers=Transfers(
                transfers["proposed"],
                transfers["accepted"],
                torch.tensor(transfers["by_pair"]),
                torch.tensor(transfers.get("rescues", [0] * said["tasks"])),  # runs of old versions have none
            ),
            history=history,
            cost=said["cost"],
            config=_complete(config),
            splits=splits,
            encoder=encoder,
            target=target,
            engine=said["engine"],
            device=said["device"],
            epochs_run=said["epochs_run"],
            stopped=said["stopped"],
            source=Source(**about["source"]) if "source" in about else _unnamed(config, splits),
            diagnostics=None if said.get("diagnostics") is None else Diagnostics(**said["diagnostics"]),
            untrusted=None if trust else str(path),
            rebuilt=about.get("rebuilt", False),
        )
    except InputError:
        raise
    except Exception as error:  # anything may stand in files that somebody has changed
        raise InputError(f"run: {path} is damaged or of another version ({one_line(error)}).") from error
    return result


def _complete(config: Any) -> dict[str, Any]:
    """Returns a run's configuration, in which all must stand that a finished run is asked for."""
    return {**config, **{name: config[name] for name in ("data", "model", "loss", "metric", "seed", "precision")}}


def _check_sizes(said: Any, encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a model that says it is larger than its parameters, before its memory is asked for.

    No width, depth or vocabulary of a network is greater than the number of its parameters; where a number means
    something else, the run is to be trusted.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    for number in _whole_numbers(said):
        if abs(number) > max(held, _SMALL):
            raise InputError(
                f"load: the model says {number}, and {held} numbers were saved of it; mend it, or trust it."
            )
    shape = encoder.input_shape
    if math.prod(shape) > _CHANNELS * max_pixels():
        raise InputError(
            f"load: the model reads rows of shape {list(shape)}; mend it, or raise KINFOLD_MAX_PIXELS ({max_pixels()})."
        )


def _check_shapes(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], ours: bool, rebuilt: bool) -> None:
    """Refuses a model whose parameters are not those that were saved, before it takes any memory.

    Args:
        make: makes it.
        tensors: that were saved.
        ours: whether it is of Kinfold or torch, which can be made without memory.
        rebuilt: whether what was saved is smaller than what it makes.
    """
    try:
        with torch.device("meta"):
            model = make()
    except Exception:
        if ours:
            raise
        return  # it may look at its numbers as it is made; those that it says have been checked
    if not rebuilt:
        _check_fit(model, tensors)
        return
    most = max(_SMALL**2, _SHRUNK * sum(tensor.numel() for tensor in tensors.values()))
    whole = sum(value.numel() for value in [*model.parameters(), *model.buffers()])
    if whole > most:
        raise InputError(f"load: the model has {whole} numbers before it is made smaller; trust it, or mend it.")


def _is_ours(spec: Any) -> bool:
    name = spec.get("class_path", spec.get("name")) if isinstance(spec, Mapping) else spec
    return isinstance(name, str) and (name in MODELS or is_part_name(name))


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _whole_numbers(item)
    elif isinstance(value, int):
        yield value


def _unnamed(config: Mapping[str, Any], splits: Splits) -> Source:
    """Returns what a run of version 0.1 says of its data."""
    return Source(str(config["data"]), len(splits.sealed), int(splits.sealed.sum()), fingerprint="")


def _no_rows(tasks: int) -> Splits:
    """Returns the splits of an export, of which it is not known which rows they had."""
    none = np.zeros((tasks, 0), dtype=bool)
    return Splits(none, none, none[0])


def _whole(make: Callable[[], nn.Module], input_shape: tuple[int, ...], outputs: int | None) -> nn.Module:
    """Returns the model that is to be filled; rescaled, where numbers of outputs are given."""
    model = make()
    if is_lazy(model):
        materialise(model, torch.zeros(2, *input_shape), seed=0)
    if outputs is not None and not isinstance(model, Rescaled):
        model = Rescaled(model, torch.zeros(outputs), torch.ones(outputs))
    return model


def _itself(model: nn.Module) -> nn.Module:
    return model


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    # Its parameters are overwritten, but drawing them must not move the caller's random state.
    with torch.random.fork_rng([]):
        return make()


def _rebuilt(spec: Any, encoder: Encoder, outputs: int) -> nn.Module:
    if not isinstance(spec, (str, Mapping)) or is_object(spec):
        raise InputError("load: the run's model was a Python object; give load(directory, model=…) its structure.")
    return _built(factory(untrained(spec), encoder.input_shape, outputs, encoder.hints))


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted({*own, *tensors}):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise InputError(f"load: the model does not fit what was saved, at {name!r}; give the structure trained.")


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    _check_fit(model, tensors)
    model = model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return model.eval()


def _matrix(rows: Any) -> Float[Tensor, "T *T2"]:
    return torch.tensor(_nan(rows), dtype=torch.float64)


def _nan(value: Any) -> Any:
    return [_nan(v) for v in value] if isinstance(value, list) else _number(value)


def _estimate(said: Mapping[str, Any]) -> Estimate:
    return Estimate(**{**said, "value": _number(said["value"])})


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _tuple(value: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else files.json_line(value)
